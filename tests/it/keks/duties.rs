//! Nobody is two of requester, approver and deployer of one rotation of the KEK, whatever their roles (R-LIFE-7).

use super::*;
use crate::daemon::Actor;

const PEOPLE: [&str; 3] = ["ada", "bob", "eve"];

async fn everybody_may_everything(engine: Engine) -> (Daemon, Vec<Actor>) {
    let roles = ["key-issuer", "key-approver", "key-deployer"]
        .map(|role| format!(r#"{{ role = "{role}", tenant = "*" }}"#))
        .join(", ");
    let sections: String = PEOPLE
        .iter()
        .map(|name| {
            format!(
                "[[bootstrap.principals]]\nname = \"{name}\"\ntenant = \"system\"\ntype = \"user\"\n\
                 identities = [\"spiffe://claviger.test/{name}\"]\nroles = [{roles}]\n"
            )
        })
        .collect();
    let setup = Setup::new(engine).append(QUICK).append(sections);
    let daemon = setup.start().await;
    let actors = PEOPLE
        .iter()
        .map(|name| {
            let leaf = daemon.ca.client(&format!("spiffe://claviger.test/{name}"));
            daemon.actor_with(Some(&leaf))
        })
        .collect();
    (daemon, actors)
}

async fn every_assignment(engine: Engine) {
    let (daemon, people) = everybody_may_everything(engine).await;
    let next = create(&daemon, "kek-2").await;
    let denied = |status: Status| {
        let found = (status.code(), reason(&status));
        assert_eq!(
            found,
            (Code::PermissionDenied, "SEPARATION_OF_DUTIES".into())
        );
    };
    for case in 0..27 {
        let (r, a, d) = (case / 9, case / 3 % 3, case % 3);
        let opened = people[r].keks().rotate_kek(rotate(&next)).await;
        let rotation = opened.expect("RotateKek").into_inner().rotation;
        let rotation = rotation.expect("a rotation");
        let approval = ApproveKekRotationRequest {
            rotation_id: rotation.id.clone(),
            plan_digest: rotation.plan_digest.clone(),
        };
        let approved = people[a]
            .keks()
            .approve_kek_rotation(approval.clone())
            .await;
        if r == a {
            denied(approved.expect_err("one person for two steps"));
            let mut client = people[(r + 1) % 3].keks();
            let other = client.approve_kek_rotation(approval);
            other.await.expect("ApproveKekRotation");
        } else {
            approved.expect("ApproveKekRotation");
        }
        let approver = if r == a { (r + 1) % 3 } else { a };
        if d == r || d == approver {
            let deployment = DeployKekRotationRequest {
                rotation_id: rotation.id.clone(),
            };
            let deployed = people[d].keks().deploy_kek_rotation(deployment).await;
            denied(deployed.expect_err("one person for two steps"));
        }
        let own = RejectKekRotationRequest {
            rotation_id: rotation.id.clone(),
            reason: "mine".into(),
        };
        denied(
            people[r]
                .keks()
                .reject_kek_rotation(own)
                .await
                .expect_err("own"),
        );
        if case == 26 {
            let third = 3 - r - approver;
            let deployment = DeployKekRotationRequest {
                rotation_id: rotation.id.clone(),
            };
            let deployed = people[third].keks().deploy_kek_rotation(deployment).await;
            deployed.expect("three people");
            until(&daemon, &rotation.id, completed).await;
        } else {
            cancel(&daemon, &rotation.id).await;
        }
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_assignment_of_people_on_sqlite() {
    every_assignment(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_assignment_of_people_on_postgres() {
    every_assignment(Engine::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_approval_is_of_the_plan_that_was_read_and_says_what_is_in_it() {
    let daemon = Setup::new(Engine::Sqlite).append(QUICK).start().await;
    let next = create(&daemon, "kek-2").await;
    let rotation = request(&daemon, &next).await.expect("RotateKek");
    let plan: serde_json::Value = serde_json::from_str(&rotation.plan).expect("JSON");
    assert_eq!(plan["old_kek"], rotation.old_kek);
    assert_eq!(plan["new_kek"], rotation.new_kek);
    assert_eq!(plan["new_backend"], "hsm");
    let mut other = rotation.clone();
    other.plan_digest = "0".repeat(64);
    let wrong = approve(&daemon, "approver", &other).await;
    fails(wrong, Code::FailedPrecondition, "PLAN_CHANGED");
    other.plan_digest = "what you like".into();
    let malformed = approve(&daemon, "approver", &other).await;
    fails(malformed, Code::InvalidArgument, "INVALID_FIELD");
    let early = deploy(&daemon, "deployer", &rotation.id).await;
    fails(early, Code::FailedPrecondition, "ROTATION_STATE");
    let approved = approve(&daemon, "approver", &rotation).await;
    approved.expect("ApproveKekRotation");
    daemon.stop().await;
}
