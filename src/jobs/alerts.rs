//! Alerts: usage is looked at and new alerts are routed by the leader; deliveries are carried out on every replica.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

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

/// Carries deliveries out until `shutdown` ends, each channel in a task of its own: one that hangs is not waited for.
pub async fn deliver_alerts(alerts: Arc<Alerts>, shutdown: impl Future<Output = ()>) {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut rounds, mut busy) = (JoinSet::new(), HashMap::new());
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = rounds.join_next_with_id() => {
                busy.remove(&ended.map_or_else(|failed| failed.id(), |(id, ())| id));
                continue;
            }
            _ = tick.tick() => {}
        }
        let due = alerts.due_channels().await.unwrap_or_else(|error| {
            later(&error);
            Vec::new()
        });
        for channel in due {
            if !busy.values().any(|name| *name == channel) {
                let round = rounds.spawn(round(Arc::clone(&alerts), channel.clone()));
                busy.insert(round.id(), channel);
            }
        }
    }
    // Not cut by the shutdown: an attempt is short, and cut off it would be made again.
    while rounds.join_next().await.is_some() {}
}

async fn round(alerts: Arc<Alerts>, channel: String) {
    if let Err(error) = alerts.deliver_due(&channel).await {
        later(&error);
    }
}

fn later(error: &crate::error::Error) {
    tracing::warn!(%error, "alerts not delivered; they are at the next look");
}
