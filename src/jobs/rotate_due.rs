//! Opens a rotation for every key that is due (R-LIFE-3), and takes those under a standing approval through.

use std::sync::Arc;

use super::{
    rotation_steps::{Step, take},
    scheduler::Work,
};
use crate::{
    error::Result,
    model::{Action, Job, KeyId, KeyRef, TenantName},
    store::Term,
};

/// Opens what is due, approves and deploys what a standing approval covers.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    let rotations = &work.rotations;
    let round = work.patience.round("open_due");
    for (key, tenant) in rotations.due_keys().await? {
        if round.takes(&key) {
            round.note(&key, open(work, term, key, &tenant).await)?;
        }
    }
    take(work, term, Step::Approve, rotations.approvable().await?).await?;
    take(work, term, Step::Deploy, rotations.deployable().await?).await
}

async fn open(work: &Work, term: &Term, key: KeyId, tenant: &TenantName) -> Result<()> {
    let target = work.keys.find(tenant, &KeyRef::Id(key)).await?;
    let (resource, key) = (target.resource(), Arc::clone(target.snapshot()?));
    // Before the gate: that a device is away is no change that failed, and need not be in the audit log every second.
    work.keys.expect_device(&key).await?;
    let (rotations, term) = (Arc::clone(&work.rotations), term.clone());
    let act = async move |permit| rotations.open_due(permit, term, key).await;
    let gate = &work.gate;
    let opened = gate.work(Job::Scheduler, Action::RotateKey, resource, act);
    let (rotation, _) = opened.await?;
    tracing::info!(rotation = %rotation.id, key = %rotation.key_name, "opened a rotation of a key that is due");
    Ok(())
}
