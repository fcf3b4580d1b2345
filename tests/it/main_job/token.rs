//! Step 4: the service obtains a token; a verifier needs nothing but the JWKS, fetched over HTTPS.

use claviger::grpc::proto::{
    Algorithm, IssueTokenRequest, IssueTokenResponse, Key, KeyPurpose, SignRequest, TokenRejection,
    VerifyTokenRequest, VerifyTokenResponse, sign_request::Payload,
};
use serde_json::{Value, json};
use tonic::Code;

use super::{Story, refused};
use crate::foreign::jose;

const AUDIENCE: &str = "orders-api";

fn request() -> IssueTokenRequest {
    IssueTokenRequest {
        tenant: "acme".into(),
        key: "tokens".into(),
        audience: vec![AUDIENCE.into()],
        scope: vec!["orders.read".into()],
        ..Default::default()
    }
}

pub async fn issue(story: &mut Story) -> (Key, IssueTokenResponse) {
    let key = story
        .daemon
        .key("acme", "tokens", KeyPurpose::TokenSigning, Algorithm::Es256)
        .await;
    story.did("issuer", "CreateKey", &key.id);
    let cases = [
        ("other", Code::NotFound, "KEY_NOT_FOUND"),
        ("officer", Code::PermissionDenied, "PERMISSION_DENIED"),
        ("stranger", Code::Unauthenticated, "UNKNOWN_PRINCIPAL"),
    ];
    for (actor, code, why) in cases {
        let result = story.actor(actor).tokens().issue_token(request()).await;
        refused(result, code, why);
    }
    story.was_refused("other", "IssueToken", &key.id);
    story.was_refused("officer", "IssueToken", &key.id);
    // Or any caller of Sign could forge a token.
    let forge = SignRequest {
        tenant: "acme".into(),
        key: "tokens".into(),
        payload: Some(Payload::Message("header.claims".into())),
    };
    let result = story.actor("service").crypto().sign(forge).await;
    refused(result, Code::FailedPrecondition, "KEY_PURPOSE_MISMATCH");
    story.failed("service", "Sign", &key.id);

    let token = one(story).await;
    story.did("service", "IssueToken", &key.id);
    assert_eq!(token.kid, key.active_kid);
    accepted_by_strangers(story, &token).await;
    let good = verdict(story, "service", &token.token, AUDIENCE).await;
    let claims = good.claims.expect("claims");
    assert!(good.valid && claims.kid == token.kid && claims.jti == token.jti);
    story.did("service", "VerifyToken", "acme");
    let wrong = verdict(story, "service", &token.token, "somebody-else").await;
    assert_eq!(wrong.rejection(), TokenRejection::WrongAudience);
    // A token of acme is nothing to globex.
    let wrong = verdict(story, "other", &token.token, AUDIENCE).await;
    assert_eq!(wrong.rejection(), TokenRejection::UnknownKid);
    (key, token)
}

pub async fn one(story: &Story) -> IssueTokenResponse {
    let issued = story.actor("service").tokens().issue_token(request()).await;
    issued.expect("IssueToken").into_inner()
}

pub async fn verdict(
    story: &Story,
    actor: &str,
    token: &str,
    audience: &str,
) -> VerifyTokenResponse {
    let request = VerifyTokenRequest {
        token: token.to_owned(),
        audience: audience.to_owned(),
        ..Default::default()
    };
    let answer = story.actor(actor).tokens().verify_token(request).await;
    answer.expect("VerifyToken").into_inner()
}

/// A foreign JOSE library accepts the token by the JWK Set alone, and no changed one; so does `VerifyToken`.
pub async fn accepted_by_strangers(story: &Story, token: &IssueTokenResponse) {
    let port = story.daemon.addresses().public.rsplit(':').next();
    let job = json!({
        "url": format!("https://localhost:{}/.well-known/jwks.json", port.expect("a port")),
        "ca": story.daemon.path("certs/ca.crt"),
        "token": token.token,
        "issuer": "https://issuer.test",
        "audience": AUDIENCE,
    });
    let answer = jose("token", &job).await;
    let header = json!({ "alg": "ES256", "kid": token.kid, "typ": "at+jwt" });
    assert_eq!(answer["header"], header);
    let claims = &answer["claims"];
    assert_eq!(claims["jti"], token.jti);
    assert_eq!(claims["tenant"], "acme");
    assert_eq!(claims["scope"], "orders.read");
    let forged = answer["forged"].as_array().expect("verdicts");
    assert!(forged.iter().all(|verdict| *verdict == Value::Bool(false)));
    assert!(forged.len() > 5);
    assert!(
        verdict(story, "service", &token.token, AUDIENCE)
            .await
            .valid
    );
}

/// The kids that the JWK Set publishes, and nothing private.
pub async fn published(story: &Story) -> Vec<String> {
    let answer = story.daemon.public_get("/.well-known/jwks.json").await;
    assert_eq!(answer.status, 200);
    assert!(answer.headers.contains_key("etag") && answer.headers.contains_key("cache-control"));
    let set: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let keys = set["keys"].as_array().expect("keys");
    let kids = keys.iter().map(|key| {
        let private = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
        assert!(private.iter().all(|name| key.get(name).is_none()), "{key}");
        key["kid"].as_str().expect("a kid").to_owned()
    });
    kids.collect()
}
