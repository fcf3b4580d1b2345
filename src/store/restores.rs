//! Table `restores`: older copies of the database that somebody has put in the place of a newer one, and stands for.

use super::{
    Db, Result, Tx,
    engine::{execute, fetch_all, fetch_optional},
    parse,
};
use crate::model::{Kid, Timestamp};

const INSERT: &str =
    "INSERT INTO restores (checkpoint, at, kept_until, audit_seq) VALUES ($1, $2, $3, $4)";
const IS_ACKNOWLEDGED: &str = "SELECT audit_seq FROM restores WHERE checkpoint = $1";
const FROZEN: &str = "SELECT kid FROM key_versions WHERE compromised_at IS NOT NULL ORDER BY kid";
const LAST_ROW: &str =
    "SELECT at FROM audit_events WHERE stream = 'admin' ORDER BY seq DESC LIMIT 1";

impl Tx {
    /// Notes that the copy without the history of this checkpoint counts.
    pub async fn insert_restore(
        &mut self,
        checkpoint: &str,
        at: Timestamp,
        kept_until: Timestamp,
        audit_seq: i64,
    ) -> Result<()> {
        let (at, kept_until) = (at.micros(), kept_until.micros());
        execute!(self, INSERT, checkpoint, at, kept_until, audit_seq).map(|_| ())
    }
}

impl Db {
    /// Does a copy count that lacks the history of this checkpoint?
    pub async fn restore_is_acknowledged(&self, checkpoint: &str) -> Result<bool> {
        let row = fetch_optional!(self, (i64,), IS_ACKNOWLEDGED, checkpoint)?;
        Ok(row.is_some())
    }

    /// Every version that was ever declared compromised, in order.
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
