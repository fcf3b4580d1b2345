//! Writes, now and then, what this replica's own calls used. On every replica.

use std::sync::Arc;

use tokio::time::{MissedTickBehavior, interval};

use crate::{gate::Gate, usage::Usage};

/// Writes until `shutdown` ends.
pub async fn flush_usage(usage: Arc<Usage>, gate: Arc<Gate>, shutdown: impl Future<Output = ()>) {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut tick = interval(usage.config().flush_interval());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            _ = tick.tick() => {}
        }
        if let Err(error) = usage.flush(&gate).await {
            tracing::warn!(%error, "usage by the daemon's own calls not written; it is kept for later");
        }
    }
}
