//! API keys: made here, shown once, kept as a keyed hash (R-OAUTH-3).
//!
//! `admit` is the way in for whoever shows one; it never says more than yes or no to the outside. Everything else is
//! management, through the gate. A key acts as its owner, limited to its scopes, at every use and not only when it is made.

mod admit;
mod change;
mod expire;
mod known;
mod pepper;
mod uses;

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::sync::Semaphore;

pub use admit::{Admitted, Rejection};
pub use change::{CreateApiKey, RotateApiKey, Rotated};
pub use pepper::{Pepper, Progress};

use crate::{
    clock::Clock,
    directory::Directory,
    error::{Error, Reason, Result},
    gate::{Gate, Mutation, Permit},
    keys::Keys,
    model::{Action, ApiKey, ApiKeyId, Entity, KeyName, KeyRef, PrincipalId, Resource, TenantName},
    store::Db,
};

const DAY: u64 = 24 * 60 * 60;

/// Section `[api_keys]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiKeysConfig {
    /// Longest life of a key, in seconds, at most 2 years. Default 1 year.
    pub max_ttl_seconds: u64,
    /// How long a rotated key stays valid beside its successor when RotateApiKey does not say, in seconds, at most 7
    /// days. Default 24 hours.
    pub rotation_overlap_seconds: u64,
    /// How long before its end a key raises the alert API_KEY_EXPIRING, in seconds; a key that lives shorter than twice
    /// that raises it in the middle of its life. Default 7 days.
    pub warn_before_seconds: u64,
    /// Time between two writes of when keys were last used, in seconds, 1 to 3600. Default 60.
    pub last_used_interval_seconds: u64,
    /// ACTIVE keys that one principal may have, 1 to 10,000. Default 100.
    pub max_per_owner: u32,
    /// Name of the MAC key of tenant `system` that keys are hashed under. Made with the first API key.
    pub pepper_key: String,
}

impl Default for ApiKeysConfig {
    fn default() -> Self {
        Self {
            max_ttl_seconds: 365 * DAY,
            rotation_overlap_seconds: DAY,
            warn_before_seconds: 7 * DAY,
            last_used_interval_seconds: 60,
            max_per_owner: 100,
            pepper_key: "api-key-pepper".to_owned(),
        }
    }
}

/// Reads of the database at the same time for those who come from where many failures come.
const TURNS: usize = 2;

/// Longest overlap of a key and its successor.
const MAX_OVERLAP: Duration = Duration::from_secs(7 * DAY);

impl ApiKeysConfig {
    /// Errors: a sentence that names the setting.
    pub fn check(&self) -> std::result::Result<(), String> {
        if !(1..=2 * 365 * DAY).contains(&self.max_ttl_seconds) {
            return Err("api_keys.max_ttl_seconds must be 1 to 63072000, which is 2 years".into());
        }
        if self.rotation_overlap_seconds > MAX_OVERLAP.as_secs() {
            return Err(
                "api_keys.rotation_overlap_seconds must be at most 604800, which is 7 days".into(),
            );
        }
        if self.warn_before_seconds > 365 * DAY {
            return Err("api_keys.warn_before_seconds must be at most 31536000".into());
        }
        if !(1..=3600).contains(&self.last_used_interval_seconds) {
            return Err("api_keys.last_used_interval_seconds must be 1 to 3600".into());
        }
        if !(1..=10_000).contains(&self.max_per_owner) {
            return Err("api_keys.max_per_owner must be 1 to 10000".into());
        }
        self.pepper()
            .map(|_| ())
            .map_err(|e| format!("api_keys.pepper_key: {}", e.message()))
    }

    /// The pepper key's name in tenant `system`.
    ///
    /// Errors: INVALID_FIELD.
    pub fn pepper(&self) -> Result<KeyRef> {
        self.pepper_key.parse::<KeyName>().map(KeyRef::Name)
    }

    const fn max_ttl(&self) -> Duration {
        Duration::from_secs(self.max_ttl_seconds)
    }

    const fn rotation_overlap(&self) -> Duration {
        Duration::from_secs(self.rotation_overlap_seconds)
    }

    const fn warn_before(&self) -> Duration {
        Duration::from_secs(self.warn_before_seconds)
    }

    /// Time between two writes of last uses.
    pub const fn last_used_interval(&self) -> Duration {
        Duration::from_secs(self.last_used_interval_seconds)
    }
}

/// API keys.
pub struct ApiKeys {
    db: Db,
    directory: Arc<Directory>,
    clock: Clock,
    config: ApiKeysConfig,
    pepper: Pepper,
    known: Arc<known::Known>,
    uses: uses::Uses,
    /// Turns of those who look from where many failures come.
    crowded: Semaphore,
}

impl ApiKeys {
    /// API keys over these parts. Errors: INVALID_FIELD for the pepper key's name.
    pub fn new(
        db: Db,
        keys: Arc<Keys>,
        directory: Arc<Directory>,
        clock: Clock,
        config: ApiKeysConfig,
    ) -> Result<Self> {
        Ok(Self {
            pepper: Pepper::new(keys, config.pepper()?)?,
            db,
            directory,
            clock,
            config,
            known: Arc::default(),
            uses: uses::Uses::default(),
            crowded: Semaphore::new(TURNS),
        })
    }

    /// Makes the pepper key when there is none.
    ///
    /// Errors: as `Pepper::make`.
    pub async fn make_pepper(&self, gate: &Gate) -> Result<()> {
        self.pepper.make(gate).await
    }

    /// The key, and the resource that the gate decides about: its tenant's, or, for an id nobody has, the platform's.
    pub async fn find(&self, id: ApiKeyId) -> Result<(Resource, Option<ApiKey>)> {
        let found = self.db.api_key(id).await?.map(|stored| stored.key);
        let resource = match &found {
            Some(key) => resource(key),
            None => Resource {
                tenant: TenantName::system(),
                entity: Entity::UnknownApiKey(id),
            },
        };
        Ok((resource, found.map(|key| self.with_last_use(key))))
    }

    /// Up to `limit` keys of a principal after `after`, oldest first.
    pub async fn list_of(
        &self,
        _permit: &Permit,
        owner: PrincipalId,
        after: &str,
        limit: i64,
    ) -> Result<Vec<ApiKey>> {
        let keys = self.db.api_keys_of(owner, after, limit).await?;
        Ok(keys.into_iter().map(|k| self.with_last_use(k)).collect())
    }

    /// Up to `limit` keys of everybody in a tenant after `after`, oldest first.
    pub async fn list_in(
        &self,
        permit: &Permit,
        tenant: &TenantName,
        after: &str,
        limit: i64,
    ) -> Result<Vec<ApiKey>> {
        permit.covers_tenant(Action::ListApiKeys, tenant)?;
        let keys = self.db.api_keys_in(tenant, after, limit).await?;
        Ok(keys.into_iter().map(|k| self.with_last_use(k)).collect())
    }

    /// The versions of the pepper that hash or verify, newest first, each with how many ACTIVE keys are hashed under it.
    /// A version that does neither is named as long as keys are hashed under it.
    ///
    /// Errors: NO_USABLE_VERSION when there is no pepper key, DATABASE_UNAVAILABLE.
    pub async fn peppers(self: &Arc<Self>, permit: &Permit) -> Result<Vec<Progress>> {
        permit.covers_tenant(Action::ListPeppers, &TenantName::system())?;
        // What this replica is about to move counts as moved. In a task of its own: a caller who leaves must not leave a
        // transaction half begun.
        let api_keys = Arc::clone(self);
        let flushed = tokio::spawn(async move { api_keys.flush_uses().await });
        flushed.await.map_err(Error::internal)??;
        let counts = self.db.api_keys_by_pepper().await?;
        self.pepper.progress(&counts).await
    }

    /// Forgets a key after a change, here or on another replica.
    pub fn forget(&self, key: ApiKeyId) {
        self.known.forget(key);
    }

    /// Forgets all keys: after a change of a client, whose state is kept with its keys.
    pub fn forget_all(&self) {
        self.known.forget_all();
    }

    /// Forgets all keys as soon as `mutation` is committed.
    pub fn forget_all_after(&self, mutation: &mut Mutation) {
        let known = Arc::clone(&self.known);
        mutation.then(move || known.forget_all());
    }

    fn forget_after(&self, mutation: &mut Mutation, key: ApiKeyId) {
        let known = Arc::clone(&self.known);
        mutation.then(move || known.forget(key));
    }

    /// The key with the last use that this replica knows of, if no row has it yet.
    fn with_last_use(&self, mut key: ApiKey) -> ApiKey {
        key.last_used_at = self.uses.last(key.id).max(key.last_used_at);
        key
    }
}

/// What the gate decides about.
fn resource(key: &ApiKey) -> Resource {
    Resource {
        tenant: key.tenant.clone(),
        entity: Entity::ApiKey {
            id: key.id,
            owner: key.owner,
        },
    }
}

fn conflict() -> Error {
    Error::new(
        Reason::Conflict,
        "somebody else changed this API key; read it again and retry",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_the_section() {
        let config = ApiKeysConfig::default;
        assert_eq!(config().check(), Ok(()));
        for (name, wrong) in [
            (
                "max_ttl",
                ApiKeysConfig {
                    max_ttl_seconds: 2 * 365 * DAY + 1,
                    ..config()
                },
            ),
            (
                "max_ttl",
                ApiKeysConfig {
                    max_ttl_seconds: 0,
                    ..config()
                },
            ),
            (
                "overlap",
                ApiKeysConfig {
                    rotation_overlap_seconds: 7 * DAY + 1,
                    ..config()
                },
            ),
            (
                "warn",
                ApiKeysConfig {
                    warn_before_seconds: 365 * DAY + 1,
                    ..config()
                },
            ),
            (
                "last_used",
                ApiKeysConfig {
                    last_used_interval_seconds: 0,
                    ..config()
                },
            ),
            (
                "max_per_owner",
                ApiKeysConfig {
                    max_per_owner: 0,
                    ..config()
                },
            ),
            (
                "pepper_key",
                ApiKeysConfig {
                    pepper_key: "Not A Name".into(),
                    ..config()
                },
            ),
        ] {
            let error = wrong.check().expect_err(name);
            assert!(error.contains(name), "{error}");
        }
    }
}
