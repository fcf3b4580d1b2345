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
use tonic::{Code, Status};

use super::{
    rotation::{NEW, OLD, Provider, Realm, alpaca, some, why},
    *,
};
use crate::daemon::{Engine, PATIENCE, reason};

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
    /// Mints, and does not take back what it has minted.
    Keeps,
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
                        if [Habit::Works, Habit::Keeps].contains(&habit) {
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
                    Some("withdraw") if habit == Habit::Keeps => {
                        ("500 Internal Server Error", String::new())
                    }
                    Some("withdraw") => {
                        live.lock().expect("no panic").remove(NEW);
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

    /// Waits until it was asked this about this rotation; what it was asked.
    async fn is_asked(&self, event: &str, id: &str) -> Value {
        let wanted = format!("{id}-{event}");
        let until = Instant::now() + PATIENCE;
        loop {
            let asked = self.asked().into_iter().find(|(id, _)| *id == wanted);
            if let Some((_, question)) = asked {
                assert_eq!(question["event"], event);
                return question;
            }
            assert!(Instant::now() < until, "nobody asks to {event}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A realm whose provider has a webhook, and no hold.
async fn realm(engine: Engine) -> (Realm, Minter, std::path::PathBuf) {
    realm_for(engine, "\"acme\"", 0).await
}

/// As `realm`, for these tenants and with this hold.
async fn realm_for(
    engine: Engine,
    tenants: &str,
    hold: u32,
) -> (Realm, Minter, std::path::PathBuf) {
    realm_with(engine, tenants, hold, "").await
}

/// As `realm_for`, with more lines in section `[vault.rotation]`.
async fn realm_with(
    engine: Engine,
    tenants: &str,
    hold: u32,
    lines: &str,
) -> (Realm, Minter, std::path::PathBuf) {
    let provider = Provider::new().await;
    let minter = Minter::new(Arc::clone(&provider.live)).await;
    let file = std::env::temp_dir().join(format!("claviger-{}", uuid::Uuid::now_v7()));
    std::fs::write(&file, format!("{KEY}\n")).expect("a file");
    let more = format!(
        "hold_seconds = {hold}\n{lines}\n[vault.rotation.drivers.alpaca]\ntenants = [{tenants}]\n\
         webhook = \"http://127.0.0.1:{}\"\nsecret_file = \"{}\"",
        minter.port,
        file.display()
    );
    let realm = Realm::with(engine, provider, &more).await;
    (realm, minter, file)
}

impl Realm {
    async fn set_driver(&self, driver: &str) -> Result<Credential, Status> {
        self.set_driver_of(&self.id, "service", driver).await
    }

    async fn set_driver_of(
        &self,
        id: &str,
        actor: &str,
        driver: &str,
    ) -> Result<Credential, Status> {
        let request = SetCredentialRotationRequest {
            credential_id: id.into(),
            driver: driver.into(),
            rotation_period: None,
        };
        let actor = self.d.actor(actor);
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
        // A person has typed the old value in: its end could be that of somebody else's key.
        assert_eq!(question["old_last_four"], Value::Null, "{text}");
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
    // It was not dropped at the first refusal, and the driver is asked to take it back.
    let question = minter.is_asked("withdraw", &id).await;
    assert_eq!(question["new_value_id"], rolled.new_value_id.as_str());
    let refusals = realm
        .d
        .rows("SELECT refusals FROM credential_rotations")
        .await;
    assert_eq!(refusals, [["8"]]);
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
    // It may have minted one all the same.
    minter.is_asked("withdraw", &id).await;
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
        "hold_seconds = 0\n[vault.rotation.drivers.alpaca]\ntenants = [\"acme\"]\ncommand = [\"/bin/sh\", \"-c\", \"{script}\"]"
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

/// Waits until the database has what these rows say.
async fn until_rows(realm: &Realm, sql: &str, wanted: &[[&str; 1]]) {
    let until = Instant::now() + PATIENCE;
    loop {
        let rows = realm.d.rows(sql).await;
        if rows == wanted {
            return;
        }
        assert!(Instant::now() < until, "{sql}: {rows:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

// R-CRED-7: what a driver minted and nobody uses is revoked, whoever ends the rotation and whatever becomes of the credential.
async fn nothing_that_was_minted_is_left_alive(engine: Engine) {
    let (realm, minter, file) = realm_for(engine, "\"acme\"", 3600).await;
    let set = realm.set_driver("webhook").await;
    set.expect("SetCredentialRotation");
    realm.falls_due().await;
    let id = realm.begun().await;
    realm.gets_to(&id, CredentialRotationState::Holding).await;
    assert!(realm.provider.live.lock().expect("no panic").contains(NEW));

    // A person takes it back. The driver is in trouble, and people are told of what is left.
    minter.gets(Habit::Keeps);
    realm.try_roll_back(&id).await.expect("RollBackCredential");
    assert_eq!(realm.values().await, [some(OLD), None, None]);
    let kind = "SELECT kind FROM alerts WHERE kind = 'CREDENTIAL_MINTED_VALUE_LEFT'";
    until_rows(&realm, kind, &[["CREDENTIAL_MINTED_VALUE_LEFT"]]).await;
    minter.gets(Habit::Works);
    let left = "SELECT id FROM credential_rotations WHERE withdraw IS NOT NULL";
    until_rows(&realm, left, &[]).await;
    assert!(!realm.provider.live.lock().expect("no panic").contains(NEW));
    let state = "SELECT state FROM alerts WHERE kind = 'CREDENTIAL_MINTED_VALUE_LEFT'";
    until_rows(&realm, state, &[["RESOLVED"]]).await;
    let recorded = "SELECT data FROM audit_events WHERE action = 'RollBackCredential' AND outcome = 'success' ORDER BY seq";
    let recorded = realm.d.rows(recorded).await.concat();
    assert_eq!(recorded.len(), 2, "{recorded:?}");
    assert!(recorded[1].contains("\"withdrawn\":true"), "{recorded:?}");

    // With the credential goes the rotation, and what was minted for it.
    let before = format!("UPDATE credential_rotations SET created_at = 1 WHERE id = '{id}'");
    realm.d.execute(&before).await;
    realm.falls_due().await;
    let open = "SELECT id FROM credential_rotations WHERE state = 'HOLDING'";
    let until = Instant::now() + PATIENCE;
    let second = loop {
        if let Some(row) = realm.d.rows(open).await.first() {
            break row[0].clone();
        }
        assert!(Instant::now() < until, "nothing begins");
        sleep(Duration::from_millis(50)).await;
    };
    assert_ne!(second, id);
    let path = format!("{MINE}/{}", realm.id);
    assert_eq!(realm.alice.delete(&realm.d, &path).await.status, 204);
    let question = minter.is_asked("withdraw", &second).await;
    assert_eq!(question["credential_id"], realm.id.as_str());
    until_rows(&realm, left, &[]).await;
    assert!(!realm.provider.live.lock().expect("no panic").contains(NEW));
    assert!(realm.provider.live.lock().expect("no panic").contains(OLD));
    realm.end().await;
    std::fs::remove_file(file).expect("removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_minted_is_left_alive_on_sqlite() {
    nothing_that_was_minted_is_left_alive(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_minted_is_left_alive_on_postgresql() {
    nothing_that_was_minted_is_left_alive(Engine::Postgres).await;
}

// R-CRED-7, R-LIFE-7: the daemon stages what a driver minted, and so it is not the daemon that promotes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_people_bring_on_what_a_driver_minted_where_three_are_needed() {
    let three = "three_roles = [{ tenant = \"acme\" }]";
    let (realm, minter, file) = realm_with(Engine::Sqlite, "\"acme\"", 0, three).await;
    let set = realm.set_driver("webhook").await;
    set.expect("SetCredentialRotation");
    realm.falls_due().await;
    let id = realm.begun().await;
    let staged = realm.gets_to(&id, CredentialRotationState::Staged).await;
    assert_eq!(staged.attention, "WAITS_FOR_APPROVAL");
    let early = realm.promote_as("deployer", &id).await;
    assert_eq!(why(early), "CREDENTIAL_ROTATION_STATE");
    realm.approve_as("approver", &id).await.expect("approved");
    // Nobody looks at it until a third one does.
    let waits = "SELECT state FROM credential_rotations WHERE check_at IS NULL";
    assert_eq!(realm.d.rows(waits).await, [["STAGED"]]);
    assert_eq!(realm.values().await, [some(OLD), some(NEW), None]);
    let refused = realm.promote_as("approver", &id).await;
    assert_eq!(why(refused), "PERMISSION_DENIED");
    realm.promote_as("deployer", &id).await.expect("promoted");
    realm.gets_to(&id, CredentialRotationState::Completed).await;
    assert_eq!(realm.values().await, [some(NEW), None, None]);
    assert_eq!(minter.asked().len(), 3, "mint, mint again, revoke");
    realm.end().await;
    std::fs::remove_file(file).expect("removed");
}

// R-OPS-5, R-CRED-7: what was minted for a tenant that is no more is revoked, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_minted_for_an_erased_tenant_is_withdrawn() {
    let (realm, minter, file) = realm_for(Engine::Sqlite, "\"acme\"", 3600).await;
    let set = realm.set_driver("webhook").await;
    set.expect("SetCredentialRotation");
    realm.falls_due().await;
    let id = realm.begun().await;
    realm.gets_to(&id, CredentialRotationState::Holding).await;
    // What the destruction of its keys begins with.
    let erased = "UPDATE tenants SET erased_at = 1 WHERE name = 'acme'";
    realm.d.execute(erased).await;
    let question = minter.is_asked("withdraw", &id).await;
    assert_eq!(question["tenant"], "acme");
    let ended =
        "SELECT why FROM credential_rotations WHERE withdraw IS NULL AND state = 'ROLLED_BACK'";
    until_rows(&realm, ended, &[["TENANT_ERASED"]]).await;
    assert!(!realm.provider.live.lock().expect("no panic").contains(NEW));
    realm.end().await;
    std::fs::remove_file(file).expect("removed");
}

// R-CRED-7: a provider that does not know a new value everywhere yet refuses it for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minted_value_is_not_dropped_because_it_is_refused_at_first() {
    let (realm, minter, file) = realm(Engine::Sqlite).await;
    minter.gets(Habit::Forges);
    let set = realm.set_driver("webhook").await;
    set.expect("SetCredentialRotation");
    realm.falls_due().await;
    let id = realm.begun().await;
    let refused = "SELECT state FROM credential_rotations WHERE refusals > 0";
    until_rows(&realm, refused, &[["STAGED"]]).await;
    realm.provider.issues(NEW);
    realm.gets_to(&id, CredentialRotationState::Completed).await;
    assert_eq!(realm.values().await, [some(NEW), None, None]);
    assert!(realm.provider.live.lock().expect("no panic").contains(NEW));
    realm.end().await;
    std::fs::remove_file(file).expect("removed");
}

// R-CRED-7, R-ACL-3: a driver mints in the operator's account, for the tenants that it is configured for. And what fails or
// hangs for one tenant keeps nobody from their turn: not the other tenant, and not the same one.
async fn nobody_waits_for_what_fails(engine: Engine) {
    let (realm, minter, file) = realm_for(engine, "\"acme\", \"initech\"", 0).await;
    let d = &realm.d;
    let admin = d.actor("admin");
    let tenant = CreateTenantRequest {
        name: "initech".into(),
    };
    let made = admin.principals().create_tenant(tenant).await;
    made.expect("CreateTenant");
    let bob = person(d, "initech", "bob", &["can.use_users"]).await;
    let eve = person(d, "globex", "eve", &["can.use_users"]).await;
    let named = |secret: &str, name: &str| {
        let mut body = alpaca(secret);
        body["name"] = name.into();
        body
    };
    for n in 0..110 {
        let what = if n % 10 == 0 { "hang" } else { "busy" };
        let name = format!("{what}-{n}");
        realm.alice.stores(d, &named(&name, &name)).await;
    }
    let bobs = bob.stores(d, &named(OLD, "default")).await;
    let eves = eve.stores(d, &named(OLD, "default")).await;
    // Nobody of globex may use the driver, whatever a row says.
    let refused = realm.set_driver_of(&eves, "other", "webhook").await;
    assert_eq!(
        refused.expect_err("no manager").code(),
        Code::PermissionDenied
    );
    d.execute("UPDATE credentials SET rotation_driver = 'webhook', rotation_due_at = 1")
        .await;
    let last = format!(
        "UPDATE credentials SET rotation_due_at = 2 WHERE id IN ('{}', '{bobs}')",
        realm.id
    );
    d.execute(&last).await;
    let done = format!(
        "SELECT state FROM credential_rotations WHERE credential_id IN ('{}', '{bobs}')",
        realm.id
    );
    until_rows(&realm, &done, &[["COMPLETED"], ["COMPLETED"]]).await;
    let others = format!(
        "SELECT tenant FROM credential_rotations WHERE credential_id NOT IN ('{}', '{bobs}')",
        realm.id
    );
    assert_eq!(
        d.rows(&others).await,
        [[""; 0]; 0],
        "nothing can be told of them"
    );
    assert!(minter.asked().iter().all(|(_, q)| q["tenant"] != "globex"));
    realm.end().await;
    std::fs::remove_file(file).expect("removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_what_fails_on_sqlite() {
    nobody_waits_for_what_fails(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_what_fails_on_postgresql() {
    nobody_waits_for_what_fails(Engine::Postgres).await;
}

// R-ACL-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_is_for_the_tenants_that_the_configuration_names() {
    let (realm, minter, file) = realm_for(Engine::Sqlite, "\"globex\"", 0).await;
    let refused = realm.set_driver("webhook").await.expect_err("a refusal");
    assert_eq!(reason(&refused), "CREDENTIAL_ROTATION_STATE");
    assert!(refused.message().contains("tenants"), "{refused}");
    assert!(minter.asked().is_empty());
    realm.end().await;
    std::fs::remove_file(file).expect("removed");
}
