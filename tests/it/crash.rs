//! SIGKILL between any two steps of a change: nothing that was acknowledged is lost, nothing is half there, what is left
//! on the token has a name, and the call that is made again gets its answer. R-OPS-1, R-OPS-2, R-LIFE-6.
//!
//! The daemon kills itself at the point that the environment names (`src/fault.rs`).

use std::{collections::BTreeSet, os::unix::process::ExitStatusExt};

use bytes::Bytes;
use claviger::grpc::proto::*;
use prost::Message;
use tokio::time::{Duration, Instant, sleep};
use tonic::Status;

use crate::{
    daemon::{Daemon, Engine, Setup},
    rpcs::send_with,
};

const QUICK: &str = "
[keys]
reconcile_after_seconds = 4
backend_timeout_ms = 3500
generate_timeout_ms = 3500

[scheduler]
interval_ms = 50
lease_seconds = 2
";

/// What a crash left is settled within this time from the next start.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
const KILL_AT: &str = "CLAVIGER_TEST_KILL_AT";

/// A call that the daemon does not live to answer.
struct Call {
    who: &'static str,
    path: &'static str,
    request: Bytes,
}

impl Call {
    fn new(who: &'static str, path: &'static str, request: &impl Message) -> Self {
        Self {
            who,
            path,
            request: request.encode_to_vec().into(),
        }
    }

    fn action(&self) -> &'static str {
        self.path.rsplit('/').next().expect("a name")
    }
}

struct Stage {
    daemon: Daemon,
    next: usize,
}

impl Stage {
    async fn new(engine: Engine) -> Self {
        let daemon = Setup::new(engine)
            .replace("max_age_seconds = 1", "max_age_seconds = 0")
            .append(QUICK)
            .start()
            .await;
        Self { daemon, next: 0 }
    }

    /// A key of its own for each crash.
    async fn key(&mut self) -> Key {
        self.next += 1;
        let name = format!("key-{}", self.next);
        self.daemon
            .key("acme", &name, KeyPurpose::Signing, Algorithm::Es256)
            .await
    }

    async fn rotation(&mut self) -> Rotation {
        let key = self.key().await;
        let issuer = self.daemon.actor("issuer");
        let opened = issuer.rotations().rotate_key(rotate(&key.name)).await;
        let rotation = opened.expect("RotateKey").into_inner().rotation;
        rotation.expect("a rotation")
    }

    async fn approved(&mut self) -> Rotation {
        let rotation = self.rotation().await;
        let mut approver = self.daemon.actor("approver").rotations();
        let approved = approver.approve_rotation(approve(&rotation)).await;
        approved.expect("ApproveRotation");
        rotation
    }

    async fn asked(&mut self) -> KeyDestruction {
        let rotation = self.rotation().await;
        self.daemon.withdraw(&rotation).await;
        let issuer = self.daemon.actor("issuer");
        let asked = issuer.keys().destroy_key_version(destroy(&rotation)).await;
        let asked = asked.expect("DestroyKeyVersion").into_inner().destruction;
        asked.expect("a destruction")
    }

    /// Starts the daemon so that it dies at `point`.
    async fn arm(&mut self, point: &str) -> Result<(), String> {
        let status = self.daemon.terminate().await;
        assert!(status.success(), "{status}");
        self.daemon.set_env(KILL_AT, point);
        self.daemon.up().await
    }

    /// Sees it die, and starts it as usual.
    async fn revive(&mut self, point: &str) -> Instant {
        let status = self.daemon.ended().await;
        assert_eq!(status.signal(), Some(9), "{point}: {status}");
        self.disarm().await
    }

    async fn disarm(&mut self) -> Instant {
        self.daemon.unset_env(KILL_AT);
        let started = Instant::now();
        self.daemon.restart().await;
        started
    }

    async fn send(&self, call: &Call, key: &str) -> Result<Bytes, Status> {
        let actor = self.daemon.actor(call.who);
        send_with(&actor, call.path, &call.request, &[key]).await
    }

    /// Changes and repetitions that the audit log has of an action.
    async fn rows(&self, action: &str) -> (usize, usize) {
        let sql = format!(
            "SELECT data FROM audit_events WHERE stream = 'admin' AND outcome = 'success' AND action = '{action}'"
        );
        let rows = self.daemon.rows(&sql).await;
        let repeats = rows.iter().filter(|row| row[0].contains(r#""repeats":"#));
        let repeats = repeats.count();
        (rows.len() - repeats, repeats)
    }

    /// The daemon dies at `point` of the call; the call that is made again has its effect exactly once.
    async fn crash(&mut self, call: &Call, point: &str) {
        let before = self.versions().await;
        let (changes, repeats) = self.rows(call.action()).await;
        self.arm(point).await.expect("up");
        let key = format!("crash-{}", self.next);
        let lost = self.send(call, &key).await;
        assert!(lost.is_err(), "{point}: the daemon answered");
        let started = self.revive(point).await;
        let is_committed = point.ends_with(".after_commit");
        assert_eq!(
            self.rows(call.action()).await,
            (changes + usize::from(is_committed), repeats),
            "{point}"
        );
        self.intact(&before, point).await;
        let answer = self.send(call, &key).await;
        let answer = answer.unwrap_or_else(|e| panic!("{point}: {e}"));
        let again = self.send(call, &key).await;
        assert_eq!(again.expect("repeated"), answer, "{point}");
        let repeats = repeats + 1 + usize::from(is_committed);
        assert_eq!(
            self.rows(call.action()).await,
            (changes + 1, repeats),
            "{point}"
        );
        self.settled(started, point).await;
        self.intact(&before, point).await;
    }

    /// kid, key and state of every version.
    async fn versions(&self) -> Vec<Vec<String>> {
        let sql = "SELECT kid, key_id, state FROM key_versions ORDER BY kid";
        self.daemon.rows(sql).await
    }

    /// Everything of before is there, at most one version of a key is ACTIVE and signs, the log is whole, and every object
    /// on the token has a name.
    async fn intact(&self, before: &[Vec<String>], point: &str) {
        let now: BTreeSet<_> = self
            .versions()
            .await
            .into_iter()
            .map(|v| v[0].clone())
            .collect();
        for version in before {
            assert!(now.contains(&version[0]), "{point}: {version:?} is lost");
        }
        let keys = "SELECT k.name, COUNT(*) FROM keys k JOIN key_versions v ON v.key_id = k.id \
                    WHERE v.state = 'ACTIVE' AND k.tenant = 'acme' GROUP BY k.name";
        for key in self.daemon.rows(keys).await {
            assert_eq!(key[1], "1", "{point}: {key:?}");
            let sign = SignRequest {
                tenant: "acme".into(),
                key: key[0].clone(),
                payload: Some(sign_request::Payload::Message("order".into())),
            };
            let signed = self.daemon.actor("service").crypto().sign(sign).await;
            signed.unwrap_or_else(|e| panic!("{point}: {key:?}: {e}"));
        }
        let mut audit = self.daemon.actor("auditor").audit();
        let report = audit.verify_audit(VerifyAuditRequest::default()).await;
        let report = report.expect("VerifyAudit").into_inner();
        assert!(report.intact, "{point}: {report:#?}");
        self.everything_is_named(point).await;
    }

    /// Every key object on the token is a version's, or is named by an intent; and the other way round.
    async fn everything_is_named(&self, point: &str) {
        let text = self.daemon.pkcs11_tool(&["--list-objects"]).await;
        let mut objects = BTreeSet::new();
        let mut class = "";
        for line in text.lines() {
            if let Some((name, _)) = line.split_once(" Key Object") {
                assert!(class.is_empty(), "{point}: an object without id: {text}");
                class = name;
            } else if let Some(id) = line.trim().strip_prefix("ID:") {
                if ["Private", "Public"].contains(&class) {
                    objects.insert((class.to_owned(), id.trim().to_ascii_lowercase()));
                }
                class = "";
            }
        }
        assert!(class.is_empty(), "{point}: an object without id: {text}");
        let intents = "SELECT id FROM backend_intents WHERE kind = 'CREATE'";
        let named: BTreeSet<_> = self.daemon.rows(intents).await.into_iter().collect();
        let named: BTreeSet<_> = named.iter().map(|row| row[0].replace('-', "")).collect();
        for (class, id) in &objects {
            assert!(named.contains(id), "{point}: {class} key {id} has no name");
        }
        let versions = "SELECT backend_ref FROM key_versions WHERE backend_ref IS NOT NULL AND state <> 'DESTROYED'";
        for row in self.daemon.rows(versions).await {
            let id = row[0].split("id=").nth(1).expect("an id");
            let id = id.split(';').next().expect("an id").replace('%', "");
            for class in ["Private", "Public"] {
                let object = (class.to_owned(), id.to_ascii_lowercase());
                let is_there = objects.contains(&object);
                // A destruction that was cut short may have taken it already.
                assert!(
                    is_there || self.is_going(&row[0]).await,
                    "{point}: {object:?} is gone"
                );
            }
        }
    }

    async fn is_going(&self, reference: &str) -> bool {
        let sql = format!(
            "SELECT i.id FROM backend_intents i JOIN key_versions v ON v.kid = i.kid \
             WHERE i.kind = 'DESTROY' AND i.state = 'PENDING' AND v.backend_ref = '{reference}'"
        );
        !self.daemon.rows(&sql).await.is_empty()
    }

    /// No intent stays open.
    async fn settled(&self, started: Instant, point: &str) {
        let pending = "SELECT id, label FROM backend_intents WHERE state = 'PENDING'";
        loop {
            let left = self.daemon.rows(pending).await;
            if left.is_empty() {
                return;
            }
            assert!(started.elapsed() < SETTLED_WITHIN, "{point}: {left:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// What the reconciler found of the intents that led to nothing.
    async fn leftovers(&self) -> (usize, usize) {
        let count = async |state: &str| {
            let sql = format!("SELECT id FROM backend_intents WHERE state = '{state}'");
            self.daemon.rows(&sql).await.len()
        };
        (count("QUARANTINED").await, count("FAILED").await)
    }
}

fn create(name: &str) -> CreateKeyRequest {
    CreateKeyRequest {
        tenant: "acme".into(),
        name: name.into(),
        purpose: KeyPurpose::Signing.into(),
        algorithm: Algorithm::Es256.into(),
        owner: "team-e2e".into(),
        ..Default::default()
    }
}

fn rotate(key: &str) -> RotateKeyRequest {
    RotateKeyRequest {
        tenant: "acme".into(),
        key: key.into(),
        justification: "it is time".into(),
        ..RotateKeyRequest::default()
    }
}

fn approve(rotation: &Rotation) -> ApproveRotationRequest {
    ApproveRotationRequest {
        rotation_id: rotation.id.clone(),
        plan_digest: rotation.plan_digest.clone(),
    }
}

fn destroy(rotation: &Rotation) -> DestroyKeyVersionRequest {
    DestroyKeyVersionRequest {
        tenant: "acme".into(),
        key: rotation.key_name.clone(),
        kid: rotation.new_kid.clone(),
        reason: "nobody needs it".into(),
    }
}

const CREATE_KEY: &str = "/claviger.v1.KeyService/CreateKey";
const ROTATE_KEY: &str = "/claviger.v1.RotationService/RotateKey";
const APPROVE: &str = "/claviger.v1.RotationService/ApproveRotation";
const DEPLOY: &str = "/claviger.v1.RotationService/DeployRotation";
const DESTROY: &str = "/claviger.v1.KeyService/DestroyKeyVersion";
const APPROVE_DESTRUCTION: &str = "/claviger.v1.KeyService/ApproveKeyDestruction";
const DECLARE: &str = "/claviger.v1.IncidentService/DeclareCompromise";

async fn create_and_rotate(engine: Engine) {
    let mut stage = Stage::new(engine).await;
    // What the attempt leaves on the token: nothing, or a pair that is set aside.
    for (point, left) in [
        ("generate.intended", (0, 1)),
        ("generate.generated", (1, 1)),
        ("CreateKey.before_commit", (2, 1)),
        ("CreateKey.after_commit", (2, 1)),
    ] {
        stage.next += 1;
        let name = format!("new-{}", stage.next);
        let call = Call::new("issuer", CREATE_KEY, &create(&name));
        stage.crash(&call, point).await;
        assert_eq!(stage.leftovers().await, left, "{point}");
    }
    for (point, left) in [
        ("generate.intended", (2, 2)),
        ("generate.generated", (3, 2)),
        ("RotateKey.before_commit", (4, 2)),
        ("RotateKey.after_commit", (4, 2)),
    ] {
        let key = stage.key().await;
        let call = Call::new("issuer", ROTATE_KEY, &rotate(&key.name));
        stage.crash(&call, point).await;
        assert_eq!(stage.leftovers().await, left, "{point}");
    }
    stage.daemon.stop().await;
}

async fn approve_and_deploy(engine: Engine) {
    let mut stage = Stage::new(engine).await;
    for step in ["before_commit", "after_commit"] {
        let rotation = stage.rotation().await;
        let call = Call::new("approver", APPROVE, &approve(&rotation));
        stage.crash(&call, &format!("ApproveRotation.{step}")).await;

        let rotation = stage.approved().await;
        let rotation_id = rotation.id;
        let deploy = DeployRotationRequest { rotation_id };
        let call = Call::new("deployer", DEPLOY, &deploy);
        stage.crash(&call, &format!("DeployRotation.{step}")).await;
        let active = format!(
            "SELECT kid FROM key_versions WHERE state = 'ACTIVE' AND key_id = '{}'",
            rotation.key_id
        );
        assert_eq!(stage.daemon.rows(&active).await, [[rotation.new_kid]]);
    }
    assert_eq!(stage.leftovers().await, (0, 0));
    stage.daemon.stop().await;
}

async fn destroyed(engine: Engine) {
    let mut stage = Stage::new(engine).await;
    for step in ["before_commit", "after_commit"] {
        let rotation = stage.rotation().await;
        stage.daemon.withdraw(&rotation).await;
        let call = Call::new("issuer", DESTROY, &destroy(&rotation));
        stage
            .crash(&call, &format!("DestroyKeyVersion.{step}"))
            .await;

        let asked = stage.asked().await;
        let approve = ApproveKeyDestructionRequest {
            destruction_id: asked.id,
            kid: asked.kid,
        };
        let call = Call::new("approver", APPROVE_DESTRUCTION, &approve);
        let point = format!("ApproveKeyDestruction.{step}");
        stage.crash(&call, &point).await;
    }
    for point in [
        "destroy.intended",
        "destroy.destroyed",
        "DestroyMaterial.before_commit",
        "DestroyMaterial.after_commit",
    ] {
        let asked = stage.asked().await;
        let approve = ApproveKeyDestructionRequest {
            destruction_id: asked.id.clone(),
            kid: asked.kid.clone(),
        };
        let mut approver = stage.daemon.actor("approver").keys();
        let approved = approver.approve_key_destruction(approve).await;
        approved.expect("ApproveKeyDestruction");
        let before = stage.versions().await;
        let (changes, _) = stage.rows("DestroyMaterial").await;
        let id = &asked.id;
        let status = stage.daemon.terminate().await;
        assert!(status.success(), "{status}");
        stage
            .daemon
            .execute(&format!(
                "UPDATE key_destructions SET destroy_at = 1 WHERE id = '{id}'"
            ))
            .await;
        stage.daemon.set_env(KILL_AT, point);
        // The scheduler may be faster than the listeners.
        let started = match stage.daemon.up().await {
            Ok(()) => stage.revive(point).await,
            Err(why) => {
                assert!(why.contains("signal: 9"), "{point}: {why}");
                stage.disarm().await
            }
        };
        stage.settled(started, point).await;
        let state = format!("SELECT state FROM key_destructions WHERE id = '{id}'");
        while stage.daemon.rows(&state).await != [["DESTROYED"]] {
            assert!(started.elapsed() < SETTLED_WITHIN, "{point}");
            sleep(Duration::from_millis(50)).await;
        }
        let version = format!("SELECT state FROM key_versions WHERE kid = '{}'", asked.kid);
        assert_eq!(
            stage.daemon.rows(&version).await,
            [["DESTROYED"]],
            "{point}"
        );
        assert_eq!(
            stage.rows("DestroyMaterial").await,
            (changes + 1, 0),
            "{point}"
        );
        // Found missing only where the crash came between the device and the database.
        let data = format!(
            "SELECT data FROM audit_events WHERE action = 'DestroyMaterial' AND outcome = 'success' \
             AND entity_id = '{id}'"
        );
        let data = stage.daemon.rows(&data).await;
        let was_gone = ["destroy.destroyed", "DestroyMaterial.before_commit"].contains(&point);
        let expected = format!(r#""was_gone":{was_gone}"#);
        assert!(data[0][0].contains(&expected), "{point}: {data:?}");
        stage.intact(&before, point).await;
    }
    stage.daemon.stop().await;
}

async fn compromised(engine: Engine) {
    let mut stage = Stage::new(engine).await;
    for point in [
        "DeclareCompromise.before_commit",
        "DeclareCompromise.after_commit",
        "generate.intended",
        "generate.generated",
        "SwitchKey.before_commit",
        "SwitchKey.after_commit",
    ] {
        let key = stage.key().await;
        let declare = DeclareCompromiseRequest {
            tenant: "acme".into(),
            key: key.name.clone(),
            kid: key.active_kid.clone(),
            reason: "found on a laptop".into(),
        };
        let call = Call::new("officer", DECLARE, &declare);
        let before = stage.versions().await;
        stage.arm(point).await.expect("up");
        let retry = format!("crash-{}", stage.next);
        // The switch comes after the declaration, so the caller may have their answer.
        let first = stage.send(&call, &retry).await;
        let started = stage.revive(point).await;
        stage.intact(&before, point).await;
        let again = stage.send(&call, &retry).await;
        let again = again.unwrap_or_else(|e| panic!("{point}: {e}"));
        if let Ok(first) = first {
            assert_eq!(again, first, "{point}");
        }
        let (declared, _) = stage.rows("DeclareCompromise").await;
        let incidents = "SELECT id FROM incidents";
        assert_eq!(
            stage.daemon.rows(incidents).await.len(),
            declared,
            "{point}"
        );
        let old = format!(
            "SELECT state FROM key_versions WHERE kid = '{}'",
            key.active_kid
        );
        assert_eq!(stage.daemon.rows(&old).await, [["COMPROMISED"]], "{point}");
        let active = format!(
            "SELECT kid FROM key_versions WHERE state = 'ACTIVE' AND key_id = '{}'",
            key.id
        );
        while stage.daemon.rows(&active).await.len() != 1 {
            assert!(started.elapsed() < SETTLED_WITHIN, "{point}: no successor");
            sleep(Duration::from_millis(50)).await;
        }
        stage.settled(started, point).await;
        stage.intact(&before, point).await;
    }
    stage.daemon.stop().await;
}

#[tokio::test]
async fn a_crash_while_keys_are_made_on_sqlite() {
    create_and_rotate(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_crash_while_keys_are_made_on_postgres() {
    create_and_rotate(Engine::Postgres).await;
}

#[tokio::test]
async fn a_crash_while_a_rotation_goes_on_on_sqlite() {
    approve_and_deploy(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_crash_while_a_rotation_goes_on_on_postgres() {
    approve_and_deploy(Engine::Postgres).await;
}

#[tokio::test]
async fn a_crash_while_a_version_is_destroyed_on_sqlite() {
    destroyed(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_crash_while_a_version_is_destroyed_on_postgres() {
    destroyed(Engine::Postgres).await;
}

#[tokio::test]
async fn a_crash_while_a_compromise_is_declared_on_sqlite() {
    compromised(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_crash_while_a_compromise_is_declared_on_postgres() {
    compromised(Engine::Postgres).await;
}
