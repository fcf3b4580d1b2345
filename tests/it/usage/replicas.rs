//! Three replicas' worth of clients at once, and a replica that dies.

use std::collections::BTreeSet;

use claviger::{grpc::proto::*, model::usage::Cost};
use futures_util::future::join_all;

use super::{by_credential, event, record, report};
use crate::daemon::{Engine, Setup};

const CLIENTS: usize = 3;
const BATCHES: usize = 60;
const EVENTS: usize = 5;
/// Batches that every client sends before the third daemon is killed.
const BEFORE: usize = 20;

/// Three clients, two credentials, and no cost that a binary fraction could hold.
fn batch(client: usize, number: usize) -> Vec<UsageEvent> {
    let one = |n: usize| UsageEvent {
        requests: Some(3),
        errors: 1,
        tokens_in: 7,
        tokens_out: 11,
        ..event(
            format!("client-{client}/{number}/{n}"),
            ["a", "b"][n % 2],
            "0.000000017",
        )
    };
    (0..EVENTS).map(one).collect()
}

// R-USE-1: whatever is sent again, to whichever daemon, counts once; whatever was answered counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_daemons_count_exactly_when_one_of_them_is_killed() {
    let first = Setup::new(Engine::Postgres).for_two().start().await;
    let second = first.second(None).await;
    let mut third = first.beside("three", None).await;
    let daemons = [&first, &second, &third].map(|daemon| daemon.actor("service"));
    let tell = async |client: usize, daemon: usize, number: usize| {
        let results = record(&daemons[daemon], batch(client, number)).await;
        results.map(|results| {
            assert!(results.iter().all(|r| r.error.is_none()), "{results:?}");
            let is_new = |r: &&UsageResult| r.outcome() == UsageOutcome::Recorded;
            results.iter().filter(is_new).count()
        })
    };
    let all = |daemon: usize| {
        join_all(
            (0..BEFORE)
                .map(move |n| (daemon, n))
                .map(|(c, n)| tell(c, c, n)),
        )
    };
    let (one, two, three) = tokio::join!(all(0), all(1), all(2));
    for new in [one, two, three].into_iter().flatten() {
        assert_eq!(new.expect("RecordUsage"), EVENTS);
    }

    // What is on its way to the third when it dies has counted or has not: nobody can tell.
    let rest = |client: usize| {
        join_all(
            (BEFORE..BATCHES)
                .map(move |n| (client, n))
                .map(|(c, n)| tell(c, c, n)),
        )
    };
    let (one, two, three, ()) = tokio::join!(rest(0), rest(1), rest(2), third.kill());
    for new in one.into_iter().chain(two) {
        assert_eq!(new.expect("RecordUsage"), EVENTS);
    }
    let lost: BTreeSet<_> = (BEFORE..)
        .zip(three)
        .filter_map(|(number, answer)| answer.is_err().then_some(number))
        .collect();
    assert!(!lost.is_empty(), "it was killed too late for this test");

    // So everything is sent again, to the others.
    for client in 0..CLIENTS {
        let again = (0..BATCHES).map(|number| {
            let daemon = (client + 1 + number % 2) % 2;
            tell(client, daemon, number)
        });
        for (number, new) in join_all(again).await.into_iter().enumerate() {
            let new = new.expect("RecordUsage");
            let may_be_new = client == 2 && lost.contains(&number);
            assert!(
                new == 0 || (may_be_new && new == EVENTS),
                "{client} {number} {new}"
            );
        }
    }
    third.restart().await;
    let events = (CLIENTS * BATCHES * EVENTS) as i64;
    for daemon in [&first, &second, &third] {
        for span in [UsageSpan::Minute, UsageSpan::Hour, UsageSpan::Day] {
            let totals = report(daemon, by_credential(span))
                .await
                .totals
                .expect("totals");
            let cost: Cost = totals.cost.parse().expect("a cost");
            let found = [
                totals.requests,
                totals.errors,
                totals.tokens_in,
                totals.tokens_out,
                cost.nanos(),
            ];
            assert_eq!(found, [3, 1, 7, 11, 17].map(|n| n * events), "{span:?}");
        }
    }
    third.stop().await;
    second.stop().await;
    first.stop().await;
}
