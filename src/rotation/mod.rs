//! R3: rotating a key. Requested with a successor already generated, approved over the digest of the plan, deployed.
//!
//! Who may take which step is decided by `model::Rotation` (separation of duties) after the gate (roles). What each
//! step changes is one transaction: a deployment makes the new version ACTIVE and the old one VERIFY_ONLY at once.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::json;

use crate::{
    clock::Clock,
    error::{Error, Reason, Result},
    gate::{AdminPermit, Permit, Recorded, not_found},
    keys::{KeySnapshot, Keys},
    model::{
        Entity, KeyId, KeyRef, KeyVersion, Purpose, Resource, Rotation, RotationId, RotationState,
        TenantName, key::VersionEvent, rotation::Plan,
    },
    store::{Db, IntentState, StoreError},
};

/// Section `[rotation]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RotationConfig {
    /// How far clocks of verifiers may be off, in seconds; added to the JWKS max-age for the soak, and to the last
    /// token's `exp` for the grace. Default 60.
    pub clock_skew_seconds: u64,
    /// How long a request may wait for its approvals and its deployment, in seconds. Default 7 days.
    pub request_ttl_seconds: u64,
}

impl RotationConfig {
    /// How far clocks of verifiers may be off.
    pub const fn clock_skew(&self) -> Duration {
        Duration::from_secs(self.clock_skew_seconds)
    }

    /// How long a request stays open.
    pub const fn request_ttl(&self) -> Duration {
        Duration::from_secs(self.request_ttl_seconds)
    }
}

impl Default for RotationConfig {
    fn default() -> Self {
        Self {
            clock_skew_seconds: 60,
            request_ttl_seconds: 7 * 24 * 60 * 60,
        }
    }
}

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

    /// Generates the successor, PRE_ACTIVE and not announced, and opens a rotation for approval.
    ///
    /// Errors: ROTATION_OPEN, NO_USABLE_VERSION, and the backend's.
    pub async fn request(
        &self,
        permit: AdminPermit,
        key: Arc<KeySnapshot>,
        justification: String,
    ) -> Result<Recorded<Rotation>> {
        // As the database has it now: a successor to a version that is not ACTIVE any more could never be deployed.
        let key = self.fresh(&key.key.tenant, key.key.id).await?;
        let old = key.active()?.version.clone();
        self.refuse_open(&key).await?;
        let number = key.versions().last().map_or(1, |v| v.version.number + 1);
        let generated = self.keys.generate(&key.key, number).await?;
        let now = self.clock.now();
        let version =
            KeyVersion::pre_active(key.key.id, number, generated.kid, generated.material, now);
        let id = RotationId::random();
        let soak = match key.key.purpose {
            // Nobody outside keeps a copy of a data key, so there is nobody to wait for.
            Purpose::Encryption => Duration::ZERO,
            Purpose::Signing | Purpose::TokenSigning => self.soak,
        };
        let plan = Plan {
            rotation: id,
            tenant: &key.key.tenant,
            key: key.key.id,
            algorithm: key.key.algorithm,
            backend: &key.key.backend,
            old_kid: &old.kid,
            new_kid: &version.kid,
            soak,
            grace: key.key.policy.grace,
            approvals_needed: key.key.policy.approvals_needed,
        }
        .canonical();
        let rotation = Rotation {
            id,
            tenant: key.key.tenant.clone(),
            key_id: key.key.id,
            key_name: key.key.name.clone(),
            state: RotationState::Requested,
            old_kid: old.kid,
            new_kid: version.kid.clone(),
            justification,
            plan,
            soak,
            grace: key.key.policy.grace,
            scheduled: false,
            requester: permit.caller().principal.id,
            approvals: Vec::new(),
            approvals_needed: key.key.policy.approvals_needed,
            deployer: None,
            requested_at: now,
            announced_at: None,
            deployed_at: None,
            expires_at: now.plus(self.config.request_ttl()),
            grace_ends_at: None,
            ended_at: None,
            ended_by: None,
            end_reason: String::new(),
        };
        let mut mutation = permit.begin().await?;
        mutation.on("rotation", rotation.id);
        let tx = mutation.tx();
        tx.insert_version(&version).await.map_err(open)?;
        tx.insert_rotation(&rotation).await.map_err(open)?;
        if let Some(intent) = generated.intent {
            tx.settle_intent(intent, IntentState::Done).await?;
        }
        self.record(mutation, rotation).await
    }

    /// Approves the plan with this digest. With the last needed approval the new kid is announced.
    ///
    /// Errors: ROTATION_NOT_FOUND, ROTATION_STATE, SEPARATION_OF_DUTIES, PLAN_CHANGED, CONFLICT.
    pub async fn approve(
        &self,
        permit: AdminPermit,
        rotation: Option<Rotation>,
        digest: &str,
    ) -> Result<Recorded<Rotation>> {
        let rotation = found(rotation, permit.permit())?;
        let approver = permit.caller().principal.id;
        let now = self.clock.now();
        let key = self.fresh(&rotation.tenant, rotation.key_id).await?;
        let approved = rotation.approve(approver, digest, now)?;
        let mut mutation = permit.begin().await?;
        let tx = mutation.tx();
        if let Some(approval) = approved.approvals.last() {
            let inserted = tx.insert_approval(approved.id, approval).await;
            inserted.map_err(|e| conflict(Some(e)))?;
        }
        if !tx
            .update_rotation(&approved, RotationState::Requested)
            .await?
        {
            return Err(conflict(None));
        }
        if approved.state == RotationState::Approved {
            let mut version = successor(&key, &approved)?.clone();
            version.announced_at = Some(now);
            if !tx.update_version(&version, version.state).await? {
                return Err(conflict(None));
            }
        }
        self.record(mutation, approved).await
    }

    /// Makes the new version ACTIVE and the old one VERIFY_ONLY, and sets the next rotation date.
    ///
    /// Errors: ROTATION_NOT_FOUND, ROTATION_STATE, SEPARATION_OF_DUTIES, ROTATION_SOAKING, CONFLICT.
    pub async fn deploy(
        &self,
        permit: AdminPermit,
        rotation: Option<Rotation>,
    ) -> Result<Recorded<Rotation>> {
        let rotation = found(rotation, permit.permit())?;
        let now = self.clock.now();
        let mut deployed = rotation.deploy(permit.caller().principal.id, now)?;
        let key = self.fresh(&deployed.tenant, deployed.key_id).await?;
        let (mut old, mut new) = (
            key.active()?.version.clone(),
            successor(&key, &deployed)?.clone(),
        );
        if old.kid != deployed.old_kid {
            return Err(conflict(None));
        }
        let old_state = old.advance(VersionEvent::Supersede, now)?;
        let new_state = new.advance(VersionEvent::Deploy, now)?;
        let mut row = key.key.clone();
        row.next_rotation_at = now.plus(row.rotation_period);
        let mut mutation = permit.begin().await?;
        let tx = mutation.tx();
        // The old one first: the database allows one ACTIVE version at every moment.
        let moved = tx
            .update_rotation(&deployed, RotationState::Approved)
            .await?
            && tx.update_version(&old, old_state).await?
            && tx.update_version(&new, new_state).await?
            && tx.update_key(&row).await?;
        if !moved {
            return Err(conflict(None));
        }
        // Read behind the update: a version that is not ACTIVE raises its mark no more, so this is the last word.
        old.last_token_exp = tx.last_token_exp(&old.kid).await?;
        deployed.grace_ends_at = old.grace_ends_at(deployed.grace, self.config.clock_skew());
        if !tx
            .update_rotation(&deployed, RotationState::Deployed)
            .await?
        {
            return Err(conflict(None));
        }
        self.record(mutation, deployed).await
    }

    async fn record(
        &self,
        mut mutation: crate::gate::Mutation,
        rotation: Rotation,
    ) -> Result<Recorded<Rotation>> {
        let key = rotation.key_id;
        let details = json!({
            "key_id": key.to_string(),
            "key": rotation.key_name.as_str(),
            "state": rotation.state.as_str(),
            "old_kid": rotation.old_kid.as_str(),
            "new_kid": rotation.new_kid.as_str(),
            "plan_digest": rotation.plan_digest(),
        });
        self.keys.forget_after(&mut mutation, key);
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

    /// The key as the database has it now: a decision about its versions must not rest on a cache.
    async fn fresh(&self, tenant: &TenantName, key: KeyId) -> Result<Arc<KeySnapshot>> {
        self.keys.forget(key);
        let target = self.keys.find(tenant, &KeyRef::Id(key)).await?;
        target.snapshot().cloned()
    }
}

fn found(rotation: Option<Rotation>, permit: &Permit) -> Result<Rotation> {
    rotation.ok_or_else(|| not_found(permit.resource()))
}

fn successor<'a>(key: &'a KeySnapshot, rotation: &Rotation) -> Result<&'a KeyVersion> {
    key.version(&rotation.new_kid)
        .map(|v| &v.version)
        .ok_or_else(|| Error::internal(format!("rotation {} lost its version", rotation.id)))
}

fn open(error: StoreError) -> Error {
    match error {
        StoreError::Exists(_) => Error::new(
            Reason::RotationOpen,
            "another rotation of this key was opened meanwhile; finish it first",
        ),
        other => other.into(),
    }
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
