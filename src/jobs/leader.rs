//! Which replica does the scheduled work (R-OPS-1): the holder of one lease row.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    clock::Clock,
    store::{Db, StoreError, Term},
};

const LEASE: &str = "scheduler";
/// How far this daemon's clock may be from the database's. What is due is reckoned by the former, and a leader that is
/// a week ahead would destroy what may still be called off.
const MAX_DRIFT: Duration = Duration::from_secs(60);

/// This daemon's wish to be the one.
pub struct Leader {
    db: Db,
    clock: Clock,
    holder: String,
    ttl: Duration,
    /// The term, and when it was taken or renewed.
    term: Option<(Term, Instant)>,
}

impl Leader {
    /// For the replica of this name; terms last `ttl` and are renewed by `term` when a third of that is over.
    pub fn new(db: Db, clock: Clock, replica: &str, ttl: Duration) -> Self {
        Self {
            db,
            clock,
            // A daemon that was restarted is another holder: its predecessor's transactions must not pass for its own.
            holder: format!("{replica}/{}", uuid::Uuid::now_v7()),
            ttl,
            term: None,
        }
    }

    /// Takes or renews the lease; None while another replica has it.
    pub async fn term(&mut self) -> Result<Option<Term>, StoreError> {
        if let Some((term, taken)) = &self.term
            && taken.elapsed() < self.ttl / 3
        {
            return Ok(Some(term.clone()));
        }
        let before = self.term.take();
        let now = Instant::now();
        let mut term = self.db.take_lease(LEASE, &self.holder, self.ttl).await?;
        if let Some(taken) = &term
            && self.drift(taken) > MAX_DRIFT
        {
            tracing::error!(
                drift_seconds = self.drift(taken).as_secs(),
                "this daemon's clock is not the database's; it does no scheduled work until it is set right"
            );
            self.db.release_lease(taken).await?;
            term = None;
        }
        match (&before, &term) {
            (None, Some(_)) => tracing::info!("this replica does the scheduled work now"),
            (Some(_), None) => tracing::warn!("another replica does the scheduled work now"),
            _ => {}
        }
        metrics::gauge!("claviger_scheduler_leader").set(f64::from(u8::from(term.is_some())));
        self.term = term.clone().map(|term| (term, now));
        Ok(term)
    }

    fn drift(&self, term: &Term) -> Duration {
        let now = self.clock.now();
        now.since(term.taken_at).max(term.taken_at.since(now))
    }

    /// Lets go, so that another replica takes over at once.
    pub async fn resign(self) {
        if let Some((term, _)) = self.term
            && let Err(error) = self.db.release_lease(&term).await
        {
            tracing::warn!(%error, "lease not released; it ends by itself");
        }
    }
}
