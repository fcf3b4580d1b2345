//! What is told, once in each window, and when it is over.

use claviger::grpc::proto::*;
use tonic::Code;

use super::{alerts, kinds, until};
use crate::{
    daemon::{Daemon, Engine, Setup, reason},
    usage::{ago, event, record},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_threshold_is_told_once_on_sqlite() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    each_threshold_is_told_once(&daemon).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_threshold_is_told_once_by_two_daemons() {
    let mut daemon = Setup::new(Engine::Postgres).for_two().start().await;
    let mut second = daemon.second(None).await;
    each_threshold_is_told_once(&daemon).await;
    // Whoever has told all of it dies, and the other one looks at the same windows.
    let (leader, other) = match leads(&daemon).await {
        true => (&mut daemon, &second),
        false => (&mut second, &daemon),
    };
    leader.kill().await;
    until("another leader", async || leads(other).await).await;
    let dearer = vec![event("l6", "dearer", "10.5"), event("l7", "dear", "1")];
    record(&other.actor("service"), dearer)
        .await
        .expect("RecordUsage");
    until("one alert more", async || {
        kinds(other, "acme").await.get("COST_RATE") == Some(&2)
    })
    .await;
    let once = |kind: &str| (kind.to_owned(), 1);
    let mut found = kinds(other, "acme").await;
    found.remove("COST_RATE");
    assert_eq!(
        found.into_iter().collect::<Vec<_>>(),
        [
            once("BUDGET_EXHAUSTED"),
            once("BUDGET_WARNING"),
            once("ERROR_RATE"),
            once("REQUEST_RATE")
        ]
    );
    leader.restart().await;
    second.stop().await;
    daemon.stop().await;
}

async fn leads(daemon: &Daemon) -> bool {
    let metrics = daemon.ops_get("/metrics").await.text();
    metrics
        .lines()
        .any(|line| line == "claviger_scheduler_leader 1")
}

// R-USE-3
async fn each_threshold_is_told_once(daemon: &Daemon) {
    let service = daemon.actor("service");
    let many = |id: &str, credential: &str, requests, errors| UsageEvent {
        requests: Some(requests),
        errors,
        time: Some(ago(60)),
        ..event(id, credential, "")
    };
    let quiet = vec![
        many("q1", "fine", 100, 5),
        many("q2", "few", 19, 19),
        event("q3", "cheap", "10"),
    ];
    let loud = vec![
        many("l1", "failing", 50, 3),
        many("l2", "busy", 101, 0),
        event("l3", "dear", "10.000000001"),
    ];
    record(&service, quiet).await.expect("RecordUsage");
    record(&service, loud).await.expect("RecordUsage");
    let three = [("COST_RATE", 1), ("ERROR_RATE", 1), ("REQUEST_RATE", 1)];
    let three = three.map(|(kind, n)| (kind.to_owned(), n));
    until("three alerts", async || {
        kinds(daemon, "acme").await.len() == 3
    })
    .await;
    // More of the same in the same windows changes nothing.
    let again = vec![many("l4", "failing", 1, 1), event("l5", "dear", "3")];
    record(&service, again).await.expect("RecordUsage");
    raise_something_else(daemon).await;
    let mut found = kinds(daemon, "acme").await;
    found.remove("BUDGET_WARNING");
    found.remove("BUDGET_EXHAUSTED");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), three);
    let about = alerts(daemon, "acme").await;
    let about = |kind: &str| {
        let found = about.iter().find(|alert| alert.kind == kind);
        found.unwrap_or_else(|| panic!("no {kind}"))
    };
    assert_eq!(about("ERROR_RATE").entity_id, "failing");
    assert_eq!(about("REQUEST_RATE").entity_id, "busy");
    assert_eq!(about("COST_RATE").entity_id, "dear");
    assert_eq!(about("COST_RATE").entity, "credential");
}

/// Budgets are looked at in the same round as the rest: once they are told, the round has been.
async fn raise_something_else(daemon: &Daemon) {
    let limit = UsageLimit {
        subject_type: LimitSubject::Credential.into(),
        subject: "dear".into(),
        month: Some(Budget {
            soft: "1".into(),
            hard: "2".into(),
        }),
        ..Default::default()
    };
    let request = SetLimitRequest {
        tenant: "acme".into(),
        limit: Some(limit),
    };
    let set = daemon.actor("admin").usage().set_limit(request).await;
    set.expect("SetLimit");
    until("the budget is told", async || {
        let kinds = kinds(daemon, "acme").await;
        kinds.get("BUDGET_WARNING") == Some(&1) && kinds.get("BUDGET_EXHAUSTED") == Some(&1)
    })
    .await;
}

// R-USE-3: five failed authentications.
#[tokio::test]
async fn five_failed_authentications_are_told() {
    let daemon = Setup::new(Engine::Sqlite)
        .append("[usage]\nflush_interval_seconds = 1")
        .start()
        .await;
    let stranger = daemon.actor("stranger");
    // Ten, so that five are on the same side of the end of a window.
    for _ in 0..10 {
        let refused = stranger.tokens().get_jwks(GetJwksRequest {}).await;
        assert_eq!(
            refused.expect_err("a stranger").code(),
            Code::Unauthenticated
        );
    }
    until("the alert", async || {
        kinds(&daemon, "system")
            .await
            .contains_key("FAILED_AUTHENTICATIONS")
    })
    .await;
    let all = alerts(&daemon, "system").await;
    let alert = all.iter().rfind(|a| a.kind == "FAILED_AUTHENTICATIONS");
    let alert = alert.expect("an alert");
    assert_eq!(
        (alert.entity.as_str(), alert.entity_id.as_str()),
        ("source", "127.0.0.1")
    );
    // Anybody can make such rows, so they are there by the minute alone, which are the first to go.
    let spans = "SELECT DISTINCT span FROM usage_aggregates WHERE provider = 'claviger-authn'";
    assert_eq!(daemon.rows(spans).await, [["MINUTE"]]);
    // It is no usage of anybody.
    let report = GetUsageReportRequest {
        tenant: "system".into(),
        begin_time: Some(ago(3600)),
        group_by: vec![UsageGroup::Provider.into()],
        ..Default::default()
    };
    let report = crate::usage::report(&daemon, report).await;
    assert!(
        report
            .rows
            .iter()
            .all(|row| row.provider != "claviger-authn"),
        "{report:?}"
    );
    daemon.stop().await;
}

// R-USE-3: firing, then resolved; and somebody takes care of it.
#[tokio::test]
async fn an_alert_is_over_with_its_window_or_when_it_is_mended() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let key = daemon
        .key("acme", "orders", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    daemon
        .execute("UPDATE keys SET next_rotation_at = 1 WHERE name = 'orders'")
        .await;
    let service = daemon.actor("service");
    let dear = vec![event("e", "dear", "11")];
    record(&service, dear).await.expect("RecordUsage");
    until("both are raised", async || {
        kinds(&daemon, "acme").await.len() == 2
    })
    .await;
    let list = async |state: AlertState| {
        let request = ListAlertsRequest {
            tenant: "acme".into(),
            state: state.into(),
            ..Default::default()
        };
        let answer = daemon.actor("auditor").alerts().list_alerts(request).await;
        let alerts = answer.expect("ListAlerts").into_inner().alerts;
        let mut kinds: Vec<_> = alerts.into_iter().map(|alert| alert.kind).collect();
        kinds.sort();
        kinds
    };
    assert_eq!(list(AlertState::Firing).await, ["COST_RATE", "KEY_OVERDUE"]);
    daemon
        .execute(&format!(
            "UPDATE keys SET next_rotation_at = 9000000000000000 WHERE id = '{}'; \
             UPDATE alerts SET ends_at = 1 WHERE kind = 'COST_RATE'",
            key.id
        ))
        .await;
    until("both are over", async || {
        list(AlertState::Resolved).await == ["COST_RATE", "KEY_OVERDUE"]
    })
    .await;
    let alert = alerts(&daemon, "acme").await.remove(0);
    let ack = AckAlertRequest {
        tenant: "acme".into(),
        alert_id: alert.id.clone(),
        note: "rotated".into(),
    };
    let mut officer = daemon.actor("officer").alerts();
    let answer = officer
        .ack_alert(ack.clone())
        .await
        .expect("AckAlert")
        .into_inner();
    let acked = answer.alert.expect("an alert");
    assert_eq!(acked.acked_by, daemon.id_of("officer").await);
    assert_eq!(acked.ack_note, "rotated");
    let twice = officer
        .ack_alert(ack.clone())
        .await
        .expect_err("acknowledged");
    assert_eq!(reason(&twice), "ALERT_STATE");
    // R-ACL-3: an alert of another tenant is none.
    let elsewhere = AckAlertRequest {
        tenant: "globex".into(),
        ..ack
    };
    let hidden = officer.ack_alert(elsewhere).await.expect_err("of acme");
    assert_eq!(reason(&hidden), "ALERT_NOT_FOUND");
    let open = ListAlertsRequest {
        tenant: "acme".into(),
        unacknowledged: true,
        ..Default::default()
    };
    let open = officer
        .list_alerts(open)
        .await
        .expect("ListAlerts")
        .into_inner();
    assert_eq!(open.alerts.len(), 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_addresses_make_few_alerts_on_sqlite() {
    many_addresses_make_few_alerts(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_addresses_make_few_alerts_on_postgres() {
    many_addresses_make_few_alerts(Engine::Postgres).await;
}

// R-USE-3: somebody with many addresses does not bury the mailbox; the worst are told, and how many more there are.
async fn many_addresses_make_few_alerts(engine: Engine) {
    const WINDOW: i64 = 5 * 60 * 1_000_000;
    let daemon = Daemon::start(engine).await;
    let now = claviger::clock::Clock::System.now().micros();
    // Windows that are over are looked at for a while; this one is, or will be in a moment.
    let at = now.div_euclid(WINDOW) * WINDOW - 60_000_000;
    let mut rows = Vec::new();
    for n in 0..60 {
        let errors = 5 + n;
        rows.push(format!(
            "('system', 'MINUTE', {at}, 'claviger-authn', '', '2001:db8:0:{n:x}::', {errors}, {errors}, 0, 0, 0, {at})"
        ));
    }
    let insert = format!(
        "INSERT INTO usage_aggregates (tenant, span, begins_at, provider, credential_id, principal_id, requests, errors, \
         tokens_in, tokens_out, cost, last_used_at) VALUES {}",
        rows.join(", ")
    );
    daemon.execute(&insert).await;
    let told = async |what: &str| {
        let sql = format!(
            "SELECT entity_id, text FROM alerts WHERE kind = 'FAILED_AUTHENTICATIONS' AND {what} ORDER BY id"
        );
        daemon.rows(&sql).await
    };
    until("the summary", async || {
        told("entity = 'tenant'").await.len() == 1
    })
    .await;
    let sources = told("entity = 'source'").await;
    assert_eq!(sources.len(), 20, "{sources:?}");
    let mut worst: Vec<_> = sources.into_iter().map(|row| row[0].clone()).collect();
    worst.sort();
    let mut expected: Vec<_> = (40..60).map(|n| format!("2001:db8:0:{n:x}::")).collect();
    expected.sort();
    assert_eq!(worst, expected);
    let summary = told("entity = 'tenant'").await;
    assert!(summary[0][1].starts_with("40 more"), "{summary:?}");
    // A few who were slower than those change nothing.
    let late = insert.replace("2001:db8:0:", "2001:db8:1:");
    daemon.execute(&late).await;
    let dear = vec![event("e", "dear", "11")];
    record(&daemon.actor("service"), dear)
        .await
        .expect("RecordUsage");
    until("another look", async || {
        kinds(&daemon, "acme").await.contains_key("COST_RATE")
    })
    .await;
    assert_eq!(told("entity <> 'tenant'").await.len(), 20);
    assert_eq!(told("entity = 'tenant'").await.len(), 1);
    daemon.stop().await;
}

async fn set_budget(daemon: &Daemon, credential: &str, hard: &str) {
    let budget = Some(Budget {
        hard: hard.into(),
        ..Default::default()
    });
    let limit = UsageLimit {
        subject_type: LimitSubject::Credential.into(),
        subject: credential.into(),
        day: budget,
        ..Default::default()
    };
    let request = SetLimitRequest {
        tenant: "acme".into(),
        limit: Some(limit),
    };
    let set = daemon.actor("admin").usage().set_limit(request).await;
    set.expect("SetLimit");
}

/// Credentials whose budget is told to be exhausted.
async fn exhausted(daemon: &Daemon) -> Vec<String> {
    let all = alerts(daemon, "acme").await.into_iter();
    let exhausted = all.filter(|alert| alert.kind == "BUDGET_EXHAUSTED");
    let mut names: Vec<_> = exhausted.map(|alert| alert.entity_id).collect();
    names.sort();
    names
}

// R-USE-2, R-USE-3: what was spent at the end of a period, or told late, counts for that period.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_of_a_period_that_is_over_is_told_of() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    for credential in ["late", "cheap"] {
        set_budget(&daemon, credential, "10").await;
    }
    let days_ago = |id: &str, credential: &str, days: i64, cost: &str| UsageEvent {
        time: Some(ago(days * 24 * 60 * 60)),
        ..event(id, credential, cost)
    };
    // Six on each of two days are no ten on any.
    let told = vec![
        days_ago("1", "late", 2, "10"),
        days_ago("2", "cheap", 2, "6"),
        days_ago("3", "cheap", 3, "6"),
    ];
    record(&daemon.actor("service"), told)
        .await
        .expect("RecordUsage");
    until("the budget of that day", async || {
        exhausted(&daemon).await == ["late"]
    })
    .await;
    let state = "SELECT state FROM alerts WHERE kind = 'BUDGET_EXHAUSTED'";
    until("it is over, as its day is", async || {
        daemon.rows(state).await == [["RESOLVED"]]
    })
    .await;
    let marks = "SELECT subject FROM usage_budget_marks";
    until("all is looked at", async || {
        daemon.rows(marks).await.is_empty()
    })
    .await;
    assert_eq!(exhausted(&daemon).await, ["late"]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_beyond_the_integers_stop_nobody_elses_look_on_sqlite() {
    sums_beyond_the_integers_stop_nobody_elses_look(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_beyond_the_integers_stop_nobody_elses_look_on_postgres() {
    sums_beyond_the_integers_stop_nobody_elses_look(Engine::Postgres).await;
}

// R-USE-1, R-USE-3
async fn sums_beyond_the_integers_stop_nobody_elses_look(engine: Engine) {
    let daemon = Daemon::start(engine).await;
    let service = daemon.actor("service");
    let now = claviger::clock::Clock::System.now().micros();
    let most = 9_000_000_000_000_000_000_i64;
    for credential in ["huge", "dear"] {
        set_budget(&daemon, credential, "10").await;
    }
    for (span, length) in [("MINUTE", 60), ("HOUR", 3600), ("DAY", 86_400)] {
        let length = length * 1_000_000;
        let at = now.div_euclid(length) * length;
        for provider in ["one", "two"] {
            daemon
                .execute(&format!(
                    "INSERT INTO usage_aggregates (tenant, span, begins_at, provider, credential_id, principal_id, \
                     requests, errors, tokens_in, tokens_out, cost, last_used_at) \
                     VALUES ('acme', '{span}', {at}, '{provider}', 'huge', '', {most}, {most}, {most}, {most}, {most}, {at})"
                ))
                .await;
        }
    }
    // Added to, also where there is no more room.
    let mut more = event("1", "huge", "5");
    more.provider = "one".into();
    more.principal_id = String::new();
    let events = vec![more, event("2", "huge", "5"), event("3", "dear", "11")];
    let results = record(&service, events).await.expect("RecordUsage");
    assert_eq!(crate::usage::reasons(&results), ["recorded"; 3]);
    until("both budgets", async || {
        exhausted(&daemon).await == ["dear", "huge"]
    })
    .await;
    until("the rate of the other one", async || {
        let all = alerts(&daemon, "acme").await;
        let mut all = all.iter();
        all.any(|a| a.kind == "COST_RATE" && a.entity_id == "dear")
    })
    .await;
    let request = GetUsageReportRequest {
        tenant: "acme".into(),
        begin_time: Some(ago(3600)),
        group_by: vec![UsageGroup::Credential.into()],
        ..Default::default()
    };
    let totals = crate::usage::report(&daemon, request).await.totals;
    let totals = totals.expect("totals");
    assert_eq!(
        (totals.requests, totals.cost.as_str()),
        (most, "9000000000")
    );
    let mut full = event("4", "huge", "5");
    full.provider = "one".into();
    let results = record(&service, vec![full]).await.expect("RecordUsage");
    assert_eq!(crate::usage::reasons(&results), ["recorded"]);
    daemon.stop().await;
}

// R-USE-3: what fires, fires about something; nothing fires for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_alert_is_over_at_some_time() {
    const HOUR: i64 = 60 * 60 * 1_000_000;
    const DAY: i64 = 24 * HOUR;
    let daemon = Daemon::start(Engine::Sqlite).await;
    let now = claviger::clock::Clock::System.now().micros();
    let raise = async |kind: &str, age: i64, window_key: &str| {
        let (id, at) = (uuid::Uuid::now_v7(), now - age);
        daemon
            .execute(&format!(
                "INSERT INTO alerts (id, tenant, kind, entity, entity_id, text, state, raised_at, window_key) \
                 VALUES ('{id}', 'acme', '{kind}', 'thing', 'gone', 'something', 'FIRING', {at}, '{window_key}/{id}')"
            ))
            .await;
    };
    // What it was about is not so any more, or not there.
    for kind in [
        "KEY_OVERDUE",
        "ROTATION_WAITING",
        "API_KEY_EXPIRING",
        "CREDENTIAL_OVERDUE",
        "CREDENTIAL_DUE",
        "CREDENTIAL_OLD_VALUE_ALIVE",
        "DESTRUCTION_SCHEDULED",
        "TENANT_DESTRUCTION_SCHEDULED",
        "LEFTOVER_QUARANTINED",
    ] {
        raise(kind, 0, "over").await;
    }
    // While it lasts it is raised anew every hour, or every day; what has happened is old news after a week.
    for (kind, ages) in [
        ("KEK_LOST", [3 * HOUR, HOUR]),
        ("CHECKPOINT_FAILED", [3 * HOUR, HOUR]),
        ("TENANT_DESTRUCTION_STUCK", [3 * HOUR, HOUR]),
        ("DATA_KEY_UNDECRYPTABLE", [3 * DAY, DAY]),
        ("DESTRUCTION_CANCELLED", [8 * DAY, DAY]),
        ("CREDENTIAL_ROLLED_BACK", [8 * DAY, DAY]),
        ("A_KIND_OF_TOMORROW", [8 * DAY, DAY]),
    ] {
        raise(kind, ages[0], "over").await;
        raise(kind, ages[1], "still").await;
    }
    // An incident is open until somebody closes it.
    raise("KEY_COMPROMISED", 300 * DAY, "still").await;
    let firing = async |which: &str| {
        let sql = format!(
            "SELECT kind FROM alerts WHERE state = 'FIRING' AND window_key LIKE '{which}/%' ORDER BY kind"
        );
        daemon.rows(&sql).await.concat()
    };
    until("what is over is resolved", async || {
        firing("over").await.is_empty()
    })
    .await;
    assert_eq!(
        firing("still").await,
        [
            "A_KIND_OF_TOMORROW",
            "CHECKPOINT_FAILED",
            "CREDENTIAL_ROLLED_BACK",
            "DATA_KEY_UNDECRYPTABLE",
            "DESTRUCTION_CANCELLED",
            "KEK_LOST",
            "KEY_COMPROMISED",
            "TENANT_DESTRUCTION_STUCK",
        ]
    );
    daemon.stop().await;
}
