//! Writes, now and then, when the versions and the API keys that this replica saw used were last used. On every replica.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use crate::{clients::ApiKeys, keys::Keys};

/// Writes every `every` until `shutdown` ends.
pub async fn flush_uses(keys: Arc<Keys>, every: Duration, shutdown: impl Future<Output = ()>) {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            _ = tick.tick() => {}
        }
        if let Err(error) = keys.flush_uses().await {
            tracing::warn!(%error, "last uses of key versions not written; they are kept for later");
        }
    }
}

/// As `flush_uses`, for API keys.
pub async fn flush_api_key_uses(
    api_keys: Arc<ApiKeys>,
    every: Duration,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            _ = tick.tick() => {}
        }
        if let Err(error) = api_keys.flush_uses().await {
            tracing::warn!(%error, "last uses of API keys not written; they are kept for later");
        }
    }
}
