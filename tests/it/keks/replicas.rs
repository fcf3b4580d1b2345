//! Two replicas: both wrap under the new KEK soon after a deployment on one of them, and what the slower one still
//! wrapped under the old one is rewrapped.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_replica_wraps_with_the_new_kek_and_nothing_stays_under_the_old_one() {
    let setup = Setup::new(Engine::Postgres).for_two().append(QUICK);
    let one = setup.start().await;
    let two = one.second(None).await;
    let mut sealed = vec![("first".to_owned(), vault(&two, "first").await)];
    let next = create(&one, "kek-2").await;
    let rotation = deployed(&one, &next).await;
    let deadline = Instant::now() + PATIENCE;
    for number in 0.. {
        let name = format!("later-{number}");
        sealed.push((name.clone(), vault(&two, &name).await));
        let kek =
            "SELECT v.kek_ref FROM key_versions v JOIN keys k ON k.id = v.key_id WHERE k.name = ";
        let row = one.rows(&format!("{kek}'{name}'")).await;
        if row[0][0] == rotation.new_kek {
            break;
        }
        assert!(Instant::now() < deadline, "the second never learns of it");
    }
    until(&one, &rotation.id, completed).await;
    let under = "SELECT DISTINCT kek_ref FROM key_versions WHERE wrapped_key IS NOT NULL";
    assert_eq!(one.rows(under).await, [[rotation.new_kek]]);
    remove(&one, FIRST).await;
    for daemon in [&one, &two] {
        for (name, ciphertext) in &sealed {
            decrypts(daemon, name, ciphertext).await;
        }
    }
    two.stop().await;
    one.stop().await;
}

/// Replicas that start at once on an empty table: one of them records the KEK, and the other takes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_first_starts_record_one_kek() {
    let setup = Setup::new(Engine::Postgres).for_two().append(QUICK);
    let mut one = setup.start().await;
    let mut two = one.second(None).await;
    for _ in 0..3 {
        two.terminate().await;
        one.terminate().await;
        one.execute("DELETE FROM keks").await;
        let (first, second) = tokio::join!(one.up(), two.up());
        first.expect("the first starts");
        second.expect("the second starts");
        let rows = one.rows("SELECT state FROM keks").await;
        assert_eq!(rows, [["ACTIVE"]]);
    }
    two.stop().await;
    one.stop().await;
}

/// A release that does not know the table `keks` writes what it read before the rewrapping.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_deployed_while_a_replica_of_an_earlier_release_lives() {
    let daemon = Setup::new(Engine::Postgres).append(QUICK).start().await;
    vault(&daemon, "one").await;
    let now = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)";
    let insert = "INSERT INTO replicas (name, seen_seq, seen_at, max_staleness) VALUES";
    // One looks again and again, for as long as this test takes; the other has not for an hour.
    let rows = format!(
        "('before/1', 0, {now} + 3600000000, 5000000), ('gone/1', 0, {now} - 3600000000, 5000000)"
    );
    daemon.execute(&format!("{insert} {rows}")).await;
    let next = create(&daemon, "kek-2").await;
    let rotation = request(&daemon, &next).await.expect("RotateKek");
    let approved = approve(&daemon, "approver", &rotation).await;
    approved.expect("ApproveKekRotation");
    let refused = deploy(&daemon, "deployer", &rotation.id).await;
    let message = refused
        .as_ref()
        .err()
        .map(|status| status.message().to_owned());
    fails(refused, Code::FailedPrecondition, "ROTATION_STATE");
    let message = message.expect("a message");
    assert!(message.contains("replica before/1"), "{message}");
    assert_eq!(
        get(&daemon, &rotation.id).await.state(),
        RotationState::Approved
    );
    daemon
        .execute("DELETE FROM replicas WHERE name = 'before/1'")
        .await;
    let deployed = deploy(&daemon, "deployer", &rotation.id).await;
    deployed.expect("DeployKekRotation");
    until(&daemon, &rotation.id, completed).await;
    daemon.stop().await;
}
