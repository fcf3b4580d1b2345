//! Keeps the daemon under the account's request quotas, so that AWS does not have to.
//!
//! AWS throttles an account, not a caller: a batch that eats the quota takes it from every signature and from
//! every other program of the account. One token bucket per class of quota; lower priorities leave a part of
//! it to higher ones. When AWS throttles all the same (other replicas, other programs), the rate halves and
//! recovers slowly.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::QuotaConfig;
use crate::backends::BackendError;

/// What AWS counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Sign.
    Asymmetric,
    /// Encrypt, Decrypt.
    Symmetric,
    /// Creates, deletes; a handful per second.
    Control,
    /// Describes and lists.
    Read,
}

/// Who goes first when the quota is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Making, checking and destroying keys: rare, and an incident waits for it.
    Rotation,
    /// Somebody waits for the answer.
    Interactive,
    /// Rewrapping and other background work.
    Batch,
}

impl Priority {
    /// Part of a second's quota that this priority leaves to higher ones.
    const fn leaves(self) -> f64 {
        match self {
            Self::Rotation => 0.0,
            Self::Interactive => 0.1,
            Self::Batch => 0.5,
        }
    }

    /// How long it waits for its turn before it gives up; never beyond the deadline.
    const fn patience(self) -> Duration {
        match self {
            Self::Rotation => Duration::from_secs(10),
            Self::Interactive => Duration::from_millis(100),
            Self::Batch => Duration::ZERO,
        }
    }
}

/// Part of the rate that is left however often AWS throttles.
const SLOWEST: f64 = 0.1;
/// Part of the rate that comes back per second without throttling.
const RECOVERY: f64 = 0.05;

/// One bucket per class.
pub(super) struct Governor {
    asymmetric: Mutex<Bucket>,
    symmetric: Mutex<Bucket>,
    control: Mutex<Bucket>,
    read: Mutex<Bucket>,
}

impl Governor {
    pub(super) fn new(quotas: &QuotaConfig, now: Instant) -> Self {
        let bucket = |quota: u32| {
            let rate = f64::from(quota) * f64::from(quotas.share_percent) / 100.0;
            Mutex::new(Bucket::new(rate, now))
        };
        Self {
            asymmetric: bucket(quotas.asymmetric_per_second),
            symmetric: bucket(quotas.symmetric_per_second),
            control: bucket(quotas.control_per_second),
            read: bucket(quotas.read_per_second),
        }
    }

    /// Waits for the turn of one request. Errors: `Overloaded` when that would take too long.
    pub(super) async fn admit(
        &self,
        class: Class,
        priority: Priority,
        deadline: Instant,
    ) -> Result<(), BackendError> {
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        let patience = priority.patience().min(left);
        let turn = self.bucket(class).take(priority, now, patience);
        let Some(wait) = turn else {
            metrics::counter!("claviger_kms_refused_total", "class" => class.name()).increment(1);
            return Err(BackendError::Overloaded);
        };
        if !wait.is_zero() {
            sleep(wait).await;
        }
        Ok(())
    }

    /// AWS throttled a request of this class.
    pub(super) fn throttled(&self, class: Class) {
        metrics::counter!("claviger_kms_throttled_total", "class" => class.name()).increment(1);
        self.bucket(class).slow_down(Instant::now());
    }

    fn bucket(&self, class: Class) -> MutexGuard<'_, Bucket> {
        let bucket = match class {
            Class::Asymmetric => &self.asymmetric,
            Class::Symmetric => &self.symmetric,
            Class::Control => &self.control,
            Class::Read => &self.read,
        };
        bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Class {
    const fn name(self) -> &'static str {
        match self {
            Self::Asymmetric => "asymmetric",
            Self::Symmetric => "symmetric",
            Self::Control => "control",
            Self::Read => "read",
        }
    }
}

/// Tokens of one class. Its level goes below zero by what has been promised to those who wait.
struct Bucket {
    rate: f64,
    /// 1 normally; less after throttling.
    pace: f64,
    level: f64,
    filled: Instant,
}

impl Bucket {
    fn new(rate: f64, now: Instant) -> Self {
        Self {
            rate,
            pace: 1.0,
            level: rate.max(1.0),
            filled: now,
        }
    }

    /// How long to wait for one token; None when that is longer than `patience`, and then none is taken.
    fn take(&mut self, priority: Priority, now: Instant, patience: Duration) -> Option<Duration> {
        self.fill(now);
        let capacity = self.capacity();
        // A bucket of few tokens is not divided: whoever keeps one back would keep all.
        let floor = (capacity * priority.leaves()).min(capacity - 1.0).floor();
        let missing = floor - (self.level - 1.0);
        let wait = Duration::from_secs_f64((missing / (self.rate * self.pace)).max(0.0));
        if wait > patience {
            return None;
        }
        self.level -= 1.0;
        Some(wait)
    }

    fn slow_down(&mut self, now: Instant) {
        self.fill(now);
        self.pace = (self.pace / 2.0).max(SLOWEST);
        // The burst is over; callers go on at the pace at which it fills, background work waits.
        let left = self.capacity() * Priority::Interactive.leaves() + 1.0;
        self.level = self.level.min(left);
    }

    /// One second's worth.
    fn capacity(&self) -> f64 {
        (self.rate * self.pace).max(1.0)
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = self.filled.max(now);
        let filled = self.level + passed * self.rate * self.pace;
        self.pace = (self.pace + passed * RECOVERY).min(1.0);
        self.level = filled.min(self.capacity());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn taken(bucket: &mut Bucket, priority: Priority, now: Instant) -> u32 {
        (0..10_000)
            .take_while(|_| bucket.take(priority, now, Duration::ZERO).is_some())
            .count() as u32
    }

    #[test]
    fn batches_leave_room_for_interactive_calls_and_those_for_rotations() {
        let now = Instant::now();
        let mut bucket = Bucket::new(100.0, now);
        assert_eq!(taken(&mut bucket, Priority::Batch, now), 50);
        assert_eq!(taken(&mut bucket, Priority::Interactive, now), 40);
        assert_eq!(taken(&mut bucket, Priority::Rotation, now), 10);
        assert_eq!(taken(&mut bucket, Priority::Rotation, now), 0);
        let later = now + SECOND / 10;
        assert_eq!(taken(&mut bucket, Priority::Batch, later), 0);
        assert_eq!(taken(&mut bucket, Priority::Rotation, later), 10);
    }

    #[test]
    fn those_who_wait_get_turns_one_after_another() {
        let now = Instant::now();
        let mut bucket = Bucket::new(10.0, now);
        assert_eq!(taken(&mut bucket, Priority::Rotation, now), 10);
        let first = bucket.take(Priority::Rotation, now, SECOND);
        let second = bucket.take(Priority::Rotation, now, SECOND);
        assert_eq!(first, Some(SECOND / 10));
        assert_eq!(second, Some(SECOND / 5));
        assert_eq!(bucket.take(Priority::Rotation, now, SECOND / 5), None);
    }

    #[test]
    fn throttling_slows_down_and_passes() {
        let now = Instant::now();
        let mut bucket = Bucket::new(100.0, now);
        bucket.slow_down(now);
        assert_eq!(taken(&mut bucket, Priority::Batch, now), 0);
        assert_eq!(taken(&mut bucket, Priority::Interactive, now), 1);
        assert_eq!(taken(&mut bucket, Priority::Rotation, now), 5);
        let later = now + SECOND;
        assert_eq!(taken(&mut bucket, Priority::Rotation, later), 50);
        for _ in 0..9 {
            bucket.slow_down(later);
        }
        assert!(bucket.pace >= SLOWEST);
        bucket.fill(later + 30 * SECOND);
        assert_eq!(
            taken(&mut bucket, Priority::Rotation, later + 30 * SECOND),
            100
        );
    }

    #[test]
    fn a_handful_per_second_serves_every_priority() {
        let now = Instant::now();
        let mut bucket = Bucket::new(0.8, now);
        assert_eq!(taken(&mut bucket, Priority::Batch, now), 1);
    }
}
