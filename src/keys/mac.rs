//! Message authentication codes: HMAC (FIPS 198-1), always whole and compared in constant time.
//!
//! The HMAC key of a generated version is derived from the version's data key; that of an imported version is the
//! imported secret, which the data key encrypts. Neither is ever on disk in the clear, and both need the KEK only as long
//! as the data key is not in memory.

use std::sync::Arc;

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    hkdf::{HKDF_SHA512, KeyType, Prk},
    hmac,
};
use zeroize::Zeroizing;

use super::{KeySnapshot, Keys, data_keys::Unwrapped, snapshot::Version};
use crate::{
    envelope::{self, Context, Kind},
    error::{Error, Result},
    gate::Permit,
    model::{
        Action, Algorithm, Key, KeyId, Kid, Purpose, Secret, TenantName, VersionState,
        secret::DataKey,
    },
};

/// Keeps this derivation apart from every other use of a data key.
const DOMAIN: &[u8] = b"claviger mac key";

impl Keys {
    /// Computes a MAC with the ACTIVE version: 32 bytes for HS256, 64 for HS512.
    ///
    /// Errors: KEY_PURPOSE_MISMATCH, KEY_RESERVED, NO_USABLE_VERSION, KEY_COMPROMISED, and the KEK backend's for a cold data key.
    pub async fn compute_mac(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        message: &[u8],
    ) -> Result<(Vec<u8>, Kid)> {
        permit.covers_key(Action::ComputeMac, key.key.id)?;
        key.expect(Purpose::Mac, "ComputeMac")?;
        self.expect_unreserved(key)?;
        let version = key.active()?;
        let kid = &version.version.kid;
        // Superseded meanwhile is fine: what it made while it was ACTIVE stays valid.
        self.release_while(permit, key, kid, VersionState::verifies);
        let tag = hmac::sign(&*self.mac_key(key, version).await?, message);
        self.note_use(kid).made();
        Ok((tag.as_ref().to_vec(), kid.clone()))
    }

    /// Checks a MAC by any version that may verify, or by `kid` alone. The kid that verified, or None.
    ///
    /// Errors: KEY_PURPOSE_MISMATCH, KEY_RESERVED, and the KEK backend's for a cold data key.
    pub async fn verify_mac(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        kid: Option<&Kid>,
        message: &[u8],
        mac: &[u8],
    ) -> Result<Option<Kid>> {
        permit.covers_key(Action::VerifyMac, key.key.id)?;
        key.expect(Purpose::Mac, "VerifyMac")?;
        self.expect_unreserved(key)?;
        self.authentic(permit, key, kid, &[message], &[mac]).await
    }

    /// The version, newest first, under which one of the MACs is that of the parts in a row.
    pub(super) async fn authentic(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        kid: Option<&Kid>,
        parts: &[&[u8]],
        macs: &[&[u8]],
    ) -> Result<Option<Kid>> {
        let mut unknown = Ok(None);
        let versions = key.verifying();
        for version in versions.filter(|v| kid.is_none_or(|kid| v.version.kid == *kid)) {
            let expected = match self.mac_key(key, version).await {
                Ok(secret) => tag(&secret, parts),
                // Another version may still answer yes; without it nobody can answer no.
                Err(error) => {
                    unknown = Err(error);
                    continue;
                }
            };
            let same = |mac: &&[u8]| verify_slices_are_equal(expected.as_ref(), mac).is_ok();
            if macs.iter().any(same) {
                let kid = &version.version.kid;
                self.note_use(kid).opened();
                self.release_while(permit, key, kid, VersionState::verifies);
                return Ok(Some(kid.clone()));
            }
        }
        unknown
    }

    /// The HMAC key under which the daemon itself keeps the credentials of callers. No permit: it is asked before anybody
    /// is known who could have one.
    ///
    /// Errors: INTERNAL for a key that is not the platform's, or has no such version; the KEK backend's for a cold data
    /// key.
    pub async fn credential_mac(&self, key: &KeySnapshot, kid: &Kid) -> Result<Arc<hmac::Key>> {
        if !key.key.tenant.is_system() || key.key.purpose != Purpose::Mac {
            return Err(Error::internal(
                "credentials are kept under MAC keys of the platform",
            ));
        }
        let version = key
            .version(kid)
            .ok_or_else(|| Error::internal(format!("key {} has no version {kid}", key.key.name)))?;
        let secret = self.mac_key(key, version).await?;
        self.note_use(kid).opened();
        Ok(secret)
    }

    /// The HMAC key of a version.
    pub(super) async fn mac_key(
        &self,
        key: &KeySnapshot,
        version: &Version,
    ) -> Result<Arc<hmac::Key>> {
        let (row, v) = (&key.key, &version.version);
        let loaded = self.data_key(&row.tenant, row.id, &v.kid, &v.material);
        let data_key = loaded.await?;
        data_key.mac(|| match version.sealed_secret() {
            Some(sealed) => imported(row, &v.kid, &data_key, sealed),
            None => {
                let secret = derived(row.algorithm, &row.tenant, row.id, &v.kid, data_key.key())?;
                hmac_key(row.algorithm, &secret)
            }
        })
    }
}

/// What the secret of an imported version is bound to.
pub(super) fn context(key: &Key, kid: &Kid) -> Context {
    Context::of(
        Kind::MacSecret,
        &key.tenant,
        key.id,
        kid,
        &Default::default(),
    )
}

/// The HMAC key of this secret.
pub(super) fn hmac_key(algorithm: Algorithm, secret: &[u8]) -> Result<hmac::Key> {
    Ok(hmac::Key::new(hmac_algorithm(algorithm)?, secret))
}

fn tag(key: &hmac::Key, parts: &[&[u8]]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    context.sign()
}

fn imported(key: &Key, kid: &Kid, data_key: &Unwrapped, sealed: &[u8]) -> Result<hmac::Key> {
    let opened = envelope::open(data_key.key(), &context(key, kid), sealed);
    // The row is ours: a secret that does not open is no fault of the caller's.
    let secret = Secret::new(opened.map_err(Error::internal)?);
    hmac_key(key.algorithm, secret.expose_secret())
}

/// HKDF-Expand-SHA-512 (RFC 5869) from the data key, as long as the hash: what RFC 2104 recommends.
fn derived(
    algorithm: Algorithm,
    tenant: &TenantName,
    key: KeyId,
    kid: &Kid,
    data_key: &DataKey,
) -> Result<Zeroizing<Vec<u8>>> {
    let length = hmac_algorithm(algorithm)?.digest_algorithm().output_len();
    let fields = [
        DOMAIN,
        algorithm.as_str().as_bytes(),
        tenant.as_str().as_bytes(),
        key.as_bytes(),
        kid.as_str().as_bytes(),
    ];
    let mut info = Vec::with_capacity(192);
    for field in fields {
        info.extend((field.len() as u64).to_be_bytes());
        info.extend(field);
    }
    let mut secret = Zeroizing::new(vec![0; length]);
    let prk = Prk::new_less_safe(HKDF_SHA512, data_key.expose_secret());
    prk.expand(&[&info], Length(length))
        .and_then(|expanded| expanded.fill(&mut secret))
        .map_err(Error::internal)?;
    Ok(secret)
}

fn hmac_algorithm(algorithm: Algorithm) -> Result<hmac::Algorithm> {
    match algorithm {
        Algorithm::Hs256 => Ok(hmac::HMAC_SHA256),
        Algorithm::Hs512 => Ok(hmac::HMAC_SHA512),
        Algorithm::Es256
        | Algorithm::Es384
        | Algorithm::Es512
        | Algorithm::EdDsa
        | Algorithm::Ps256
        | Algorithm::Ps384
        | Algorithm::Ps512
        | Algorithm::Rs256
        | Algorithm::Rs384
        | Algorithm::Rs512
        | Algorithm::A256Gcm => Err(Error::internal(format!("{algorithm} makes no MACs"))),
    }
}

/// How much HKDF is to fill.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// Made by tests/it/vectors/make.py.
    #[derive(Deserialize)]
    struct Vector {
        algorithm: String,
        tenant: String,
        key_id: String,
        kid: String,
        key: String,
        mac_key: String,
    }

    fn unhex(text: &str) -> Vec<u8> {
        let byte = |i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex");
        (0..text.len()).step_by(2).map(byte).collect()
    }

    #[test]
    fn generated_keys_are_derived_as_another_implementation_derives_them() {
        let vectors = include_str!("../../tests/it/vectors/mac-keys.json");
        let vectors: Vec<Vector> = serde_json::from_str(vectors).expect("vectors");
        assert_eq!(vectors.len(), 2);
        for v in vectors {
            let data_key = unhex(&v.key).try_into().expect("32 bytes");
            let derived = derived(
                v.algorithm.parse().expect("an algorithm"),
                &v.tenant.parse().expect("a tenant"),
                v.key_id.parse().expect("an id"),
                &v.kid.parse().expect("a kid"),
                &Secret::new(data_key),
            );
            assert_eq!(*derived.expect("derived"), unhex(&v.mac_key));
        }
    }
}
