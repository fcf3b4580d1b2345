//! Encrypting, decrypting and rewrapping under data keys.

use std::collections::BTreeMap;

use super::{KeySnapshot, Keys, data_keys::Unwrapped, snapshot::Version};
use crate::{
    envelope::{self, Context, EnvelopeError},
    error::{Error, Reason, Result},
    gate::Permit,
    model::{Action, Kid, Purpose, VersionState},
};

/// Additional authenticated data, by name.
pub type Aad = BTreeMap<String, String>;

impl Keys {
    /// Encrypts under the ACTIVE version. Returns the ciphertext and the version's kid.
    ///
    /// Errors: KEY_PURPOSE_MISMATCH, NO_USABLE_VERSION, and the KEK backend's for a cold data key.
    pub async fn encrypt(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        plaintext: &[u8],
        aad: &Aad,
    ) -> Result<(Vec<u8>, Kid)> {
        permit.covers_key(Action::Encrypt, key.key.id)?;
        key.expect(Purpose::Encryption, "Encrypt")?;
        let version = key.active()?;
        self.release_while(permit, key, &version.version.kid, VersionState::decrypts);
        let ciphertext = self.seal(key, version, plaintext, aad).await?;
        Ok((ciphertext, version.version.kid.clone()))
    }

    /// Decrypts what `encrypt` made. Returns the plaintext and the kid it was under.
    ///
    /// Errors: CIPHERTEXT_INVALID, one and the same for everything that can be wrong with a ciphertext or its AAD.
    pub async fn decrypt(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        ciphertext: &[u8],
        aad: &Aad,
    ) -> Result<(Vec<u8>, Kid)> {
        permit.covers_key(Action::Decrypt, key.key.id)?;
        key.expect(Purpose::Encryption, "Decrypt")?;
        let version = version_of(key, ciphertext, VersionState::decrypts)?;
        self.release_while(permit, key, &version.version.kid, VersionState::decrypts);
        let plaintext = self.unseal(key, version, ciphertext, aad).await?;
        Ok((plaintext, version.version.kid.clone()))
    }

    /// Moves a ciphertext to the ACTIVE version; one that is there already comes back as it is, once it has been
    /// authenticated. Returns it with the new and the old kid.
    ///
    /// Errors: as `decrypt` and `encrypt`.
    pub async fn rewrap(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        ciphertext: &[u8],
        aad: &Aad,
    ) -> Result<(Vec<u8>, Kid, Kid)> {
        permit.covers_key(Action::Rewrap, key.key.id)?;
        key.expect(Purpose::Encryption, "Rewrap")?;
        let old = version_of(key, ciphertext, VersionState::rewraps)?;
        let new = key.active()?;
        self.release_while(permit, key, &new.version.kid, VersionState::decrypts);
        let plaintext = crate::model::Secret::new(self.unseal(key, old, ciphertext, aad).await?);
        let (old_kid, new_kid) = (old.version.kid.clone(), new.version.kid.clone());
        if old_kid == new_kid {
            return Ok((ciphertext.to_vec(), new_kid, old_kid));
        }
        let moved = self.seal(key, new, plaintext.expose_secret(), aad).await?;
        Ok((moved, new_kid, old_kid))
    }

    async fn seal(
        &self,
        key: &KeySnapshot,
        version: &Version,
        plaintext: &[u8],
        aad: &Aad,
    ) -> Result<Vec<u8>> {
        let data_key = self.unwrapped(key, version).await?;
        let context = context(key, version, aad);
        Ok(envelope::seal(data_key.key(), &context, plaintext)?)
    }

    async fn unseal(
        &self,
        key: &KeySnapshot,
        version: &Version,
        ciphertext: &[u8],
        aad: &Aad,
    ) -> Result<Vec<u8>> {
        let data_key = self.unwrapped(key, version).await?;
        let context = context(key, version, aad);
        Ok(envelope::open(data_key.key(), &context, ciphertext)?)
    }

    pub(super) async fn unwrapped(
        &self,
        key: &KeySnapshot,
        version: &Version,
    ) -> Result<std::sync::Arc<Unwrapped>> {
        let v = &version.version;
        self.note_use(&v.kid);
        self.data_key(&key.key.tenant, key.key.id, &v.kid, &v.material)
            .await
    }
}

pub(super) fn context(key: &KeySnapshot, version: &Version, aad: &Aad) -> Context {
    Context::new(&key.key.tenant, key.key.id, &version.version.kid, aad)
}

/// The version that a ciphertext names, if its state allows. A kid of another key is a foreign ciphertext.
fn version_of<'a>(
    key: &'a KeySnapshot,
    ciphertext: &[u8],
    allows: fn(VersionState) -> bool,
) -> Result<&'a Version> {
    version_named(key, &envelope::header(ciphertext)?, allows)
}

/// As `version_of`, for a header that was read already.
pub(super) fn version_named<'a>(
    key: &'a KeySnapshot,
    header: &envelope::Header,
    allows: fn(VersionState) -> bool,
) -> Result<&'a Version> {
    let version = key
        .version(&header.kid)
        .ok_or(EnvelopeError::OtherVersion)?;
    if allows(version.state()) {
        return Ok(version);
    }
    Err(Error::new(
        Reason::NoUsableVersion,
        format!(
            "the ciphertext is under version {}, which is {}",
            version.version.kid,
            version.state()
        ),
    ))
}
