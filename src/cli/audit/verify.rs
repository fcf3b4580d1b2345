//! `claviger audit verify`: recomputes the chains, part by part, and compares them with checkpoints that were kept
//! outside the database.
//!
//! A restore of the database takes away rows that checkpoints name, and pruning those that are too old. Where the log says so,
//! it is no mismatch; but whoever can write to the database can write such a row too. So the auditor says which restores there
//! were, by their receipts, and how long rows are kept; what goes beyond that is a problem.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{
    audit::{
        self, Checkpoint, StreamHead,
        checkpoint_file::{self, CheckpointFile},
    },
    cli::{
        exit::{Exit, Failure, Result},
        input,
        options::Session,
        output,
    },
    grpc::proto::{
        AuditHead, AuditMismatch, AuditRestore, AuditStreamReport, VerifyAuditRequest,
        VerifyAuditResponse,
    },
    model::Timestamp,
    store::RestoredSpan,
};

#[derive(Args, Debug)]
pub struct Verify {
    /// Only this stream; all of them when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    stream: String,
    /// Compare with the checkpoints in this file: finds a stream that was rewritten or cut off as a whole
    #[arg(long, value_name = "FILE", requires = "checkpoint_key")]
    checkpoints: Option<PathBuf>,
    /// Public key of the checkpoints, as `claviger key get` shows it; once for each version that signed some
    #[arg(long, value_name = "PEM", requires = "checkpoints")]
    checkpoint_key: Vec<PathBuf>,
    /// A restore of the database that you know of, by the receipt that `restore acknowledge` printed; once for each
    #[arg(long, value_name = "SEQ:HASH")]
    restore: Vec<String>,
    /// How long rows of data-plane calls are kept, in days: rows that were pruned sooner are a problem, and all without this
    #[arg(long, value_name = "DAYS")]
    access_days: Option<u32>,
    /// The same for rows of administrative calls
    #[arg(long, value_name = "DAYS")]
    admin_days: Option<u32>,
}

/// Rows of one call: rehashed well within the daemon's time for a call.
const PART: i64 = 50_000;
/// Expectations of one call; the daemon takes 5000.
const EXPECTED: usize = 5000;

pub async fn run(args: Verify, session: &Session) -> Result<Exit> {
    let kept = match &args.checkpoints {
        Some(file) => Some(read(file, &args.checkpoint_key)?),
        None => None,
    };
    let mut answer = verify(&args.stream, session).await?;
    if !args.stream.is_empty() && args.stream != audit::ADMIN_STREAM {
        // What explains a gap in a stream is in this one.
        answer.restores = verify(audit::ADMIN_STREAM, session).await?.restores;
    }
    let mut problems = unknown_restores(&args.restore, &answer.restores);
    let known = answer.restores.iter();
    let known = known.filter(|restore| args.restore.contains(&receipt(restore)));
    let lost: Vec<RestoredSpan> = known.filter_map(span).collect();
    let is_lost = |checkpoint: &Checkpoint| lost.iter().any(|span| span.took(checkpoint.at));
    for report in &answer.streams {
        let days = match report.stream.as_str() {
            audit::ADMIN_STREAM => args.admin_days,
            _ => args.access_days,
        };
        problems.extend(unproven_cut(report, days, kept.as_ref(), is_lost));
    }
    if let Some(kept) = &kept {
        let of_stream = |head: &StreamHead| args.stream.is_empty() || head.stream == args.stream;
        let known = kept
            .checkpoints
            .iter()
            .filter(|checkpoint| !is_lost(checkpoint));
        let heads = known.flat_map(|checkpoint| checkpoint.heads.clone());
        compare(heads.filter(of_stream).collect(), session, &mut answer).await?;
        problems.extend(kept.problems.clone());
        problems.extend(checkpoint_file::contradictions(&kept.checkpoints, is_lost));
    }
    answer.intact =
        answer.streams.iter().all(|report| report.intact) && answer.mismatches.is_empty();
    session.show(&answer, |answer| table(answer, kept.as_ref()))?;
    for problem in &problems {
        eprintln!("claviger: checkpoints: {problem}");
    }
    Ok(match answer.intact && problems.is_empty() {
        true => Exit::Ok,
        false => Exit::No,
    })
}

/// Every stream, or one, in parts that a call has time for.
async fn verify(stream: &str, session: &Session) -> Result<VerifyAuditResponse> {
    let request = VerifyAuditRequest {
        stream: stream.to_owned(),
        max_rows: PART,
        ..Default::default()
    };
    let mut answer = session.audit().verify_audit(request).await?.into_inner();
    for report in &mut answer.streams {
        while report.intact && report.next_seq != 0 {
            let request = VerifyAuditRequest {
                stream: report.stream.clone(),
                from_seq: report.next_seq,
                max_rows: PART,
                // The parts belong together.
                expect: vec![AuditHead {
                    stream: report.stream.clone(),
                    seq: report.head_seq,
                    hash: report.head_hash.clone(),
                }],
            };
            let next = session.audit().verify_audit(request).await?.into_inner();
            answer.mismatches.extend(next.mismatches);
            answer.restores.extend(next.restores);
            let [part] = <[AuditStreamReport; 1]>::try_from(next.streams)
                .map_err(|_| Failure::other("the daemon did not report on the stream"))?;
            *report = AuditStreamReport {
                rows: report.rows + part.rows,
                ..part
            };
        }
    }
    Ok(answer)
}

/// `SEQ:HASH` of its row.
fn receipt(restore: &AuditRestore) -> String {
    format!("{}:{}", restore.seq, restore.hash)
}

fn span(restore: &AuditRestore) -> Option<RestoredSpan> {
    let micros = |time| {
        Some(Timestamp::from_micros(
            output::instant(time)?.as_microsecond(),
        ))
    };
    Some(RestoredSpan {
        kept_until: micros(&restore.kept_until)?,
        checkpoint_at: micros(&restore.checkpoint_time)?,
        audit_seq: restore.seq,
    })
}

/// Restores that the log acknowledges and the auditor does not know, and the other way round.
fn unknown_restores(known: &[String], restores: &[AuditRestore]) -> Vec<String> {
    let found: Vec<String> = restores.iter().map(receipt).collect();
    let unknown = found.iter().filter(|receipt| !known.contains(receipt)).map(|receipt| {
        format!("the log acknowledges a restore of the database that you do not know of; if it was one, say --restore {receipt}")
    });
    let missing = known
        .iter()
        .filter(|receipt| !found.contains(receipt))
        .map(|receipt| {
            format!("the log does not acknowledge the restore {receipt} that you know of")
        });
    unknown.chain(missing).collect()
}

/// Why a stream may not begin where it does: rows are kept for longer, or no checkpoint that is old enough says that the stream
/// had got there.
fn unproven_cut(
    report: &AuditStreamReport,
    days: Option<u32>,
    kept: Option<&CheckpointFile>,
    is_lost: impl Fn(&Checkpoint) -> bool,
) -> Option<String> {
    if report.pruned_seq == 0 {
        return None;
    }
    let (stream, row) = (&report.stream, report.pruned_seq);
    let Some(days) = days else {
        return Some(format!(
            "stream {stream} was pruned up to row {row}; if that is meant to be, say how long rows are kept \
             (--access-days, --admin-days)"
        ));
    };
    let days = jiff::SignedDuration::from_hours(24 * i64::from(days));
    let until = jiff::Timestamp::now()
        .checked_sub(days)
        .ok()?
        .as_microsecond();
    let named = |checkpoint: &&Checkpoint| {
        let says = |kept: &StreamHead| {
            kept.stream == *stream
                && kept.head.seq == row
                && audit::hex(&kept.head.hash) == report.pruned_hash
        };
        checkpoint.at.micros() <= until && !is_lost(checkpoint) && checkpoint.heads.iter().any(says)
    };
    let is_named = kept?
        .checkpoints
        .iter()
        .any(|checkpoint| named(&checkpoint));
    (!is_named).then(|| {
        format!("stream {stream} was pruned up to row {row}, and no checkpoint from before that time names that row")
    })
}

/// Asks for every head that some checkpoint has.
async fn compare(
    heads: Vec<StreamHead>,
    session: &Session,
    answer: &mut VerifyAuditResponse,
) -> Result<()> {
    let expected = heads.into_iter().filter(|kept| kept.head.seq > 0);
    let mut expected: Vec<AuditHead> = expected
        .map(|kept| AuditHead {
            stream: kept.stream,
            seq: kept.head.seq,
            hash: audit::hex(&kept.head.hash),
        })
        .collect();
    // A stream that did not move is in every checkpoint.
    let order = |head: &AuditHead| (head.stream.clone(), head.seq, head.hash.clone());
    expected.sort_by_key(order);
    expected.dedup();
    for part in expected.chunks(EXPECTED) {
        // The chains were recomputed already: one row of one stream, and the comparison.
        let request = VerifyAuditRequest {
            stream: audit::ADMIN_STREAM.to_owned(),
            max_rows: 1,
            expect: part.to_vec(),
            ..Default::default()
        };
        let compared = session.audit().verify_audit(request).await?.into_inner();
        answer.mismatches.extend(compared.mismatches);
    }
    Ok(())
}

fn read(file: &Path, keys: &[PathBuf]) -> Result<CheckpointFile> {
    let keys = keys
        .iter()
        .map(|path| input::public_key("--checkpoint-key", path))
        .collect::<Result<Vec<_>>>()?;
    let text = std::fs::read(file)
        .map_err(|e| Failure::usage(format!("--checkpoints {}: {e}", file.display())))?;
    // What is not UTF-8 is not signed.
    let kept = checkpoint_file::read(&String::from_utf8_lossy(&text), &keys);
    if kept.checkpoints.is_empty() && kept.problems.is_empty() {
        return Err(Failure::new(
            Exit::No,
            format!(
                "{}: no checkpoint that --checkpoint-key signed",
                file.display()
            ),
        ));
    }
    Ok(kept)
}

fn table(answer: &VerifyAuditResponse, kept: Option<&CheckpointFile>) -> String {
    let mut text = reports(&answer.streams);
    if !answer.restores.is_empty() {
        text.push('\n');
        text.push_str(&restores(&answer.restores));
    }
    if let Some(kept) = kept {
        text.push_str(&summary(kept));
    }
    if !answer.mismatches.is_empty() {
        text.push('\n');
        text.push_str(&mismatches(&answer.mismatches));
    }
    text
}

fn reports(streams: &[AuditStreamReport]) -> String {
    let rows = streams.iter().map(|report| {
        let verdict = match report.intact {
            true if report.pruned_seq != 0 => {
                format!("intact, pruned up to {}", report.pruned_seq)
            }
            true => "intact".to_owned(),
            false => format!("BROKEN at {}: {}", report.broken_at, report.problem),
        };
        [
            report.stream.clone(),
            report.rows.to_string(),
            report.head_hash.clone(),
            verdict,
        ]
    });
    output::table(["STREAM", "ROWS", "HEAD", "VERDICT"], rows)
}

fn summary(kept: &CheckpointFile) -> String {
    let mut text = format!("\n{} checkpoints", kept.checkpoints.len());
    if let Some(last) = kept.checkpoints.last() {
        // What happened after it, no checkpoint proves.
        text.push_str(&format!(", the last of {}", last.at));
    }
    if kept.unsigned > 0 {
        text.push_str(&format!(
            "; {} pieces without a known signature",
            kept.unsigned
        ));
    }
    text.push('\n');
    text
}

fn restores(restores: &[AuditRestore]) -> String {
    let rows = restores.iter().map(|restore| {
        [
            output::clock_time(&restore.time),
            restore.seq.to_string(),
            output::clock_time(&restore.kept_until),
            restore.by.clone(),
            restore.reason.clone(),
        ]
    });
    output::table(["RESTORE", "ROW", "BACK TO", "BY", "REASON"], rows)
}

fn mismatches(mismatches: &[AuditMismatch]) -> String {
    let rows = mismatches.iter().map(|mismatch| {
        [
            mismatch.stream.clone(),
            mismatch.seq.to_string(),
            mismatch.problem.clone(),
        ]
    });
    output::table(["STREAM", "ROW", "AGAINST THE CHECKPOINT"], rows)
}
