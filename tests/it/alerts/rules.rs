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
    let daemon = Setup::new(Engine::Postgres).for_two().start().await;
    let second = daemon.second(None).await;
    each_threshold_is_told_once(&daemon).await;
    second.stop().await;
    daemon.stop().await;
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
