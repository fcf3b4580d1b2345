//! Destroying key versions: two people, a waiting period, and nothing that is still needed. R-LIFE-6, R-LIFE-7.

use std::collections::BTreeMap;

use claviger::grpc::proto::*;
use tokio::time::{Duration, Instant, sleep};
use tonic::{Code, Response, Status};

use crate::daemon::{Actor, Daemon, Engine, PATIENCE, Setup, reason};

/// Somebody with two roles, which policies allow and a destruction does not.
const JUDGE: &str = r#"
[keys]
destruction_wait_seconds = 172800
last_used_interval_seconds = 1

[scheduler]
interval_ms = 50

[[bootstrap.principals]]
name = "judge"
tenant = "system"
type = "user"
identities = ["spiffe://claviger.test/judge"]
roles = [{ role = "key-issuer", tenant = "*" }, { role = "key-approver", tenant = "*" }]
"#;

const TWO_DAYS: i64 = 172_800;

/// Two daemons' worth of people on one daemon.
struct Stage(Daemon);

impl Stage {
    async fn new(engine: Engine) -> Self {
        Self(Setup::new(engine).append(JUDGE).start().await)
    }

    /// A key whose second version is RETIRED and was never used.
    async fn retired(&self, name: &str, purpose: KeyPurpose) -> (Key, String) {
        let algorithm = match purpose {
            KeyPurpose::Encryption => Algorithm::A256gcm,
            _ => Algorithm::Es256,
        };
        let key = self.0.key("acme", name, purpose, algorithm).await;
        let rotation = self.rotate(name).await;
        self.0.withdraw(&rotation).await;
        (key, rotation.new_kid)
    }

    async fn rotate(&self, name: &str) -> Rotation {
        let request = RotateKeyRequest {
            tenant: "acme".into(),
            key: name.into(),
            justification: "it is time".into(),
            ..RotateKeyRequest::default()
        };
        let opened = self.0.actor("issuer").rotations().rotate_key(request).await;
        let rotation = opened.expect("RotateKey").into_inner().rotation;
        rotation.expect("a rotation")
    }

    async fn ask(&self, key: &str, kid: &str) -> Result<KeyDestruction, Status> {
        self.ask_as(&self.0.actor("issuer"), key, kid).await
    }

    async fn ask_as(&self, who: &Actor, key: &str, kid: &str) -> Result<KeyDestruction, Status> {
        let request = DestroyKeyVersionRequest {
            tenant: "acme".into(),
            key: key.into(),
            kid: kid.into(),
            reason: "nobody needs it".into(),
        };
        let asked = who.keys().destroy_key_version(request).await?;
        Ok(asked.into_inner().destruction.expect("a destruction"))
    }

    async fn approve(&self, id: &str, kid: &str) -> Result<KeyDestruction, Status> {
        let approver = self.0.actor("approver");
        self.approve_as(&approver, id, kid).await
    }

    async fn approve_as(&self, who: &Actor, id: &str, kid: &str) -> Result<KeyDestruction, Status> {
        let request = ApproveKeyDestructionRequest {
            destruction_id: id.into(),
            kid: kid.into(),
        };
        let approved = who.keys().approve_key_destruction(request).await?;
        Ok(approved.into_inner().destruction.expect("a destruction"))
    }

    async fn cancel(&self, who: &str, id: &str) -> Result<KeyDestruction, Status> {
        let request = CancelKeyDestructionRequest {
            destruction_id: id.into(),
            reason: "it is needed".into(),
        };
        let mut keys = self.0.actor(who).keys();
        let cancelled = keys.cancel_key_destruction(request).await?;
        Ok(cancelled.into_inner().destruction.expect("a destruction"))
    }

    /// Lets the waiting period be over.
    async fn make_due(&self, id: &str) {
        let sql = format!("UPDATE key_destructions SET destroy_at = 1 WHERE id = '{id}'");
        self.0.execute(&sql).await;
    }

    /// Waits until the destruction has ended, and returns it.
    async fn ended(&self, id: &str) -> KeyDestruction {
        let until = Instant::now() + PATIENCE;
        loop {
            let all = self.list(KeyDestructionState::Unspecified).await;
            let found = all.into_iter().find(|d| d.id == id).expect("listed");
            if found.end_time.is_some() {
                return found;
            }
            assert!(Instant::now() < until, "{found:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn list(&self, state: KeyDestructionState) -> Vec<KeyDestruction> {
        let request = ListKeyDestructionsRequest {
            tenant: "acme".into(),
            state: state.into(),
            ..Default::default()
        };
        let mut keys = self.0.actor("auditor").keys();
        let listed = keys.list_key_destructions(request).await;
        listed
            .expect("ListKeyDestructions")
            .into_inner()
            .destructions
    }

    async fn version(&self, key: &str, kid: &str) -> KeyVersion {
        let request = GetKeyRequest {
            tenant: "acme".into(),
            key: key.into(),
        };
        let got = self.0.actor("auditor").keys().get_key(request).await;
        let key = got.expect("GetKey").into_inner().key.expect("a key");
        let version = key.versions.into_iter().find(|v| v.kid == kid);
        version.expect("a version")
    }

    /// Outcomes of the rows that an action left about an entity.
    async fn rows(&self, action: &str, entity_id: &str) -> Vec<Vec<String>> {
        let sql = format!(
            "SELECT actor_type, outcome FROM audit_events WHERE action = '{action}' \
             AND entity = 'destruction' AND entity_id = '{entity_id}' ORDER BY seq"
        );
        self.0.rows(&sql).await
    }

    async fn encrypt(&self, key: &str) -> EncryptResponse {
        let request = EncryptRequest {
            tenant: "acme".into(),
            key: key.into(),
            plaintext: "secret".into(),
            aad: BTreeMap::new(),
        };
        let sealed = self.0.actor("service").crypto().encrypt(request).await;
        sealed.expect("Encrypt").into_inner()
    }

    async fn decrypt(
        &self,
        key: &str,
        sealed: &EncryptResponse,
    ) -> Result<Response<DecryptResponse>, Status> {
        let request = DecryptRequest {
            tenant: "acme".into(),
            key: key.into(),
            ciphertext: sealed.ciphertext.clone(),
            aad: BTreeMap::new(),
        };
        self.0.actor("service").crypto().decrypt(request).await
    }

    /// A data key with data under its first version, which is RETIRED now.
    async fn with_data(&self, name: &str) -> (String, EncryptResponse) {
        let (purpose, algorithm) = (KeyPurpose::Encryption, Algorithm::A256gcm);
        let key = self.0.key("acme", name, purpose, algorithm).await;
        let sealed = self.encrypt(name).await;
        let rotation = self.rotate(name).await;
        let approve = ApproveRotationRequest {
            rotation_id: rotation.id.clone(),
            plan_digest: rotation.plan_digest.clone(),
        };
        let mut approver = self.0.actor("approver").rotations();
        approver.approve_rotation(approve).await.expect("approved");
        let deploy = DeployRotationRequest {
            rotation_id: rotation.id.clone(),
        };
        let mut deployer = self.0.actor("deployer").rotations();
        deployer.deploy_rotation(deploy).await.expect("deployed");
        let kid = key.active_kid;
        self.0
            .execute(&format!(
                "UPDATE rotations SET state = 'COMPLETED' WHERE id = '{}'; \
                 UPDATE key_versions SET state = 'RETIRED', retired_at = deactivated_at WHERE kid = '{kid}'",
                rotation.id
            ))
            .await;
        (kid, sealed)
    }

    /// Uses the version once more, waits until its row knows, then moves the use before the waiting period.
    async fn age_uses(&self, kid: &str, sealed: &EncryptResponse) {
        let at = claviger::clock::Clock::System.now().micros();
        self.decrypt("vault", sealed).await.expect("decrypted");
        let mark = format!("SELECT last_used_at FROM key_versions WHERE kid = '{kid}'");
        let until = Instant::now() + PATIENCE;
        let written = |row: &str| row.parse().is_ok_and(|mark: i64| mark >= at);
        while !written(&self.0.rows(&mark).await[0][0]) {
            assert!(Instant::now() < until, "the use was never written");
            sleep(Duration::from_millis(50)).await;
        }
        let sql = format!("UPDATE key_versions SET last_used_at = 1 WHERE kid = '{kid}'");
        self.0.execute(&sql).await;
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, why: &str) {
    let status = result.expect_err(why);
    assert_eq!((status.code(), reason(&status).as_str()), (code, why));
    assert!(status.message().contains(' '), "{status}");
}

const STATE: Code = Code::FailedPrecondition;
const DENIED: Code = Code::PermissionDenied;

// R-LIFE-6, R-LIFE-7
async fn two_people_and_a_waiting_period(engine: Engine) {
    let stage = Stage::new(engine).await;
    let (key, kid) = stage.retired("orders", KeyPurpose::Signing).await;
    refused(
        stage.ask("orders", &key.active_kid).await,
        STATE,
        "VERSION_STATE",
    );
    refused(
        stage.ask("orders", &"A".repeat(43)).await,
        STATE,
        "NO_USABLE_VERSION",
    );
    let judge = stage.0.ca.client("spiffe://claviger.test/judge");
    let judge = stage.0.actor_with(Some(&judge));
    let asked = stage.ask_as(&judge, "orders", &kid).await.expect("asked");
    assert_eq!(asked.state(), KeyDestructionState::Requested);
    refused(stage.ask("orders", &kid).await, STATE, "DESTRUCTION_OPEN");
    let own = stage.approve_as(&judge, &asked.id, &kid).await;
    refused(own, DENIED, "SEPARATION_OF_DUTIES");
    let other = stage.approve(&asked.id, &key.active_kid).await;
    refused(other, STATE, "PLAN_CHANGED");
    let approved = stage.approve(&asked.id, &kid).await.expect("approved");
    assert_eq!(approved.state(), KeyDestructionState::Scheduled);
    let (at, due) = (approved.approve_time, approved.destroy_time);
    assert_eq!(
        due.expect("due").seconds,
        at.expect("approved").seconds + TWO_DAYS
    );
    refused(
        stage.approve(&asked.id, &kid).await,
        STATE,
        "DESTRUCTION_STATE",
    );

    // Not before its time, although the scheduler has looked many times.
    sleep(Duration::from_millis(500)).await;
    assert_eq!(stage.list(KeyDestructionState::Scheduled).await.len(), 1);
    let before = stage.0.private_keys().await.len();
    stage.make_due(&asked.id).await;
    let ended = stage.ended(&asked.id).await;
    assert_eq!(ended.state(), KeyDestructionState::Destroyed);
    assert_eq!(stage.0.private_keys().await.len(), before - 1);
    let version = stage.version("orders", &kid).await;
    assert_eq!(version.state(), KeyVersionState::Destroyed);
    assert!(version.destroy_time.is_some());
    let intents = "SELECT state, kid FROM backend_intents WHERE kind = 'DESTROY'";
    assert_eq!(stage.0.rows(intents).await, [["DONE".to_owned(), kid]]);
    let done = stage.rows("DestroyMaterial", &asked.id).await;
    assert_eq!(done, [["job", "success"]]);
    refused(
        stage.cancel("officer", &asked.id).await,
        STATE,
        "DESTRUCTION_STATE",
    );
    assert!(stage.list(KeyDestructionState::Scheduled).await.is_empty());
    stage.0.stop().await;
}

#[tokio::test]
async fn two_people_and_a_waiting_period_on_sqlite() {
    two_people_and_a_waiting_period(Engine::Sqlite).await;
}

#[tokio::test]
async fn two_people_and_a_waiting_period_on_postgres() {
    two_people_and_a_waiting_period(Engine::Postgres).await;
}

#[tokio::test]
async fn a_destruction_can_be_called_off_until_it_has_begun() {
    let stage = Stage::new(Engine::Sqlite).await;
    let (_, kid) = stage.retired("orders", KeyPurpose::Signing).await;
    for who in ["issuer", "approver", "officer"] {
        let asked = stage.ask("orders", &kid).await.expect("asked");
        stage.approve(&asked.id, &kid).await.expect("approved");
        let cancelled = stage.cancel(who, &asked.id).await.expect(who);
        assert_eq!(cancelled.state(), KeyDestructionState::Cancelled);
        assert_eq!(cancelled.cancelled_by, stage.0.id_of(who).await);
        stage.make_due(&asked.id).await;
    }
    let asked = stage.ask("orders", &kid).await.expect("asked");
    stage.approve(&asked.id, &kid).await.expect("approved");
    // As if the daemon had died between the device and the database.
    stage
        .0
        .execute(&format!(
            "INSERT INTO backend_intents (id, backend, tenant, label, state, created_at, kind, kid) VALUES \
             ('{}', 'hsm', 'acme', 'x', 'PENDING', 1, 'DESTROY', '{kid}')",
            uuid::Uuid::now_v7()
        ))
        .await;
    refused(
        stage.cancel("officer", &asked.id).await,
        STATE,
        "DESTRUCTION_STATE",
    );
    let version = stage.version("orders", &kid).await;
    assert_eq!(version.state(), KeyVersionState::Retired);
    stage.0.stop().await;
}

#[tokio::test]
async fn a_version_that_tokens_or_a_rotation_need_is_kept() {
    let stage = Stage::new(Engine::Sqlite).await;
    let (key, kid) = stage.retired("jwt", KeyPurpose::TokenSigning).await;
    let exp = claviger::clock::Clock::System.now().micros() + 3_600_000_000;
    let set = |what: &str| format!("UPDATE key_versions SET {what} WHERE kid = '{kid}'");
    stage
        .0
        .execute(&set(&format!("last_token_exp = {exp}")))
        .await;
    refused(stage.ask("jwt", &kid).await, STATE, "VERSION_IN_USE");
    // Tokens of a compromised version are invalid anyway.
    let compromised = "state = 'COMPROMISED', compromised_at = retired_at";
    stage.0.execute(&set(compromised)).await;
    let asked = stage.ask("jwt", &kid).await.expect("asked");
    stage.cancel("issuer", &asked.id).await.expect("cancelled");
    stage
        .0
        .execute(&set("state = 'RETIRED', last_token_exp = 1"))
        .await;
    stage.ask("jwt", &kid).await.expect("asked");

    stage.rotate("jwt").await;
    let compromised = format!(
        "UPDATE key_versions SET state = 'COMPROMISED', compromised_at = activated_at WHERE kid = '{}'",
        key.active_kid
    );
    stage.0.execute(&compromised).await;
    refused(
        stage.ask("jwt", &key.active_kid).await,
        STATE,
        "VERSION_IN_USE",
    );
    stage.0.stop().await;
}

async fn data_keeps_its_key_alive(engine: Engine) {
    let stage = Stage::new(engine).await;
    let (kid, sealed) = stage.with_data("vault").await;
    // Encrypted with a moment ago.
    refused(stage.ask("vault", &kid).await, STATE, "VERSION_IN_USE");
    stage.age_uses(&kid, &sealed).await;
    let asked = stage.ask("vault", &kid).await.expect("asked");
    stage.approve(&asked.id, &kid).await.expect("approved");
    stage.decrypt("vault", &sealed).await.expect("decrypted");
    stage.make_due(&asked.id).await;
    let ended = stage.ended(&asked.id).await;
    assert_eq!(ended.state(), KeyDestructionState::Cancelled, "{ended:?}");
    assert!(ended.cancel_reason.contains("data under it was used"));
    // People were told when it was approved, and when it was called off.
    let alerts = format!(
        "SELECT kind FROM alerts WHERE entity_id = '{}' ORDER BY id",
        asked.id
    );
    let told = stage.0.rows(&alerts).await.concat();
    assert_eq!(told, ["DESTRUCTION_SCHEDULED", "DESTRUCTION_CANCELLED"]);
    stage.decrypt("vault", &sealed).await.expect("still there");

    stage.age_uses(&kid, &sealed).await;
    let asked = stage.ask("vault", &kid).await.expect("asked");
    stage.approve(&asked.id, &kid).await.expect("approved");
    stage.make_due(&asked.id).await;
    let ended = stage.ended(&asked.id).await;
    assert_eq!(ended.state(), KeyDestructionState::Destroyed, "{ended:?}");
    let rows = format!("SELECT kid FROM key_versions WHERE wrapped_key IS NULL AND kid = '{kid}'");
    assert_eq!(stage.0.rows(&rows).await.len(), 1);
    let lost = stage.decrypt("vault", &sealed).await;
    refused(lost, STATE, "NO_USABLE_VERSION");
    let again = stage.encrypt("vault").await;
    stage
        .decrypt("vault", &again)
        .await
        .expect("the new version");
    stage.0.stop().await;
}

#[tokio::test]
async fn data_keeps_its_key_alive_on_sqlite() {
    data_keeps_its_key_alive(Engine::Sqlite).await;
}

#[tokio::test]
async fn data_keeps_its_key_alive_on_postgres() {
    data_keeps_its_key_alive(Engine::Postgres).await;
}

/// An empty token is no proof of anything; a token that shows the KEK and not the pair is.
#[tokio::test]
async fn a_pair_counts_as_gone_only_on_a_token_that_is_there() {
    let stage = Stage::new(Engine::Sqlite).await;
    let (_, kid) = stage.retired("orders", KeyPurpose::Signing).await;
    let asked = stage.ask("orders", &kid).await.expect("asked");
    stage.approve(&asked.id, &kid).await.expect("approved");
    let (here, away) = (stage.0.path("tokens"), stage.0.path("elsewhere"));
    std::fs::rename(&here, &away).expect("moved away");
    std::fs::create_dir(&here).expect("an empty directory");
    stage.make_due(&asked.id).await;
    sleep(Duration::from_secs(4)).await;
    let scheduled = stage.list(KeyDestructionState::Scheduled).await;
    assert_eq!(scheduled.len(), 1, "a vanished token destroyed nothing");
    std::fs::remove_dir(&here).expect("still empty");
    std::fs::rename(&away, &here).expect("moved back");
    let uri = stage.version("orders", &kid).await.backend_ref;
    let id = uri.split("id=").nth(1).expect("an id");
    let id: String = id.chars().take_while(|c| *c != ';').collect();
    assert!(!id.is_empty());
    let ended = stage.ended(&asked.id).await;
    assert_eq!(ended.state(), KeyDestructionState::Destroyed);
    let rows =
        "SELECT data FROM audit_events WHERE action = 'DestroyMaterial' AND outcome = 'success'";
    let rows = stage.0.rows(rows).await;
    assert!(rows[0][0].contains(r#""was_gone":false"#), "{rows:?}");
    stage.0.stop().await;
}

// Coarse, and without a write per call.
#[tokio::test]
async fn the_last_use_of_a_version_is_kept() {
    let stage = Stage::new(Engine::Sqlite).await;
    let purpose = KeyPurpose::Signing;
    let key = stage
        .0
        .key("acme", "orders", purpose, Algorithm::Es256)
        .await;
    let mark = format!(
        "SELECT last_used_at FROM key_versions WHERE kid = '{}'",
        key.active_kid
    );
    assert_eq!(stage.0.rows(&mark).await, [[""]]);
    let sign = SignRequest {
        tenant: "acme".into(),
        key: "orders".into(),
        payload: Some(sign_request::Payload::Message("order".into())),
    };
    stage
        .0
        .actor("service")
        .crypto()
        .sign(sign)
        .await
        .expect("signed");
    let until = Instant::now() + PATIENCE;
    while stage.0.rows(&mark).await[0][0].is_empty() {
        assert!(Instant::now() < until, "the use was never written");
        sleep(Duration::from_millis(50)).await;
    }
    stage.0.stop().await;
}

/// Malformed requests, and ids of nobody: a typed refusal, and nothing changed.
#[tokio::test]
async fn bad_input_changes_nothing() {
    let stage = Stage::new(Engine::Sqlite).await;
    let (_, kid) = stage.retired("orders", KeyPurpose::Signing).await;
    let asked = stage.ask("orders", &kid).await.expect("asked");
    let invalid = Code::InvalidArgument;
    for kid in ["", "../../etc/passwd", "' OR '1'='1", "a\0b"] {
        refused(stage.ask("orders", kid).await, invalid, "INVALID_FIELD");
        let approved = stage.approve(&asked.id, kid).await;
        refused(approved, invalid, "INVALID_FIELD");
    }
    let mut issuer = stage.0.actor("issuer").keys();
    for reason in ["", "a\nb", &"x".repeat(513)] {
        let request = DestroyKeyVersionRequest {
            tenant: "acme".into(),
            key: "orders".into(),
            kid: kid.clone(),
            reason: reason.into(),
        };
        let answer = issuer.destroy_key_version(request).await;
        refused(answer, invalid, "INVALID_FIELD");
        let request = CancelKeyDestructionRequest {
            destruction_id: asked.id.clone(),
            reason: reason.into(),
        };
        let answer = issuer.cancel_key_destruction(request).await;
        refused(answer, invalid, "INVALID_FIELD");
    }
    for id in [
        "",
        "x",
        &asked.id.to_uppercase(),
        &asked.id.replace('-', ""),
    ] {
        refused(stage.cancel("issuer", id).await, invalid, "INVALID_FIELD");
    }
    refused(
        stage.ask("nothing", &kid).await,
        Code::NotFound,
        "KEY_NOT_FOUND",
    );
    // R-ACL-3: somebody of another tenant cannot tell the destruction from none.
    let nobody = uuid::Uuid::now_v7().to_string();
    for (who, id) in [
        ("issuer", &nobody),
        ("other", &nobody),
        ("other", &asked.id),
    ] {
        let answer = stage.cancel(who, id).await;
        refused(answer, Code::NotFound, "DESTRUCTION_NOT_FOUND");
    }
    let list = ListKeyDestructionsRequest {
        tenant: "acme".into(),
        state: 99,
        ..Default::default()
    };
    let answer = issuer.list_key_destructions(list).await;
    refused(answer, invalid, "INVALID_FIELD");
    let requested = stage.list(KeyDestructionState::Requested).await;
    assert_eq!(requested, [asked]);
    stage.0.stop().await;
}

/// An unwrapped data key in another replica's memory is no way around a destruction.
#[tokio::test]
async fn a_destroyed_data_key_is_gone_on_every_replica() {
    let stage = Stage::new(Engine::Postgres).await;
    let twin = stage.0.twin().await;
    let (kid, sealed) = stage.with_data("vault").await;
    let decrypt = || DecryptRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        ciphertext: sealed.ciphertext.clone(),
        aad: BTreeMap::new(),
    };
    let mut other = stage.0.actor_of("service", &twin).crypto();
    other.decrypt(decrypt()).await.expect("in its memory now");
    stage.age_uses(&kid, &sealed).await;
    // The other replica writes its mark within a second; then it is moved too.
    sleep(Duration::from_secs(3)).await;
    let old = format!("UPDATE key_versions SET last_used_at = 1 WHERE kid = '{kid}'");
    stage.0.execute(&old).await;
    let asked = stage.ask("vault", &kid).await.expect("asked");
    stage.approve(&asked.id, &kid).await.expect("approved");
    stage.make_due(&asked.id).await;
    let ended = stage.ended(&asked.id).await;
    assert_eq!(ended.state(), KeyDestructionState::Destroyed, "{ended:?}");
    let until = Instant::now() + Duration::from_secs(5);
    while other.decrypt(decrypt()).await.is_ok() {
        assert!(Instant::now() < until, "it still decrypts");
        sleep(Duration::from_millis(50)).await;
    }
    refused(other.decrypt(decrypt()).await, STATE, "NO_USABLE_VERSION");
    drop(twin);
    stage.0.stop().await;
}
