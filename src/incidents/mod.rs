//! R3: incidents. One call freezes a compromised key version, on every replica; two people close the record.
//!
//! Declaring needs the database and nothing else: `declare` is one transaction, and switches the key in it when a
//! successor exists already. Otherwise `switch` generates one, at once by the daemon that was called and later by a job.
//! `freeze` says when the whole installation has stopped using the version. Effects on others are rows: an alert, and the
//! audit row that the change feed carries.

mod declare;
mod freeze;
mod handle;
mod restored;
mod switch;

use std::{sync::Arc, time::Duration};

pub use freeze::Freeze;
pub use handle::Story;
pub use restored::declare_again;

use crate::{
    clock::Clock,
    error::{Error, Reason, Result},
    gate::{Permit, not_found},
    keys::Keys,
    model::{
        Entity, Incident, IncidentId, IncidentState, KeyId, KeyVersion, Resource, TenantName,
        Timestamp, key::VersionEvent,
    },
    store::{Db, Tx},
};

/// Incidents and what is done about them.
pub struct Incidents {
    db: Db,
    keys: Arc<Keys>,
    clock: Clock,
    /// Name of this replica, as it reports itself.
    replica: String,
}

impl Incidents {
    /// Incidents over these parts; `replica` is the name that this daemon follows the change feed under.
    pub const fn new(db: Db, keys: Arc<Keys>, clock: Clock, replica: String) -> Self {
        Self {
            db,
            keys,
            clock,
            replica,
        }
    }

    /// The incident, and the resource that the gate decides about: its tenant's, or, for an id nobody has, the
    /// platform's.
    pub async fn find(&self, id: IncidentId) -> Result<(Resource, Option<Incident>)> {
        let found = self.db.incident(id).await?;
        let tenant = found
            .as_ref()
            .map_or_else(TenantName::system, |i| i.tenant.clone());
        let entity = match found {
            Some(_) => Entity::Incident(id),
            None => Entity::UnknownIncident(id),
        };
        Ok((Resource { tenant, entity }, found))
    }

    /// An incident that was declared, as it is now.
    pub async fn current(&self, id: IncidentId) -> Result<Incident> {
        let found = self.db.incident(id).await?;
        found.ok_or_else(|| Error::internal(format!("incident {id} vanished")))
    }

    /// Up to `limit` incidents of a tenant before `before`, newest first.
    pub async fn list(
        &self,
        _permit: &Permit,
        tenant: &TenantName,
        state: Option<IncidentState>,
        before: &str,
        limit: i64,
    ) -> Result<Vec<Incident>> {
        Ok(self.db.incidents(tenant, state, before, limit).await?)
    }
}

/// How often a row is read again that somebody else changed between our read and our write. Each time somebody else's
/// change was committed, so a few are enough.
const ATTEMPTS: usize = 8;

/// Makes a version ACTIVE that waited for it, at once, and sets the key's next rotation. False when the version is not
/// PRE_ACTIVE any more.
async fn promote(tx: &mut Tx, version: &mut KeyVersion, now: Timestamp) -> Result<bool> {
    // An emergency does not wait for a clock that was ahead when the version was announced.
    let now = now.max(version.last_step());
    let before = version.advance(VersionEvent::Deploy, now)?;
    version.announced_at = version.announced_at.or(Some(now));
    if !tx.update_version(version, before).await? {
        return Ok(false);
    }
    reschedule(tx, version.key_id, now).await?;
    Ok(true)
}

/// The key has a new version: its rotation period begins again.
async fn reschedule(tx: &mut Tx, key: KeyId, now: Timestamp) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let mut row = tx
            .key(key)
            .await?
            .ok_or_else(|| Error::internal(format!("key {key} vanished")))?;
        row.next_rotation_at = now.plus(row.rotation_period);
        if tx.update_key(&row).await? {
            return Ok(());
        }
    }
    Err(conflict())
}

fn found(incident: Option<Incident>, permit: &Permit) -> Result<Incident> {
    incident.ok_or_else(|| not_found(permit.resource()))
}

fn conflict() -> Error {
    Error::new(
        Reason::Conflict,
        "somebody else keeps changing this key; retry at once",
    )
    .retry_after(Duration::from_millis(100))
}
