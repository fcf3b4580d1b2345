//! A job's way through what is due. One bad item keeps no other from its turn, and is tried again ever more rarely: each
//! failure leaves an audit row, and a job looks every second.

use std::{
    collections::HashMap,
    fmt::Display,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::error::{Reason, Result};

/// How long one round lasts at most, far below a term; the rest is there at the next look.
const ROUND: Duration = Duration::from_secs(4);
/// First and longest pause after a failure.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// Which items failed lately and when they are tried again.
#[derive(Default)]
pub struct Patience(Mutex<HashMap<String, Pause>>);

struct Pause {
    until: Instant,
    last: Duration,
}

/// One run of one job.
pub struct Round<'a> {
    patience: &'a Patience,
    job: &'static str,
    began: Instant,
}

impl Patience {
    /// Begins a round of the job of this name.
    pub fn round(&self, job: &'static str) -> Round<'_> {
        Round {
            patience: self,
            job,
            began: Instant::now(),
        }
    }

    fn is_pausing(&self, item: &str, now: Instant) -> bool {
        let pauses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pauses.get(item).is_some_and(|pause| now < pause.until)
    }

    fn succeeded(&self, item: &str) {
        let mut pauses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pauses.remove(item);
    }

    fn failed(&self, item: String, now: Instant) {
        let mut pauses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Who has not failed for a while was mended, or is gone.
        pauses.retain(|_, pause| now < pause.until + LONGEST);
        let before = pauses.get(&item).map(|pause| pause.last);
        let last = before.map_or(SHORTEST, |last| LONGEST.min(last * 2));
        let until = now + last;
        pauses.insert(item, Pause { until, last });
    }
}

impl Round<'_> {
    /// Is there time left in this round, and is the item not in a pause after a failure?
    pub fn takes(&self, item: &impl Display) -> bool {
        let now = Instant::now();
        now < self.began + ROUND && !self.patience.is_pausing(&self.name(item), now)
    }

    /// Is there no time left?
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.began + ROUND
    }

    /// Notes how it went with an item. A failure is logged here and goes no further. Errors: LEASE_LOST, which ends the
    /// round.
    pub fn note<T>(&self, item: &impl Display, outcome: Result<T>) -> Result<()> {
        match outcome {
            Ok(_) => {
                self.patience.succeeded(&self.name(item));
                Ok(())
            }
            Err(error) if error.reason() == Reason::LeaseLost => Err(error),
            Err(error) => {
                tracing::warn!(job = self.job, %item, ?error, "scheduled work failed; tried again later");
                metrics::counter!("claviger_job_item_failures_total", "job" => self.job)
                    .increment(1);
                self.patience.failed(self.name(item), Instant::now());
                Ok(())
            }
        }
    }

    fn name(&self, item: &impl Display) -> String {
        format!("{} {item}", self.job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_failing_item_pauses_ever_longer_and_the_others_do_not() {
        let patience = Patience::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            assert!(!patience.is_pausing("bad", now));
            patience.failed("bad".into(), now);
            let began = now;
            while patience.is_pausing("bad", now) {
                assert!(!patience.is_pausing("good", now));
                now += SHORTEST;
            }
            pauses.push(now - began);
        }
        assert_eq!(pauses.first(), Some(&SHORTEST));
        assert_eq!(pauses.last(), Some(&LONGEST));
        assert!(pauses.is_sorted());
        patience.succeeded("bad");
        patience.failed("bad".into(), now);
        assert!(!patience.is_pausing("bad", now + SHORTEST));
    }

    #[test]
    fn a_failure_is_noted_and_goes_no_further() {
        let patience = Patience::default();
        let round = patience.round("test");
        let failed: Result<()> = Err(Error::new(Reason::Conflict, "no"));
        assert!(round.note(&"bad", failed).is_ok());
        assert!(!round.takes(&"bad") && round.takes(&"good"));
        assert!(patience.round("another").takes(&"bad"));
        assert!(round.note(&"bad", Ok(())).is_ok());
        assert!(round.takes(&"bad"));
    }

    #[test]
    fn a_lost_lease_ends_the_round() {
        let patience = Patience::default();
        let lost: Result<()> = Err(Error::new(Reason::LeaseLost, "lost"));
        let outcome = patience.round("test").note(&"item", lost);
        assert!(outcome.is_err_and(|e| e.reason() == Reason::LeaseLost));
    }
}
