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
use crate::backends::{BackendError, Priority};

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

/// Part of a second's quota that a priority leaves to higher ones.
const fn leaves(priority: Priority) -> f64 {
    match priority {
        Priority::Rotation => 0.0,
        Priority::Interactive => 0.1,
        Priority::Batch => 0.5,
    }
}

/// How long a priority waits for a turn that is promised to it; never beyond the deadline. Batches get no promise: a
/// thousand of them would leave nothing to callers who come later. They ask again until their deadline.
const fn patience(priority: Priority) -> Duration {
    match priority {
        Priority::Rotation => Duration::from_secs(10),
        Priority::Interactive => Duration::from_millis(100),
        Priority::Batch => Duration::ZERO,
    }
}

/// Bounds of the time after which a batch asks again.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// Part of the rate that is left however often AWS throttles.
const SLOWEST: f64 = 0.1;
/// Part of the rate that comes back per second without throttling.
const RECOVERY: f64 = 0.05;

/// When a request may be sent.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Now,
    /// It has a turn, which comes then.
    After(Duration),
    /// It has none and may ask again then.
    AskAgain(Duration),
    /// Not before its deadline, or its patience, is over.
    Never,
}

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
        loop {
            match self.ask(class, priority, Instant::now(), deadline) {
                Turn::Now => return Ok(()),
                Turn::After(wait) => {
                    sleep(wait).await;
                    return Ok(());
                }
                Turn::AskAgain(pause) => sleep(pause).await,
                Turn::Never => {
                    let class = class.name();
                    metrics::counter!("claviger_kms_refused_total", "class" => class).increment(1);
                    return Err(BackendError::Overloaded);
                }
            }
        }
    }

    fn ask(&self, class: Class, priority: Priority, now: Instant, deadline: Instant) -> Turn {
        let left = deadline.saturating_duration_since(now);
        let patience = patience(priority).min(left);
        match (self.bucket(class).take(priority, now, patience), priority) {
            (Ok(wait), _) if wait.is_zero() => Turn::Now,
            (Ok(wait), _) => Turn::After(wait),
            (Err(wait), Priority::Batch) => {
                let pause = wait.clamp(ASK_AGAIN.0, ASK_AGAIN.1);
                match pause < left {
                    true => Turn::AskAgain(pause),
                    false => Turn::Never,
                }
            }
            (Err(_), Priority::Rotation | Priority::Interactive) => Turn::Never,
        }
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

    /// How long to wait for one token. Errors: that is longer than `patience`, and none is taken.
    fn take(
        &mut self,
        priority: Priority,
        now: Instant,
        patience: Duration,
    ) -> Result<Duration, Duration> {
        self.fill(now);
        let capacity = self.capacity();
        // A bucket of few tokens is not divided: whoever keeps one back would keep all.
        let floor = (capacity * leaves(priority)).min(capacity - 1.0).floor();
        let missing = floor - (self.level - 1.0);
        let wait = Duration::from_secs_f64((missing / (self.rate * self.pace)).max(0.0));
        if wait > patience {
            return Err(wait);
        }
        self.level -= 1.0;
        Ok(wait)
    }

    fn slow_down(&mut self, now: Instant) {
        self.fill(now);
        self.pace = (self.pace / 2.0).max(SLOWEST);
        // The burst is over; callers go on at the pace at which it fills, background work waits.
        let left = self.capacity() * leaves(Priority::Interactive) + 1.0;
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
            .take_while(|_| bucket.take(priority, now, Duration::ZERO).is_ok())
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
        assert_eq!(first, Ok(SECOND / 10));
        assert_eq!(second, Ok(SECOND / 5));
        let third = bucket.take(Priority::Rotation, now, SECOND / 5);
        assert_eq!(third, Err(SECOND * 3 / 10));
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

    fn governor(rate: u32) -> Governor {
        let quotas = QuotaConfig {
            symmetric_per_second: rate,
            share_percent: 100,
            ..QuotaConfig::default()
        };
        Governor::new(&quotas, Instant::now())
    }

    /// Five seconds of a batch that always wants more, in steps of 10 ms, while a caller comes every 50 ms.
    #[test]
    fn a_batch_waits_and_never_takes_what_is_left_to_callers() {
        let governor = governor(100);
        let begin = Instant::now();
        let end = begin + 5 * SECOND;
        let ask = |priority, now| governor.ask(Class::Symmetric, priority, now, end);
        let (mut batch, mut callers) = (0, 0);
        for step in 0..500 {
            let now = begin + step * SECOND / 100;
            while ask(Priority::Batch, now) == Turn::Now {
                batch += 1;
            }
            if step % 5 == 0 {
                assert_eq!(ask(Priority::Interactive, now), Turn::Now, "{step}");
                callers += 1;
            }
        }
        assert_eq!(callers, 100);
        // Half of the bucket, and all that flows in and no caller takes.
        assert!((440..=451).contains(&batch), "{batch}");
    }

    #[test]
    fn nobody_waits_beyond_patience_and_deadline() {
        let governor = governor(10);
        let now = Instant::now();
        let ask = |priority, time| governor.ask(Class::Symmetric, priority, now, now + time);
        while ask(Priority::Rotation, Duration::ZERO) == Turn::Now {}
        assert_eq!(ask(Priority::Interactive, SECOND), Turn::Never);
        assert_eq!(ask(Priority::Batch, SECOND / 5), Turn::Never);
        let longest = Turn::AskAgain(ASK_AGAIN.1);
        assert_eq!(
            ask(Priority::Batch, SECOND),
            longest,
            "and nothing is promised"
        );
        assert_eq!(ask(Priority::Rotation, SECOND), Turn::After(SECOND / 10));
        assert_eq!(ask(Priority::Rotation, SECOND / 10), Turn::Never);
    }
}
