//! What a key's rotation policy asks for: more than one approval, never fewer than before, a standing approval by
//! somebody else.

use super::*;

fn update(key: &str) -> UpdateKeyRequest {
    UpdateKeyRequest {
        tenant: "acme".into(),
        key: key.into(),
        ..Default::default()
    }
}

async fn updated(daemon: &Daemon, request: UpdateKeyRequest) -> RotationPolicy {
    let answer = daemon.actor("issuer").keys().update_key(request).await;
    let key = answer.expect("UpdateKey").into_inner().key.expect("a key");
    key.rotation_policy.expect("a policy")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_approvals_are_two_people_on_sqlite() {
    two_approvals_are_two_people(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_approvals_are_two_people_on_postgres() {
    two_approvals_are_two_people(Engine::Postgres).await;
}

// R-LIFE-7
async fn two_approvals_are_two_people(engine: Engine) {
    let daemon = unscheduled(engine).start().await;
    let create = CreateKeyRequest {
        tenant: "acme".into(),
        name: "jwt".into(),
        purpose: KeyPurpose::TokenSigning.into(),
        algorithm: Algorithm::Es256.into(),
        owner: "team-e2e".into(),
        approvals_needed: 2,
        ..Default::default()
    };
    let made = daemon.actor("issuer").keys().create_key(create).await;
    made.expect("CreateKey");
    let (approver, deployer) = (daemon.actor("approver"), daemon.actor("deployer"));
    let (second, judge) = (person(&daemon, "second"), person(&daemon, "judge"));

    let rotation = opened(&daemon, "jwt").await;
    assert!(rotation.plan.contains("\"approvals_needed\":2"));
    let once = approver
        .rotations()
        .approve_rotation(approve(&rotation))
        .await;
    let once = once.expect("ApproveRotation").into_inner().rotation;
    let once = once.expect("a rotation");
    assert_eq!(once.state(), RotationState::Requested);
    assert!(!published(&daemon).await.contains(&rotation.new_kid));
    let twice = approver
        .rotations()
        .approve_rotation(approve(&rotation))
        .await;
    denied(twice);
    let early = deployer
        .rotations()
        .deploy_rotation(deploy(&rotation))
        .await;
    refused(early, "ROTATION_STATE");
    let answer = judge.rotations().approve_rotation(approve(&rotation)).await;
    let full = answer.expect("ApproveRotation").into_inner().rotation;
    let full = full.expect("a rotation");
    assert_eq!(full.state(), RotationState::Approved);
    assert_eq!(full.approvals.len(), 2);
    assert!(published(&daemon).await.contains(&rotation.new_kid));
    let more = second
        .rotations()
        .approve_rotation(approve(&rotation))
        .await;
    refused(more, "ROTATION_STATE");
    // One of the approvers holds the deployer's role too.
    denied(judge.rotations().deploy_rotation(deploy(&rotation)).await);
    let done = deployer
        .rotations()
        .deploy_rotation(deploy(&rotation))
        .await;
    done.expect("DeployRotation");

    // At the same time: whoever is told to retry can, and nobody is left waiting for a third.
    for _ in 0..5 {
        let rotation = opened(&daemon, "jwt").await;
        let both = [&approver, &second].map(async |who: &Actor| {
            loop {
                let answer = who.rotations().approve_rotation(approve(&rotation)).await;
                match answer {
                    Ok(answer) => return answer.into_inner(),
                    Err(status) => assert_eq!(reason(&status), "CONFLICT", "{status}"),
                }
            }
        });
        futures_util::future::join_all(both).await;
        let now = read(&daemon, &rotation).await;
        assert_eq!(now.state(), RotationState::Approved);
        assert_eq!(now.approvals.len(), 2);
        let issuer = daemon.actor("issuer");
        let over = issuer.rotations().cancel_rotation(cancel(&rotation)).await;
        over.expect("CancelRotation");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_gets_stricter_and_never_laxer_on_sqlite() {
    a_policy_gets_stricter_and_never_laxer(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_gets_stricter_and_never_laxer_on_postgres() {
    a_policy_gets_stricter_and_never_laxer(Engine::Postgres).await;
}

// R-LIFE-3, R-LIFE-7
async fn a_policy_gets_stricter_and_never_laxer(engine: Engine) {
    let daemon = unscheduled(engine).start().await;
    token_key(&daemon, "jwt").await;
    data_key(&daemon, "vault").await;
    let (issuer, approver) = (daemon.actor("issuer"), daemon.actor("approver"));
    let judge = person(&daemon, "judge");
    let issuer_id = daemon.id_of("issuer").await;

    let raise = |needed| UpdateKeyRequest {
        approvals_needed: Some(needed),
        ..update("jwt")
    };
    let policy = updated(&daemon, raise(3)).await;
    assert_eq!(policy.approvals_needed, 3);
    for fewer in [1, 2] {
        let answer = issuer.keys().update_key(raise(fewer)).await;
        refused(answer, "ROTATION_POLICY");
    }
    for out_of_bounds in [0, 9, u32::MAX] {
        let answer = issuer.keys().update_key(raise(out_of_bounds)).await;
        refused(answer, "INVALID_FIELD");
    }
    let automatic = |key: &str| UpdateKeyRequest {
        rotation_mode: RotationMode::Automatic.into(),
        ..update(key)
    };
    let answer = issuer.keys().update_key(automatic("jwt")).await;
    refused(answer, "ROTATION_POLICY");
    let mut keys = approver.keys();
    let answer = keys.approve_rotation_policy(approve_policy(&daemon, "jwt").await);
    refused(answer.await, "ROTATION_POLICY");
    assert_eq!(get_key(&daemon, "jwt").await.rotation_policy, Some(policy));
    assert_eq!(opened(&daemon, "jwt").await.approvals_needed, 3);

    // A data key is AUTOMATIC from the start, set by who created it, and waits for the approval of somebody else.
    let policy = get_key(&daemon, "vault").await.rotation_policy;
    let policy = policy.expect("a policy");
    assert_eq!(policy.mode(), RotationMode::Automatic);
    assert_eq!(
        (&policy.set_by, policy.approved_by.as_str()),
        (&issuer_id, "")
    );
    let answer = judge.keys().update_key(automatic("vault")).await;
    answer.expect("UpdateKey");
    let mut keys = judge.keys();
    let answer = keys.approve_rotation_policy(approve_policy(&daemon, "vault").await);
    denied(answer.await);
    let standing = async || {
        let mut keys = approver.keys();
        let answer = keys.approve_rotation_policy(approve_policy(&daemon, "vault").await);
        let key = answer.await.expect("approved").into_inner().key;
        let policy = key.expect("a key").rotation_policy.expect("a policy");
        assert!(policy.approve_time.is_some());
        policy.approved_by
    };
    let approver_id = daemon.id_of("approver").await;
    // Whatever changes what was agreed to takes the agreement back; what does not, does not.
    for (change, stays) in [
        (automatic("vault"), false),
        (
            UpdateKeyRequest {
                grace: Some(seconds(60)),
                ..update("vault")
            },
            false,
        ),
        (
            UpdateKeyRequest {
                standby: Some(true),
                owner: Some("somebody".into()),
                ..update("vault")
            },
            true,
        ),
        (
            UpdateKeyRequest {
                rotation_mode: RotationMode::Manual.into(),
                approvals_needed: Some(2),
                ..update("vault")
            },
            false,
        ),
    ] {
        assert_eq!(standing().await, approver_id);
        let policy = updated(&daemon, change).await;
        assert_eq!(policy.approved_by == approver_id, stays, "{policy:?}");
        assert_eq!(
            policy.set_by == issuer_id,
            !stays || policy.standby,
            "{policy:?}"
        );
    }
    let back = updated(&daemon, update("vault")).await;
    assert_eq!(back.approvals_needed, 2);
    assert!(back.standby);
    assert_eq!(back.grace, Some(seconds(60)));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_was_changed_is_not_approved_unread_on_sqlite() {
    a_policy_that_was_changed_is_not_approved_unread(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_was_changed_is_not_approved_unread_on_postgres() {
    a_policy_that_was_changed_is_not_approved_unread(Engine::Postgres).await;
}

// R-LIFE-3: what is approved is what the approver has read.
async fn a_policy_that_was_changed_is_not_approved_unread(engine: Engine) {
    let daemon = unscheduled(engine).start().await;
    let made = data_key(&daemon, "vault").await;
    let approver = daemon.actor("approver");
    let seen = approve_policy(&daemon, "vault").await;
    assert_eq!(seen.revision, made.revision);
    // While the approver types.
    let changes = [
        UpdateKeyRequest {
            rotation_period: Some(seconds(3600)),
            ..update("vault")
        },
        UpdateKeyRequest {
            grace: Some(seconds(60)),
            ..update("vault")
        },
    ];
    for change in changes {
        updated(&daemon, change).await;
        let before = get_key(&daemon, "vault").await;
        assert!(before.revision > seen.revision);
        for revision in [seen.revision, before.revision + 1] {
            let request = ApproveRotationPolicyRequest {
                revision,
                ..seen.clone()
            };
            let answer = approver.keys().approve_rotation_policy(request).await;
            refused(answer, "PLAN_CHANGED");
        }
        for revision in [0, -1, i64::MIN] {
            let request = ApproveRotationPolicyRequest {
                revision,
                ..seen.clone()
            };
            let answer = approver.keys().approve_rotation_policy(request).await;
            refused(answer, "INVALID_FIELD");
        }
        assert_eq!(get_key(&daemon, "vault").await, before);
    }
    let read = approve_policy(&daemon, "vault").await;
    let answer = approver.keys().approve_rotation_policy(read.clone()).await;
    let key = answer.expect("approved").into_inner().key.expect("a key");
    assert_eq!(key.revision, read.revision + 1);
    assert!(
        !key.rotation_policy
            .expect("a policy")
            .approved_by
            .is_empty()
    );
    daemon.stop().await;
}
