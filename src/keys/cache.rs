//! Key snapshots in memory, bounded, loaded on demand.
//!
//! A load that began before a change must not be kept after it, not for a moment: the generation is read before the
//! rows and compared, under the lock that forgetting takes too, when the snapshot is kept. So a snapshot that is here is
//! as true as the change feed (R-EMER-3).

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use quick_cache::sync::Cache;

use super::KeySnapshot;
use crate::{
    error::Result,
    model::{KeyId, KeyRef, Kid, TenantName},
    store::Db,
};

/// Snapshots by id, and ids by the references callers use.
pub struct KeyCache {
    /// Names never change and ids are never reused, so this needs no forgetting.
    ids: Cache<(TenantName, KeyRef), KeyId>,
    /// A kid is a version of one key for ever.
    kids: Cache<Kid, KeyId>,
    snapshots: Cache<KeyId, Arc<KeySnapshot>>,
    generation: AtomicU64,
    /// Held by whoever keeps or forgets; never across a wait.
    change: Mutex<()>,
}

impl KeyCache {
    /// A cache of at most `capacity` keys.
    pub fn new(capacity: usize) -> Self {
        Self {
            ids: Cache::new(capacity),
            kids: Cache::new(capacity),
            snapshots: Cache::new(capacity),
            generation: AtomicU64::new(0),
            change: Mutex::new(()),
        }
    }

    /// The key, from memory or from the database; None when the tenant has no such key.
    pub async fn find(
        &self,
        db: &Db,
        tenant: &TenantName,
        key: &KeyRef,
    ) -> Result<Option<Arc<KeySnapshot>>> {
        let name = (tenant.clone(), key.clone());
        // Only a key that the tenant owns is ever entered under its name, so a hit needs no further check.
        if let Some(found) = self.ids.get(&name).and_then(|id| self.snapshots.get(&id)) {
            return Ok(Some(found));
        }
        metrics::counter!("claviger_cache_loads_total", "cache" => "keys").increment(1);
        let generation = self.generation();
        let Some(row) = db.key(tenant, key).await? else {
            return Ok(None);
        };
        let versions = db.versions(row.id).await?;
        let snapshot = Arc::new(KeySnapshot::new(row, versions)?);
        let id = snapshot.key.id;
        self.ids.insert(name, id);
        self.keep(id, &snapshot, generation);
        Ok(Some(snapshot))
    }

    fn keep(&self, id: KeyId, snapshot: &Arc<KeySnapshot>, generation: u64) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        if self.generation() == generation {
            self.snapshots.insert(id, Arc::clone(snapshot));
        }
    }

    /// Is this the picture of the key that is held, so that nothing has happened to the key since?
    pub fn holds(&self, id: KeyId, identity: &Arc<()>) -> bool {
        let held = self.snapshots.peek(&id);
        held.is_some_and(|held| Arc::ptr_eq(held.identity(), identity))
    }

    /// The key of the tenant that has this kid, from memory or from the database.
    pub async fn find_kid(
        &self,
        db: &Db,
        tenant: &TenantName,
        kid: &Kid,
    ) -> Result<Option<Arc<KeySnapshot>>> {
        let id = match self.kids.get(kid) {
            Some(id) => id,
            None => match self.load_kid(db, kid).await? {
                Some(id) => {
                    self.kids.insert(kid.clone(), id);
                    id
                }
                None => return Ok(None),
            },
        };
        self.find(db, tenant, &KeyRef::Id(id)).await
    }

    async fn load_kid(&self, db: &Db, kid: &Kid) -> Result<Option<KeyId>> {
        metrics::counter!("claviger_cache_loads_total", "cache" => "kids").increment(1);
        Ok(db.key_of_kid(kid).await?)
    }

    /// Forgets one key.
    pub fn forget(&self, key: KeyId) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.snapshots.remove(&key);
    }

    /// Forgets every key.
    pub fn forget_all(&self) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.snapshots.clear();
    }

    /// Counts changes.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }
}
