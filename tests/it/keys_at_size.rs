//! More keys than a daemon could hold: what a start costs, what a look at what is due costs, and a call with a key that nobody
//! has used yet. R-CARD-6.
//!
//! What holds is asserted at every size; how long it took is printed. As one of the tests it is small; `make size` runs it
//! optimised and with a million keys.

use std::{
    fs,
    time::{Duration, Instant},
};

use claviger::grpc::proto::*;

use crate::daemon::{Daemon, Engine, PATIENCE, Setup};

/// Real data keys, each of which is asked for once before it is in memory.
const DATA_KEYS: usize = 100;
/// Calls of each kind that are measured.
const CALLS: usize = 300;
/// More memory than this is no matter of allocators: it grows with the number of keys.
const SLACK_MIB: u64 = 64;

fn asked() -> i64 {
    match std::env::var("CLAVIGER_TEST_KEYS") {
        Ok(text) => text.parse().expect("CLAVIGER_TEST_KEYS"),
        Err(_) => 30_000,
    }
}

fn name(number: i64) -> String {
    format!("filler-{number:07}")
}

/// Fills the table as it would be after years: signing keys that share the pair of one. Their kids are not its thumbprint,
/// which nothing here asks for.
async fn fill(daemon: &Daemon, keys: i64) {
    let key = "tenant, purpose, algorithm, rsa_bits, backend, owner, created_at, rotation_period, next_rotation_at, revision, \
         rotation_mode, approvals_needed, standby, grace, policy_set_by, standby_backend";
    let version = "number, state, backend, backend_ref, public_jwk, created_at, announced_at, activated_at, is_standby";
    let id = "'01a20000-0000-7000-8000-' || lpad(to_hex(n), 12, '0')";
    let prefixed = |columns: &str, table: &str| {
        let columns: Vec<_> = columns
            .split(", ")
            .map(|c| format!("{table}.{}", c.trim()))
            .collect();
        columns.join(", ")
    };
    let sql = format!(
        "INSERT INTO keys (id, name, {key}) SELECT {id}, 'filler-' || lpad(n::text, 7, '0'), {} \
         FROM keys k, generate_series(1, {keys}) n WHERE k.name = 'pattern'; \
         INSERT INTO key_versions (kid, key_id, {version}) SELECT 'filler-' || n, {id}, {} \
         FROM key_versions v JOIN keys k ON k.id = v.key_id, generate_series(1, {keys}) n WHERE k.name = 'pattern'; \
         ANALYZE keys; ANALYZE key_versions",
        prefixed(key, "k"),
        prefixed(version, "v")
    );
    daemon.execute(&sql).await;
}

/// Resident memory of the daemon, in MiB.
fn memory(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.expect("kB").parse::<u64>().expect("a number") >> 10
}

/// Prints median and 99th percentile.
fn line(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{what:<32} p50 {:>8.2} ms   p99 {:>8.2} ms",
        at(0.5),
        at(0.99)
    );
}

async fn sign(daemon: &Daemon, key: String) -> Duration {
    let request = SignRequest {
        key,
        payload: Some(sign_request::Payload::Message("10 EUR".into())),
        ..Default::default()
    };
    let began = Instant::now();
    let answer = daemon.actor("service").crypto().sign(request).await;
    answer.expect("Sign");
    began.elapsed()
}

async fn encrypt(daemon: &Daemon, key: String) -> Duration {
    let request = EncryptRequest {
        key,
        plaintext: "10 EUR".into(),
        ..Default::default()
    };
    let began = Instant::now();
    let answer = daemon.actor("service").crypto().encrypt(request).await;
    answer.expect("Encrypt");
    began.elapsed()
}

/// Rows that were read by reading a whole table.
async fn scanned(daemon: &Daemon) -> i64 {
    // What a backend has counted is seen by others when it has been idle for a second.
    let rows = "SELECT CAST(SUM(seq_tup_read) AS BIGINT) FROM pg_stat_user_tables WHERE relname IN ('keys', 'key_versions')";
    daemon.rows(rows).await[0][0].parse().expect("a number")
}

/// Looks of the scheduler so far.
async fn looks(daemon: &Daemon) -> u64 {
    let metrics = daemon.ops_get("/metrics").await.text();
    let run = |line: &&str| {
        line.starts_with("claviger_job_runs_total") && line.contains(r#"job="keep_standby""#)
    };
    let count = metrics
        .lines()
        .find(run)
        .and_then(|line| line.rsplit(' ').next());
    count.map_or(0, |count| count.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_does_not_mind_how_many_keys_there_are() {
    let keys = asked();
    let mut daemon = Setup::new(Engine::Postgres)
        .append("[scheduler]\ninterval_ms = 200")
        .start()
        .await;
    daemon
        .key("acme", "pattern", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    for n in 0..DATA_KEYS {
        let (purpose, algorithm) = (KeyPurpose::Encryption, Algorithm::A256gcm);
        daemon
            .key("acme", &format!("vault-{n}"), purpose, algorithm)
            .await;
    }
    daemon.restart().await;
    sign(&daemon, "pattern".into()).await;
    let few = memory(&daemon);
    daemon.terminate().await;
    let began = Instant::now();
    fill(&daemon, keys).await;
    println!(
        "{keys} keys, filled in {:.1} s",
        began.elapsed().as_secs_f64()
    );

    let began = Instant::now();
    daemon.up().await.expect("it starts");
    println!("start to ready {:.2} s", began.elapsed().as_secs_f64());
    let many = memory(&daemon);
    println!("resident memory {few} MiB with {DATA_KEYS} keys, {many} MiB with {keys}");
    assert!(many < few + SLACK_MIB, "{few} MiB, then {many} MiB");

    let mut times = Vec::new();
    let place = |n: usize| 1 + (n as i64 * 7919) % keys;
    for n in 0..CALLS {
        times.push(sign(&daemon, name(place(n))).await);
    }
    line("Sign, a cold key each", times);
    let mut times = Vec::new();
    for _ in 0..CALLS {
        times.push(sign(&daemon, name(place(0))).await);
    }
    line("Sign, a warm key", times);
    let mut times = Vec::new();
    for n in 0..DATA_KEYS {
        times.push(encrypt(&daemon, format!("vault-{n}")).await);
    }
    line("Encrypt, a cold key each", times);
    let mut times = Vec::new();
    for _ in 0..CALLS {
        times.push(encrypt(&daemon, "vault-0".into()).await);
    }
    line("Encrypt, a warm key", times);
    assert!(memory(&daemon) < few + SLACK_MIB);

    // What is due is found by indexes: ten looks together read less than the table once.
    let (before, begin) = (scanned(&daemon).await, looks(&daemon).await);
    let until = Instant::now() + PATIENCE;
    while looks(&daemon).await < begin + 10 {
        assert!(Instant::now() < until, "the scheduler does not look");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let read = scanned(&daemon).await - before;
    println!("rows read by scans in ten looks: {read}");
    assert!(read < keys, "{read} rows were read by scans of {keys} keys");
    daemon.stop().await;
}
