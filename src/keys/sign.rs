//! Signing and verifying with key pairs.

use std::sync::atomic::{AtomicU32, Ordering};

use aws_lc_rs::digest;

use super::{KeySnapshot, Keys, snapshot::Version};
use crate::{
    backends::VerifyAfterSign,
    error::{Error, Reason, Result},
    gate::Permit,
    model::{
        Action, Algorithm, Kid, Purpose, SignInput, TenantDestructionId, VersionState,
        key::Material,
    },
};

/// A signature and who made it.
#[derive(Debug)]
pub struct Signed {
    /// In its JOSE form.
    pub signature: Vec<u8>,
    /// Version that signed.
    pub kid: Kid,
}

/// Of so many signatures one is verified where `verify_after_sign` is `sampled`.
pub const SAMPLED_ONE_IN: u32 = 16;

/// Chooses which fresh signatures are verified.
#[derive(Default)]
pub struct Sampler(AtomicU32);

impl Sampler {
    /// 2^32 over the golden ratio: multiples of it spread evenly, also those of every second or third number, so that
    /// no backend is passed over when calls to several take turns.
    const SPREAD: u32 = 0x9e37_79b9;

    fn takes(&self, mode: VerifyAfterSign) -> bool {
        match mode {
            VerifyAfterSign::Always => true,
            VerifyAfterSign::Off => false,
            VerifyAfterSign::Sampled => {
                let number = self.0.fetch_add(1, Ordering::Relaxed);
                number.wrapping_mul(Self::SPREAD) < u32::MAX / SAMPLED_ONE_IN
            }
        }
    }
}

impl Keys {
    /// Signs with the ACTIVE version of a SIGNING key.
    ///
    /// Errors: KEY_PURPOSE_MISMATCH, KEY_RESERVED, NO_USABLE_VERSION, DIGEST_LENGTH, PAYLOAD_TOO_LARGE, and the backend's.
    pub async fn sign(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        input: SignInput<'_>,
    ) -> Result<Signed> {
        permit.covers_key(Action::Sign, key.key.id)?;
        key.expect(Purpose::Signing, "Sign")?;
        self.expect_unreserved(key)?;
        check_digest(key.key.algorithm, input)?;
        self.sign_active(permit, key, input).await
    }

    /// Signs a token's signing input with the ACTIVE version of a TOKEN_SIGNING key. `tokens/` composed it.
    pub async fn sign_token(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        version: &Version,
        signing_input: &[u8],
    ) -> Result<Vec<u8>> {
        // A client is permitted to have tokens of its tenant; which key signs them is configured.
        match permit.covers_tenant(Action::IssueClientToken, &key.key.tenant) {
            Ok(()) => {}
            Err(_) => permit.covers_key(Action::IssueToken, key.key.id)?,
        }
        key.expect(Purpose::TokenSigning, "IssueToken")?;
        self.sign_with(permit, key, version, SignInput::Message(signing_input))
            .await
    }

    /// Signs a checkpoint of the audit log with the ACTIVE version of a SIGNING key of tenant `system`.
    ///
    /// Errors: KEY_PURPOSE_MISMATCH, NO_USABLE_VERSION, and the backend's.
    pub async fn sign_checkpoint(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        text: &str,
    ) -> Result<Signed> {
        permit.covers_tenant(Action::CheckpointAudit, &key.key.tenant)?;
        key.expect(Purpose::Signing, "CheckpointAudit")?;
        self.sign_active(permit, key, SignInput::Message(text.as_bytes()))
            .await
    }

    /// Signs the proof that all keys of a tenant are destroyed, as `sign_checkpoint` with the same key.
    ///
    /// Errors: KEY_PURPOSE_MISMATCH, NO_USABLE_VERSION, and the backend's.
    pub async fn sign_proof(
        &self,
        permit: &Permit,
        destruction: TenantDestructionId,
        key: &KeySnapshot,
        text: &str,
    ) -> Result<Signed> {
        permit.covers_tenant_destruction(Action::DestroyTenantMaterial, destruction)?;
        key.expect(Purpose::Signing, "DestroyTenantMaterial")?;
        self.sign_active(permit, key, SignInput::Message(text.as_bytes()))
            .await
    }

    /// Does the key sign messages of any length, with its ACTIVE version in the backend where that is?
    pub fn signs_any_length(&self, key: &KeySnapshot) -> bool {
        let active = key.active().ok().map(|v| &v.version.material);
        let Some(Material::KeyPair { backend, .. }) = active else {
            return false;
        };
        let hashes = key.key.algorithm.hash().is_some();
        let backend = self.backend(backend);
        hashes || backend.is_ok_and(|b| b.capabilities().longest_message.is_none())
    }

    /// Checks a signature by any version that may verify, or by `kid` alone. The kid that verified, or None.
    ///
    /// Errors: KEY_PURPOSE_MISMATCH, DIGEST_LENGTH.
    pub fn verify(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        kid: Option<&Kid>,
        input: SignInput<'_>,
        signature: &[u8],
    ) -> Result<Option<Kid>> {
        permit.covers_key(Action::Verify, key.key.id)?;
        key.expect(Purpose::Signing, "Verify")?;
        check_digest(key.key.algorithm, input)?;
        let verified = key
            .verifying()
            .filter(|v| kid.is_none_or(|kid| v.version.kid == *kid))
            .find(|v| {
                v.verifier
                    .as_ref()
                    .is_some_and(|verifier| verifier.verifies(input, signature))
            });
        let verified = verified.map(|v| v.version.kid.clone());
        if let Some(kid) = &verified {
            self.note_use(kid).opened();
            self.release_while(permit, key, kid, VersionState::verifies);
        }
        Ok(verified)
    }

    async fn sign_active(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        input: SignInput<'_>,
    ) -> Result<Signed> {
        let version = key.active()?;
        let signature = self.sign_with(permit, key, version, input).await?;
        Ok(Signed {
            signature,
            kid: version.version.kid.clone(),
        })
    }

    /// The one place that asks a backend for a signature: the version must be one that makes them.
    async fn sign_with(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        version: &Version,
        input: SignInput<'_>,
    ) -> Result<Vec<u8>> {
        let algorithm = key.key.algorithm;
        let kid = &version.version.kid;
        if !version.state().makes() {
            return Err(Error::new(
                Reason::NoUsableVersion,
                format!("version {kid} is {} and does not sign", version.state()),
            ));
        }
        let (
            Material::KeyPair {
                backend: name,
                reference,
                ..
            },
            Some(verifier),
        ) = (&version.version.material, &version.verifier)
        else {
            return Err(Error::internal(format!("version {kid} has no key pair")));
        };
        // Superseded meanwhile is fine: what it signed while it was ACTIVE stays valid.
        self.release_while(permit, key, kid, VersionState::verifies);
        let backend = self.backend(name)?;
        check_length(algorithm, input, backend.capabilities().longest_message)?;
        let deadline = self.deadline();
        let uses = self.note_use(kid);
        let signature = match (input, algorithm.hash()) {
            (SignInput::Message(message), Some(hash)) => {
                let digest = digest::digest(hash.algorithm(), message);
                let input = SignInput::Digest(digest.as_ref());
                backend.sign(reference, algorithm, input, deadline).await?
            }
            (input, _) => backend.sign(reference, algorithm, input, deadline).await?,
        };
        if self.sampler.takes(backend.capabilities().verify_after_sign)
            && !verifier.verifies(input, &signature)
        {
            metrics::counter!("claviger_wrong_signature_total").increment(1);
            return Err(Error::internal(format!(
                "backend {name} made a signature that {kid} does not verify"
            )));
        }
        uses.made();
        Ok(signature)
    }
}

/// Where the device makes the digest itself, it may take short messages only. Errors: PAYLOAD_TOO_LARGE.
fn check_length(algorithm: Algorithm, input: SignInput<'_>, longest: Option<usize>) -> Result<()> {
    match (input, algorithm.hash(), longest) {
        (SignInput::Message(message), None, Some(longest)) if message.len() > longest => {
            Err(Error::new(
                Reason::PayloadTooLarge,
                format!(
                    "the key's backend signs {algorithm} messages of up to {longest} bytes, this one has {}; use \
                     another algorithm, or a key in another backend",
                    message.len()
                ),
            ))
        }
        (SignInput::Message(_) | SignInput::Digest(_), _, _) => Ok(()),
    }
}

fn check_digest(algorithm: Algorithm, input: SignInput<'_>) -> Result<()> {
    let (SignInput::Digest(bytes), hash) = (input, algorithm.hash()) else {
        return Ok(());
    };
    match hash {
        Some(hash) if hash.digest_len() == bytes.len() => Ok(()),
        Some(hash) => Err(Error::new(
            Reason::DigestLength,
            format!(
                "{algorithm} signs a digest of {} bytes, this one has {}",
                hash.digest_len(),
                bytes.len()
            ),
        )),
        None => Err(Error::new(
            Reason::DigestLength,
            format!("{algorithm} signs the message itself; send `message` instead of `digest`"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sixteenth_is_sampled_whoever_takes_turns() {
        for step in 1..=16_usize {
            let sampler = Sampler::default();
            let taken: Vec<_> = (0..16_000 * step)
                .map(|_| sampler.takes(VerifyAfterSign::Sampled))
                .collect();
            let of_one = taken.iter().step_by(step).filter(|taken| **taken);
            let count = of_one.count();
            assert!((900..1100).contains(&count), "every {step}th: {count}");
        }
        let sampler = Sampler::default();
        assert!(sampler.takes(VerifyAfterSign::Sampled), "the first");
        assert!((0..100).all(|_| sampler.takes(VerifyAfterSign::Always)));
        assert!(!(0..100).any(|_| sampler.takes(VerifyAfterSign::Off)));
    }
}
