//! The checks that the trading platform makes after each deployment.

use super::*;
use crate::{
    canaries::{dump, forms::needles},
    daemon::{Engine, Setup},
};

const KEY: &str = "PKZQ7YJX2WVB4MNCRT6HGFDSLA3E5U8I9O0P1q2w3e4r5t6y7u8i9o0pA1s2D3f4";
const SECRET: &str = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEYzYxWvUtSrQpOnMlKjIhGfEdCbA";
const NEXT: &str = "Nw8Kd2Lm5Qx7Rt9Vb1Zc4Hf6Jy3Ps0Ga8We2Iu5Ko7TlXnCvBqMzAsDfGhJkLpOi";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_brokers_checks_after_a_deployment_on_sqlite() {
    checks(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_brokers_checks_after_a_deployment_on_postgres() {
    checks(Engine::Postgres).await;
}

// R-CRED-1, R-CRED-2, R-ENV-2
async fn checks(engine: Engine) {
    let mut daemon = Setup::new(engine).start().await;
    let d = &daemon;
    let alice = person(d, "acme", "alice", &["can.use_users"]).await;

    let empty = alice.get(d, MINE).await;
    assert_eq!(empty.status, 200, "{empty:?}");
    assert_eq!(empty.json(), json!({ "credentials": [] }));

    let body = |secret: &str| {
        json!({
            "provider": "binance",
            "environment": "production",
            "fields": { "api_key": KEY, "api_secret": secret },
        })
    };
    let stored = alice.post(d, MINE, &body(SECRET)).await;
    assert_eq!(stored.status, 201, "{stored:?}");
    let stored = stored.json()["credential"].clone();
    assert_eq!(stored["masked"], "…D3f4");
    assert_eq!(stored["owner_id"], alice.id.as_str());
    let id = stored["id"].as_str().expect("an id");

    let listed = alice.get(d, MINE).await;
    assert_eq!(listed.json()["credentials"], json!([stored]));
    let mine = format!("/users/{}/broker-credentials", alice.id);
    assert_eq!(alice.get(d, &mine).await.json(), listed.json());
    let one = format!("{MINE}/{id}");
    assert_eq!(alice.get(d, &one).await.json()["credential"], stored);
    for reply in [&listed.body, &stored.to_string()] {
        assert!(!reply.contains(SECRET) && !reply.contains(KEY));
    }

    unreadable(d, &[KEY, SECRET]).await;
    let revealed = alice.reveals(d, id).await;
    assert_eq!(revealed.status, 200, "{revealed:?}");
    let fields = json!({ "api_key": KEY, "api_secret": SECRET });
    assert_eq!(revealed.json()["fields"], fields);
    assert_eq!(revealed.header("cache-control"), "no-store");
    let why = "SELECT actor FROM audit_events WHERE action = 'RevealCredential' AND outcome = 'success' \
         AND stream = 'admin' AND data LIKE '%a test%'";
    assert_eq!(d.rows(why).await, [[alice.id.clone()]]);

    // Replacing is said, and leaves nothing of what was.
    let again = alice.post(d, MINE, &body(NEXT)).await;
    problem(&again, 409, "ALREADY_EXISTS");
    let mut replace = body(NEXT);
    replace["replace"] = true.into();
    let replaced = alice.post(d, MINE, &replace).await;
    assert_eq!(replaced.status, 200, "{replaced:?}");
    assert_eq!(replaced.json()["credential"]["id"], id);
    let fields = json!({ "api_key": KEY, "api_secret": NEXT });
    assert_eq!(alice.reveals(d, id).await.json()["fields"], fields);
    let values = "SELECT label FROM user_broker_credentials";
    assert_eq!(d.rows(values).await, [["CURRENT"]]);
    unreadable(d, &[KEY, SECRET, NEXT]).await;

    misconfigured(&mut daemon, &alice, id).await;

    let d = &daemon;
    assert_eq!(alice.delete(d, &one).await.status, 204);
    problem(&alice.get(d, &one).await, 404, "CREDENTIAL_NOT_FOUND");
    assert_eq!(
        alice.get(d, MINE).await.json(),
        json!({ "credentials": [] })
    );
    assert!(d.rows(values).await.is_empty());
    let log = daemon.log();
    for secret in [KEY, SECRET, NEXT] {
        assert!(!log.contains(secret), "a secret is in the log");
    }
    daemon.stop().await;
}

/// No table has any of these secrets, in any form.
async fn unreadable(d: &Daemon, secrets: &[&str]) {
    let all = dump(d).await;
    assert!(all.contains("user_broker_credentials"));
    for secret in secrets {
        for needle in needles(secret.as_bytes()) {
            let found = all.as_bytes().windows(needle.len()).any(|w| w == needle);
            assert!(!found, "a planted secret is in the database");
        }
    }
}

/// The key that credentials are sealed by does not open, so the whole surface says so, and nothing is lost.
async fn misconfigured(daemon: &mut Daemon, alice: &Person, id: &str) {
    let spoil = "CREATE TABLE kept AS SELECT kid, wrapped_key FROM key_versions; \
         UPDATE key_versions SET wrapped_key = (SELECT kept.wrapped_key FROM kept WHERE kept.kid <> key_versions.kid \
         LIMIT 1) WHERE key_id IN (SELECT id FROM keys WHERE name = 'credentials')";
    daemon.execute(spoil).await;
    // What is in memory still opens; a new start begins with nothing there.
    daemon.restart().await;
    let revealed = alice.reveals(daemon, id).await;
    problem(&revealed, 503, "CREDENTIAL_KEY_UNAVAILABLE");
    let said = revealed.json()["detail"].as_str().map(str::to_owned);
    let said = said.expect("a detail");
    assert!(
        said.contains("broker credentials encryption key misconfigured"),
        "{said}"
    );
    let stored = alice.post(daemon, MINE, &binance("another")).await;
    problem(&stored, 503, "CREDENTIAL_KEY_UNAVAILABLE");
    // What needs no secret goes on.
    assert_eq!(alice.get(daemon, MINE).await.status, 200);
    let restore = "UPDATE key_versions SET wrapped_key = (SELECT kept.wrapped_key FROM kept WHERE kept.kid = \
         key_versions.kid) WHERE key_id IN (SELECT id FROM keys WHERE name = 'credentials'); DROP TABLE kept";
    daemon.execute(restore).await;
    daemon.restart().await;
    assert_eq!(alice.reveals(daemon, id).await.status, 200);
}
