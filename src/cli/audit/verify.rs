//! `claviger audit verify`: recomputes the chains, part by part, and compares them with checkpoints that were kept
//! outside the database.
//!
//! A restore of the database takes away rows that checkpoints name. Where the log acknowledges one, checkpoints of the history
//! that it took away are no mismatch; but whoever can write to the database can write such an acknowledgement too, so the
//! auditor says how many there are (`--restores`).

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

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
    /// Restores of the database that you know of; any other number is a problem
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    restores: usize,
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
    let mut problems = Vec::new();
    if let Some(kept) = &kept {
        let lost = lost(kept, &answer.restores);
        let of_stream = |head: &StreamHead| args.stream.is_empty() || head.stream == args.stream;
        let known = kept.checkpoints.iter().enumerate();
        let known = known.filter(|(place, _)| !lost.contains(place));
        let heads = known.flat_map(|(_, checkpoint)| checkpoint.heads.clone());
        compare(heads.filter(of_stream).collect(), session, &mut answer).await?;
        problems.extend(kept.problems.clone());
        problems.extend(contradictions(kept, &lost));
        problems.extend(unproven_cuts(kept, &answer.streams));
    }
    if answer.restores.len() != args.restores {
        problems.push(format!(
            "the log acknowledges {} restores of the database, and you know of {}; --restores says how many",
            answer.restores.len(),
            args.restores
        ));
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

/// Places of the checkpoints of histories that were lost to a restore: up to the one that it acknowledges, those that are
/// younger than what the copy had.
fn lost(kept: &CheckpointFile, restores: &[AuditRestore]) -> BTreeSet<usize> {
    let digests: Vec<String> = kept.checkpoints.iter().map(Checkpoint::digest).collect();
    let mut lost = BTreeSet::new();
    for restore in restores {
        let last = digests
            .iter()
            .rposition(|digest| *digest == restore.checkpoint);
        let (Some(last), Some(kept_until)) = (last, output::instant(&restore.kept_until)) else {
            continue;
        };
        let younger =
            |place: &usize| kept.checkpoints[*place].at.micros() > kept_until.as_microsecond();
        lost.extend((0..=last).filter(younger));
    }
    lost
}

/// What the notes say against one another, but where a restore explains it: among those that were lost to it (of an earlier
/// restore whose acknowledgement was lost with them, too), and right behind them.
fn contradictions(kept: &CheckpointFile, lost: &BTreeSet<usize>) -> Vec<String> {
    let explained =
        |place: usize| lost.contains(&place) || (place > 0 && lost.contains(&(place - 1)));
    let found = kept.contradictions.iter();
    let found = found.filter(|(place, _)| !explained(*place));
    found.map(|(_, how)| how.clone()).collect()
}

/// Streams that begin where no checkpoint says that they had got to.
fn unproven_cuts(kept: &CheckpointFile, streams: &[AuditStreamReport]) -> Vec<String> {
    let named = |report: &AuditStreamReport| {
        let heads = kept
            .checkpoints
            .iter()
            .flat_map(|checkpoint| &checkpoint.heads);
        heads.into_iter().any(|kept| {
            kept.stream == report.stream
                && kept.head.seq == report.pruned_seq
                && audit::hex(&kept.head.hash) == report.pruned_hash
        })
    };
    let cut = streams.iter().filter(|report| report.pruned_seq != 0);
    cut.filter(|report| !named(report))
        .map(|report| {
            format!(
                "stream {} was pruned up to row {}, and no checkpoint in the file names that row",
                report.stream, report.pruned_seq
            )
        })
        .collect()
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
