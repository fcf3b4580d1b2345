//! Answers that were computed with a version leave only while the version may still stand behind them (R-EMER-3).

use std::sync::Arc;

use super::{KeySnapshot, Keys};
use crate::{
    error::{Error, Reason, Result},
    gate::Permit,
    model::{KeyRef, Kid, VersionState},
};

impl Keys {
    /// Keeps the answer back unless version `kid` of `key` is in a state that `allows` when it is about to leave. As long
    /// as nobody has changed the key, that is one look at the cache.
    pub fn release_while(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        kid: &Kid,
        allows: fn(VersionState) -> bool,
    ) {
        let (cache, db) = (Arc::clone(&self.cache), self.db.clone());
        let (tenant, id) = (key.key.tenant.clone(), key.key.id);
        let (identity, kid) = (Arc::clone(key.identity()), kid.clone());
        permit.release_if(move || {
            let (cache, db) = (Arc::clone(&cache), db.clone());
            let (tenant, kid) = (tenant.clone(), kid.clone());
            let identity = Arc::clone(&identity);
            async move {
                if cache.holds(id, &identity) {
                    return Ok(());
                }
                // Something was changed, perhaps something else: ask the database.
                let now = cache.find(&db, &tenant, &KeyRef::Id(id)).await?;
                let state = now.and_then(|now| now.version(&kid).map(|v| v.state()));
                judge(&kid, state, allows)
            }
        });
    }
}

fn judge(kid: &Kid, state: Option<VersionState>, allows: fn(VersionState) -> bool) -> Result<()> {
    match state {
        Some(state) if allows(state) => Ok(()),
        Some(VersionState::Compromised) => Err(Error::new(
            Reason::KeyCompromised,
            format!(
                "version {kid} was declared compromised while this call was under way; retry with its successor"
            ),
        )),
        _ => Err(Error::new(
            Reason::NoUsableVersion,
            format!("version {kid} was taken out of use while this call was under way; retry"),
        )),
    }
}
