//! Table `audit_pruned`, and the one statement that removes rows of the log: from the front of a stream, behind a checkpoint.

use super::{
    Db, Head, Result, Tx,
    engine::{execute, fetch_all, fetch_optional},
};

const ONE: &str =
    "SELECT stream, seq, hash, audit_seq, finished FROM audit_pruned WHERE stream = $1";
const ALL: &str = "SELECT stream, seq, hash, audit_seq, finished FROM audit_pruned ORDER BY stream";
const SET: &str = "INSERT INTO audit_pruned (stream, seq, hash, audit_seq, finished) VALUES ($1, $2, $3, $4, 0) \
     ON CONFLICT (stream) DO UPDATE SET seq = excluded.seq, hash = excluded.hash, audit_seq = excluded.audit_seq, \
     finished = CASE WHEN audit_pruned.seq = excluded.seq THEN audit_pruned.finished ELSE 0 END \
     WHERE excluded.seq >= audit_pruned.seq";
const FINISH: &str = "UPDATE audit_pruned SET finished = 1 WHERE stream = $1 AND seq = $2";
/// The oldest rows up to a seq.
const REMOVE: &str = "DELETE FROM audit_events WHERE stream = $1 AND seq <= $2 AND seq < \
     (SELECT MIN(seq) FROM audit_events WHERE stream = $1) + $3";
const LEFT: &str =
    "SELECT seq FROM audit_events WHERE stream = $1 AND seq <= $2 ORDER BY seq LIMIT 1";

/// Where a stream begins since its front was pruned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// The stream.
    pub stream: String,
    /// The last row that is gone: what the first one that is there is chained to.
    pub last: Head,
    /// The row of the admin stream that says so.
    pub audit_seq: i64,
    /// False while rows up to `last` are still being removed.
    pub is_finished: bool,
}

type Row = (String, i64, Vec<u8>, i64, i64);

fn pruned((stream, seq, hash, audit_seq, finished): Row) -> Pruned {
    Pruned {
        stream,
        last: Head { seq, hash },
        audit_seq,
        is_finished: finished != 0,
    }
}

impl Tx {
    /// Says that a stream begins behind `last`, as row `audit_seq` of the admin stream records. False when it begins later
    /// already.
    pub async fn set_pruned(&mut self, stream: &str, last: &Head, audit_seq: i64) -> Result<bool> {
        let rows = execute!(self, SET, stream, last.seq, &last.hash, audit_seq)?;
        Ok(rows == 1)
    }

    /// Removes some of the rows of a stream up to `seq`, oldest first. True when none is left.
    pub async fn remove_audit_rows(&mut self, stream: &str, seq: i64, some: i64) -> Result<bool> {
        execute!(self, REMOVE, stream, seq, some)?;
        let left = super::engine::fetch_in!(self, (i64,), LEFT, stream, seq)?;
        if left.is_none() {
            execute!(self, FINISH, stream, seq)?;
        }
        Ok(left.is_none())
    }
}

impl Db {
    /// Where a stream begins; None for one that was never pruned.
    pub async fn pruned(&self, stream: &str) -> Result<Option<Pruned>> {
        Ok(fetch_optional!(self, Row, ONE, stream)?.map(pruned))
    }

    /// Every stream that was pruned.
    pub async fn all_pruned(&self) -> Result<Vec<Pruned>> {
        Ok(fetch_all!(self, Row, ALL)?
            .into_iter()
            .map(pruned)
            .collect())
    }
}
