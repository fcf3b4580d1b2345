//! Looking at keys, and changing what may be changed: owner, period, next rotation, rotation policy.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use serde_json::json;

use super::{
    KeySnapshot, Keys,
    create::{no_pairs, rotation_period},
    import::expect_people,
};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Mutation, Permit, Recorded},
    model::{Key, KeyRef, PrincipalId, RotationMode, RotationPolicy, TenantName, Timestamp},
    store::{KeyFilter, ListedKey},
};

/// What UpdateKey is asked for; None leaves a field as it is.
#[derive(Debug, Default)]
pub struct UpdateKey {
    /// New owner.
    pub owner: Option<String>,
    /// New rotation period.
    pub rotation_period: Option<Duration>,
    /// New date of the next rotation.
    pub next_rotation_at: Option<Timestamp>,
    /// New rotation mode.
    pub rotation_mode: Option<RotationMode>,
    /// New number of approvals; never fewer than before.
    pub approvals_needed: Option<NonZeroU32>,
    /// Keep a standby version?
    pub standby: Option<bool>,
    /// New grace, for rotations from now on.
    pub grace: Option<Duration>,
    /// New backend of versions from now on.
    pub backend: Option<String>,
    /// New backend of standby versions; Some(None) for the key's own.
    pub standby_backend: Option<Option<String>>,
}

impl UpdateKey {
    /// The policy that follows. Whoever changes what a standing approval was given to takes that approval back.
    ///
    /// Errors: ROTATION_POLICY for fewer approvals, or for AUTOMATIC with more than one; INVALID_FIELD.
    fn policy(&self, before: &RotationPolicy, by: PrincipalId) -> Result<RotationPolicy> {
        let mut policy = before.clone();
        if let Some(needed) = self.approvals_needed {
            if needed < before.approvals_needed {
                return Err(Error::new(
                    Reason::RotationPolicy,
                    format!(
                        "rotations of this key need {} approvals; the number is never lowered",
                        before.approvals_needed
                    ),
                ));
            }
            policy.approvals_needed = needed;
        }
        policy.mode = self.rotation_mode.unwrap_or(before.mode);
        policy.standby = self.standby.unwrap_or(before.standby);
        policy.grace = self.grace.unwrap_or(before.grace);
        if let Some(backend) = &self.standby_backend {
            policy.standby_backend.clone_from(backend);
        }
        let raised = policy.approvals_needed > before.approvals_needed;
        let elsewhere = self.backend.is_some() || policy.standby_backend != before.standby_backend;
        let other = raised || elsewhere || policy.grace != before.grace;
        if self.rotation_mode.is_some() || other {
            policy.set_by = Some(by);
            policy.standing_approval = None;
        }
        policy.check()?;
        Ok(policy)
    }
}

impl Keys {
    /// Up to `limit` keys of the permitted tenant after `after` (a key id or nothing), oldest first.
    pub async fn list(
        &self,
        _permit: &Permit,
        tenant: &TenantName,
        after: &str,
        filter: &KeyFilter,
        limit: i64,
    ) -> Result<Vec<ListedKey>> {
        Ok(self.db.keys(tenant, after, filter, limit).await?)
    }

    /// Changes a key.
    ///
    /// Errors: INVALID_FIELD for a period or date out of bounds, ROTATION_POLICY, CONFLICT when somebody else changed it
    /// first.
    pub async fn update(
        &self,
        permit: AdminPermit,
        current: Arc<KeySnapshot>,
        change: UpdateKey,
    ) -> Result<Recorded<Arc<KeySnapshot>>> {
        // Memory may be behind another replica, by which the caller made the change before this one.
        let current = self.fresh(&current.key.tenant, current.key.id).await?;
        let mut key = current.key.clone();
        key.policy = change.policy(&key.policy, permit.caller().principal.id)?;
        if current.is_imported() {
            expect_people(&key.policy)?;
        }
        if let Some(owner) = change.owner {
            key.owner = owner;
        }
        let elsewhere = [change.backend.clone(), change.standby_backend.flatten()];
        for backend in elsewhere.iter().flatten() {
            if !key.purpose.has_pairs() {
                return Err(no_pairs(key.purpose));
            }
            self.expect_backend(backend)?;
        }
        if let Some(backend) = change.backend {
            key.backend = backend;
        }
        if change.rotation_period.is_some() || change.next_rotation_at.is_some() {
            // A rotation that becomes due by this is one that they ask for, and not what was approved.
            key.policy.schedule_set_by = Some(permit.caller().principal.id);
            key.policy.standing_approval = None;
        }
        let last_rotation = current
            .active()
            .ok()
            .and_then(|active| active.version.activated_at)
            .unwrap_or(key.created_at);
        if let Some(period) = change.rotation_period {
            key.rotation_period = rotation_period(key.purpose, Some(period))?;
            key.next_rotation_at = last_rotation.plus(key.rotation_period);
        }
        if let Some(at) = change.next_rotation_at {
            let latest = last_rotation.plus(key.rotation_period);
            if at > latest || at < key.created_at {
                let created = key.created_at;
                return Err(Error::new(
                    Reason::InvalidField,
                    format!("next_rotation_time must be from {created} to {latest}"),
                ));
            }
            key.next_rotation_at = at;
        }
        let mutation = permit.begin().await?;
        self.record_changed(mutation, key, &current).await
    }

    /// Gives the standing approval to AUTOMATIC rotation, for the key as it was at `revision`: what the approver read.
    ///
    /// Errors: PLAN_CHANGED when the key was changed since, ROTATION_POLICY unless AUTOMATIC, SEPARATION_OF_DUTIES for
    /// who set the policy, CONFLICT.
    pub async fn approve_policy(
        &self,
        permit: AdminPermit,
        current: Arc<KeySnapshot>,
        revision: i64,
    ) -> Result<Recorded<Arc<KeySnapshot>>> {
        let approver = permit.caller().principal.id;
        // From the database: memory may be behind another replica, where the approver has read.
        let stored = KeyRef::Id(current.key.id);
        let stored = self.db.key(&current.key.tenant, &stored).await?;
        let Some(mut key) = stored.filter(|key| key.revision == revision) else {
            return Err(Error::new(
                Reason::PlanChanged,
                "the key was changed since you read it; read its policy again before approving",
            ));
        };
        key.policy = key.policy.approve(approver, self.clock.now())?;
        let mutation = permit.begin().await?;
        self.record_changed(mutation, key, &current).await
    }

    async fn record_changed(
        &self,
        mut mutation: Mutation,
        mut key: Key,
        current: &KeySnapshot,
    ) -> Result<Recorded<Arc<KeySnapshot>>> {
        let standing = key.policy.standing_approval.as_ref();
        let details = json!({
            "owner": key.owner,
            "rotation_period_seconds": key.rotation_period.as_secs(),
            "next_rotation_at": key.next_rotation_at.to_string(),
            "rotation_mode": key.policy.mode.as_str(),
            "approvals_needed": key.policy.approvals_needed.get(),
            "standby": key.policy.standby,
            "grace_seconds": key.policy.grace.as_secs(),
            "backend": key.backend,
            "standby_backend": key.policy.standby_backend,
            "policy_set_by": key.policy.set_by.map(|id| id.to_string()),
            "policy_approved_by": standing.map(|approval| approval.approver.to_string()),
        });
        if !mutation.tx().update_key(&key).await? {
            return Err(Error::new(
                Reason::Conflict,
                "somebody else changed this key; read it again and retry",
            ));
        }
        key.revision += 1;
        let id = key.id;
        let versions = current.versions().iter();
        let versions = versions.map(|v| v.version.clone()).collect();
        let updated = Arc::new(KeySnapshot::new(key, versions)?);
        self.forget_after(&mut mutation, id);
        mutation.record(updated, details).await
    }
}
