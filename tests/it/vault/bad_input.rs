//! What cannot be stored is refused with a reason, and without a word of the secret.

use super::*;
use crate::daemon::{Engine, Setup};

const PLANTED: &str = "planted-0123456789abcdef";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_stored_is_refused_and_not_repeated() {
    let d = Daemon::start(Engine::Sqlite).await;
    let alice = person(&d, "acme", "alice", &["can.use_users"]).await;
    let with = |name: &str, value: Value| {
        let mut body = binance(PLANTED);
        body[name] = value;
        body
    };
    let field = |value: String| {
        let mut body = binance(PLANTED);
        body["fields"]["api_secret"] = value.into();
        body
    };
    for body in [
        with("provider", "nobody".into()),
        with("provider", "Bin ance".into()),
        with("environment", "live".into()),
        with("name", "".into()),
        with("name", "a\nb".into()),
        with("name", "x".repeat(101).into()),
        with("organisation", "a\u{202e}b".into()),
        with("fields", json!({})),
        with("fields", json!({ "api_key": PLANTED })),
        with(
            "fields",
            json!({ "api_key": PLANTED, "api_secret": PLANTED, "pin": PLANTED }),
        ),
        field(String::new()),
        field(format!("{PLANTED}\n")),
        field(format!("{PLANTED}\u{0}")),
        field(format!(" {PLANTED}")),
        field(PLANTED.repeat(400)),
    ] {
        let reply = alice.post(&d, MINE, &body).await;
        problem(&reply, 400, "INVALID_FIELD");
        assert!(!reply.body.contains(PLANTED), "{reply:?}");
    }
    for body in [
        with("fields", json!({ "api_key": 1 })),
        with("more", PLANTED.into()),
        json!([binance(PLANTED)]),
        json!("x"),
    ] {
        let reply = alice.post(&d, MINE, &body).await;
        problem(&reply, 400, "MALFORMED_REQUEST");
        assert!(!reply.body.contains(PLANTED), "{reply:?}");
    }
    // 64 KiB of secret is more than any body may have.
    let huge = alice.post(&d, MINE, &field("x".repeat(64 << 10))).await;
    problem(&huge, 413, "PAYLOAD_TOO_LARGE");
    let bearer = format!("Bearer {}", alice.key);
    let text = binance(PLANTED).to_string();
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
        let reply = send(&d, Method::POST, MINE, &headers, &text).await;
        problem(&reply, 400, "MALFORMED_REQUEST");
    }
    // Two readers could read two different secrets.
    let twice = text.replacen('{', r#"{"provider":"oanda","#, 1);
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
    ];
    let reply = send(&d, Method::POST, MINE, &headers, &twice).await;
    problem(&reply, 400, "MALFORMED_REQUEST");
    problem(
        &alice.get(&d, &format!("{MINE}?x=1")).await,
        400,
        "INVALID_FIELD",
    );
    problem(
        &alice.get(&d, &format!("{MINE}?page_token=x")).await,
        400,
        "PAGE_TOKEN_INVALID",
    );
    problem(
        &alice.get(&d, "/users/nobody/broker-credentials").await,
        400,
        "INVALID_FIELD",
    );
    problem(
        &alice.get(&d, &format!("{MINE}/nothing")).await,
        404,
        "CREDENTIAL_NOT_FOUND",
    );

    let id = alice.stores(&d, &binance(PLANTED)).await;
    let path = format!("{MINE}/{id}/reveal");
    for body in [
        json!({ "reason": "" }),
        json!({ "reason": "x".repeat(501) }),
    ] {
        problem(&alice.post(&d, &path, &body).await, 400, "INVALID_FIELD");
    }
    problem(
        &alice.post(&d, &path, &json!({})).await,
        400,
        "MALFORMED_REQUEST",
    );
    problem(
        &alice.post(&d, MINE, &binance(PLANTED)).await,
        409,
        "ALREADY_EXISTS",
    );
    // The same for another environment or under another name is another credential (R-CRED-8).
    alice
        .stores(&d, &with("environment", "production".into()))
        .await;
    alice.stores(&d, &with("name", "second".into())).await;
    assert!(!d.log().contains(PLANTED), "a secret is in the log");
    let kept = d.rows("SELECT data FROM audit_events").await.concat();
    assert!(!kept.iter().any(|data| data.contains(PLANTED)));
    d.stop().await;
}

// R-CRED-4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unusual_format_is_a_warning_and_under_strict_an_error() {
    let openai = |key: &str| {
        json!({
            "provider": "openai",
            "environment": "production",
            "organisation": "org-1",
            "fields": { "api_key": key },
        })
    };
    let (usual, unusual) = (format!("sk-{}", "aB3x".repeat(12)), "sk-short");
    let lenient = Daemon::start(Engine::Sqlite).await;
    let alice = person(&lenient, "acme", "alice", &["can.use_users"]).await;
    let stored = alice.post(&lenient, MINE, &openai(unusual)).await;
    assert_eq!(stored.status, 201, "{stored:?}");
    let stored = stored.json();
    assert_eq!(stored["credential"]["format_ok"], false);
    let warnings = stored["warnings"].as_array().expect("a list");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(!stored.to_string().contains(unusual));
    lenient.stop().await;

    let strict = Setup::new(Engine::Sqlite).append("[vault]\nstrict = true");
    let strict = strict.start().await;
    let alice = person(&strict, "acme", "alice", &["can.use_users"]).await;
    let refused = alice.post(&strict, MINE, &openai(unusual)).await;
    problem(&refused, 400, "INVALID_FIELD");
    assert!(!refused.body.contains(unusual), "{refused:?}");
    let stored = alice.post(&strict, MINE, &openai(&usual)).await;
    assert_eq!(stored.status, 201, "{stored:?}");
    assert_eq!(stored.json()["warnings"], json!([]));
    strict.stop().await;
}

// R-OPS-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_made_again_gets_its_answer_again_and_never_a_kept_secret() {
    let d = Daemon::start(Engine::Sqlite).await;
    let alice = person(&d, "acme", "alice", &["can.use_users"]).await;
    let bearer = format!("Bearer {}", alice.key);
    let with_key = async |path: &str, body: &Value, key: &str| {
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
            ("idempotency-key", key),
        ];
        send(&d, Method::POST, path, &headers, &body.to_string()).await
    };
    let first = with_key(MINE, &binance(PLANTED), "one").await;
    assert_eq!(first.status, 201, "{first:?}");
    let again = with_key(MINE, &binance(PLANTED), "one").await;
    assert_eq!((again.status, &again.body), (201, &first.body));
    let mut other = binance(PLANTED);
    other["name"] = "other".into();
    let reused = with_key(MINE, &other, "one").await;
    problem(&reused, 409, "IDEMPOTENCY_KEY_REUSED");
    let bad = with_key(MINE, &other, "with blanks").await;
    problem(&bad, 400, "INVALID_FIELD");

    let id = first.json()["credential"]["id"].as_str().map(str::to_owned);
    let path = format!("{MINE}/{}/reveal", id.expect("an id"));
    let why = json!({ "reason": "a test" });
    let revealed = with_key(&path, &why, "two").await;
    assert_eq!(revealed.json()["fields"]["api_secret"], PLANTED);
    let again = with_key(&path, &why, "two").await;
    assert_eq!(again.status, 200, "{again:?}");
    assert_eq!(again.json().get("fields"), None);
    let other = with_key(&path, &json!({ "reason": "another" }), "two").await;
    problem(&other, 409, "IDEMPOTENCY_KEY_REUSED");
    let revealed = with_key(&path, &why, "three").await;
    assert_eq!(revealed.json()["fields"]["api_secret"], PLANTED);
    let rows = "SELECT seq FROM audit_events WHERE action = 'RevealCredential' AND outcome = 'success' \
         AND data LIKE '%a test%'";
    assert_eq!(d.rows(rows).await.len(), 2, "each reveal is recorded");
    let kept = "SELECT action FROM idempotency_keys WHERE action = 'RevealCredential'";
    assert_eq!(d.rows(kept).await.len(), 2);
    assert!(!crate::canaries::dump(&d).await.contains(PLANTED));

    let id = first.json()["credential"]["id"].as_str().map(str::to_owned);
    let path = format!("{MINE}/{}", id.expect("an id"));
    let delete = async |key: &str| {
        let headers = [("authorization", bearer.as_str()), ("idempotency-key", key)];
        send(&d, Method::DELETE, &path, &headers, "").await
    };
    for _ in 0..2 {
        assert_eq!(delete("four").await.status, 204);
    }
    problem(&delete("five").await, 404, "CREDENTIAL_NOT_FOUND");
    problem(&alice.delete(&d, &path).await, 404, "CREDENTIAL_NOT_FOUND");
    d.stop().await;
}
