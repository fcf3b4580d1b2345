//! A freeze holds on every replica within a bounded, stated time, also on one that is cut off. R-EMER-3.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use claviger::grpc::proto::TokenRejection;
use tokio::time::{Duration, Instant, sleep};

use crate::{
    daemon::{Actor, Daemon, Engine, PATIENCE, Setup, reason},
    incidents::{declared, issue, issued, token_key, verdict, verify},
    proxy::Proxy,
};

const RUNS: usize = 50;
/// `feed.max_staleness_seconds` unless the configuration says something else.
const MAX_STALENESS: Duration = Duration::from_secs(5);

/// Asks for tokens under a key, one after the other, and keeps when each call began and which kid signed.
struct Issuer {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<(Instant, String)>>,
}

impl Issuer {
    fn start(service: Actor, key: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, key) = (Arc::clone(&stop), key.to_owned());
        let task = tokio::spawn(async move {
            let mut made = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                let began = Instant::now();
                if let Ok(token) = service.tokens().issue_token(issue(&key)).await {
                    made.push((began, token.into_inner().kid));
                }
            }
            made
        });
        Self { stop, task }
    }

    async fn stop(self) -> Vec<(Instant, String)> {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.expect("no panic")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_holds_on_both_daemons_when_it_is_acknowledged() {
    let daemon = Setup::new(Engine::Postgres).for_two().start().await;
    let second = daemon.second(None).await;
    let mut latencies = Vec::new();
    for run in 0..RUNS {
        let key = format!("jwt-{run}");
        token_key(&daemon, &key).await;
        let old = issued(&second, &key).await;
        assert!(verdict(&second, &old.token).await.valid);
        let issuers = [&daemon, &second].map(|d| Issuer::start(d.actor("service"), &key));
        let began = Instant::now();
        let answer = declared(&daemon, &key, "").await;
        let acknowledged = Instant::now();
        assert!(answer.frozen_everywhere);
        latencies.push(acknowledged - began);
        for d in [&daemon, &second] {
            let rejected = verdict(d, &old.token).await;
            assert_eq!(rejected.rejection(), TokenRejection::CompromisedKid);
            let new = issued(d, &key).await;
            assert_ne!(new.kid, old.kid);
            assert!(verdict(d, &new.token).await.valid);
        }
        for issuer in issuers {
            let made = issuer.stop().await;
            assert!(!made.is_empty());
            let late = made
                .iter()
                .filter(|(began, kid)| *began >= acknowledged && *kid == old.kid);
            assert_eq!(late.count(), 0, "tokens under a frozen kid");
        }
    }
    latencies.sort();
    let (p50, p99, max) = (
        latencies[RUNS / 2],
        latencies[RUNS * 99 / 100],
        latencies[RUNS - 1],
    );
    println!(
        "freeze acknowledged after: p50 {p50:?}, p99 {p99:?}, max {max:?} ({RUNS} runs, two daemons)"
    );
    assert!(max <= MAX_STALENESS + Duration::from_secs(2), "{max:?}");
    second.stop().await;
    daemon.stop().await;
}

/// What a daemon says that must not use keys.
async fn is_stale(daemon: &Daemon, token: &str) -> bool {
    let service = daemon.actor("service");
    let refusals = [
        service.tokens().issue_token(issue("jwt")).await.err(),
        service.tokens().verify_token(verify(token)).await.err(),
    ];
    refusals.iter().all(|status| {
        let why = status.as_ref().map(reason);
        // Before the lease is over a call fails because it cannot be recorded.
        why.is_some_and(|why| why == "REPLICA_STALE")
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_cut_off_stops_before_the_freeze_is_acknowledged() {
    let daemon = Setup::new(Engine::Postgres)
        .append("[feed]\nmax_staleness_seconds = 2")
        // Or the second daemon could not answer before its audit rows are written.
        .replace(
            "replica = \"one\"",
            "replica = \"one\"\naccess = \"best_effort\"",
        )
        .for_two()
        .start()
        .await;
    let (proxy, url) = Proxy::before_postgres(daemon.database_url()).await;
    let second = daemon.second(Some(&url)).await;
    token_key(&daemon, "jwt").await;
    let old = issued(&second, "jwt").await;
    assert!(verdict(&second, &old.token).await.valid);

    let issuer = Issuer::start(second.actor("service"), "jwt");
    let verifier = second.actor("service");
    let token = old.token.clone();
    let accepted = tokio::spawn(async move {
        let mut last = None;
        let until = Instant::now() + Duration::from_secs(6);
        while Instant::now() < until {
            let began = Instant::now();
            let answer = verifier.tokens().verify_token(verify(&token)).await;
            if answer.is_ok_and(|answer| answer.into_inner().valid) {
                last = Some(began);
            }
        }
        last
    });
    proxy.stop_forwarding();
    let cut = Instant::now();
    let answer = declared(&daemon, "jwt", "").await;
    let acknowledged = Instant::now();
    assert!(answer.frozen_everywhere);
    let after = answer.freeze_duration.expect("a duration");
    println!("cut off: frozen everywhere after {after}");
    assert!(is_stale(&second, &old.token).await);
    assert!(!is_stale(&daemon, &old.token).await);
    let last = accepted
        .await
        .expect("no panic")
        .expect("it verified before");
    assert!(
        last < acknowledged,
        "verified-as-valid after the acknowledgement"
    );
    let made = issuer.stop().await;
    let last = made.last().expect("it issued before").0;
    assert!(last < acknowledged, "issued after the acknowledgement");
    assert!(
        made.iter().any(|(began, _)| *began > cut),
        "it went on under its lease"
    );
    assert!(is_stale(&second, &old.token).await);
    // Or verifiers who ask it would go on trusting the frozen kid.
    let jwks = async || second.public_get("/.well-known/jwks.json").await;
    let refused = jwks().await;
    assert_eq!(refused.status, 503);
    assert!(refused.text().contains("REPLICA_STALE"));

    proxy.forward_again();
    let until = Instant::now() + PATIENCE;
    while is_stale(&second, &old.token).await {
        assert!(Instant::now() < until, "never serves again");
        sleep(Duration::from_millis(50)).await;
    }
    let published = jwks().await;
    assert_eq!(published.status, 200);
    assert!(!published.text().contains(&old.kid));
    let new = loop {
        let answer = second
            .actor("service")
            .tokens()
            .issue_token(issue("jwt"))
            .await;
        match answer {
            Ok(token) => break token.into_inner(),
            Err(status) => assert!(Instant::now() < until, "{status}"),
        }
        sleep(Duration::from_millis(50)).await;
    };
    assert_ne!(new.kid, old.kid);
    let rejected = verdict(&second, &old.token).await;
    assert_eq!(rejected.rejection(), TokenRejection::CompromisedKid);
    second.stop().await;
    daemon.stop().await;
}

/// Who was killed is waited for until its lease is over, and then never again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_died_is_waited_for_once() {
    let daemon = Setup::new(Engine::Postgres)
        .append("[feed]\nmax_staleness_seconds = 2")
        .for_two()
        .start()
        .await;
    let mut second = daemon.second(None).await;
    // A name, and an id of each start behind it.
    let names = "SELECT substr(name, 1, 3) FROM replicas ORDER BY 1";
    assert_eq!(daemon.rows(names).await.concat(), ["one", "two"]);
    second.kill().await;
    token_key(&daemon, "first").await;
    token_key(&daemon, "next").await;
    assert!(declared(&daemon, "first", "").await.frozen_everywhere);
    assert_eq!(daemon.rows(names).await.concat(), ["one"]);
    assert!(declared(&daemon, "next", "").await.frozen_everywhere);
    // It comes back, and is waited for again.
    second.restart().await;
    assert_eq!(daemon.rows(names).await.concat(), ["one", "two"]);
    second.stop().await;
    assert_eq!(daemon.rows(names).await.concat(), ["one"]);
    daemon.stop().await;
}

/// A database that was set back, by a restore or a failover to an older copy, forgets what replicas have seen: they stop,
/// and do not start to trust it by themselves. R-EMER-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_whose_database_was_set_back_stops_until_it_is_started_again() {
    let mut daemon = Setup::new(Engine::Postgres)
        .append("[feed]\nmax_staleness_seconds = 2")
        .for_two()
        .start()
        .await;
    token_key(&daemon, "jwt").await;
    let head = "SELECT seq FROM audit_heads WHERE stream = 'admin'";
    let kept: i64 = daemon.rows(head).await[0][0].parse().expect("a number");
    let hash = format!("SELECT hash FROM audit_events WHERE stream = 'admin' AND seq = {kept}");
    token_key(&daemon, "later").await;
    let old = issued(&daemon, "jwt").await;
    let until = Instant::now() + PATIENCE;
    let seen = format!("SELECT name FROM replicas WHERE seen_seq > {kept}");
    while daemon.rows(&seen).await.is_empty() {
        assert!(Instant::now() < until, "it does not follow");
        sleep(Duration::from_millis(50)).await;
    }
    // As the copy was before the last row.
    let set_back = format!(
        "DELETE FROM audit_events WHERE stream = 'admin' AND seq > {kept}; \
         UPDATE audit_heads SET seq = {kept}, hash = ({hash}) WHERE stream = 'admin'"
    );
    daemon.execute(&set_back).await;
    let until = Instant::now() + PATIENCE;
    while !is_stale(&daemon, &old.token).await {
        assert!(Instant::now() < until, "it goes on");
        sleep(Duration::from_millis(50)).await;
    }
    let ready = daemon.ops_get("/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("was set back"), "{}", ready.text());
    // A replica that comes now knows no better; the rows that it writes in the place of those that are gone are others.
    let second = daemon.second(None).await;
    token_key(&second, "again").await;
    token_key(&second, "and-again").await;
    let seq: i64 = daemon.rows(head).await[0][0].parse().expect("a number");
    assert!(seq > kept + 1);
    assert!(verdict(&second, &old.token).await.valid);
    sleep(Duration::from_secs(1)).await;
    assert!(is_stale(&daemon, &old.token).await);

    daemon.restart().await;
    assert!(verdict(&daemon, &old.token).await.valid);
    second.stop().await;
    daemon.stop().await;
}
