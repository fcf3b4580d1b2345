//! Removes rows of the audit log that are older than their retention, behind a checkpoint (`audit::pruning`, R-OPS-5).
//!
//! A stream is cut at the row that the newest checkpoint from before the retention names. Before that, the chain up to it is
//! recomputed, and what does not fit is evidence: it stays, and people are told. The cut is one audited transaction; then the
//! rows go, oldest first, a few at each look, so that no writer waits. A leader that dies in between leaves a cut whose rows
//! the next one removes. The last row of the admin stream stays: replicas ask for it.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::Work;
use crate::{
    audit::{
        ADMIN_STREAM, Checkpoint, CheckpointConfig, Head, Range, RetentionConfig, StreamHead,
        checkpoint_file, pruning, verify,
    },
    error::{Error, Reason, Result},
    model::{Action, AlertId, Job, KeyRef, PublicKey, Resource, TenantName, Timestamp},
    store::{Alert, Pruned, RestoredSpan, StoreError, Term},
};

/// Time between two looks at the file of checkpoints.
const EVERY: Duration = Duration::from_secs(60 * 60);
/// Rows that are recomputed, or removed, at one look.
const SOME: i64 = 20_000;

/// What is to be pruned, and how far that is.
pub struct Pruning {
    retention: RetentionConfig,
    checkpoint: CheckpointConfig,
    issuer: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The term that it was planned in: what another leader did since is not known here.
    term: Option<i64>,
    /// No new cuts before this.
    next: Option<Instant>,
    /// Where streams are to be cut.
    cuts: VecDeque<StreamHead>,
    /// Of the first of them: the chain is whole up to here.
    proven: Option<i64>,
}

impl Pruning {
    /// What the configuration asks for; None when nothing is ever pruned. `issuer` says whose checkpoints count.
    pub fn new(
        retention: RetentionConfig,
        checkpoint: Option<CheckpointConfig>,
        issuer: String,
    ) -> Option<Self> {
        let checkpoint = checkpoint.filter(|_| retention.prunes())?;
        Some(Self {
            retention,
            checkpoint,
            issuer,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_due(&self) -> bool {
        self.state().next.is_none_or(|next| next <= Instant::now())
    }

    fn first(&self) -> Option<(StreamHead, Option<i64>)> {
        let state = self.state();
        Some((state.cuts.front()?.clone(), state.proven))
    }

    /// Forgets what was planned in another term.
    fn begin(&self, term: &Term) {
        let mut state = self.state();
        if state.term != Some(term.fence()) {
            *state = State {
                term: Some(term.fence()),
                ..State::default()
            };
        }
    }

    fn plan(&self, cuts: VecDeque<StreamHead>) {
        let term = self.state().term;
        *self.state() = State {
            term,
            next: Some(Instant::now() + EVERY),
            cuts,
            proven: None,
        };
    }

    fn proven(&self, seq: i64) {
        self.state().proven = Some(seq);
    }

    /// The first cut is made, or must not be.
    fn done(&self) {
        let mut state = self.state();
        state.cuts.pop_front();
        state.proven = None;
    }
}

/// One step: removes rows behind a cut, proves or makes the next cut, or looks for new ones.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    let Some(pruning) = &work.pruning else {
        return Ok(());
    };
    pruning.begin(term);
    let all = work.db.all_pruned().await?;
    for begun in all.iter().filter(|pruned| !pruned.is_finished) {
        // What the log does not say is not done.
        if verify::is_recorded(&work.db, begun).await? {
            return remove(work, term, begun).await;
        }
    }
    if let Some((cut, proven)) = pruning.first() {
        return advance(work, term, pruning, cut, proven, &all).await;
    }
    if pruning.is_due() {
        pruning.plan(look(work, pruning, &all).await?);
    }
    Ok(())
}

async fn remove(work: &Work, term: &Term, pruned: &Pruned) -> Result<()> {
    let mut tx = work.db.begin().await?;
    tx.hold(term).await?;
    let done = tx
        .remove_audit_rows(&pruned.stream, pruned.last.seq, SOME)
        .await?;
    tx.commit().await?;
    if done {
        tracing::info!(
            stream = pruned.stream,
            through = pruned.last.seq,
            "pruned the audit log"
        );
    }
    Ok(())
}

/// Where streams can be cut now. Of a replica that is gone all rows go; the head of its stream stays.
async fn look(work: &Work, pruning: &Pruning, all: &[Pruned]) -> Result<VecDeque<StreamHead>> {
    let now = work.db.now().await?;
    let heads = work.db.audit_heads().await?;
    let restores = work.db.restores().await?;
    // The row that acknowledges a restore explains checkpoints, so it stays, with all that follow it.
    let acknowledged = restores.iter().map(|restore| restore.audit_seq).min();
    let mut cuts = VecDeque::new();
    for is_admin in [false, true] {
        let kind = if is_admin { ADMIN_STREAM } else { "access/" };
        let Some(until) = pruning.retention.until(kind, now) else {
            continue;
        };
        let Some(checkpoint) = newest_until(work, pruning, until, restores.clone()).await? else {
            continue;
        };
        let of_kind = checkpoint.heads.into_iter();
        cuts.extend(of_kind.filter(|cut| {
            let pruned = all.iter().find(|pruned| pruned.stream == cut.stream);
            let last = heads.iter().find(|(stream, _)| *stream == cut.stream);
            (cut.stream == ADMIN_STREAM) == is_admin
                && cut.head.seq > pruned.map_or(0, |pruned| pruned.last.seq)
                && last.is_some_and(|(_, last)| !is_admin || cut.head.seq < last.seq)
                && (!is_admin || acknowledged.is_none_or(|row| cut.head.seq < row))
        }));
    }
    Ok(cuts)
}

async fn newest_until(
    work: &Work,
    pruning: &Pruning,
    until: Timestamp,
    restores: Vec<RestoredSpan>,
) -> Result<Option<Checkpoint>> {
    let keys = keys(work, &pruning.checkpoint).await?;
    let (file, issuer) = (pruning.checkpoint.file.clone(), pruning.issuer.clone());
    let path = file.clone();
    let read = move || {
        let counts = |checkpoint: &Checkpoint| !restores.iter().any(|r| r.took(checkpoint.at));
        checkpoint_file::newest_until(&path, &issuer, &keys, until, counts)
    };
    let read = tokio::task::spawn_blocking(read).await;
    read.map_err(Error::internal)?.map_err(|error| {
        let file = file.display();
        Error::internal(format!("audit.checkpoint.file {file}: {error}"))
    })
}

async fn keys(work: &Work, config: &CheckpointConfig) -> Result<Vec<PublicKey>> {
    let reference: KeyRef = config.key.parse()?;
    let target = work.keys.find(&TenantName::system(), &reference).await?;
    let versions = target.snapshot()?.versions().iter();
    let public = versions.filter_map(|version| version.version.public_key());
    Ok(public.cloned().collect())
}

/// Proves some more of the chain up to the cut, or makes the cut when all of it is whole.
async fn advance(
    work: &Work,
    term: &Term,
    pruning: &Pruning,
    cut: StreamHead,
    proven: Option<i64>,
    all: &[Pruned],
) -> Result<()> {
    let pruned = all.iter().find(|pruned| pruned.stream == cut.stream);
    let from = proven.or(pruned.map(|p| p.last.seq)).unwrap_or(0) + 1;
    let range = Range {
        from,
        rows: Some(SOME.min(cut.head.seq - from + 1)),
    };
    let reports = verify::verify_part(&work.db, &cut.stream, range).await?;
    let report = reports.into_iter().next();
    let report = report.ok_or_else(|| Error::internal("no report on a stream"))?;
    let reached = report.head;
    // One that ends before the cut has lost its end.
    let goes_on = reached.seq < cut.head.seq && report.next.is_some();
    if report.problem.is_some() || !(goes_on || reached == cut.head) {
        pruning.done();
        return alert(work, term, &cut.stream).await;
    }
    if goes_on {
        pruning.proven(reached.seq);
        return Ok(());
    }
    if cut.stream == ADMIN_STREAM {
        // Rows about other cuts would go with it.
        let behind = |p: &&Pruned| p.stream != ADMIN_STREAM && p.audit_seq <= cut.head.seq;
        for other in all.iter().filter(behind) {
            record(work, term, other.stream.clone(), other.last.clone()).await?;
        }
    }
    record(work, term, cut.stream, cut.head).await?;
    pruning.done();
    Ok(())
}

/// The cut, and the row that says so, in one transaction.
async fn record(work: &Work, term: &Term, stream: String, last: Head) -> Result<()> {
    let term = term.clone();
    let act = async move |permit: crate::gate::AdminPermit| {
        let mut mutation = permit.begin_in(&term).await?;
        mutation.on("audit", &stream);
        let tx = mutation.tx();
        // Nobody else's row comes in between: ours is the next.
        tx.lock_admin_stream().await?;
        let head = tx.audit_head(ADMIN_STREAM).await?;
        let row = head.map_or(0, |head| head.seq) + 1;
        if !tx.set_pruned(&stream, &last, row).await? {
            return Err(
                StoreError::Corrupt(format!("stream {stream} begins later already")).into(),
            );
        }
        mutation.record((), pruning::details(&last)).await
    };
    let resource = Resource::tenant(TenantName::system());
    let recorded = work
        .gate
        .work(Job::Scheduler, Action::PruneAudit, resource, act);
    recorded.await.map(|_| ())
}

/// The chain does not fit: once a day.
async fn alert(work: &Work, term: &Term, stream: &str) -> Result<()> {
    tracing::error!(
        stream,
        reason = Reason::Internal.as_str(),
        "the audit log does not fit its checkpoint and is not pruned; run `claviger audit verify --checkpoints`"
    );
    let now = work.clock.now();
    let alert = Alert {
        id: AlertId::random(),
        tenant: TenantName::system(),
        kind: "AUDIT_BROKEN".to_owned(),
        entity: "audit".to_owned(),
        entity_id: stream.to_owned(),
        text: format!(
            "stream {stream} of the audit log does not fit its checkpoint: rows were changed or removed; nothing of it is pruned"
        ),
        raised_at: now,
        window_key: format!("AUDIT_BROKEN/{stream}/{}", now.seconds() / 86_400),
    };
    let mut tx = work.db.begin().await?;
    tx.hold(term).await?;
    tx.raise_alert(&alert).await?;
    Ok(tx.commit().await?)
}
