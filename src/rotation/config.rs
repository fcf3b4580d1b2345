//! Section `[rotation]`.

use std::{ops::RangeInclusive, time::Duration};

use serde::Deserialize;

/// Section `[rotation]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RotationConfig {
    /// How far clocks of verifiers may be off, in seconds; added to the JWKS max-age for the soak, and to the last
    /// token's `exp` for the grace. Default 60, at most 3600.
    pub clock_skew_seconds: u64,
    /// How long a request may wait for its approvals and its deployment, in seconds: longer than the soak, at most 90
    /// days. Default 7 days.
    pub request_ttl_seconds: u64,
    /// How long the scheduler leaves a due key alone after a rotation of it was rejected, cancelled or expired, in
    /// seconds, at most 30 days. Default 1 day.
    pub reopen_after_seconds: u64,
}

const HOUR: u64 = 60 * 60;
const DAY: u64 = 24 * HOUR;
const REQUEST_TTL: RangeInclusive<u64> = 1..=90 * DAY;

impl RotationConfig {
    /// How far clocks of verifiers may be off.
    pub const fn clock_skew(&self) -> Duration {
        Duration::from_secs(self.clock_skew_seconds)
    }

    /// How long a request stays open.
    pub const fn request_ttl(&self) -> Duration {
        Duration::from_secs(self.request_ttl_seconds)
    }

    /// How long the scheduler leaves a due key alone after a rotation came to nothing.
    pub const fn reopen_after(&self) -> Duration {
        Duration::from_secs(self.reopen_after_seconds)
    }

    /// Is a request so short-lived that people have no time to decide?
    pub const fn is_hasty(&self) -> bool {
        self.request_ttl_seconds < HOUR
    }

    /// Errors: a sentence that names the setting. `soak` is how long a new kid is announced before it may sign.
    pub fn check(&self, soak: Duration) -> Result<(), String> {
        if self.clock_skew_seconds > HOUR {
            return Err("rotation.clock_skew_seconds must be at most 3600".into());
        }
        if !REQUEST_TTL.contains(&self.request_ttl_seconds) {
            return Err("rotation.request_ttl_seconds must be 1 to 7776000 (90 days)".into());
        }
        if self.request_ttl() <= soak {
            return Err(format!(
                "rotation.request_ttl_seconds must be more than the soak of {} seconds, or no rotation could be deployed",
                soak.as_secs()
            ));
        }
        if self.reopen_after_seconds > 30 * DAY {
            return Err("rotation.reopen_after_seconds must be at most 2592000 (30 days)".into());
        }
        Ok(())
    }
}

impl Default for RotationConfig {
    fn default() -> Self {
        Self {
            clock_skew_seconds: 60,
            request_ttl_seconds: 7 * DAY,
            reopen_after_seconds: DAY,
        }
    }
}
