//! Data keys for callers who encrypt by themselves, and random bytes.
//!
//! A wrapped data key is an envelope of a kind of its own, so that Decrypt does not open it and DecryptDataKey opens
//! nothing else: who may read data and who may unwrap keys are told apart by the policies alone.

use aws_lc_rs::rand;

use super::{KeySnapshot, Keys, encrypt::Aad};
use crate::{
    envelope::Kind,
    error::{Error, Result},
    gate::Permit,
    model::{Action, Kid, Purpose, Secret, TenantName, VersionState},
};

/// Lengths that a data key may have, in bytes.
pub const DATA_KEY_LENGTHS: [usize; 3] = [16, 32, 64];

/// A data key that was just made.
pub struct NewDataKey {
    /// The key itself.
    pub plaintext: Secret<Vec<u8>>,
    /// The key, wrapped.
    pub wrapped: Vec<u8>,
    /// The version that wrapped it.
    pub kid: Kid,
}

impl Keys {
    /// Makes a data key of `length` bytes and wraps it under the ACTIVE version. `action` is the one that the permit is
    /// for: with the plain key in the answer or without.
    ///
    /// Errors: KEY_PURPOSE_MISMATCH, NO_USABLE_VERSION, and the KEK backend's for a cold data key.
    pub async fn generate_data_key(
        &self,
        permit: &Permit,
        action: Action,
        key: &KeySnapshot,
        length: usize,
        aad: &Aad,
    ) -> Result<NewDataKey> {
        permit.covers_key(action, key.key.id)?;
        key.expect(Purpose::Encryption, action.name())?;
        self.expect_unreserved(key)?;
        let version = key.active()?;
        self.release_while(permit, key, &version.version.kid, VersionState::decrypts);
        let plaintext = random(length)?;
        let sealed = self.seal(
            Kind::WrappedKey,
            key,
            version,
            plaintext.expose_secret(),
            aad,
        );
        Ok(NewDataKey {
            wrapped: sealed.await?,
            plaintext,
            kid: version.version.kid.clone(),
        })
    }

    /// Unwraps what `generate_data_key` wrapped. Returns the data key and the kid it was under.
    ///
    /// Errors: CIPHERTEXT_INVALID, one and the same for everything that can be wrong with a wrapped key or its AAD.
    pub async fn decrypt_data_key(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        wrapped: &[u8],
        aad: &Aad,
    ) -> Result<(Secret<Vec<u8>>, Kid)> {
        permit.covers_key(Action::DecryptDataKey, key.key.id)?;
        key.expect(Purpose::Encryption, "DecryptDataKey")?;
        self.expect_unreserved(key)?;
        let opened = self.open_as(Kind::WrappedKey, permit, key, wrapped, aad);
        let (plaintext, kid) = opened.await?;
        Ok((Secret::new(plaintext), kid))
    }

    /// Random bytes of the daemon's DRBG, for a caller of this tenant.
    pub fn random(
        &self,
        permit: &Permit,
        tenant: &TenantName,
        length: usize,
    ) -> Result<Secret<Vec<u8>>> {
        permit.covers_tenant(Action::GenerateRandom, tenant)?;
        random(length)
    }
}

/// Bytes that nobody can predict.
pub(super) fn random(length: usize) -> Result<Secret<Vec<u8>>> {
    let mut bytes = vec![0; length];
    rand::fill(&mut bytes).map_err(Error::internal)?;
    Ok(Secret::new(bytes))
}
