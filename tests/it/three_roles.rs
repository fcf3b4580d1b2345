//! Nobody is two of requester, approver and deployer in one rotation, whatever their roles, whatever the order, and
//! whichever of their certificates they come with (R-LIFE-7). The policies allow these people everything.

use std::collections::BTreeSet;

use claviger::grpc::proto::*;
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{RngSeed, TestRunner},
};
use tonic::{Code, Response, Status};

use crate::daemon::{Actor, Daemon, Engine, Setup, reason};

const PEOPLE: [&str; 3] = ["ada", "bob", "eve"];
const ROLES: [&str; 9] = [
    "key-issuer",
    "key-approver",
    "key-deployer",
    "security-officer",
    "principal-admin",
    "auditor",
    "credential-manager",
    "token-issuer",
    "crypto-user",
];

/// Three people, two certificates each: one by SPIFFE ID, one by DNS name.
struct People {
    daemon: Daemon,
    actors: Vec<[Actor; 2]>,
}

impl People {
    async fn new(engine: Engine) -> Self {
        let roles: Vec<_> = ROLES
            .iter()
            .map(|role| format!(r#"{{ role = "{role}", tenant = "*" }}"#))
            .collect();
        let sections: String = PEOPLE
            .iter()
            .map(|name| {
                format!(
                    "[[bootstrap.principals]]\nname = \"{name}\"\ntenant = \"system\"\ntype = \"user\"\n\
                     identities = [\"spiffe://claviger.test/{name}\", \"dns:{name}.claviger.test\"]\nroles = [{}]\n",
                    roles.join(", ")
                )
            })
            .collect();
        let daemon = Setup::new(engine)
            .replace("max_age_seconds = 1", "max_age_seconds = 0")
            .append(sections)
            .start()
            .await;
        let actors = PEOPLE
            .iter()
            .map(|name| {
                let spiffe = daemon.ca.client(&format!("spiffe://claviger.test/{name}"));
                let host = format!("{name}.claviger.test");
                let dns = daemon
                    .ca
                    .issue(crate::pki::named(name, [crate::pki::dns(&host)]));
                [
                    daemon.actor_with(Some(&spiffe)),
                    daemon.actor_with(Some(&dns)),
                ]
            })
            .collect();
        Self { daemon, actors }
    }

    async fn key(&self, name: &str) {
        let purpose = KeyPurpose::TokenSigning;
        self.daemon
            .key("acme", name, purpose, Algorithm::Es256)
            .await;
    }

    async fn request(&self, actor: &Actor, key: &str) -> Result<Rotation, Status> {
        let request = RotateKeyRequest {
            tenant: "acme".into(),
            key: key.into(),
            justification: "every 90 days".into(),
            ..RotateKeyRequest::default()
        };
        let answer = actor.rotations().rotate_key(request).await?;
        Ok(answer.into_inner().rotation.expect("a rotation"))
    }

    async fn approve(&self, actor: &Actor, rotation: &Rotation) -> Result<Rotation, Status> {
        let request = ApproveRotationRequest {
            rotation_id: rotation.id.clone(),
            plan_digest: rotation.plan_digest.clone(),
        };
        let answer = actor.rotations().approve_rotation(request).await?;
        Ok(answer.into_inner().rotation.expect("a rotation"))
    }

    async fn deploy(&self, actor: &Actor, rotation: &Rotation) -> Result<Rotation, Status> {
        let request = DeployRotationRequest {
            rotation_id: rotation.id.clone(),
        };
        let answer = actor
            .rotations()
            .deploy_rotation(request)
            .await
            .map(Response::into_inner)?;
        Ok(answer.rotation.expect("a rotation"))
    }

    /// In the rows themselves: pairwise different, in every rotation there is.
    async fn nobody_is_two(&self) -> usize {
        let query = "SELECT r.id, r.state, r.requester, COALESCE(r.deployer, ''), COALESCE(a.approver, '') \
                     FROM rotations r LEFT JOIN rotation_approvals a ON a.rotation_id = r.id";
        let rows = self.daemon.rows(query).await;
        for row in &rows {
            let [_, state, requester, deployer, approver] = &row[..] else {
                panic!("{row:?}");
            };
            assert!(requester != approver && requester != deployer, "{row:?}");
            assert!(approver != deployer || approver.is_empty(), "{row:?}");
            let moved = ["APPROVED", "DEPLOYED", "COMPLETED"].contains(&state.as_str());
            assert!(!moved || !approver.is_empty(), "{row:?}");
        }
        rows.len()
    }
}

#[track_caller]
fn denied(answer: Result<Rotation, Status>) {
    let status = answer.expect_err("one person for two steps");
    let found = (status.code(), reason(&status));
    assert_eq!(
        found,
        (Code::PermissionDenied, "SEPARATION_OF_DUTIES".into())
    );
}

/// All 27 assignments of three people to three steps; a person comes with another certificate at each step.
async fn every_assignment(engine: Engine) {
    let people = People::new(engine).await;
    for case in 0..27 {
        let (r, a, d) = (case / 9, case / 3 % 3, case % 3);
        let name = format!("key-{case}");
        people.key(&name).await;
        let [first, second] = [case % 2, (case + 1) % 2];
        let opened = people.request(&people.actors[r][first], &name).await;
        let rotation = opened.expect("RotateKey");
        let mut approver = a;
        let approved = people.approve(&people.actors[a][second], &rotation).await;
        if a == r {
            denied(approved);
            denied(people.approve(&people.actors[a][first], &rotation).await);
            approver = (a + 1) % 3;
            let other = people
                .approve(&people.actors[approver][first], &rotation)
                .await;
            other.expect("ApproveRotation");
        } else {
            approved.expect("ApproveRotation");
        }
        let deployed = people.deploy(&people.actors[d][first], &rotation).await;
        if d == r || d == approver {
            denied(deployed);
            denied(people.deploy(&people.actors[d][second], &rotation).await);
            // Who is left may.
            let last = 3 - r - approver;
            let deployed = people.deploy(&people.actors[last][second], &rotation).await;
            deployed.expect("DeployRotation");
        } else {
            deployed.expect("DeployRotation");
        }
    }
    assert_eq!(people.nobody_is_two().await, 27);
    people.daemon.stop().await;
}

// R-LIFE-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_holds_two_of_three_in_one_rotation_on_sqlite() {
    every_assignment(Engine::Sqlite).await;
}

// R-LIFE-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_holds_two_of_three_in_one_rotation_on_postgres() {
    every_assignment(Engine::Postgres).await;
}

/// Anybody tries anything in any order: what happened keeps the rule, and a refusal changed nothing.
// R-LIFE-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_of_attempts_makes_one_person_two() {
    let people = People::new(Engine::Sqlite).await;
    people.key("jwt").await;
    let mut runner = TestRunner::new(ProptestConfig {
        rng_seed: RngSeed::Fixed(7),
        ..ProptestConfig::default()
    });
    let attempts = proptest::collection::vec((0..3_usize, 0..2_usize, 0..3_usize), 400);
    let attempts = attempts.new_tree(&mut runner).expect("a value").current();
    let mut open: Option<Rotation> = None;
    let (mut done, mut refused) = (0, BTreeSet::new());
    for (person, certificate, step) in attempts {
        let actor = &people.actors[person][certificate];
        let outcome = match (&open, step) {
            (None, 0) => people.request(actor, "jwt").await,
            (None, _) => continue,
            (Some(_), 0) => people.request(actor, "jwt").await,
            (Some(rotation), 1) => people.approve(actor, rotation).await,
            (Some(rotation), _) => people.deploy(actor, rotation).await,
        };
        match outcome {
            Ok(rotation) if rotation.state() == RotationState::Deployed => {
                let mut three = BTreeSet::from([rotation.requester, rotation.deployer]);
                three.extend(rotation.approvals.into_iter().map(|a| a.approver));
                assert_eq!(three.len(), 3);
                done += 1;
                open = None;
            }
            Ok(rotation) => open = Some(rotation),
            Err(status) => {
                refused.insert(reason(&status));
            }
        }
    }
    assert!(done >= 10, "{done} rotations");
    let expected = ["ROTATION_OPEN", "ROTATION_STATE", "SEPARATION_OF_DUTIES"];
    assert_eq!(refused, expected.map(str::to_owned).into());
    people.nobody_is_two().await;
    people.daemon.stop().await;
}

/// Two approvals are two people, not two certificates of one.
// R-LIFE-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_certificates_are_not_two_approvers() {
    let people = People::new(Engine::Sqlite).await;
    let request = CreateKeyRequest {
        tenant: "acme".into(),
        name: "jwt".into(),
        purpose: KeyPurpose::TokenSigning.into(),
        algorithm: Algorithm::Es256.into(),
        owner: "team-e2e".into(),
        approvals_needed: 2,
        ..Default::default()
    };
    let made = people
        .daemon
        .actor("issuer")
        .keys()
        .create_key(request)
        .await;
    made.expect("CreateKey");
    let [ada, bob, eve] = &people.actors[..] else {
        panic!("three people");
    };
    let opened = people.request(&ada[0], "jwt").await;
    let rotation = opened.expect("RotateKey");
    let first = people.approve(&bob[0], &rotation).await;
    assert_eq!(first.expect("approved").state(), RotationState::Requested);
    let again = people.approve(&bob[1], &rotation).await;
    let again = again.expect_err("the same person twice");
    assert!(
        ["ROTATION_STATE", "SEPARATION_OF_DUTIES"].contains(&reason(&again).as_str()),
        "{again}"
    );
    denied(people.approve(&ada[1], &rotation).await);
    let second = people.approve(&eve[0], &rotation).await;
    assert_eq!(second.expect("approved").state(), RotationState::Approved);
    for [one, other] in [ada, bob, eve] {
        denied(people.deploy(one, &rotation).await);
        denied(people.deploy(other, &rotation).await);
    }
    let deployer = people.daemon.actor("deployer");
    people.deploy(&deployer, &rotation).await.expect("deployed");
    people.nobody_is_two().await;
    people.daemon.stop().await;
}
