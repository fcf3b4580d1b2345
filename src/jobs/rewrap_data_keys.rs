//! The rotation of the KEK after its deployment: rewraps every data key, then proves that every one unwraps under the new
//! KEK, then completes it; ends what was not deployed in time.
//!
//! A pass goes through the data keys under the old KEK in the order of their kids, batch by batch. Which are left is in
//! the rows, so a daemon that dies loses nothing but the batch in its hands, and the next leader goes on with what is
//! left. A look works for a slice of time and then lets the other jobs have theirs. A data key that does not unwrap keeps
//! no other from moving; it keeps the rotation open, and is tried again. The pass that proves goes through the data keys
//! under the new KEK in the same way, and begins anew with a new leader.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::Work;
use crate::{
    backends::{Priority, with_priority},
    error::Result,
    keys::Batch,
    model::{Action, Entity, Job, KekRotation, KekRotationId, RotationState},
    rotation::kek::platform,
    store::Term,
};

/// Data keys in one transaction.
const BATCH: i64 = 200;
/// How long a look works.
const SLICE: Duration = Duration::from_millis(900);
/// How long after a pass that left something behind the next one begins.
const AGAIN: Duration = Duration::from_secs(20);
/// And how much longer than the pass that proved took: each of them unwraps everything.
const TIMES: u32 = 10;

/// Where the pass of this replica is. Lost with it, and not missed: rows say what is left.
#[derive(Default)]
pub struct Rewrapping(Mutex<Option<Pass>>);

#[derive(Clone)]
struct Pass {
    rotation: KekRotationId,
    /// Nothing is under the old KEK; what is under the new one is unwrapped.
    proves: bool,
    began: Instant,
    /// The last kid that was looked at.
    after: String,
    /// Data keys that did not unwrap in this pass.
    failed: i64,
    not_before: Option<Instant>,
}

impl Pass {
    fn new(rotation: KekRotationId, proves: bool) -> Self {
        Self {
            rotation,
            proves,
            began: Instant::now(),
            after: String::new(),
            failed: 0,
            not_before: None,
        }
    }
}

impl Rewrapping {
    fn of(&self, rotation: &KekRotation) -> Pass {
        let (id, proves) = (rotation.id, rotation.progress.remaining == 0);
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.as_ref();
        kept.filter(|pass| pass.rotation == id && pass.proves == proves)
            .cloned()
            .unwrap_or_else(|| Pass::new(id, proves))
    }

    fn keep(&self, pass: Pass) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(pass);
    }
}

/// Takes the rotation that has not ended as far as a slice of time allows.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    let Some(rotation) = work.kek_rotations.unfinished().await? else {
        return Ok(());
    };
    match rotation.state {
        RotationState::Requested | RotationState::Approved => expire(work, term, rotation).await,
        // The backend's other callers come first.
        RotationState::Deployed => {
            with_priority(Priority::Batch, rewrap(work, term, &rotation)).await
        }
        RotationState::Completed
        | RotationState::Rejected
        | RotationState::Cancelled
        | RotationState::Expired => Ok(()),
    }
}

async fn rewrap(work: &Work, term: &Term, rotation: &KekRotation) -> Result<()> {
    let until = Instant::now() + SLICE;
    let mut pass = work.rewrapping.of(rotation);
    if pass.not_before.is_some_and(|at| Instant::now() < at) {
        return Ok(());
    }
    while Instant::now() < until {
        let (old, new) = (&rotation.old_kek, &rotation.new_kek);
        let kek = if pass.proves { new } else { old };
        let rows = work.keys.data_keys_under(kek, &pass.after, BATCH).await?;
        let Some(last) = rows.last().map(|row| row.kid.as_str().to_owned()) else {
            return end_pass(work, term, rotation, pass).await;
        };
        let batch = match pass.proves {
            true => work.keys.prove_data_keys(rows, old, new).await?,
            false => work.keys.rewrap_data_keys(rows, new).await?,
        };
        pass.failed += batch.undecryptable.len() as i64;
        pass.after = last;
        if !batch.moved.is_empty() {
            record(work, term, rotation, batch, pass.failed).await?;
        }
        work.rewrapping.keep(pass.clone());
    }
    Ok(())
}

async fn record(
    work: &Work,
    term: &Term,
    rotation: &KekRotation,
    batch: Batch,
    failed: i64,
) -> Result<()> {
    let (rotations, term, rotation) = (
        Arc::clone(&work.kek_rotations),
        term.clone(),
        rotation.clone(),
    );
    let resource = platform(Entity::KekRotation(rotation.id));
    let act = async move |permit| {
        rotations
            .record_batch(permit, term, rotation, batch, failed)
            .await
    };
    let (moved, _) = work
        .gate
        .work(Job::Scheduler, Action::RewrapDataKeys, resource, act)
        .await?;
    metrics::counter!("claviger_data_keys_rewrapped_total").increment(moved.unsigned_abs());
    Ok(())
}

/// Every data key that was there has been looked at. What is left does not unwrap, or was added under the old KEK since.
async fn end_pass(work: &Work, term: &Term, rotation: &KekRotation, pass: Pass) -> Result<()> {
    if pass.proves && pass.failed == 0 {
        return complete(work, term, rotation.clone()).await;
    }
    let rotations = &work.kek_rotations;
    rotations
        .note_undecryptable(term, rotation.id, pass.failed)
        .await?;
    let pause = match pass.proves {
        true => AGAIN.max(pass.began.elapsed() * TIMES),
        false => AGAIN,
    };
    work.rewrapping.keep(Pass {
        not_before: (pass.failed > 0).then(|| Instant::now() + pause),
        ..Pass::new(rotation.id, pass.proves)
    });
    Ok(())
}

async fn expire(work: &Work, term: &Term, rotation: KekRotation) -> Result<()> {
    if work.clock.now() < rotation.expires_at {
        return Ok(());
    }
    end(work, term, rotation, Action::ExpireKekRotation).await
}

async fn complete(work: &Work, term: &Term, rotation: KekRotation) -> Result<()> {
    end(work, term, rotation, Action::CompleteKekRotation).await
}

async fn end(work: &Work, term: &Term, rotation: KekRotation, action: Action) -> Result<()> {
    let round = work.patience.round("end_kek_rotation");
    let id = rotation.id;
    if !round.takes(&id) {
        return Ok(());
    }
    let (rotations, term) = (Arc::clone(&work.kek_rotations), term.clone());
    let act = async move |permit| match action {
        Action::CompleteKekRotation => rotations.complete(permit, term, rotation).await,
        _ => rotations.expire(permit, term, rotation).await,
    };
    let resource = platform(Entity::KekRotation(id));
    let ended = work.gate.work(Job::Scheduler, action, resource, act).await;
    if let Ok((rotation, _)) = &ended {
        let (old, state) = (&rotation.old_kek, rotation.state.as_str());
        tracing::info!(rotation = %id, %old, state, "rotation of the key-encryption key has ended");
    }
    round.note(&id, ended)
}
