//! R3: destroying every key of a tenant, so that nothing it encrypted can ever be read again (crypto-shredding, R-OPS-5).
//! Asked for by one person, approved by another, begun by the scheduler after a waiting period in which either of them, or
//! an officer, may call it off, and ended with a signed proof.
//!
//! Who may take which step is decided by `model::TenantDestruction` after the gate. `carry_out.rs` destroys key after key,
//! `proof.rs` says what the proof says. The waiting period is reckoned by the database's clock, so that no replica whose
//! own is wrong can shorten it. Until it begins, the tenant's data plane works as ever; unlike the destruction of
//! one version, use does not keep anything alive.

mod carry_out;
pub mod proof;

use std::{sync::Arc, time::Duration};

use serde_json::json;

use crate::{
    audit::note,
    clock::Clock,
    error::{Error, Reason, Result},
    gate::{AdminPermit, Mutation, Permit, Recorded, not_found},
    keys::{KeySnapshot, Keys},
    model::{
        AlertId, Entity, KeyRef, Resource, TenantDestruction, TenantDestructionId,
        TenantDestructionState, TenantName, Timestamp,
    },
    store::{Alert, Db, StoreError},
};

pub use carry_out::Shredding;

/// Who signs proofs.
#[derive(Clone, Debug)]
pub struct Notary {
    /// Name of a SIGNING key of tenant `system`: the one of the audit log's checkpoints.
    pub key: String,
    /// Which installation: the issuer of its tokens.
    pub issuer: String,
}

/// Destructions of the keys of tenants.
pub struct Erasures {
    db: Db,
    keys: Arc<Keys>,
    clock: Clock,
    wait: Duration,
    request_ttl: Duration,
    notary: Option<Notary>,
}

/// A destruction, and how far it has come.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The destruction.
    pub destruction: TenantDestruction,
    /// Key versions of the tenant that are not destroyed.
    pub remaining: i64,
    /// Those that are.
    pub destroyed: i64,
}

impl Erasures {
    /// `wait` lies between the approval and the beginning; `request_ttl` is how old a request may become before it is
    /// approved, and an approval, beyond the wait, before the destruction begins. Without a notary nothing can be asked for.
    pub const fn new(
        db: Db,
        keys: Arc<Keys>,
        clock: Clock,
        wait: Duration,
        request_ttl: Duration,
        notary: Option<Notary>,
    ) -> Self {
        Self {
            db,
            keys,
            clock,
            wait,
            request_ttl,
            notary,
        }
    }

    /// The destruction, and the resource that the gate decides about: its tenant's, or, for an id nobody has, the
    /// platform's.
    pub async fn find(
        &self,
        id: TenantDestructionId,
    ) -> Result<(Resource, Option<TenantDestruction>)> {
        let found = self.db.tenant_destruction(id).await?;
        let tenant = found
            .as_ref()
            .map_or_else(TenantName::system, |d| d.tenant.clone());
        let entity = match found {
            Some(_) => Entity::TenantDestruction(id),
            None => Entity::UnknownTenantDestruction(id),
        };
        Ok((Resource { tenant, entity }, found))
    }

    /// How far a destruction has come. Errors: DESTRUCTION_NOT_FOUND.
    pub async fn show(
        &self,
        permit: &Permit,
        destruction: Option<TenantDestruction>,
    ) -> Result<Progress> {
        self.progress(found(destruction, permit)?).await
    }

    /// Up to `limit` destructions of a tenant before `before`, newest first, without proofs.
    pub async fn list(
        &self,
        _permit: &Permit,
        tenant: &TenantName,
        before: &str,
        limit: i64,
    ) -> Result<Vec<Progress>> {
        let page = self.db.tenant_destructions(tenant, before, limit).await?;
        let (remaining, destroyed) = self.db.count_versions(tenant).await?;
        let progress = page.into_iter().map(|destruction| Progress {
            destruction,
            remaining,
            destroyed,
        });
        Ok(progress.collect())
    }

    /// Asks for the destruction of all keys of a tenant.
    ///
    /// Errors: INVALID_FIELD for tenant `system`, TENANT_NOT_FOUND, TENANT_ERASED, PROOF_KEY_MISSING, DESTRUCTION_OPEN.
    pub async fn request(
        &self,
        permit: AdminPermit,
        tenant: TenantName,
        reason: String,
    ) -> Result<Recorded<Progress>> {
        let requester = permit.caller().principal.id;
        let now = self.db.now().await?;
        let destruction = TenantDestruction::request(tenant, reason, requester, now)?;
        let tenant = &destruction.tenant;
        if !self.db.tenant_exists(tenant).await? {
            return Err(not_found(permit.permit().resource()));
        }
        self.db.expect_unerased(tenant).await?;
        self.proof_key().await?;
        let progress = self.progress(destruction).await?;
        let mut mutation = permit.begin().await?;
        mutation.on("tenant_destruction", progress.destruction.id);
        let tx = mutation.tx();
        tx.hold_tenant(&progress.destruction.tenant).await?;
        let inserted = tx.insert_tenant_destruction(&progress.destruction).await;
        inserted.map_err(|e| match e {
            StoreError::Exists(_) => Error::new(
                Reason::DestructionOpen,
                "a destruction of this tenant's keys is open already; approve or cancel it",
            ),
            other => other.into(),
        })?;
        record(mutation, progress).await
    }

    /// A second person agrees; the waiting period begins, and people are told.
    ///
    /// Errors: DESTRUCTION_NOT_FOUND, DESTRUCTION_STATE, SEPARATION_OF_DUTIES, PLAN_CHANGED, PROOF_KEY_MISSING, CONFLICT.
    pub async fn approve(
        &self,
        permit: AdminPermit,
        destruction: Option<TenantDestruction>,
        tenant: TenantName,
    ) -> Result<Recorded<Progress>> {
        let destruction = found(destruction, permit.permit())?;
        let (approver, now) = (permit.caller().principal.id, self.db.now().await?);
        self.expect_fresh(&destruction, now)?;
        let approved = destruction.approve(approver, &tenant, self.wait, now)?;
        self.proof_key().await?;
        let progress = self.progress(approved).await?;
        let mut mutation = permit.begin().await?;
        let (tx, from) = (mutation.tx(), TenantDestructionState::Requested);
        update(tx, &progress.destruction, from).await?;
        tx.raise_alert(&scheduled(&progress)).await?;
        record(mutation, progress).await
    }

    /// Calls a destruction off, before it has begun.
    ///
    /// Errors: DESTRUCTION_NOT_FOUND, DESTRUCTION_STATE, CONFLICT.
    pub async fn cancel(
        &self,
        permit: AdminPermit,
        destruction: Option<TenantDestruction>,
        reason: String,
    ) -> Result<Recorded<Progress>> {
        let destruction = found(destruction, permit.permit())?;
        let from = destruction.state;
        let by = permit.caller().principal.id;
        let cancelled = destruction.cancel(by, reason, self.db.now().await?)?;
        let progress = self.progress(cancelled).await?;
        let mut mutation = permit.begin().await?;
        update(mutation.tx(), &progress.destruction, from).await?;
        record(mutation, progress).await
    }

    /// People decided about the tenant as it was then. Errors: DESTRUCTION_STATE.
    fn expect_fresh(&self, destruction: &TenantDestruction, now: Timestamp) -> Result<()> {
        match destruction.is_stale(self.wait, self.request_ttl, now) {
            false => Ok(()),
            true => Err(Error::new(
                Reason::DestructionState,
                "the destruction was asked for, or approved, too long ago; it expires, so ask for it again",
            )),
        }
    }

    async fn progress(&self, destruction: TenantDestruction) -> Result<Progress> {
        let (remaining, destroyed) = self.db.count_versions(&destruction.tenant).await?;
        Ok(Progress {
            destruction,
            remaining,
            destroyed,
        })
    }

    /// The key that signs the proof, and whose installation it is for. Asked before anything is promised: what is
    /// destroyed without a proof cannot be proved later.
    ///
    /// Errors: PROOF_KEY_MISSING, with what to configure.
    async fn proof_key(&self) -> Result<(Arc<KeySnapshot>, &Notary)> {
        let missing = |what: String| Error::new(Reason::ProofKeyMissing, what);
        let Some(notary) = &self.notary else {
            return Err(missing(
                "no key is configured that could sign the proof of destruction; create a SIGNING key (ES256 or EDDSA) in \
                 tenant system, name it in [audit.checkpoint] key and restart the daemon"
                    .into(),
            ));
        };
        let name = &notary.key;
        let reference: KeyRef = name.parse()?;
        let target = self.keys.find(&TenantName::system(), &reference).await?;
        let Ok(key) = target.snapshot() else {
            return Err(missing(format!(
                "the proof of destruction is signed by audit.checkpoint.key, but tenant system has no key {name}; create it"
            )));
        };
        if !note::signs_notes(key.key.algorithm) {
            return Err(missing(format!(
                "audit.checkpoint.key {name} is {}; a proof of destruction is signed with ES256 or EDDSA",
                key.key.algorithm
            )));
        }
        key.active().map_err(|why| {
            missing(format!(
                "audit.checkpoint.key cannot sign the proof: {}",
                why.message()
            ))
        })?;
        if !self.keys.signs_any_length(key) {
            return Err(missing(format!(
                "audit.checkpoint.key {name} is {} in a backend that signs short messages only, and a proof of destruction \
                 is long; use an ES256 key",
                key.key.algorithm
            )));
        }
        Ok((Arc::clone(key), notary))
    }
}

/// Everybody who reads alerts has the waiting period to object.
fn scheduled(progress: &Progress) -> Alert {
    let d = &progress.destruction;
    let at = d.destroy_at.map(|at| at.to_string()).unwrap_or_default();
    Alert {
        id: AlertId::random(),
        tenant: d.tenant.clone(),
        kind: "TENANT_DESTRUCTION_SCHEDULED".into(),
        entity: "tenant_destruction".into(),
        entity_id: d.id.to_string(),
        text: format!(
            "all keys of tenant {} ({} versions) are destroyed for ever from {at} on; cancel destruction {} to keep them",
            d.tenant, progress.remaining, d.id
        ),
        raised_at: d.approved_at.unwrap_or(d.requested_at),
        window_key: format!("TENANT_DESTRUCTION_SCHEDULED/{}", d.id),
    }
}

async fn record(mutation: Mutation, progress: Progress) -> Result<Recorded<Progress>> {
    let d = &progress.destruction;
    let details = json!({
        "tenant": d.tenant.as_str(),
        "state": d.state.as_str(),
        "destroy_at": d.destroy_at.map(|at| at.to_string()),
        "versions": progress.remaining,
    });
    mutation.record(progress, details).await
}

/// Errors: CONFLICT when it is not in state `from` any more.
async fn update(
    tx: &mut crate::store::Tx,
    destruction: &TenantDestruction,
    from: TenantDestructionState,
) -> Result<()> {
    match tx.update_tenant_destruction(destruction, from).await? {
        true => Ok(()),
        false => Err(conflict()),
    }
}

fn found(destruction: Option<TenantDestruction>, permit: &Permit) -> Result<TenantDestruction> {
    destruction.ok_or_else(|| not_found(permit.resource()))
}

fn conflict() -> Error {
    Error::new(
        Reason::Conflict,
        "somebody else changed this destruction; read it again and retry",
    )
}
