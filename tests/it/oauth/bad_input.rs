//! Requests that are wrong before anybody is asked who they are from, and such that are wrong afterwards.

use std::collections::BTreeSet;

use claviger::grpc::proto::*;

use super::realm::{INTROSPECT, REVOKE, Realm, TOKEN, body};
use crate::daemon::{Engine, Setup};

const FORM: &str = "application/x-www-form-urlencoded";

/// What is wrong, the headers, the body.
type Shape<'a> = (&'a str, Vec<(&'a str, &'a str)>, String);

// Refused without effect: no token is signed for any of them.
#[tokio::test]
async fn malformed_requests_are_refused_at_every_endpoint_and_recorded() {
    let realm = Realm::new().await;
    let (client, secret) = realm.secret("web").await;
    let good = body(&[
        ("grant_type", "client_credentials"),
        ("token", "abc"),
        ("client_id", &client.id),
        ("client_secret", &secret),
    ]);
    let form = ("content-type", FORM);
    let json = ("content-type", "application/json");
    let long = format!("{good}&padding={}", "x".repeat(70 << 10));
    let many = format!(
        "{good}{}",
        (0..40).map(|i| format!("&p{i}=")).collect::<String>()
    );
    let twice = |parameter: &str| format!("{good}&{parameter}");
    let basic = "Basic bWU6c2VjcmV0";
    let bodies: Vec<Shape<'_>> = vec![
        ("no content type", vec![("content-type", "")], good.clone()),
        (
            "JSON",
            vec![json],
            "{\"grant_type\":\"client_credentials\"}".into(),
        ),
        ("two content types", vec![form, json], good.clone()),
        (
            "another charset",
            vec![(
                "content-type",
                "application/x-www-form-urlencoded; charset=utf-16",
            )],
            good.clone(),
        ),
        (
            "compressed",
            vec![form, ("content-encoding", "gzip")],
            good.clone(),
        ),
        ("too long", vec![form], long),
        ("too many", vec![form], many),
        (
            "client_id twice",
            vec![form],
            twice(&format!("client_id={}", client.id)),
        ),
        (
            "grant_type twice",
            vec![form],
            twice("grant_type=client_credentials"),
        ),
        ("token twice", vec![form], twice("token=")),
        ("unknown twice", vec![form], twice("a=1&a=1")),
        ("not UTF-8", vec![form], twice("a=%ff%fe")),
        ("cut escape", vec![form], twice("a=%f")),
        ("control characters", vec![form], twice("a=%00")),
        (
            "two methods",
            vec![form, ("authorization", basic)],
            good.clone(),
        ),
        (
            "two headers",
            vec![form, ("authorization", basic), ("authorization", basic)],
            good.clone(),
        ),
        (
            "secret and assertion",
            vec![form],
            twice("client_assertion=a.b.c"),
        ),
        (
            "no base64",
            vec![form, ("authorization", "Basic ???")],
            String::new(),
        ),
        (
            "no colon",
            vec![form, ("authorization", "Basic bWU=")],
            String::new(),
        ),
        (
            "another client_id",
            vec![form, ("authorization", basic)],
            format!("client_id={}", client.id),
        ),
    ];
    for (path, action) in [
        (TOKEN, "IssueClientToken"),
        (INTROSPECT, "IntrospectToken"),
        (REVOKE, "RevokeOwnToken"),
    ] {
        for (what, headers, body) in &bodies {
            let before = realm.rows(action, "refused", "INVALID_REQUEST").await;
            let reply = realm.send(None, path, headers, body).await;
            assert_eq!(reply.status, 400, "{path}: {what}: {reply:?}");
            assert_eq!(reply.error(), "invalid_request", "{path}: {what}");
            assert_eq!(reply.header("cache-control"), "no-store");
            let after = realm.rows(action, "refused", "INVALID_REQUEST").await;
            assert_eq!(after, before + 1, "{path}: {what} is not in the log");
        }
        // A key in a query string is in every log on the way.
        for query in ["?client_secret=s", "?", "?grant_type=client_credentials"] {
            let reply = realm
                .send(None, &format!("{path}{query}"), &[], &good)
                .await;
            assert_eq!(
                (reply.status, reply.error()),
                (400, "invalid_request".into()),
                "{query}"
            );
        }
    }
    assert_eq!(realm.rows("IssueClientToken", "success", "").await, 0);
    assert_eq!(
        realm.send(None, TOKEN, &[], &good).await.status,
        200,
        "nothing else was wrong"
    );
    realm.daemon.stop().await;
}

#[tokio::test]
async fn requests_without_authentication_are_told_to_authenticate() {
    let realm = Realm::new().await;
    let (client, _) = realm.secret("web").await;
    let mut answers = BTreeSet::new();
    for (headers, form) in [
        (&[][..], "grant_type=client_credentials"),
        (
            &[],
            &format!("grant_type=client_credentials&client_id={}", client.id),
        ),
        (
            &[("authorization", "Bearer abc")],
            "grant_type=client_credentials",
        ),
        (
            &[("authorization", "Negotiate abc")],
            "grant_type=client_credentials",
        ),
        (
            &[],
            "client_assertion=a.b.c&client_assertion_type=saml2-bearer",
        ),
    ] {
        let reply = realm.send(None, TOKEN, headers, form).await;
        assert_eq!(reply.status, 401, "{form}: {reply:?}");
        assert!(reply.header("www-authenticate").starts_with("Basic realm="));
        answers.insert(reply.body);
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    realm.daemon.stop().await;
}

// RFC 6749 section 5.2, RFC 8707 section 2.
#[tokio::test]
async fn a_known_client_hears_what_is_wrong_with_its_request() {
    let realm = Realm::new().await;
    let (client, secret) = realm.secret("web").await;
    let who = (client.id.as_str(), secret.as_str());
    for (form, code) in [
        (&[][..], "invalid_request"),
        (&[("grant_type", "")], "invalid_request"),
        (
            &[
                ("grant_type", "password"),
                ("username", "a"),
                ("password", "b"),
            ],
            "unsupported_grant_type",
        ),
        (
            &[("grant_type", "authorization_code"), ("code", "a")],
            "unsupported_grant_type",
        ),
        (&[("grant_type", "refresh_token")], "unsupported_grant_type"),
        (
            &[("grant_type", "CLIENT_CREDENTIALS")],
            "unsupported_grant_type",
        ),
        (
            &[
                ("grant_type", "client_credentials"),
                ("resource", "https://evil.test"),
            ],
            "invalid_target",
        ),
        (
            &[("grant_type", "client_credentials"), ("audience", "API")],
            "invalid_target",
        ),
        (
            &[
                ("grant_type", "client_credentials"),
                ("audience", "api"),
                ("resource", "https://orders.test"),
            ],
            "invalid_request",
        ),
        (
            &[
                ("grant_type", "client_credentials"),
                ("scope", "orders.delete"),
            ],
            "invalid_scope",
        ),
    ] {
        let reply = realm.basic(TOKEN, who, form).await;
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (400, code),
            "{form:?}"
        );
    }
    for path in [INTROSPECT, REVOKE] {
        let reply = realm
            .basic(path, who, &[("token_type_hint", "access_token")])
            .await;
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (400, "invalid_request"),
            "{path}"
        );
    }
    assert_eq!(realm.rows("IssueClientToken", "failed", "").await, 10);
    assert_eq!(realm.rows("IntrospectToken", "failed", "").await, 1);
    assert_eq!(realm.rows("RevokeOwnToken", "failed", "").await, 1);
    // What a server does not know, it ignores (RFC 6749 section 3.2).
    let reply = realm.token(who, &[("unheard_of", "1")]).await;
    assert_eq!(reply.status, 200);
    realm.daemon.stop().await;
}

#[tokio::test]
async fn api_keys_get_no_tokens_until_an_audience_is_configured() {
    let mut realm = Realm::new().await;
    realm
        .daemon
        .edit_config(|text| text.replace("audiences = [\"api\", \"https://orders.test\"]", ""));
    realm.daemon.restart().await;
    let (id, key) = realm.api_key("", &[]).await;
    let reply = realm.token((&id, &key), &[]).await;
    assert_eq!(
        (reply.status, reply.error()),
        (400, "unauthorized_client".into())
    );
    // A client has audiences of its own.
    let (client, secret) = realm.secret("web").await;
    assert_eq!(realm.token((&client.id, &secret), &[]).await.status, 200);
    realm.daemon.stop().await;
}

// R-EMER-1: the signing key is frozen; 503 says that it may come back.
#[tokio::test]
async fn a_tenant_whose_key_cannot_sign_is_temporarily_unavailable() {
    let realm = Realm::new().await;
    let (client, secret) = realm.secret("web").await;
    let revoke = DeclareCompromiseRequest {
        tenant: "acme".into(),
        key: "tokens".into(),
        reason: "a test".into(),
        ..Default::default()
    };
    let declared = realm
        .daemon
        .actor("officer")
        .incidents()
        .declare_compromise(revoke)
        .await;
    declared.expect("DeclareCompromise");
    // The daemon makes a successor by itself; until it has, nothing is signed, and afterwards everything is well.
    let reply = realm.token((&client.id, &secret), &[]).await;
    match reply.status {
        200 => {}
        _ => {
            assert_eq!(
                (reply.status, reply.error()),
                (503, "temporarily_unavailable".into())
            );
            assert!(!reply.header("retry-after").is_empty());
        }
    }

    // Another tenant has no such key at all.
    let partner = super::realm::partner(&realm.daemon, "globex", "partner").await;
    let mut request = realm.request("elsewhere", ClientAuthMethod::ClientSecret);
    request.owner_id = partner.clone();
    let client = realm.client(request).await;
    let elsewhere = super::realm::Realm {
        partner,
        daemon: realm.daemon,
    };
    let (_, secret) = elsewhere.api_key(&client.id, &[]).await;
    let reply = elsewhere.token((&client.id, &secret), &[]).await;
    assert_eq!(
        (reply.status, reply.error()),
        (503, "temporarily_unavailable".into())
    );
    assert!(!reply.header("retry-after").is_empty());
    elsewhere.daemon.stop().await;
}

#[tokio::test]
async fn failures_are_throttled_and_a_good_client_is_not() {
    let mut realm = Realm::with(Setup::new(Engine::Sqlite)).await;
    let (client, secret) = realm.secret("web").await;
    realm
        .daemon
        .edit_config(|text| text.replace("failures_per_minute = 10000", "failures_per_minute = 3"));
    realm.daemon.restart().await;
    let who = (client.id.as_str(), secret.as_str());
    assert_eq!(realm.token(who, &[]).await.status, 200);
    let mut statuses = Vec::new();
    for _ in 0..8 {
        statuses.push(realm.token((&client.id, "guess"), &[]).await.status);
    }
    assert_eq!(statuses[..3], [401; 3], "{statuses:?}");
    assert!(statuses.contains(&429), "{statuses:?}");
    // Nobody locks the owner out: not by its id, and not from its address.
    assert_eq!(realm.token(who, &[]).await.status, 200);
    realm.daemon.stop().await;
}
