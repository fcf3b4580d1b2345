//! Section `[usage]`.

use std::time::Duration;

use serde::Deserialize;

use crate::model::usage::Span;

/// Section `[usage]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UsageConfig {
    /// Requests in any 60 seconds where no limit says anything: of each credential, and of each principal that uses none.
    /// Default 100.
    pub default_requests_per_minute: i64,
    /// How often the daemon's own calls are written, in seconds. Default 5.
    pub flush_interval_seconds: u64,
    /// How long the ids of events are kept, in days; an event that is older is refused. Default 7.
    pub event_retention_days: u64,
    /// How long sums by minute are kept, in hours. Default 48.
    pub minute_retention_hours: u64,
    /// How long sums by hour are kept, in days. Default 90.
    pub hour_retention_days: u64,
    /// How long sums by day are kept, in days. Default 1100.
    pub day_retention_days: u64,
}

impl Default for UsageConfig {
    fn default() -> Self {
        Self {
            default_requests_per_minute: 100,
            flush_interval_seconds: 5,
            event_retention_days: 7,
            minute_retention_hours: 48,
            hour_retention_days: 90,
            day_retention_days: 1100,
        }
    }
}

const HOUR: u64 = 60 * 60;
const DAY: u64 = 24 * HOUR;

impl UsageConfig {
    /// Errors: a sentence that names the setting.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u64, least: u64, most: u64| match value {
            value if (least..=most).contains(&value) => Ok(()),
            _ => Err(format!("usage.{name} must be {least} to {most}")),
        };
        if !(1..=1_000_000).contains(&self.default_requests_per_minute) {
            return Err("usage.default_requests_per_minute must be 1 to 1000000".into());
        }
        within("flush_interval_seconds", self.flush_interval_seconds, 1, 60)?;
        within("event_retention_days", self.event_retention_days, 1, 90)?;
        // Alerts look at the last hour, budgets at the last hour and month.
        within(
            "minute_retention_hours",
            self.minute_retention_hours,
            2,
            8784,
        )?;
        within("hour_retention_days", self.hour_retention_days, 1, 3660)?;
        within("day_retention_days", self.day_retention_days, 62, 36_600)
    }

    /// How often the daemon's own calls are written.
    pub const fn flush_interval(&self) -> Duration {
        Duration::from_secs(self.flush_interval_seconds)
    }

    /// How long ids of events are kept.
    pub const fn event_retention(&self) -> Duration {
        Duration::from_secs(self.event_retention_days * DAY)
    }

    /// How long sums of this length are kept.
    pub const fn retention(&self, span: Span) -> Duration {
        Duration::from_secs(match span {
            Span::Minute => self.minute_retention_hours * HOUR,
            Span::Hour => self.hour_retention_days * DAY,
            Span::Day => self.day_retention_days * DAY,
        })
    }
}
