//! The key that a tenant's credentials are sealed by: made with the first one, used by nobody else, and rotated like any.

use tokio::time::{Duration, Instant, sleep};

use super::*;
use crate::daemon::{Engine, PATIENCE, reason};

const KEY: &str = "credentials";

async fn kids(d: &Daemon) -> Vec<String> {
    let kids = "SELECT DISTINCT kid FROM user_broker_credentials ORDER BY kid";
    d.rows(kids).await.concat()
}

// R-CRED-1, R-LIFE-3
async fn a_rotation(engine: Engine) {
    let d = Daemon::start(engine).await;
    let alice = person(&d, "acme", "alice", &["can.use_users"]).await;
    let made = format!("SELECT id FROM keys WHERE name = '{KEY}'");
    assert!(d.rows(&made).await.is_empty());
    let mut ids = Vec::new();
    for name in ["one", "two", "three"] {
        let mut body = binance(&format!("the secret of {name}"));
        body["name"] = name.into();
        ids.push((alice.stores(&d, &body).await, name));
    }
    assert_eq!(d.rows(&made).await.len(), 1);
    let before = kids(&d).await;
    assert_eq!(before.len(), 1);

    d.rotated("acme", KEY).await;
    let until = Instant::now() + PATIENCE;
    while kids(&d).await.iter().any(|kid| before.contains(kid)) {
        assert!(Instant::now() < until, "the values stay where they were");
        sleep(Duration::from_millis(50)).await;
    }
    for (id, name) in &ids {
        let revealed = alice.reveals(&d, id).await.json();
        let secret = format!("the secret of {name}");
        assert_eq!(revealed["fields"]["api_secret"], secret.as_str());
    }
    let moved = "SELECT data FROM audit_events WHERE action = 'RewrapCredentials' AND outcome = 'success' \
         AND data LIKE '%\"moved\":3%'";
    assert_eq!(d.rows(moved).await.len(), 1);
    d.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_move_to_the_new_version_by_themselves_on_sqlite() {
    a_rotation(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_move_to_the_new_version_by_themselves_on_postgres() {
    a_rotation(Engine::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_can_do_nothing_with_the_vaults_key() {
    let d = Daemon::start(Engine::Sqlite).await;
    let alice = person(&d, "acme", "alice", &["can.use_users"]).await;
    alice.stores(&d, &binance("alices secret")).await;
    let service = d.actor("service");
    let encrypt = EncryptRequest {
        key: KEY.into(),
        plaintext: "text".into(),
        ..Default::default()
    };
    let encrypted = service.crypto().encrypt(encrypt).await;
    assert_eq!(reason(&encrypted.expect_err("reserved")), "KEY_RESERVED");
    let decrypt = |ciphertext: Vec<u8>| DecryptRequest {
        key: KEY.into(),
        ciphertext: ciphertext.into(),
        ..Default::default()
    };
    let decrypted = service.crypto().decrypt(decrypt(vec![1; 100])).await;
    assert_eq!(reason(&decrypted.expect_err("reserved")), "KEY_RESERVED");
    let rewrap = RewrapRequest {
        key: KEY.into(),
        ciphertext: vec![1; 100].into(),
        ..Default::default()
    };
    let rewrapped = service.crypto().rewrap(rewrap).await;
    assert_eq!(reason(&rewrapped.expect_err("reserved")), "KEY_RESERVED");
    let generate = GenerateDataKeyRequest {
        key: KEY.into(),
        ..Default::default()
    };
    let generated = service.data_keys().generate_data_key(generate).await;
    assert_eq!(reason(&generated.expect_err("reserved")), "KEY_RESERVED");
    // The name is taken in every tenant, and is no other kind of key's.
    let mut request = CreateKeyRequest {
        tenant: "globex".into(),
        name: KEY.into(),
        purpose: KeyPurpose::Signing.into(),
        algorithm: Algorithm::Es256.into(),
        owner: "somebody".into(),
        ..Default::default()
    };
    let issuer = d.actor("issuer");
    issuer
        .keys()
        .create_key(request.clone())
        .await
        .expect("CreateKey");
    let eve = person(&d, "globex", "eve", &["can.use_users"]).await;
    let stored = eve.post(&d, MINE, &binance("eves secret")).await;
    problem(&stored, 409, "KEY_PURPOSE_MISMATCH");
    request.tenant = "acme".into();
    let taken = issuer.keys().create_key(request).await;
    assert_eq!(reason(&taken.expect_err("taken")), "ALREADY_EXISTS");
    d.stop().await;
}
