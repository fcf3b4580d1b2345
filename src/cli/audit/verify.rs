//! `claviger audit verify`: recomputes the chains, part by part, and compares them with checkpoints that were kept
//! outside the database.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{
    audit::{self, StreamHead, checkpoint},
    cli::{
        exit::{Exit, Failure, Result},
        input,
        options::Session,
        output,
    },
    grpc::proto::{
        AuditHead, AuditMismatch, AuditStreamReport, VerifyAuditRequest, VerifyAuditResponse,
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
    if let Some(kept) = &kept {
        let of_stream = |head: &StreamHead| args.stream.is_empty() || head.stream == args.stream;
        let heads = kept.checkpoints.iter().flat_map(|c| c.heads.clone());
        compare(heads.filter(of_stream).collect(), session, &mut answer).await?;
    }
    answer.intact =
        answer.streams.iter().all(|report| report.intact) && answer.mismatches.is_empty();
    session.show(&answer, |answer| table(answer, kept.as_ref()))?;
    let problems = kept.map(|kept| kept.problems).unwrap_or_default();
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

fn read(file: &Path, keys: &[PathBuf]) -> Result<checkpoint::CheckpointFile> {
    let keys = keys
        .iter()
        .map(|path| input::public_key("--checkpoint-key", path))
        .collect::<Result<Vec<_>>>()?;
    let text = std::fs::read(file)
        .map_err(|e| Failure::usage(format!("--checkpoints {}: {e}", file.display())))?;
    // What is not UTF-8 is not signed.
    let kept = checkpoint::read(&String::from_utf8_lossy(&text), &keys);
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

fn table(answer: &VerifyAuditResponse, kept: Option<&checkpoint::CheckpointFile>) -> String {
    let mut text = reports(&answer.streams);
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

fn summary(kept: &checkpoint::CheckpointFile) -> String {
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
