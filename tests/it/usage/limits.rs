//! Limits and budgets.

use claviger::grpc::proto::*;
use futures_util::future::join_all;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{event, record};
use crate::daemon::{Actor, Daemon, Engine, Setup, reason};

fn acquire(credential: &str) -> AcquireUsageRequest {
    AcquireUsageRequest {
        provider: "openai".into(),
        credential_id: credential.into(),
        ..Default::default()
    }
}

async fn ask(who: &Actor, request: AcquireUsageRequest) -> Result<AcquireUsageResponse, Status> {
    let answer = who.usage().acquire_usage(request).await?;
    Ok(answer.into_inner())
}

fn limit(subject_type: LimitSubject, subject: &str) -> UsageLimit {
    UsageLimit {
        subject_type: subject_type.into(),
        subject: subject.into(),
        ..Default::default()
    }
}

fn rate(subject_type: LimitSubject, subject: &str, rate: i64) -> UsageLimit {
    UsageLimit {
        requests_per_minute: Some(rate),
        ..limit(subject_type, subject)
    }
}

async fn set(daemon: &Daemon, limit: UsageLimit) -> Result<UsageLimit, Status> {
    let request = SetLimitRequest {
        tenant: "acme".into(),
        limit: Some(limit),
    };
    let answer = daemon.actor("admin").usage().set_limit(request).await?;
    Ok(answer.into_inner().limit.expect("a limit"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_holds_against_everybody_at_once_on_sqlite() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let one = daemon.actor("service");
    let other = daemon.actor_with(Some(daemon.leaf("service")));
    a_window_holds(&daemon, &[one, other]).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_holds_across_replicas() {
    let daemon = Setup::new(Engine::Postgres).for_two().start().await;
    let second = daemon.second(None).await;
    let clients = [daemon.actor("service"), second.actor("service")];
    a_window_holds(&daemon, &clients).await;
    second.stop().await;
    daemon.stop().await;
}

// R-USE-2
async fn a_window_holds(daemon: &Daemon, clients: &[Actor]) {
    const LIMIT: usize = 10;
    set(daemon, rate(LimitSubject::Credential, "c", LIMIT as i64))
        .await
        .expect("SetLimit");
    let began = Instant::now();
    let asked = (0..60).map(|n| ask(&clients[n % clients.len()], acquire("c")));
    let answers = join_all(asked).await;
    let elapsed = began.elapsed();
    let admitted = answers.iter().filter(|answer| answer.is_ok()).count();
    // A machine that needs minutes for this admits the limit in each.
    let minutes = 1 + elapsed.as_secs() as usize / 60;
    assert!(
        (LIMIT..=LIMIT * minutes).contains(&admitted),
        "{admitted} in {elapsed:?}"
    );
    for status in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert_eq!(reason(status), "RATE_LIMITED");
        let delay = status
            .get_details_retry_info()
            .and_then(|info| info.retry_delay);
        assert!(
            delay.is_some_and(|delay| delay.as_secs() <= 61),
            "{status:?}"
        );
    }
    let mut left: Vec<_> = answers
        .into_iter()
        .flatten()
        .map(|a| a.remaining_requests)
        .collect();
    left.sort_unstable();
    if minutes == 1 {
        assert_eq!(left, (0..LIMIT as i64).collect::<Vec<_>>());
    }
}

// R-USE-2
#[tokio::test]
async fn what_one_window_refuses_the_others_do_not_count() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let service = daemon.actor("service");
    let tight = daemon.id_of("service").await;
    set(&daemon, rate(LimitSubject::Principal, &tight, 3))
        .await
        .expect("SetLimit");
    set(&daemon, rate(LimitSubject::Tenant, "", 1000))
        .await
        .expect("SetLimit");
    for left in [2, 1, 0] {
        let answer = ask(&service, acquire("c")).await.expect("admitted");
        assert_eq!(answer.remaining_requests, left);
    }
    for _ in 0..5 {
        let refused = ask(&service, acquire("c"))
            .await
            .expect_err("the principal's window");
        assert!(refused.message().contains(&tight), "{refused}");
    }
    let slots = "SELECT subject_kind, slots FROM usage_windows ORDER BY subject_kind";
    let sums = daemon.rows(slots).await.into_iter().map(|row| {
        let counts = row[1].split(',').filter_map(|slot| slot.split_once(':'));
        let sum: i64 = counts
            .map(|(_, count)| count.parse::<i64>().expect("a count"))
            .sum();
        (row[0].clone(), sum)
    });
    let sums: Vec<_> = sums.collect();
    let three = |kind: &str| (kind.to_owned(), 3);
    assert_eq!(
        sums,
        [three("CREDENTIAL"), three("PRINCIPAL"), three("TENANT")]
    );
    // More than the limit never fits: nobody is told to wait.
    let never = AcquireUsageRequest {
        requests: 4,
        ..acquire("d")
    };
    let refused = ask(&service, never).await.expect_err("more than the limit");
    assert_eq!(reason(&refused), "RATE_LIMITED");
    assert!(refused.get_details_retry_info().is_none());
    daemon.stop().await;
}

// R-USE-2: 100 requests a minute where nobody said anything else.
#[tokio::test]
async fn a_credential_has_a_limit_without_being_given_one() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let service = daemon.actor("service");
    let many = |credential: &str, requests| AcquireUsageRequest {
        requests,
        ..acquire(credential)
    };
    let left = async |request| ask(&service, request).await.map(|a| a.remaining_requests);
    assert_eq!(left(many("c", 99)).await.expect("admitted"), 1);
    assert_eq!(
        reason(&left(many("c", 2)).await.expect_err("over")),
        "RATE_LIMITED"
    );
    // Another credential, and a call without any, have windows of their own.
    assert_eq!(left(many("d", 100)).await.expect("admitted"), 0);
    assert_eq!(left(many("", 40)).await.expect("admitted"), 60);
    // A limit of one's own holds at once, and so does its end.
    set(&daemon, rate(LimitSubject::Credential, "c", 150))
        .await
        .expect("SetLimit");
    assert_eq!(left(many("c", 2)).await.expect("admitted"), 49);
    let list = ListLimitsRequest {
        tenant: "acme".into(),
        ..Default::default()
    };
    let listed = daemon.actor("auditor").usage().list_limits(list).await;
    let listed = listed.expect("ListLimits").into_inner();
    assert_eq!(listed.default_requests_per_minute, 100);
    assert_eq!(listed.limits.len(), 1);
    assert_eq!(listed.limits[0].requests_per_minute, Some(150));
    let delete = DeleteLimitRequest {
        tenant: "acme".into(),
        subject_type: LimitSubject::Credential.into(),
        subject: "c".into(),
    };
    let mut admin = daemon.actor("admin").usage();
    admin
        .delete_limit(delete.clone())
        .await
        .expect("DeleteLimit");
    assert_eq!(
        reason(&left(many("c", 1)).await.expect_err("over")),
        "RATE_LIMITED"
    );
    let gone = admin.delete_limit(delete).await.expect_err("deleted");
    assert_eq!(reason(&gone), "LIMIT_NOT_FOUND");
    for wrong in [many("c", -1), many("c", 10_001)] {
        assert_eq!(
            reason(&left(wrong).await.expect_err("wrong")),
            "INVALID_FIELD"
        );
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_spent_budget_refuses_on_sqlite() {
    a_spent_budget_refuses(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_spent_budget_refuses_on_postgres() {
    a_spent_budget_refuses(Engine::Postgres).await;
}

// R-USE-2
async fn a_spent_budget_refuses(engine: Engine) {
    let daemon = Daemon::start(engine).await;
    let service = daemon.actor("service");
    let budget = |soft: &str, hard: &str| {
        Some(Budget {
            soft: soft.into(),
            hard: hard.into(),
        })
    };
    let monthly = UsageLimit {
        month: budget("5", "10"),
        ..limit(LimitSubject::Credential, "c")
    };
    set(&daemon, monthly).await.expect("SetLimit");
    let tell = async |id: &str, cost: &str| {
        let recorded = record(&service, vec![event(id, "c", cost)]).await;
        recorded.expect("RecordUsage");
    };
    let with = |estimated_cost: &str| AcquireUsageRequest {
        estimated_cost: estimated_cost.into(),
        ..acquire("c")
    };
    assert!(
        ask(&service, with("10"))
            .await
            .expect("all of it")
            .warnings
            .is_empty()
    );
    tell("one", "5.000000001").await;
    let answer = ask(&service, with("4.999999999")).await.expect("the rest");
    let [warning] = &answer.warnings[..] else {
        panic!("{answer:?}");
    };
    assert_eq!(
        (warning.period.as_str(), warning.spent.as_str()),
        ("month", "5.000000001")
    );
    let over = ask(&service, with("5"))
        .await
        .expect_err("more than is left");
    assert_eq!(reason(&over), "BUDGET_EXHAUSTED");
    tell("two", "4.999999999").await;
    let spent = ask(&service, acquire("c")).await.expect_err("spent");
    assert_eq!(reason(&spent), "BUDGET_EXHAUSTED");
    let delay = spent
        .get_details_retry_info()
        .and_then(|info| info.retry_delay);
    assert!(delay.is_some_and(|delay| delay.as_secs() <= 31 * 24 * 60 * 60));
    // Nobody else's money.
    ask(&service, acquire("d"))
        .await
        .expect("another credential");
    ask(&daemon.actor("other"), acquire("c"))
        .await
        .expect("another tenant");
    for estimate in ["-1", "NaN", "1e5"] {
        let wrong = ask(&service, with(estimate)).await.expect_err("no amount");
        assert_eq!(reason(&wrong), "INVALID_FIELD");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn limits_that_are_none_are_refused() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let money = |soft: &str, hard: &str| UsageLimit {
        day: Some(Budget {
            soft: soft.into(),
            hard: hard.into(),
        }),
        ..limit(LimitSubject::Credential, "c")
    };
    for wrong in [
        limit(LimitSubject::Credential, "c"),
        rate(LimitSubject::Unspecified, "c", 5),
        rate(LimitSubject::Credential, "", 5),
        rate(LimitSubject::Credential, "a|b", 5),
        rate(LimitSubject::Tenant, "acme", 5),
        rate(LimitSubject::Provider, "claviger", 5),
        rate(LimitSubject::Credential, "c", 0),
        rate(LimitSubject::Credential, "c", -5),
        rate(LimitSubject::Credential, "c", 1_000_001),
        money("-1", ""),
        money("", "NaN"),
        money("2", "1"),
        money("", ""),
    ] {
        let refused = set(&daemon, wrong.clone()).await.expect_err("no limit");
        assert_eq!(reason(&refused), "INVALID_FIELD", "{wrong:?}");
    }
    let other = daemon.id_of("other").await;
    let foreign = set(&daemon, rate(LimitSubject::Principal, &other, 5)).await;
    assert_eq!(
        reason(&foreign.expect_err("of globex")),
        "PRINCIPAL_NOT_FOUND"
    );
    assert!(
        daemon
            .rows("SELECT subject FROM usage_limits")
            .await
            .is_empty()
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_clock_that_was_ahead_locks_nobody_out_on_sqlite() {
    a_clock_that_was_ahead_locks_nobody_out(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_clock_that_was_ahead_locks_nobody_out_on_postgres() {
    a_clock_that_was_ahead_locks_nobody_out(Engine::Postgres).await;
}

// R-USE-2: the database's clock was a day ahead for a moment. What was admitted then counts for a minute, and not for a day.
async fn a_clock_that_was_ahead_locks_nobody_out(engine: Engine) {
    let daemon = Daemon::start(engine).await;
    let service = daemon.actor("service");
    set(&daemon, rate(LimitSubject::Credential, "c", 3))
        .await
        .expect("SetLimit");
    ask(&service, acquire("c")).await.expect("admitted");
    let now = claviger::clock::Clock::System.now().seconds();
    let ahead = now + 24 * 60 * 60;
    daemon
        .execute(&format!("UPDATE usage_windows SET slots = '{ahead}:3'"))
        .await;
    let refused = ask(&service, acquire("c")).await.expect_err("all are used");
    assert_eq!(reason(&refused), "RATE_LIMITED");
    let delay = refused
        .get_details_retry_info()
        .and_then(|info| info.retry_delay);
    assert!(
        delay.is_some_and(|delay| delay.as_secs() <= 61),
        "{delay:?}"
    );
    let slots = "SELECT slots FROM usage_windows WHERE subject = 'c'";
    let kept = daemon.rows(slots).await[0][0].clone();
    let (second, count) = kept.split_once(':').expect("one second");
    assert_eq!(count, "3");
    let second: i64 = second.parse().expect("a second");
    assert!((now..ahead - 60).contains(&second), "{kept}");
    // A refusal does not count as of now again.
    ask(&service, acquire("c")).await.expect_err("still used");
    assert_eq!(daemon.rows(slots).await[0][0], kept);
    daemon.stop().await;
}
