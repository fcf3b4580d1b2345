//! LeaseService: who holds a credential, and news for holders.
//!
//! LeaseCredential's answer is a secret, so it goes without an idempotency key, whatever the caller sent.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use tokio::time::{sleep, sleep_until};
use tonic::{Request, Response, Status};

use super::{
    call::Parts,
    convert,
    credentials::shown,
    layers::{RequestId, StreamBounds},
    proto::{self, lease_service_server::LeaseService},
    status::status,
};
use crate::{
    audit::Receipt,
    authn::{ConnectedPeer, Credentials},
    error::{Error, Reason, Result},
    gate::{Place, not_found},
    model::{Action, Caller, CredentialId, Lease, LeaseEnd, LeaseState, Resource, Timestamp},
    vault::{Leased, LeasesOf, Seen, Watch},
};

/// LeaseService over these parts.
pub struct LeaseApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;
type News = Pin<Box<dyn Stream<Item = Result<proto::WatchCredentialsResponse, Status>> + Send>>;

const LISTING: &str = "leases";
/// Characters of a reason.
const MAX_REASON: usize = 500;
/// Credentials that one call watches.
const MAX_WATCHED: usize = 100;
/// How often a watcher's right to watch is looked at when nothing happens.
const RECHECK: Duration = Duration::from_secs(30);

impl LeaseApi {
    async fn lease(
        &self,
        mut caller: Caller,
        r: proto::LeaseCredentialRequest,
    ) -> Result<proto::LeaseCredentialResponse> {
        // Nothing that the gate could keep may hold a secret.
        caller.idempotency = None;
        let ttl = convert::duration("ttl", r.ttl)?;
        let (resource, found) = self.0.vault.find(r.credential_id.parse()?).await?;
        let answer = |leased: &Leased, receipt: &Receipt| proto::LeaseCredentialResponse {
            lease: Some(message(&leased.lease, leased.lease.created_at)),
            fields: shown(&leased.fields),
            receipt: convert::receipt(receipt),
        };
        let (vault, holder) = (Arc::clone(&self.0.vault), caller.principal.id);
        let act = async move |permit| vault.lease(permit, found, holder, ttl).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::LeaseCredential, resource, answer, act)
            .await
    }

    async fn renew(
        &self,
        caller: Caller,
        r: proto::RenewLeaseRequest,
    ) -> Result<proto::RenewLeaseResponse> {
        let ttl = convert::duration("ttl", r.ttl)?;
        let (resource, lease) = self.0.vault.find_lease(r.lease_id.parse()?).await?;
        let now = self.0.vault.now();
        let answer = move |lease: &Lease, receipt: &Receipt| proto::RenewLeaseResponse {
            lease: Some(message(lease, now)),
            receipt: convert::receipt(receipt),
        };
        let (vault, holder) = (Arc::clone(&self.0.vault), caller.principal.id);
        let act = async move |permit| vault.renew_lease(permit, lease, holder, ttl).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::RenewLease, resource, answer, act)
            .await
    }

    async fn give_back(
        &self,
        caller: Caller,
        r: proto::ReturnLeaseRequest,
    ) -> Result<proto::ReturnLeaseResponse> {
        let (resource, lease) = self.0.vault.find_lease(r.lease_id.parse()?).await?;
        let now = self.0.vault.now();
        let answer = move |lease: &Lease, receipt: &Receipt| proto::ReturnLeaseResponse {
            lease: Some(message(lease, now)),
            receipt: convert::receipt(receipt),
        };
        let (vault, holder) = (Arc::clone(&self.0.vault), caller.principal.id);
        let act = async move |permit| vault.return_lease(permit, lease, holder).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::ReturnLease, resource, answer, act)
            .await
    }

    async fn revoke(
        &self,
        caller: Caller,
        r: proto::RevokeLeaseRequest,
    ) -> Result<proto::RevokeLeaseResponse> {
        let reason = match r.reason.as_str() {
            "" => String::new(),
            _ => convert::text("reason", r.reason, MAX_REASON)?,
        };
        let (resource, lease) = self.0.vault.find_lease(r.lease_id.parse()?).await?;
        let now = self.0.vault.now();
        let answer = move |lease: &Lease, receipt: &Receipt| proto::RevokeLeaseResponse {
            lease: Some(message(lease, now)),
            receipt: convert::receipt(receipt),
        };
        let vault = Arc::clone(&self.0.vault);
        let act = async move |permit| vault.revoke_lease(permit, lease, reason).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::RevokeLease, resource, answer, act)
            .await
    }

    async fn list(
        &self,
        caller: Caller,
        r: proto::ListLeasesRequest,
    ) -> Result<proto::ListLeasesResponse> {
        let (resource, of) = match r.credential_id.as_str() {
            "" => {
                let tenant = convert::tenant(&r.tenant, &caller)?;
                (
                    Resource::tenant(tenant.clone()),
                    Some(LeasesOf::Tenant(tenant)),
                )
            }
            id => {
                let id: CredentialId = id.parse()?;
                let (resource, found) = self.0.vault.find(id).await?;
                (resource, found.map(|_| LeasesOf::Credential(id)))
            }
        };
        let unknown = not_found(&resource);
        let size = convert::page_size(r.page_size)?;
        let after = convert::page_token(LISTING, &r.page_token)?;
        let vault = &self.0.vault;
        let act = async |permit| {
            let of = of.ok_or(unknown)?;
            let page = vault.leases(&permit, &of, &after, size).await?;
            let next = convert::next_page(LISTING, &page, size, |lease| lease.id.to_string());
            let now = vault.now();
            let answer = proto::ListLeasesResponse {
                leases: page.iter().map(|lease| message(lease, now)).collect(),
                next_page_token: next,
            };
            Ok((answer, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::ListLeases, resource, act)
            .await
    }

    /// Authorised for every one of them, each with a row of its own.
    async fn begin_watch(
        &self,
        caller: &Caller,
        ids: Vec<String>,
    ) -> Result<(Watch, BTreeMap<CredentialId, Resource>, Place)> {
        if !(1..=MAX_WATCHED).contains(&ids.len()) {
            return Err(convert::invalid("credential_ids must be 1 to 100"));
        }
        let mut watched = BTreeMap::new();
        for id in ids {
            let id: CredentialId = id.parse()?;
            let (resource, found) = self.0.vault.find(id).await?;
            let unknown = not_found(&resource);
            let act = async |_permit| match found {
                Some(_) => Ok(((), String::new())),
                None => Err(unknown),
            };
            let gate = &self.0.gate;
            gate.access(caller, Action::WatchCredentials, resource.clone(), act)
                .await?;
            watched.insert(id, resource);
        }
        let place = self
            .0
            .gate
            .admit_stream(caller, self.0.limits.most_streams())?;
        let watch = self.0.vault.watch(watched.keys().copied());
        Ok((watch, watched, place))
    }
}

/// A watch that is under way.
struct Watching {
    parts: Parts,
    credentials: Credentials,
    request_id: Arc<str>,
    bounds: StreamBounds,
    watch: Watch,
    watched: BTreeMap<CredentialId, Resource>,
    once: bool,
    _place: Place,
}

impl Watching {
    /// The next message. Errors end it: who may not watch any more, a deadline, the end of the daemon.
    async fn next(&mut self) -> Result<Seen> {
        let deadline = self.bounds.deadline();
        let over = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let last_call = self.bounds.last_call().clone();
        tokio::pin!(over);
        loop {
            let seen = tokio::select! {
                seen = self.watch.next() => Some(seen?),
                () = sleep(RECHECK) => None,
                () = &mut over => return Err(ended(Reason::DeadlineExceeded, "the call's time is over; watch again")),
                () = last_call.cancelled() => {
                    return Err(ended(Reason::Overloaded, "the daemon is going down; watch again"));
                }
            };
            self.holds().await?;
            if let Some(seen) = seen {
                return Ok(seen);
            }
        }
    }

    /// Who may watch now may not for ever: certificates end, principals lose their entitlements, and a watch goes on.
    async fn holds(&self) -> Result<()> {
        let request_id = Arc::clone(&self.request_id);
        let action = Action::WatchCredentials;
        let authn = &self.parts.authn;
        let caller = authn.again(&self.credentials, request_id, action).await?;
        let gate = &self.parts.gate;
        let mut resources = self.watched.values();
        resources.try_for_each(|resource| gate.recheck(&caller, action, resource))
    }
}

fn ended(reason: Reason, message: &'static str) -> Error {
    Error::new(reason, message)
}

fn news(watching: Watching) -> News {
    let next = |watching: Option<Watching>| async move {
        let mut watching = watching?;
        if watching.once && watching.watch.has_told_all() {
            return None;
        }
        match watching.next().await {
            Ok(seen) => Some((Ok(told(&seen)), Some(watching))),
            Err(error) => Some((Err(status(&error, &watching.request_id)), None)),
        }
    };
    Box::pin(stream::unfold(Some(watching), next))
}

fn told(seen: &Seen) -> proto::WatchCredentialsResponse {
    let (value, since) = seen.current.unzip();
    proto::WatchCredentialsResponse {
        credential_id: seen.credential.to_string(),
        value_id: value.map_or_else(String::new, |id| id.to_string()),
        promote_time: since.flatten().and_then(convert::time),
    }
}

fn message(lease: &Lease, now: Timestamp) -> proto::Lease {
    let state = match lease.state(now) {
        LeaseState::Active => proto::LeaseState::Active,
        LeaseState::Expired => proto::LeaseState::Expired,
        LeaseState::Ended(LeaseEnd::Returned) => proto::LeaseState::Returned,
        LeaseState::Ended(LeaseEnd::Revoked) => proto::LeaseState::Revoked,
    };
    proto::Lease {
        id: lease.id.to_string(),
        credential_id: lease.credential.to_string(),
        value_id: lease.value.to_string(),
        tenant: lease.tenant.to_string(),
        holder_id: lease.holder.to_string(),
        state: state.into(),
        create_time: convert::time(lease.created_at),
        expire_time: convert::time(lease.expires_at),
        max_expire_time: convert::time(lease.max_expires_at),
        end_time: lease.ended.and_then(|(at, _)| convert::time(at)),
    }
}

#[tonic::async_trait]
impl LeaseService for LeaseApi {
    async fn lease_credential(
        &self,
        r: Request<proto::LeaseCredentialRequest>,
    ) -> Answer<proto::LeaseCredentialResponse> {
        let act = async |caller, m| self.lease(caller, m).await;
        self.0.call(r, Action::LeaseCredential, act).await
    }

    async fn renew_lease(
        &self,
        r: Request<proto::RenewLeaseRequest>,
    ) -> Answer<proto::RenewLeaseResponse> {
        let act = async |caller, m| self.renew(caller, m).await;
        self.0.call(r, Action::RenewLease, act).await
    }

    async fn return_lease(
        &self,
        r: Request<proto::ReturnLeaseRequest>,
    ) -> Answer<proto::ReturnLeaseResponse> {
        let act = async |caller, m| self.give_back(caller, m).await;
        self.0.call(r, Action::ReturnLease, act).await
    }

    async fn revoke_lease(
        &self,
        r: Request<proto::RevokeLeaseRequest>,
    ) -> Answer<proto::RevokeLeaseResponse> {
        let act = async |caller, m| self.revoke(caller, m).await;
        self.0.call(r, Action::RevokeLease, act).await
    }

    async fn list_leases(
        &self,
        r: Request<proto::ListLeasesRequest>,
    ) -> Answer<proto::ListLeasesResponse> {
        let act = async |caller, m| self.list(caller, m).await;
        self.0.call(r, Action::ListLeases, act).await
    }

    type WatchCredentialsStream = News;

    async fn watch_credentials(
        &self,
        r: Request<proto::WatchCredentialsRequest>,
    ) -> Answer<Self::WatchCredentialsStream> {
        let extensions = r.extensions();
        let bounds = extensions.get::<StreamBounds>().cloned();
        let id = extensions.get::<RequestId>();
        let request_id = id.map_or_else(|| Arc::from(""), |id| Arc::clone(&id.0));
        let peer = extensions.get::<ConnectedPeer>().cloned();
        let credentials = Credentials::of(peer, r.metadata().as_ref());
        let act = async |caller: Caller, m: proto::WatchCredentialsRequest| {
            let bounds = bounds.ok_or_else(|| Error::internal("a stream without bounds"))?;
            let once = m.once;
            let (watch, watched, place) = self.begin_watch(&caller, m.credential_ids).await?;
            Ok(news(Watching {
                parts: self.0.clone(),
                credentials,
                request_id,
                bounds,
                watch,
                watched,
                once,
                _place: place,
            }))
        };
        self.0.call(r, Action::WatchCredentials, act).await
    }
}
