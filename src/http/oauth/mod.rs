//! The OAuth 2.0 endpoints of the public listener: token (RFC 6749), introspection (RFC 7662), revocation (RFC 7009).
//!
//! Each of them reads the request strictly, authenticates the client, and goes through the gate as the client's owner,
//! limited to what the client brings along. Whoever fails on the way hears what RFC 6749 has for it and no more; the
//! audit log says why.

mod answer;
mod credentials;
mod form;
mod introspect;
mod metadata;
mod revoke;
mod token;

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt;
use tracing::Instrument;
use uuid::Uuid;
use zeroize::Zeroize;

pub use metadata::Metadata;

use self::{answer::Refused, credentials::Shown, form::Form};
use crate::{
    authn::{ConnectedPeer, Peer, THROTTLED_FOR, Throttle},
    clients::{Authenticated, Clients},
    error::{Error, Reason},
    gate::{Gate, Stranger},
    model::{Action, ApiKeyId, Caller},
    tokens::Tokens,
    trace,
};

/// The parts that the endpoints need.
pub struct Oauth {
    /// OAuth clients.
    pub clients: Arc<Clients>,
    /// Tokens.
    pub tokens: Arc<Tokens>,
    /// The one door.
    pub gate: Arc<Gate>,
    /// Bounds of failed authentications.
    pub throttle: Arc<Throttle>,
    /// How long one request may take: less than the listener waits, so that the answer is ours.
    pub patience: Duration,
}

/// An authenticated request.
struct Session {
    caller: Caller,
    client: Authenticated,
    form: Form,
}

/// What an endpoint answers.
type Answer = Result<Response, Refused>;

/// POST /oauth/token.
pub async fn token(State(oauth): State<Arc<Oauth>>, request: Request) -> Response {
    let act = async |session| token::answer(&oauth, session).await;
    oauth.run(request, Action::IssueClientToken, act).await
}

/// POST /oauth/introspect.
pub async fn introspect(State(oauth): State<Arc<Oauth>>, request: Request) -> Response {
    let act = async |session| introspect::answer(&oauth, session).await;
    oauth.run(request, Action::IntrospectToken, act).await
}

/// POST /oauth/revoke.
pub async fn revoke(State(oauth): State<Arc<Oauth>>, request: Request) -> Response {
    let act = async |session| revoke::answer(&oauth, session).await;
    oauth.run(request, Action::RevokeOwnToken, act).await
}

impl Oauth {
    async fn run<F>(&self, request: Request, action: Action, act: F) -> Response
    where
        F: AsyncFnOnce(Session) -> Answer,
    {
        let answer = async {
            let session = self.begin(request, action).await?;
            act(session).await
        };
        let answer = tokio::time::timeout(self.patience, answer).await;
        let answer = answer.unwrap_or_else(|_| Err(Refused::too_slow()));
        answer.unwrap_or_else(IntoResponse::into_response)
    }

    /// Reads the request and authenticates the client.
    async fn begin(&self, request: Request, action: Action) -> Result<Session, Refused> {
        let request_id: Arc<str> = Uuid::now_v7().to_string().into();
        trace::root_is_request(&request_id);
        let (head, body) = request.into_parts();
        let Some(ConnectedPeer(peer)) = head.extensions.get::<ConnectedPeer>().cloned() else {
            return Err(failed(
                &Error::internal("a connection without a peer"),
                &request_id,
            ));
        };
        let read = async {
            // A query ends up in the logs of every proxy on the way (RFC 6749 section 2.3.1).
            if head.uri.query().is_some() {
                return Err(Refused::invalid_request("parameters belong in the body"));
            }
            form::check_headers(&head.headers)?;
            let body = tokio::time::timeout(self.patience / 2, body.collect()).await;
            let body = body.map_err(|_| Refused::invalid_request("the body came too slowly"))?;
            let body = body.map_err(|_| {
                Refused::invalid_request("the body cannot be read, or is longer than the limit")
            })?;
            let body = body.to_bytes();
            let form = Form::parse(&body);
            // What the connection has copied is out of reach.
            if let Ok(mut body) = body.try_into_mut() {
                body.zeroize();
            }
            let mut form = form?;
            let shown = Shown::read(&head.headers, &mut form, &peer)?;
            Ok((form, shown))
        };
        let (form, shown) = match read.await {
            Ok(read) => read,
            Err(refused) => {
                let nobody = Nobody::of(None, &peer, refused.reason());
                return Err(self.turn_away(nobody, action, &request_id, refused).await);
            }
        };
        let refused = |why| {
            (
                Nobody::of(shown.client_id(), &peer, why),
                Refused::invalid_client(),
            )
        };
        let verdict = match self.clients.config().takes(shown.method) {
            true => {
                let may_look = self.throttle.may_look(peer.addr.ip());
                let authenticated = self.clients.authenticate(shown.proof(&peer), may_look);
                let step = trace::step!("authenticate", claviger.credential = "client");
                let verdict = authenticated
                    .instrument(step)
                    .await
                    .map_err(|e| failed(&e, &request_id))?;
                verdict.map_err(|refusal| refused(refusal.as_str()))
            }
            false => Err(refused("METHOD_DISABLED")),
        };
        let client = match verdict {
            Ok(client) => client,
            Err((nobody, refused)) => {
                return Err(self.turn_away(nobody, action, &request_id, refused).await);
            }
        };
        let caller = Caller {
            principal: Arc::clone(&client.principal),
            credential: client.credential.clone(),
            request_id,
            idempotency: None,
        };
        let who = &caller.principal;
        trace::root_is_of(&who.id, &who.tenant);
        self.gate.note_api_key(&caller, action);
        Ok(Session {
            caller,
            client,
            form,
        })
    }

    /// Records that somebody was turned away, and says what they hear.
    async fn turn_away(
        &self,
        nobody: Nobody,
        action: Action,
        request_id: &str,
        refused: Refused,
    ) -> Refused {
        let Nobody {
            named,
            id,
            source,
            why,
        } = nobody;
        metrics::counter!("claviger_authentication_failures_total", "reason" => why).increment(1);
        if !self.throttle.failed(source, id.map(|id| *id.as_bytes())) {
            return Refused::too_many_failures(THROTTLED_FOR.as_secs());
        }
        let stranger = Stranger {
            named,
            source,
            reason: why,
        };
        self.gate
            .refuse_stranger(stranger, action, request_id)
            .await;
        refused
    }

    /// Records that a request of a known client was refused before anything was decided or done.
    async fn stumbled(&self, caller: &Caller, action: Action, refused: Refused) -> Refused {
        let reason = match refused.code() {
            "invalid_scope" => Reason::ScopeExceeded,
            _ => Reason::InvalidField,
        };
        let error = Error::new(reason, refused.code());
        self.gate.record_stumble(caller, action, &error).await;
        refused
    }
}

/// Somebody who is no client.
struct Nobody {
    named: String,
    /// What it calls itself, if that could be an id of ours.
    id: Option<ApiKeyId>,
    source: IpAddr,
    why: &'static str,
}

impl Nobody {
    /// A client_id is text of a stranger's choice; only one that could be ours is written down.
    fn of(client_id: Option<&str>, peer: &Peer, why: &'static str) -> Self {
        let id = client_id.and_then(|id| id.parse::<ApiKeyId>().ok());
        let named = match (id, peer.identities.first()) {
            (Some(id), _) => format!("client:{id}"),
            (None, Some(identity)) => identity.to_string(),
            (None, None) => "anonymous".to_owned(),
        };
        Self {
            named,
            id,
            source: peer.addr.ip(),
            why,
        }
    }
}

/// What the client hears of a failure; the log gets all of it where it is not the client's fault.
fn failed(error: &Error, request_id: &str) -> Refused {
    let refused = Refused::from(error);
    if refused.is_ours() {
        tracing::warn!(?error, request_id, "OAuth request failed");
    }
    refused
}
