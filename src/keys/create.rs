//! A new key: created in the backend, or adopted from it.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use serde_json::json;

use super::{KeySnapshot, Keys, generate::Generated};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Recorded},
    model::{
        Algorithm, IntentId, Key, KeyId, KeyName, KeyRef, KeyVersion, PrincipalId, Purpose,
        RotationMode, RotationPolicy, TenantName,
        algorithm::{RSA_BITS, RSA_BITS_DEFAULT},
        key::{MIN_ROTATION_PERIOD, Material, VersionEvent},
    },
    store::{IntentState, StoreError},
};

/// What CreateKey is asked for.
#[derive(Debug)]
pub struct CreateKey {
    /// Tenant of the new key.
    pub tenant: TenantName,
    /// Its name.
    pub name: KeyName,
    /// Its purpose.
    pub purpose: Purpose,
    /// Its algorithm.
    pub algorithm: Algorithm,
    /// RSA modulus bits; 0 for the default or another key type.
    pub rsa_bits: u32,
    /// Its owner.
    pub owner: String,
    /// None for the longest allowed.
    pub rotation_period: Option<Duration>,
    /// None for the default of the purpose; AUTOMATIC only with one approval.
    pub rotation_mode: Option<RotationMode>,
    /// None for one.
    pub approvals_needed: Option<NonZeroU32>,
    /// Keep a standby version?
    pub standby: bool,
    /// None for the default of the purpose.
    pub grace: Option<Duration>,
    /// Backend of the key pairs; None for the configured default.
    pub backend: Option<String>,
    /// Backend of standby versions; None for the key's own.
    pub standby_backend: Option<String>,
}

impl CreateKey {
    /// The policy that was asked for. Errors: as `RotationPolicy::check`.
    fn policy(&self, set_by: PrincipalId) -> Result<RotationPolicy> {
        let mut policy = RotationPolicy::of(self.purpose);
        if let Some(needed) = self.approvals_needed {
            policy.approvals_needed = needed;
            if needed > NonZeroU32::MIN {
                policy.mode = RotationMode::Manual;
            }
        }
        policy.mode = self.rotation_mode.unwrap_or(policy.mode);
        policy.grace = self.grace.unwrap_or(policy.grace);
        policy.standby = self.standby;
        policy.standby_backend = self.standby_backend.clone();
        policy.set_by = Some(set_by);
        policy.check()?;
        Ok(policy)
    }
}

/// What AdoptKey is asked for: as CreateKey, from an object that exists.
#[derive(Debug)]
pub struct AdoptKey {
    /// The key to be.
    pub key: CreateKey,
    /// RFC 7512 URI or ARN.
    pub uri: String,
}

impl Keys {
    /// Creates a key with one ACTIVE version.
    ///
    /// Errors: ALGORITHM_MISMATCH, INVALID_FIELD, TENANT_NOT_FOUND, ALREADY_EXISTS, and the backend's.
    pub async fn create(
        &self,
        permit: AdminPermit,
        request: CreateKey,
    ) -> Result<Recorded<Arc<KeySnapshot>>> {
        let key = self.draft(&request, &permit).await?;
        let generated = self.generate(&key, 1).await?;
        self.record_new(permit, key, generated, json!({ "origin": "created" }))
            .await
    }

    /// Takes over a key pair that exists in the backend.
    ///
    /// Errors: as `create`; KEY_NOT_ADOPTABLE for an object that is extractable, of another type, not there, or not
    /// the only one; ALREADY_EXISTS for a pair that is managed already.
    pub async fn adopt(
        &self,
        permit: AdminPermit,
        request: AdoptKey,
    ) -> Result<Recorded<Arc<KeySnapshot>>> {
        let mut key = self.draft(&request.key, &permit).await?;
        // The pair decides how long its modulus is; the request only says what it is for.
        let spec = match key.algorithm.is_rsa() {
            true => crate::model::KeySpec::Rsa(0),
            false => key
                .algorithm
                .key_spec(0)
                .ok_or_else(|| mismatch(key.algorithm, key.purpose))?,
        };
        let adopted = self
            .backend(&key.backend)?
            .adopt(&request.uri, spec, self.deadline())
            .await
            .map_err(not_adoptable)?;
        let intent = self.intent_of(&key, adopted.tag).await?;
        let public_key = adopted
            .public_key
            .ok_or_else(|| Error::internal("an adopted pair has no public key"))?;
        if let crate::model::KeySpec::Rsa(bits) = public_key.key_spec() {
            key.rsa_bits = bits;
        }
        let generated = Generated {
            kid: public_key.thumbprint(),
            material: Material::KeyPair {
                backend: key.backend.clone(),
                reference: adopted.reference,
                public_key,
            },
            intent,
        };
        self.record_new(permit, key, generated, json!({ "origin": "adopted" }))
            .await
    }

    /// The intent that made the pair to adopt, if one of ours did: a quarantined leftover of the same tenant may be
    /// taken over on purpose; what is in use, or another tenant's, may not.
    async fn intent_of(&self, key: &Key, tag: Option<IntentId>) -> Result<Option<IntentId>> {
        let Some(tag) = tag else { return Ok(None) };
        match self.db.intent(tag).await? {
            None => Ok(None),
            Some(intent)
                if intent.state == IntentState::Quarantined && intent.tenant == key.tenant =>
            {
                Ok(Some(tag))
            }
            Some(_) => Err(Error::new(
                Reason::KeyNotAdoptable,
                "this pair was made by claviger and is in use or not yours; only a leftover that was quarantined \
                 can be adopted, by the tenant it was made for",
            )),
        }
    }

    /// Checks the request and the names before anything is generated, because what a device generated stays.
    pub(super) async fn draft(&self, request: &CreateKey, permit: &AdminPermit) -> Result<Key> {
        let policy = request.policy(permit.caller().principal.id)?;
        if !request.algorithm.fits(request.purpose) {
            return Err(mismatch(request.algorithm, request.purpose));
        }
        let rotation_period = rotation_period(request.purpose, request.rotation_period)?;
        let rsa_bits = rsa_bits(request.algorithm, request.rsa_bits)?;
        if !self.db.tenant_exists(&request.tenant).await? {
            return Err(Error::new(
                Reason::TenantNotFound,
                "no such tenant, or none that you may see",
            ));
        }
        let name = KeyRef::Name(request.name.clone());
        if self.db.key(&request.tenant, &name).await?.is_some() {
            return Err(name_taken(&request.name));
        }
        let backend = self.backend_of(request)?;
        let now = self.clock.now();
        Ok(Key {
            id: KeyId::random(),
            tenant: request.tenant.clone(),
            name: request.name.clone(),
            purpose: request.purpose,
            algorithm: request.algorithm,
            rsa_bits,
            backend,
            owner: request.owner.clone(),
            created_at: now,
            rotation_period,
            next_rotation_at: now.plus(rotation_period),
            policy,
            revision: 1,
        })
    }

    /// The backend of a new key. Errors: INVALID_FIELD for one that is not configured, or for data keys, which live
    /// under the KEK.
    fn backend_of(&self, request: &CreateKey) -> Result<String> {
        if !request.purpose.has_pairs() {
            if request.backend.is_some() || request.standby_backend.is_some() {
                return Err(no_pairs(request.purpose));
            }
            return Ok(self.keks.active()?.backend.capabilities().name.clone());
        }
        if let Some(standby) = &request.standby_backend {
            self.expect_backend(standby)?;
        }
        let name = request.backend.as_ref().unwrap_or(&self.default_backend);
        self.expect_backend(name)?;
        Ok(name.clone())
    }

    pub(super) async fn record_new(
        &self,
        permit: AdminPermit,
        key: Key,
        generated: Generated,
        mut details: serde_json::Value,
    ) -> Result<Recorded<Arc<KeySnapshot>>> {
        let version = first_version(&key, generated.kid, generated.material)?;
        details["tenant"] = key.tenant.as_str().into();
        details["name"] = key.name.as_str().into();
        details["purpose"] = key.purpose.as_str().into();
        details["algorithm"] = key.algorithm.as_str().into();
        details["owner"] = key.owner.as_str().into();
        details["rotation_mode"] = key.policy.mode.as_str().into();
        details["approvals_needed"] = key.policy.approvals_needed.get().into();
        details["kid"] = version.kid.as_str().into();
        let mut mutation = permit.begin().await?;
        mutation.on("key", key.id);
        let tx = mutation.tx();
        tx.insert_key(&key).await.map_err(|e| taken(e, &key.name))?;
        tx.insert_version(&version).await.map_err(|e| match e {
            StoreError::Exists(_) => Error::new(
                Reason::AlreadyExists,
                "this key pair is managed already, under another key",
            ),
            other => other.into(),
        })?;
        if let Some(intent) = generated.intent
            && !tx.settle_open_intent(intent, IntentState::Done).await?
        {
            return Err(Error::new(
                Reason::Conflict,
                "somebody else adopted this leftover meanwhile",
            ));
        }
        let id = key.id;
        let snapshot = Arc::new(KeySnapshot::new(key, vec![version])?);
        self.forget_after(&mut mutation, id);
        mutation.record(snapshot, details).await
    }
}

fn first_version(key: &Key, kid: crate::model::Kid, material: Material) -> Result<KeyVersion> {
    let now = key.created_at;
    let mut version = KeyVersion::pre_active(key.id, 1, kid, material, now);
    version.announced_at = Some(now);
    version.advance(VersionEvent::Deploy, now)?;
    Ok(version)
}

/// The period to use: the one asked for, or the longest. Errors: INVALID_FIELD when out of bounds (R-LIFE-3).
pub(super) fn rotation_period(purpose: Purpose, asked: Option<Duration>) -> Result<Duration> {
    let longest = purpose.max_rotation_period();
    match asked {
        None => Ok(longest),
        Some(period) if (MIN_ROTATION_PERIOD..=longest).contains(&period) => Ok(period),
        Some(_) => Err(Error::new(
            Reason::InvalidField,
            format!(
                "rotation_period of a {purpose} key must be from 1 hour to {} days",
                longest.as_secs() / 86_400
            ),
        )),
    }
}

fn rsa_bits(algorithm: Algorithm, asked: u32) -> Result<u32> {
    match (algorithm.is_rsa(), asked) {
        (true, 0) => Ok(RSA_BITS_DEFAULT),
        (true, bits) if RSA_BITS.contains(&bits) => Ok(bits),
        (false, 0) => Ok(0),
        (true, _) => Err(Error::new(
            Reason::InvalidField,
            "rsa_bits must be 2048, 3072 or 4096",
        )),
        (false, _) => Err(Error::new(
            Reason::InvalidField,
            "rsa_bits is for RSA algorithms only",
        )),
    }
}

fn mismatch(algorithm: Algorithm, purpose: Purpose) -> Error {
    let fitting: Vec<_> = Algorithm::ALL
        .into_iter()
        .filter(|a| a.fits(purpose))
        .map(Algorithm::as_str)
        .collect();
    Error::new(
        Reason::AlgorithmMismatch,
        format!(
            "{algorithm} does not fit a {purpose} key; use {}",
            fitting.join(", ")
        ),
    )
}

/// Why a key without pairs has no backend of its own.
pub(super) fn no_pairs(purpose: Purpose) -> Error {
    Error::new(
        Reason::InvalidField,
        format!(
            "a {purpose} key has data keys, which the KEK wraps; leave backend and standby_backend out"
        ),
    )
}

fn name_taken(name: &KeyName) -> Error {
    Error::new(
        Reason::AlreadyExists,
        format!("the tenant has a key named {name} already"),
    )
}

fn taken(error: StoreError, name: &KeyName) -> Error {
    match error {
        StoreError::Exists(_) => name_taken(name),
        other => other.into(),
    }
}

fn not_adoptable(error: crate::backends::BackendError) -> Error {
    use crate::backends::BackendError as B;
    match error {
        B::Missing(_) => Error::new(
            Reason::KeyNotAdoptable,
            "the URI names no key pair in the backend, or more than one, or one that is about to be deleted",
        )
        .because(error),
        B::Suspended { ref why, .. } => {
            let text = format!("the key cannot be used: {why}");
            Error::new(Reason::KeyNotAdoptable, text).because(error)
        }
        B::Rejected(why) => Error::new(Reason::InvalidField, format!("uri: {why}")),
        other => other.into(),
    }
}
