//! Points in time, in the one unit the database stores.

use std::time::Duration;

use crate::error::{Error, Reason, Result};

/// Microseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From whole seconds since the Unix epoch (RFC 7519 NumericDate).
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Microseconds since the Unix epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// Later by `by`, saturating at the end of time.
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(micros(by)))
    }

    /// Earlier by `by`, saturating at the beginning of time.
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(micros(by)))
    }

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        let micros = self.0.saturating_sub(earlier.0).max(0);
        Duration::from_micros(micros.unsigned_abs())
    }
}

/// How far behind the last recorded event a clock may be: the clocks of two replicas differ a little.
const TOLERATED_STEP_BACK: Duration = Duration::from_secs(60);

/// The time of an event that follows one at `last`: never earlier than it, so that recorded times do not run backwards.
///
/// Errors: CLOCK_BACKWARDS when `now` is over a minute before `last`.
pub fn following(last: Timestamp, now: Timestamp) -> Result<Timestamp> {
    if now.plus(TOLERATED_STEP_BACK) < last {
        return Err(Error::new(
            Reason::ClockBackwards,
            format!(
                "this daemon's clock says {now}, but the last step was taken at {last}; set the clock right"
            ),
        ));
    }
    Ok(now.max(last))
}

/// RFC 3339 with microseconds, UTC.
impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(t) => write!(f, "{t}"),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}

/// A duration in microseconds, saturating.
pub fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
