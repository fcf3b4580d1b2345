//! Retires versions whose grace window is over (R-LIFE-5, R-JWT-4): no token under them is valid any more.

use std::sync::Arc;

use super::{
    rotation_steps::{Step, take},
    scheduler::Work,
};
use crate::{
    error::Result,
    model::{Action, Job, KeyId, KeyRef, Kid, TenantName},
    store::Term,
};

/// Completes deployed rotations, and retires versions whose rotation an incident overtook.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    let rotations = &work.rotations;
    take(work, term, Step::Complete, rotations.past_grace().await?).await?;
    let round = work.patience.round("retire_version");
    for (kid, key, tenant) in rotations.versions_past_grace().await? {
        if round.takes(&kid) {
            let retired = retire(work, term, kid.clone(), key, &tenant).await;
            round.note(&kid, retired)?;
        }
    }
    Ok(())
}

async fn retire(work: &Work, term: &Term, kid: Kid, key: KeyId, tenant: &TenantName) -> Result<()> {
    let target = work.keys.find(tenant, &KeyRef::Id(key)).await?;
    let (resource, key) = (target.resource(), Arc::clone(target.snapshot()?));
    let (keys, term) = (Arc::clone(&work.keys), term.clone());
    let skew = work.rotations.clock_skew();
    let act = async move |permit| keys.retire(permit, term, key, kid, skew).await;
    let gate = &work.gate;
    let retired = gate.work(Job::Scheduler, Action::RetireKeyVersion, resource, act);
    let (kid, _) = retired.await?;
    tracing::info!(%kid, "retired a version whose grace window is over");
    Ok(())
}
