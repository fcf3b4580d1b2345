//! Recomputes a stream's chain. Finds changed, removed, swapped and inserted rows, and a tail that was cut off.
//!
//! A stream whose front was pruned is chained to the last row that is gone, which row `PruneAudit` of the admin stream names.
//!
//! It trusts nothing in the row but what the hash covers. Whoever can rewrite a whole stream and its head can still
//! make a consistent one; checkpoints, kept outside the database, say what hashes must be there (`mismatches`).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{ACKNOWLEDGE_RESTORE, ADMIN_STREAM, StreamHead, chain, pruning};
use crate::{
    model::Timestamp,
    store::{AuditRow, Db, Head, Pruned, StoreError},
};

/// Rows read at a time.
const PAGE: i64 = 1000;

/// What was found in one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamReport {
    /// Its name.
    pub stream: String,
    /// Rows whose hash was recomputed.
    pub rows: i64,
    /// Where the chain ends.
    pub head: Head,
    /// The first row that does not fit, and why; None when the chain is whole.
    pub problem: Option<(i64, String)>,
    /// seq to go on from; None when the end was reached.
    pub next: Option<i64>,
    /// The last row that was pruned; None for a stream that has all its rows.
    pub pruned: Option<Head>,
    /// Restores of the database that its rows acknowledge: of the admin stream only.
    pub restores: Vec<Restore>,
}

/// A restore of the database that somebody stands for (`restore`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// Row that says so.
    pub seq: i64,
    /// When it was acknowledged.
    pub at: Timestamp,
    /// SHA-256, in hex, of the text of the last checkpoint of the history that was lost.
    pub checkpoint: String,
    /// When the last row of the admin stream was written that the copy had.
    pub kept_until: Timestamp,
    /// Who stands for it.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// Data of its row.
#[derive(Deserialize)]
struct Acknowledgement {
    checkpoint: String,
    kept_until: i64,
    by: String,
    reason: String,
}

fn restore(row: &AuditRow) -> Option<Restore> {
    let is_one = row.stream == ADMIN_STREAM && row.action == ACKNOWLEDGE_RESTORE;
    let said = is_one.then(|| serde_json::from_str::<Acknowledgement>(&row.data).ok())??;
    Some(Restore {
        seq: row.seq,
        at: Timestamp::from_micros(row.at),
        checkpoint: said.checkpoint,
        kept_until: Timestamp::from_micros(said.kept_until),
        by: said.by,
        reason: said.reason,
    })
}

/// Which rows to look at.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// seq of the first; the row before it is taken as it is. 0 and 1 mean the beginning.
    pub from: i64,
    /// At most so many rows of each stream; None for all.
    pub rows: Option<i64>,
}

impl Range {
    /// Every row.
    pub const ALL: Self = Self {
        from: 0,
        rows: None,
    };
}

/// A row that is not what a checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Its stream.
    pub stream: String,
    /// Its seq.
    pub seq: i64,
    /// What is wrong, in words.
    pub problem: String,
}

/// Compares stored hashes with those of checkpoints. What a stored hash is worth, `verify` says. Of rows that were pruned
/// the last is compared, and of those before it nothing can be said.
pub async fn mismatches(db: &Db, expected: Vec<StreamHead>) -> Result<Vec<Mismatch>, StoreError> {
    let pruned = db.all_pruned().await?.into_iter();
    let pruned: BTreeMap<String, Head> = pruned.map(|p| (p.stream, p.last)).collect();
    let mut found = Vec::new();
    for StreamHead { stream, head } in expected {
        let stored = match pruned.get(&stream) {
            Some(last) if head.seq < last.seq => continue,
            Some(last) if head.seq == last.seq => Some(last.hash.clone()),
            _ => db.audit_row_hash(&stream, head.seq).await?,
        };
        let problem = match stored {
            Some(hash) if hash == head.hash => continue,
            Some(_) => "the row has another hash: the stream was rewritten",
            None => "the row is not there: the stream was cut off or rewritten",
        };
        found.push(Mismatch {
            stream,
            seq: head.seq,
            problem: problem.to_owned(),
        });
    }
    Ok(found)
}

/// Verifies one stream, or all when `stream` is empty.
pub async fn verify(db: &Db, stream: &str) -> Result<Vec<StreamReport>, StoreError> {
    verify_part(db, stream, Range::ALL).await
}

/// As `verify`, for a part of each stream.
pub async fn verify_part(
    db: &Db,
    stream: &str,
    range: Range,
) -> Result<Vec<StreamReport>, StoreError> {
    let streams = match stream {
        "" => db.audit_streams().await?,
        one => vec![one.to_owned()],
    };
    let mut reports = Vec::with_capacity(streams.len());
    for stream in streams {
        reports.push(verify_stream(db, &stream, range).await?);
    }
    Ok(reports)
}

async fn verify_stream(db: &Db, stream: &str, range: Range) -> Result<StreamReport, StoreError> {
    loop {
        let pruned = db.pruned(stream).await?;
        let report = verify_rows(db, stream.to_owned(), range, pruned.as_ref()).await?;
        // Rows that go away under the reader are nobody's fault.
        if report.problem.is_none() || db.pruned(stream).await? == pruned {
            return Ok(report);
        }
    }
}

async fn verify_rows(
    db: &Db,
    stream: String,
    range: Range,
    pruned: Option<&Pruned>,
) -> Result<StreamReport, StoreError> {
    // Read before the rows: rows that are added meanwhile lie behind it and are verified too.
    let stored = db.audit_head(&stream).await?;
    let mut report = StreamReport {
        stream,
        rows: 0,
        head: pruned.map_or_else(chain::empty_head, |p| p.last.clone()),
        problem: None,
        next: None,
        pruned: pruned.map(|p| p.last.clone()),
        restores: Vec::new(),
    };
    let first = report.head.seq + 1;
    // From below the first row on: one that was slipped in before it does not fit either.
    let mut from = i64::MIN;
    if let Some(pruned) = pruned {
        if !is_recorded(db, pruned).await? {
            report.problem = Some((
                first,
                "the rows before it are gone, and no row of the admin stream says that they were pruned".into(),
            ));
            return Ok(report);
        }
        if !pruned.is_finished {
            from = first;
        }
    }
    let mut stored_hash_at_head = stored
        .as_ref()
        .filter(|head| head.seq == report.head.seq)
        .map(|_| report.head.hash.clone());
    if range.from > first {
        let before = range.from - 1;
        let Some(hash) = db.audit_row_hash(&report.stream, before).await? else {
            report.problem = Some((before, "the row is not there".into()));
            return Ok(report);
        };
        report.head = Head { seq: before, hash };
        if stored.as_ref().is_some_and(|head| head.seq == before) {
            stored_hash_at_head = Some(report.head.hash.clone());
        }
        from = range.from;
    }
    loop {
        let left = range.rows.map_or(PAGE, |rows| rows - report.rows);
        if left <= 0 {
            report.next = Some(report.head.seq + 1);
            return Ok(report);
        }
        let page = db.audit_chain(&report.stream, from, PAGE.min(left)).await?;
        if page.is_empty() {
            break;
        }
        for row in page {
            if let Some(problem) = misfit(&report.head, &row) {
                report.problem = Some((row.seq, problem));
                return Ok(report);
            }
            if stored.as_ref().is_some_and(|head| head.seq == row.seq) {
                stored_hash_at_head = Some(row.hash.clone());
            }
            report.restores.extend(restore(&row));
            report.rows += 1;
            report.head = Head {
                seq: row.seq,
                hash: row.hash,
            };
        }
        from = report.head.seq + 1;
    }
    // A row and the head that knows it are committed together, so by now the head has caught up with every row.
    let known = db.audit_head(&report.stream).await?.map_or(0, |h| h.seq);
    let stored = stored.unwrap_or_else(chain::empty_head);
    if stored.seq > report.head.seq {
        report.problem = Some((
            report.head.seq + 1,
            format!(
                "the stream ends at {} but its head says {}: rows were removed from the end",
                report.head.seq, stored.seq
            ),
        ));
    } else if stored.seq > 0 && stored_hash_at_head.as_ref() != Some(&stored.hash) {
        report.problem = Some((
            stored.seq,
            "the stream's head has another hash than its row".into(),
        ));
    } else if known < report.head.seq {
        report.problem = Some((
            known.max(0) + 1,
            format!(
                "the stream ends at {} but its head says {known}: rows were added behind it, or it was set back",
                report.head.seq
            ),
        ));
    }
    Ok(report)
}

/// Does the admin stream say that the stream was cut where it is cut?
async fn is_recorded(db: &Db, pruned: &Pruned) -> Result<bool, StoreError> {
    let row = db.audit_chain(ADMIN_STREAM, pruned.audit_seq, 1).await?;
    Ok(row
        .first()
        .is_some_and(|row| row.seq == pruned.audit_seq && pruning::says(row, pruned)))
}

fn misfit(before: &Head, row: &AuditRow) -> Option<String> {
    if row.seq != before.seq + 1 {
        return Some(format!(
            "row {} follows row {}: rows are missing or were inserted",
            row.seq, before.seq
        ));
    }
    if row.prev_hash != before.hash {
        return Some("the row does not continue the row before it".into());
    }
    if row.hash != chain::row_hash(row) {
        return Some("the row's content does not match its hash: it was changed".into());
    }
    None
}
