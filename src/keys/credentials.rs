//! Sealing the secrets of credentials for the vault, under the tenant's key that nothing else may be done with.
//!
//! The permit is one for the credential itself, which `vault` got from the gate: no caller is ever permitted to use this
//! key. A kind of its own keeps these ciphertexts apart from what Encrypt makes, whatever the policies say.

use std::sync::Arc;

use super::{
    KeySnapshot, Keys,
    encrypt::{Aad, version_named},
};
use crate::{
    envelope::{self, EnvelopeError, Kind},
    error::{Error, Result},
    model::{KeyName, KeyRef, Kid, Purpose, Secret, TenantName, VersionState},
};

impl Keys {
    /// The key of a tenant that its credentials are sealed by, as the database has it now; None when there is none yet.
    ///
    /// Errors: KEY_PURPOSE_MISMATCH when a key of another kind has the name.
    pub async fn credential_key(
        &self,
        tenant: &TenantName,
        name: &KeyName,
    ) -> Result<Option<Arc<KeySnapshot>>> {
        let reference = KeyRef::Name(name.clone());
        let found = self.find(tenant, &reference).await?;
        let Ok(found) = found.snapshot() else {
            return Ok(None);
        };
        found.expect(Purpose::Encryption, "the vault")?;
        Ok(Some(Arc::clone(found)))
    }

    /// Seals a secret under the ACTIVE version. Returns the ciphertext and the version's kid.
    ///
    /// Errors: NO_USABLE_VERSION, KEY_COMPROMISED, and the KEK backend's for a cold data key.
    pub async fn seal_credential(
        &self,
        key: &KeySnapshot,
        secret: &Secret<Vec<u8>>,
        binding: &Aad,
    ) -> Result<(Vec<u8>, Kid)> {
        let version = key.active()?;
        let secret = secret.expose_secret();
        let sealed = self.seal(Kind::Credential, key, version, secret, binding);
        Ok((sealed.await?, version.version.kid.clone()))
    }

    /// Opens what `seal_credential` made. `allows` says what may be done with a version: decrypting for a caller, or
    /// moving to another one.
    ///
    /// Errors: CIPHERTEXT_INVALID when it was changed, or belongs to another row; NO_USABLE_VERSION; the KEK backend's.
    pub async fn open_credential(
        &self,
        tenant: &TenantName,
        ciphertext: &[u8],
        binding: &Aad,
        allows: fn(VersionState) -> bool,
    ) -> Result<Secret<Vec<u8>>> {
        let header = envelope::header(ciphertext)?;
        if header.kind != Kind::Credential {
            return Err(EnvelopeError::OtherKind.into());
        }
        // By the kid and not by the configured name: that may have been another one when this was sealed.
        let key = self.find_kid(tenant, &header.kid).await?;
        let key = key.ok_or_else(|| Error::from(EnvelopeError::OtherVersion))?;
        let version = version_named(&key, &header, allows)?;
        let opened = self.unseal(Kind::Credential, &key, version, ciphertext, binding);
        let (secret, uses) = opened.await?;
        uses.opened();
        Ok(Secret::new(secret))
    }
}
