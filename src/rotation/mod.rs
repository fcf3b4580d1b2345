//! R3: rotating a key. Requested with a successor already generated, approved over the digest of the plan, deployed.
//!
//! Who may take which step is decided by `model::Rotation` (separation of duties) after the gate (roles). What each
//! step changes is one transaction: a deployment makes the new version ACTIVE and the old one VERIFY_ONLY at once.

mod alerts;
mod config;
mod end;
pub mod kek;
mod scheduled;

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

pub use config::RotationConfig;
pub use kek::{KekRotations, RotateKek};

use crate::{
    clock::Clock,
    error::{Error, Reason, Result},
    gate::{AdminPermit, Mutation, Permit, Recorded, not_found},
    keys::{ImportedSecret, KeySnapshot, Keys},
    model::{
        Entity, IntentId, Key, KeyId, KeyVersion, PrincipalId, Purpose, Resource, Rotation,
        RotationId, RotationState, TenantName, VersionState, key::VersionEvent, rotation::Plan,
    },
    store::{Db, IntentState, StoreError, Tx},
};

/// Rotations of keys.
pub struct Rotations {
    db: Db,
    keys: Arc<Keys>,
    clock: Clock,
    soak: Duration,
    config: RotationConfig,
}

impl Rotations {
    /// `soak` is how long a new kid must have been announced before it may sign: the JWKS max-age and the skew.
    pub const fn new(
        db: Db,
        keys: Arc<Keys>,
        clock: Clock,
        soak: Duration,
        config: RotationConfig,
    ) -> Self {
        Self {
            db,
            keys,
            clock,
            soak,
            config,
        }
    }

    /// How far the clocks of verifiers may be off.
    pub const fn clock_skew(&self) -> Duration {
        self.config.clock_skew()
    }

    /// The rotation, and the resource that the gate decides about: its tenant's, or, for an id nobody has, the
    /// platform's.
    pub async fn find(&self, id: RotationId) -> Result<(Resource, Option<Rotation>)> {
        let found = self.db.rotation(id).await?;
        let tenant = found
            .as_ref()
            .map_or_else(TenantName::system, |r| r.tenant.clone());
        let entity = match found {
            Some(_) => Entity::Rotation(id),
            None => Entity::UnknownRotation(id),
        };
        Ok((Resource { tenant, entity }, found))
    }

    /// Up to `limit` rotations of a tenant before `before`, newest first.
    pub async fn list(
        &self,
        _permit: &Permit,
        tenant: &TenantName,
        key: Option<KeyId>,
        state: Option<RotationState>,
        before: &str,
        limit: i64,
    ) -> Result<Vec<Rotation>> {
        Ok(self.db.rotations(tenant, key, state, before, limit).await?)
    }

    /// As `list`, of those that are open and not expired. A page may hold fewer that wait for any one person.
    pub async fn waiting(
        &self,
        _permit: &Permit,
        tenant: &TenantName,
        key: Option<KeyId>,
        state: Option<RotationState>,
        before: &str,
        limit: i64,
    ) -> Result<Vec<Rotation>> {
        let now = self.clock.now();
        let waiting = self
            .db
            .waiting_rotations(tenant, key, state, now, before, limit);
        Ok(waiting.await?)
    }

    /// Generates the successor, PRE_ACTIVE and not announced, and opens a rotation for approval.
    ///
    /// `secret` is the next one of an imported MAC key; every other key has none.
    ///
    /// Errors: ROTATION_OPEN, KEY_COMPROMISED, NO_USABLE_VERSION, INVALID_FIELD for the secret, CONFLICT, and the
    /// backend's.
    pub async fn request(
        &self,
        permit: AdminPermit,
        key: Arc<KeySnapshot>,
        justification: String,
        secret: Option<ImportedSecret>,
    ) -> Result<Recorded<Rotation>> {
        // As the database has it now: a successor to a version that is not ACTIVE any more could never be deployed.
        let key = self.keys.fresh(&key.key.tenant, key.key.id).await?;
        let requester = permit.caller().principal.id;
        let successor = self.successor(&key, secret).await?;
        let rotation = self.draft(&key, &successor.version, requester, justification)?;
        let mutation = permit.begin_on(key.key.id).await?;
        self.record_opened(mutation, &key, successor, rotation)
            .await
    }

    /// Approves the plan with this digest. With the last needed approval the new kid is announced.
    ///
    /// Errors: ROTATION_NOT_FOUND, ROTATION_STATE, ROTATION_EXPIRED, SEPARATION_OF_DUTIES, PLAN_CHANGED, CONFLICT,
    /// CLOCK_BACKWARDS.
    pub async fn approve(
        &self,
        permit: AdminPermit,
        rotation: Option<Rotation>,
        digest: &str,
    ) -> Result<Recorded<Rotation>> {
        let rotation = found(rotation, permit.permit())?;
        let approver = permit.caller().principal.id;
        let key = self.keys.fresh(&rotation.tenant, rotation.key_id).await?;
        let approved = rotation.approve(approver, digest, self.clock.now())?;
        let mutation = permit.begin_on(key.key.id).await?;
        let details = details(&approved);
        self.record_approved(mutation, &key, approved, details)
            .await
    }

    /// Makes the new version ACTIVE and the old one VERIFY_ONLY, and sets the next rotation date.
    ///
    /// Errors: ROTATION_NOT_FOUND, ROTATION_STATE, ROTATION_EXPIRED, SEPARATION_OF_DUTIES, ROTATION_SOAKING,
    /// KEY_COMPROMISED, CONFLICT, CLOCK_BACKWARDS.
    pub async fn deploy(
        &self,
        permit: AdminPermit,
        rotation: Option<Rotation>,
    ) -> Result<Recorded<Rotation>> {
        let rotation = found(rotation, permit.permit())?;
        let deployed = rotation.deploy(permit.caller().principal.id, self.clock.now())?;
        let key = self.keys.fresh(&deployed.tenant, deployed.key_id).await?;
        let change = Deployment::new(&key, deployed)?;
        let mutation = permit.begin_on(key.key.id).await?;
        self.record_deployed(mutation, change).await
    }

    /// The version that could follow the ACTIVE one. Refuses before a device generates anything, because what it
    /// generated stays.
    async fn successor(
        &self,
        key: &KeySnapshot,
        secret: Option<ImportedSecret>,
    ) -> Result<Successor> {
        active(key)?;
        self.refuse_open(key).await?;
        let number = key.next_number();
        let generated = self.keys.generate_next(key, secret).await?;
        let now = self.clock.now();
        let (kid, material) = (generated.kid, generated.material);
        Ok(Successor {
            version: KeyVersion::pre_active(key.key.id, number, kid, material, now),
            intent: generated.intent,
        })
    }

    fn draft(
        &self,
        key: &KeySnapshot,
        new: &KeyVersion,
        requester: PrincipalId,
        justification: String,
    ) -> Result<Rotation> {
        let (id, now, policy) = (RotationId::random(), self.clock.now(), &key.key.policy);
        let old_kid = active(key)?.kid.clone();
        let soak = match key.key.purpose {
            // Nobody outside keeps a copy of a data key, so there is nobody to wait for.
            Purpose::Encryption | Purpose::Mac => Duration::ZERO,
            Purpose::Signing | Purpose::TokenSigning => self.soak,
        };
        let plan = Plan {
            rotation: id,
            tenant: &key.key.tenant,
            key: key.key.id,
            algorithm: key.key.algorithm,
            backend: &key.key.backend,
            old_kid: &old_kid,
            new_kid: &new.kid,
            soak,
            grace: policy.grace,
            approvals_needed: policy.approvals_needed,
        }
        .canonical();
        Ok(Rotation {
            id,
            tenant: key.key.tenant.clone(),
            key_id: key.key.id,
            key_name: key.key.name.clone(),
            state: RotationState::Requested,
            old_kid,
            new_kid: new.kid.clone(),
            justification,
            plan,
            soak,
            grace: policy.grace,
            scheduled: false,
            requester,
            approvals: Vec::new(),
            approvals_needed: policy.approvals_needed,
            deployer: None,
            requested_at: now,
            announced_at: None,
            deployed_at: None,
            expires_at: now.plus(self.config.request_ttl()),
            grace_ends_at: None,
            ended_at: None,
            ended_by: None,
            end_reason: String::new(),
        })
    }

    async fn record_opened(
        &self,
        mut mutation: Mutation,
        key: &KeySnapshot,
        successor: Successor,
        rotation: Rotation,
    ) -> Result<Recorded<Rotation>> {
        mutation.on("rotation", rotation.id);
        let tx = mutation.tx();
        // The device took its time: the version may have been superseded or frozen meanwhile.
        if !tx.hold_active(&rotation.old_kid).await? {
            return Err(changed());
        }
        let inserted = match tx.insert_version(&successor.version).await {
            Ok(()) => tx.insert_rotation(&rotation).await,
            failed => failed,
        };
        match inserted {
            Ok(()) => {}
            Err(StoreError::Exists(_)) => {
                drop(mutation);
                // Whoever was first opened a rotation, or made a standby version of the same number.
                self.refuse_open(key).await?;
                return Err(changed());
            }
            Err(other) => return Err(other.into()),
        }
        if let Some(intent) = successor.intent {
            tx.settle_intent(intent, IntentState::Done).await?;
        }
        let details = details(&rotation);
        self.record(mutation, rotation, details).await
    }

    async fn record_approved(
        &self,
        mut mutation: Mutation,
        key: &KeySnapshot,
        approved: Rotation,
        details: Value,
    ) -> Result<Recorded<Rotation>> {
        let tx = mutation.tx();
        if let Some(approval) = approved.approvals.last() {
            let inserted = tx.insert_approval(approved.id, approval).await;
            inserted.map_err(|e| conflict(Some(e)))?;
        }
        moved(tx, &approved, RotationState::Requested).await?;
        // The row is ours now. Two approvers at the same time must not each believe that one more is needed.
        if tx.count_approvals(approved.id).await? != approved.approvals.len() as i64 {
            return Err(conflict(None));
        }
        if approved.state == RotationState::Approved {
            let mut version = successor_of(key, &approved)?.clone();
            version.announced_at = approved.announced_at;
            if !tx.update_version(&version, version.state).await? {
                return Err(conflict(None));
            }
        }
        self.record(mutation, approved, details).await
    }

    async fn record_deployed(
        &self,
        mut mutation: Mutation,
        change: Deployment,
    ) -> Result<Recorded<Rotation>> {
        let Deployment {
            mut rotation,
            mut old,
            new,
            key,
        } = change;
        let tx = mutation.tx();
        moved(tx, &rotation, RotationState::Approved).await?;
        // The old one first: the database allows one ACTIVE version at every moment.
        let changed = tx.update_version(&old.0, old.1).await?
            && tx.update_version(&new.0, new.1).await?
            && tx.update_key(&key).await?;
        if !changed {
            return Err(conflict(None));
        }
        // Read behind the update: a version that is not ACTIVE raises its mark no more, so this is the last word.
        old.0.last_token_exp = tx.last_token_exp(&old.0.kid).await?;
        rotation.grace_ends_at = old
            .0
            .grace_ends_at(rotation.grace, self.config.clock_skew());
        moved(tx, &rotation, RotationState::Deployed).await?;
        let details = details(&rotation);
        self.record(mutation, rotation, details).await
    }

    async fn record(
        &self,
        mut mutation: Mutation,
        rotation: Rotation,
        details: Value,
    ) -> Result<Recorded<Rotation>> {
        self.keys.forget_after(&mut mutation, rotation.key_id);
        mutation.record(rotation, details).await
    }

    /// Refuses before a device generates anything; the unique index refuses again inside the transaction.
    async fn refuse_open(&self, key: &KeySnapshot) -> Result<()> {
        for state in RotationState::ALL.into_iter().filter(|s| s.is_open()) {
            let open = self
                .db
                .rotations(&key.key.tenant, Some(key.key.id), Some(state), "", 1)
                .await?;
            if let Some(rotation) = open.first() {
                return Err(Error::new(
                    Reason::RotationOpen,
                    format!(
                        "rotation {} of this key is {}; finish it first",
                        rotation.id,
                        state.as_str()
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// A new version that no row knows of yet.
struct Successor {
    version: KeyVersion,
    intent: Option<IntentId>,
}

/// What a deployment changes, each with the state it was in.
struct Deployment {
    rotation: Rotation,
    old: (KeyVersion, VersionState),
    new: (KeyVersion, VersionState),
    key: Key,
}

impl Deployment {
    /// Of a rotation that may be deployed, on the key as it is now.
    fn new(key: &KeySnapshot, rotation: Rotation) -> Result<Self> {
        let (mut old, mut new) = (active(key)?.clone(), successor_of(key, &rotation)?.clone());
        if old.kid != rotation.old_kid {
            return Err(conflict(None));
        }
        let now = rotation.last_step();
        let was = old.advance(VersionEvent::Supersede, now)?;
        let will = new.advance(VersionEvent::Deploy, now)?;
        let mut row = key.key.clone();
        row.next_rotation_at = now.plus(row.rotation_period);
        Ok(Self {
            rotation,
            old: (old, was),
            new: (new, will),
            key: row,
        })
    }
}

/// The ACTIVE version. Errors: KEY_COMPROMISED when an incident took it, NO_USABLE_VERSION.
fn active(key: &KeySnapshot) -> Result<&KeyVersion> {
    let frozen = |v: &KeyVersion| v.compromised_at.is_some() && v.activated_at.is_some();
    match key.active() {
        Ok(active) => Ok(&active.version),
        Err(_) if key.versions().iter().any(|v| frozen(&v.version)) => Err(Error::new(
            Reason::KeyCompromised,
            format!(
                "the ACTIVE version of key {} was declared compromised; its incident replaces it, a rotation cannot",
                key.key.name
            ),
        )),
        Err(none) => Err(none),
    }
}

/// Writes the rotation if it is still in state `from`. Errors: CONFLICT.
async fn moved(tx: &mut Tx, rotation: &Rotation, from: RotationState) -> Result<()> {
    match tx.update_rotation(rotation, from).await? {
        true => Ok(()),
        false => Err(conflict(None)),
    }
}

/// What the audit row says of a rotation.
fn details(rotation: &Rotation) -> Value {
    json!({
        "key_id": rotation.key_id.to_string(),
        "key": rotation.key_name.as_str(),
        "state": rotation.state.as_str(),
        "old_kid": rotation.old_kid.as_str(),
        "new_kid": rotation.new_kid.as_str(),
        "plan_digest": rotation.plan_digest(),
    })
}

fn found(rotation: Option<Rotation>, permit: &Permit) -> Result<Rotation> {
    rotation.ok_or_else(|| not_found(permit.resource()))
}

fn successor_of<'a>(key: &'a KeySnapshot, rotation: &Rotation) -> Result<&'a KeyVersion> {
    key.version(&rotation.new_kid)
        .map(|v| &v.version)
        .ok_or_else(|| Error::internal(format!("rotation {} lost its version", rotation.id)))
}

fn changed() -> Error {
    Error::new(
        Reason::Conflict,
        "somebody else changed this key; read it again and retry",
    )
}

fn conflict(error: Option<StoreError>) -> Error {
    match error {
        Some(StoreError::Exists(_)) | None => Error::new(
            Reason::Conflict,
            "somebody else changed this rotation; read it again and retry",
        ),
        Some(other) => other.into(),
    }
}
