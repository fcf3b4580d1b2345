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
