//! R3: destroying a key version. Asked for by one person, approved by another, carried out by the scheduler after a
//! waiting period in which either of them, or an officer, may call it off.
//!
//! Who may take which step is decided by `model::KeyDestruction` after the gate. A version that something still needs
//! is not destroyed: that is asked at each step (`needs.rs`), and once more when the time has come (`carry_out.rs`).

mod carry_out;
mod needs;

use std::{sync::Arc, time::Duration};

use serde_json::json;

use crate::{
    clock::Clock,
    error::{Error, Reason, Result},
    gate::{AdminPermit, Mutation, Permit, Recorded, not_found},
    keys::{KeySnapshot, Keys},
    model::{
        AlertId, DestructionId, DestructionState, Entity, KeyDestruction, KeyId, KeyRef,
        KeyVersion, Kid, Resource, TenantName,
    },
    store::{Alert, Db, StoreError},
};

pub use carry_out::Due;

/// Destructions of key versions.
pub struct Destructions {
    db: Db,
    keys: Arc<Keys>,
    clock: Clock,
    wait: Duration,
    skew: Duration,
}

impl Destructions {
    /// `wait` lies between the approval and the destruction; `skew` is how far the clocks of verifiers may be off.
    pub const fn new(
        db: Db,
        keys: Arc<Keys>,
        clock: Clock,
        wait: Duration,
        skew: Duration,
    ) -> Self {
        Self {
            db,
            keys,
            clock,
            wait,
            skew,
        }
    }

    /// The destruction, and the resource that the gate decides about: its tenant's, or, for an id nobody has, the
    /// platform's.
    pub async fn find(&self, id: DestructionId) -> Result<(Resource, Option<KeyDestruction>)> {
        let found = self.db.destruction(id).await?;
        let tenant = found
            .as_ref()
            .map_or_else(TenantName::system, |d| d.tenant.clone());
        let entity = match found {
            Some(_) => Entity::Destruction(id),
            None => Entity::UnknownDestruction(id),
        };
        Ok((Resource { tenant, entity }, found))
    }

    /// Up to `limit` destructions of a tenant before `before`, newest first.
    pub async fn list(
        &self,
        _permit: &Permit,
        tenant: &TenantName,
        state: Option<DestructionState>,
        before: &str,
        limit: i64,
    ) -> Result<Vec<KeyDestruction>> {
        Ok(self.db.destructions(tenant, state, before, limit).await?)
    }

    /// Asks for the destruction of a RETIRED or COMPROMISED version.
    ///
    /// Errors: NO_USABLE_VERSION for a kid of another key, VERSION_STATE, VERSION_IN_USE, DESTRUCTION_OPEN.
    pub async fn request(
        &self,
        permit: AdminPermit,
        key: Arc<KeySnapshot>,
        kid: Kid,
        reason: String,
    ) -> Result<Recorded<KeyDestruction>> {
        let key = self.fresh(&key.key.tenant, key.key.id).await?;
        let version = version(&key, &kid)?;
        self.refuse_needed(version).await?;
        let destruction = KeyDestruction {
            id: DestructionId::random(),
            tenant: key.key.tenant.clone(),
            key_id: key.key.id,
            key_name: key.key.name.clone(),
            kid,
            state: DestructionState::Requested,
            reason,
            requester: permit.caller().principal.id,
            requested_at: self.db.now().await?,
            approver: None,
            approved_at: None,
            destroy_at: None,
            ended_at: None,
            cancelled_by: None,
            cancel_reason: String::new(),
        };
        let mut mutation = permit.begin_on(key.key.id).await?;
        mutation.on("destruction", destruction.id);
        let inserted = mutation.tx().insert_destruction(&destruction).await;
        inserted.map_err(|e| match e {
            StoreError::Exists(_) => Error::new(
                Reason::DestructionOpen,
                "a destruction of this version is open already; approve or cancel it",
            ),
            other => other.into(),
        })?;
        self.record(mutation, destruction).await
    }

    /// A second person agrees; the waiting period begins, and people are told.
    ///
    /// Errors: DESTRUCTION_NOT_FOUND, DESTRUCTION_STATE, SEPARATION_OF_DUTIES, PLAN_CHANGED, VERSION_STATE,
    /// VERSION_IN_USE, CONFLICT.
    pub async fn approve(
        &self,
        permit: AdminPermit,
        destruction: Option<KeyDestruction>,
        kid: Kid,
    ) -> Result<Recorded<KeyDestruction>> {
        let destruction = found(destruction, permit.permit())?;
        let approver = permit.caller().principal.id;
        let now = self.db.now().await?;
        let approved = destruction.approve(approver, &kid, self.wait, now)?;
        let key = self.fresh(&approved.tenant, approved.key_id).await?;
        self.refuse_needed(version(&key, &approved.kid)?).await?;
        let mut mutation = permit.begin_on(key.key.id).await?;
        let from = DestructionState::Requested;
        let tx = mutation.tx();
        if !tx.update_destruction(&approved, from).await? {
            return Err(conflict());
        }
        tx.raise_alert(&scheduled(&approved)).await?;
        self.record(mutation, approved).await
    }

    /// Calls a destruction off, as long as the device has not been told.
    ///
    /// Errors: DESTRUCTION_NOT_FOUND, DESTRUCTION_STATE, CONFLICT.
    pub async fn cancel(
        &self,
        permit: AdminPermit,
        destruction: Option<KeyDestruction>,
        reason: String,
    ) -> Result<Recorded<KeyDestruction>> {
        let destruction = found(destruction, permit.permit())?;
        let from = destruction.state;
        let by = permit.caller().principal.id;
        let cancelled = destruction.cancel(by, reason, self.db.now().await?)?;
        let mut mutation = permit.begin_on(cancelled.key_id).await?;
        call_off(&mut mutation, &cancelled, from).await?;
        self.record(mutation, cancelled).await
    }

    async fn record(
        &self,
        mut mutation: Mutation,
        destruction: KeyDestruction,
    ) -> Result<Recorded<KeyDestruction>> {
        let details = json!({
            "key_id": destruction.key_id.to_string(),
            "key": destruction.key_name.as_str(),
            "kid": destruction.kid.as_str(),
            "state": destruction.state.as_str(),
        });
        self.keys.forget_after(&mut mutation, destruction.key_id);
        mutation.record(destruction, details).await
    }

    /// The key as the database has it now: a decision about its versions must not rest on a cache.
    async fn fresh(&self, tenant: &TenantName, key: KeyId) -> Result<Arc<KeySnapshot>> {
        self.keys.forget(key);
        let target = self.keys.find(tenant, &KeyRef::Id(key)).await?;
        target.snapshot().cloned()
    }
}

/// Writes a cancellation. Errors: DESTRUCTION_STATE when the device may have been told already, CONFLICT.
async fn call_off(
    mutation: &mut Mutation,
    cancelled: &KeyDestruction,
    from: DestructionState,
) -> Result<()> {
    let tx = mutation.tx();
    if !tx.update_destruction(cancelled, from).await? {
        return Err(conflict());
    }
    match tx.begun_destroy(&cancelled.kid).await? {
        None => Ok(()),
        Some(_) => Err(Error::new(
            Reason::DestructionState,
            "the destruction has begun on the device and cannot be called off",
        )),
    }
}

fn found(destruction: Option<KeyDestruction>, permit: &Permit) -> Result<KeyDestruction> {
    destruction.ok_or_else(|| not_found(permit.resource()))
}

fn version<'a>(key: &'a KeySnapshot, kid: &Kid) -> Result<&'a KeyVersion> {
    let found = key.version(kid).map(|v| &v.version);
    found.ok_or_else(|| {
        Error::new(
            Reason::NoUsableVersion,
            format!("key {} has no version with this kid", key.key.name),
        )
    })
}

/// What people are told who may still want the version.
fn scheduled(d: &KeyDestruction) -> Alert {
    let at = d.destroy_at.map(|at| at.to_string()).unwrap_or_default();
    Alert {
        id: AlertId::random(),
        tenant: d.tenant.clone(),
        kind: "DESTRUCTION_SCHEDULED".into(),
        entity: "destruction".into(),
        entity_id: d.id.to_string(),
        text: format!(
            "version {} of key {} is destroyed for ever from {at} on; cancel destruction {} to keep it",
            d.kid, d.key_name, d.id
        ),
        raised_at: d.approved_at.unwrap_or(d.requested_at),
        window_key: format!("DESTRUCTION_SCHEDULED/{}", d.id),
    }
}

fn conflict() -> Error {
    Error::new(
        Reason::Conflict,
        "somebody else changed this destruction; read it again and retry",
    )
}
