//! R3: tenants, principals and their roles; and who an identity authenticates as.
//!
//! Principals are read on every call, so they are cached by identity, bounded, and forgotten as a whole after any
//! change to one of them. Nobody changes their own roles; a role in every tenant is for the platform's own people.

mod bootstrap;
mod change;
mod update;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use quick_cache::sync::Cache;

pub use bootstrap::BootstrapConfig;
pub use change::{CreatePrincipal, RoleChange};
pub use update::{StateChange, UpdatePrincipal};

use crate::{
    clock::Clock,
    error::Result,
    gate::{Mutation, Permit},
    model::{Entity, Identity, Principal, PrincipalId, Resource, TenantName, Timestamp},
    store::Db,
};

/// Principals held in memory at most.
const CACHE: usize = 10_000;

/// Tenants and principals.
pub struct Directory {
    db: Db,
    clock: Clock,
    known: Arc<Known>,
}

/// What is cached.
struct Known {
    by_identity: Cache<Identity, Arc<Principal>>,
    by_id: Cache<PrincipalId, Arc<Principal>>,
    generation: AtomicU64,
}

impl Known {
    fn forget(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.by_identity.clear();
        self.by_id.clear();
    }
}

impl Directory {
    /// A directory over this database.
    pub fn new(db: Db, clock: Clock) -> Self {
        Self {
            db,
            clock,
            known: Arc::new(Known {
                by_identity: Cache::new(CACHE),
                by_id: Cache::new(CACHE),
                generation: AtomicU64::new(0),
            }),
        }
    }

    /// Who this identity authenticates as, from memory if it is there.
    pub async fn authenticate(&self, identity: &Identity) -> Result<Option<Arc<Principal>>> {
        let known = &self.known;
        if let Some(found) = known.by_identity.get(identity) {
            return Ok(Some(found));
        }
        metrics::counter!("claviger_cache_loads_total", "cache" => "principals").increment(1);
        let generation = known.generation.load(Ordering::SeqCst);
        let Some(principal) = self.db.principal_by_identity(identity).await? else {
            return Ok(None);
        };
        let principal = Arc::new(principal);
        known
            .by_identity
            .insert(identity.clone(), Arc::clone(&principal));
        // A change while we were reading may have made what we read old.
        if known.generation.load(Ordering::SeqCst) != generation {
            known.by_identity.remove(identity);
        }
        Ok(Some(principal))
    }

    /// The principal with this id, from memory if it is there: for credentials that name their owner.
    pub async fn principal(&self, id: PrincipalId) -> Result<Option<Arc<Principal>>> {
        let known = &self.known;
        if let Some(found) = known.by_id.get(&id) {
            return Ok(Some(found));
        }
        metrics::counter!("claviger_cache_loads_total", "cache" => "principals").increment(1);
        let generation = known.generation.load(Ordering::SeqCst);
        let Some(principal) = self.db.principal(id).await? else {
            return Ok(None);
        };
        let principal = Arc::new(principal);
        known.by_id.insert(id, Arc::clone(&principal));
        // As in `authenticate`.
        if known.generation.load(Ordering::SeqCst) != generation {
            known.by_id.remove(&id);
        }
        Ok(Some(principal))
    }

    /// Forgets all principals after a change, here or on another replica.
    pub fn forget(&self) {
        self.known.forget();
    }

    /// Forgets all principals as soon as `mutation` is committed.
    fn forget_after(&self, mutation: &mut Mutation) {
        let known = Arc::clone(&self.known);
        mutation.then(move || known.forget());
    }

    /// The principal with this id, and the resource that the gate decides about: its home tenant's, or, for an
    /// id nobody has, the platform's.
    pub async fn find(&self, id: PrincipalId) -> Result<(Resource, Option<Principal>)> {
        let found = self.db.principal(id).await?;
        let tenant = found
            .as_ref()
            .map_or_else(TenantName::system, |p| p.tenant.clone());
        let entity = match found {
            Some(_) => Entity::Principal(id),
            None => Entity::UnknownPrincipal(id),
        };
        Ok((Resource { tenant, entity }, found))
    }

    /// Up to `limit` tenants after `after`, by name.
    pub async fn tenants(
        &self,
        _permit: &Permit,
        after: &str,
        limit: i64,
    ) -> Result<Vec<(TenantName, Timestamp)>> {
        Ok(self.db.tenants(after, limit).await?)
    }

    /// Up to `limit` principals of a tenant after `after`, oldest first.
    pub async fn principals(
        &self,
        _permit: &Permit,
        tenant: &TenantName,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Principal>> {
        Ok(self.db.principals(tenant, after, limit).await?)
    }
}
