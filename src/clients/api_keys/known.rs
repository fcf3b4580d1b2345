//! Rows of API keys in memory, bounded, so that a use costs no read.
//!
//! As with key snapshots, a load that began before a change must not be kept after it: the generation is read before the
//! row and compared, under the lock that forgetting takes too, when the row is kept.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use quick_cache::sync::Cache;

use crate::{
    error::Result,
    model::{ApiKeyId, ClientState},
    store::{Db, StoredApiKey},
};

/// Keys held in memory at most; about 600 bytes each.
const CAPACITY: usize = 10_000;

/// A key as its use needs it.
pub struct KnownKey {
    /// The row.
    pub key: Arc<crate::model::ApiKey>,
    /// State of the client whose secret it is.
    pub client: Option<ClientState>,
}

/// What is cached.
pub struct Known {
    rows: Cache<ApiKeyId, Arc<KnownKey>>,
    generation: AtomicU64,
    /// Held by whoever keeps or forgets; never across a wait.
    change: Mutex<()>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            rows: Cache::new(CAPACITY),
            generation: AtomicU64::new(0),
            change: Mutex::new(()),
        }
    }
}

impl Known {
    /// The key in memory.
    pub fn get(&self, id: ApiKeyId) -> Option<Arc<KnownKey>> {
        self.rows.get(&id)
    }

    /// The key in the database. An id that nobody has is not remembered: there is no end of them.
    pub async fn load(&self, db: &Db, id: ApiKeyId) -> Result<Option<Arc<KnownKey>>> {
        metrics::counter!("claviger_cache_loads_total", "cache" => "api_keys").increment(1);
        let generation = self.generation.load(Ordering::SeqCst);
        let Some(StoredApiKey { key, client }) = db.api_key(id).await? else {
            return Ok(None);
        };
        let key = Arc::new(key);
        let loaded = Arc::new(KnownKey { key, client });
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        if self.generation.load(Ordering::SeqCst) == generation {
            self.rows.insert(id, Arc::clone(&loaded));
        }
        Ok(Some(loaded))
    }

    /// Forgets one key.
    pub fn forget(&self, id: ApiKeyId) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.rows.remove(&id);
    }

    /// Forgets every key.
    pub fn forget_all(&self) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.rows.clear();
    }
}
