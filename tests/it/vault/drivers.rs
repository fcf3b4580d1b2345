//! Rotation without a person: a webhook or a program mints values at the provider that stands in for the real one.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use aws_lc_rs::hmac;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{Duration, Instant, sleep},
};
use tonic::Status;

use super::{
    rotation::{NEW, OLD, Provider, Realm, some, why},
    *,
};
use crate::daemon::{Engine, PATIENCE};

const KEY: &str = "the secret of this webhook";

/// Mints NEW at the provider and revokes OLD there. Keeps what it was asked, and checks who asks.
struct Minter {
    port: u16,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    habit: Arc<Mutex<Habit>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Habit {
    /// Needs more time once.
    Works,
    /// Mints without the provider's knowledge.
    Forges,
    /// Always needs more time.
    Dawdles,
}

impl Minter {
    async fn new(live: Arc<Mutex<BTreeSet<&'static str>>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let minter = Self {
            port: listener.local_addr().expect("an address").port(),
            asked: Arc::default(),
            habit: Arc::new(Mutex::new(Habit::Works)),
        };
        let (asked, habit) = (Arc::clone(&minter.asked), Arc::clone(&minter.habit));
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match socket.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let of = |name: &str| {
                    let line = head.lines().find_map(|line| line.strip_prefix(name));
                    line.map(|value| value.trim().to_owned())
                        .unwrap_or_else(|| panic!("no {name} in {head}"))
                };
                let length: usize = of("content-length:").parse().expect("a length");
                let mut body = vec![0; length];
                socket.read_exact(&mut body).await.expect("a body");
                let (id, at) = (of("webhook-id:"), of("webhook-timestamp:"));
                let key = hmac::Key::new(hmac::HMAC_SHA256, KEY.as_bytes());
                let mut signed = format!("{id}.{at}.").into_bytes();
                signed.extend_from_slice(&body);
                let tag = hmac::sign(&key, &signed);
                let tag: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
                assert_eq!(of("webhook-signature:"), tag);

                let question: Value = serde_json::from_slice(&body).expect("JSON");
                let is_first = {
                    let mut asked = asked.lock().expect("no panic");
                    asked.push((id, question.clone()));
                    asked.len() == 1
                };
                let habit = *habit.lock().expect("no panic");
                let (status, answer) = match question["event"].as_str() {
                    Some("mint") if is_first || habit == Habit::Dawdles => {
                        ("202 Accepted", String::new())
                    }
                    Some("mint") => {
                        if habit == Habit::Works {
                            live.lock().expect("no panic").insert(NEW);
                        }
                        let fields =
                            json!({ "api_key": "PKZQ7YJX2WVB4MNCRT6H", "api_secret": NEW });
                        ("200 OK", json!({ "fields": fields }).to_string())
                    }
                    Some("revoke") => {
                        live.lock().expect("no panic").remove(OLD);
                        ("204 No Content", String::new())
                    }
                    other => panic!("{other:?}"),
                };
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{answer}",
                    answer.len()
                );
                let _ = socket.write_all(answer.as_bytes()).await;
                let _ = socket.shutdown().await;
            }
        });
        minter
    }

    fn gets(&self, habit: Habit) {
        *self.habit.lock().expect("no panic") = habit;
    }

    fn asked(&self) -> Vec<(String, Value)> {
        self.asked.lock().expect("no panic").clone()
    }
}

/// A realm whose provider has a webhook, and no hold.
async fn realm(engine: Engine) -> (Realm, Minter, std::path::PathBuf) {
    let provider = Provider::new().await;
    let minter = Minter::new(Arc::clone(&provider.live)).await;
    let file = std::env::temp_dir().join(format!("claviger-{}", uuid::Uuid::now_v7()));
    std::fs::write(&file, format!("{KEY}\n")).expect("a file");
    let more = format!(
        "hold_seconds = 0\n[vault.rotation.drivers.alpaca]\nwebhook = \"http://127.0.0.1:{}\"\nsecret_file = \"{}\"",
        minter.port,
        file.display()
    );
    let realm = Realm::with(engine, provider, &more).await;
    (realm, minter, file)
}

impl Realm {
    async fn set_driver(&self, driver: &str) -> Result<Credential, Status> {
        let request = SetCredentialRotationRequest {
            credential_id: self.id.clone(),
            driver: driver.into(),
            rotation_period: None,
        };
        let actor = self.d.actor("service");
        let mut client = actor.credential_rotations();
        let set = client.set_credential_rotation(request).await?;
        Ok(set.into_inner().credential.expect("a credential"))
    }

    async fn falls_due(&self) {
        let due = "UPDATE credentials SET rotation_due_at = 1";
        self.d.execute(due).await;
    }

    /// The one rotation, as soon as it is there.
    async fn begun(&self) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let rows = self.d.rows("SELECT id FROM credential_rotations").await;
            if let Some(row) = rows.first() {
                return row[0].clone();
            }
            assert!(Instant::now() < until, "nothing begins");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn a_webhook_rotates(engine: Engine) {
    let (realm, minter, file) = realm(engine).await;
    let set = realm.set_driver("webhook").await;
    assert_eq!(
        set.expect("SetCredentialRotation").rotation_driver,
        "webhook"
    );
    assert!(minter.asked().is_empty(), "nothing is due");
    realm.falls_due().await;
    let id = realm.begun().await;
    let completed = realm.gets_to(&id, CredentialRotationState::Completed).await;
    assert_eq!(completed.proof(), CredentialProof::Dead);
    assert_eq!(completed.driver, "webhook");
    assert_eq!(realm.values().await, [some(NEW), None, None]);

    // It needed more time at first, and was asked with the same id again.
    let asked = minter.asked();
    let ids: Vec<_> = asked.iter().map(|(id, _)| id.as_str()).collect();
    let (mint, revoke) = (format!("{id}-mint"), format!("{id}-revoke"));
    assert_eq!(ids, [&mint, &mint, &revoke]);
    let (first, last) = (&asked[0].1, &asked[2].1);
    assert_eq!(first["old_value_id"], last["old_value_id"]);
    assert_eq!(first["old_value_id"], completed.old_value_id.as_str());
    assert_eq!(first["new_value_id"], completed.new_value_id.as_str());
    for (_, question) in &asked {
        let text = question.to_string();
        assert!(!text.contains(OLD) && !text.contains(NEW), "{text}");
    }
    let by = "SELECT DISTINCT action FROM audit_events WHERE actor = '00000000-0000-7000-8000-000000000001' AND outcome = 'success' \
              AND entity = 'credential' ORDER BY action";
    let by: Vec<_> = realm.d.rows(by).await.concat();
    assert_eq!(
        by,
        [
            "CompleteCredentialRotation",
            "PromoteCredential",
            "StageCredential"
        ]
    );
    realm.end().await;
    std::fs::remove_file(file).expect("removed");
}

// R-CRED-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_rotates_what_is_due_on_sqlite() {
    a_webhook_rotates(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_rotates_what_is_due_on_postgresql() {
    a_webhook_rotates(Engine::Postgres).await;
}

// R-CRED-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_was_minted_and_does_not_work_is_never_current() {
    let (realm, minter, file) = realm(Engine::Sqlite).await;
    minter.gets(Habit::Forges);
    let set = realm.set_driver("webhook").await;
    set.expect("SetCredentialRotation");
    realm.falls_due().await;
    let id = realm.begun().await;
    let rolled = realm
        .gets_to(&id, CredentialRotationState::RolledBack)
        .await;
    assert_eq!(rolled.why, "NEW_VALUE_REFUSED");
    assert_eq!(realm.values().await, [some(OLD), None, None]);
    let until = Instant::now() + PATIENCE;
    while realm.alerts().await.len() < 2 {
        assert!(Instant::now() < until, "nobody is told");
        sleep(Duration::from_millis(50)).await;
    }
    // It is overdue, and is not begun again at once.
    let mut alerts = realm.alerts().await;
    alerts.sort();
    assert_eq!(alerts, ["CREDENTIAL_OVERDUE", "CREDENTIAL_ROLLED_BACK"]);
    let count = "SELECT id FROM credential_rotations";
    assert_eq!(realm.d.rows(count).await.len(), 1);
    realm.end().await;
    std::fs::remove_file(file).expect("removed");
}

// R-CRED-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_is_faster_than_a_driver() {
    let (realm, minter, file) = realm(Engine::Sqlite).await;
    minter.gets(Habit::Dawdles);
    let set = realm.set_driver("webhook").await;
    set.expect("SetCredentialRotation");
    realm.falls_due().await;
    let id = realm.begun().await;
    realm.puts("yLcntZWvpHGOKM9OFGPIdRzThkEAputputputput").await;
    let ended = realm
        .gets_to(&id, CredentialRotationState::RolledBack)
        .await;
    assert_eq!(ended.why, "VALUE_REPLACED");
    let put = some("yLcntZWvpHGOKM9OFGPIdRzThkEAputputputput");
    assert_eq!(realm.values().await, [put, None, None]);
    realm.end().await;
    std::fs::remove_file(file).expect("removed");
}

// R-CRED-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_rotates_what_is_due() {
    let provider = Provider::new().await;
    provider.issues(NEW);
    let answer = json!({ "fields": { "api_key": "PKZQ7YJX2WVB4MNCRT6H", "api_secret": NEW } });
    let script = format!("grep -q mint && echo '{answer}'");
    let script = script.replace('\\', "\\\\").replace('"', "\\\"");
    let more = format!(
        "hold_seconds = 0\n[vault.rotation.drivers.alpaca]\ncommand = [\"/bin/sh\", \"-c\", \"{script}\"]"
    );
    let realm = Realm::with(Engine::Sqlite, provider, &more).await;
    for (driver, reason) in [
        ("webhook", "CREDENTIAL_ROTATION_STATE"),
        ("telepathy", "INVALID_FIELD"),
    ] {
        assert_eq!(why(realm.set_driver(driver).await), reason, "{driver}");
    }
    let set = realm.set_driver("command").await;
    set.expect("SetCredentialRotation");
    realm.falls_due().await;
    let id = realm.begun().await;
    realm.gets_to(&id, CredentialRotationState::Holding).await;
    // Revoking is beyond this program, so a person does it.
    realm.provider.revokes(OLD);
    let completed = realm.gets_to(&id, CredentialRotationState::Completed).await;
    assert_eq!(completed.proof(), CredentialProof::Dead);
    assert_eq!(realm.values().await, [some(NEW), None, None]);
    realm.end().await;
}
