//! Looking at keys, and changing what may be changed: owner, period, next rotation.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::{KeySnapshot, Keys, create::rotation_period};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Permit, Recorded},
    model::{Key, Kid, TenantName, Timestamp},
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
}

impl Keys {
    /// Up to `limit` keys of the permitted tenant after `after` (a key id or nothing), oldest first, each with the
    /// kid of its ACTIVE version.
    pub async fn list(
        &self,
        _permit: &Permit,
        tenant: &TenantName,
        after: &str,
        overdue_only: Option<Timestamp>,
        limit: i64,
    ) -> Result<Vec<(Key, Option<Kid>)>> {
        let due_before = overdue_only.unwrap_or(Timestamp::from_micros(i64::MAX));
        let keys = self.db.keys(tenant, after, due_before, limit).await?;
        let mut listed = Vec::with_capacity(keys.len());
        for key in keys {
            let kid = self.db.active_kid(key.id).await?;
            listed.push((key, kid));
        }
        Ok(listed)
    }

    /// Changes a key.
    ///
    /// Errors: INVALID_FIELD for a period or date out of bounds, CONFLICT when somebody else changed it first.
    pub async fn update(
        &self,
        permit: AdminPermit,
        current: Arc<KeySnapshot>,
        change: UpdateKey,
    ) -> Result<Recorded<Arc<KeySnapshot>>> {
        let mut key = current.key.clone();
        if let Some(owner) = change.owner {
            key.owner = owner;
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
        let details = json!({
            "owner": key.owner,
            "rotation_period_seconds": key.rotation_period.as_secs(),
            "next_rotation_at": key.next_rotation_at.to_string(),
        });
        let mut mutation = permit.begin().await?;
        if !mutation.tx().update_key(&key).await? {
            return Err(Error::new(
                Reason::Conflict,
                "somebody else changed this key; read it again and retry",
            ));
        }
        key.revision += 1;
        let id = key.id;
        let versions = current
            .versions()
            .iter()
            .map(|v| v.version.clone())
            .collect();
        let updated = Arc::new(KeySnapshot::new(key, versions)?);
        self.forget_after(&mut mutation, id);
        mutation.record(updated, details).await
    }
}
