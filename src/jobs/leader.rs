//! Which replica does the scheduled work (R-OPS-1): the holder of one lease row for each kind of it.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    clock::Clock,
    store::{Db, StoreError, Term},
};

/// What a replica may be the one for.
#[derive(Clone, Copy, Debug)]
pub struct Office {
    /// Name of the lease.
    pub lease: &'static str,
    /// Gauge that is 1 on the replica that holds it.
    pub gauge: &'static str,
}

/// Everything that depends on nobody else's time.
pub const SCHEDULER: Office = Office {
    lease: "scheduler",
    gauge: "claviger_scheduler_leader",
};
/// Rotations of credentials, which wait for providers and drivers.
pub const CREDENTIAL_ROTATIONS: Office = Office {
    lease: "credential-rotations",
    gauge: "claviger_credential_rotations_leader",
};

/// How far this daemon's clock may be from the database's. What is due is reckoned by the former, and a leader that is
/// a week ahead would destroy what may still be called off.
const MAX_DRIFT: Duration = Duration::from_secs(60);

/// This daemon's wish to be the one.
pub struct Leader {
    office: Office,
    db: Db,
    clock: Clock,
    holder: String,
    ttl: Duration,
    /// The term, and when it was taken or renewed.
    term: Option<(Term, Instant)>,
}

impl Leader {
    /// For the replica of this name; terms last `ttl` and are renewed by `term` when a third of that is over.
    pub fn new(office: Office, db: Db, clock: Clock, replica: &str, ttl: Duration) -> Self {
        Self {
            office,
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
        let taking = self
            .db
            .take_lease(self.office.lease, &self.holder, self.ttl);
        let mut term = taking.await?;
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
            (None, Some(_)) => {
                tracing::info!(
                    lease = self.office.lease,
                    "this replica does the scheduled work now"
                );
            }
            (Some(_), None) => {
                tracing::warn!(
                    lease = self.office.lease,
                    "another replica does the scheduled work now"
                );
            }
            _ => {}
        }
        metrics::gauge!(self.office.gauge).set(f64::from(u8::from(term.is_some())));
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
