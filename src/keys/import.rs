//! MAC keys whose secret somebody else chose: a payment provider that signs its webhooks.
//!
//! The secret is encrypted by the version's own data key before it is stored, and no call returns it. Nothing here makes
//! one up, so such a key rotates only when people bring the next secret.

use std::sync::Arc;

use aws_lc_rs::hmac;
use serde_json::json;

use super::{CreateKey, KeySnapshot, Keys, generate::Generated, mac, wrapped_keys::random};
use crate::{
    envelope,
    error::{Error, Reason, Result},
    gate::{AdminPermit, Recorded},
    model::{Key, Kid, RotationMode, RotationPolicy, Secret, key::Material},
};

/// Lengths that an imported secret may have, in bytes.
const LENGTHS: std::ops::RangeInclusive<usize> = 16..=512;
/// Length of the secret that nobody knows, in bytes.
const UNKNOWN: usize = 64;

/// A secret that may be imported: 16 to 512 bytes that are not all the same.
pub struct ImportedSecret(Secret<Vec<u8>>);

impl ImportedSecret {
    /// Takes the secret over. Errors: INVALID_FIELD, which tells nothing of the secret.
    pub fn new(secret: Secret<Vec<u8>>) -> Result<Self> {
        let bytes = secret.expose_secret();
        if !LENGTHS.contains(&bytes.len()) {
            return Err(Error::new(
                Reason::InvalidField,
                "secret must be 16 to 512 bytes",
            ));
        }
        // All zeros is what an empty buffer looks like.
        if bytes.windows(2).all(|pair| pair[0] == pair[1]) {
            return Err(Error::new(
                Reason::InvalidField,
                "secret is one byte over and over; that is a placeholder and no secret",
            ));
        }
        Ok(Self(secret))
    }
}

/// What ImportKey is asked for: as CreateKey for a MAC key, with its secret.
pub struct ImportKey {
    /// The key to be. Purpose and rotation mode are set by `import`.
    pub key: CreateKey,
    /// Its secret.
    pub secret: ImportedSecret,
}

impl Keys {
    /// Takes over a MAC secret, as a key with one ACTIVE version.
    ///
    /// Errors: as `create`.
    pub async fn import(
        &self,
        permit: AdminPermit,
        mut request: ImportKey,
    ) -> Result<Recorded<Arc<KeySnapshot>>> {
        request.key.rotation_mode = Some(RotationMode::Manual);
        let key = self.draft(&request.key, &permit).await?;
        let sealed = self.sealed(&key, request.secret).await?;
        let details = json!({ "origin": "imported" });
        self.record_new(permit, key, sealed, details).await
    }

    /// The material of the version after the newest: generated, or for an imported key made of the secret that was
    /// brought.
    ///
    /// Errors: INVALID_FIELD when a secret is missing, not wanted, or one that the key has or had; the backend's.
    pub async fn generate_next(
        &self,
        key: &KeySnapshot,
        secret: Option<ImportedSecret>,
    ) -> Result<Generated> {
        match (key.is_imported(), secret) {
            (false, None) => self.generate(&key.key, key.next_number()).await,
            (true, Some(secret)) => {
                self.refuse_known(key, &secret).await?;
                self.sealed(&key.key, secret).await
            }
            (true, None) => Err(Error::new(
                Reason::InvalidField,
                "the secret of this key was imported; give its next one in secret",
            )),
            (false, Some(_)) => Err(Error::new(
                Reason::InvalidField,
                "secret is for imported MAC keys; the daemon generates the versions of this key",
            )),
        }
    }

    /// What takes the place of a compromised version. The secret of an imported key is random then: nobody knows it, so
    /// nothing verifies until a rotation brings the secret that the other side has changed to.
    ///
    /// Errors: the backend's.
    pub async fn generate_replacement(&self, key: &KeySnapshot) -> Result<Generated> {
        match key.is_imported() {
            true => {
                let unknown = ImportedSecret(random(UNKNOWN)?);
                self.sealed(&key.key, unknown).await
            }
            false => self.generate(&key.key, key.next_number()).await,
        }
    }

    /// A version made of this secret, under a data key of its own.
    async fn sealed(&self, key: &Key, secret: ImportedSecret) -> Result<Generated> {
        let kid = Kid::random();
        let mut material = self.new_data_key(&key.tenant, key.id, &kid).await?;
        let loaded = self.data_key(&key.tenant, key.id, &kid, &material);
        let data_key = loaded.await?;
        let context = mac::context(key, &kid);
        let secret = secret.0.expose_secret();
        let sealed = envelope::seal(data_key.key(), &context, secret)?;
        if let Material::DataKey { sealed_secret, .. } = &mut material {
            *sealed_secret = Some(sealed);
        }
        Ok(Generated {
            kid,
            material,
            intent: None,
        })
    }

    /// A rotation to a secret that the key has, or had before, changes nothing for whoever knows that. HMAC pads and
    /// hashes its key, so secrets that differ may be one key: what is compared is what they compute. A version that does
    /// not open cannot be compared, and nobody can use it either.
    async fn refuse_known(&self, key: &KeySnapshot, secret: &ImportedSecret) -> Result<()> {
        const PROBE: &[u8] = b"claviger: the same secret?";
        let new = mac::hmac_key(key.key.algorithm, secret.0.expose_secret())?;
        let tag = hmac::sign(&new, PROBE);
        let known = key
            .versions()
            .iter()
            .filter(|v| v.sealed_secret().is_some());
        for version in known {
            let old = match self.mac_key(key, version).await {
                Ok(old) => old,
                // A damaged row must not keep the key from ever rotating. A device that is away can be asked again later.
                Err(error) if error.reason() == Reason::Internal => {
                    tracing::warn!(kid = %version.version.kid, ?error, "not compared with the imported secret");
                    continue;
                }
                Err(error) => return Err(error),
            };
            if hmac::verify(&old, PROBE, tag.as_ref()).is_ok() {
                return Err(Error::new(
                    Reason::InvalidField,
                    "secret is one that this key has or had; a rotation needs a new one",
                ));
            }
        }
        Ok(())
    }
}

/// Errors: ROTATION_POLICY when an imported key is to rotate by itself or to keep a standby version: the daemon cannot
/// make up a secret that the other side knows.
pub(super) fn expect_people(policy: &RotationPolicy) -> Result<()> {
    if policy.mode == RotationMode::Manual && !policy.standby {
        return Ok(());
    }
    Err(Error::new(
        Reason::RotationPolicy,
        "the secret of this key was imported, so it rotates MANUAL and keeps no standby version: the other side \
         chooses each secret",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(bytes: &[u8]) -> bool {
        ImportedSecret::new(Secret::new(bytes.to_vec())).is_ok()
    }

    #[test]
    fn a_secret_is_16_to_512_bytes_and_no_placeholder() {
        let bytes: Vec<u8> = (0..=255).cycle().take(513).collect();
        assert!(!taken(&[]));
        assert!(!taken(&bytes[..15]));
        assert!(taken(&bytes[..16]));
        assert!(taken(&bytes[..512]));
        assert!(!taken(&bytes));
        assert!(!taken(&[0; 32]));
        assert!(!taken(&[b'a'; 16]));
        let mut nearly = [0; 16];
        nearly[15] = 1;
        assert!(taken(&nearly));
    }
}
