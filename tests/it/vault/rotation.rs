//! Rotation of credentials at a provider that stands in for the real one on this machine, and that really revokes.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{Duration, Instant, sleep},
};
use tonic::{Code, Status};

use super::*;
use crate::daemon::{Engine, PATIENCE, Setup, reason};

pub(super) const OLD: &str = "wJalrXUtnFEMIK7MDENGbPxRfiCYOLDOLDOLDOLD";
pub(super) const NEW: &str = "xKbmsYVuoGFNJL8NEFOHcQySgjDZNEWNEWNEWNEW";

/// Takes the secrets that are issued and not revoked, and refuses every other; or is down. To a secret that begins with
/// `busy` it is always down, and to one that begins with `hang` it says nothing at all.
pub(super) struct Provider {
    port: u16,
    pub(super) live: Arc<Mutex<BTreeSet<&'static str>>>,
    is_down: Arc<Mutex<bool>>,
}

impl Provider {
    pub(super) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let provider = Self {
            port: listener.local_addr().expect("an address").port(),
            live: Arc::default(),
            is_down: Arc::default(),
        };
        let (live, is_down) = (Arc::clone(&provider.live), Arc::clone(&provider.is_down));
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (live, is_down) = (Arc::clone(&live), Arc::clone(&is_down));
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        match socket.read_u8().await {
                            Ok(byte) => request.push(byte),
                            Err(_) => break,
                        }
                    }
                    let request = String::from_utf8_lossy(&request).into_owned();
                    let given = |secret: &str| {
                        request.contains(&format!("apca-api-secret-key: {secret}\r\n"))
                    };
                    let is_live = live.lock().expect("no panic").iter().any(|s| given(s));
                    if request.contains("apca-api-secret-key: hang") {
                        return std::future::pending().await;
                    }
                    let is_busy = request.contains("apca-api-secret-key: busy");
                    let is_down = *is_down.lock().expect("no panic") || is_busy;
                    let status = match (is_down, is_live) {
                        (true, _) => "503 Busy",
                        (false, true) => "200 OK",
                        (false, false) => "401 Unauthorized",
                    };
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    let _ = socket.write_all(answer.as_bytes()).await;
                    let _ = socket.shutdown().await;
                });
            }
        });
        provider.issues(OLD);
        provider
    }

    pub(super) fn issues(&self, secret: &'static str) {
        self.live.lock().expect("no panic").insert(secret);
    }

    pub(super) fn revokes(&self, secret: &'static str) {
        self.live.lock().expect("no panic").remove(secret);
    }

    pub(super) fn is_down(&self, is_down: bool) {
        *self.is_down.lock().expect("no panic") = is_down;
    }
}

/// A daemon, its provider, and a credential of alice that `service` manages.
pub(super) struct Realm {
    pub(super) d: Daemon,
    pub(super) provider: Provider,
    pub(super) alice: Person,
    pub(super) id: String,
}

impl Realm {
    async fn new(engine: Engine) -> Self {
        Self::with(engine, Provider::new().await, "").await
    }

    /// With more lines in section `[vault.rotation]`, and after it.
    pub(super) async fn with(engine: Engine, provider: Provider, more: &str) -> Self {
        let config = format!(
            "[egress]\nallow_http = true\nallow_networks = [\"127.0.0.0/8\"]\n[vault.base_urls]\n\
             alpaca = \"http://127.0.0.1:{}\"\n[vault.rotation]\ncheck_seconds = 1\n{more}",
            provider.port
        );
        let d = Setup::new(engine).append(config).start().await;
        let request = GrantRoleRequest {
            principal_id: d.id_of("service").await,
            role: "credential-manager".into(),
            tenant: "acme".into(),
        };
        let admin = d.actor("admin");
        let granted = admin.principals().grant_role(request).await;
        granted.expect("GrantRole");
        let alice = person(&d, "acme", "alice", &["can.use_users"]).await;
        let id = alice.stores(&d, &alpaca(OLD)).await;
        Self {
            d,
            provider,
            alice,
            id,
        }
    }

    async fn try_stage(
        &self,
        actor: &str,
        secret: &str,
        hold: i64,
    ) -> Result<CredentialRotation, Status> {
        let field = |name: &str, value: &str| CredentialField {
            name: name.into(),
            value: value.to_owned().into(),
        };
        let request = StageCredentialRequest {
            credential_id: self.id.clone(),
            fields: vec![
                field("api_key", "PKZQ7YJX2WVB4MNCRT6H"),
                field("api_secret", secret),
            ],
            hold: Some(prost_types::Duration {
                seconds: hold,
                nanos: 0,
            }),
        };
        let actor = self.d.actor(actor);
        let staged = actor.credential_rotations().stage_credential(request).await;
        Ok(staged?.into_inner().rotation.expect("a rotation"))
    }

    pub(super) async fn stage(&self, secret: &str, hold: i64) -> String {
        let staged = self.try_stage("service", secret, hold).await;
        let staged = staged.expect("StageCredential");
        assert_eq!(staged.state(), CredentialRotationState::Staged);
        staged.id
    }

    async fn try_promote(&self, id: &str) -> Result<CredentialRotation, Status> {
        let request = PromoteCredentialRequest {
            rotation_id: id.into(),
            without_probe: false,
        };
        let actor = self.d.actor("service");
        let mut client = actor.credential_rotations();
        let promoted = client.promote_credential(request);
        Ok(promoted.await?.into_inner().rotation.expect("a rotation"))
    }

    pub(super) async fn promote(&self, id: &str) -> CredentialRotation {
        self.try_promote(id).await.expect("PromoteCredential")
    }

    async fn try_complete(
        &self,
        id: &str,
        without_proof: bool,
    ) -> Result<CredentialRotation, Status> {
        let request = CompleteCredentialRotationRequest {
            rotation_id: id.into(),
            without_proof,
        };
        let actor = self.d.actor("service");
        let mut client = actor.credential_rotations();
        let completed = client.complete_credential_rotation(request).await;
        Ok(completed?.into_inner().rotation.expect("a rotation"))
    }

    async fn complete(&self, id: &str, without_proof: bool) -> CredentialRotation {
        let completed = self.try_complete(id, without_proof).await;
        completed.expect("CompleteCredentialRotation")
    }

    pub(super) async fn try_roll_back(&self, id: &str) -> Result<CredentialRotation, Status> {
        let request = RollBackCredentialRequest {
            rotation_id: id.into(),
            reason: "it was too slow".into(),
        };
        let actor = self.d.actor("service");
        let mut client = actor.credential_rotations();
        let rolled = client.roll_back_credential(request);
        Ok(rolled.await?.into_inner().rotation.expect("a rotation"))
    }

    pub(super) async fn get(&self, id: &str) -> CredentialRotation {
        let request = GetCredentialRotationRequest {
            rotation_id: id.into(),
        };
        let actor = self.d.actor("auditor");
        let mut client = actor.credential_rotations();
        let got = client.get_credential_rotation(request);
        let got = got.await.expect("GetCredentialRotation").into_inner();
        got.rotation.expect("a rotation")
    }

    /// The rotation, once the daemon has brought it there by itself.
    pub(super) async fn gets_to(
        &self,
        id: &str,
        state: CredentialRotationState,
    ) -> CredentialRotation {
        let until = Instant::now() + PATIENCE;
        loop {
            let rotation = self.get(id).await;
            if rotation.state() == state {
                return rotation;
            }
            assert!(Instant::now() < until, "it is still {rotation:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// What alice is shown under this label; None when there is no such value.
    async fn reveals(&self, label: &str) -> Option<String> {
        let why = json!({ "reason": "a test", "label": label });
        let path = format!("{MINE}/{}/reveal", self.id);
        let reply = self.alice.post(&self.d, &path, &why).await;
        if reply.status == 404 {
            return None;
        }
        let json = reply.json();
        let secret = json["fields"]["api_secret"].as_str().map(str::to_owned);
        Some(secret.unwrap_or_else(|| panic!("no secret in {reply:?}")))
    }

    /// CURRENT, PENDING, PREVIOUS.
    pub(super) async fn values(&self) -> [Option<String>; 3] {
        [
            self.reveals("CURRENT").await,
            self.reveals("PENDING").await,
            self.reveals("PREVIOUS").await,
        ]
    }

    pub(super) async fn alerts(&self) -> Vec<String> {
        let rows = self
            .d
            .rows("SELECT kind FROM alerts WHERE kind LIKE 'CREDENTIAL%' ORDER BY raised_at, id");
        rows.await.into_iter().map(|row| row[0].clone()).collect()
    }

    /// Alice puts another value in the place of the CURRENT one.
    pub(super) async fn puts(&self, secret: &str) {
        let mut other = alpaca(secret);
        other["replace"] = true.into();
        let put = self.alice.post(&self.d, MINE, &other).await;
        assert_eq!(put.status, 200, "{put:?}");
    }

    /// No secret is anywhere, and the audit log holds.
    pub(super) async fn end(self) {
        let everything = crate::canaries::dump(&self.d).await + &self.d.log();
        for secret in [OLD, NEW] {
            assert!(!everything.contains(secret));
        }
        self.d.stop().await;
    }
}

pub(super) fn alpaca(secret: &str) -> Value {
    json!({
        "provider": "alpaca",
        "environment": "testing",
        "fields": { "api_key": "PKZQ7YJX2WVB4MNCRT6H", "api_secret": secret },
    })
}

pub(super) fn some(secret: &str) -> Option<String> {
    Some(secret.to_owned())
}

pub(super) fn why<T>(answer: Result<T, Status>) -> String {
    reason(&answer.err().expect("a refusal"))
}

pub(super) const HOUR: i64 = 3600;

async fn one_is_rotated(engine: Engine) {
    let realm = Realm::new(engine).await;
    realm.provider.issues(NEW);
    let id = realm.stage(NEW, HOUR).await;
    assert_eq!(realm.values().await, [some(OLD), some(NEW), None]);
    assert_eq!(
        why(realm.try_stage("service", NEW, HOUR).await),
        "CREDENTIAL_ROTATION_STATE",
        "one at a time"
    );

    let before = "SELECT CAST(rotation_due_at AS BIGINT) FROM credentials";
    realm
        .d
        .execute("UPDATE credentials SET rotation_due_at = 1")
        .await;
    let promoted = realm.promote(&id).await;
    assert_eq!(promoted.state(), CredentialRotationState::Holding);
    assert_eq!(
        promoted.new_probe.expect("a probe").result(),
        ProbeResult::Valid
    );
    assert!(promoted.hold_until_time.is_some());
    assert_eq!(realm.values().await, [some(NEW), None, some(OLD)]);
    let due: i64 = realm.d.rows(before).await[0][0].parse().expect("a time");
    let in_a_month = claviger::clock::Clock::System.now().micros() + 29 * 24 * 3_600_000_000;
    assert!(due > in_a_month, "due again in thirty days");

    // Still works, so it stays, and that is said.
    let completed = realm.complete(&id, false).await;
    assert_eq!(completed.state(), CredentialRotationState::Holding);
    assert_eq!(completed.proof(), CredentialProof::Alive);
    assert_eq!(realm.values().await, [some(NEW), None, some(OLD)]);
    realm.provider.is_down(true);
    let completed = realm.complete(&id, false).await;
    assert_eq!(completed.state(), CredentialRotationState::Holding);
    assert_eq!(completed.proof(), CredentialProof::Unspecified);
    realm.provider.is_down(false);

    realm.provider.revokes(OLD);
    let completed = realm.complete(&id, false).await;
    assert_eq!(completed.state(), CredentialRotationState::Completed);
    assert_eq!(completed.proof(), CredentialProof::Dead);
    assert_eq!(realm.values().await, [some(NEW), None, None]);
    for again in [
        realm.try_complete(&id, false).await,
        realm.try_promote(&id).await,
        realm.try_roll_back(&id).await,
    ] {
        assert_eq!(why(again), "CREDENTIAL_ROTATION_STATE");
    }

    // Each step is recorded, with what the provider said.
    let rows = realm
        .d
        .rows(
            "SELECT action, data FROM audit_events WHERE outcome = 'success' AND action IN ('StageCredential', \
             'PromoteCredential', 'CompleteCredentialRotation') ORDER BY seq",
        )
        .await;
    assert_eq!(rows.len(), 5, "{rows:?}");
    assert!(rows[1][1].contains("VALID HTTP_200"), "{rows:?}");
    assert!(rows[4][1].contains("\"proof\":\"DEAD\""), "{rows:?}");
    realm.end().await;
}

// R-CRED-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_is_rotated_and_the_old_value_proved_dead_on_sqlite() {
    one_is_rotated(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_is_rotated_and_the_old_value_proved_dead_on_postgresql() {
    one_is_rotated(Engine::Postgres).await;
}

// R-CRED-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_provider_refuses_is_rolled_back_and_nobody_notices() {
    let realm = Realm::new(Engine::Sqlite).await;
    let id = realm.stage(NEW, HOUR).await;
    let value = "SELECT id, promoted_at FROM user_broker_credentials WHERE label = 'CURRENT'";
    let before = realm.d.rows(value).await;

    // A provider that says neither yes nor no decides nothing.
    realm.provider.is_down(true);
    let stays = realm.promote(&id).await;
    assert_eq!(stays.state(), CredentialRotationState::Staged);
    assert_eq!(
        stays.new_probe.expect("a probe").result(),
        ProbeResult::Unexpected
    );
    assert_eq!(realm.values().await, [some(OLD), some(NEW), None]);
    realm.provider.is_down(false);

    let refused = realm.promote(&id).await;
    assert_eq!(refused.state(), CredentialRotationState::RolledBack);
    assert_eq!(refused.why, "NEW_VALUE_REFUSED");
    assert_eq!(realm.values().await, [some(OLD), None, None]);
    assert_eq!(
        realm.d.rows(value).await,
        before,
        "the same value as before"
    );
    assert_eq!(realm.alerts().await, ["CREDENTIAL_ROLLED_BACK"]);

    // The next one begins anew.
    realm.provider.issues(NEW);
    let id = realm.stage(NEW, HOUR).await;
    let promoted = realm.promote(&id).await;
    assert_eq!(promoted.state(), CredentialRotationState::Holding);
    realm.end().await;
}

// R-CRED-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_value_that_fails_later_gives_way_to_the_old_one_by_itself() {
    let realm = Realm::new(Engine::Sqlite).await;
    realm.provider.issues(NEW);
    let due = "SELECT rotation_due_at FROM credentials";
    let before = realm.d.rows(due).await;
    let id = realm.stage(NEW, HOUR).await;
    realm.promote(&id).await;
    assert_ne!(realm.d.rows(due).await, before);
    realm.provider.revokes(NEW);
    let rolled = realm
        .gets_to(&id, CredentialRotationState::RolledBack)
        .await;
    assert_eq!(rolled.why, "NEW_VALUE_REFUSED");
    assert_eq!(rolled.new_probe.expect("a probe").detail, "HTTP_401");
    assert_eq!(realm.values().await, [some(OLD), None, None]);
    assert_eq!(realm.d.rows(due).await, before, "due as it was");
    let told = ["CREDENTIAL_PROMOTED", "CREDENTIAL_ROLLED_BACK"];
    assert_eq!(realm.alerts().await, told);

    // With nothing better to go back to, it stays.
    realm.provider.issues(NEW);
    let id = realm.stage(NEW, HOUR).await;
    realm.promote(&id).await;
    realm.provider.revokes(OLD);
    realm.provider.revokes(NEW);
    let until = Instant::now() + PATIENCE;
    loop {
        let rotation = realm.get(&id).await;
        assert_eq!(rotation.state(), CredentialRotationState::Holding);
        if rotation.old_probe.is_some_and(|p| p.detail == "HTTP_401") {
            break;
        }
        assert!(Instant::now() < until, "nobody looked");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(realm.values().await, [some(NEW), None, some(OLD)]);
    realm.end().await;
}

// R-CRED-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_hold_is_over_the_old_value_must_be_dead() {
    let realm = Realm::new(Engine::Sqlite).await;
    realm.provider.issues(NEW);
    let id = realm.stage(NEW, 0).await;
    realm.promote(&id).await;
    let until = Instant::now() + PATIENCE;
    while realm.alerts().await.len() < 2 {
        assert!(Instant::now() < until, "nobody is told");
        sleep(Duration::from_millis(50)).await;
    }
    let held = realm.get(&id).await;
    assert_eq!(held.state(), CredentialRotationState::Holding);
    assert_eq!(held.proof(), CredentialProof::Alive);
    assert_eq!(held.attention, "OLD_VALUE_ALIVE");
    realm.provider.revokes(OLD);
    let completed = realm.gets_to(&id, CredentialRotationState::Completed).await;
    assert_eq!(completed.proof(), CredentialProof::Dead);
    assert_eq!(realm.values().await, [some(NEW), None, None]);
    assert_eq!(
        realm.alerts().await,
        [
            "CREDENTIAL_PROMOTED",
            "CREDENTIAL_OLD_VALUE_ALIVE",
            "CREDENTIAL_ROTATED"
        ],
        "once, however often it was looked at"
    );
    // What was said of the old value ends with it; the notices end by themselves.
    let standing = "SELECT kind FROM alerts WHERE kind LIKE 'CREDENTIAL%' AND ends_at IS NULL";
    assert_eq!(realm.d.rows(standing).await, [[""; 0]; 0]);
    let by = "SELECT actor FROM audit_events WHERE action = 'CompleteCredentialRotation'";
    assert_eq!(realm.d.rows(by).await.len(), 1, "a look leaves no row");
    realm.end().await;
}

// R-CRED-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_take_a_rotation_back_and_waive_what_cannot_be_proved() {
    let realm = Realm::new(Engine::Sqlite).await;
    // Before the promotion, and after.
    let id = realm.stage(NEW, HOUR).await;
    let rolled = realm.try_roll_back(&id).await.expect("RollBackCredential");
    assert_eq!(rolled.state(), CredentialRotationState::RolledBack);
    assert_eq!(rolled.why, "ASKED_FOR");
    assert_eq!(realm.values().await, [some(OLD), None, None]);
    realm.provider.issues(NEW);
    let id = realm.stage(NEW, HOUR).await;
    realm.promote(&id).await;
    realm.try_roll_back(&id).await.expect("RollBackCredential");
    assert_eq!(realm.values().await, [some(OLD), None, None]);
    let recorded = "SELECT data FROM audit_events WHERE action = 'RollBackCredential'";
    for row in realm.d.rows(recorded).await {
        assert!(row[0].contains("it was too slow"), "{row:?}");
    }

    // The old value goes although it works, when a person answers for it.
    let id = realm.stage(NEW, HOUR).await;
    realm.promote(&id).await;
    let completed = realm.complete(&id, true).await;
    assert_eq!(completed.state(), CredentialRotationState::Completed);
    assert_eq!(
        completed.proof(),
        CredentialProof::Alive,
        "and that is said"
    );
    assert_eq!(realm.values().await, [some(NEW), None, None]);

    // A value that was put in between is nobody's to undo.
    realm.provider.issues(OLD);
    let id = realm.stage(OLD, HOUR).await;
    realm.puts("yLcntZWvpHGOKM9OFGPIdRzThkEAputputputput").await;
    assert_eq!(
        why(realm.try_promote(&id).await),
        "CREDENTIAL_ROTATION_STATE"
    );
    realm.try_roll_back(&id).await.expect("RollBackCredential");

    // With the credential goes what was under way.
    let id = realm.stage(OLD, HOUR).await;
    let path = format!("{MINE}/{}", realm.id);
    assert_eq!(realm.alice.delete(&realm.d, &path).await.status, 204);
    let state = format!("SELECT state, why FROM credential_rotations WHERE id = '{id}'");
    assert_eq!(
        realm.d.rows(&state).await,
        [["ROLLED_BACK", "CREDENTIAL_DELETED"]]
    );
    assert!(realm.try_promote(&id).await.is_err());
    realm.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_put_may_not_rotate_and_bad_values_are_not_staged() {
    let realm = Realm::new(Engine::Sqlite).await;
    let id = realm.stage(NEW, HOUR).await;
    for (actor, code) in [
        ("issuer", Code::PermissionDenied),
        ("auditor", Code::PermissionDenied),
        ("other", Code::NotFound),
        ("stranger", Code::Unauthenticated),
    ] {
        let refused = realm.try_stage(actor, NEW, HOUR).await;
        assert_eq!(refused.expect_err(actor).code(), code, "{actor}");
        let request = PromoteCredentialRequest {
            rotation_id: id.clone(),
            without_probe: true,
        };
        let actor_of = realm.d.actor(actor);
        let mut client = actor_of.credential_rotations();
        let refused = client.promote_credential(request);
        assert_eq!(refused.await.expect_err(actor).code(), code, "{actor}");
    }
    assert_eq!(realm.values().await, [some(OLD), some(NEW), None]);
    realm.try_roll_back(&id).await.expect("RollBackCredential");

    for (secret, hold) in [
        (OLD, HOUR),
        ("with\u{0}control", HOUR),
        (NEW, 31 * 24 * HOUR),
        (NEW, -1),
    ] {
        let refused = realm.try_stage("service", secret, hold).await;
        assert_eq!(why(refused), "INVALID_FIELD", "{secret:?} {hold}");
    }
    let unknown = realm.try_promote(&uuid::Uuid::now_v7().to_string()).await;
    assert_eq!(unknown.expect_err("unknown").code(), Code::NotFound);
    assert_eq!(realm.values().await, [some(OLD), None, None]);
    realm.end().await;
}

// R-CRED-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_are_told_once_what_is_due_and_what_is_overdue() {
    let realm = Realm::new(Engine::Sqlite).await;
    let due = async |within: Option<i64>| {
        let request = ListDueCredentialsRequest {
            tenant: "acme".into(),
            within: within.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
            ..Default::default()
        };
        let auditor = realm.d.actor("auditor");
        let mut client = auditor.credential_rotations();
        let listed = client.list_due_credentials(request);
        let listed = listed.await.expect("ListDueCredentials").into_inner();
        let ids = listed.credentials.into_iter().map(|c| c.id);
        ids.collect::<Vec<_>>()
    };
    assert_eq!(due(None).await, [""; 0]);
    assert_eq!(due(Some(29 * 24 * HOUR)).await, [""; 0]);
    assert_eq!(
        due(Some(31 * 24 * HOUR)).await,
        std::slice::from_ref(&realm.id)
    );

    let told = async |count: usize| {
        let until = Instant::now() + PATIENCE;
        while realm.alerts().await.len() < count {
            assert!(Instant::now() < until, "nobody is told");
            sleep(Duration::from_millis(50)).await;
        }
    };
    let now = claviger::clock::Clock::System.now().micros();
    let in_a_day = now + 24 * 3_600_000_000;
    let set = |at: i64| format!("UPDATE credentials SET rotation_due_at = {at}");
    realm.d.execute(&set(in_a_day)).await;
    told(1).await;
    assert_eq!(due(None).await, [""; 0]);
    realm.d.execute(&set(now)).await;
    told(2).await;
    assert_eq!(due(None).await, std::slice::from_ref(&realm.id));
    assert_eq!(
        realm.alerts().await,
        ["CREDENTIAL_DUE", "CREDENTIAL_OVERDUE"]
    );
    realm.end().await;
}

// R-CRED-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_at_the_command_line() {
    let realm = Realm::new(Engine::Sqlite).await;
    let (key, secret) = (realm.d.path("new.key"), realm.d.path("new.secret"));
    std::fs::write(&key, "PKZQ7YJX2WVB4MNCRT6H\n").expect("a file");
    std::fs::write(&secret, format!("{NEW}\n")).expect("a file");
    let key = format!("api_key=file:{}", key.display());
    let secret = format!("api_secret=file:{}", secret.display());
    let of = async |args: &[&str]| {
        let common = ["--as", "service", "credential", "rotation"];
        let output = realm.d.cli(&[&common[..], args].concat()).await;
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!shown.contains(NEW), "{shown}");
        (output.status.code(), shown)
    };
    let stage = async || {
        let args = [
            "stage", &realm.id, "--field", &key, "--field", &secret, "--hold", "1h",
        ];
        let (code, shown) = of(&args).await;
        assert_eq!(code, Some(0), "{shown}");
        let open = "SELECT id FROM credential_rotations WHERE state = 'STAGED'";
        realm.d.rows(open).await[0][0].clone()
    };
    let id = stage().await;
    let (code, shown) = of(&["promote", &id]).await;
    assert_eq!(code, Some(1), "the provider refuses it: {shown}");
    assert!(shown.contains("NEW_VALUE_REFUSED"), "{shown}");

    realm.provider.issues(NEW);
    let id = stage().await;
    assert_eq!(of(&["promote", &id]).await.0, Some(0));
    let (code, shown) = of(&["complete", &id]).await;
    assert_eq!(code, Some(1), "it still works: {shown}");
    assert!(shown.contains("alive"), "{shown}");
    realm.provider.revokes(OLD);
    let (code, shown) = of(&["complete", &id]).await;
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("dead"), "{shown}");
    let (code, shown) = of(&["get", &id]).await;
    assert!(code == Some(0) && shown.contains("HTTP_401"), "{shown}");
    let (code, shown) = of(&["list", "--credential", &realm.id]).await;
    assert!(code == Some(0) && shown.contains(&id), "{shown}");
    let (code, shown) = of(&["due", "--tenant", "acme", "--within", "40d"]).await;
    assert!(code == Some(0) && shown.contains(&realm.id), "{shown}");
    let (code, shown) = of(&["set", &realm.id, "--period", "60d"]).await;
    assert_eq!(code, Some(0), "{shown}");
    let (code, shown) = of(&["due", "--tenant", "acme", "--within", "40d"]).await;
    assert!(code == Some(0) && !shown.contains(&realm.id), "{shown}");
    realm.end().await;
}
