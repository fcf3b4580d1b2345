//! Sums of what was used, and the times that they are of.

use std::time::Duration;

use super::Cost;
use crate::model::{Timestamp, time};

/// Whose use it is. What was not given is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UsageKey {
    /// Provider.
    pub provider: String,
    /// Id of the credential.
    pub credential: String,
    /// Id of the principal.
    pub principal: String,
}

/// Sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Requests.
    pub requests: i64,
    /// Those of them that failed.
    pub errors: i64,
    /// Tokens sent.
    pub tokens_in: i64,
    /// Tokens received.
    pub tokens_out: i64,
    /// Cost.
    pub cost: Cost,
    /// The last use; None where there was none.
    pub last: Option<Timestamp>,
}

impl Used {
    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.errors = self.errors.saturating_add(other.errors);
        self.tokens_in = self.tokens_in.saturating_add(other.tokens_in);
        self.tokens_out = self.tokens_out.saturating_add(other.tokens_out);
        self.cost = self.cost.plus(other.cost);
        self.last = self.last.max(other.last);
    }
}

/// One thing that was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageEvent {
    /// The recorder's id of it, unique in the tenant.
    pub id: String,
    /// When.
    pub at: Timestamp,
    /// Whose.
    pub key: UsageKey,
    /// How much; `last` is `at`.
    pub used: Used,
}

/// Length of the time that one row sums up, by UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Span {
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day.
    Day,
}

impl Span {
    /// Every span, the shortest first.
    pub const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    /// The text in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "MINUTE",
            Self::Hour => "HOUR",
            Self::Day => "DAY",
        }
    }

    /// How long it is.
    pub const fn length(self) -> Duration {
        Duration::from_secs(match self {
            Self::Minute => 60,
            Self::Hour => 60 * 60,
            Self::Day => 24 * 60 * 60,
        })
    }

    /// Begin of the span in which `at` lies.
    pub fn begin(self, at: Timestamp) -> Timestamp {
        aligned(at, self.length())
    }
}

/// The last multiple of `length` that is not after `at`.
pub fn aligned(at: Timestamp, length: Duration) -> Timestamp {
    let length = time::micros(length).max(1);
    Timestamp::from_micros(at.micros().div_euclid(length) * length)
}
