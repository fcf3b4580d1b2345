//! The registered clients: created, changed and read over gRPC, cached by id for the endpoints.
//!
//! A client gets no scope that its owner does not hold, and none that whoever registers it with a limited credential does
//! not hold: its keys or its certificate are credentials, and nobody makes one that may more than their own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use quick_cache::sync::Cache;
use serde_json::{Value, json};

use super::{
    ApiKeys, OauthConfig,
    coalesce::Recent,
    config::{MAX_AUDIENCES, is_audience},
    expect_own_roles,
    jwks::ClientKeys,
};
use crate::{
    clock::Clock,
    directory::Directory,
    error::{Error, Reason, Result},
    gate::{AdminPermit, Permit, Recorded},
    keys::Keys,
    model::{
        Caller, Client, ClientId, ClientProof, ClientState, Credential, Entity, Identity,
        Principal, PrincipalKind, Resource, Scopes, TenantName,
    },
    store::Db,
    tokens::Tokens,
};

/// Clients held in memory at most.
const CACHE: usize = 10_000;

/// OAuth clients, and what they are given.
pub struct Clients {
    pub(super) db: Db,
    pub(super) clock: Clock,
    pub(super) directory: Arc<Directory>,
    pub(super) api_keys: Arc<ApiKeys>,
    pub(super) keys: Arc<Keys>,
    pub(super) tokens: Arc<Tokens>,
    pub(super) config: OauthConfig,
    known: Arc<Known>,
    pub(super) recent: Arc<Recent>,
}

/// A client, ready to authenticate.
#[derive(Debug)]
pub(super) struct Registered {
    pub client: Client,
    /// Those of PRIVATE_KEY_JWT; else none.
    pub keys: ClientKeys,
}

/// What is cached.
struct Known {
    by_id: Cache<ClientId, Arc<Registered>>,
    generation: AtomicU64,
}

impl Known {
    fn forget(&self, id: ClientId) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.by_id.remove(&id);
    }
}

/// What CreateClient is asked for.
#[derive(Debug)]
pub struct CreateClient {
    /// 1 to 100 characters.
    pub name: String,
    /// How it proves itself.
    pub proof: ClientProof,
    /// What it may ask for.
    pub scopes: Scopes,
    /// Audiences, the default first.
    pub audiences: Vec<String>,
    /// Lifetime of its tokens; None for the daemon's default.
    pub ttl: Option<Duration>,
    /// Equal requests get the same token for a while.
    pub coalesces: bool,
}

/// What UpdateClient is asked for; what is None stays.
#[derive(Debug, Default)]
pub struct ClientChange {
    /// Keys of a client that proves itself by assertions.
    pub jwks: Option<String>,
    /// Identity of a client that proves itself by certificate.
    pub identity: Option<Identity>,
    /// What it may ask for.
    pub scopes: Option<Scopes>,
    /// Audiences, the default first.
    pub audiences: Option<Vec<String>>,
    /// Lifetime of its tokens.
    pub ttl: Option<Duration>,
    /// Equal requests get the same token for a while.
    pub coalesces: Option<bool>,
    /// Whether it gets tokens.
    pub state: Option<ClientState>,
}

impl Clients {
    /// Clients over these parts.
    pub fn new(
        db: Db,
        clock: Clock,
        (directory, api_keys): (Arc<Directory>, Arc<ApiKeys>),
        (keys, tokens): (Arc<Keys>, Arc<Tokens>),
        config: OauthConfig,
    ) -> Self {
        let known = Known {
            by_id: Cache::new(CACHE),
            generation: AtomicU64::new(0),
        };
        Self {
            db,
            clock,
            directory,
            api_keys,
            keys,
            tokens,
            config,
            known: Arc::new(known),
            recent: Arc::new(Recent::new()),
        }
    }

    /// The configuration of the endpoints.
    pub const fn config(&self) -> &OauthConfig {
        &self.config
    }

    /// Registers a client of `owner`.
    ///
    /// Errors: INVALID_FIELD for keys, audiences or a lifetime that are none; SCOPE_EXCEEDED; TENANT_ERASED.
    pub async fn create(
        &self,
        permit: AdminPermit,
        owner: Principal,
        request: CreateClient,
    ) -> Result<Recorded<Client>> {
        if owner.kind == PrincipalKind::Job {
            return Err(invalid("the owner of a client must be a user or a service"));
        }
        let client = Client {
            id: ClientId::random(),
            tenant: owner.tenant.clone(),
            owner: owner.id,
            name: request.name,
            proof: request.proof,
            scopes: request.scopes,
            audiences: request.audiences,
            ttl: request.ttl,
            coalesces: request.coalesces,
            state: ClientState::Active,
            revision: 1,
            created_at: self.clock.now(),
        };
        self.check(&client)?;
        check_reach(permit.caller(), &owner, &client.scopes)?;
        let details = details(&client)?;
        let mut mutation = permit.begin().await?;
        mutation.on("client", client.id);
        mutation.tx().insert_client(&client).await?;
        mutation.record(client, details).await
    }

    /// Changes a client as it was found.
    ///
    /// Errors: as `create`; INVALID_FIELD when nothing is to change, or what does not fit its way of proving itself;
    /// CONFLICT.
    pub async fn update(
        &self,
        permit: AdminPermit,
        mut client: Client,
        change: ClientChange,
    ) -> Result<Recorded<Client>> {
        // Who may only take away needs no more than the permission.
        let gives = change.jwks.is_some()
            || change.identity.is_some()
            || change.scopes.is_some()
            || change.audiences.is_some()
            || change.ttl.is_some()
            || change.state == Some(ClientState::Active);
        apply(&mut client, change)?;
        self.check(&client)?;
        if gives {
            let owner = self.db.principal(client.owner).await?;
            let owner = owner.ok_or_else(|| Error::internal("a client without its owner"))?;
            check_reach(permit.caller(), &owner, &client.scopes)?;
        }
        let details = details(&client)?;
        let mut mutation = permit.begin().await?;
        if !mutation.tx().update_client(&client).await? {
            return Err(Error::new(
                Reason::Conflict,
                "the client was changed at the same time; read it again and retry",
            ));
        }
        client.revision += 1;
        // Its state is kept with each of its keys.
        self.api_keys.forget_all_after(&mut mutation);
        let (known, recent, id) = (Arc::clone(&self.known), Arc::clone(&self.recent), client.id);
        mutation.then(move || {
            known.forget(id);
            recent.forget();
        });
        mutation.record(client, details).await
    }

    /// The client with this id, and what the gate decides about.
    pub async fn find(&self, id: ClientId) -> Result<(Resource, Option<Client>)> {
        let found = self.db.client(id).await?;
        let resource = match &found {
            Some(client) => Resource {
                tenant: client.tenant.clone(),
                entity: Entity::Client {
                    id,
                    owner: client.owner,
                },
            },
            None => Resource {
                tenant: TenantName::system(),
                entity: Entity::UnknownClient(id),
            },
        };
        Ok((resource, found))
    }

    /// Up to `limit` clients of a tenant after `after`, oldest first.
    pub async fn list(
        &self,
        _permit: &Permit,
        tenant: &TenantName,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Client>> {
        Ok(self.db.clients(tenant, after, limit).await?)
    }

    /// Forgets a client after a change, here or on another replica.
    pub fn forget(&self, id: ClientId) {
        self.known.forget(id);
        self.recent.forget();
    }

    /// Forgets every token that was kept for clients that ask again: an owner or an API key has changed.
    pub fn forget_tokens(&self) {
        self.recent.forget();
    }

    /// The client with this id, from memory if it is there. `may_look` as for `ApiKeys::admit`: who comes from where many
    /// fail waits for a turn, and is not refused for what others did.
    pub(super) async fn registered(
        &self,
        id: ClientId,
        may_look: bool,
    ) -> Result<Option<Arc<Registered>>> {
        let known = &self.known;
        if let Some(found) = known.by_id.get(&id) {
            return Ok(Some(found));
        }
        let _turn = self.api_keys.turn(may_look).await;
        metrics::counter!("claviger_cache_loads_total", "cache" => "clients").increment(1);
        let generation = known.generation.load(Ordering::SeqCst);
        let Some(client) = self.db.client(id).await? else {
            return Ok(None);
        };
        let keys = match &client.proof {
            ClientProof::Assertion { jwks } => ClientKeys::parse(jwks).map_err(Error::internal)?,
            ClientProof::Secret | ClientProof::Certificate { .. } => ClientKeys::default(),
        };
        let registered = Arc::new(Registered { client, keys });
        known.by_id.insert(id, Arc::clone(&registered));
        // A change while we were reading may have made what we read old.
        if known.generation.load(Ordering::SeqCst) != generation {
            known.by_id.remove(&id);
        }
        Ok(Some(registered))
    }

    fn check(&self, client: &Client) -> Result<()> {
        if let ClientProof::Assertion { jwks } = &client.proof {
            ClientKeys::parse(jwks)?;
        }
        if let ClientProof::Certificate { identity } = &client.proof {
            let text = identity.as_str();
            if !text.starts_with("spiffe://") && !text.starts_with("dns:") {
                return Err(invalid(
                    "certificate_identity must be spiffe://TRUST-DOMAIN/PATH or dns:NAME",
                ));
            }
        }
        let audiences = &client.audiences;
        let all_good = audiences.iter().all(|audience| is_audience(audience));
        if !(1..=MAX_AUDIENCES).contains(&audiences.len()) || !all_good {
            return Err(invalid(
                "audiences must be 1 to 16, each of 1 to 255 characters without blanks",
            ));
        }
        let longest = self.tokens.longest_ttl();
        let bounds = Duration::from_secs(1)..=longest;
        if client.ttl.is_some_and(|ttl| !bounds.contains(&ttl)) {
            return Err(invalid(format!(
                "token_ttl must be from 1 to {} seconds",
                longest.as_secs()
            )));
        }
        Ok(())
    }
}

fn apply(client: &mut Client, change: ClientChange) -> Result<()> {
    let ClientChange {
        jwks,
        identity,
        scopes,
        audiences,
        ttl,
        coalesces,
        state,
    } = change;
    let changes_something = jwks.is_some()
        || identity.is_some()
        || scopes.is_some()
        || audiences.is_some()
        || ttl.is_some()
        || coalesces.is_some()
        || state.is_some();
    if !changes_something {
        return Err(invalid("there is nothing to change"));
    }
    match (&mut client.proof, jwks, identity) {
        (_, None, None) => {}
        (ClientProof::Assertion { jwks }, Some(new), None) => *jwks = new,
        (ClientProof::Certificate { identity }, None, Some(new)) => *identity = new,
        (
            ClientProof::Secret | ClientProof::Assertion { .. } | ClientProof::Certificate { .. },
            _,
            _,
        ) => {
            return Err(invalid(
                "jwks is for PRIVATE_KEY_JWT and certificate_identity for TLS_CLIENT_AUTH; a client keeps its method",
            ));
        }
    }
    client.scopes = scopes.unwrap_or_else(|| std::mem::take(&mut client.scopes));
    client.audiences = audiences.unwrap_or_else(|| std::mem::take(&mut client.audiences));
    client.ttl = ttl.or(client.ttl);
    client.coalesces = coalesces.unwrap_or(client.coalesces);
    client.state = state.unwrap_or(client.state);
    Ok(())
}

/// Errors: SCOPE_EXCEEDED, SEPARATION_OF_DUTIES.
fn check_reach(caller: &Caller, owner: &Principal, scopes: &Scopes) -> Result<()> {
    expect_own_roles(caller, owner, scopes)?;
    let exceeded = |missing: Scopes, who: &str| {
        Error::new(
            Reason::ScopeExceeded,
            format!("{who} does not hold {missing}; a client gets no more than that"),
        )
    };
    let held = owner.held();
    if !scopes.is_subset(&held) {
        return Err(exceeded(scopes.difference(&held), "the owner"));
    }
    let limited = matches!(
        caller.credential,
        Credential::ApiKey(_) | Credential::Token { .. }
    );
    let held = caller.principal.held();
    if limited && !scopes.is_subset(&held) {
        return Err(exceeded(scopes.difference(&held), "your credential"));
    }
    Ok(())
}

/// What the audit log keeps of a client: all of it but the keys themselves.
fn details(client: &Client) -> Result<Value> {
    let (kids, identity) = match &client.proof {
        ClientProof::Secret => (Vec::new(), ""),
        ClientProof::Assertion { jwks } => {
            let keys = ClientKeys::parse(jwks)?;
            let kids = keys.kids().into_iter().map(str::to_owned).collect();
            (kids, "")
        }
        ClientProof::Certificate { identity } => (Vec::new(), identity.as_str()),
    };
    Ok(json!({
        "owner": client.owner.to_string(),
        "name": client.name,
        "auth_method": client.proof.method(),
        "kids": kids,
        "identity": identity,
        "scopes": client.scopes.to_string(),
        "audiences": client.audiences,
        "ttl_seconds": client.ttl.map(|ttl| ttl.as_secs()),
        "coalesce": client.coalesces,
        "state": client.state.as_str(),
    }))
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Reason::InvalidField, message)
}
