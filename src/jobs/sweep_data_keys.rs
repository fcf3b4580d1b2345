//! Wipes unwrapped data keys when their time is over, also those that nobody asks for again. On every replica.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use crate::keys::Keys;

/// How much longer than its time a data key is in memory at most. It is not used in that while.
const EVERY: Duration = Duration::from_secs(5);

/// Sweeps until `shutdown` ends.
pub async fn sweep_data_keys(keys: Arc<Keys>, shutdown: impl Future<Output = ()>) {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            _ = tick.tick() => keys.sweep_data_keys(),
        }
    }
}
