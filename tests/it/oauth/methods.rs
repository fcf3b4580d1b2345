//! How clients prove themselves, and what they get.

use claviger::{
    grpc::proto::*,
    model::{ApiKeyId, ApiKeyText, Secret},
};
use serde_json::json;

use super::realm::{ASSERTION_TYPE, Realm, TOKEN, assertion, claims, jwk, sign};
use crate::{
    daemon::{Engine, Setup},
    jwt_attacks::forge::{Signer, now},
};

// R-OAUTH-1, R-OAUTH-2
#[tokio::test]
async fn a_token_of_a_client_is_like_any_other_and_acts_as_its_owner() {
    let realm = Realm::new().await;
    let (client, secret) = realm.secret("web").await;
    let reply = realm.token((&client.id, &secret), &[]).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.header("cache-control"), "no-store");
    assert_eq!(reply.header("pragma"), "no-cache");
    assert_eq!(reply.header("content-type"), "application/json");
    let answer = reply.json();
    assert_eq!(answer["token_type"], "Bearer");
    assert_eq!(answer["scope"], "orders.read orders.write");
    let expires_in = answer["expires_in"].as_u64().expect("a number");
    assert!((1..=900).contains(&expires_in), "{expires_in}");

    let claims = realm.verified(&reply.token(), "api").await;
    assert_eq!(claims.subject, realm.partner);
    assert_eq!(claims.client_id, client.id);
    assert_eq!(claims.tenant, "acme");
    assert_eq!(claims.principal_type(), PrincipalType::Service);
    assert_eq!(claims.scope, ["orders.read", "orders.write"]);
    assert_eq!(claims.audience, ["api"]);
    assert!(!claims.jti.is_empty() && !claims.kid.is_empty());

    // R-OAUTH-5: who came with which key, and what for.
    assert_eq!(
        realm
            .rows("API_KEY_USED", "success", "IssueClientToken")
            .await,
        1
    );
    assert_eq!(
        realm.rows("IssueClientToken", "success", &client.id).await,
        1
    );
    realm.daemon.stop().await;
}

// R-OAUTH-2
#[tokio::test]
async fn a_secret_is_taken_by_header_or_body_and_an_api_key_is_its_own_client() {
    let realm = Realm::new().await;
    let (client, secret) = realm.secret("web").await;
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", client.id.as_str()),
        ("client_secret", secret.as_str()),
        ("resource", "https://orders.test"),
        ("scope", "orders.read"),
    ];
    let reply = realm.post(TOKEN, &form).await;
    let seen = realm.verified(&reply.token(), "https://orders.test").await;
    assert_eq!(seen.scope, ["orders.read"]);

    let (id, key) = realm.api_key("", &["can.use_users"]).await;
    let reply = realm.token((&id, &key), &[("audience", "api")]).await;
    let seen = realm.verified(&reply.token(), "api").await;
    assert_eq!(
        (seen.client_id, seen.scope),
        (id, vec!["can.use_users".to_owned()])
    );
    realm.daemon.stop().await;
}

#[tokio::test]
async fn an_assertion_is_taken_once_on_all_replicas() {
    let mut realm = Realm::with(Setup::new(Engine::Postgres).for_two()).await;
    let signer = Signer::new(Algorithm::Es256);
    let client = realm.signing("batch", &signer).await;
    let one = assertion(&signer, &client.id);
    let reply = realm.asserted(&one).await;
    assert_eq!(
        realm.verified(&reply.token(), "api").await.client_id,
        client.id
    );
    let again = realm.asserted(&one).await;
    assert_eq!(
        (again.status, again.error()),
        (401, "invalid_client".to_owned())
    );

    let second = realm.daemon.second(None).await;
    let first = std::mem::replace(&mut realm.daemon, second);
    let elsewhere = realm.asserted(&one).await;
    assert_eq!((elsewhere.status, &elsewhere.body), (401, &again.body));
    assert_eq!(
        realm.asserted(&assertion(&signer, &client.id)).await.status,
        200
    );
    assert_eq!(
        realm.rows("IssueClientToken", "refused", "REPLAYED").await,
        2
    );
    realm.daemon.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn every_algorithm_family_and_either_audience_is_taken() {
    let realm = Realm::new().await;
    for algorithm in [Algorithm::Es256, Algorithm::Rs256, Algorithm::Eddsa] {
        let signer = Signer::new(algorithm);
        let client = realm.signing(signer.alg, &signer).await;
        let mut own = claims(&client.id);
        assert_eq!(
            realm.asserted(&sign(&signer, &own)).await.status,
            200,
            "{}",
            signer.alg
        );
        own["aud"] = json!("https://issuer.test");
        own["jti"] = json!("2");
        assert_eq!(
            realm.asserted(&sign(&signer, &own)).await.status,
            200,
            "{}",
            signer.alg
        );
    }
    realm.daemon.stop().await;
}

// Each of these is refused with the same words, and the log says why.
#[tokio::test]
async fn assertions_that_prove_nothing_get_one_and_the_same_answer() {
    let realm = Realm::new().await;
    let (signer, stranger) = (Signer::new(Algorithm::Es256), Signer::new(Algorithm::Es256));
    let client = realm.signing("batch", &signer).await;
    let other = realm.signing("other", &stranger).await;
    let (web, _) = realm.secret("web").await;
    let with = |name: &str, value: serde_json::Value| {
        let mut claims = claims(&client.id);
        claims[name] = value;
        sign(&signer, &claims)
    };
    let headed = |name: &str, value: serde_json::Value| {
        let mut header = json!({ "alg": signer.alg, "kid": signer.kid });
        header[name] = value;
        signer.compose(header.to_string(), claims(&client.id).to_string())
    };
    let swapped = || {
        let (one, other) = (
            assertion(&signer, &client.id),
            assertion(&signer, &client.id),
        );
        let (input, _) = one.rsplit_once('.').expect("a JWT");
        let (_, signature) = other.rsplit_once('.').expect("a JWT");
        format!("{input}.{signature}")
    };
    let header = json!({ "alg": signer.alg, "kid": signer.kid });
    let forged = stranger.compose(header.to_string(), claims(&client.id).to_string());
    let attacks = [
        (with("aud", json!("https://evil.test")), "WRONG_AUDIENCE"),
        (
            with("aud", json!(["https://issuer.test", "https://evil.test"])),
            "WRONG_AUDIENCE",
        ),
        (
            with("aud", json!("https://issuer.test/oauth/token/")),
            "WRONG_AUDIENCE",
        ),
        (with("exp", json!(now() - 60)), "EXPIRED"),
        (with("exp", json!(now() + 4000)), "TOO_LONG"),
        (with("iat", json!(now() + 60)), "NOT_YET_VALID"),
        (with("nbf", json!(now() + 60)), "NOT_YET_VALID"),
        (with("sub", json!(other.id)), "WRONG_ISSUER"),
        (with("jti", json!("")), "BAD_CLAIMS"),
        (with("jti", json!(7)), "BAD_CLAIMS"),
        // A key that is fetched or brought along would be anybody's.
        (
            headed("jku", json!("https://evil.test/redirect")),
            "FORBIDDEN_HEADER",
        ),
        (
            headed("x5u", json!("https://evil.test/cert")),
            "FORBIDDEN_HEADER",
        ),
        (headed("jwk", jwk(&stranger)), "FORBIDDEN_HEADER"),
        (headed("crit", json!(["exp"])), "FORBIDDEN_HEADER"),
        (headed("b64", json!(false)), "FORBIDDEN_HEADER"),
        (headed("kid", json!("unknown")), "UNKNOWN_KID"),
        (headed("alg", json!("HS256")), "WRONG_ALGORITHM"),
        (headed("alg", json!("none")), "WRONG_ALGORITHM"),
        (headed("alg", json!("ES384")), "WRONG_ALGORITHM"),
        (swapped(), "BAD_SIGNATURE"),
        (forged, "BAD_SIGNATURE"),
        (sign(&stranger, &claims(&client.id)), "UNKNOWN_KID"),
        (assertion(&signer, &other.id), "UNKNOWN_KID"),
        (assertion(&signer, &web.id), "WRONG_METHOD"),
        (
            assertion(&signer, &uuid::Uuid::now_v7().to_string()),
            "UNKNOWN_CLIENT",
        ),
        (assertion(&signer, "batch"), "UNKNOWN_CLIENT"),
        ("a.b.c".to_owned(), "MALFORMED"),
        ("x".repeat(9000), "MALFORMED"),
    ];
    let mut answers = std::collections::BTreeSet::new();
    for (assertion, why) in &attacks {
        let before = realm.rows("IssueClientToken", "refused", why).await;
        let reply = realm.asserted(assertion).await;
        assert_eq!(reply.status, 401, "{why}: {reply:?}");
        assert!(reply.header("www-authenticate").starts_with("Basic "));
        answers.insert(reply.body);
        let after = realm.rows("IssueClientToken", "refused", why).await;
        assert_eq!(after, before + 1, "{why} is not in the log: {assertion}");
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    // None of them was used up by being refused.
    assert_eq!(
        realm.asserted(&assertion(&signer, &client.id)).await.status,
        200
    );
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", other.id.as_str()),
        ("client_assertion_type", ASSERTION_TYPE),
        ("client_assertion", &assertion(&signer, &client.id)),
    ];
    assert_eq!(realm.post(TOKEN, &form).await.status, 401);
    realm.daemon.stop().await;
}

// RFC 8705
#[tokio::test]
async fn a_certificate_gets_tokens_that_are_bound_to_it() {
    let realm = Realm::new().await;
    let mut request = realm.request("mtls", ClientAuthMethod::TlsClientAuth);
    request.certificate_identity = "spiffe://claviger.test/mtls".into();
    let client = realm.client(request).await;
    let leaf = realm.daemon.ca.client("spiffe://claviger.test/mtls");
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", client.id.as_str()),
    ];
    let reply = realm.certified(&leaf, TOKEN, &form).await;
    let token = reply.token();

    // RFC 8705 section 3.1: the SHA-256 of the certificate.
    let seen = realm
        .certified(
            &leaf,
            "/oauth/introspect",
            &[("token", &token), ("client_id", &client.id)],
        )
        .await
        .json();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &leaf.der);
    use base64::Engine as _;
    let thumbprint = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(hash);
    assert_eq!(seen["cnf"]["x5t#S256"], thumbprint.as_str(), "{seen}");
    // Who verifies it says which certificate it came with, and none is not enough.
    let verify = async |certificate: &str| {
        let request = VerifyTokenRequest {
            tenant: "acme".into(),
            token: token.clone(),
            audience: "api".into(),
            certificate_thumbprint: certificate.into(),
            ..Default::default()
        };
        let service = realm.daemon.actor("service");
        let answer = service.tokens().verify_token(request).await;
        answer.expect("VerifyToken").into_inner()
    };
    let bound = verify(&thumbprint).await;
    assert!(bound.valid, "{bound:?}");
    let claims = bound.claims.expect("claims");
    assert_eq!(claims.certificate_thumbprint, thumbprint);
    for other in ["", "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"] {
        assert_eq!(verify(other).await.rejection(), TokenRejection::NotBound);
    }

    let wrong = realm.daemon.ca.client("spiffe://claviger.test/somebody");
    let refused = realm.certified(&wrong, TOKEN, &form).await;
    assert_eq!(
        (refused.status, refused.error()),
        (401, "invalid_client".to_owned())
    );
    assert_eq!(
        realm
            .rows("IssueClientToken", "refused", "WRONG_CERTIFICATE")
            .await,
        1
    );
    // Without one, nothing was shown at all.
    let none = realm.post(TOKEN, &form).await;
    assert_eq!((none.status, &none.body), (401, &refused.body));
    // A client that has a secret is not let in by a certificate.
    let (web, _) = realm.secret("web").await;
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", web.id.as_str()),
    ];
    assert_eq!(
        realm.certified(&leaf, TOKEN, &form).await.body,
        refused.body
    );
    realm.daemon.stop().await;
}

// R-OAUTH-2: at every use, not only at creation.
#[tokio::test]
async fn a_token_holds_no_more_than_client_key_and_owner_do_now() {
    let realm = Realm::new().await;
    let client = realm
        .client(realm.request("web", ClientAuthMethod::ClientSecret))
        .await;
    let (_, secret) = realm
        .api_key(&client.id, &["orders.read", "can.use_users"])
        .await;
    let who = (client.id.as_str(), secret.as_str());
    let reply = realm.token(who, &[]).await;
    assert_eq!(reply.json()["scope"], "orders.read", "what all three hold");
    for more in [
        "orders.write",
        "can.use_users",
        "orders.read admin",
        "claviger:key-issuer",
        "a  b",
        "\"",
        "",
    ] {
        let reply = realm.token(who, &[("scope", more)]).await;
        match more {
            "" => assert_eq!(reply.json()["scope"], "orders.read"),
            _ => assert_eq!(
                (reply.status, reply.error()),
                (400, "invalid_scope".to_owned()),
                "{more}"
            ),
        }
    }
    let update = UpdatePrincipalRequest {
        principal_id: realm.partner.clone(),
        remove_scopes: vec!["orders.read".into()],
        ..Default::default()
    };
    let done = realm
        .daemon
        .actor("admin")
        .principals()
        .update_principal(update)
        .await;
    done.expect("UpdatePrincipal");
    let reply = realm.token(who, &[]).await;
    assert_eq!(reply.status, 200);
    assert!(reply.json().get("scope").is_none(), "{reply:?}");
    let reply = realm.token(who, &[("scope", "orders.read")]).await;
    assert_eq!(reply.error(), "invalid_scope");
    realm.daemon.stop().await;
}

#[tokio::test]
async fn whoever_is_suspended_revoked_or_wrong_hears_the_same() {
    let realm = Realm::new().await;
    let (client, secret) = realm.secret("web").await;
    let (other, foreign) = realm.secret("other").await;
    let (id, key) = realm.api_key("", &[]).await;
    let wrong = format!("{}{}", &secret[..60], &foreign[60..]);
    let who = (client.id.as_str(), secret.as_str());
    assert_eq!(realm.token(who, &[]).await.status, 200);
    let mut answers = std::collections::BTreeSet::new();
    let unknown = uuid::Uuid::now_v7().to_string();
    // Of the right form, with the id of a key that exists and of one that does not.
    let forged = |id: ApiKeyId| {
        ApiKeyText::generate(id)
            .expect("a key")
            .expose_secret()
            .clone()
    };
    let parsed = ApiKeyText::parse(Secret::new(secret.clone())).expect("a key");
    let (guessed, invented) = (forged(parsed.id()), forged(ApiKeyId::random()));
    for (who, why) in [
        (
            (client.id.as_str(), guessed.as_str()),
            "API_KEY_WRONG_SECRET",
        ),
        ((client.id.as_str(), invented.as_str()), "API_KEY_UNKNOWN"),
        ((client.id.as_str(), foreign.as_str()), "FOREIGN_SECRET"),
        ((other.id.as_str(), secret.as_str()), "FOREIGN_SECRET"),
        ((client.id.as_str(), key.as_str()), "FOREIGN_SECRET"),
        ((id.as_str(), secret.as_str()), "FOREIGN_SECRET"),
        ((unknown.as_str(), secret.as_str()), "FOREIGN_SECRET"),
        (("", secret.as_str()), "FOREIGN_SECRET"),
        ((client.id.as_str(), wrong.as_str()), "MALFORMED"),
        (
            (client.id.as_str(), &secret[..secret.len() - 1]),
            "MALFORMED",
        ),
        ((client.id.as_str(), "password"), "MALFORMED"),
        ((client.id.as_str(), ""), "MALFORMED"),
    ] {
        let before = realm.rows("IssueClientToken", "refused", why).await;
        let reply = realm.token(who, &[]).await;
        assert_eq!(reply.status, 401, "{why}: {reply:?}");
        answers.insert(reply.body);
        assert_eq!(
            realm.rows("IssueClientToken", "refused", why).await,
            before + 1,
            "{why}"
        );
    }
    realm.suspend(&client.id, ClientState::Suspended).await;
    let reply = realm.token(who, &[]).await;
    assert_eq!(reply.status, 401, "{reply:?}");
    answers.insert(reply.body);
    realm.suspend(&client.id, ClientState::Active).await;
    assert_eq!(realm.token(who, &[]).await.status, 200);
    let admin = realm.daemon.actor("admin");
    let suspend = SuspendPrincipalRequest {
        principal_id: realm.partner.clone(),
        reason: "gone".into(),
    };
    let done = admin.principals().suspend_principal(suspend).await;
    done.expect("SuspendPrincipal");
    let reply = realm.token(who, &[]).await;
    assert_eq!(reply.status, 401, "{reply:?}");
    answers.insert(reply.body);
    assert_eq!(answers.len(), 1, "{answers:?}");
    realm.daemon.stop().await;
}

#[tokio::test]
async fn a_method_that_is_switched_off_lets_nobody_in() {
    let mut realm = Realm::new().await;
    let (client, secret) = realm.secret("web").await;
    realm.daemon.edit_config(|text| {
        text.replace(
            "[oauth]\n",
            "[oauth]\nmethods = [\"client_secret_basic\"]\n",
        )
    });
    realm.daemon.restart().await;
    assert_eq!(realm.token((&client.id, &secret), &[]).await.status, 200);
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", client.id.as_str()),
        ("client_secret", secret.as_str()),
    ];
    let reply = realm.post(TOKEN, &form).await;
    assert_eq!(
        (reply.status, reply.error()),
        (401, "invalid_client".to_owned())
    );
    assert_eq!(
        realm
            .rows("IssueClientToken", "refused", "METHOD_DISABLED")
            .await,
        1
    );
    realm.daemon.stop().await;
}
