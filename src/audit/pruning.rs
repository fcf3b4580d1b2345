//! How long the log is kept, and how a stream that lost its front still proves what is left.
//!
//! A stream is cut at a row that a checkpoint names, so the rest is chained to a hash that is signed outside the database.
//! Where it was cut, row `PruneAudit` of the admin stream says; a stream that begins later than that was cut by somebody else.

use serde::{Deserialize, Serialize};

use super::{ADMIN_STREAM, hex};
use crate::{
    model::{Action, Timestamp},
    store::{AuditRow, Head, Pruned},
};

/// Section `[audit.retention]`. Nothing is pruned for a kind of stream that it does not name.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// How long rows of data-plane calls are kept (streams `access/…`), in days.
    pub access_days: Option<u32>,
    /// How long rows of administrative calls are kept (stream `admin`), in days.
    pub admin_days: Option<u32>,
}

const MICROS_PER_DAY: i64 = 24 * 60 * 60 * 1_000_000;

impl RetentionConfig {
    /// Errors: a sentence that names the setting. `is_dev`: days may be 0, which prunes up to the last checkpoint.
    pub fn check(&self, is_dev: bool) -> Result<(), String> {
        let least = u32::from(!is_dev);
        for (name, days) in [
            ("access_days", self.access_days),
            ("admin_days", self.admin_days),
        ] {
            if days.is_some_and(|days| !(least..=36_500).contains(&days)) {
                return Err(format!("audit.retention.{name} must be {least} to 36500"));
            }
        }
        // The row that acknowledges a restore explains rows that are missing in other streams.
        if self
            .admin_days
            .is_some_and(|admin| self.access_days.is_none_or(|access| admin < access))
        {
            return Err("audit.retention.admin_days must not be below access_days".into());
        }
        Ok(())
    }

    /// Is anything to be pruned at all?
    pub const fn prunes(&self) -> bool {
        self.access_days.is_some() || self.admin_days.is_some()
    }

    /// Rows of the stream from before this time go; None when they stay for ever.
    pub fn until(&self, stream: &str, now: Timestamp) -> Option<Timestamp> {
        let days = match stream {
            ADMIN_STREAM => self.admin_days,
            _ => self.access_days,
        };
        let micros = days.map(|days| {
            now.micros()
                .saturating_sub(i64::from(days) * MICROS_PER_DAY)
        });
        micros.map(Timestamp::from_micros)
    }
}

/// What the row about a cut says.
#[derive(Serialize, Deserialize)]
struct Cut {
    through: i64,
    hash: String,
}

/// Data of the row that says that everything up to `last` is pruned.
pub fn details(last: &Head) -> serde_json::Value {
    let hash = hex(&last.hash);
    serde_json::json!({ "through": last.seq, "hash": hash })
}

/// Does this row say that the stream was cut there?
pub fn says(row: &AuditRow, pruned: &Pruned) -> bool {
    let cut = serde_json::from_str(&row.data);
    row.stream == ADMIN_STREAM
        && row.action == Action::PruneAudit.name()
        && row.entity_id == pruned.stream
        && row.outcome == "success"
        && cut.is_ok_and(|cut: Cut| {
            cut.through == pruned.last.seq && cut.hash == hex(&pruned.last.hash)
        })
}
