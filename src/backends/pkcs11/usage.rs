//! Using keys: sign, and wrap data keys under a KEK with AES-256-GCM.
//!
//! A wrapped data key is `version (1) || IV (12) || ciphertext (32) || tag (16)`. The IV is random: 96 bits
//! are enough for the few thousand data keys that one KEK ever wraps.

use aws_lc_rs::rand;
use cryptoki::mechanism::{Mechanism, aead::GcmParams};
use zeroize::Zeroizing;

use super::{errors::Fault, keys::unfit, mechanisms, objects::Key, session::Live};
use crate::{
    backends::BackendError,
    model::{
        Algorithm, KeySpec,
        key::BackendRef,
        secret::{DataKey, Secret},
    },
};

const VERSION: u8 = 1;
const IV: usize = 12;
const TAG: usize = 16;
/// Bytes of a wrapped data key.
pub(super) const WRAPPED: usize = 1 + IV + 32 + TAG;

impl Live {
    /// `data` is the output of `mechanisms::signing_input`.
    pub(super) fn sign(
        &mut self,
        reference: &BackendRef,
        algorithm: Algorithm,
        data: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        let key = self.key(reference)?;
        self.sign_with(key, algorithm, data)
    }

    pub(super) fn sign_with(
        &self,
        key: Key,
        algorithm: Algorithm,
        data: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        // A token would truncate the digest for a smaller curve instead of refusing it.
        let mechanism = mechanisms::signing(algorithm)
            .filter(|_| mechanisms::fits(algorithm, key.spec))
            .ok_or_else(|| unfit(&format!("{:?} does not sign {algorithm}", key.spec)))?;
        Ok(self.session.sign(&mechanism, key.handle, data)?)
    }

    pub(super) fn wrap(
        &mut self,
        kek: &BackendRef,
        key: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, Fault> {
        let kek = self.kek(kek)?;
        self.encrypt(kek, key, aad)
    }

    pub(super) fn unwrap(
        &mut self,
        kek: &BackendRef,
        wrapped: &[u8],
        aad: &[u8],
    ) -> Result<DataKey, Fault> {
        let kek = self.kek(kek)?;
        self.decrypt(kek, wrapped, aad)
    }

    fn kek(&mut self, reference: &BackendRef) -> Result<Key, Fault> {
        let kek = self.key(reference)?;
        match kek.spec {
            KeySpec::Kek => Ok(kek),
            _key_pair => Err(unfit("it is no KEK")),
        }
    }

    pub(super) fn encrypt(&self, kek: Key, key: &[u8], aad: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut iv = [0; IV];
        rand::fill(&mut iv)
            .map_err(|_| Fault::Refused(BackendError::Unavailable("no randomness".into())))?;
        let gcm = GcmParams::new(&mut iv, aad, (TAG as u64 * 8).into())?;
        let gcm = Mechanism::AesGcm(gcm);
        let sealed = self.session.encrypt(&gcm, kek.handle, key)?;
        // Read after the call: some tokens put an IV of their own there.
        let wrapped = [&[VERSION], &iv[..], &sealed].concat();
        if wrapped.len() != WRAPPED {
            return Err(unfit("its ciphertexts have an unexpected length"));
        }
        Ok(wrapped)
    }

    pub(super) fn decrypt(&self, kek: Key, wrapped: &[u8], aad: &[u8]) -> Result<DataKey, Fault> {
        let reject = |why: &str| Fault::Refused(BackendError::Rejected(why.into()));
        let [VERSION, rest @ ..] = wrapped else {
            return Err(reject("not a wrapped data key of a version we know"));
        };
        if wrapped.len() != WRAPPED {
            return Err(reject("not a wrapped data key: wrong length"));
        }
        let (iv, sealed) = rest.split_at(IV);
        let mut iv = iv.to_vec();
        let gcm = GcmParams::new(&mut iv, aad, (TAG as u64 * 8).into())?;
        let gcm = Mechanism::AesGcm(gcm);
        let key = Zeroizing::new(self.session.decrypt(&gcm, kek.handle, sealed)?);
        let key = key
            .as_slice()
            .try_into()
            .map_err(|_| reject("what it holds is not a data key"))?;
        Ok(Secret::new(key))
    }
}
