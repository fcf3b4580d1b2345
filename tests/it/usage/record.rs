//! What is recorded, and what is not.

use std::collections::BTreeMap;

use claviger::{grpc::proto::*, model::usage::Cost};
use tokio::time::{Duration, Instant, sleep};
use tonic::Code;

use super::{ago, by_credential, event, reasons, record, report, yesterday};
use crate::daemon::{Daemon, Engine, PATIENCE, Setup, reason};

// R-USE-1: three clients of two daemons tell the same events at the same time, some of them twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_are_exact_whichever_daemon_is_told_and_however_often() {
    const BATCHES: usize = 12;
    const EVENTS: usize = 40;
    let daemon = Setup::new(Engine::Postgres).for_two().start().await;
    let second = daemon.second(None).await;
    let clients = [
        daemon.actor("service"),
        daemon.actor_with(Some(daemon.leaf("service"))),
        second.actor("service"),
    ];
    // Client n tells batches n, n+1 and n+2 of every three: each batch reaches all of them, in other orders.
    let batch = |number: usize| -> Vec<UsageEvent> {
        let one = |i: usize| UsageEvent {
            requests: Some(1 + (i as i64) % 3),
            errors: i64::from(i.is_multiple_of(5)),
            tokens_in: 100 + i as i64,
            tokens_out: (number * i) as i64,
            time: Some(ago(60 * (number as i64 % 4))),
            ..event(
                format!("e-{number}-{i}"),
                &format!("c{}", i % 3),
                "0.000000007",
            )
        };
        (0..EVENTS).map(one).collect()
    };
    let mut expected: BTreeMap<String, [i64; 5]> = BTreeMap::new();
    for e in (0..BATCHES).flat_map(batch) {
        let sums = expected.entry(e.credential_id).or_default();
        let added = [
            e.requests.unwrap_or(1),
            e.errors,
            e.tokens_in,
            e.tokens_out,
            7,
        ];
        sums.iter_mut().zip(added).for_each(|(sum, n)| *sum += n);
    }
    let batches: Vec<_> = (0..BATCHES).map(batch).collect();
    let tell = async |client: usize| {
        let mut new = 0;
        for n in 0..BATCHES {
            let mut events = batches[(n + client * 5) % BATCHES].clone();
            if client == 1 {
                events.reverse();
            }
            let results = record(&clients[client], events).await.expect("RecordUsage");
            assert!(results.iter().all(|r| r.error.is_none()), "{results:?}");
            let recorded = |r: &&UsageResult| r.outcome() == UsageOutcome::Recorded;
            new += results.iter().filter(recorded).count();
        }
        new
    };
    let new = tokio::join!(tell(0), tell(1), tell(2));
    assert_eq!(new.0 + new.1 + new.2, BATCHES * EVENTS, "each counts once");
    for span in [UsageSpan::Minute, UsageSpan::Hour, UsageSpan::Day] {
        let answer = report(&daemon, by_credential(span)).await;
        assert_eq!(answer.next_page_token, "");
        let mut found: BTreeMap<String, [i64; 5]> = BTreeMap::new();
        for row in answer.rows {
            let totals = row.totals.expect("totals");
            let sums = found.entry(row.credential_id).or_default();
            sums.iter_mut()
                .zip(numbers(&totals))
                .for_each(|(sum, n)| *sum += n);
        }
        assert_eq!(found, expected, "{span:?}");
        let mut all = [0; 5];
        for sums in expected.values() {
            all.iter_mut().zip(sums).for_each(|(sum, n)| *sum += n);
        }
        let totals = answer.totals.expect("totals");
        assert_eq!(numbers(&totals), all, "{span:?}");
        assert!(totals.last_use_time.is_some());
    }
    second.stop().await;
    daemon.stop().await;
}

fn numbers(t: &UsageTotals) -> [i64; 5] {
    let cost: Cost = t.cost.parse().expect("a cost");
    [
        t.requests,
        t.errors,
        t.tokens_in,
        t.tokens_out,
        cost.nanos(),
    ]
}

#[tokio::test]
async fn a_replayed_event_counts_once_on_sqlite() {
    a_replayed_event_counts_once(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_replayed_event_counts_once_on_postgres() {
    a_replayed_event_counts_once(Engine::Postgres).await;
}

// R-USE-1
async fn a_replayed_event_counts_once(engine: Engine) {
    let mut daemon = Daemon::start(engine).await;
    let service = daemon.actor("service");
    let tell = async |events| record(&service, events).await.expect("RecordUsage");
    let first = tell(vec![event("one", "c", "0.5"), event("one", "c", "0.5")]).await;
    assert_eq!(reasons(&first), ["recorded", "duplicate"]);
    let again = tell(vec![event("one", "c", "0.5"), event("two", "c", "0.25")]).await;
    assert_eq!(reasons(&again), ["duplicate", "recorded"]);
    // The same id for something else is a mistake, and is said.
    let other = tell(vec![event("one", "c", "9"), event("three", "c", "")]).await;
    assert_eq!(reasons(&other), ["EVENT_ID_REUSED", "recorded"]);
    drop(service);
    // Also after the daemon forgot all it had in memory.
    daemon.kill().await;
    daemon.restart().await;
    let again = record(&daemon.actor("service"), vec![event("two", "c", "0.25")]).await;
    assert_eq!(reasons(&again.expect("RecordUsage")), ["duplicate"]);
    let totals = report(&daemon, by_credential(UsageSpan::Day)).await.totals;
    let totals = totals.expect("totals");
    assert_eq!((totals.requests, totals.cost.as_str()), (3, "0.75"));
    // Another tenant's ids are its own.
    let elsewhere = record(&daemon.actor("other"), vec![event("one", "c", "")]).await;
    assert_eq!(reasons(&elsewhere.expect("RecordUsage")), ["recorded"]);
    daemon.stop().await;
}

// R-USE-1
#[tokio::test]
async fn what_cannot_be_is_refused_by_itself_and_the_rest_is_recorded() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let other = daemon.id_of("other").await;
    let mut n = 0;
    let mut bad = |change: fn(&mut UsageEvent)| {
        n += 1;
        let mut event = event(format!("bad-{n}"), "c", "1");
        change(&mut event);
        event
    };
    let mut wrong = vec![
        bad(|e| e.cost = "-1".into()),
        bad(|e| e.cost = "NaN".into()),
        bad(|e| e.cost = "Infinity".into()),
        bad(|e| e.cost = "1e3".into()),
        bad(|e| e.cost = "0.0000000001".into()),
        bad(|e| e.cost = "100000.000000001".into()),
        bad(|e| e.cost = "1,5".into()),
        bad(|e| e.requests = Some(-1)),
        bad(|e| e.requests = Some(i64::MAX)),
        bad(|e| e.errors = -1),
        bad(|e| e.errors = 2),
        bad(|e| e.tokens_in = -5),
        bad(|e| e.tokens_out = i64::MAX),
        bad(|e| e.event_id = String::new()),
        bad(|e| e.event_id = "x".repeat(129)),
        bad(|e| e.event_id = "a b".into()),
        bad(|e| e.provider = String::new()),
        bad(|e| e.provider = "claviger".into()),
        bad(|e| e.provider = "claviger-authn".into()),
        bad(|e| e.provider = "Open AI".into()),
        bad(|e| e.credential_id = "a|b".into()),
        bad(|e| e.credential_id = "=cmd".into()),
        bad(|e| e.principal_id = "nobody".into()),
        bad(|e| e.time = Some(ago(8 * 24 * 60 * 60))),
        bad(|e| e.time = Some(ago(-600))),
        bad(|e| {
            e.time = Some(prost_types::Timestamp {
                seconds: i64::MAX,
                nanos: -1,
            });
        }),
    ];
    let count = wrong.len();
    wrong.push(event("good", "c", "1"));
    let service = daemon.actor("service");
    let results = record(&service, wrong).await.expect("RecordUsage");
    let (last, refused) = results.split_last().expect("results");
    assert_eq!(refused.len(), count);
    for (result, reason) in refused.iter().zip(reasons(refused)) {
        assert_eq!(reason, "INVALID_FIELD", "{result:?}");
    }
    assert_eq!(last.outcome(), UsageOutcome::Recorded);
    // R-ACL-3: somebody of another tenant looks like nobody.
    let foreign = UsageEvent {
        principal_id: other,
        ..event("foreign", "c", "")
    };
    let nobody = UsageEvent {
        principal_id: uuid::Uuid::now_v7().to_string(),
        ..event("nobody", "c", "")
    };
    let results = record(&service, vec![foreign, nobody])
        .await
        .expect("RecordUsage");
    assert_eq!(reasons(&results), ["PRINCIPAL_NOT_FOUND"; 2]);
    assert_eq!(
        results[0].error.as_ref().map(|e| &e.message),
        results[1].error.as_ref().map(|e| &e.message)
    );
    for events in [Vec::new(), vec![event("e", "c", ""); 1001]] {
        let refused = record(&service, events)
            .await
            .expect_err("too few or too many");
        assert_eq!(reason(&refused), "INVALID_FIELD");
    }
    let totals = report(&daemon, by_credential(UsageSpan::Day)).await.totals;
    let totals = totals.expect("totals");
    assert_eq!((totals.requests, totals.cost.as_str()), (1, "1"));
    daemon.stop().await;
}

// R-USE-1: the daemon's own calls are metered the same way.
#[tokio::test]
async fn our_own_calls_are_counted_by_principal() {
    let mut daemon = Setup::new(Engine::Sqlite)
        .append("[usage]\nflush_interval_seconds = 1")
        .start()
        .await;
    daemon
        .key("acme", "orders", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    let service = daemon.actor("service");
    let sign = |key: &str| SignRequest {
        tenant: "acme".into(),
        key: key.into(),
        payload: Some(sign_request::Payload::Message("m".into())),
    };
    for _ in 0..5 {
        service.crypto().sign(sign("orders")).await.expect("Sign");
    }
    for _ in 0..2 {
        service
            .crypto()
            .sign(sign("nothing"))
            .await
            .expect_err("no such key");
    }
    // Telling what was used elsewhere is no use of ours.
    record(&service, vec![event("e", "c", "")])
        .await
        .expect("RecordUsage");
    let id = daemon.id_of("service").await;
    let ours = GetUsageReportRequest {
        begin_time: Some(yesterday()),
        provider: "claviger".into(),
        principal_id: id.clone(),
        ..Default::default()
    };
    let until = Instant::now() + PATIENCE;
    loop {
        let totals = report(&daemon, ours.clone()).await.totals.expect("totals");
        if totals.requests >= 7 {
            assert_eq!((totals.requests, totals.errors), (7, 2));
            break;
        }
        assert!(Instant::now() < until, "{totals:?}");
        sleep(Duration::from_millis(100)).await;
    }
    // What a daemon counted last it writes before it ends.
    service.crypto().sign(sign("orders")).await.expect("Sign");
    drop(service);
    daemon.restart().await;
    let totals = report(&daemon, ours).await.totals.expect("totals");
    assert_eq!((totals.requests, totals.errors), (8, 2));
    daemon.stop().await;
}

// R-USE-1, R-ACL-3
#[tokio::test]
async fn everybody_sees_their_own_usage_and_nobody_elses() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let service = daemon.actor("service");
    record(&service, vec![event("e", "c", "2")])
        .await
        .expect("RecordUsage");
    let of = |principal_id: String, tenant: &str| GetUsageReportRequest {
        tenant: tenant.into(),
        begin_time: Some(yesterday()),
        principal_id,
        provider: "openai".into(),
        ..Default::default()
    };
    let (own, other) = (daemon.id_of("service").await, daemon.id_of("other").await);
    let mut usage = service.usage();
    let mine = usage
        .get_usage_report(of(own.clone(), ""))
        .await
        .expect("one's own");
    assert_eq!(mine.into_inner().totals.expect("totals").cost, "2");
    let all = usage.get_usage_report(of(String::new(), "")).await;
    assert_eq!(
        all.expect_err("the tenant's").code(),
        Code::PermissionDenied
    );
    let theirs = usage.get_usage_report(of(other, "")).await;
    assert_eq!(theirs.expect_err("another's").code(), Code::NotFound);
    let mine = daemon
        .actor("other")
        .usage()
        .get_usage_report(of(own.clone(), ""))
        .await;
    assert_eq!(mine.expect_err("mine").code(), Code::NotFound);
    let elsewhere = usage.get_usage_report(of(own, "globex")).await;
    assert_eq!(
        reason(&elsewhere.expect_err("not of globex")),
        "INVALID_FIELD"
    );
    daemon.stop().await;
}

// R-OPS-5
#[tokio::test]
async fn usage_is_kept_for_its_retention_and_no_longer() {
    let mut daemon = Daemon::start(Engine::Sqlite).await;
    let service = daemon.actor("service");
    record(
        &service,
        vec![event("new", "c", "1"), event("old", "c", "1")],
    )
    .await
    .expect("RecordUsage");
    drop(service);
    let old = "INSERT INTO usage_aggregates SELECT tenant, span, begins_at - 5184000000000, 'old', credential_id, \
               principal_id, 1, 0, 0, 0, 0, last_used_at FROM usage_aggregates; \
               UPDATE usage_events SET keep_until = 1 WHERE event_id = 'old'";
    daemon.execute(old).await;
    // It is looked for at the start.
    daemon.restart().await;
    let until = Instant::now() + PATIENCE;
    let spans = "SELECT span FROM usage_aggregates WHERE provider = 'old' ORDER BY span";
    while daemon.rows(spans).await != [["DAY"], ["HOUR"]] {
        assert!(Instant::now() < until, "{:?}", daemon.rows(spans).await);
        sleep(Duration::from_millis(100)).await;
    }
    let events = daemon.rows("SELECT event_id FROM usage_events").await;
    assert_eq!(events, [["new"]]);
    let kept = "SELECT COUNT(*) FROM usage_aggregates WHERE provider = 'openai'";
    assert_eq!(daemon.rows(kept).await, [["3"]]);
    daemon.stop().await;
}

// R-USE-1: how long an event may be sent again depends on whether it says when it was.
#[tokio::test]
async fn an_event_that_says_when_it_was_never_counts_twice() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let service = daemon.actor("service");
    let timed = UsageEvent {
        time: Some(ago(60)),
        ..event("timed", "c", "1")
    };
    let untimed = event("untimed", "c", "1");
    let tell = async |event: &UsageEvent| {
        let results = record(&service, vec![event.clone()]).await;
        reasons(&results.expect("RecordUsage"))[0].to_owned()
    };
    for event in [&timed, &untimed] {
        assert_eq!(tell(event).await, "recorded");
        assert_eq!(tell(event).await, "duplicate");
    }
    // Ids are kept for longer than an event of that time is taken ...
    let kept = "SELECT event_id, keep_until FROM usage_events ORDER BY event_id";
    let retention = 7 * 24 * 60 * 60;
    let now = claviger::clock::Clock::System.now().seconds();
    for row in daemon.rows(kept).await {
        let until: i64 = row[1].parse().expect("a time");
        assert!(until / 1_000_000 > now + retention, "{row:?}");
    }
    // ... so once an id is forgotten, what says when it was is refused. What does not is taken for another use.
    daemon.execute("DELETE FROM usage_events").await;
    let long_ago = UsageEvent {
        time: Some(ago(retention + 60)),
        ..timed
    };
    assert_eq!(tell(&long_ago).await, "INVALID_FIELD");
    assert_eq!(tell(&untimed).await, "recorded");
    daemon.stop().await;
}

// R-USE-1, R-ACL-3: the id of a credential is the recorder's word for it. It need not be in the vault, and the name of
// another tenant's says nothing about that one.
#[tokio::test]
async fn a_credential_is_whatever_its_recorder_calls_it() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let service = daemon.actor("service");
    let results = record(&service, vec![event("1", "kept-elsewhere", "2")]).await;
    assert_eq!(reasons(&results.expect("RecordUsage")), ["recorded"]);
    let results = record(
        &daemon.actor("other"),
        vec![event("1", "kept-elsewhere", "5")],
    )
    .await;
    assert_eq!(reasons(&results.expect("RecordUsage")), ["recorded"]);
    let totals = report(&daemon, by_credential(UsageSpan::Day)).await.totals;
    assert_eq!(totals.expect("totals").cost, "2", "of acme alone");
    daemon.stop().await;
}
