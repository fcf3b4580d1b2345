//! Rotations that come to nothing: the announced kid goes with them, and the key can be rotated again.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_ends_takes_its_kid_out_of_the_jwks_on_sqlite() {
    a_rotation_that_ends_takes_its_kid_out_of_the_jwks(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_ends_takes_its_kid_out_of_the_jwks_on_postgres() {
    a_rotation_that_ends_takes_its_kid_out_of_the_jwks(Engine::Postgres).await;
}

// R-LIFE-5, R-LIFE-7, R-JWT-4
async fn a_rotation_that_ends_takes_its_kid_out_of_the_jwks(engine: Engine) {
    let daemon = setup(engine).start().await;
    token_key(&daemon, "jwt").await;
    let (issuer, approver) = (daemon.actor("issuer"), daemon.actor("approver"));

    let turned_down = approved(&daemon, "jwt").await;
    assert!(published(&daemon).await.contains(&turned_down.new_kid));
    let answer = approver
        .rotations()
        .reject_rotation(reject(&turned_down))
        .await;
    let ended = answer.expect("RejectRotation").into_inner();
    assert!(ended.receipt.is_some());
    let ended = ended.rotation.expect("a rotation");
    assert_eq!(ended.state(), RotationState::Rejected);
    assert_eq!(ended.ended_by, daemon.id_of("approver").await);
    assert_eq!(ended.end_reason, "not this week");
    assert!(ended.end_time.is_some());
    assert_gone(&daemon, &turned_down).await;

    let taken_back = approved(&daemon, "jwt").await;
    assert_ne!(taken_back.new_kid, turned_down.new_kid);
    let answer = issuer
        .rotations()
        .cancel_rotation(cancel(&taken_back))
        .await;
    let ended = answer.expect("CancelRotation").into_inner().rotation;
    assert_eq!(ended.expect("a rotation").state(), RotationState::Cancelled);
    assert_gone(&daemon, &taken_back).await;

    let forgotten = approved(&daemon, "jwt").await;
    assert!(published(&daemon).await.contains(&forgotten.new_kid));
    let past = format!(
        "UPDATE rotations SET expires_at = {} WHERE id = '{}'",
        now(),
        forgotten.id
    );
    daemon.execute(&past).await;
    until_rotation(&daemon, &forgotten, "EXPIRED").await;
    assert_gone(&daemon, &forgotten).await;
    let rows = recorded(&daemon, &forgotten.id).await;
    assert_eq!(rows.last().expect("a row"), "ExpireRotation success");

    for over in [&turned_down, &taken_back, &forgotten] {
        let answer = approver.rotations().approve_rotation(approve(over)).await;
        refused(answer, "ROTATION_STATE");
        let answer = approver.rotations().reject_rotation(reject(over)).await;
        refused(answer, "ROTATION_STATE");
        let answer = issuer.rotations().cancel_rotation(cancel(over)).await;
        refused(answer, "ROTATION_STATE");
        let deployer = daemon.actor("deployer");
        let answer = deployer.rotations().deploy_rotation(deploy(over)).await;
        refused(answer, "ROTATION_STATE");
    }
    // A requester takes back and does not reject, whatever roles they hold.
    let judge = person(&daemon, "judge");
    let answer = judge.rotations().rotate_key(rotate("jwt")).await;
    let own = answer.expect("RotateKey").into_inner().rotation;
    let own = own.expect("a rotation");
    denied(judge.rotations().reject_rotation(reject(&own)).await);
    let answer = judge.rotations().cancel_rotation(cancel(&own)).await;
    answer.expect("CancelRotation");
    deployed(&daemon, "jwt").await;
    daemon.stop().await;
}

async fn assert_gone(daemon: &Daemon, rotation: &Rotation) {
    assert!(!published(daemon).await.contains(&rotation.new_kid));
    assert!(published(daemon).await.contains(&rotation.old_kid));
    assert_eq!(state_of(daemon, &rotation.new_kid).await, "RETIRED");
    assert_eq!(state_of(daemon, &rotation.old_kid).await, "ACTIVE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_possible_any_more_changes_nothing_on_sqlite() {
    what_is_not_possible_any_more_changes_nothing(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_possible_any_more_changes_nothing_on_postgres() {
    what_is_not_possible_any_more_changes_nothing(Engine::Postgres).await;
}

/// Expired, changed, unapproved, or against the clock: a typed error, a row, and nothing else.
async fn what_is_not_possible_any_more_changes_nothing(engine: Engine) {
    let daemon = unscheduled(engine).start().await;
    for name in ["expired", "late", "changed", "clock", "frozen"] {
        token_key(&daemon, name).await;
    }
    let (approver, deployer) = (daemon.actor("approver"), daemon.actor("deployer"));
    let set = async |rotation: &Rotation, what: String| {
        let change = format!("UPDATE rotations SET {what} WHERE id = '{}'", rotation.id);
        daemon.execute(&change).await;
    };

    let expired = opened(&daemon, "expired").await;
    set(&expired, format!("expires_at = {}", now())).await;
    let answer = approver
        .rotations()
        .approve_rotation(approve(&expired))
        .await;
    refused(answer, "ROTATION_EXPIRED");
    let unapproved = deployer.rotations().deploy_rotation(deploy(&expired)).await;
    refused(unapproved, "ROTATION_STATE");

    let late = approved(&daemon, "late").await;
    set(&late, format!("expires_at = {}", now())).await;
    let answer = deployer.rotations().deploy_rotation(deploy(&late)).await;
    refused(answer, "ROTATION_EXPIRED");

    let changed = opened(&daemon, "changed").await;
    let other = changed
        .plan
        .replace("\"soak_seconds\":0", "\"soak_seconds\":9");
    assert_ne!(other, changed.plan);
    set(&changed, format!("plan = '{other}'")).await;
    let answer = approver
        .rotations()
        .approve_rotation(approve(&changed))
        .await;
    refused(answer, "PLAN_CHANGED");

    let clock = opened(&daemon, "clock").await;
    set(&clock, format!("requested_at = {}", now() + HOUR)).await;
    let answer = approver.rotations().approve_rotation(approve(&clock)).await;
    refused(answer, "CLOCK_BACKWARDS");

    // As an incident leaves a key whose ACTIVE version it froze.
    let freeze = format!(
        "UPDATE key_versions SET state = 'COMPROMISED', compromised_at = {} WHERE key_id = '{}'",
        now(),
        get_key(&daemon, "frozen").await.id
    );
    daemon.execute(&freeze).await;
    let issuer = daemon.actor("issuer");
    let answer = issuer.rotations().rotate_key(rotate("frozen")).await;
    refused(answer, "KEY_COMPROMISED");
    let destroyed = freeze.replace("COMPROMISED", "DESTROYED");
    daemon.execute(&destroyed).await;
    let answer = issuer.rotations().rotate_key(rotate("frozen")).await;
    refused(answer, "KEY_COMPROMISED");
    let answer = issuer.rotations().rotate_key(rotate("nothing")).await;
    refused(answer, "KEY_NOT_FOUND");
    assert!(rotations_of(&daemon, "frozen").await.is_empty());

    for (rotation, state, failures) in [
        (&expired, RotationState::Requested, 2),
        (&late, RotationState::Approved, 1),
        (&changed, RotationState::Requested, 1),
        (&clock, RotationState::Requested, 1),
    ] {
        let now = read(&daemon, rotation).await;
        assert_eq!(now.state(), state);
        assert_eq!(state_of(&daemon, &rotation.new_kid).await, "PRE_ACTIVE");
        let rows = recorded(&daemon, &rotation.id).await;
        let failed = rows.iter().filter(|row| row.ends_with(" failed")).count();
        assert_eq!(failed, failures, "{rows:?}");
    }

    // To stop something is never too early: it is noted at the time of the last step.
    let answer = approver.rotations().reject_rotation(reject(&clock)).await;
    let over = answer.expect("RejectRotation").into_inner().rotation;
    let over = over.expect("a rotation");
    assert_eq!(over.state(), RotationState::Rejected);
    assert_eq!(over.end_time, over.request_time);
    daemon.stop().await;
}
