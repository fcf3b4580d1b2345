//! Keeps one announced standby version per key that wants it, so that a compromise needs neither device nor soak.

use std::sync::Arc;

use super::scheduler::Work;
use crate::{
    error::Result,
    model::{Action, Job, KeyId, KeyRef, TenantName},
    store::Term,
};

/// Generates standby versions that are missing and withdraws those that are not wanted, or not where they are: the next
/// look generates them where they are.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    let round = work.patience.round("keep_standby");
    for (key, tenant) in work.keys.without_standby().await? {
        if round.takes(&key) {
            let kept = change(work, term, key, &tenant, Change::Generate).await;
            round.note(&key, kept)?;
        }
    }
    let round = work.patience.round("withdraw_standby");
    for (key, tenant) in work.keys.with_unwanted_standby().await? {
        if round.takes(&key) {
            let withdrawn = change(work, term, key, &tenant, Change::Withdraw).await;
            round.note(&key, withdrawn)?;
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Generate,
    Withdraw,
}

async fn change(
    work: &Work,
    term: &Term,
    key: KeyId,
    tenant: &TenantName,
    change: Change,
) -> Result<()> {
    let target = work.keys.find(tenant, &KeyRef::Id(key)).await?;
    let (resource, key) = (target.resource(), Arc::clone(target.snapshot()?));
    if change == Change::Generate || key.key.policy.standby {
        // Before the gate: that a device is away is no change that failed. A standby version that is in the wrong backend is
        // better than none, so it stays until the right one answers.
        work.keys.expect_device(&key).await?;
    }
    let (keys, term) = (Arc::clone(&work.keys), term.clone());
    let act = async move |permit| match change {
        Change::Generate => keys.keep_standby(permit, term, key).await,
        Change::Withdraw => keys.withdraw_standby(permit, term, key).await,
    };
    let gate = &work.gate;
    let changed = gate.work(Job::Scheduler, Action::KeepStandby, resource, act);
    let (kid, _) = changed.await?;
    tracing::info!(%kid, ?change, "standby version");
    Ok(())
}
