//! R3: keys and what is done with them. Create, adopt, import, inspect, update; sign, verify, encrypt, decrypt, rewrap,
//! data keys for callers, MACs, webhooks.
//!
//! A warm data-plane call reads a snapshot from memory, asks the state machine, and calls the backend or the
//! envelope: no database, no policy. Everything that acts takes a permit. Who may is not decided here.

mod cache;
mod create;
mod credentials;
mod data_keys;
mod encrypt;
mod generate;
mod import;
mod inventory;
pub mod keks;
mod leftovers;
mod mac;
mod release;
mod revoke;
mod rewrap;
mod sign;
mod snapshot;
mod standby;
mod streams;
mod uses;
mod webhook;
mod wrapped_keys;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::time::Instant;

pub use create::{AdoptKey, CreateKey};
pub use data_keys::binding as data_key_binding;
pub use import::{ImportKey, ImportedSecret};
pub use inventory::UpdateKey;
pub use keks::Keks;
pub use leftovers::Gone;
pub use revoke::expect_no_credentials;
pub use rewrap::{Batch, Trial};
pub use sign::{SAMPLED_ONE_IN, Signed};
pub use snapshot::KeySnapshot;
pub use uses::Counter;
pub use webhook::{DEFAULT_TOLERANCE, Delivery, Scheme, TOLERANCES, Verdict};
pub use wrapped_keys::{DATA_KEY_LENGTHS, NewDataKey};

pub use crate::store::{KeyFilter, ListedKey, VersionUsage};

use crate::{
    backends::Backend,
    clock::Clock,
    error::{Error, Reason, Result},
    gate::{Mutation, not_found},
    model::{Entity, KeyName, KeyRef, Kid, Purpose, Resource, TenantName},
    store::Db,
};

/// Section `[keys]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeysConfig {
    /// Backend that generates key pairs when CreateKey names none. Default: the backend of the KEK.
    pub default_backend: Option<String>,
    /// Keys held in memory. Default 10,000.
    pub cache_size: usize,
    /// Unwrapped data keys held in memory. Default 10,000.
    pub data_key_cache_size: usize,
    /// How long an unwrapped data key stays in memory, counted from its unwrapping. Disabling the KEK ends
    /// decryption within this time. Default 300.
    pub data_key_ttl_seconds: u64,
    /// How long one backend call may take, in milliseconds. Default 5000.
    pub backend_timeout_ms: u64,
    /// How long the generation of a key pair may take, in milliseconds: minutes are not unheard of for RSA on a small or
    /// busy device. A caller who does not wait that long asks again with the same idempotency key. Default 25,000.
    pub generate_timeout_ms: u64,
    /// Time between the approval of a destruction and the destruction, in seconds. Within it the destruction can be
    /// called off, and data that is still used under the version keeps it alive. Default 7 days.
    pub destruction_wait_seconds: u64,
    /// Time between the approval of the destruction of all keys of a tenant and its beginning, in seconds. Within it the
    /// destruction can be called off; use does not keep the keys alive. Default 30 days.
    pub tenant_destruction_wait_seconds: u64,
    /// How old an attempt to generate a key pair is before what it may have left on the device is looked for, in
    /// seconds; longer than that may take. Default 30.
    pub reconcile_after_seconds: u64,
    /// Time between two writes of when versions were last used, in seconds. Default 60.
    pub last_used_interval_seconds: u64,
    /// Time between two looks at the KEK and at a sample of data keys, in seconds, 1 to 3600. Default 300.
    pub sample_interval_seconds: u64,
    /// Data keys that each look unwraps, 1 to 1000. Default 32.
    pub sample_size: usize,
}

impl KeysConfig {
    /// Errors: a sentence that names the setting.
    pub fn check(&self) -> std::result::Result<(), String> {
        let slowest = self.backend_timeout_ms.max(self.generate_timeout_ms);
        if self.reconcile_after_seconds.saturating_mul(1000) <= slowest {
            return Err(
                "keys.reconcile_after_seconds must be longer than keys.generate_timeout_ms and keys.backend_timeout_ms"
                    .into(),
            );
        }
        if !(1..=3600).contains(&self.last_used_interval_seconds) {
            return Err("keys.last_used_interval_seconds must be 1 to 3600".into());
        }
        if !(1..=3600).contains(&self.sample_interval_seconds) {
            return Err("keys.sample_interval_seconds must be 1 to 3600".into());
        }
        if !(1..=1000).contains(&self.sample_size) {
            return Err("keys.sample_size must be 1 to 1000".into());
        }
        Ok(())
    }

    /// Time between the approval of a destruction and the destruction.
    pub const fn destruction_wait(&self) -> Duration {
        Duration::from_secs(self.destruction_wait_seconds)
    }

    /// Time between the approval of the destruction of a tenant's keys and its beginning.
    pub const fn tenant_destruction_wait(&self) -> Duration {
        Duration::from_secs(self.tenant_destruction_wait_seconds)
    }
}

impl Default for KeysConfig {
    fn default() -> Self {
        Self {
            default_backend: None,
            cache_size: 10_000,
            data_key_cache_size: 10_000,
            data_key_ttl_seconds: 300,
            backend_timeout_ms: 5000,
            generate_timeout_ms: 25_000,
            destruction_wait_seconds: 7 * 24 * 60 * 60,
            tenant_destruction_wait_seconds: 30 * 24 * 60 * 60,
            reconcile_after_seconds: 30,
            last_used_interval_seconds: 60,
            sample_interval_seconds: 300,
            sample_size: 32,
        }
    }
}

/// The backends by the names that keys know them by.
pub type Backends = BTreeMap<String, Arc<dyn Backend>>;

/// Keys and what is done with them.
pub struct Keys {
    db: Db,
    backends: Backends,
    default_backend: String,
    reserved: Reserved,
    keks: Arc<Keks>,
    undecryptable: rewrap::Undecryptable,
    clock: Clock,
    config: KeysConfig,
    cache: Arc<cache::KeyCache>,
    data_keys: Arc<data_keys::DataKeys>,
    uses: uses::Uses,
    sampler: sign::Sampler,
}

/// The keys that the daemon uses itself, and callers may not.
#[derive(Clone, Debug, Default)]
pub struct Reserved {
    /// Those of tenant `system`: the one that signs checkpoints and proofs, and the one that API keys are hashed under.
    pub platform: Vec<KeyRef>,
    /// Those of every tenant: the one that its credentials are sealed by.
    pub everywhere: Vec<KeyName>,
}

/// The key a caller named, whether there is one or not.
pub struct Target {
    tenant: TenantName,
    reference: KeyRef,
    snapshot: Option<Arc<KeySnapshot>>,
}

impl Keys {
    /// Keys over these parts. `default_backend` is where key pairs are generated that name no other.
    pub fn new(
        db: Db,
        backends: Backends,
        default_backend: String,
        reserved: Reserved,
        keks: Arc<Keks>,
        clock: Clock,
        config: KeysConfig,
    ) -> Self {
        Self {
            cache: Arc::new(cache::KeyCache::new(config.cache_size)),
            data_keys: Arc::new(data_keys::DataKeys::new(
                config.data_key_cache_size,
                Duration::from_secs(config.data_key_ttl_seconds),
            )),
            uses: uses::Uses::default(),
            sampler: sign::Sampler::default(),
            db,
            backends,
            default_backend,
            reserved,
            keks,
            undecryptable: rewrap::Undecryptable::default(),
            clock,
            config,
        }
    }

    /// Who signs what they like with the daemon's own keys makes false checkpoints and proofs, who computes or compares
    /// MACs with them makes API keys, and who encrypts with them puts other ciphertexts beside those of the vault.
    ///
    /// Errors: KEY_RESERVED.
    fn expect_unreserved(&self, key: &KeySnapshot) -> Result<()> {
        let key = &key.key;
        let Reserved {
            platform,
            everywhere,
        } = &self.reserved;
        let of_platform =
            key.tenant.is_system() && platform.iter().any(|r| r.names(key.id, &key.name));
        let of_tenant = key.purpose == Purpose::Encryption && everywhere.contains(&key.name);
        if !of_platform && !of_tenant {
            return Ok(());
        }
        Err(Error::new(
            Reason::KeyReserved,
            format!(
                "key {} is the daemon's own and does nothing for callers; use another key",
                key.name
            ),
        ))
    }

    /// Looks a key up, in memory if it is there. A key that does not exist is a target too: only the gate may say
    /// so, after it has decided.
    pub async fn find(&self, tenant: &TenantName, key: &KeyRef) -> Result<Target> {
        let snapshot = self.cache.find(&self.db, tenant, key).await?;
        Ok(Target {
            tenant: tenant.clone(),
            reference: key.clone(),
            snapshot,
        })
    }

    /// The key of the tenant that has a version with this kid.
    pub async fn find_kid(
        &self,
        tenant: &TenantName,
        kid: &Kid,
    ) -> Result<Option<Arc<KeySnapshot>>> {
        self.cache.find_kid(&self.db, tenant, kid).await
    }

    /// Forgets a key after a change, here or on another replica.
    pub fn forget(&self, key: crate::model::KeyId) {
        self.cache.forget(key);
    }

    /// Forgets a key as soon as `mutation` is committed.
    pub fn forget_after(&self, mutation: &mut Mutation, key: crate::model::KeyId) {
        let cache = Arc::clone(&self.cache);
        mutation.then(move || cache.forget(key));
    }

    /// Forgets everything that is cached about keys.
    pub fn forget_all(&self) {
        self.cache.forget_all();
    }

    /// Wipes the unwrapped data keys whose time is over.
    pub fn sweep_data_keys(&self) {
        self.data_keys.sweep();
    }

    /// The key-encryption keys.
    pub const fn keks(&self) -> &Arc<Keks> {
        &self.keks
    }

    /// Forgets everything that is cached about keys as soon as `mutation` is committed.
    pub fn forget_all_after(&self, mutation: &mut Mutation) {
        let cache = Arc::clone(&self.cache);
        mutation.then(move || cache.forget_all());
    }

    /// How old an attempt to generate is before its leftovers are looked for.
    pub const fn reconcile_after(&self) -> Duration {
        Duration::from_secs(self.config.reconcile_after_seconds)
    }

    /// Counts changes; whoever derives something from many keys compares it.
    pub fn generation(&self) -> u64 {
        self.cache.generation()
    }

    fn backend(&self, name: &str) -> Result<&Arc<dyn Backend>> {
        self.backends
            .get(name)
            .ok_or_else(|| Error::internal(format!("no backend {name:?} is configured")))
    }

    /// Errors: INVALID_FIELD when no backend has this name.
    fn expect_backend(&self, name: &str) -> Result<()> {
        if self.backends.contains_key(name) {
            return Ok(());
        }
        let known: Vec<_> = self.backends.keys().map(String::as_str).collect();
        Err(Error::new(
            Reason::InvalidField,
            format!(
                "no backend of this name is configured; there is {}",
                known.join(", ")
            ),
        ))
    }

    fn generation_deadline(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.config.generate_timeout_ms)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.config.backend_timeout_ms)
    }
}

impl Target {
    /// What the gate decides about.
    pub fn resource(&self) -> Resource {
        let entity = match &self.snapshot {
            Some(found) => Entity::Key {
                id: found.key.id,
                purpose: found.key.purpose,
            },
            None => Entity::UnknownKey(self.reference.to_string()),
        };
        Resource {
            tenant: self.tenant.clone(),
            entity,
        }
    }

    /// The key. Errors: KEY_NOT_FOUND, in the very words of a refusal.
    pub fn snapshot(&self) -> Result<&Arc<KeySnapshot>> {
        self.snapshot
            .as_ref()
            .ok_or_else(|| not_found(&self.resource()))
    }
}

#[cfg(test)]
mod tests;
