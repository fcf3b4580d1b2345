//! Starts that a wrong KEK must stop, with the words of R-ENV-2 and what to do.

use super::*;

/// A daemon that has run once and wrapped something, and is down now.
async fn down() -> Daemon {
    let mut daemon = Setup::new(Engine::Sqlite).append(QUICK).start().await;
    vault(&daemon, "one").await;
    daemon.terminate().await;
    daemon
}

// R-ENV-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_key_under_the_same_label_stops_the_start() {
    let mut daemon = down().await;
    remove(&daemon, FIRST).await;
    let said = [MISCONFIGURED, "claviger kek create"];
    refuses_to_start(&mut daemon, &said).await;
    create(&daemon, FIRST).await;
    refuses_to_start(&mut daemon, &[MISCONFIGURED, "restore the token"]).await;
    daemon.stop().await;
}

// R-ENV-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kek_that_does_not_open_its_probe_stops_the_start() {
    let mut daemon = down().await;
    daemon.execute("UPDATE keks SET probe_digest = X'00'").await;
    let said = [
        MISCONFIGURED,
        "does not unwrap",
        "bring the original key back",
    ];
    refuses_to_start(&mut daemon, &said).await;
    daemon.execute("UPDATE keks SET probe = zeroblob(61)").await;
    refuses_to_start(&mut daemon, &said).await;
    daemon.stop().await;
}

// R-ENV-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kek_that_wraps_nothing_here_stops_the_start() {
    let mut daemon = down().await;
    create(&daemon, "kek-2").await;
    daemon.edit_config(|text| text.replace(FIRST, "kek-2"));
    let said = [
        MISCONFIGURED,
        "has wrapped nothing here",
        "claviger kek rotate",
    ];
    refuses_to_start(&mut daemon, &said).await;
    daemon.edit_config(|text| text.replace("kek-2", FIRST));
    daemon.restart().await;
    daemon.stop().await;
}

/// An older release has wrapped data keys and knew no table of KEKs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kek_of_an_older_release_is_taken_over_and_no_other() {
    let mut daemon = down().await;
    create(&daemon, "kek-2").await;
    daemon.execute("DELETE FROM keks").await;
    daemon.edit_config(|text| text.replace(FIRST, "kek-2"));
    let said = [MISCONFIGURED, "1 data keys are wrapped by"];
    refuses_to_start(&mut daemon, &said).await;
    daemon.edit_config(|text| text.replace("kek-2", FIRST));
    daemon.restart().await;
    assert_eq!(keks(&daemon).await[0].data_keys, 1);

    // The reference is the same, and the key is another one.
    daemon.terminate().await;
    daemon
        .execute("DELETE FROM keks; UPDATE key_versions SET wrapped_key = zeroblob(61)")
        .await;
    let said = [MISCONFIGURED, "does not unwrap the data keys"];
    refuses_to_start(&mut daemon, &said).await;
    daemon.stop().await;
}

/// A former KEK in the configuration is a warning as long as it is there; one that is needed must be there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_data_keys_are_rewrapped_both_keks_must_be_there() {
    let mut daemon = down().await;
    daemon.restart().await;
    let other = vault(&daemon, "two").await;
    let good = "SELECT kid, hex(wrapped_key) FROM key_versions v JOIN keys k ON k.id = v.key_id \
                WHERE k.name = 'one'";
    let good = daemon.rows(good).await;
    let (kid, wrapped) = (&good[0][0], &good[0][1]);
    daemon
        .execute(&format!(
            "UPDATE key_versions SET wrapped_key = zeroblob(61) WHERE kid = '{kid}'"
        ))
        .await;
    let next = create(&daemon, "kek-2").await;
    let rotation = deployed(&daemon, &next).await;
    until(&daemon, &rotation.id, |r| r.rewrapped == 1).await;
    // kek.uri names the DEACTIVATED one.
    daemon.restart().await;
    assert!(daemon.log().contains("does not name the ACTIVE KEK"));
    decrypts(&daemon, "two", &other).await;
    daemon.terminate().await;
    daemon.edit_config(|text| text.replace(FIRST, "kek-2"));
    remove(&daemon, FIRST).await;
    let said = [
        MISCONFIGURED,
        "DEACTIVATED",
        "is needed to unwrap data keys",
    ];
    refuses_to_start(&mut daemon, &said).await;
    assert!(!wrapped.is_empty());
    daemon.stop().await;
}
