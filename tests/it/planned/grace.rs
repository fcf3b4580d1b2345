//! The end of a rotation: the old version goes when its last token has expired, and not before.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_grace_window_lasts_as_long_as_the_last_token_on_sqlite() {
    the_grace_window_lasts_as_long_as_the_last_token(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_grace_window_lasts_as_long_as_the_last_token_on_postgres() {
    the_grace_window_lasts_as_long_as_the_last_token(Engine::Postgres).await;
}

// R-LIFE-5, R-JWT-4, R-JWT-5
async fn the_grace_window_lasts_as_long_as_the_last_token(engine: Engine) {
    let daemon = setup(engine).start().await;
    for name in ["unused", "short", "long"] {
        token_key(&daemon, name).await;
    }
    let short = token(&daemon, "short", 60).await;
    let long = token(&daemon, "long", 3600).await;
    // A shorter one after it does not lower the mark.
    token(&daemon, "long", 1).await;

    let unused = deployed(&daemon, "unused").await;
    let (brief, lasting) = (
        deployed(&daemon, "short").await,
        deployed(&daemon, "long").await,
    );
    // Exactly as long as is needed, to the two minutes that the mark is ahead.
    for (rotation, token) in [(&brief, &short), (&lasting, &long)] {
        let (end, exp) = (micros(rotation.grace_end_time), micros(token.expire_time));
        assert!(end >= exp && end <= exp + 120 * SECOND, "{end} {exp}");
    }
    until_rotation(&daemon, &unused, "COMPLETED").await;
    assert_eq!(state_of(&daemon, &unused.old_kid).await, "RETIRED");
    assert!(!published(&daemon).await.contains(&unused.old_kid));
    let rows = recorded(&daemon, &unused.id).await;
    let life = [
        "RotateKey success",
        "ApproveRotation success",
        "DeployRotation success",
        "CompleteRotation success",
    ];
    assert_eq!(rows, life);

    looked(&daemon).await;
    for (rotation, token) in [(&brief, &short), (&lasting, &long)] {
        assert_eq!(
            read(&daemon, rotation).await.state(),
            RotationState::Deployed
        );
        assert_eq!(state_of(&daemon, &rotation.old_kid).await, "VERIFY_ONLY");
        assert!(published(&daemon).await.contains(&rotation.old_kid));
        assert!(verdict(&daemon, token).await.valid);
    }
    // The end alone, with the mark still ahead, is not enough: both are looked at.
    let ended = format!(
        "UPDATE rotations SET grace_ends_at = {} WHERE id IN ('{}', '{}')",
        now(),
        brief.id,
        lasting.id
    );
    daemon.execute(&ended).await;
    looked(&daemon).await;
    assert_eq!(state_of(&daemon, &lasting.old_kid).await, "VERIFY_ONLY");
    let passed = format!(
        "UPDATE key_versions SET last_token_exp = {} WHERE kid = '{}'",
        now(),
        brief.old_kid
    );
    daemon.execute(&passed).await;
    until_rotation(&daemon, &brief, "COMPLETED").await;
    assert!(!published(&daemon).await.contains(&brief.old_kid));
    let retired = verdict(&daemon, &short).await;
    assert_eq!(retired.rejection(), TokenRejection::RetiredKid);
    assert!(verdict(&daemon, &long).await.valid);
    assert!(read(&daemon, &brief).await.end_time.is_some());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policy_of_a_key_sets_a_grace_window_of_its_own() {
    let daemon = setup(Engine::Postgres).start().await;
    let create = CreateKeyRequest {
        tenant: "acme".into(),
        name: "orders".into(),
        purpose: KeyPurpose::Signing.into(),
        algorithm: Algorithm::Es256.into(),
        owner: "team-e2e".into(),
        grace: Some(seconds(3)),
        ..Default::default()
    };
    let made = daemon.actor("issuer").keys().create_key(create).await;
    made.expect("CreateKey");
    let rotation = deployed(&daemon, "orders").await;
    assert!(rotation.plan.contains("\"grace_seconds\":3"));
    let (end, begin) = (
        micros(rotation.grace_end_time),
        micros(rotation.deploy_time),
    );
    assert_eq!(end, begin + 3 * SECOND);
    until_rotation(&daemon, &rotation, "COMPLETED").await;
    let completed = read(&daemon, &rotation).await;
    assert!(micros(completed.end_time) >= end);
    assert_eq!(state_of(&daemon, &rotation.old_kid).await, "RETIRED");
    daemon.stop().await;
}

/// An incident replaced the successor, so no deployed rotation is left to retire the version before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_whose_rotation_was_overtaken_retires_all_the_same() {
    let daemon = setup(Engine::Sqlite).start().await;
    token_key(&daemon, "jwt").await;
    let issued = token(&daemon, "jwt", 600).await;
    let rotation = deployed(&daemon, "jwt").await;
    let end = format!(
        "UPDATE rotations SET state = 'CANCELLED', ended_at = {} WHERE id = '{}'",
        now(),
        rotation.id
    );
    daemon.execute(&end).await;
    looked(&daemon).await;
    assert_eq!(state_of(&daemon, &rotation.old_kid).await, "VERIFY_ONLY");
    assert!(verdict(&daemon, &issued).await.valid);
    let passed = format!(
        "UPDATE key_versions SET last_token_exp = {} WHERE kid = '{}'",
        now(),
        rotation.old_kid
    );
    daemon.execute(&passed).await;
    let query = format!(
        "SELECT state FROM key_versions WHERE kid = '{}'",
        rotation.old_kid
    );
    until(&daemon, &query, "RETIRED").await;
    let rows = recorded(&daemon, &rotation.key_id).await;
    assert_eq!(rows.last().expect("a row"), "RetireKeyVersion success");
    daemon.stop().await;
}

/// The database knows of a token before the token exists; a version that is not ACTIVE gets no new one.
// R-JWT-4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_signed_only_after_its_mark_is_stored() {
    let daemon = unscheduled(Engine::Postgres).start().await;
    token_key(&daemon, "jwt").await;
    let mark = async |kid: &str| {
        let query = format!("SELECT last_token_exp FROM key_versions WHERE kid = '{kid}'");
        daemon.rows(&query).await[0][0].parse::<i64>().unwrap_or(0)
    };
    // Callers at the same time share one write, and all of their tokens are covered.
    let writes = async || {
        let metrics = daemon.ops_get("/metrics").await.text();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("claviger_token_marks_total"));
        line.map_or(String::new(), str::to_owned)
    };
    let tokens = futures_util::future::join_all((0..8).map(|_| token(&daemon, "jwt", 300))).await;
    let stored = mark(&tokens[0].kid).await;
    assert!(
        tokens
            .iter()
            .all(|token| micros(token.expire_time) <= stored)
    );
    let one = writes().await;
    assert!(one.ends_with(" 1"), "{one}");
    token(&daemon, "jwt", 60).await;
    assert_eq!(writes().await, one);
    token(&daemon, "jwt", 3600).await;
    assert_ne!(writes().await, one);
    let longest = mark(&tokens[0].kid).await;
    assert!(longest > stored);

    // Superseded behind this replica's back, as if another had done it just now: what is cached says ACTIVE, and the
    // write finds out.
    token_key(&daemon, "moved").await;
    let rotation = approved(&daemon, "moved").await;
    assert_eq!(token(&daemon, "moved", 60).await.kid, rotation.old_kid);
    let before = mark(&rotation.old_kid).await;
    let (old, new) = (&rotation.old_kid, &rotation.new_kid);
    let supersede = format!(
        "UPDATE key_versions SET state = 'VERIFY_ONLY', deactivated_at = {0} WHERE kid = '{old}'; \
         UPDATE key_versions SET state = 'ACTIVE', activated_at = {0} WHERE kid = '{new}'",
        now()
    );
    daemon.execute(&supersede).await;
    let next = token(&daemon, "moved", 3600).await;
    assert_eq!(next.kid, rotation.new_kid);
    assert_eq!(mark(&rotation.old_kid).await, before);
    assert!(mark(&rotation.new_kid).await >= micros(next.expire_time));

    daemon.stop().await;
}
