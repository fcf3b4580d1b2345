//! What does not unwrap is known before somebody needs it: metric, readiness detail, alert row, rotation.

use super::*;

async fn says(daemon: &Daemon, path: &str, words: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let body = daemon.ops_get(path).await.body;
        let body = String::from_utf8_lossy(&body).into_owned();
        if words.iter().all(|word| body.contains(word)) {
            return;
        }
        assert!(Instant::now() < deadline, "{path} lacks {words:?}: {body}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn alerted(daemon: &Daemon, kind: &str) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let query = format!("SELECT text FROM alerts WHERE kind = '{kind}'");
        let rows = daemon.rows(&query).await;
        if let Some(row) = rows.first() {
            assert_eq!(rows.len(), 1, "once per window: {rows:?}");
            return row.clone();
        }
        assert!(Instant::now() < deadline, "no alert {kind}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// One row holds what another KEK wrapped, as far as anybody can tell.
async fn a_damaged_row(engine: Engine) {
    let daemon = Setup::new(engine).append(QUICK).start().await;
    let mut sealed = Vec::new();
    for name in ["bad", "one", "two"] {
        sealed.push((name, vault(&daemon, name).await));
    }
    says(&daemon, "/metrics", &["claviger_data_keys_undecryptable 0"]).await;
    let kid_of = |name: &str| {
        format!(
            "SELECT v.kid FROM key_versions v JOIN keys k ON k.id = v.key_id WHERE k.name = '{name}'"
        )
    };
    let bad = daemon.rows(&kid_of("bad")).await[0][0].clone();
    // Two rows change places: each is whole, and bound to the other's version.
    let keep = "CREATE TABLE kept AS SELECT kid, wrapped_key FROM key_versions";
    let spoil = format!(
        "UPDATE key_versions SET wrapped_key = (SELECT kept.wrapped_key FROM kept WHERE kept.kid <> '{bad}' LIMIT 1) \
         WHERE kid = '{bad}'"
    );
    daemon.execute(&format!("{keep}; {spoil}")).await;
    says(&daemon, "/metrics", &["claviger_data_keys_undecryptable 1"]).await;
    let detail = "1 of 3 data keys tried do not unwrap";
    says(&daemon, "/readyz", &["data keys", detail]).await;
    let text = alerted(&daemon, "DATA_KEY_UNDECRYPTABLE").await;
    assert!(text[0].contains(&bad), "{text:?}");

    let next = create(&daemon, "kek-2").await;
    let rotation = deployed(&daemon, &next).await;
    let stuck = |r: &KekRotation| r.rewrapped == 2 && r.undecryptable == 1;
    let rotation = until(&daemon, &rotation.id, stuck).await;
    assert_eq!((rotation.remaining, rotation.total), (1, 3));
    assert_eq!(rotation.state(), RotationState::Deployed);
    for (name, ciphertext) in &sealed[1..] {
        decrypts(&daemon, name, ciphertext).await;
    }
    // The row comes back from a backup.
    let restore = format!(
        "UPDATE key_versions SET wrapped_key = (SELECT kept.wrapped_key FROM kept WHERE kept.kid = '{bad}') \
         WHERE kid = '{bad}'"
    );
    daemon.execute(&format!("{restore}; DROP TABLE kept")).await;
    let done = until(&daemon, &rotation.id, completed).await;
    assert_eq!((done.rewrapped, done.undecryptable), (3, 0));
    decrypts(&daemon, "bad", &sealed[0].1).await;
    says(&daemon, "/metrics", &["claviger_data_keys_undecryptable 0"]).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_row_shows_everywhere_and_keeps_no_other_from_moving_on_sqlite() {
    a_damaged_row(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_row_shows_everywhere_and_keeps_no_other_from_moving_on_postgres() {
    a_damaged_row(Engine::Postgres).await;
}

// R-ENV-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kek_that_is_lost_later_is_an_alert() {
    let daemon = Setup::new(Engine::Sqlite).append(QUICK).start().await;
    vault(&daemon, "one").await;
    says(
        &daemon,
        "/metrics",
        &["claviger_kek_up{state=\"ACTIVE\"} 1"],
    )
    .await;
    remove(&daemon, FIRST).await;
    let text = alerted(&daemon, "KEK_LOST").await;
    assert!(text[0].contains("docs/runbook.md"), "{text:?}");
    says(
        &daemon,
        "/metrics",
        &["claviger_kek_up{state=\"ACTIVE\"} 0"],
    )
    .await;
    says(&daemon, "/readyz", &["kek", "does not unwrap its probe"]).await;
    // It says nothing about the data keys.
    says(&daemon, "/metrics", &["claviger_data_keys_undecryptable 0"]).await;
    daemon.stop().await;
}

/// A vault whose data key was spoilt, with the table `kept` of what was before.
async fn spoilt(daemon: &Daemon, names: &[&'static str]) -> Vec<(&'static str, bytes::Bytes)> {
    let mut sealed = Vec::new();
    for name in names {
        sealed.push((*name, vault(daemon, name).await));
    }
    let keep = "CREATE TABLE kept AS SELECT kid, wrapped_key FROM key_versions";
    let spoil = spoil(names[0], names[1]);
    daemon.execute(&format!("{keep}; {spoil}")).await;
    sealed
}

/// Gives the data key of one key the wrapped form that `kept` has of another's.
fn spoil(name: &str, other: &str) -> String {
    let kid = |name| {
        format!(
            "(SELECT v.kid FROM key_versions v JOIN keys k ON k.id = v.key_id WHERE k.name = '{name}')"
        )
    };
    format!(
        "UPDATE key_versions SET wrapped_key = (SELECT kept.wrapped_key FROM kept WHERE kept.kid = {}) WHERE kid = {}",
        kid(other),
        kid(name)
    )
}

fn restore(name: &str) -> String {
    spoil(name, name)
}

async fn state_of(daemon: &Daemon, reference: &str) -> (KekState, i64) {
    let keks = keks(daemon).await;
    let kek = keks.iter().find(|kek| kek.reference == reference);
    let kek = kek.expect("a KEK");
    (kek.state(), kek.data_keys)
}

/// A damaged row does not keep the KEK from being rotated again, and the KEK it is under does not go.
async fn a_damaged_row_is_given_up(engine: Engine) {
    let mut daemon = Setup::new(engine).append(QUICK).start().await;
    let sealed = spoilt(&daemon, &["bad", "one", "two"]).await;
    let second = create(&daemon, "kek-2").await;
    let rotation = deployed(&daemon, &second).await;
    let first = rotation.old_kek.clone();
    let stuck = |r: &KekRotation| r.rewrapped == 2 && r.undecryptable == 1;
    until(&daemon, &rotation.id, stuck).await;
    let third = create(&daemon, "kek-3").await;
    let next = request(&daemon, &third).await;
    fails(next, Code::FailedPrecondition, "ROTATION_OPEN");

    let ended = cancel(&daemon, &rotation.id).await;
    assert_eq!(ended.state(), RotationState::Completed);
    assert_eq!((ended.remaining, ended.undecryptable), (1, 1));
    assert_eq!(ended.end_reason, "not today");
    assert_ne!(ended.ended_by, "");
    let read = get(&daemon, &rotation.id).await;
    assert_eq!((read.remaining, read.undecryptable), (1, 1));
    let bad = daemon.rows(
        "SELECT v.kid FROM key_versions v JOIN keys k ON k.id = v.key_id WHERE k.name = 'bad'",
    );
    let bad = bad.await[0][0].clone();
    let log =
        "SELECT data FROM audit_events WHERE action = 'CancelKekRotation' AND outcome = 'success'";
    let log = daemon.rows(log).await;
    assert!(
        log[0][0].contains(&format!("\"given_up\":[\"{bad}\"]")),
        "{log:?}"
    );
    let kept = (KekState::Deactivated, 1);
    assert_eq!(state_of(&daemon, &first).await, kept);

    let rotation = deployed(&daemon, &third).await;
    until(&daemon, &rotation.id, completed).await;
    assert_eq!(state_of(&daemon, &first).await, kept);
    let retired = (KekState::Retired, 0);
    assert_eq!(state_of(&daemon, &rotation.old_kek).await, retired);
    // The row comes back from a backup.
    daemon.execute(&restore("bad")).await;
    daemon.restart().await;
    for (name, ciphertext) in &sealed {
        decrypts(&daemon, name, ciphertext).await;
    }
    // When nothing is under it any more, the next completion retires it.
    daemon.execute(&format!("DROP TABLE kept; UPDATE key_versions SET wrapped_key = NULL, state = 'DESTROYED', destroyed_at = 1 WHERE kid = '{bad}'")).await;
    let fourth = create(&daemon, "kek-4").await;
    let rotation = deployed(&daemon, &fourth).await;
    until(&daemon, &rotation.id, completed).await;
    assert_eq!(state_of(&daemon, &first).await, retired);
    let done = CancelKekRotationRequest {
        rotation_id: rotation.id.clone(),
        reason: "too late".into(),
    };
    let mut client = daemon.actor("issuer").keks();
    let done = client.cancel_kek_rotation(done).await;
    fails(done, Code::FailedPrecondition, "ROTATION_STATE");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_row_is_given_up_by_a_person_and_its_kek_stays_on_sqlite() {
    a_damaged_row_is_given_up(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_row_is_given_up_by_a_person_and_its_kek_stays_on_postgres() {
    a_damaged_row_is_given_up(Engine::Postgres).await;
}

/// What a release writes that does not know of the rotation: the wrapped form that it has read, beside the new KEK.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_wrapped_form_beside_the_new_kek_is_mended_before_the_old_one_is_retired() {
    let mut daemon = Setup::new(Engine::Sqlite).append(QUICK).start().await;
    let sealed = spoilt(&daemon, &["bad", "one", "two"]).await;
    let second = create(&daemon, "kek-2").await;
    let rotation = deployed(&daemon, &second).await;
    let stuck = |r: &KekRotation| r.rewrapped == 2 && r.undecryptable == 1;
    until(&daemon, &rotation.id, stuck).await;
    let (one, bad) = (restore("one"), restore("bad"));
    daemon
        .execute(&format!("{one}; {bad}; DROP TABLE kept"))
        .await;
    until(&daemon, &rotation.id, completed).await;
    let retired = (KekState::Retired, 0);
    assert_eq!(state_of(&daemon, &rotation.old_kek).await, retired);
    // What works now is what is in the rows, and needs no old KEK.
    remove(&daemon, FIRST).await;
    daemon.edit_config(|text| text.replace(&uri(FIRST), &uri("kek-2")));
    daemon.restart().await;
    for (name, ciphertext) in &sealed {
        decrypts(&daemon, name, ciphertext).await;
    }
    daemon.stop().await;
}

/// A device in trouble says of every ciphertext what a good one says of a damaged one. While the KEK does not even unwrap its
/// probe, no data key is called undecryptable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kek_in_trouble_says_nothing_about_data_keys() {
    let daemon = Setup::new(Engine::Sqlite).append(QUICK).start().await;
    for name in ["bad", "good"] {
        vault(&daemon, name).await;
    }
    says(&daemon, "/metrics", &["claviger_data_keys_undecryptable 0"]).await;
    let spoil = "CREATE TABLE kept AS SELECT reference, probe_digest FROM keks; \
                 UPDATE keks SET probe_digest = x'00'; \
                 UPDATE key_versions SET wrapped_key = x'0102030405060708' WHERE key_id = \
                 (SELECT id FROM keys WHERE name = 'bad')";
    daemon.execute(spoil).await;
    let deadline = Instant::now() + PATIENCE;
    while !daemon.log().contains("data keys not tried") {
        assert!(Instant::now() < deadline, "{}", daemon.log());
        sleep(Duration::from_millis(50)).await;
    }
    says(&daemon, "/metrics", &["claviger_data_keys_undecryptable 0"]).await;
    assert!(!daemon.log().contains("data key does not unwrap"));

    // A good KEK is believed.
    let mend = "UPDATE keks SET probe_digest = (SELECT probe_digest FROM kept WHERE kept.reference = keks.reference)";
    daemon.execute(mend).await;
    says(&daemon, "/metrics", &["claviger_data_keys_undecryptable 1"]).await;
    daemon.stop().await;
}
