//! Alerts: usage is looked at and new alerts are routed by the leader; deliveries are carried out on every replica.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use super::Work;
use crate::{alerts::Alerts, error::Result, store::Term};

/// Time between two looks at what is to be delivered.
const LOOK: Duration = Duration::from_secs(1);

/// Raises what the usage calls for, and ends alerts that are over. Errors: LEASE_LOST.
pub async fn look_at_usage(work: &Work, term: &Term) -> Result<()> {
    work.alerts.look_at_usage(term).await
}

/// Has new alerts delivered. Errors: LEASE_LOST.
pub async fn route(work: &Work, term: &Term) -> Result<()> {
    work.alerts.route(term).await
}

/// Carries deliveries out until `shutdown` ends.
pub async fn deliver_alerts(alerts: Arc<Alerts>, shutdown: impl Future<Output = ()>) {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            _ = tick.tick() => {}
        }
        // Not cut by the shutdown: an attempt is short, and cut off it would be made again.
        if let Err(error) = alerts.deliver_due().await {
            tracing::warn!(%error, "alerts not delivered; they are at the next look");
        }
    }
}
