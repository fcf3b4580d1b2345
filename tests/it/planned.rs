//! Planned rotation from one end to the other: how it is asked for, agreed to, turned down, forgotten, carried out and
//! completed, by people and by the scheduler. R-LIFE-2 to R-LIFE-7, R-JWT-4.

mod automatic;
mod ends;
mod grace;
mod lists;
mod policy;
mod replicas;
mod standby;

use std::fmt::Debug;

use claviger::grpc::proto::*;
use tokio::time::{Duration, Instant, sleep};
use tonic::{Code, Response, Status};

use crate::daemon::{Actor, Daemon, Engine, PATIENCE, Setup, reason};

/// People beside those of `Setup`: a second approver, and one who holds every role of a rotation.
const PEOPLE: &str = r#"
[scheduler]
interval_ms = 50

[[bootstrap.principals]]
name = "second"
tenant = "system"
type = "user"
identities = ["spiffe://claviger.test/second"]
roles = [{ role = "key-approver", tenant = "*" }]

[[bootstrap.principals]]
name = "judge"
tenant = "system"
type = "user"
identities = ["spiffe://claviger.test/judge"]
roles = [{ role = "key-issuer", tenant = "*" }, { role = "key-approver", tenant = "*" }, { role = "key-deployer", tenant = "*" }]
"#;

/// Without a soak, so that tests need not wait for verifiers; with a scheduler that looks often.
fn setup(engine: Engine) -> Setup {
    Setup::new(engine)
        .replace("max_age_seconds = 1", "max_age_seconds = 0")
        .append(PEOPLE)
}

/// As `setup`, with a scheduler that looks once a minute: what it would do is left undone.
fn unscheduled(engine: Engine) -> Setup {
    setup(engine).replace(
        "interval_ms = 50",
        "interval_ms = 60000\nlease_seconds = 300",
    )
}

fn person(daemon: &Daemon, name: &str) -> Actor {
    let leaf = daemon.ca.client(&format!("spiffe://claviger.test/{name}"));
    daemon.actor_with(Some(&leaf))
}

async fn token_key(daemon: &Daemon, name: &str) -> Key {
    let purpose = KeyPurpose::TokenSigning;
    daemon.key("acme", name, purpose, Algorithm::Es256).await
}

async fn data_key(daemon: &Daemon, name: &str) -> Key {
    let purpose = KeyPurpose::Encryption;
    daemon.key("acme", name, purpose, Algorithm::A256gcm).await
}

fn rotate(key: &str) -> RotateKeyRequest {
    RotateKeyRequest {
        tenant: "acme".into(),
        key: key.into(),
        justification: "quarterly".into(),
        ..RotateKeyRequest::default()
    }
}

fn approve(rotation: &Rotation) -> ApproveRotationRequest {
    ApproveRotationRequest {
        rotation_id: rotation.id.clone(),
        plan_digest: rotation.plan_digest.clone(),
    }
}

fn deploy(rotation: &Rotation) -> DeployRotationRequest {
    DeployRotationRequest {
        rotation_id: rotation.id.clone(),
    }
}

fn reject(rotation: &Rotation) -> RejectRotationRequest {
    RejectRotationRequest {
        rotation_id: rotation.id.clone(),
        reason: "not this week".into(),
    }
}

fn cancel(rotation: &Rotation) -> CancelRotationRequest {
    CancelRotationRequest {
        rotation_id: rotation.id.clone(),
        reason: "asked for by mistake".into(),
    }
}

async fn opened(daemon: &Daemon, key: &str) -> Rotation {
    let issuer = daemon.actor("issuer");
    let answer = issuer.rotations().rotate_key(rotate(key)).await;
    let rotation = answer.expect("RotateKey").into_inner().rotation;
    rotation.expect("a rotation")
}

async fn approved(daemon: &Daemon, key: &str) -> Rotation {
    let rotation = opened(daemon, key).await;
    let approver = daemon.actor("approver");
    let answer = approver
        .rotations()
        .approve_rotation(approve(&rotation))
        .await;
    let rotation = answer.expect("ApproveRotation").into_inner().rotation;
    rotation.expect("a rotation")
}

async fn deployed(daemon: &Daemon, key: &str) -> Rotation {
    let rotation = approved(daemon, key).await;
    let deployer = daemon.actor("deployer");
    let answer = deployer
        .rotations()
        .deploy_rotation(deploy(&rotation))
        .await;
    let rotation = answer.expect("DeployRotation").into_inner().rotation;
    rotation.expect("a rotation")
}

async fn read(daemon: &Daemon, rotation: &Rotation) -> Rotation {
    let request = GetRotationRequest {
        rotation_id: rotation.id.clone(),
    };
    let auditor = daemon.actor("auditor");
    let answer = auditor.rotations().get_rotation(request).await;
    let rotation = answer.expect("GetRotation").into_inner().rotation;
    rotation.expect("a rotation")
}

/// The rotations of a key, newest first.
async fn rotations_of(daemon: &Daemon, key: &str) -> Vec<Rotation> {
    let request = ListRotationsRequest {
        tenant: "acme".into(),
        key: key.into(),
        ..Default::default()
    };
    let auditor = daemon.actor("auditor");
    let answer = auditor.rotations().list_rotations(request).await;
    answer.expect("ListRotations").into_inner().rotations
}

async fn get_key(daemon: &Daemon, key: &str) -> Key {
    let request = GetKeyRequest {
        tenant: "acme".into(),
        key: key.into(),
    };
    let answer = daemon.actor("auditor").keys().get_key(request).await;
    answer.expect("GetKey").into_inner().key.expect("a key")
}

/// The approval of the key's rotation policy as it is now.
async fn approve_policy(daemon: &Daemon, key: &str) -> ApproveRotationPolicyRequest {
    ApproveRotationPolicyRequest {
        tenant: "acme".into(),
        key: key.into(),
        revision: get_key(daemon, key).await.revision,
    }
}

async fn state_of(daemon: &Daemon, kid: &str) -> String {
    let query = format!("SELECT state FROM key_versions WHERE kid = '{kid}'");
    daemon.rows(&query).await[0][0].clone()
}

/// kids in the JWK Set, over HTTPS.
async fn published(daemon: &Daemon) -> Vec<String> {
    let answer = daemon.public_get("/.well-known/jwks.json").await;
    let set: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    let keys = set["keys"].as_array().expect("keys").iter();
    keys.map(|key| key["kid"].as_str().expect("a kid").to_owned())
        .collect()
}

/// A token of `key` that lives `ttl` seconds.
async fn token(daemon: &Daemon, key: &str, ttl: i64) -> IssueTokenResponse {
    let request = IssueTokenRequest {
        tenant: "acme".into(),
        key: key.into(),
        audience: vec!["api".into()],
        ttl: Some(seconds(ttl)),
        ..Default::default()
    };
    let issued = daemon.actor("service").tokens().issue_token(request).await;
    issued.expect("IssueToken").into_inner()
}

async fn verdict(daemon: &Daemon, token: &IssueTokenResponse) -> VerifyTokenResponse {
    let request = VerifyTokenRequest {
        tenant: "acme".into(),
        token: token.token.clone(),
        audience: "api".into(),
        ..Default::default()
    };
    let answer = daemon.actor("service").tokens().verify_token(request).await;
    answer.expect("VerifyToken").into_inner()
}

const fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3600 * SECOND;
const DAY: i64 = 24 * HOUR;

fn now() -> i64 {
    claviger::clock::Clock::System.now().micros()
}

const fn micros(time: Option<prost_types::Timestamp>) -> i64 {
    match time {
        Some(t) => t.seconds * SECOND + t.nanos as i64 / 1000,
        None => 0,
    }
}

/// Waits until the first column of the only row of `query` is `expected`.
async fn until(daemon: &Daemon, query: &str, expected: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let rows = daemon.rows(query).await;
        let found = rows.first().map_or("", |row| row[0].as_str());
        if found == expected {
            return;
        }
        assert!(
            Instant::now() < end,
            "{query}: {found}, not {expected}\n{}",
            daemon.log()
        );
        sleep(Duration::from_millis(50)).await;
    }
}

async fn until_rotation(daemon: &Daemon, rotation: &Rotation, state: &str) {
    let query = format!("SELECT state FROM rotations WHERE id = '{}'", rotation.id);
    until(daemon, &query, state).await;
}

/// The scheduler has looked at everything at least once since this was called.
async fn looked(daemon: &Daemon) {
    let runs = async || {
        let metrics = daemon.ops_get("/metrics").await.text();
        let line = metrics.lines().find(|line| {
            line.starts_with("claviger_job_runs_total") && line.contains("\"overdue\"")
        });
        let count = line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        count.unwrap_or(0)
    };
    let (before, end) = (runs().await, Instant::now() + PATIENCE);
    // The last job of a round: after two ends, one whole round lies between.
    while runs().await < before + 2 {
        assert!(Instant::now() < end, "the scheduler does not run");
        sleep(Duration::from_millis(20)).await;
    }
}

#[track_caller]
fn refused<T: Debug>(answer: Result<Response<T>, Status>, why: &str) -> Status {
    let status = answer.expect_err(why);
    assert_eq!(reason(&status), why, "{status}");
    assert!(status.message().contains(' '), "{status}");
    status
}

#[track_caller]
fn denied<T: Debug>(answer: Result<Response<T>, Status>) {
    let status = refused(answer, "SEPARATION_OF_DUTIES");
    assert_eq!(status.code(), Code::PermissionDenied);
}

/// The audit rows about an entity: action and outcome, oldest first, of the admin stream.
async fn recorded(daemon: &Daemon, entity_id: &str) -> Vec<String> {
    let query = format!(
        "SELECT action, outcome FROM audit_events WHERE stream = 'admin' AND entity_id = '{entity_id}' ORDER BY seq"
    );
    let rows = daemon.rows(&query).await.into_iter();
    rows.map(|row| row.join(" ")).collect()
}
