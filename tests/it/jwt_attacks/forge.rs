//! Keys whose private halves the test holds and the daemon takes for its own, and tokens made with them.

use aws_lc_rs::{
    hmac, rand,
    rsa::KeySize,
    signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair},
};
use base64::Engine as _;
pub use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
use claviger::{
    grpc::proto::{Algorithm, CreateKeyRequest, KeyPurpose},
    model::{PublicKey, public_key::Curve},
};
use serde_json::{Value, json};

use crate::daemon::{Daemon, Engine, Setup};

/// A daemon with one token key per family.
pub struct Forge {
    pub daemon: Daemon,
    pub signers: Vec<Signer>,
}

/// A key pair that the daemon believes is on its token.
pub struct Signer {
    pub alg: &'static str,
    pub kid: String,
    pub public: PublicKey,
    pair: Pair,
}

enum Pair {
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

impl Forge {
    pub async fn new() -> Self {
        let mut daemon = Setup::new(Engine::Sqlite).start().await;
        let mut signers = Vec::new();
        for (algorithm, rsa_bits) in [
            (Algorithm::Es256, 0),
            (Algorithm::Rs256, 2048),
            (Algorithm::Eddsa, 0),
        ] {
            let signer = Signer::new(algorithm);
            let request = CreateKeyRequest {
                tenant: "acme".into(),
                name: signer.alg.to_lowercase(),
                purpose: KeyPurpose::TokenSigning.into(),
                algorithm: algorithm.into(),
                rsa_bits,
                owner: "team-e2e".into(),
                ..Default::default()
            };
            let made = daemon.actor("issuer").keys().create_key(request).await;
            let key = made.expect("CreateKey").into_inner().key.expect("a key");
            daemon
                .execute(&format!(
                    "UPDATE key_versions SET kid = '{}', public_jwk = '{}' WHERE key_id = '{}'",
                    signer.kid,
                    signer.public.canonical_jwk(),
                    key.id
                ))
                .await;
            signers.push(signer);
        }
        daemon.restart().await;
        Self { daemon, signers }
    }
}

impl Signer {
    /// A new pair for ES256, RS256 (2048 bits) or EdDSA.
    pub fn new(algorithm: Algorithm) -> Self {
        let (alg, pair, public) = match algorithm {
            Algorithm::Es256 => {
                let scheme = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
                let pair = EcdsaKeyPair::generate(scheme).expect("a pair");
                let point = pair.public_key().as_ref();
                let public = PublicKey::Ec {
                    curve: Curve::P256,
                    x: point[1..33].to_vec(),
                    y: point[33..].to_vec(),
                };
                ("ES256", Pair::Ec(pair), public)
            }
            Algorithm::Rs256 => {
                let pair = RsaKeyPair::generate(KeySize::Rsa2048).expect("a pair");
                // SEQUENCE, INTEGER of 257 bytes (a zero first), INTEGER 65537.
                let der = pair.public_key().as_ref();
                assert_eq!((der.len(), &der[265..]), (270, &[2, 3, 1, 0, 1][..]));
                let public = PublicKey::Rsa {
                    n: der[9..265].to_vec(),
                    e: vec![1, 0, 1],
                };
                ("RS256", Pair::Rsa(pair), public)
            }
            _ => {
                let pair = Ed25519KeyPair::generate().expect("a pair");
                let bytes = pair.public_key().as_ref().try_into().expect("32 bytes");
                ("EdDSA", Pair::Ed(pair), PublicKey::Ed25519(bytes))
            }
        };
        let kid = public.thumbprint().to_string();
        Self {
            alg,
            kid,
            public,
            pair,
        }
    }

    /// In the JOSE form of the key's algorithm.
    pub fn sign(&self, input: &[u8]) -> Vec<u8> {
        let random = rand::SystemRandom::new();
        match &self.pair {
            Pair::Ec(pair) => {
                let signature = pair.sign(&random, input).expect("a signature");
                signature.as_ref().to_vec()
            }
            Pair::Ed(pair) => pair.sign(input).as_ref().to_vec(),
            Pair::Rsa(_) => self
                .sign_rsa(&signature::RSA_PKCS1_SHA256, input)
                .expect("RSA"),
        }
    }

    /// With another padding or hash; None for a pair that is not RSA.
    pub fn sign_rsa(
        &self,
        how: &'static dyn signature::RsaEncoding,
        input: &[u8],
    ) -> Option<Vec<u8>> {
        let Pair::Rsa(pair) = &self.pair else {
            return None;
        };
        let mut signature = vec![0; pair.public_modulus_len()];
        let random = rand::SystemRandom::new();
        pair.sign(how, &random, input, &mut signature)
            .expect("a signature");
        Some(signature)
    }

    pub fn header(&self) -> Value {
        json!({ "alg": self.alg, "kid": self.kid, "typ": "at+jwt" })
    }

    /// The header with one member changed or added.
    pub fn header_with(&self, name: &str, value: Value) -> Value {
        let mut header = self.header();
        header[name] = value;
        header
    }

    /// A token of these texts, rightly signed.
    pub fn compose(&self, header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>) -> String {
        let input = input(header, claims);
        let signature = self.sign(input.as_bytes());
        format!("{input}.{}", B64.encode(signature))
    }
}

/// The signing input of these texts.
pub fn input(header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>) -> String {
    format!("{}.{}", B64.encode(header), B64.encode(claims))
}

/// HMAC by the name that JOSE gives it.
pub fn hmac(alg: &str, secret: &[u8], input: &str) -> Vec<u8> {
    let algorithm = match alg {
        "HS256" => hmac::HMAC_SHA256,
        "HS384" => hmac::HMAC_SHA384,
        "HS512" => hmac::HMAC_SHA512,
        other => panic!("{other} is no HMAC"),
    };
    let key = hmac::Key::new(algorithm, secret);
    hmac::sign(&key, input.as_bytes()).as_ref().to_vec()
}

/// Seconds since the Unix epoch.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Claims that the daemon would accept now and for an hour.
pub fn claims() -> Value {
    let now = now();
    json!({
        "iss": "https://issuer.test",
        "sub": "somebody",
        "aud": "api",
        "exp": now + 3600,
        "iat": now,
        "nbf": now,
        "jti": uuid::Uuid::now_v7().to_string(),
        "client_id": "client",
        "scope": "read write",
        "principal_type": "service",
        "tenant": "acme",
    })
}
