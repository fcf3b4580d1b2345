//! Pruning of the audit log: only behind a checkpoint, provable, and never of what does not fit. R-OPS-5.

use std::fs;

use claviger::grpc::proto::*;

use crate::{
    checkpoints::{changed, covered, verify, with_key},
    daemon::{Daemon, Engine},
    incidents::{issued, token_key},
};

const OLDEST: &str = "SELECT MIN(seq) FROM audit_events WHERE stream = 'admin'";
const CUTS: &str = "SELECT stream, seq, finished FROM audit_pruned ORDER BY stream";

/// Rows are kept for no time at all, which `dev` allows: everything up to the last checkpoint goes.
fn keep_nothing(daemon: &Daemon) {
    daemon.edit_config(|text| {
        format!("{text}\n[audit.retention]\naccess_days = 0\nadmin_days = 0\n")
    });
}

/// Restarts the daemon, which looks for what can be pruned, and waits until all of it is gone.
async fn pruned(daemon: &mut Daemon) -> Vec<Vec<String>> {
    daemon.restart().await;
    daemon
        .until(async || {
            let cuts = daemon.rows(CUTS).await;
            cuts.len() == 2 && cuts.iter().all(|cut| cut[2] == "1")
        })
        .await;
    daemon.rows(CUTS).await
}

async fn what_is_left_is_proven(engine: Engine) {
    let (mut daemon, _) = with_key(engine, Algorithm::Es256).await;
    token_key(&daemon, "jwt").await;
    issued(&daemon, "jwt").await;
    let seq = changed(&daemon, "team-one").await;
    covered(&daemon, seq).await;
    keep_nothing(&daemon);
    let cuts = pruned(&mut daemon).await;
    assert_eq!([&cuts[0][0], &cuts[1][0]], ["access/one", "admin"]);
    let oldest: i64 = daemon.rows(OLDEST).await[0][0].parse().expect("a number");
    assert_eq!(cuts[1][1], (oldest - 1).to_string());
    assert!(oldest > seq);
    // Both cuts are rows of the log, by a job.
    let recorded = "SELECT entity_id, actor_type, data FROM audit_events WHERE action = 'PruneAudit' AND outcome = 'success'";
    let recorded = daemon.rows(recorded).await;
    for cut in &cuts {
        let through = format!(r#""through":{}"#, cut[1]);
        let is_it =
            |row: &Vec<String>| row[0] == cut[0] && row[1] == "job" && row[2].contains(&through);
        assert!(recorded.iter().any(is_it), "{cut:?} {recorded:?}");
    }

    // What is left is whole, and begins where a checkpoint says.
    for with_checkpoints in [false, true] {
        let (code, said) = verify(&daemon, with_checkpoints).await;
        assert_eq!(code, 0, "{said}");
        assert!(
            said.contains(&format!("intact, pruned up to {}", oldest - 1)),
            "{said}"
        );
    }
    // The product goes on.
    issued(&daemon, "jwt").await;
    let seq = changed(&daemon, "team-two").await;
    covered(&daemon, seq).await;
    let (code, said) = verify(&daemon, true).await;
    assert_eq!(code, 0, "{said}");

    // Another leader prunes on, and the cuts of both streams are still recorded.
    let again = pruned_beyond(&mut daemon, oldest).await;
    assert!(again > oldest);
    let (code, said) = verify(&daemon, true).await;
    assert_eq!(code, 0, "{said}");

    // Who owns the database takes some more away, or puts something in front.
    daemon.tampered();
    let first: i64 = daemon.rows(OLDEST).await[0][0].parse().expect("a number");
    daemon.terminate().await;
    daemon.edit_config(|text| {
        text.split("\n[audit.retention]")
            .next()
            .expect("a text")
            .to_owned()
    });
    let columns = "at, tenant, actor, actor_type, action, entity, entity_id, outcome, request_id, data, prev_hash, hash";
    let slipped = format!(
        "INSERT INTO audit_events (stream, seq, {columns}) SELECT stream, 1, {columns} FROM audit_events \
         WHERE stream = 'admin' AND seq = {first}"
    );
    daemon.execute(&slipped).await;
    daemon.up().await.expect("it starts");
    let (code, said) = verify(&daemon, false).await;
    assert_eq!((code, said.contains("BROKEN at 1")), (1, true), "{said}");
    daemon
        .execute("DELETE FROM audit_events WHERE stream = 'admin' AND seq = 1")
        .await;
    let (code, said) = verify(&daemon, false).await;
    assert_eq!(code, 0, "{said}");
    let cut = format!("DELETE FROM audit_events WHERE stream = 'admin' AND seq = {first}");
    daemon.execute(&cut).await;
    let (code, said) = verify(&daemon, false).await;
    assert_eq!(
        (code, said.contains("rows are missing")),
        (1, true),
        "{said}"
    );
    // And moves the cut: no row of the log says so.
    let moved = format!(
        "UPDATE audit_pruned SET seq = {first}, hash = (SELECT prev_hash FROM audit_events WHERE stream = 'admin' AND seq = {}) \
         WHERE stream = 'admin'",
        first + 1
    );
    daemon.execute(&moved).await;
    let (code, said) = verify(&daemon, false).await;
    assert_eq!(
        (
            code,
            said.contains("no row of the admin stream says that they were pruned")
        ),
        (1, true),
        "{said}"
    );
    daemon.stop().await;
}

/// As `pruned`, until the admin stream begins later than `before`; answers where.
async fn pruned_beyond(daemon: &mut Daemon, before: i64) -> i64 {
    daemon.restart().await;
    let oldest = async || -> i64 { daemon.rows(OLDEST).await[0][0].parse().expect("a number") };
    daemon
        .until(async || {
            let cuts = daemon.rows(CUTS).await;
            oldest().await > before && cuts.iter().all(|cut| cut[2] == "1")
        })
        .await;
    oldest().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_is_proven_on_sqlite() {
    what_is_left_is_proven(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_is_proven_on_postgres() {
    what_is_left_is_proven(Engine::Postgres).await;
}

/// A row that was changed is evidence: nothing of its stream is pruned, and people are told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_kept() {
    let (mut daemon, _) = with_key(Engine::Sqlite, Algorithm::Es256).await;
    let seq = changed(&daemon, "team-one").await;
    covered(&daemon, seq).await;
    daemon.terminate().await;
    daemon.tampered();
    let lie = format!(
        "UPDATE audit_events SET actor = 'nobody' WHERE stream = 'admin' AND seq = {}",
        seq - 1
    );
    daemon.execute(&lie).await;
    keep_nothing(&daemon);
    daemon.up().await.expect("it starts");
    let told = "SELECT entity_id FROM alerts WHERE kind = 'AUDIT_BROKEN'";
    daemon
        .until(async || daemon.rows(told).await.concat() == ["admin"])
        .await;
    assert_eq!(daemon.rows(OLDEST).await.concat(), ["1"]);
    let (code, said) = verify(&daemon, false).await;
    assert_eq!(
        (code, said.contains(&format!("BROKEN at {}", seq - 1))),
        (1, true),
        "{said}"
    );
    daemon.stop().await;
}

/// No checkpoint that is old enough, or none with a good signature: nothing goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_pruned_without_a_checkpoint() {
    let (mut daemon, _) = with_key(Engine::Sqlite, Algorithm::Es256).await;
    let seq = changed(&daemon, "team-one").await;
    covered(&daemon, seq).await;
    daemon.terminate().await;
    let file = daemon.path("checkpoints");
    let text = fs::read_to_string(&file).expect("checkpoints");
    let forged: String = text.replace("\nadmin ", "\nadmin 9");
    fs::write(&file, forged).expect("a file");
    keep_nothing(&daemon);
    // The next checkpoint would be a good one.
    daemon.edit_config(|text| text.replace("interval_seconds = 1\n", "interval_seconds = 86400\n"));
    daemon
        .up()
        .await
        .expect("it starts: none of the file's notes is one");
    daemon
        .until(async || {
            let metrics = daemon.ops_get("/metrics").await.text();
            let mut runs = metrics
                .lines()
                .filter(|line| line.starts_with("claviger_job_runs_total"));
            runs.any(|line| line.contains("prune_audit") && line.contains("success"))
        })
        .await;
    assert!(daemon.rows(CUTS).await.is_empty());
    assert_eq!(daemon.rows(OLDEST).await.concat(), ["1"]);
    daemon.stop().await;
}

/// Outside `dev` a day is the least, and without checkpoints nothing is pruned at all: the start says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_needs_checkpoints() {
    let mut daemon = Daemon::start(Engine::Sqlite).await;
    daemon.terminate().await;
    daemon.edit_config(|text| format!("{text}\n[audit.retention]\naccess_days = 30\n"));
    let why = daemon.up().await.expect_err("it must not start");
    assert!(
        why.contains("audit.retention needs [audit.checkpoint]"),
        "{why}"
    );
    daemon.edit_config(|text| text.replace("access_days = 30", "access_days = 99999"));
    let why = daemon.up().await.expect_err("it must not start");
    assert!(
        why.contains("audit.retention.access_days must be 0 to 36500"),
        "{why}"
    );
    daemon.edit_config(|text| {
        text.replace("access_days = 99999", "access_days = 30\nadmin_days = 29")
    });
    let why = daemon.up().await.expect_err("it must not start");
    let below = "admin_days must not be below access_days";
    assert!(why.contains(below), "{why}");
    daemon.edit_config(|text| {
        text.split("\n[audit.retention]")
            .next()
            .expect("a text")
            .to_owned()
    });
    daemon.stop().await;
}
