//! Rotations that must not happen (R-LIFE-7).

use claviger::grpc::proto::*;
use tonic::Code;

use super::{refused, state};
use crate::daemon::{Actor, Daemon, Engine, Setup};

/// People with two roles each, which policies allow and a rotation does not.
const TWO_ROLES: &str = r#"
[[bootstrap.principals]]
name = "judge"
tenant = "system"
type = "user"
identities = ["spiffe://claviger.test/judge"]
roles = [{ role = "key-issuer", tenant = "*" }, { role = "key-approver", tenant = "*" }, { role = "key-deployer", tenant = "*" }]

[[bootstrap.principals]]
name = "both"
tenant = "system"
type = "user"
identities = ["spiffe://claviger.test/both"]
roles = [{ role = "key-approver", tenant = "*" }, { role = "key-deployer", tenant = "*" }]

[[bootstrap.principals]]
name = "local"
tenant = "system"
type = "user"
identities = ["spiffe://claviger.test/local"]
roles = [{ role = "key-approver", tenant = "acme" }]
"#;

fn person(daemon: &Daemon, name: &str) -> Actor {
    let leaf = daemon.ca.client(&format!("spiffe://claviger.test/{name}"));
    daemon.actor_with(Some(&leaf))
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

async fn nobody_does_two_steps(engine: Engine) {
    let daemon = Setup::new(engine)
        .replace("max_age_seconds = 1", "max_age_seconds = 0")
        .append(TWO_ROLES)
        .start()
        .await;
    let token = KeyPurpose::TokenSigning;
    daemon.key("acme", "jwt", token, Algorithm::Es256).await;
    let (judge, both) = (person(&daemon, "judge"), person(&daemon, "both"));
    let (approver, deployer) = (daemon.actor("approver"), daemon.actor("deployer"));
    let opened = judge.rotations().rotate_key(rotate("jwt")).await;
    let rotation = opened.expect("opened").into_inner().rotation.expect("set");
    let requested = state(&daemon).await;

    let (duties, precondition) = (Code::PermissionDenied, Code::FailedPrecondition);
    let again = daemon
        .actor("issuer")
        .rotations()
        .rotate_key(rotate("jwt"))
        .await;
    refused(again, precondition, "ROTATION_OPEN");
    let early = deployer
        .rotations()
        .deploy_rotation(deploy(&rotation))
        .await;
    refused(early, precondition, "ROTATION_STATE");
    let own = judge.rotations().approve_rotation(approve(&rotation)).await;
    refused(own, duties, "SEPARATION_OF_DUTIES");
    let wrong = ApproveRotationRequest {
        plan_digest: "0".repeat(64),
        ..approve(&rotation)
    };
    let answer = approver.rotations().approve_rotation(wrong).await;
    refused(answer, precondition, "PLAN_CHANGED");
    for name in ["issuer", "deployer", "auditor", "admin", "officer"] {
        let answer = daemon
            .actor(name)
            .rotations()
            .approve_rotation(approve(&rotation))
            .await;
        refused(answer, duties, "PERMISSION_DENIED");
    }
    // The refused RotateKey generated nothing: not even an intent.
    assert_eq!(state(&daemon).await, requested);

    both.rotations()
        .approve_rotation(approve(&rotation))
        .await
        .expect("approved");
    let approved = state(&daemon).await;
    for who in [&both, &approver] {
        let twice = who.rotations().approve_rotation(approve(&rotation)).await;
        refused(twice, precondition, "ROTATION_STATE");
    }
    let own = both.rotations().deploy_rotation(deploy(&rotation)).await;
    refused(own, duties, "SEPARATION_OF_DUTIES");
    let own = judge.rotations().deploy_rotation(deploy(&rotation)).await;
    refused(own, duties, "SEPARATION_OF_DUTIES");
    let again = daemon
        .actor("issuer")
        .rotations()
        .rotate_key(rotate("jwt"))
        .await;
    refused(again, precondition, "ROTATION_OPEN");
    assert_eq!(state(&daemon).await, approved);

    deployer
        .rotations()
        .deploy_rotation(deploy(&rotation))
        .await
        .expect("deployed");
    let twice = deployer
        .rotations()
        .deploy_rotation(deploy(&rotation))
        .await;
    refused(twice, precondition, "ROTATION_STATE");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_does_two_steps_on_sqlite() {
    nobody_does_two_steps(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_does_two_steps_on_postgres() {
    nobody_does_two_steps(Engine::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_soaks_before_it_is_deployed() {
    let daemon = Setup::new(Engine::Sqlite)
        .replace("max_age_seconds = 1", "max_age_seconds = 86400")
        .start()
        .await;
    let token = KeyPurpose::TokenSigning;
    daemon.key("acme", "jwt", token, Algorithm::Es256).await;
    let opened = daemon
        .actor("issuer")
        .rotations()
        .rotate_key(rotate("jwt"))
        .await;
    let rotation = opened.expect("opened").into_inner().rotation.expect("set");
    let answer = daemon
        .actor("approver")
        .rotations()
        .approve_rotation(approve(&rotation))
        .await;
    answer.expect("approved");
    let before = state(&daemon).await;
    let early = daemon
        .actor("deployer")
        .rotations()
        .deploy_rotation(deploy(&rotation))
        .await;
    refused(early, Code::FailedPrecondition, "ROTATION_SOAKING");
    assert_eq!(state(&daemon).await, before);
    daemon.stop().await;
}

/// Somebody at home in `system` whose roles are in one tenant cannot tell a rotation of another tenant from none.
// R-ACL-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_platform_principal_sees_its_tenants_only() {
    let daemon = Setup::new(Engine::Sqlite).append(TWO_ROLES).start().await;
    daemon
        .key("globex", "jwt", KeyPurpose::TokenSigning, Algorithm::Es256)
        .await;
    let theirs = RotateKeyRequest {
        tenant: "globex".into(),
        ..rotate("jwt")
    };
    let opened = daemon.actor("issuer").rotations().rotate_key(theirs).await;
    let rotation = opened.expect("opened").into_inner().rotation.expect("set");
    let local = person(&daemon, "local");
    let mut answers = Vec::new();
    for rotation_id in [rotation.id.clone(), uuid::Uuid::now_v7().to_string()] {
        let get = GetRotationRequest {
            rotation_id: rotation_id.clone(),
        };
        let approve = ApproveRotationRequest {
            rotation_id,
            ..approve(&rotation)
        };
        answers.push([
            super::bytes(local.rotations().get_rotation(super::numbered(get)).await),
            super::bytes(
                local
                    .rotations()
                    .approve_rotation(super::numbered(approve))
                    .await,
            ),
        ]);
    }
    assert_eq!(answers[0], answers[1]);
    daemon.stop().await;
}
