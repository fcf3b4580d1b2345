//! Encrypting and decrypting piece by piece. The data key is needed for the beginning alone; a stream holds the key of
//! its one message.

use super::{
    KeySnapshot, Keys,
    encrypt::{Aad, context, version_named},
};
use crate::{
    envelope::{Beginning, EnvelopeError, Header, Kind, StreamOpener, StreamSealer},
    error::Result,
    gate::Permit,
    model::{Action, Kid, Purpose, VersionState},
};

impl Keys {
    /// Begins a ciphertext under the ACTIVE version: appends its first bytes to `out` and returns what makes the others,
    /// with the version's kid. Pieces leave as long as the version may decrypt (`Ongoing::release`).
    ///
    /// Errors: as `encrypt`.
    pub async fn begin_sealing(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        aad: &Aad,
        out: &mut Vec<u8>,
    ) -> Result<(StreamSealer, Kid)> {
        permit.covers_key(Action::Encrypt, key.key.id)?;
        key.expect(Purpose::Encryption, "EncryptStream")?;
        self.expect_unreserved(key)?;
        let version = key.active()?;
        let kid = version.version.kid.clone();
        self.release_while(permit, key, &kid, VersionState::decrypts);
        let data_key = self.unwrapped(key, version).await?;
        let context = context(Kind::Data, key, version, aad);
        let sealer = StreamSealer::begin(data_key.key(), &context, out)?;
        data_key.uses.made();
        Ok((sealer, kid))
    }

    /// Begins to open a ciphertext whose `beginning` is here; as `begin_sealing`.
    ///
    /// Errors: as `decrypt`.
    pub async fn begin_opening(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        aad: &Aad,
        header: &Header,
        beginning: &Beginning,
    ) -> Result<(StreamOpener, Kid)> {
        permit.covers_key(Action::Decrypt, key.key.id)?;
        key.expect(Purpose::Encryption, "DecryptStream")?;
        self.expect_unreserved(key)?;
        if header.kind != Kind::Data {
            return Err(EnvelopeError::OtherKind.into());
        }
        let version = version_named(key, header, VersionState::decrypts)?;
        let kid = version.version.kid.clone();
        self.release_while(permit, key, &kid, VersionState::decrypts);
        let data_key = self.unwrapped(key, version).await?;
        let context = context(Kind::Data, key, version, aad);
        let opener = StreamOpener::begin(data_key.key(), &context, beginning)?;
        data_key.uses.opened();
        Ok((opener, kid))
    }
}
