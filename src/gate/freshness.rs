//! The freshness lease: how recently this replica has seen the change feed (R-EMER-3).
//!
//! Caches are only as true as the feed. A replica that has not read it for `max_staleness`, or never, refuses to use
//! keys, so a freeze or revocation holds everywhere within that time, also where the database cannot be reached.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::error::{Error, Reason, Result};

/// When the feed was last seen. Reading it costs one atomic load and one clock reading.
pub struct Freshness {
    start: Instant,
    /// One more than the milliseconds from `start` to the beginning of the last successful read of the feed; 0 before.
    seen: AtomicU64,
    max_staleness: Duration,
}

impl Freshness {
    /// A lease that begins with the first `observe`.
    pub fn new(max_staleness: Duration) -> Self {
        Self {
            start: Instant::now(),
            seen: AtomicU64::new(0),
            max_staleness,
        }
    }

    /// How long the lease lasts.
    pub const fn max_staleness(&self) -> Duration {
        self.max_staleness
    }

    /// The feed was read by a query that began at `began`.
    pub fn observe(&self, began: Instant) {
        let millis = began.saturating_duration_since(self.start).as_millis();
        let seen = u64::try_from(millis).unwrap_or(u64::MAX).saturating_add(1);
        self.seen.fetch_max(seen, Ordering::SeqCst);
    }

    /// Errors: REPLICA_STALE when the lease is over, or has not begun.
    pub fn check(&self) -> Result<()> {
        self.check_at(Instant::now())
    }

    fn check_at(&self, now: Instant) -> Result<()> {
        let seen = self.seen.load(Ordering::SeqCst).checked_sub(1);
        let age = seen.map(|seen| {
            now.saturating_duration_since(self.start)
                .saturating_sub(Duration::from_millis(seen))
        });
        if age.is_some_and(|age| age <= self.max_staleness) {
            return Ok(());
        }
        Err(Error::new(
            Reason::ReplicaStale,
            "this replica has lost sight of the database and refuses to use keys; retry on another one",
        )
        .retry_after(Duration::from_secs(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // R-EMER-3
    #[test]
    fn the_lease_counts_from_the_beginning_of_the_last_read() {
        let lease = Freshness::new(Duration::from_secs(5));
        let began = lease.start;
        let valid = |millis| {
            lease
                .check_at(began + Duration::from_millis(millis))
                .is_ok()
        };
        assert!(!valid(0), "nothing was read yet");
        lease.observe(began);
        assert!(valid(5000));
        assert!(!valid(5001));
        lease.observe(began);
        assert!(!valid(5001), "an old read renews nothing");
        lease.observe(began + Duration::from_secs(5));
        assert!(valid(10_000));
    }
}
