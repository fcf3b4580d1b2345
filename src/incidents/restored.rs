//! Declaring again what an older copy of the database does not know (`restore`).

use serde_json::Value;

use super::declare::{Declaration, Frozen};
use crate::{
    error::{Error, Result},
    model::{Incident, IncidentId, Job, KeyVersion, Timestamp, VersionState},
    store::Tx,
};

/// Declares a version compromised, in `tx`. Answers the incident and what its audit row says; None when the version is
/// COMPROMISED or DESTROYED anyway.
pub async fn declare_again(
    tx: &mut Tx,
    version: &KeyVersion,
    reason: String,
    now: Timestamp,
) -> Result<Option<(Incident, Value)>> {
    if matches!(
        version.state,
        VersionState::Compromised | VersionState::Destroyed
    ) {
        return Ok(None);
    }
    tx.lock_key(version.key_id).await?;
    let key = tx.key(version.key_id).await?;
    let key = key.ok_or_else(|| Error::internal("a version has no key"))?;
    let declaration = Declaration {
        id: IncidentId::random(),
        by: Job::Scheduler.principal().id,
        key: key.id,
        kid: version.kid.clone(),
        now,
    };
    match declaration.make(tx, &key, reason).await {
        Ok(made) => Ok(Some(made)),
        Err(Frozen::Already) => Ok(None),
        Err(Frozen::Failed(error)) => Err(error),
    }
}
