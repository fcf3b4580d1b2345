//! CryptoService: one function per operation; the single and the batch RPC both call it.

use bytes::Bytes;
use futures_util::future::join_all;
use tonic::{Request, Response, Status, Streaming};

use super::{
    call::{Parts, by},
    convert,
    proto::{self, crypto_service_server::CryptoService},
    status::item_error,
    streams,
};
use crate::{
    envelope::{StreamOpener, StreamSealer},
    error::Result,
    keys::Target,
    model::{Action, Caller, Kid, SignInput},
};

/// Most items of a batch.
const MAX_ITEMS: usize = 100;
/// Longest reference of an item, in bytes.
const MAX_REFERENCE: usize = 256;
/// Longest signature that is looked at: RSA-8192 has 1024 bytes.
const MAX_SIGNATURE: usize = 1024;

/// CryptoService over these parts.
pub struct Crypto(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

/// What is signed, as the two oneofs of the proto file say it.
enum Payload {
    Message(Bytes),
    Digest(Bytes),
}

impl Crypto {
    async fn target(&self, caller: &Caller, tenant: &str, key: &str) -> Result<Target> {
        self.0.target(caller, tenant, key).await
    }

    fn check_input<'a>(&self, payload: Option<&'a Payload>) -> Result<SignInput<'a>> {
        match payload {
            Some(Payload::Message(message)) => {
                self.0.limits.check("message", message)?;
                Ok(SignInput::Message(message))
            }
            Some(Payload::Digest(digest)) => Ok(SignInput::Digest(digest)),
            None => Err(convert::invalid("message or digest is required")),
        }
    }

    async fn sign_one(
        &self,
        caller: &Caller,
        r: proto::SignRequest,
    ) -> Result<proto::SignResponse> {
        use proto::sign_request::Payload as P;
        let payload = r.payload.map(|p| match p {
            P::Message(bytes) => Payload::Message(bytes),
            P::Digest(bytes) => Payload::Digest(bytes),
        });
        let input = self.check_input(payload.as_ref())?;
        let target = self.target(caller, &r.tenant, &r.key).await?;
        let act = async |permit| {
            let key = target.snapshot()?;
            let signed = self.0.keys.sign(&permit, key, input).await?;
            let details = by(&signed.kid);
            let answer = proto::SignResponse {
                signature: signed.signature.into(),
                kid: signed.kid.to_string(),
                algorithm: convert::algorithm_number(key.key.algorithm),
            };
            Ok((answer, details))
        };
        let gate = &self.0.gate;
        gate.access(caller, Action::Sign, target.resource(), act)
            .await
    }

    async fn verify_one(
        &self,
        caller: &Caller,
        r: proto::VerifyRequest,
    ) -> Result<proto::VerifyResponse> {
        use proto::verify_request::Payload as P;
        let payload = r.payload.map(|p| match p {
            P::Message(bytes) => Payload::Message(bytes),
            P::Digest(bytes) => Payload::Digest(bytes),
        });
        let input = self.check_input(payload.as_ref())?;
        if !(1..=MAX_SIGNATURE).contains(&r.signature.len()) {
            return Err(convert::invalid("signature must be 1 to 1024 bytes"));
        }
        let kid = match r.kid.as_str() {
            "" => None,
            kid => Some(kid.parse::<Kid>()?),
        };
        let target = self.target(caller, &r.tenant, &r.key).await?;
        let act = async |permit| {
            let key = target.snapshot()?;
            let keys = &self.0.keys;
            let verified = keys.verify(&permit, key, kid.as_ref(), input, &r.signature)?;
            let details = match &verified {
                Some(kid) => by(kid),
                None => r#"{"valid":false}"#.to_owned(),
            };
            let answer = proto::VerifyResponse {
                valid: verified.is_some(),
                kid: verified.map(|kid| kid.to_string()).unwrap_or_default(),
            };
            Ok((answer, details))
        };
        let gate = &self.0.gate;
        gate.access(caller, Action::Verify, target.resource(), act)
            .await
    }

    async fn encrypt_one(
        &self,
        caller: &Caller,
        r: proto::EncryptRequest,
    ) -> Result<proto::EncryptResponse> {
        self.0.limits.check("plaintext", &r.plaintext)?;
        check_aad(&r.aad)?;
        let target = self.target(caller, &r.tenant, &r.key).await?;
        let act = async |permit| {
            let key = target.snapshot()?;
            let keys = &self.0.keys;
            let (ciphertext, kid) = keys.encrypt(&permit, key, &r.plaintext, &r.aad).await?;
            let details = by(&kid);
            let answer = proto::EncryptResponse {
                ciphertext: ciphertext.into(),
                kid: kid.to_string(),
            };
            Ok((answer, details))
        };
        let gate = &self.0.gate;
        gate.access(caller, Action::Encrypt, target.resource(), act)
            .await
    }

    async fn decrypt_one(
        &self,
        caller: &Caller,
        r: proto::DecryptRequest,
    ) -> Result<proto::DecryptResponse> {
        self.0
            .limits
            .check_ciphertext("ciphertext", &r.ciphertext)?;
        check_aad(&r.aad)?;
        let target = self.target(caller, &r.tenant, &r.key).await?;
        let act = async |permit| {
            let key = target.snapshot()?;
            let keys = &self.0.keys;
            let (plaintext, kid) = keys.decrypt(&permit, key, &r.ciphertext, &r.aad).await?;
            let details = by(&kid);
            let answer = proto::DecryptResponse {
                plaintext: plaintext.into(),
                kid: kid.to_string(),
            };
            Ok((answer, details))
        };
        let gate = &self.0.gate;
        gate.access(caller, Action::Decrypt, target.resource(), act)
            .await
    }

    async fn rewrap_one(
        &self,
        caller: &Caller,
        r: proto::RewrapRequest,
    ) -> Result<proto::RewrapResponse> {
        self.0
            .limits
            .check_ciphertext("ciphertext", &r.ciphertext)?;
        check_aad(&r.aad)?;
        let target = self.target(caller, &r.tenant, &r.key).await?;
        let act = async |permit| {
            let key = target.snapshot()?;
            let keys = &self.0.keys;
            let (ciphertext, kid, previous) =
                keys.rewrap(&permit, key, &r.ciphertext, &r.aad).await?;
            let details = format!(r#"{{"kid":"{kid}","previous_kid":"{previous}"}}"#);
            let answer = proto::RewrapResponse {
                ciphertext: ciphertext.into(),
                kid: kid.to_string(),
                previous_kid: previous.to_string(),
            };
            Ok((answer, details))
        };
        let gate = &self.0.gate;
        gate.access(caller, Action::Rewrap, target.resource(), act)
            .await
    }
}

/// Errors: INVALID_FIELD.
pub(super) fn check_aad(aad: &std::collections::BTreeMap<String, String>) -> Result<()> {
    let fits = aad.len() <= 16
        && aad
            .iter()
            .all(|(name, value)| (1..=128).contains(&name.len()) && value.len() <= 1024);
    fits.then_some(()).ok_or_else(|| {
        convert::invalid(
            "aad must be at most 16 pairs, names of 1 to 128 bytes and values of up to 1024 bytes",
        )
    })
}

fn check_batch<'a>(len: usize, mut references: impl Iterator<Item = &'a String>) -> Result<()> {
    if !(1..=MAX_ITEMS).contains(&len) {
        return Err(convert::invalid("items must be 1 to 100"));
    }
    match references.any(|reference| reference.len() > MAX_REFERENCE) {
        true => Err(convert::invalid("reference must be at most 256 bytes")),
        false => Ok(()),
    }
}

/// A batch RPC: every item goes through the very function of the single RPC, all at once.
macro_rules! batch {
    ($self:ident, $request:ident, $action:expr, $one:ident, $message:ident, $results:ident) => {{
        let act = async |caller: Caller, batch: proto::$message| {
            let references = batch.items.iter().map(|item| &item.reference);
            check_batch(batch.items.len(), references)?;
            let items = batch.items.into_iter().map(|item| {
                let caller = &caller;
                async move {
                    let request = item.request.unwrap_or_default();
                    let answer = $self.$one(caller, request).await;
                    let answer = $self.0.recorded(caller, $action, answer).await;
                    let outcome = match answer {
                        Ok(response) => proto::$results::result::Outcome::Response(response),
                        Err(error) => proto::$results::result::Outcome::Error(item_error(&error)),
                    };
                    proto::$results::Result {
                        reference: item.reference,
                        outcome: Some(outcome),
                    }
                }
            });
            Ok(join_all(items).await)
        };
        $self.0.call($request, $action, act).await
    }};
}

#[tonic::async_trait]
impl CryptoService for Crypto {
    async fn sign(&self, r: Request<proto::SignRequest>) -> Answer<proto::SignResponse> {
        let act = async |caller, m| self.sign_one(&caller, m).await;
        self.0.call(r, Action::Sign, act).await
    }

    async fn verify(&self, r: Request<proto::VerifyRequest>) -> Answer<proto::VerifyResponse> {
        let act = async |caller, m| self.verify_one(&caller, m).await;
        self.0.call(r, Action::Verify, act).await
    }

    async fn encrypt(&self, r: Request<proto::EncryptRequest>) -> Answer<proto::EncryptResponse> {
        let act = async |caller, m| self.encrypt_one(&caller, m).await;
        self.0.call(r, Action::Encrypt, act).await
    }

    async fn decrypt(&self, r: Request<proto::DecryptRequest>) -> Answer<proto::DecryptResponse> {
        let act = async |caller, m| self.decrypt_one(&caller, m).await;
        self.0.call(r, Action::Decrypt, act).await
    }

    async fn rewrap(&self, r: Request<proto::RewrapRequest>) -> Answer<proto::RewrapResponse> {
        let act = async |caller, m| self.rewrap_one(&caller, m).await;
        self.0.call(r, Action::Rewrap, act).await
    }

    async fn batch_sign(
        &self,
        r: Request<proto::BatchSignRequest>,
    ) -> Answer<proto::BatchSignResponse> {
        batch!(
            self,
            r,
            Action::Sign,
            sign_one,
            BatchSignRequest,
            batch_sign_response
        )
        .map(|r| r.map(|results| proto::BatchSignResponse { results }))
    }

    async fn batch_verify(
        &self,
        r: Request<proto::BatchVerifyRequest>,
    ) -> Answer<proto::BatchVerifyResponse> {
        batch!(
            self,
            r,
            Action::Verify,
            verify_one,
            BatchVerifyRequest,
            batch_verify_response
        )
        .map(|r| r.map(|results| proto::BatchVerifyResponse { results }))
    }

    async fn batch_encrypt(
        &self,
        r: Request<proto::BatchEncryptRequest>,
    ) -> Answer<proto::BatchEncryptResponse> {
        batch!(
            self,
            r,
            Action::Encrypt,
            encrypt_one,
            BatchEncryptRequest,
            batch_encrypt_response
        )
        .map(|r| r.map(|results| proto::BatchEncryptResponse { results }))
    }

    async fn batch_decrypt(
        &self,
        r: Request<proto::BatchDecryptRequest>,
    ) -> Answer<proto::BatchDecryptResponse> {
        batch!(
            self,
            r,
            Action::Decrypt,
            decrypt_one,
            BatchDecryptRequest,
            batch_decrypt_response
        )
        .map(|r| r.map(|results| proto::BatchDecryptResponse { results }))
    }

    async fn batch_rewrap(
        &self,
        r: Request<proto::BatchRewrapRequest>,
    ) -> Answer<proto::BatchRewrapResponse> {
        batch!(
            self,
            r,
            Action::Rewrap,
            rewrap_one,
            BatchRewrapRequest,
            batch_rewrap_response
        )
        .map(|r| r.map(|results| proto::BatchRewrapResponse { results }))
    }

    type EncryptStreamStream = streams::Pieces<proto::EncryptStreamResponse>;

    async fn encrypt_stream(
        &self,
        r: Request<Streaming<proto::EncryptStreamRequest>>,
    ) -> Answer<Self::EncryptStreamStream> {
        streams::answer::<StreamSealer>(&self.0, r).await
    }

    type DecryptStreamStream = streams::Pieces<proto::DecryptStreamResponse>;

    async fn decrypt_stream(
        &self,
        r: Request<Streaming<proto::DecryptStreamRequest>>,
    ) -> Answer<Self::DecryptStreamStream> {
        streams::answer::<StreamOpener>(&self.0, r).await
    }
}
