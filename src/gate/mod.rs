//! R2: the one door. Every call of every listener and every job goes through `access` or `mutate`.
//!
//! The door authorises (deny by default), hands out the permit that acting operations demand, and records: uses of
//! keys and reads on the access stream before the answer leaves, changes on the admin stream inside their own
//! transaction. A refusal and a failure are recorded too. Permits cannot be made or copied anywhere else, so an
//! operation that skipped authorisation or audit does not compile.

mod crowd;
mod freshness;
mod meter;
mod permit;
mod release;
mod replay;
mod stream;

use std::{future::Future, net::IpAddr, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;
use prost::Message;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::field;

use crowd::{Changes, Crowd};
pub use freshness::Freshness;
pub use meter::{Counted, Meter, Whose};
pub use permit::{AdminPermit, Mutation, Permit, Recorded};
use stream::Streams;
pub use stream::{MostStreams, Ongoing, Place};

use crate::{
    audit::{AccessLog, Outcome, Receipt, Record, admin},
    authz::{Authz, Decision},
    error::{Error, Reason, Result},
    fault,
    model::{AccessKind, Action, Caller, Credential, Entity, Job, Resource},
    store::{Db, StoreError},
    trace,
};

/// The action of a row that says which API key somebody came with (R-OAUTH-5).
const API_KEY_USED: &str = "API_KEY_USED";

/// Somebody who could not be let in.
pub struct Stranger {
    /// What they call themselves, as far as they have proved or claimed anything; no secret.
    pub named: String,
    /// Where they come from.
    pub source: IpAddr,
    /// Why they were not let in, UPPER_SNAKE_CASE.
    pub reason: &'static str,
}

/// Decides, hands out permits, records.
pub struct Gate {
    authz: Arc<Authz>,
    db: Db,
    log: AccessLog,
    freshness: Arc<Freshness>,
    /// Mutations in flight; a drain waits for them.
    mutations: TaskTracker,
    crowd: Crowd,
    /// Streams that are open.
    streams: Streams,
    turns: Arc<Semaphore>,
    repeated: replay::InFlight,
    meter: Meter,
}

impl Gate {
    /// A door over these parts.
    pub fn new(authz: Arc<Authz>, db: Db, log: AccessLog, freshness: Arc<Freshness>) -> Self {
        Self {
            authz,
            db,
            log,
            freshness,
            mutations: TaskTracker::new(),
            crowd: Crowd::default(),
            streams: Streams::default(),
            turns: Arc::new(Semaphore::new(crowd::TURNS)),
            repeated: replay::InFlight::default(),
            meter: Meter::default(),
        }
    }

    /// What was used here, and who was turned away.
    pub const fn meter(&self) -> &Meter {
        &self.meter
    }

    fn changes(&self) -> Changes {
        Changes::new(self.db.clone(), Arc::clone(&self.turns))
    }

    /// Uses a key, or reads administrative state. `act` returns the answer and details for the audit row, a JSON
    /// object or nothing. The answer leaves only when its row is durable, the replica still fresh, and every condition
    /// of `Permit::release_if` still true.
    ///
    /// Errors: what `act` or a condition fails with; PERMISSION_DENIED, or NOT_FOUND where the caller may not know; REPLICA_STALE;
    /// AUDIT_UNAVAILABLE.
    pub async fn access<T, F, Fut>(
        &self,
        caller: &Caller,
        action: Action,
        resource: Resource,
        act: F,
    ) -> Result<T>
    where
        F: FnOnce(Permit) -> Fut,
        Fut: Future<Output = Result<(T, String)>>,
    {
        // Principals, roles and keys come from caches, which are only as true as the feed (R-EMER-3).
        self.freshness.check()?;
        let permitted = self.authorize(caller, action, &resource);
        let record = record(caller, action, &resource);
        let mut unfinished = Unfinished {
            log: &self.log,
            record: Some(record),
        };
        let conditions = release::Conditions::default();
        let answer = match permitted {
            Ok(()) => match act(Permit::new(action, resource, conditions.clone())).await {
                Ok(answer) => self.releasable(&conditions).await.map(|()| answer),
                Err(error) => Err(error),
            },
            Err(refusal) => Err(refusal),
        };
        self.meter.call(&caller.principal, action, answer.is_ok());
        let Some(mut record) = unfinished.record.take() else {
            return Err(Error::internal("an audit record was taken twice"));
        };
        match answer {
            Ok((value, details)) => {
                if self.log.records_success() {
                    if !details.is_empty() {
                        record.data = details;
                    }
                    self.log.append(record).await?;
                }
                // An error from here has a row of its own, beside the one that says it worked.
                self.releasable(&conditions).await?;
                Ok(value)
            }
            Err(error) => {
                describe(&mut record, &error);
                self.log.append(record).await?;
                Err(error.recorded())
            }
        }
    }

    /// The lease comes last: a condition may have waited for a database that this replica has lost sight of.
    async fn releasable(&self, conditions: &release::Conditions) -> Result<()> {
        conditions.hold().await?;
        self.freshness.check()
    }

    /// Records a call of a known caller that failed on its way to `access` or `mutate`: a malformed request, or a
    /// lookup that did not work. Nothing was decided and nothing done.
    pub async fn record_stumble(&self, caller: &Caller, action: Action, error: &Error) {
        let resource = Resource::tenant(caller.principal.tenant.clone());
        let mut record = record(caller, action, &resource);
        match action.kind() {
            AccessKind::Admin => {
                // Who is over the bound is counted, not written: one caller must not fill the log for all.
                let Ok(seat) = self.crowd.enter(caller.principal.id) else {
                    return;
                };
                let (changes, reason) = (self.changes(), error.reason());
                let task = async move {
                    let _seat = seat;
                    record_failure(&changes, record, Outcome::Failed, reason).await;
                };
                // In a task of its own, like the change it would have been.
                let _ = self.mutations.spawn(trace::carry(task)).await;
            }
            AccessKind::Read | AccessKind::Data => {
                describe(&mut record, error);
                if let Err(unwritten) = self.log.append(record).await {
                    tracing::error!(error = %unwritten, "malformed call not recorded");
                }
            }
        }
    }

    /// Changes administrative state for a caller outside. `act` runs in a task of its own, so a caller that leaves
    /// cannot cut it in half; it ends with `Mutation::record`, which writes the audit row in the same transaction, and
    /// the gate commits. `answer` makes the message that the caller gets, and gets again when the call is repeated with
    /// the same idempotency key.
    ///
    /// Errors: what `act` fails with; PERMISSION_DENIED, or NOT_FOUND where the caller may not know;
    /// IDEMPOTENCY_KEY_REUSED. Either leaves a row of its own and nothing else.
    pub async fn mutate<T, M, A, F, Fut>(
        &self,
        caller: &Caller,
        action: Action,
        resource: Resource,
        answer: A,
        act: F,
    ) -> Result<M>
    where
        T: Send + 'static,
        M: Message + Default + 'static,
        A: FnOnce(&T, &Receipt) -> M + Send + 'static,
        F: FnOnce(AdminPermit) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Recorded<T>>> + Send + 'static,
    {
        let (db, who, turns) = (self.db.clone(), caller.clone(), self.repeated.clone());
        let changes = self.changes();
        let again = record(caller, action, &resource);
        self.change(caller, action, resource, async move |permit| {
            let _turn = turns.turn(&who).await;
            if let Some((answer, seq)) = replay::earlier::<M>(&db, &who).await? {
                record_replay(&changes, again, seq).await?;
                return Ok(answer);
            }
            let mut recorded = match act(permit).await {
                Ok(recorded) => recorded,
                // Another replica may have been asked the same at the same time and have won: the name is taken then, or
                // the row has moved on, by this very call.
                Err(error) => {
                    let Ok(Some((answer, seq))) = replay::earlier::<M>(&db, &who).await else {
                        return Err(error);
                    };
                    record_replay(&changes, again, seq).await?;
                    return Ok(answer);
                }
            };
            let answer = answer(&recorded.value, &recorded.receipt);
            let receipt = recorded.receipt.clone();
            match replay::keep(recorded.tx(), &who, action, &answer, &receipt).await {
                Ok(()) => {}
                Err(StoreError::Exists(_)) => {
                    // Another replica was asked the same at the same time and was first: nothing of this one stays.
                    drop(recorded);
                    let first = replay::earlier::<M>(&db, &who).await?;
                    let (answer, seq) =
                        first.ok_or_else(|| Error::internal("an answer vanished"))?;
                    record_replay(&changes, again, seq).await?;
                    return Ok(answer);
                }
                Err(error) => return Err(error.into()),
            }
            fault::point_of(action.name(), "before_commit");
            recorded.commit().await?;
            fault::point_of(action.name(), "after_commit");
            Ok(answer)
        })
        .await
    }

    /// As `mutate`, for a job of the daemon itself.
    pub async fn work<T, F, Fut>(
        &self,
        job: Job,
        action: Action,
        resource: Resource,
        act: F,
    ) -> Result<(T, Receipt)>
    where
        T: Send + 'static,
        F: FnOnce(AdminPermit) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Recorded<T>>> + Send + 'static,
    {
        let caller = job.caller();
        self.change(&caller, action, resource, async move |permit| {
            let recorded = act(permit).await?;
            fault::point_of(action.name(), "before_commit");
            let committed = recorded.commit().await?;
            fault::point_of(action.name(), "after_commit");
            Ok(committed)
        })
        .await
    }

    async fn change<T, F, Fut>(
        &self,
        caller: &Caller,
        action: Action,
        resource: Resource,
        act: F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(AdminPermit) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + Send + 'static,
    {
        self.freshness.check()?;
        let seat = self.crowd.enter(caller.principal.id)?;
        let allowed = self.authorize(caller, action, &resource);
        let unsuccessful = record(caller, action, &resource);
        let permit = AdminPermit::new(
            Permit::new(action, resource, release::Conditions::default()),
            caller.clone(),
            self.changes(),
            unsuccessful.clone(),
        );
        let changes = self.changes();
        // All of it: a caller that leaves can neither cut a change in half nor keep a refusal out of the log.
        let task = async move {
            let _seat = seat;
            let outcome = match allowed {
                Err(refusal) => Err(refusal),
                Ok(()) => AssertUnwindSafe(async move { act(permit).await })
                    .catch_unwind()
                    .await
                    .unwrap_or_else(|_| Err(Error::internal("a change panicked"))),
            };
            if let Err(error) = &outcome {
                record_failure(&changes, unsuccessful, outcome_of(error), error.reason()).await;
            }
            outcome.map_err(Error::recorded)
        };
        let task = self.mutations.spawn(trace::carry(task));
        task.await.unwrap_or_else(|e| Err(Error::internal(e)))
    }

    /// May the caller do this? Asks the policies and nothing else: for lists of what somebody could do.
    pub fn may(&self, caller: &Caller, action: Action, resource: &Resource) -> bool {
        self.authorize(caller, action, resource).is_ok()
    }

    /// Records the use of an API key (R-OAUTH-5). Nobody waits for this row, so it is the one to be lost when the queue is
    /// full (`claviger_audit_dropped_total`); the row of the call itself is waited for and names the key too.
    pub fn note_api_key(&self, caller: &Caller, action: Action) {
        let Credential::ApiKey(id) = &caller.credential else {
            return;
        };
        if !self.log.records_success() {
            return;
        }
        self.log.append_unawaited(Record {
            tenant: caller.principal.tenant.as_str().to_owned(),
            actor: caller.principal.id.to_string(),
            actor_type: caller.principal.kind.as_str(),
            action: API_KEY_USED,
            entity: "api_key",
            entity_id: id.to_string(),
            outcome: Outcome::Success,
            request_id: caller.request_id.to_string(),
            data: format!(r#"{{"action":"{}"}}"#, action.name()),
            credential: None,
        });
    }

    /// Records that somebody without a principal was turned away.
    pub async fn refuse_stranger(&self, stranger: Stranger, action: Action, request_id: &str) {
        self.meter.stranger(stranger.source);
        let record = Record {
            tenant: crate::model::TenantName::SYSTEM.to_owned(),
            actor: stranger.named,
            actor_type: "unknown",
            action: action.name(),
            entity: "tenant",
            entity_id: crate::model::TenantName::SYSTEM.to_owned(),
            outcome: Outcome::Refused,
            request_id: request_id.to_owned(),
            data: format!(
                r#"{{"reason":"{}","source":"{}"}}"#,
                stranger.reason, stranger.source
            ),
            credential: None,
        };
        if let Err(error) = self.log.append(record).await {
            tracing::error!(%error, "refusal of a stranger not recorded");
        }
    }

    /// Waits for mutations in flight; new ones are still accepted, so close the listeners first.
    pub async fn drain(&self) {
        self.mutations.close();
        self.mutations.wait().await;
    }

    fn authorize(&self, caller: &Caller, action: Action, resource: &Resource) -> Result<()> {
        let step = trace::step!(
            "authorize",
            claviger.action = action.name(),
            claviger.entity = resource.kind(),
            claviger.entity.id = field::Empty,
            claviger.decision = field::Empty,
        );
        let decision = step.in_scope(|| self.authz.decide(&caller.principal, action, resource));
        if !step.is_disabled() {
            let said = match decision {
                Decision::Allow => "allow",
                Decision::Deny => "deny",
            };
            step.record("claviger.decision", said);
            step.record("claviger.entity.id", resource.known_id());
        }
        match decision {
            Decision::Allow => Ok(()),
            Decision::Deny if visible(caller, resource) => Err(Error::new(
                Reason::PermissionDenied,
                format!(
                    "{} may not {} in tenant {}; ask a principal-admin for a role that may",
                    caller.principal.name,
                    action.name(),
                    resource.tenant
                ),
            )),
            // Another tenant's things and things that do not exist look the same (R-ACL-3).
            Decision::Deny => Err(not_found(resource)),
        }
    }
}

/// A use of a key whose caller left, or which panicked: the device may have worked, so there is a row all the same.
struct Unfinished<'a> {
    log: &'a AccessLog,
    record: Option<Record>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.outcome = Outcome::Failed;
            record.data = r#"{"reason":"ABANDONED"}"#.to_owned();
            self.log.append_unawaited(record);
        }
    }
}

/// A failed mutation changed nothing, so its row has a transaction of its own.
async fn record_failure(changes: &Changes, mut record: Record, outcome: Outcome, reason: Reason) {
    record.outcome = outcome;
    record.data = because(reason);
    let written = async {
        let (mut tx, _turn) = changes.begin().await?;
        admin::append(&mut tx, record).await?;
        tx.commit().await
    };
    if let Err(unwritten) = written.await {
        // Nothing happened, so there is nothing to take back; the caller gets the original error.
        tracing::error!(error = %unwritten, "unsuccessful administrative call not recorded");
    }
}

/// A repeated call changes nothing; its row says which row has the change.
async fn record_replay(changes: &Changes, mut record: Record, seq: i64) -> Result<()> {
    record.data = format!(r#"{{"repeats":{seq}}}"#);
    let (mut tx, _turn) = changes.begin().await?;
    admin::append(&mut tx, record).await?;
    Ok(tx.commit().await?)
}

/// May the caller know that this is refused and not absent? An id that nobody has belongs to no tenant, so nobody
/// may tell it from one in a tenant they cannot see. A key is looked up in the tenant that the caller names.
fn visible(caller: &Caller, resource: &Resource) -> bool {
    match resource.entity {
        Entity::UnknownRotation(_)
        | Entity::UnknownIncident(_)
        | Entity::UnknownDestruction(_)
        | Entity::UnknownTenantDestruction(_)
        | Entity::UnknownPrincipal(_)
        | Entity::UnknownApiKey(_)
        | Entity::UnknownClient(_)
        | Entity::UnknownCredential(_) => false,
        Entity::Key { .. }
        | Entity::UnknownKey(_)
        | Entity::Rotation(_)
        | Entity::Incident(_)
        | Entity::Destruction(_)
        | Entity::TenantDestruction(_)
        // There is one KEK for the installation, so an unknown id is the platform's too.
        | Entity::KekRotation(_)
        | Entity::UnknownKekRotation(_)
        | Entity::Principal(_)
        | Entity::ApiKey { .. }
        | Entity::Client { .. }
        | Entity::Credential { .. }
        | Entity::Tenant => caller.principal.sees(&resource.tenant),
    }
}

/// The same answer for what does not exist and for what the caller may not see.
pub fn not_found(resource: &Resource) -> Error {
    match &resource.entity {
        Entity::Key { .. } | Entity::UnknownKey(_) => Error::new(
            Reason::KeyNotFound,
            "no such key, or none that you may see; check the key's name and the tenant",
        ),
        Entity::Rotation(_) | Entity::UnknownRotation(_) => Error::new(
            Reason::RotationNotFound,
            "no such rotation, or none that you may see",
        ),
        Entity::Incident(_) | Entity::UnknownIncident(_) => Error::new(
            Reason::IncidentNotFound,
            "no such incident, or none that you may see",
        ),
        Entity::Destruction(_) | Entity::UnknownDestruction(_) => Error::new(
            Reason::DestructionNotFound,
            "no such destruction, or none that you may see",
        ),
        Entity::KekRotation(_) | Entity::UnknownKekRotation(_) => Error::new(
            Reason::KekRotationNotFound,
            "no such rotation of the KEK, or none that you may see",
        ),
        Entity::TenantDestruction(_) | Entity::UnknownTenantDestruction(_) => Error::new(
            Reason::DestructionNotFound,
            "no such destruction of a tenant's keys, or none that you may see",
        ),
        Entity::Principal(_) | Entity::UnknownPrincipal(_) => Error::new(
            Reason::PrincipalNotFound,
            "no such principal, or none that you may see",
        ),
        Entity::ApiKey { .. } | Entity::UnknownApiKey(_) => Error::new(
            Reason::ApiKeyNotFound,
            "no such API key, or none that you may see",
        ),
        Entity::Client { .. } | Entity::UnknownClient(_) => Error::new(
            Reason::ClientNotFound,
            "no such client, or none that you may see",
        ),
        Entity::Credential { .. } | Entity::UnknownCredential(_) => Error::new(
            Reason::CredentialNotFound,
            "no such credential, or none that you may see",
        ),
        Entity::Tenant => Error::new(
            Reason::TenantNotFound,
            "no such tenant, or none that you may see",
        ),
    }
}

fn record(caller: &Caller, action: Action, resource: &Resource) -> Record {
    Record {
        tenant: resource.tenant.as_str().to_owned(),
        actor: caller.principal.id.to_string(),
        actor_type: caller.principal.kind.as_str(),
        action: action.name(),
        entity: resource.kind(),
        entity_id: resource.id(),
        outcome: Outcome::Success,
        request_id: caller.request_id.to_string(),
        data: "{}".to_owned(),
        credential: named(&caller.credential),
    }
}

/// How a row names what somebody showed. A foreign `jti` is anybody's text: one that would need an escape is left out.
fn named(credential: &Credential) -> Option<String> {
    match credential {
        Credential::Job | Credential::Certificate => None,
        Credential::ApiKey(id) => Some(format!("api_key:{id}")),
        Credential::Token { issuer, jti } => {
            let is_plain = jti
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
            Some(format!(
                "token:{issuer}/{}",
                if is_plain { jti } else { "" }
            ))
        }
    }
}

fn describe(record: &mut Record, error: &Error) {
    record.outcome = outcome_of(error);
    record.data = because(error.reason());
}

const fn outcome_of(error: &Error) -> Outcome {
    if error.is_refusal() {
        Outcome::Refused
    } else {
        Outcome::Failed
    }
}

fn because(reason: Reason) -> String {
    format!(r#"{{"reason":"{}"}}"#, reason.as_str())
}
