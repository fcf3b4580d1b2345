//! Writes checkpoints of the audit log to a file outside the database (`audit::checkpoint`).
//!
//! The note is durable in the file before its row is in the log: a crash in between leaves a checkpoint without a row,
//! which proves as much. A checkpoint that fails keeps nothing else from happening; people are told.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;
use tokio::time::Instant;

use super::Work;
use crate::{
    audit::{
        ADMIN_STREAM, Checkpoint, CheckpointConfig, Head, Receipt, StreamHead, checkpoint_file,
        note,
    },
    error::{Error, Reason, Result},
    gate::{AdminPermit, Recorded},
    keys::Keys,
    model::{Action, AlertId, Job, KeyRef, Kid, PublicKey, Resource, TenantName},
    store::{Alert, Term},
};

/// What to write where, and what was written last.
pub struct Checkpoints {
    config: CheckpointConfig,
    issuer: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Not before this.
    next: Option<Instant>,
    /// Where the streams ended after the last checkpoint: its own row included.
    last: Option<Vec<StreamHead>>,
    /// How many versions the last checkpoint says are frozen.
    frozen: usize,
}

impl Checkpoints {
    /// `issuer` says whose log it is.
    pub fn new(config: CheckpointConfig, issuer: String) -> Self {
        Self {
            config,
            issuer,
            state: Mutex::default(),
        }
    }

    /// At the interval; and at once after a freeze, which must outlive the database.
    fn is_due(&self, frozen: usize) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.frozen != frozen || state.next.is_none_or(|next| next <= Instant::now())
    }

    fn is_written(&self, heads: &[StreamHead]) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.last.as_deref() == Some(heads)
    }

    /// Nothing is due before the next interval, or the next freeze. `heads` when they were written down.
    fn done(&self, frozen: usize, heads: Option<Vec<StreamHead>>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.next = Some(Instant::now() + self.config.interval());
        state.last = heads.or_else(|| state.last.take());
        state.frozen = frozen;
    }
}

/// Writes a checkpoint when one is due and a stream has moved since the last.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    let Some(checkpoints) = work.checkpoints.as_ref() else {
        return Ok(());
    };
    let frozen = work.db.frozen_kids().await?;
    let count = frozen.len();
    if !checkpoints.is_due(count) {
        return Ok(());
    }
    let heads = heads(work).await?;
    if checkpoints.is_written(&heads) {
        checkpoints.done(count, None);
        return Ok(());
    }
    match write(work, checkpoints, term, heads.clone(), frozen).await {
        Ok(receipt) => {
            metrics::counter!("claviger_audit_checkpoints_total").increment(1);
            checkpoints.done(count, Some(after(heads, receipt)));
            Ok(())
        }
        Err(error) if error.reason() == Reason::LeaseLost => Err(error),
        Err(error) => {
            metrics::counter!("claviger_audit_checkpoint_failures_total").increment(1);
            alert(work, term, &error).await?;
            Err(error)
        }
    }
}

async fn heads(work: &Work) -> Result<Vec<StreamHead>> {
    let heads = work.db.audit_heads().await?.into_iter();
    Ok(heads
        .map(|(stream, head)| StreamHead { stream, head })
        .collect())
}

/// The heads as the checkpoint's own row leaves them. Where another row came in between, that one is not covered, and a
/// further checkpoint is due.
fn after(mut heads: Vec<StreamHead>, receipt: Receipt) -> Vec<StreamHead> {
    for StreamHead { stream, head } in &mut heads {
        if stream == ADMIN_STREAM && receipt.seq == head.seq + 1 {
            *head = Head {
                seq: receipt.seq,
                hash: receipt.hash.clone(),
            };
        }
    }
    heads
}

async fn write(
    work: &Work,
    checkpoints: &Checkpoints,
    term: &Term,
    heads: Vec<StreamHead>,
    frozen: Vec<Kid>,
) -> Result<Receipt> {
    let (keys, term, config) = (
        Arc::clone(&work.keys),
        term.clone(),
        checkpoints.config.clone(),
    );
    let checkpoint = Checkpoint {
        issuer: checkpoints.issuer.clone(),
        heads,
        frozen,
        at: work.db.now().await?,
    };
    let act = async move |permit| record(permit, keys, term, config, checkpoint).await;
    let resource = Resource::tenant(TenantName::system());
    let gate = &work.gate;
    let recorded = gate.work(Job::Scheduler, Action::CheckpointAudit, resource, act);
    Ok(recorded.await?.1)
}

async fn record(
    permit: AdminPermit,
    keys: Arc<Keys>,
    term: Term,
    config: CheckpointConfig,
    checkpoint: Checkpoint,
) -> Result<Recorded<()>> {
    let text = checkpoint
        .text()
        .ok_or_else(|| Error::internal("a stream has a name that no checkpoint can hold"))?;
    let reference: KeyRef = config.key.parse()?;
    let target = keys.find(&TenantName::system(), &reference).await?;
    let key = target.snapshot()?;
    if !note::signs_notes(key.key.algorithm) {
        return Err(Error::new(
            Reason::AlgorithmMismatch,
            format!(
                "audit.checkpoint.key {} is {}; it must be ES256 or EdDSA",
                key.key.name, key.key.algorithm
            ),
        ));
    }
    let signed = keys.sign_checkpoint(permit.permit(), key, &text).await?;
    let version = key.version(&signed.kid);
    let public: &PublicKey = version
        .and_then(|version| version.version.public_key())
        .ok_or_else(|| Error::internal("the version that signed has no public key"))?;
    let note = note::signed(&checkpoint.issuer, &text, public, &signed.signature);
    let file = config.file.clone();
    let written = tokio::task::spawn_blocking(move || checkpoint_file::append(&file, &note)).await;
    written.map_err(Error::internal)?.map_err(|error| {
        let file = config.file.display();
        Error::internal(format!("audit.checkpoint.file {file}: {error}"))
    })?;
    let mut mutation = permit.begin_in(&term).await?;
    mutation.on("audit", "checkpoint");
    let details = json!({
        "heads_digest": note::text_digest(&text),
        "streams": checkpoint.heads.len(),
        "frozen": checkpoint.frozen.len(),
        "kid": signed.kid.as_str(),
    });
    mutation.record((), details).await
}

/// Once an hour.
async fn alert(work: &Work, term: &Term, error: &Error) -> Result<()> {
    let now = work.clock.now();
    let alert = Alert {
        id: AlertId::random(),
        tenant: TenantName::system(),
        kind: "CHECKPOINT_FAILED".to_owned(),
        entity: "audit".to_owned(),
        entity_id: "checkpoint".to_owned(),
        text: format!(
            "no checkpoint of the audit log was written ({}); the daemon's log says why",
            error.reason().as_str()
        ),
        raised_at: now,
        window_key: format!("CHECKPOINT_FAILED/{}", now.seconds() / 3600),
    };
    let mut tx = work.db.begin().await?;
    tx.hold(term).await?;
    tx.raise_alert(&alert).await?;
    Ok(tx.commit().await?)
}
