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
