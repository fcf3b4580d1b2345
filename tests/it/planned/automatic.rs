//! Rotation without anybody asking: the scheduler opens what is due, and takes it through only where people have agreed
//! to that beforehand.

use super::*;

const SCHEDULER: &str = "00000000-0000-7000-8000-000000000001";
const DEPLOYER: &str = "00000000-0000-7000-8000-000000000002";

async fn make_due(daemon: &Daemon, key: &str) {
    let due = format!(
        "UPDATE keys SET next_rotation_at = {} WHERE name = '{key}'",
        now() - HOUR
    );
    daemon.execute(&due).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_due_key_rotates_by_itself_only_under_a_standing_approval_on_sqlite() {
    a_due_key_rotates_by_itself_only_under_a_standing_approval(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_due_key_rotates_by_itself_only_under_a_standing_approval_on_postgres() {
    a_due_key_rotates_by_itself_only_under_a_standing_approval(Engine::Postgres).await;
}

// R-LIFE-3, R-LIFE-6, R-LIFE-7, R-OPS-1
async fn a_due_key_rotates_by_itself_only_under_a_standing_approval(engine: Engine) {
    let daemon = setup(engine).start().await;
    data_key(&daemon, "vault").await;
    data_key(&daemon, "unapproved").await;
    token_key(&daemon, "manual").await;
    let service = daemon.actor("service");
    let encrypt = EncryptRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        plaintext: "secret".into(),
        ..Default::default()
    };
    let sealed = service.crypto().encrypt(encrypt.clone()).await;
    let sealed = sealed.expect("Encrypt").into_inner();
    looked(&daemon).await;
    for key in ["vault", "unapproved", "manual"] {
        assert!(rotations_of(&daemon, key).await.is_empty(), "not due");
    }

    let request = approve_policy(&daemon, "vault").await;
    let approver = daemon.actor("approver");
    let standing = approver.keys().approve_rotation_policy(request).await;
    standing.expect("ApproveRotationPolicy");
    for key in ["vault", "unapproved", "manual"] {
        make_due(&daemon, key).await;
    }
    let query = "SELECT COUNT(*) FROM rotations r JOIN keys k ON k.id = r.key_id \
         WHERE k.name = 'vault' AND r.state = 'COMPLETED'";
    until(&daemon, query, "1").await;
    looked(&daemon).await;

    let done = rotations_of(&daemon, "vault").await;
    let [done] = &done[..] else {
        panic!("{} rotations", done.len())
    };
    assert!(done.scheduled && done.justification.starts_with("due on "));
    assert_eq!(done.requester, SCHEDULER);
    let approvers: Vec<_> = done.approvals.iter().map(|a| a.approver.clone()).collect();
    let approver_id = daemon.id_of("approver").await;
    assert_eq!(approvers, [approver_id.as_str()]);
    assert_eq!(done.deployer, DEPLOYER);
    let rows = daemon
        .rows(&format!(
            "SELECT actor, action, data FROM audit_events WHERE entity_id = '{}' AND stream = 'admin' ORDER BY seq",
            done.id
        ))
        .await;
    let actors: Vec<_> = rows
        .iter()
        .map(|row| (row[0].as_str(), row[1].as_str()))
        .collect();
    let expected = [
        (SCHEDULER, "RotateKey"),
        (SCHEDULER, "ApproveRotation"),
        (DEPLOYER, "DeployRotation"),
        (SCHEDULER, "CompleteRotation"),
    ];
    assert_eq!(actors, expected);
    let said: serde_json::Value = serde_json::from_str(&rows[1][2]).expect("JSON");
    assert_eq!(said["standing_approval_of"], approver_id);

    // What was encrypted before can be read for ever; what comes now is under the new version.
    let again = service.crypto().encrypt(encrypt).await;
    assert_eq!(again.expect("Encrypt").into_inner().kid, done.new_kid);
    let decrypt = DecryptRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        ciphertext: sealed.ciphertext,
        ..Default::default()
    };
    let opened = service.crypto().decrypt(decrypt).await;
    assert_eq!(opened.expect("Decrypt").into_inner().plaintext, "secret");
    let next = micros(get_key(&daemon, "vault").await.next_rotation_time);
    assert!(next > now() + 179 * DAY);

    // The others wait for people, one rotation each, however often the scheduler looks.
    for key in ["unapproved", "manual"] {
        let waiting = rotations_of(&daemon, key).await;
        let [waiting] = &waiting[..] else {
            panic!("{} rotations of {key}", waiting.len())
        };
        assert_eq!(waiting.state(), RotationState::Requested);
        assert_eq!(waiting.requester, SCHEDULER);
        assert!(waiting.approvals.is_empty());
    }
    // People take the scheduler's request through like any other.
    let waiting = rotations_of(&daemon, "manual").await.remove(0);
    let answer = approver
        .rotations()
        .approve_rotation(approve(&waiting))
        .await;
    answer.expect("ApproveRotation");
    looked(&daemon).await;
    let still = read(&daemon, &waiting).await;
    assert_eq!(still.state(), RotationState::Approved, "a person deploys");
    let deployer = daemon.actor("deployer");
    let answer = deployer.rotations().deploy_rotation(deploy(&waiting)).await;
    answer.expect("DeployRotation");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_was_turned_down_is_not_opened_again_at_once() {
    let daemon = setup(Engine::Postgres).start().await;
    token_key(&daemon, "jwt").await;
    make_due(&daemon, "jwt").await;
    let open = "SELECT COUNT(*) FROM rotations WHERE state = 'REQUESTED'";
    until(&daemon, open, "1").await;
    let rotation = rotations_of(&daemon, "jwt").await.remove(0);
    let approver = daemon.actor("approver");
    let answer = approver
        .rotations()
        .reject_rotation(reject(&rotation))
        .await;
    answer.expect("RejectRotation");
    looked(&daemon).await;
    looked(&daemon).await;
    assert_eq!(rotations_of(&daemon, "jwt").await.len(), 1);
    // A day later, as it were.
    let past = format!("UPDATE rotations SET ended_at = {}", now() - DAY);
    daemon.execute(&past).await;
    until(&daemon, open, "1").await;
    assert_eq!(rotations_of(&daemon, "jwt").await.len(), 2);
    daemon.stop().await;
}

/// A standing approval that is taken back while the rotation waits approves and deploys nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standing_approval_that_is_taken_back_deploys_nothing() {
    // With a soak, so that there is time between the approval and the deployment.
    let daemon = setup(Engine::Sqlite)
        .replace("max_age_seconds = 0", "max_age_seconds = 3")
        .start()
        .await;
    token_key(&daemon, "jwt").await;
    let (issuer, approver) = (daemon.actor("issuer"), daemon.actor("approver"));
    let automatic = UpdateKeyRequest {
        tenant: "acme".into(),
        key: "jwt".into(),
        rotation_mode: RotationMode::Automatic.into(),
        ..Default::default()
    };
    let set = issuer.keys().update_key(automatic.clone()).await;
    set.expect("UpdateKey");
    let request = approve_policy(&daemon, "jwt").await;
    let standing = approver.keys().approve_rotation_policy(request).await;
    standing.expect("ApproveRotationPolicy");
    make_due(&daemon, "jwt").await;
    until(&daemon, "SELECT state FROM rotations", "APPROVED").await;
    let manual = UpdateKeyRequest {
        rotation_mode: RotationMode::Manual.into(),
        ..automatic.clone()
    };
    let taken_back = issuer.keys().update_key(manual).await;
    taken_back.expect("UpdateKey");
    let rotation = rotations_of(&daemon, "jwt").await.remove(0);
    let soaked = micros(rotation.deployable_time);
    while now() < soaked {
        sleep(Duration::from_millis(50)).await;
    }
    looked(&daemon).await;
    let state = read(&daemon, &rotation).await.state();
    assert_eq!(state, RotationState::Approved);
    // Given again, it goes on.
    let set = issuer.keys().update_key(automatic).await;
    set.expect("UpdateKey");
    looked(&daemon).await;
    assert_eq!(read(&daemon, &rotation).await.state(), state);
    let request = approve_policy(&daemon, "jwt").await;
    let standing = approver.keys().approve_rotation_policy(request).await;
    standing.expect("ApproveRotationPolicy");
    until(&daemon, "SELECT deployer FROM rotations", DEPLOYER).await;
    daemon.stop().await;
}

/// The token is away: no row, no version and no failed change comes of that, and the rotation is opened once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_away_delays_a_rotation_and_leaves_nothing() {
    let daemon = setup(Engine::Sqlite).start().await;
    let key = token_key(&daemon, "jwt").await;
    let (here, away) = (daemon.path("tokens"), daemon.path("tokens.away"));
    std::fs::rename(&here, &away).expect("renamed");
    make_due(&daemon, "jwt").await;
    let failures = async || {
        let metrics = daemon.ops_get("/metrics").await.text();
        let line = metrics.lines().find(|line| {
            line.starts_with("claviger_job_item_failures_total") && line.contains("open_due")
        });
        let count = line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        count.unwrap_or(0)
    };
    let end = Instant::now() + PATIENCE;
    while failures().await < 2 {
        assert!(Instant::now() < end, "{}", daemon.log());
        sleep(Duration::from_millis(50)).await;
    }
    let none = async |query: &str| assert!(daemon.rows(query).await.is_empty(), "{query}");
    none("SELECT id FROM rotations").await;
    none("SELECT id FROM backend_intents WHERE state = 'PENDING'").await;
    none("SELECT kid FROM key_versions WHERE number > 1").await;
    assert_eq!(recorded(&daemon, &key.id).await, ["CreateKey success"]);
    std::fs::rename(&away, &here).expect("renamed");
    let open = "SELECT COUNT(*) FROM rotations WHERE state = 'REQUESTED'";
    until(&daemon, open, "1").await;
    daemon.stop().await;
}

// R-LIFE-7: the scheduler is nobody's stand-in. Whoever moves the date has asked for the rotation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_moves_the_date_has_asked_for_the_rotation() {
    let daemon = setup(Engine::Sqlite).start().await;
    token_key(&daemon, "jwt").await;
    let judge = person(&daemon, "judge");
    let created = get_key(&daemon, "jwt").await.create_time;
    let request = UpdateKeyRequest {
        tenant: "acme".into(),
        key: "jwt".into(),
        next_rotation_time: created,
        ..Default::default()
    };
    let moved = judge.keys().update_key(request).await;
    moved.expect("UpdateKey");
    let query = "SELECT COUNT(*) FROM rotations WHERE state = 'REQUESTED'";
    until(&daemon, query, "1").await;
    let open = rotations_of(&daemon, "jwt").await.remove(0);
    assert!(open.scheduled);
    assert_eq!(open.requester, daemon.id_of("judge").await);
    denied(judge.rotations().approve_rotation(approve(&open)).await);
    let approver = daemon.actor("approver");
    let approved = approver.rotations().approve_rotation(approve(&open)).await;
    approved.expect("ApproveRotation");
    denied(judge.rotations().deploy_rotation(deploy(&open)).await);
    daemon.stop().await;
}
