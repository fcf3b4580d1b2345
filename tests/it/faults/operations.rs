//! What people do with keys, one call each; every answer is checked before it counts.

use std::time::{Duration, Instant};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use claviger::grpc::proto::*;
use tonic::{Request, Status};
use tonic_types::StatusExt;

use crate::{
    daemon::{Daemon, reason},
    incidents::{declare, issue, verify},
};

/// One column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Sign,
    IssueToken,
    ColdEncrypt,
    CachedEncrypt,
    CachedDecrypt,
    Verify,
    VerifyToken,
    Jwks,
    CreateSigningKey,
    CreateDataKey,
    RotateKey,
    DeclareCompromise,
    /// Under the key that was declared compromised; not a column.
    IssueAfterCompromise,
    Livez,
}

use Operation::*;

impl Operation {
    /// Every one, those first that need no device.
    pub const ALL: [Self; 13] = [
        CachedEncrypt,
        CachedDecrypt,
        Verify,
        VerifyToken,
        Jwks,
        Livez,
        DeclareCompromise,
        ColdEncrypt,
        Sign,
        IssueToken,
        CreateDataKey,
        CreateSigningKey,
        RotateKey,
    ];

    /// The heading of its column.
    pub const fn name(self) -> &'static str {
        match self {
            Sign => "Sign",
            IssueToken => "IssueToken",
            ColdEncrypt => "Encrypt, cold data key",
            CachedEncrypt => "Encrypt, cached",
            CachedDecrypt => "Decrypt, cached",
            Verify => "Verify",
            VerifyToken => "VerifyToken",
            Jwks => "JWKS",
            CreateSigningKey => "CreateKey, signing",
            CreateDataKey => "CreateKey, data key",
            RotateKey => "RotateKey",
            DeclareCompromise => "DeclareCompromise",
            IssueAfterCompromise => "IssueToken, after DeclareCompromise",
            Livez => "/livez",
        }
    }

    /// Does it go on without any device?
    pub const fn needs_no_device(self) -> bool {
        match self {
            CachedEncrypt | CachedDecrypt | Verify | VerifyToken | Jwks | DeclareCompromise
            | Livez => true,
            Sign | IssueToken | IssueAfterCompromise | ColdEncrypt | CreateSigningKey
            | CreateDataKey | RotateKey => false,
        }
    }

    /// Does the device make a key, or is it asked to?
    pub const fn makes_a_key(self) -> bool {
        matches!(
            self,
            CreateSigningKey | CreateDataKey | RotateKey | DeclareCompromise
        )
    }
}

/// What an operation came to.
pub struct Outcome {
    /// `OK`, or code and reason.
    pub class: String,
    /// Has it a retry hint?
    pub hinted: bool,
    pub after: Duration,
    pub message: String,
}

/// Keys that operations use, and what was made with them in fine weather.
pub struct Bench {
    public: Vec<u8>,
    signature: Bytes,
    token: String,
    ciphertext: Bytes,
}

const TEXT: &[u8] = b"the quick brown fox";

/// Keys of one round, which the weather has not touched yet.
pub struct Round(usize);

impl Round {
    pub const fn new(number: usize) -> Self {
        Self(number)
    }

    fn cold(&self) -> String {
        format!("cold-{}", self.0)
    }

    fn rotating(&self) -> String {
        format!("rotating-{}", self.0)
    }

    /// The key that is declared compromised.
    fn leaked(&self) -> String {
        format!("leaked-{}", self.0)
    }
}

impl Bench {
    pub async fn new(daemon: &Daemon) -> Self {
        let es256 = Algorithm::Es256;
        let signing = daemon
            .key("acme", "signing", KeyPurpose::Signing, es256)
            .await;
        token_key(daemon, "tokens").await;
        data_key(daemon, "warm").await;
        let mut bench = Self {
            public: point(&signing.versions[0].public_jwk),
            signature: Bytes::new(),
            token: String::new(),
            ciphertext: Bytes::new(),
        };
        bench.signature = bench.signature(daemon).await.expect("signs");
        bench.token = bench.token(daemon, "tokens").await.expect("issues");
        bench.ciphertext = bench.encrypted(daemon, "warm").await.expect("encrypts");
        bench
    }

    /// Keys for a round, made in fine weather.
    pub async fn round(&self, daemon: &Daemon, number: usize) -> Round {
        let round = Round::new(number);
        data_key(daemon, &round.cold()).await;
        token_key(daemon, &round.rotating()).await;
        token_key(daemon, &round.leaked()).await;
        round
    }

    /// One call; a wrong answer fails the test.
    pub async fn run(&self, daemon: &Daemon, operation: Operation, round: &Round) -> Outcome {
        let began = Instant::now();
        let outcome = self.call(daemon, operation, round).await;
        let after = began.elapsed();
        match outcome {
            Ok(()) => Outcome {
                class: "OK".into(),
                hinted: false,
                after,
                message: String::new(),
            },
            Err(status) => {
                let code = format!("{:?}", status.code());
                Outcome {
                    class: format!("{} {}", shouted(&code), reason(&status)),
                    hinted: status.get_details_retry_info().is_some(),
                    after,
                    message: status.message().to_owned(),
                }
            }
        }
    }

    async fn call(
        &self,
        daemon: &Daemon,
        operation: Operation,
        round: &Round,
    ) -> Result<(), Status> {
        match operation {
            Sign => self.signature(daemon).await.map(drop),
            IssueToken => self.token(daemon, "tokens").await.map(drop),
            IssueAfterCompromise => self.token(daemon, &round.leaked()).await.map(drop),
            ColdEncrypt => self.encrypted(daemon, &round.cold()).await.map(drop),
            CachedEncrypt => self.encrypted(daemon, "warm").await.map(drop),
            CachedDecrypt => self.decrypts(daemon, "warm", &self.ciphertext).await,
            Verify => self.verifies(daemon).await,
            VerifyToken => self.accepts(daemon, &self.token).await,
            Jwks => {
                self.publishes(daemon).await;
                Ok(())
            }
            CreateSigningKey => self.creates(daemon, round, KeyPurpose::Signing).await,
            CreateDataKey => self.creates(daemon, round, KeyPurpose::Encryption).await,
            RotateKey => self.rotates(daemon, round).await,
            DeclareCompromise => self.declares(daemon, round).await,
            Livez => {
                assert_eq!(daemon.ops_get("/livez").await.status, 200);
                Ok(())
            }
        }
    }

    /// A signature that verifies under the public key, without the daemon's help.
    async fn signature(&self, daemon: &Daemon) -> Result<Bytes, Status> {
        let request = SignRequest {
            key: "signing".into(),
            payload: Some(sign_request::Payload::Message(TEXT.into())),
            ..Default::default()
        };
        let answer = daemon.actor("service").crypto().sign(request).await?;
        let signature = answer.into_inner().signature;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.public)
            .verify(TEXT, &signature)
            .expect("a signature that was returned verifies");
        Ok(signature)
    }

    /// A token whose signature verifies under the published key, without the daemon's help.
    async fn token(&self, daemon: &Daemon, key: &str) -> Result<String, Status> {
        let service = daemon.actor("service");
        let answer = service.tokens().issue_token(issue(key)).await?;
        let answer = answer.into_inner();
        let set: serde_json::Value =
            serde_json::from_str(&self.published(daemon).await).expect("JSON");
        let keys = set["keys"].as_array().expect("keys");
        let key = keys.iter().find(|key| key["kid"] == answer.kid.as_str());
        let public = point(&key.expect("a resolvable kid").to_string());
        let (input, signature) = answer.token.rsplit_once('.').expect("a JWS");
        let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public)
            .verify(input.as_bytes(), &signature)
            .expect("a token that was returned verifies");
        Ok(answer.token)
    }

    /// A ciphertext that decrypts.
    async fn encrypted(&self, daemon: &Daemon, key: &str) -> Result<Bytes, Status> {
        let request = EncryptRequest {
            key: key.into(),
            plaintext: TEXT.into(),
            ..Default::default()
        };
        let service = daemon.actor("service");
        let ciphertext = service.crypto().encrypt(request).await?;
        let ciphertext = ciphertext.into_inner().ciphertext;
        self.decrypts(daemon, key, &ciphertext).await?;
        Ok(ciphertext)
    }

    async fn decrypts(&self, daemon: &Daemon, key: &str, ciphertext: &Bytes) -> Result<(), Status> {
        let request = DecryptRequest {
            key: key.into(),
            ciphertext: ciphertext.clone(),
            ..Default::default()
        };
        let service = daemon.actor("service");
        let plaintext = service.crypto().decrypt(request).await?.into_inner();
        assert_eq!(plaintext.plaintext, TEXT);
        Ok(())
    }

    async fn verifies(&self, daemon: &Daemon) -> Result<(), Status> {
        let request = VerifyRequest {
            key: "signing".into(),
            payload: Some(verify_request::Payload::Message(TEXT.into())),
            signature: self.signature.clone(),
            ..Default::default()
        };
        let service = daemon.actor("service");
        let answer = service.crypto().verify(request).await?.into_inner();
        assert!(answer.valid);
        Ok(())
    }

    async fn accepts(&self, daemon: &Daemon, token: &str) -> Result<(), Status> {
        let service = daemon.actor("service");
        let answer = service.tokens().verify_token(verify(token)).await?;
        assert!(answer.into_inner().valid);
        Ok(())
    }

    async fn published(&self, daemon: &Daemon) -> String {
        let answer = daemon.public_get("/.well-known/jwks.json").await;
        assert_eq!(answer.status, 200);
        answer.text()
    }

    async fn publishes(&self, daemon: &Daemon) {
        assert!(self.published(daemon).await.contains("\"kid\""));
    }

    async fn creates(
        &self,
        daemon: &Daemon,
        round: &Round,
        purpose: KeyPurpose,
    ) -> Result<(), Status> {
        let algorithm = match purpose {
            KeyPurpose::Encryption => Algorithm::A256gcm,
            _pairs => Algorithm::Es256,
        };
        let request = CreateKeyRequest {
            tenant: "acme".into(),
            name: format!("new-{}-{purpose:?}", round.0).to_lowercase(),
            purpose: purpose.into(),
            algorithm: algorithm.into(),
            owner: "team-e2e".into(),
            ..Default::default()
        };
        let name = format!("create-{purpose:?}-{}", round.0);
        let request = idempotent(request, &name);
        let answer = daemon.actor("issuer").keys().create_key(request).await;
        let key = answer?.into_inner().key.expect("a key");
        assert_eq!(key.versions.len(), 1);
        Ok(())
    }

    async fn rotates(&self, daemon: &Daemon, round: &Round) -> Result<(), Status> {
        let request = RotateKeyRequest {
            tenant: "acme".into(),
            key: round.rotating(),
            justification: "a rehearsal".into(),
            ..Default::default()
        };
        let request = idempotent(request, &format!("rotate-{}", round.0));
        let issuer = daemon.actor("issuer");
        let answer = issuer.rotations().rotate_key(request).await?.into_inner();
        assert!(!answer.rotation.expect("a rotation").new_kid.is_empty());
        Ok(())
    }

    async fn declares(&self, daemon: &Daemon, round: &Round) -> Result<(), Status> {
        let request = idempotent(declare(&round.leaked(), ""), &format!("leak-{}", round.0));
        let officer = daemon.actor("officer");
        let answer = officer.incidents().declare_compromise(request).await?;
        assert!(answer.into_inner().frozen_everywhere);
        Ok(())
    }
}

/// A call that a client repeats until it knows what became of it (R-OPS-2).
fn idempotent<T>(message: T, name: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = name.to_lowercase().parse().expect("ASCII");
    request.metadata_mut().insert("idempotency-key", value);
    request
}

async fn token_key(daemon: &Daemon, name: &str) -> Key {
    let purpose = KeyPurpose::TokenSigning;
    daemon.key("acme", name, purpose, Algorithm::Es256).await
}

async fn data_key(daemon: &Daemon, name: &str) -> Key {
    let purpose = KeyPurpose::Encryption;
    daemon.key("acme", name, purpose, Algorithm::A256gcm).await
}

/// The uncompressed point of an EC public key (JWK).
fn point(jwk: &str) -> Vec<u8> {
    let jwk: serde_json::Value = serde_json::from_str(jwk).expect("a JWK");
    let coordinate = |name: &str| {
        let text = jwk[name].as_str().expect("a coordinate");
        URL_SAFE_NO_PAD.decode(text).expect("base64url")
    };
    [vec![4], coordinate("x"), coordinate("y")].concat()
}

/// `DeadlineExceeded` as `DEADLINE_EXCEEDED`.
fn shouted(code: &str) -> String {
    let mut out = String::new();
    for c in code.chars() {
        if c.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}
