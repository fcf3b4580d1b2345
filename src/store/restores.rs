//! Table `restores`: older copies of the database that somebody has put in the place of a newer one, and stands for.

use super::{
    Db, Result, Tx,
    engine::{execute, fetch_all, fetch_optional},
    parse,
};
use crate::model::{Kid, Timestamp};

const INSERT: &str = "INSERT INTO restores (checkpoint, checkpoint_at, kept_until, audit_seq) VALUES ($1, $2, $3, $4)";
// The row of the log, and not this table alone: that somebody stands for it is what was audited.
const IS_ACKNOWLEDGED: &str = "SELECT r.audit_seq FROM restores r JOIN audit_events e ON e.stream = 'admin' \
     AND e.seq = r.audit_seq AND e.action = 'AcknowledgeRestore' AND e.entity_id = r.checkpoint WHERE r.checkpoint = $1";
const ALL: &str = "SELECT kept_until, checkpoint_at, audit_seq FROM restores ORDER BY audit_seq";
const INSERT_LOST: &str =
    "INSERT INTO lost_compromised (kid) VALUES ($1) ON CONFLICT (kid) DO NOTHING";
const HAS_CHECKPOINTS: &str = "SELECT seq FROM audit_events WHERE stream = 'admin' AND action = 'CheckpointAudit' \
     AND outcome = 'success' ORDER BY seq DESC LIMIT 1";
const FROZEN: &str = "SELECT kid FROM key_versions WHERE compromised_at IS NOT NULL \
     UNION SELECT kid FROM lost_compromised ORDER BY kid";
const COUNT_FROZEN: &str = "SELECT (SELECT CAST(COUNT(*) AS BIGINT) FROM key_versions WHERE compromised_at IS NOT NULL) \
     + (SELECT CAST(COUNT(*) AS BIGINT) FROM lost_compromised)";
const LAST_ROW: &str =
    "SELECT at FROM audit_events WHERE stream = 'admin' ORDER BY seq DESC LIMIT 1";

/// What a restore took away: everything between two moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoredSpan {
    /// When the last row of the admin stream was written that the copy had.
    pub kept_until: Timestamp,
    /// When the last checkpoint of the lost history was written.
    pub checkpoint_at: Timestamp,
    /// Row of the admin stream that acknowledges it.
    pub audit_seq: i64,
}

impl RestoredSpan {
    /// Was a checkpoint of this moment of the history that is lost?
    pub fn took(&self, at: Timestamp) -> bool {
        self.kept_until < at && at <= self.checkpoint_at
    }
}

impl Tx {
    /// Notes that the copy without the history of this checkpoint counts.
    pub async fn insert_restore(&mut self, checkpoint: &str, restore: &RestoredSpan) -> Result<()> {
        let (at, kept_until) = (restore.checkpoint_at.micros(), restore.kept_until.micros());
        execute!(self, INSERT, checkpoint, at, kept_until, restore.audit_seq).map(|_| ())
    }

    /// Notes a version that was compromised in the history that is lost.
    pub async fn insert_lost_compromised(&mut self, kid: &Kid) -> Result<()> {
        execute!(self, INSERT_LOST, kid.as_str()).map(|_| ())
    }
}

impl Db {
    /// Does a copy count that lacks the history of this checkpoint?
    pub async fn restore_is_acknowledged(&self, checkpoint: &str) -> Result<bool> {
        let row = fetch_optional!(self, (i64,), IS_ACKNOWLEDGED, checkpoint)?;
        Ok(row.is_some())
    }

    /// What every restore that is acknowledged took away.
    pub async fn restores(&self) -> Result<Vec<RestoredSpan>> {
        let rows = fetch_all!(self, (i64, i64, i64), ALL)?;
        let span = |(kept_until, checkpoint_at, audit_seq)| RestoredSpan {
            kept_until: Timestamp::from_micros(kept_until),
            checkpoint_at: Timestamp::from_micros(checkpoint_at),
            audit_seq,
        };
        Ok(rows.into_iter().map(span).collect())
    }

    /// Was a checkpoint of this log ever written?
    pub async fn has_checkpoints(&self) -> Result<bool> {
        Ok(fetch_optional!(self, (i64,), HAS_CHECKPOINTS)?.is_some())
    }

    /// How many versions `frozen_kids` names, at least.
    pub async fn count_frozen(&self) -> Result<i64> {
        let row = fetch_optional!(self, (i64,), COUNT_FROZEN)?;
        Ok(row.map_or(0, |(count,)| count))
    }

    /// Every version that was ever declared compromised, in order, also in a history that a restore took away.
    pub async fn frozen_kids(&self) -> Result<Vec<Kid>> {
        let rows = fetch_all!(self, (String,), FROZEN)?;
        rows.into_iter().map(|(kid,)| parse("kid", &kid)).collect()
    }

    /// When the last row of the admin stream was written; the epoch when it has none.
    pub async fn last_admin_row_at(&self) -> Result<Timestamp> {
        let row = fetch_optional!(self, (i64,), LAST_ROW)?;
        Ok(Timestamp::from_micros(row.map_or(0, |(at,)| at)))
    }
}
