//! Two daemons on one PostgreSQL: scheduled work is done once, whoever does it, and goes on when one of them dies.
//! R-OPS-1.

use claviger::{
    model::Secret,
    store::{DatabaseConfig, Db, StoreError},
};

use super::*;

const KEYS: usize = 8;

/// Data keys that rotate under a standing approval.
async fn automatic_keys(daemon: &Daemon) -> Vec<String> {
    let mut keys = Vec::new();
    for number in 0..KEYS {
        let name = format!("vault-{number}");
        let request = ApproveRotationPolicyRequest {
            tenant: "acme".into(),
            key: name.clone(),
            revision: data_key(daemon, &name).await.revision,
        };
        let approver = daemon.actor("approver");
        let standing = approver.keys().approve_rotation_policy(request).await;
        standing.expect("ApproveRotationPolicy");
        keys.push(name);
    }
    keys
}

async fn all_due(daemon: &Daemon) {
    let due = format!("UPDATE keys SET next_rotation_at = {}", now() - HOUR);
    daemon.execute(&due).await;
}

/// Every key has been rotated `times`, each time in four steps, each recorded once, and nothing was tried in vain.
async fn rotated(daemon: &Daemon, keys: &[String], times: usize) {
    let completed = "SELECT COUNT(*) FROM rotations WHERE state = 'COMPLETED'";
    until(daemon, completed, &(keys.len() * times).to_string()).await;
    for key in keys {
        assert_eq!(rotations_of(daemon, key).await.len(), times, "{key}");
    }
    let steps = "SELECT action, outcome, COUNT(*) FROM audit_events WHERE actor_type = 'job' AND entity = 'rotation' \
         GROUP BY action, outcome ORDER BY action";
    let each = (keys.len() * times).to_string();
    let expected = [
        "ApproveRotation",
        "CompleteRotation",
        "DeployRotation",
        "RotateKey",
    ]
    .map(|action| [action.to_owned(), "success".to_owned(), each.clone()]);
    assert_eq!(daemon.rows(steps).await, expected);
    let failures =
        "SELECT COUNT(*) FROM audit_events WHERE actor_type = 'job' AND outcome <> 'success'";
    assert_eq!(daemon.rows(failures).await, [["0"]]);
}

/// Who does the scheduled work, as soon as somebody does.
async fn lease(daemon: &Daemon) -> (String, String) {
    let sql = "SELECT holder, CAST(fence AS TEXT) FROM leases WHERE name = 'scheduler'";
    let end = Instant::now() + PATIENCE;
    loop {
        let rows = daemon.rows(sql).await;
        if let [row] = &rows[..] {
            return (row[0].clone(), row[1].clone());
        }
        assert!(rows.is_empty() && Instant::now() < end, "{rows:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_do_each_job_once_and_the_second_takes_over() {
    let setup = setup(Engine::Postgres).for_two();
    let setup = setup.replace("interval_ms = 50", "interval_ms = 50\nlease_seconds = 2");
    let mut first = setup.start().await;
    let (holder, fence) = lease(&first).await;
    assert!(holder.starts_with("one/"), "{holder}");
    let second = first.second(None).await;
    let keys = automatic_keys(&first).await;
    all_due(&first).await;
    rotated(&first, &keys, 1).await;
    assert_eq!(lease(&first).await, (holder, fence.clone()), "one leader");

    // The leader dies without a word, with work to do.
    first.kill().await;
    all_due(&second).await;
    rotated(&second, &keys, 2).await;
    let (holder, later) = lease(&second).await;
    assert!(holder.starts_with("two/"), "{holder}");
    let number = |fence: &str| fence.parse::<i64>().expect("a fence");
    assert!(number(&later) > number(&fence));
    second.stop().await;
    first.restart().await;
    first.stop().await;
}

/// A leader that was held up past its term, and does not know it.
async fn a_leader_whose_term_is_over_cannot_commit(daemon: Daemon) {
    let url = Secret::new(daemon.database_url().to_owned());
    let db = Db::open_beside(&DatabaseConfig::of(url))
        .await
        .expect("open");
    let (short, long) = (Duration::from_millis(1), Duration::from_secs(600));
    let old = db.take_lease("test", "old", short).await.expect("take");
    let old = old.expect("nobody has it");
    let end = Instant::now() + PATIENCE;
    let new = loop {
        let taken = db.take_lease("test", "new", long).await.expect("take");
        match taken {
            Some(term) => break term,
            None if Instant::now() < end => sleep(Duration::from_millis(1)).await,
            None => panic!("the term does not end"),
        }
    };
    let mut tx = db.begin().await.expect("begin");
    assert!(matches!(tx.hold(&old).await, Err(StoreError::LeaseLost)));
    tx.hold(&new).await.expect("the term is on");
    drop(tx);
    let taken = db.take_lease("test", "old", long).await.expect("take");
    assert!(taken.is_none(), "somebody else has it");
    // Who is no longer the holder can let go of nothing.
    db.release_lease(&old).await.expect("release");
    let taken = db.take_lease("test", "old", long).await.expect("take");
    assert!(taken.is_none());
    db.release_lease(&new).await.expect("release");
    let again = db.take_lease("test", "new", long).await.expect("take");
    assert_ne!(again, Some(new), "a new term has a new fence");
    db.close().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_leader_whose_term_is_over_cannot_commit_on_sqlite() {
    a_leader_whose_term_is_over_cannot_commit(Daemon::start(Engine::Sqlite).await).await;
}

#[tokio::test]
async fn a_leader_whose_term_is_over_cannot_commit_on_postgres() {
    a_leader_whose_term_is_over_cannot_commit(Daemon::start(Engine::Postgres).await).await;
}
