//! Step 2: the service signs; libraries that are not ours verify, for every algorithm.

use aws_lc_rs::digest;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use claviger::grpc::proto::{
    Algorithm, Key, KeyPurpose, SignRequest, SignResponse, VerifyRequest, sign_request::Payload,
    verify_request,
};
use serde_json::{Value, json};
use tonic::Code;

use super::{Story, active, refused};
use crate::foreign::jose;

const ALGORITHMS: [(Algorithm, &str, usize); 10] = [
    (Algorithm::Es256, "ES256", 64),
    (Algorithm::Es384, "ES384", 96),
    (Algorithm::Es512, "ES512", 132),
    (Algorithm::Eddsa, "EdDSA", 64),
    (Algorithm::Ps256, "PS256", 384),
    (Algorithm::Ps384, "PS384", 384),
    (Algorithm::Ps512, "PS512", 384),
    (Algorithm::Rs256, "RS256", 384),
    (Algorithm::Rs384, "RS384", 384),
    (Algorithm::Rs512, "RS512", 384),
];

fn request(key: &str, payload: Payload) -> SignRequest {
    SignRequest {
        tenant: "acme".into(),
        key: key.into(),
        payload: Some(payload),
    }
}

/// A message that a JOSE library knows how to verify: the signing input of a JWS.
fn message(alg: &str) -> String {
    let header = BASE64_URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}"}}"#));
    let body = BASE64_URL_SAFE_NO_PAD.encode("order 4711: 3 anvils");
    format!("{header}.{body}")
}

pub async fn sign(story: &mut Story, key: &Key) {
    let text = message("ES256");
    let of_message = request("orders", Payload::Message(text.clone().into()));
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    let digest = Bytes::copy_from_slice(digest.as_ref());
    let of_digest = request("orders", Payload::Digest(digest.clone()));
    let mut signed = Vec::new();
    for request in [of_message.clone(), of_digest] {
        let answer = story.actor("service").crypto().sign(request).await;
        let answer = answer.expect("Sign").into_inner();
        assert_eq!(answer.kid, key.active_kid);
        assert_eq!(answer.algorithm(), Algorithm::Es256);
        signed.push(item(key, "ES256", &text, &answer));
    }
    story.did("service", "Sign", &key.id);
    verified(&signed).await;

    let short = request("orders", Payload::Digest(digest.slice(1..)));
    let cases = [
        ("other", of_message.clone(), Code::NotFound, "KEY_NOT_FOUND"),
        (
            "issuer",
            of_message.clone(),
            Code::PermissionDenied,
            "PERMISSION_DENIED",
        ),
        (
            "stranger",
            of_message.clone(),
            Code::Unauthenticated,
            "UNKNOWN_PRINCIPAL",
        ),
        (
            "service",
            request("nothing", Payload::Message(text.clone().into())),
            Code::NotFound,
            "KEY_NOT_FOUND",
        ),
        (
            "service",
            request("orders", Payload::Message(Bytes::new())),
            Code::InvalidArgument,
            "PAYLOAD_EMPTY",
        ),
    ];
    for (actor, request, code, why) in cases {
        let result = story.actor(actor).crypto().sign(request).await;
        refused(result, code, why);
    }
    story.was_refused("other", "Sign", &key.id);
    story.was_refused("issuer", "Sign", &key.id);
    let status = story.actor("service").crypto().sign(short).await;
    let status = status.expect_err("a digest of 31 bytes");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    story.failed("service", "Sign", &key.id);
}

pub async fn every_algorithm(story: &mut Story) {
    let mut signed = Vec::new();
    for (algorithm, alg, length) in ALGORITHMS {
        let name = alg.to_ascii_lowercase();
        let key = story
            .daemon
            .key("acme", &name, KeyPurpose::Signing, algorithm)
            .await;
        story.did("issuer", "CreateKey", &key.id);
        let text = message(alg);
        let request = request(&name, Payload::Message(text.clone().into()));
        let answer = story.actor("service").crypto().sign(request).await;
        let answer = answer.unwrap_or_else(|status| panic!("{alg}: {status}"));
        let answer = answer.into_inner();
        assert_eq!(answer.signature.len(), length, "{alg}");
        signed.push(item(&key, alg, &text, &answer));
        let verify = VerifyRequest {
            tenant: "acme".into(),
            key: name,
            kid: answer.kid,
            payload: Some(verify_request::Payload::Message(text.into())),
            signature: answer.signature,
        };
        let verified = story.actor("service").crypto().verify(verify).await;
        assert!(verified.expect("Verify").into_inner().valid, "{alg}");
    }
    verified(&signed).await;
}

fn item(key: &Key, alg: &str, text: &str, signed: &SignResponse) -> Value {
    let version = active(key);
    json!({
        "alg": alg,
        "pem": version.public_pem,
        "jwk": version.public_jwk,
        "message": BASE64_URL_SAFE_NO_PAD.encode(text),
        "signature": BASE64_URL_SAFE_NO_PAD.encode(&signed.signature),
    })
}

/// Accepted with the key as PEM and as JWK; not after a change.
async fn verified(items: &[Value]) {
    let verdicts = jose("signatures", &json!(items)).await;
    let good = json!({ "pem": true, "jwk": true, "forged": false });
    for (item, verdict) in items.iter().zip(verdicts.as_array().expect("a list")) {
        assert_eq!(*verdict, good, "{}", item["alg"]);
    }
    assert_eq!(verdicts.as_array().map(Vec::len), Some(items.len()));
}
