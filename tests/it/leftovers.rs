//! What interrupted attempts leave on the token is found, named and set aside; its own tenant may adopt it on purpose.

use claviger::grpc::proto::{AdoptKeyRequest, Algorithm, Key, KeyPurpose};
use tokio::time::{Duration, Instant, sleep};
use tonic::{Code, Status};

use crate::daemon::{Daemon, Engine, PATIENCE, Setup, TOKEN, reason};

const QUICK: &str = "
[keys]
reconcile_after_seconds = 1
backend_timeout_ms = 900
generate_timeout_ms = 900

[scheduler]
interval_ms = 50
";

/// An intent that is pending since `created_at`, with or without a pair on the token; its CKA_ID in hex.
async fn intent(daemon: &Daemon, created_at: i64, has_pair: bool) -> String {
    let id = uuid::Uuid::now_v7();
    let hex = id.simple().to_string();
    if has_pair {
        let generate = ["--keypairgen", "--key-type", "EC:prime256v1", "--id", &hex];
        daemon.pkcs11_tool(&generate).await;
    }
    daemon
        .execute(&format!(
            "INSERT INTO backend_intents (id, backend, tenant, label, state, created_at) VALUES \
             ('{id}', 'hsm', 'acme', 'acme/lost/1', 'PENDING', {created_at})"
        ))
        .await;
    hex
}

async fn state(daemon: &Daemon, hex: &str) -> (String, String) {
    let id: uuid::Uuid = hex.parse().expect("an id");
    let sql = format!("SELECT state, found FROM backend_intents WHERE id = '{id}'");
    let mut row = daemon.rows(&sql).await.remove(0);
    let found = row.remove(1);
    (row.remove(0), found)
}

async fn settled(daemon: &Daemon, hex: &str) -> (String, String) {
    let until = Instant::now() + PATIENCE;
    loop {
        let now = state(daemon, hex).await;
        if now.0 != "PENDING" {
            return now;
        }
        assert!(Instant::now() < until, "never settled");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn adopt(daemon: &Daemon, tenant: &str, name: &str, hex: &str) -> Result<Key, Status> {
    let pairs: Vec<_> = (0..hex.len() / 2).map(|i| &hex[2 * i..2 * i + 2]).collect();
    let request = AdoptKeyRequest {
        tenant: tenant.into(),
        name: name.into(),
        purpose: KeyPurpose::Signing.into(),
        algorithm: Algorithm::Es256.into(),
        uri: format!("pkcs11:token={TOKEN};id=%{};type=private", pairs.join("%")),
        owner: "team-e2e".into(),
        ..Default::default()
    };
    let adopted = daemon.actor("issuer").keys().adopt_key(request).await?;
    Ok(adopted.into_inner().key.expect("a key"))
}

#[track_caller]
fn not_adoptable(result: Result<Key, Status>) {
    let status = result.expect_err("refused");
    let found = (status.code(), reason(&status));
    assert_eq!(
        found,
        (Code::FailedPrecondition, "KEY_NOT_ADOPTABLE".to_owned())
    );
}

async fn leftovers_are_set_aside(engine: Engine) {
    let daemon = Setup::new(engine).append(QUICK).start().await;
    let key = daemon
        .key("acme", "orders", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    let far = i64::MAX;
    let young = intent(&daemon, far, true).await;
    let lost = intent(&daemon, 1, true).await;
    let empty = intent(&daemon, 1, false).await;
    assert_eq!(settled(&daemon, &empty).await.0, "FAILED");
    let (state_of, found) = settled(&daemon, &lost).await;
    assert_eq!(state_of, "QUARANTINED");
    assert!(
        found.contains("private key (P256)") && found.contains("public key (P256)"),
        "{found}"
    );
    assert_eq!(state(&daemon, &young).await.0, "PENDING");
    let alerts = "SELECT text FROM alerts WHERE kind = 'LEFTOVER_QUARANTINED'";
    let alerts = daemon.rows(alerts).await;
    assert!(
        alerts.len() == 1 && alerts[0][0].contains(&lost),
        "{alerts:?}"
    );
    let rows =
        "SELECT outcome FROM audit_events WHERE action = 'SettleIntent' AND entity = 'intent'";
    assert_eq!(daemon.rows(rows).await, [["success"], ["success"]]);
    let ids: Vec<_> = daemon
        .private_keys()
        .await
        .into_iter()
        .map(|k| k.id)
        .collect();
    assert!(
        ids.contains(&lost) && ids.contains(&young),
        "nothing is deleted"
    );
    let said = daemon
        .cli(&[
            "doctor",
            "--config",
            daemon.config_path().to_str().expect("UTF-8"),
        ])
        .await;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains(&lost), "{said}");

    // A pair of an attempt that may be going on, and another tenant's leftover, and one that is in use.
    not_adoptable(adopt(&daemon, "acme", "young", &young).await);
    not_adoptable(adopt(&daemon, "globex", "theirs", &lost).await);
    let used = daemon
        .rows("SELECT id FROM backend_intents WHERE state = 'DONE'")
        .await;
    not_adoptable(adopt(&daemon, "acme", "twice", &used[0][0].replace('-', "")).await);
    let adopted = adopt(&daemon, "acme", "found", &lost)
        .await
        .expect("adopted");
    assert_ne!(adopted.active_kid, key.active_kid);
    assert_eq!(state(&daemon, &lost).await.0, "DONE");
    not_adoptable(adopt(&daemon, "acme", "again", &lost).await);
    daemon.stop().await;
}

/// A device that hung may finish what it had begun after the attempt was called FAILED.
async fn what_appears_later_is_set_aside_too(engine: Engine) {
    let daemon = Setup::new(engine).append(QUICK).start().await;
    let late = intent(&daemon, i64::MAX, true).await;
    let empty = intent(&daemon, i64::MAX, false).await;
    daemon
        .key("acme", "orders", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    let now = "SELECT CAST(created_at AS TEXT) FROM backend_intents WHERE state = 'DONE'";
    let now: i64 = daemon.rows(now).await[0][0].parse().expect("micros");
    let (made, looked) = (now - 10_000_000, now - 9_000_000);
    daemon
        .execute(&format!(
            "UPDATE backend_intents SET state = 'FAILED', created_at = {made}, settled_at = {looked} \
             WHERE label = 'acme/lost/1'"
        ))
        .await;
    let until = Instant::now() + PATIENCE;
    while state(&daemon, &late).await.0 != "QUARANTINED" {
        assert!(Instant::now() < until, "{}", daemon.log());
        sleep(Duration::from_millis(50)).await;
    }
    // Where there is nothing, the next look is later.
    let next = format!("SELECT state FROM backend_intents WHERE settled_at > {looked}");
    while daemon
        .rows(&next)
        .await
        .iter()
        .all(|row| row[0] != "FAILED")
    {
        assert!(Instant::now() < until, "{}", daemon.log());
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(state(&daemon, &empty).await.0, "FAILED");
    let adopted = adopt(&daemon, "acme", "found", &late).await;
    adopted.expect("adopted");
    daemon.stop().await;
}

#[tokio::test]
async fn what_appears_later_is_set_aside_too_on_sqlite() {
    what_appears_later_is_set_aside_too(Engine::Sqlite).await;
}

#[tokio::test]
async fn what_appears_later_is_set_aside_too_on_postgres() {
    what_appears_later_is_set_aside_too(Engine::Postgres).await;
}

#[tokio::test]
async fn leftovers_are_set_aside_on_sqlite() {
    leftovers_are_set_aside(Engine::Sqlite).await;
}

#[tokio::test]
async fn leftovers_are_set_aside_on_postgres() {
    leftovers_are_set_aside(Engine::Postgres).await;
}
