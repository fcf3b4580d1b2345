//! Alerts about keys and rotations that wait for people (R-LIFE-3, R-USE-3): rows, each raised once.

use std::time::Duration;

use super::Rotations;
use crate::{
    error::Result,
    model::{AlertId, KeyId, KeyRef, Rotation, RotationId, RotationState, TenantName},
    store::{Alert, Term},
};

/// How long a rotation may wait for people before they are told.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the scheduler may take for a key under a standing approval before people are told.
const AUTOMATIC_PATIENCE: Duration = Duration::from_secs(60 * 60);

impl Rotations {
    /// Overdue keys that nobody was told about yet.
    pub async fn keys_to_alert_about(&self) -> Result<Vec<(KeyId, TenantName)>> {
        let now = self.clock.now();
        let automatic = now.minus(AUTOMATIC_PATIENCE);
        Ok(self.db.keys_to_alert_about(now, automatic).await?)
    }

    /// Rotations that wait too long for people who were not told yet.
    pub async fn rotations_to_alert_about(&self) -> Result<Vec<RotationId>> {
        let now = self.clock.now();
        Ok(self
            .db
            .rotations_unanswered(now, now.minus(PATIENCE))
            .await?)
    }

    /// How many keys are overdue, in all tenants.
    pub async fn count_overdue(&self) -> Result<i64> {
        Ok(self.db.count_overdue_keys(self.clock.now()).await?)
    }

    /// Raises KEY_OVERDUE, once per key and date. Errors: LEASE_LOST.
    pub async fn alert_overdue(&self, term: &Term, key: KeyId, tenant: &TenantName) -> Result<()> {
        let Some(key) = self.db.key(tenant, &KeyRef::Id(key)).await? else {
            return Ok(());
        };
        let due = key.next_rotation_at;
        let alert = Alert {
            id: AlertId::random(),
            tenant: key.tenant.clone(),
            kind: "KEY_OVERDUE".to_owned(),
            entity: "key".to_owned(),
            entity_id: key.id.to_string(),
            text: format!(
                "key {} of {} should have been rotated by {due}; `claviger rotation list --tenant {} --key {}` \
                 shows what it waits for",
                key.name, key.owner, key.tenant, key.name
            ),
            raised_at: self.clock.now(),
            window_key: format!("KEY_OVERDUE/{}/{}", key.id, due.micros()),
        };
        self.raise(term, &alert).await
    }

    /// Raises ROTATION_WAITING, once per rotation and state. Errors: LEASE_LOST.
    pub async fn alert_waiting(&self, term: &Term, rotation: &Rotation) -> Result<()> {
        let whom = match rotation.state {
            RotationState::Requested => "an approver",
            RotationState::Approved => "a deployer",
            RotationState::Deployed
            | RotationState::Completed
            | RotationState::Rejected
            | RotationState::Cancelled
            | RotationState::Expired => return Ok(()),
        };
        let (id, state) = (rotation.id, rotation.state.as_str());
        let alert = Alert {
            id: AlertId::random(),
            tenant: rotation.tenant.clone(),
            kind: "ROTATION_WAITING".to_owned(),
            entity: "rotation".to_owned(),
            entity_id: id.to_string(),
            text: format!(
                "rotation {id} of key {} has been waiting for {whom} for over a day; it expires at {}; \
                 `claviger rotation get {id}` shows it",
                rotation.key_name, rotation.expires_at
            ),
            raised_at: self.clock.now(),
            window_key: format!("ROTATION_WAITING/{id}/{state}"),
        };
        self.raise(term, &alert).await
    }

    async fn raise(&self, term: &Term, alert: &Alert) -> Result<()> {
        let mut tx = self.db.begin().await?;
        tx.hold(term).await?;
        if tx.raise_alert(alert).await? {
            tracing::warn!(
                kind = alert.kind,
                entity_id = alert.entity_id,
                "{}",
                alert.text
            );
        }
        Ok(tx.commit().await?)
    }
}
