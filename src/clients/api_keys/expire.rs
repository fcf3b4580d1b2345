//! What becomes of keys with time: warned about, and EXPIRED (R-OAUTH-4). A key whose time is over authenticates nobody, also
//! before a job has looked; the state is for those who read the list.

use serde_json::json;

use super::{ApiKeys, conflict};
use crate::{
    error::Result,
    gate::{AdminPermit, Recorded},
    model::{AlertId, ApiKeyId, ApiKeyState, Entity, Resource, Timestamp},
    store::{Alert, ExpiringApiKey, OverdueApiKey, OverduePage, Term},
};

impl ApiKeys {
    /// Up to `limit` ACTIVE keys whose time is over, after the place where the page before ended; the beginning is
    /// `Default`.
    pub async fn overdue(&self, after: &(Timestamp, String), limit: i64) -> Result<OverduePage> {
        let now = self.clock.now();
        Ok(self.db.overdue_api_keys(now, after, limit).await?)
    }

    /// What the gate decides about.
    pub fn resource_of(overdue: &OverdueApiKey) -> Resource {
        Resource {
            tenant: overdue.tenant.clone(),
            entity: Entity::ApiKey {
                id: overdue.id,
                owner: overdue.owner,
            },
        }
    }

    /// Records that the time of a key is over.
    ///
    /// Errors: CONFLICT when somebody ended it meanwhile, LEASE_LOST.
    pub async fn expire(
        &self,
        permit: AdminPermit,
        term: Term,
        id: ApiKeyId,
    ) -> Result<Recorded<ApiKeyId>> {
        let now = self.clock.now();
        let mut mutation = permit.begin_in(&term).await?;
        let tx = mutation.tx();
        let mut key = tx.lock_api_key(id).await?.ok_or_else(conflict)?;
        if key.state != ApiKeyState::Active || now < key.expires_at {
            return Err(conflict());
        }
        key.state = ApiKeyState::Expired;
        key.ended_at = Some(now);
        if !tx.end_api_key(&key).await? {
            return Err(conflict());
        }
        let details = json!({
            "owner": key.owner.to_string(),
            "name": key.name,
            "expires_at": key.expires_at.to_string(),
        });
        self.forget_after(&mut mutation, id);
        mutation.record(id, details).await
    }

    /// Up to `limit` keys that end soon and that nobody was told about.
    pub async fn expiring(&self, limit: i64) -> Result<Vec<ExpiringApiKey>> {
        let now = self.clock.now();
        let until = now.plus(self.config.warn_before());
        Ok(self.db.expiring_api_keys(now, until, limit).await?)
    }

    /// Raises API_KEY_EXPIRING, once per key. Errors: LEASE_LOST.
    pub async fn warn(&self, term: &Term, key: &ExpiringApiKey) -> Result<()> {
        let alert = Alert {
            id: AlertId::random(),
            tenant: key.tenant.clone(),
            kind: "API_KEY_EXPIRING".to_owned(),
            entity: "api_key".to_owned(),
            entity_id: key.id.to_string(),
            text: format!(
                "API key {:?} of {} in {} ends at {}; `claviger api-key rotate {}` makes a successor",
                key.name, key.owner, key.tenant, key.expires_at, key.id
            ),
            raised_at: self.clock.now(),
            window_key: format!("API_KEY_EXPIRING/{}", key.id),
        };
        let mut tx = self.db.begin().await?;
        tx.hold(term).await?;
        if tx.raise_alert(&alert).await? {
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
