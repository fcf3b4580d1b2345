//! Data keys: made here, wrapped by the KEK, unwrapped for a bounded time.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::{hmac, rand};
use quick_cache::sync::Cache;
use tokio::time::Instant;

use super::{Keys, keks::Kek};
use crate::{
    backends::BackendError,
    error::{Error, Result},
    model::{KeyId, Kid, Secret, TenantName, key::Material, secret::DataKey},
    store::WrappedKey,
};

/// Unwrapped data keys in memory: bounded, wiped on drop, gone `ttl` after they were unwrapped however often used.
pub struct DataKeys {
    cache: Cache<Kid, Arc<Unwrapped>>,
    /// Counts what was forgotten on purpose: an unwrapping that began before must not be kept after it.
    forgotten: AtomicU64,
    ttl: Duration,
}

/// An unwrapped data key and when it must be forgotten.
pub struct Unwrapped {
    key: DataKey,
    /// The MAC secret that comes from it, once somebody needed it: wiped with the data key.
    mac: OnceLock<Arc<hmac::Key>>,
    until: Instant,
}

impl Unwrapped {
    /// The key.
    pub const fn key(&self) -> &DataKey {
        &self.key
    }

    /// The MAC secret that comes from it: from memory, or made by `make`.
    pub(super) fn mac(&self, make: impl FnOnce() -> Result<hmac::Key>) -> Result<Arc<hmac::Key>> {
        if let Some(made) = self.mac.get() {
            return Ok(Arc::clone(made));
        }
        let made = Arc::new(make()?);
        Ok(Arc::clone(self.mac.get_or_init(|| made)))
    }
}

impl DataKeys {
    /// A cache of at most `capacity` data keys.
    pub fn new(capacity: usize, ttl: Duration) -> Self {
        Self {
            cache: Cache::new(capacity),
            forgotten: AtomicU64::new(0),
            ttl,
        }
    }

    /// The data key, from memory or unwrapped by `unwrap`; concurrent callers share one unwrapping.
    async fn get<F>(&self, kid: &Kid, unwrap: F) -> Result<Arc<Unwrapped>>
    where
        F: Future<Output = Result<DataKey>>,
    {
        let now = Instant::now();
        if let Some(held) = self.cache.get(kid)
            && held.until > now
        {
            return Ok(held);
        }
        self.cache.remove_if(kid, |held| held.until <= now);
        let forgotten = self.forgotten.load(Ordering::SeqCst);
        let held = self
            .cache
            .get_or_insert_async(kid, async {
                metrics::counter!("claviger_cache_loads_total", "cache" => "data_keys")
                    .increment(1);
                let key = unwrap.await?;
                Ok(Arc::new(Unwrapped {
                    key,
                    mac: OnceLock::new(),
                    until: Instant::now() + self.ttl,
                }))
            })
            .await;
        if self.forgotten.load(Ordering::SeqCst) != forgotten {
            self.cache.remove(kid);
        }
        self.report();
        held
    }

    /// Wipes every data key whose time is over, also those that nobody asks for any more.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.cache.retain(|_, held| held.until > now);
        self.report();
    }

    /// Wipes the data key of a version, once the calls that hold it have ended.
    pub fn forget(&self, kid: &Kid) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        self.cache.remove(kid);
        self.report();
    }

    fn report(&self) {
        metrics::gauge!("claviger_data_keys_held").set(self.cache.len() as f64);
    }
}

impl Keys {
    /// Makes a data key and wraps it. The plain key is wiped when this returns.
    pub(super) async fn new_data_key(
        &self,
        tenant: &TenantName,
        key: KeyId,
        kid: &Kid,
    ) -> Result<Material> {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).map_err(Error::internal)?;
        let plain = Secret::new(bytes);
        let Kek { backend, reference } = self.keks.active()?;
        let wrapped = backend
            .wrap(
                &reference,
                &plain,
                &binding(tenant, key, kid),
                self.deadline(),
            )
            .await?;
        Ok(Material::DataKey {
            kek: reference,
            wrapped,
            sealed_secret: None,
        })
    }

    /// The plain data key of a version. Errors: the KEK or its backend is unavailable; INTERNAL when the row does
    /// not unwrap, which is an alert for operators and nothing a caller can mend.
    pub(super) async fn data_key(
        &self,
        tenant: &TenantName,
        key: KeyId,
        kid: &Kid,
        material: &Material,
    ) -> Result<Arc<Unwrapped>> {
        let Material::DataKey { kek, wrapped, .. } = material else {
            return Err(Error::internal(format!("version {kid} has no data key")));
        };
        let unwrap = async {
            let row = WrappedKey {
                kid: kid.clone(),
                key,
                tenant: tenant.clone(),
                kek: kek.clone(),
                wrapped: wrapped.clone(),
            };
            self.unwrap_data_key(row).await
        };
        self.data_keys.get(kid, unwrap).await
    }

    /// Unwraps a data key. The caller may have read it before it was rewrapped, and the KEK that it names may be gone, or
    /// its device away: the row is read again before anybody is told so.
    async fn unwrap_data_key(&self, row: WrappedKey) -> Result<DataKey> {
        let error = match self.unwrap_once(&row).await {
            Ok(key) => return Ok(key),
            Err(error) => error,
        };
        match self.db.wrapped_key(&row.kid).await {
            Ok(Some(now)) if now.kek != row.kek => self.unwrap_once(&now).await,
            // Whatever this says, the first failure is what the caller is to hear.
            Ok(_) | Err(_) => Err(error),
        }
    }

    async fn unwrap_once(&self, row: &WrappedKey) -> Result<DataKey> {
        let kek = self.known(&row.kek).await?;
        let aad = binding(&row.tenant, row.key, &row.kid);
        let unwrapped = kek
            .backend
            .unwrap(&row.kek, &row.wrapped, &aad, self.deadline());
        unwrapped.await.map_err(|error| {
            if let BackendError::Rejected(_) = &error {
                let (tenant, key, kid) = (&row.tenant, row.key, &row.kid);
                tracing::error!(%tenant, %key, %kid, "data key does not unwrap under its KEK");
                metrics::counter!("claviger_data_key_undecryptable_total").increment(1);
            }
            error.into()
        })
    }
}

/// What a wrapped data key is bound to: domain, tenant, key and version, each preceded by its length.
pub fn binding(tenant: &TenantName, key: KeyId, kid: &Kid) -> Vec<u8> {
    let mut aad = Vec::with_capacity(128);
    let id = key.to_string();
    for part in ["claviger.data-key.v1", tenant.as_str(), &id, kid.as_str()] {
        aad.extend((part.len() as u32).to_be_bytes());
        aad.extend(part.as_bytes());
    }
    aad
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(300);

    /// Asks for the data key, and counts when it has to be unwrapped.
    async fn load(keys: &DataKeys, kid: &Kid, loads: &AtomicU64) {
        let unwrap = async {
            loads.fetch_add(1, Ordering::SeqCst);
            Ok(Secret::new([7; 32]))
        };
        assert!(keys.get(kid, unwrap).await.is_ok());
    }

    #[tokio::test]
    async fn a_forgotten_data_key_is_unwrapped_again() {
        let (keys, kid, loads) = (DataKeys::new(8, TTL), Kid::random(), AtomicU64::new(0));
        load(&keys, &kid, &loads).await;
        load(&keys, &kid, &loads).await;
        assert_eq!(loads.load(Ordering::SeqCst), 1);
        keys.forget(&kid);
        load(&keys, &kid, &loads).await;
        assert_eq!(loads.load(Ordering::SeqCst), 2);
    }

    /// R-ENV-2: the time is absolute, and nobody need ask for a key to have it wiped.
    #[tokio::test(start_paused = true)]
    async fn a_data_key_that_nobody_asks_for_again_is_wiped_when_its_time_is_over() {
        let (keys, loads) = (DataKeys::new(8, TTL), AtomicU64::new(0));
        let (old, young) = (Kid::random(), Kid::random());
        load(&keys, &old, &loads).await;
        let held = keys.cache.peek(&old).map(|held| Arc::downgrade(&held));
        tokio::time::advance(TTL / 2).await;
        load(&keys, &young, &loads).await;
        // Use does not keep it.
        load(&keys, &old, &loads).await;
        keys.sweep();
        assert_eq!(keys.cache.len(), 2, "not before its time");
        tokio::time::advance(TTL / 2).await;
        keys.sweep();
        assert!(keys.cache.peek(&old).is_none() && keys.cache.peek(&young).is_some());
        assert!(held.unwrap().upgrade().is_none(), "dropped, so wiped");
        assert_eq!(loads.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_mac_secret_is_made_once_and_goes_with_its_data_key() {
        let (keys, kid, loads) = (DataKeys::new(8, TTL), Kid::random(), AtomicU64::new(0));
        load(&keys, &kid, &loads).await;
        let held = keys.cache.peek(&kid).unwrap();
        let refuse = || Err(Error::internal("it is there already"));
        assert!(held.mac(refuse).is_err(), "a failure is not kept");
        let make = || Ok(hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]));
        let first = Arc::downgrade(&held.mac(make).unwrap());
        let second = Arc::downgrade(&held.mac(refuse).unwrap());
        assert!(first.ptr_eq(&second));
        drop(held);
        keys.forget(&kid);
        assert!(first.upgrade().is_none(), "dropped, so wiped");
    }

    #[tokio::test]
    async fn what_was_being_unwrapped_when_it_was_forgotten_is_not_kept() {
        let (keys, kid, loads) = (DataKeys::new(8, TTL), Kid::random(), AtomicU64::new(0));
        let unwrap = async {
            keys.forget(&kid);
            Ok(Secret::new([7; 32]))
        };
        assert!(keys.get(&kid, unwrap).await.is_ok());
        load(&keys, &kid, &loads).await;
        assert_eq!(loads.load(Ordering::SeqCst), 1, "it was not in memory");
    }
}
