//! SIGKILL between any two steps of a rotation by a driver: no value is lost, nothing is minted twice or left alive, and there
//! is one CURRENT value at every moment. R-CRED-7, R-OPS-1.

use std::{
    collections::BTreeMap,
    os::unix::process::ExitStatusExt,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant, sleep},
};

use super::{
    rotation::{OLD, alpaca},
    *,
};
use crate::daemon::{Engine, PATIENCE, Setup};

const KILL_AT: &str = "CLAVIGER_TEST_KILL_AT";

/// What the provider knows, and its rotator.
#[derive(Default)]
struct Known {
    /// Secrets that work, by the id of their value.
    live: BTreeMap<String, String>,
    /// How often each rotation has minted something new.
    mints: BTreeMap<String, usize>,
    /// Does the rotator revoke old values?
    revokes: bool,
}

/// A provider and its rotator behind one port.
struct Account {
    port: u16,
    known: Arc<Mutex<Known>>,
}

impl Account {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let known: Arc<Mutex<Known>> = Arc::default();
        let shared = Arc::clone(&known);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, Arc::clone(&shared)));
            }
        });
        Self { port, known }
    }

    fn live(&self) -> Vec<String> {
        let known = self.known.lock().expect("no panic");
        known.live.values().cloned().collect()
    }
}

/// Answers one request. The daemon may be dead before it is there.
async fn serve(mut socket: TcpStream, known: Arc<Mutex<Known>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match socket.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let of = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim().to_owned())
    };
    let (status, answer) = match of("content-length:") {
        Some(length) if head.starts_with("POST") => {
            let mut body = vec![0; length.parse().expect("a length")];
            if socket.read_exact(&mut body).await.is_err() {
                return;
            }
            let question: Value = serde_json::from_slice(&body).expect("JSON");
            rotate(&mut known.lock().expect("no panic"), &question)
        }
        _ => {
            let given = of("apca-api-secret-key:").unwrap_or_default();
            let known = known.lock().expect("no panic");
            match known.live.values().any(|secret| *secret == given) {
                true => ("200 OK", String::new()),
                false => ("401 Unauthorized", String::new()),
            }
        }
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{answer}",
        answer.len()
    );
    let _ = socket.write_all(answer.as_bytes()).await;
    let _ = socket.shutdown().await;
}

/// What a rotator does: the same question has the same effect, however often it comes.
fn rotate(known: &mut Known, question: &Value) -> (&'static str, String) {
    let of = |name: &str| question[name].as_str().expect(name).to_owned();
    let new = of("new_value_id");
    match of("event").as_str() {
        "mint" => {
            let secret = format!("minted{}", new.replace('-', ""));
            if known.live.insert(new, secret.clone()).is_none() {
                *known.mints.entry(of("rotation_id")).or_default() += 1;
            }
            let fields = json!({ "api_key": "PKZQ7YJX2WVB4MNCRT6H", "api_secret": secret });
            ("200 OK", json!({ "fields": fields }).to_string())
        }
        "revoke" if known.revokes => {
            known.live.remove(&of("old_value_id"));
            ("204 No Content", String::new())
        }
        "revoke" => ("500 Internal Server Error", String::new()),
        "withdraw" => {
            known.live.remove(&new);
            ("204 No Content", String::new())
        }
        other => panic!("{other}"),
    }
}

struct Scene {
    d: Daemon,
    account: Account,
    alice: Person,
    id: String,
}

impl Scene {
    async fn new(engine: Engine) -> Self {
        let account = Account::new().await;
        let mut d = Setup::new(engine).provision().await;
        let file = d.path("secrets/rotator");
        std::fs::write(&file, "the secret of this webhook").expect("a file");
        let port = account.port;
        let config = format!(
            "[egress]\nallow_http = true\nallow_networks = [\"127.0.0.0/8\"]\n[scheduler]\ninterval_ms = 50\n\
             lease_seconds = 2\n[vault.base_urls]\nalpaca = \"http://127.0.0.1:{port}\"\n[vault.rotation]\n\
             check_seconds = 1\nhold_seconds = 0\n[vault.rotation.drivers.alpaca]\ntenants = [\"acme\"]\n\
             webhook = \"http://127.0.0.1:{port}\"\nsecret_file = \"{}\"",
            file.display()
        );
        d.edit_config(|text| format!("{text}\n{config}\n"));
        d.up().await.expect("the daemon starts");
        let request = GrantRoleRequest {
            principal_id: d.id_of("service").await,
            role: "credential-manager".into(),
            tenant: "acme".into(),
        };
        let granted = d.actor("admin").principals().grant_role(request).await;
        granted.expect("GrantRole");
        let alice = person(&d, "acme", "alice", &["can.use_users"]).await;
        let id = alice.stores(&d, &alpaca(OLD)).await;
        let value = "SELECT id FROM user_broker_credentials WHERE label = 'CURRENT'";
        let value = d.rows(value).await[0][0].clone();
        {
            let mut known = account.known.lock().expect("no panic");
            known.live.insert(value, OLD.to_owned());
        }
        d.execute("UPDATE credentials SET rotation_driver = 'webhook'")
            .await;
        Self {
            d,
            account,
            alice,
            id,
        }
    }

    /// Starts the daemon so that it dies at this point.
    async fn arm(&mut self, point: &str) {
        assert!(self.d.terminate().await.success());
        self.d.set_env(KILL_AT, point);
        self.d.up().await.expect("the daemon starts");
    }

    /// Lets the credential be due, whatever was lately.
    async fn falls_due(&self) {
        self.d
            .execute("UPDATE credential_rotations SET created_at = 1 WHERE state IN ('COMPLETED', 'ROLLED_BACK')")
            .await;
        self.d
            .execute("UPDATE credentials SET rotation_due_at = 1, rotation_next_try = 0")
            .await;
    }

    /// Sees it die and starts it as usual.
    async fn revive(&mut self, point: &str) {
        let status = self.d.ended().await;
        assert_eq!(status.signal(), Some(9), "{point}: {status}");
        self.d.unset_env(KILL_AT);
        // What is there while it is down is all that there is.
        self.one_works(point).await;
        self.d.restart().await;
    }

    /// There is one CURRENT value.
    async fn one_works(&self, point: &str) {
        let current = "SELECT id FROM user_broker_credentials WHERE label = 'CURRENT'";
        let rows = self.d.rows(current).await;
        assert_eq!(rows.len(), 1, "{point}: {rows:?}");
        let known = self.account.known.lock().expect("no panic");
        assert!(
            known.live.contains_key(&rows[0][0]),
            "{point}: CURRENT is dead"
        );
    }

    async fn current(&self) -> String {
        let reply = self.alice.reveals(&self.d, &self.id).await;
        let json = reply.json();
        json["fields"]["api_secret"]
            .as_str()
            .expect("a secret")
            .to_owned()
    }

    async fn until(&self, what: &str, sql: &str) {
        let until = Instant::now() + PATIENCE;
        while self.d.rows(sql).await.is_empty() {
            assert!(Instant::now() < until, "not in time: {what}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The last rotation has ended so; one value is left, it works, and nothing else does.
    async fn settles(&self, point: &str, state: &str) {
        let ended = format!(
            "SELECT id FROM credential_rotations WHERE state = '{state}' AND withdraw IS NULL AND id = \
             (SELECT MAX(id) FROM credential_rotations)"
        );
        self.until(point, &ended).await;
        let labels = "SELECT label FROM user_broker_credentials";
        assert_eq!(self.d.rows(labels).await, [["CURRENT"]], "{point}");
        assert_eq!(self.account.live(), [self.current().await], "{point}");
        let known = self.account.known.lock().expect("no panic");
        assert!(known.mints.values().all(|mints| *mints == 1), "{point}");
    }
}

async fn a_rotation_is_killed(engine: Engine) {
    let mut scene = Scene::new(engine).await;
    scene.account.known.lock().expect("no panic").revokes = true;
    for point in [
        "StageCredential.before_commit",
        "StageCredential.after_commit",
        "credential_minted",
        "StageCredential.before_commit:2",
        "StageCredential.after_commit:2",
        "PromoteCredential.before_commit",
        "PromoteCredential.after_commit",
        "credential_revoked",
        "CompleteCredentialRotation.before_commit",
        "CompleteCredentialRotation.after_commit",
    ] {
        let before = scene.current().await;
        scene.arm(point).await;
        scene.falls_due().await;
        scene.revive(point).await;
        scene.settles(point, "COMPLETED").await;
        assert_ne!(scene.current().await, before, "{point}");
    }
    scene.d.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_is_killed_at_any_step_goes_on_on_sqlite() {
    a_rotation_is_killed(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_is_killed_at_any_step_goes_on_on_postgresql() {
    a_rotation_is_killed(Engine::Postgres).await;
}

async fn a_way_back_is_killed(engine: Engine) {
    let mut scene = Scene::new(engine).await;
    let before = scene.current().await;
    for point in [
        "RollBackCredential.before_commit",
        "RollBackCredential.after_commit",
        "credential_withdrawn",
        "RollBackCredential.before_commit:2",
        "RollBackCredential.after_commit:2",
    ] {
        scene.arm(point).await;
        scene.falls_due().await;
        let holding = "SELECT id FROM credential_rotations WHERE state = 'HOLDING'";
        scene.until(point, holding).await;
        let rotation_id = scene.d.rows(holding).await[0][0].clone();
        let request = RollBackCredentialRequest {
            rotation_id,
            reason: "a test".into(),
        };
        let service = scene.d.actor("service");
        let mut client = service.credential_rotations();
        let answer = client.roll_back_credential(request.clone()).await;
        scene.revive(point).await;
        // It dies before the answer at the first two points, and comes back before the change at the first.
        if answer.is_err() && point == "RollBackCredential.before_commit" {
            let service = scene.d.actor("service");
            let mut client = service.credential_rotations();
            client
                .roll_back_credential(request)
                .await
                .expect("RollBackCredential");
        }
        scene.settles(point, "ROLLED_BACK").await;
        assert_eq!(scene.current().await, before, "{point}");
    }
    scene.d.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_back_that_is_killed_at_any_step_goes_on_on_sqlite() {
    a_way_back_is_killed(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_back_that_is_killed_at_any_step_goes_on_on_postgresql() {
    a_way_back_is_killed(Engine::Postgres).await;
}
