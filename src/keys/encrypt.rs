//! Encrypting, decrypting and rewrapping under data keys.

use std::{collections::BTreeMap, sync::Arc};

use super::{KeySnapshot, Keys, data_keys::Unwrapped, snapshot::Version, uses::Counter};
use crate::{
    envelope::{self, Context, EnvelopeError, Kind},
    error::{Error, Reason, Result},
    gate::Permit,
    model::{Action, Kid, Purpose, Secret, VersionState, secret::DataKey},
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
        self.expect_unreserved(key)?;
        let version = key.active()?;
        self.release_while(permit, key, &version.version.kid, VersionState::decrypts);
        let ciphertext = self.seal(Kind::Data, key, version, plaintext, aad).await?;
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
        self.expect_unreserved(key)?;
        self.open_as(Kind::Data, permit, key, ciphertext, aad).await
    }

    /// Opens a ciphertext of this kind and of no other: who may decrypt data may not thereby unwrap data keys.
    pub(super) async fn open_as(
        &self,
        kind: Kind,
        permit: &Permit,
        key: &KeySnapshot,
        ciphertext: &[u8],
        aad: &Aad,
    ) -> Result<(Vec<u8>, Kid)> {
        let (found, version) = version_of(key, ciphertext, VersionState::decrypts)?;
        if found != kind {
            return Err(EnvelopeError::OtherKind.into());
        }
        self.release_while(permit, key, &version.version.kid, VersionState::decrypts);
        let (plaintext, uses) = self.unseal(kind, key, version, ciphertext, aad).await?;
        uses.opened();
        Ok((plaintext, version.version.kid.clone()))
    }

    /// Moves a ciphertext or a wrapped data key to the ACTIVE version; one that is there already comes back as it is,
    /// once it has been authenticated. Returns it with the new and the old kid.
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
        self.expect_unreserved(key)?;
        let (kind, old) = version_of(key, ciphertext, VersionState::rewraps)?;
        let new = key.active()?;
        self.release_while(permit, key, &new.version.kid, VersionState::decrypts);
        let (plaintext, uses) = self.unseal(kind, key, old, ciphertext, aad).await?;
        let plaintext = Secret::new(plaintext);
        let (old_kid, new_kid) = (old.version.kid.clone(), new.version.kid.clone());
        if old_kid == new_kid {
            uses.opened();
            return Ok((ciphertext.to_vec(), new_kid, old_kid));
        }
        let moved = self
            .seal(kind, key, new, plaintext.expose_secret(), aad)
            .await?;
        uses.rewrapped();
        Ok((moved, new_kid, old_kid))
    }

    pub(super) async fn seal(
        &self,
        kind: Kind,
        key: &KeySnapshot,
        version: &Version,
        plaintext: &[u8],
        aad: &Aad,
    ) -> Result<Vec<u8>> {
        let data_key = self.unwrapped(key, version).await?;
        let context = context(kind, key, version, aad);
        let sealed = envelope::seal(data_key.key(), &context, plaintext)?;
        data_key.uses.made();
        Ok(sealed)
    }

    /// The plaintext, and what counts the use: the caller knows whether it was opened or moved.
    pub(super) async fn unseal(
        &self,
        kind: Kind,
        key: &KeySnapshot,
        version: &Version,
        ciphertext: &[u8],
        aad: &Aad,
    ) -> Result<(Vec<u8>, Arc<Counter>)> {
        let data_key = self.unwrapped(key, version).await?;
        let context = context(kind, key, version, aad);
        let plaintext = envelope::open(data_key.key(), &context, ciphertext)?;
        Ok((plaintext, data_key.uses))
    }

    pub(super) async fn unwrapped(&self, key: &KeySnapshot, version: &Version) -> Result<InUse> {
        let v = &version.version;
        let uses = self.note_use(&v.kid);
        let unwrapped = self.data_key(&key.key.tenant, key.key.id, &v.kid, &v.material);
        Ok(InUse {
            unwrapped: unwrapped.await?,
            uses,
        })
    }
}

/// An unwrapped data key, and what counts the uses of its version.
pub(super) struct InUse {
    unwrapped: Arc<Unwrapped>,
    pub(super) uses: Arc<Counter>,
}

impl InUse {
    pub(super) fn key(&self) -> &DataKey {
        self.unwrapped.key()
    }
}

pub(super) fn context(kind: Kind, key: &KeySnapshot, version: &Version, aad: &Aad) -> Context {
    let kid = &version.version.kid;
    Context::of(kind, &key.key.tenant, key.key.id, kid, aad)
}

/// What a ciphertext is of and the version that it names, if its state allows. A kid of another key is a foreign
/// ciphertext.
fn version_of<'a>(
    key: &'a KeySnapshot,
    ciphertext: &[u8],
    allows: fn(VersionState) -> bool,
) -> Result<(Kind, &'a Version)> {
    let header = envelope::header(ciphertext)?;
    Ok((header.kind, version_named(key, &header, allows)?))
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
