//! The freshness lease: how recently this replica has seen the change feed (R-EMER-3).
//!
//! Caches are only as true as the feed. A replica that has not read it for `max_staleness` refuses to use keys, so
//! a freeze or revocation holds everywhere within that time, also where the database cannot be reached.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::error::{Error, Reason, Result};

/// When the feed was last seen. Reading it costs one atomic load and one clock reading.
pub struct Freshness {
    start: Instant,
    /// Milliseconds from `start` to the beginning of the last successful read of the feed.
    seen: AtomicU64,
    max_staleness: Duration,
}

impl Freshness {
    /// A lease that begins now.
    pub fn new(max_staleness: Duration) -> Self {
        Self {
            start: Instant::now(),
            seen: AtomicU64::new(0),
            max_staleness,
        }
    }

    /// The feed was read by a query that began at `began`.
    pub fn observe(&self, began: Instant) {
        let millis = began.saturating_duration_since(self.start).as_millis();
        self.seen
            .fetch_max(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Errors: REPLICA_STALE when the lease is over.
    pub fn check(&self) -> Result<()> {
        let seen = Duration::from_millis(self.seen.load(Ordering::Relaxed));
        if self.start.elapsed().saturating_sub(seen) <= self.max_staleness {
            return Ok(());
        }
        Err(Error::new(
            Reason::ReplicaStale,
            "this replica has lost sight of the database and refuses to use keys; retry on another one",
        )
        .retry_after(Duration::from_secs(1)))
    }
}
