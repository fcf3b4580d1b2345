//! Alerts, from usage to the mailbox. R-USE-3, R-USE-4.

pub mod channels;
pub mod mail;
pub mod receiver;
mod rules;

use std::collections::BTreeMap;

use claviger::grpc::proto::*;
use tokio::time::{Duration, Instant, sleep};

use crate::daemon::{Daemon, PATIENCE};

/// The alerts of a tenant, newest first.
async fn alerts(daemon: &Daemon, tenant: &str) -> Vec<Alert> {
    let request = ListAlertsRequest {
        tenant: tenant.into(),
        ..Default::default()
    };
    let answer = daemon.actor("auditor").alerts().list_alerts(request).await;
    answer.expect("ListAlerts").into_inner().alerts
}

/// How many alerts of each kind a tenant has.
async fn kinds(daemon: &Daemon, tenant: &str) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for alert in alerts(daemon, tenant).await {
        *kinds.entry(alert.kind).or_insert(0) += 1;
    }
    kinds
}

/// Waits until `condition` holds.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < until, "not in time: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Channel, state and last error of every delivery of tenant acme.
async fn deliveries(daemon: &Daemon) -> Vec<(String, DeliveryState, String)> {
    let request = ListDeliveriesRequest {
        tenant: "acme".into(),
        ..Default::default()
    };
    let answer = daemon
        .actor("auditor")
        .alerts()
        .list_deliveries(request)
        .await;
    let deliveries = answer.expect("ListDeliveries").into_inner().deliveries;
    let parts = |d: AlertDelivery| (d.channel.clone(), d.state(), d.last_error);
    deliveries.into_iter().map(parts).collect()
}

/// An alert of tenant acme, raised behind the daemon's back.
async fn raise(daemon: &Daemon, kind: &str) -> String {
    let id = uuid::Uuid::now_v7().to_string();
    let now = claviger::clock::Clock::System.now().micros();
    daemon
        .execute(&format!(
            "INSERT INTO alerts (id, tenant, kind, entity, entity_id, text, state, raised_at, window_key) \
             VALUES ('{id}', 'acme', '{kind}', 'credential', 'c', 'something is wrong: ü', 'FIRING', {now}, '{id}')"
        ))
        .await;
    id
}
