//! A standby version: generated and announced ahead of time, so that a compromise needs neither the device nor a soak.
//!
//! The scheduler keeps one per key whose policy wants it. It signs nothing before an incident makes it ACTIVE.

use std::sync::Arc;

use serde_json::json;

use super::{KeySnapshot, Keys, expect_no_credentials};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Recorded},
    model::{
        Key, KeyId, KeyRef, KeyVersion, Kid, TenantName, VersionState,
        key::{Material, VersionEvent},
    },
    store::{IntentState, StoreError, Term},
};

impl Keys {
    /// The key as the database has it now: a decision about its versions must not rest on a cache.
    ///
    /// Errors: KEY_NOT_FOUND.
    pub async fn fresh(&self, tenant: &TenantName, key: KeyId) -> Result<Arc<KeySnapshot>> {
        self.forget(key);
        let target = self.find(tenant, &KeyRef::Id(key)).await?;
        target.snapshot().cloned()
    }

    /// Does the device answer that would generate this key's standby version?
    ///
    /// Errors: BACKEND_UNAVAILABLE, and the backend's others.
    pub async fn expect_device(&self, key: &KeySnapshot) -> Result<()> {
        let backend = self.backend(standby_backend(&key.key))?;
        Ok(backend.ready(self.deadline()).await?)
    }

    /// Keys that need a standby version.
    pub async fn without_standby(&self) -> Result<Vec<(KeyId, TenantName)>> {
        Ok(self.db.keys_without_standby().await?)
    }

    /// Keys whose standby version nobody wants any more.
    pub async fn with_unwanted_standby(&self) -> Result<Vec<(KeyId, TenantName)>> {
        Ok(self.db.keys_with_unwanted_standby().await?)
    }

    /// Generates a standby version and announces it.
    ///
    /// Errors: CONFLICT when the key has one, does not want one or has no ACTIVE version any more; LEASE_LOST; the
    /// backend's.
    pub async fn keep_standby(
        &self,
        permit: AdminPermit,
        term: Term,
        key: Arc<KeySnapshot>,
    ) -> Result<Recorded<Kid>> {
        let key = self.fresh(&key.key.tenant, key.key.id).await?;
        if !key.key.policy.standby || standby(&key).is_some() || key.active().is_err() {
            return Err(changed());
        }
        let number = key.next_number();
        let backend = standby_backend(&key.key);
        let generated = self.generate_in(&key.key, number, backend).await?;
        let now = self.clock.now();
        let (kid, id) = (generated.kid.clone(), key.key.id);
        let mut version =
            KeyVersion::pre_active(id, number, generated.kid, generated.material, now);
        version.announced_at = Some(now);
        version.is_standby = true;
        let mut mutation = permit.begin_on_in(key.key.id, &term).await?;
        let tx = mutation.tx();
        if !tx.hold_key(&key.key).await? {
            return Err(changed());
        }
        tx.insert_version(&version).await.map_err(|e| match e {
            StoreError::Exists(_) => changed(),
            other => other.into(),
        })?;
        if let Some(intent) = generated.intent {
            tx.settle_intent(intent, IntentState::Done).await?;
        }
        self.forget_after(&mut mutation, id);
        let details =
            json!({ "key_id": id.to_string(), "kid": kid.as_str(), "standby": "announced" });
        mutation.record(kid, details).await
    }

    /// Withdraws the standby version of a key whose policy does not want one, or wants it in another backend.
    ///
    /// Errors: CONFLICT when there is none, or it is wanted as it is; LEASE_LOST.
    pub async fn withdraw_standby(
        &self,
        permit: AdminPermit,
        term: Term,
        key: Arc<KeySnapshot>,
    ) -> Result<Recorded<Kid>> {
        let key = self.fresh(&key.key.tenant, key.key.id).await?;
        let (id, found) = (key.key.id, standby(&key).cloned());
        let unwanted =
            |version: &KeyVersion| !key.key.policy.standby || is_elsewhere(&key.key, version);
        let Some(mut version) = found.filter(unwanted) else {
            return Err(changed());
        };
        let before = version.advance(VersionEvent::Withdraw, self.clock.now())?;
        let mut mutation = permit.begin_on_in(key.key.id, &term).await?;
        let tx = mutation.tx();
        if !tx.hold_key(&key.key).await? || !tx.update_version(&version, before).await? {
            return Err(changed());
        }
        self.forget_after(&mut mutation, id);
        let kid = version.kid;
        let details =
            json!({ "key_id": id.to_string(), "kid": kid.as_str(), "standby": "withdrawn" });
        mutation.record(kid, details).await
    }

    /// Retires a version whose grace window is over and that no rotation will retire.
    ///
    /// Errors: VERSION_STATE, CONFLICT while its grace window is open, VERSION_IN_USE, LEASE_LOST.
    pub async fn retire(
        &self,
        permit: AdminPermit,
        term: Term,
        key: Arc<KeySnapshot>,
        kid: Kid,
        skew: std::time::Duration,
    ) -> Result<Recorded<Kid>> {
        let key = self.fresh(&key.key.tenant, key.key.id).await?;
        let now = self.clock.now();
        let found = key.version(&kid).map(|v| v.version.clone());
        let mut version = found.ok_or_else(changed)?;
        let over = version.grace_ends_at(key.key.policy.grace, skew);
        if over.is_none_or(|over| now < over) {
            return Err(changed());
        }
        let before = version.advance(VersionEvent::GraceOver, now)?;
        let mut mutation = permit.begin_on_in(key.key.id, &term).await?;
        expect_no_credentials(mutation.tx(), &kid).await?;
        if !mutation.tx().update_version(&version, before).await? {
            return Err(changed());
        }
        self.forget_after(&mut mutation, key.key.id);
        let details = json!({ "key_id": key.key.id.to_string(), "kid": kid.as_str() });
        mutation.record(kid, details).await
    }
}

/// Where the standby version of a key is kept.
fn standby_backend(key: &Key) -> &str {
    let chosen = key.policy.standby_backend.as_ref();
    chosen.unwrap_or(&key.backend)
}

/// Is the pair of this standby version in another backend than the key wants it in by now?
fn is_elsewhere(key: &Key, standby: &KeyVersion) -> bool {
    match &standby.material {
        Material::KeyPair { backend, .. } => backend != standby_backend(key),
        Material::DataKey { .. } | Material::Shredded { .. } => false,
    }
}

/// The standby version that is kept.
fn standby(key: &KeySnapshot) -> Option<&KeyVersion> {
    let mut versions = key.versions().iter().map(|v| &v.version);
    versions.find(|v| v.is_standby && v.state == VersionState::PreActive)
}

fn changed() -> Error {
    Error::new(
        Reason::Conflict,
        "the key was changed meanwhile; the scheduler looks at it again",
    )
}
