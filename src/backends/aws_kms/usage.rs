//! Using keys: sign, and wrap data keys under a KEK.
//!
//! # How a wrapped data key is bound
//!
//! KMS has an encryption context, pairs of texts, where other devices have AAD bytes. Every wrapped data key
//! has these two pairs:
//!
//! - `claviger:purpose` = `data-key`, the same for all, so that a key policy can demand it
//!   (`kms:EncryptionContext:claviger:purpose`), and the KEK is of no use to other programs;
//! - `claviger:aad` = `v1.` and the AAD bytes in base64url without padding: one text per byte string, also
//!   for the empty one.
//!
//! CloudTrail shows both in clear. The AAD names tenant, key and version, which are no secrets.
//!
//! A wrapped data key is `version (1) || CiphertextBlob`.

use aws_lc_rs::digest::digest;
use aws_sdk_kms::{
    primitives::Blob,
    types::{EncryptionAlgorithmSpec, MessageType},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{AwsKmsBackend, Class, specs, unfit};
use crate::{
    backends::BackendError,
    model::{
        Algorithm, KeySpec, PublicKey,
        public_key::SignInput,
        secret::{DataKey, Secret},
    },
};

const VERSION: u8 = 1;
/// Longest CiphertextBlob that Decrypt takes, in bytes.
const MAX_BLOB: usize = 6144;
/// The whole context may have 8192 bytes; base64 makes four of three.
const MAX_AAD: usize = 4096;

impl AwsKmsBackend {
    pub(super) async fn sign_with(
        &self,
        arn: &str,
        algorithm: Algorithm,
        input: SignInput<'_>,
        deadline: Instant,
    ) -> Result<Vec<u8>, BackendError> {
        let offered = self.shared.capabilities.algorithms.contains(&algorithm);
        let signing = specs::signing(algorithm)
            .filter(|_| offered)
            .ok_or_else(|| BackendError::Unsupported(algorithm.to_string()))?;
        let kind = match input {
            SignInput::Message(_) => MessageType::Raw,
            SignInput::Digest(_) => MessageType::Digest,
        };
        let data = specs::signing_input(algorithm, input)?;
        let plan = self.plan("kms:Sign", Class::Asymmetric, deadline);
        let signed = self.shared.calls.run(plan, |client| {
            client
                .sign()
                .key_id(arn)
                .message(Blob::new(data.clone()))
                .message_type(kind.clone())
                .signing_algorithm(signing.clone())
                .send()
        });
        let signed = match signed.await {
            Ok(signed) => signed,
            Err(fault) => return Err(self.explain(arn, fault, deadline).await),
        };
        same_key(arn, signed.key_id())?;
        signed
            .signature()
            .and_then(|der| specs::jose_signature(algorithm, der.as_ref()))
            .ok_or_else(|| BackendError::Unavailable("kms:Sign answered no signature".into()))
    }

    pub(super) async fn encrypt(
        &self,
        arn: &str,
        key: &DataKey,
        aad: &[u8],
        deadline: Instant,
    ) -> Result<Vec<u8>, BackendError> {
        let [purpose, bound] = context(aad)?;
        let plan = self.plan("kms:Encrypt", Class::Symmetric, deadline);
        let sealed = self.shared.calls.run(plan, |client| {
            client
                .encrypt()
                .key_id(arn)
                .plaintext(Blob::new(key.expose_secret()))
                .encryption_context(purpose.0, &purpose.1)
                .encryption_context(bound.0, &bound.1)
                .encryption_algorithm(EncryptionAlgorithmSpec::SymmetricDefault)
                .send()
        });
        let sealed = match sealed.await {
            Ok(sealed) => sealed,
            Err(fault) => return Err(self.explain(arn, fault, deadline).await),
        };
        same_key(arn, sealed.key_id())?;
        match sealed.ciphertext_blob() {
            Some(blob) if (1..=MAX_BLOB).contains(&blob.as_ref().len()) => {
                Ok([&[VERSION], blob.as_ref()].concat())
            }
            Some(_) | None => Err(BackendError::Unavailable(
                "kms:Encrypt answered no ciphertext".into(),
            )),
        }
    }

    pub(super) async fn decrypt(
        &self,
        arn: &str,
        wrapped: &[u8],
        aad: &[u8],
        deadline: Instant,
    ) -> Result<DataKey, BackendError> {
        let reject = |why: &str| BackendError::Rejected(why.into());
        let blob = match wrapped {
            [VERSION, blob @ ..] if (1..=MAX_BLOB).contains(&blob.len()) => blob,
            _ => return Err(reject("not a wrapped data key of a version we know")),
        };
        let [purpose, bound] = context(aad)?;
        let plan = self.plan("kms:Decrypt", Class::Symmetric, deadline);
        let opened = self.shared.calls.run(plan, |client| {
            client
                .decrypt()
                .key_id(arn)
                .ciphertext_blob(Blob::new(blob))
                .encryption_context(purpose.0, &purpose.1)
                .encryption_context(bound.0, &bound.1)
                .encryption_algorithm(EncryptionAlgorithmSpec::SymmetricDefault)
                .send()
        });
        let opened = match opened.await {
            Ok(opened) => opened,
            Err(fault) => return Err(self.explain(arn, fault, deadline).await),
        };
        same_key(arn, opened.key_id())?;
        let plain = opened.plaintext.map(Blob::into_inner).unwrap_or_default();
        let plain = Zeroizing::new(plain);
        let key = plain.as_slice().try_into();
        key.map(Secret::new)
            .map_err(|_| reject("what it holds is not a data key"))
    }

    /// Does the key do what it is for? Uses the key once or twice.
    pub(super) async fn prove(
        &self,
        arn: &str,
        spec: KeySpec,
        deadline: Instant,
    ) -> Result<Option<PublicKey>, BackendError> {
        let Some(algorithm) = specs::trial(spec) else {
            self.prove_kek(arn, deadline).await?;
            return Ok(None);
        };
        let public = self.public_half(arn, deadline).await?;
        if public.key_spec() != spec {
            return Err(unfit("its public half is of another kind"));
        }
        let message = b"claviger: does the private key belong to the public one?";
        let hashed = algorithm
            .hash()
            .map(|hash| digest(hash.algorithm(), message));
        let input = match &hashed {
            Some(digest) => SignInput::Digest(digest.as_ref()),
            None => SignInput::Message(message),
        };
        let signature = self.sign_with(arn, algorithm, input, deadline).await?;
        let verifier = public.verifier(algorithm);
        let verifier = verifier.map_err(|_| unfit("its public half is not valid"))?;
        if !verifier.verifies(input, &signature) {
            return Err(unfit("its signature does not verify"));
        }
        Ok(Some(public))
    }

    async fn prove_kek(&self, arn: &str, deadline: Instant) -> Result<(), BackendError> {
        let probe = Secret::new([0x5a; 32]);
        let wrapped = self.encrypt(arn, &probe, b"probe", deadline).await?;
        let back = self.decrypt(arn, &wrapped, b"probe", deadline).await?;
        if back.expose_secret() != probe.expose_secret() {
            return Err(unfit("what it wraps does not unwrap"));
        }
        Ok(())
    }
}

/// The encryption context; see above.
fn context(aad: &[u8]) -> Result<[(&'static str, String); 2], BackendError> {
    if aad.len() > MAX_AAD {
        return Err(BackendError::Rejected(format!(
            "the context has {} bytes; KMS binds up to {MAX_AAD}",
            aad.len()
        )));
    }
    let bound = format!("v1.{}", BASE64_URL_SAFE_NO_PAD.encode(aad));
    Ok([
        ("claviger:purpose", "data-key".into()),
        ("claviger:aad", bound),
    ])
}

/// The key that answered is the one that was asked.
fn same_key(arn: &str, answered: Option<&str>) -> Result<(), BackendError> {
    if answered == Some(arn) {
        return Ok(());
    }
    Err(unfit("another key answered in its place"))
}
