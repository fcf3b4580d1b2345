//! Destroys the keys of tenants whose waiting period is over, key after key, and goes on where a crash cut it short.

use std::sync::Arc;

use super::{Work, round::Round};
use crate::{
    erasure::Erasures,
    error::{Error, Reason, Result},
    model::{Action, Job, KeyId, TenantDestruction, TenantDestructionState},
    store::Term,
};

/// Destructions that are read at a time.
const PAGE: i64 = 20;
const ACTION: Action = Action::DestroyTenantMaterial;

/// Goes on with what is due. A key that fails keeps no other from being destroyed, and people are told.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    expire(work, term).await?;
    let round = work.patience.round("destroy_tenants");
    let mut after = String::new();
    // To the end: those that fail stay at the front for ever.
    loop {
        let page = work.erasures.due(&after, PAGE).await?;
        for due in &page {
            let id = due.id;
            if round.takes(&id) {
                let done = carry_out(work, term, &round, due).await;
                tell(work, term, due, done.as_ref().err()).await?;
                round.note(&id, done)?;
            }
        }
        match page.last() {
            Some(last) if page.len() as i64 == PAGE => after = last.id.to_string(),
            _ => return Ok(()),
        }
    }
}

/// What was asked for or approved too long ago must be asked for again.
async fn expire(work: &Work, term: &Term) -> Result<()> {
    let round = work.patience.round("expire_tenant_destructions");
    for stale in work.erasures.stale(PAGE).await? {
        let (id, resource) = (stale.id, Erasures::resource(&stale));
        if !round.takes(&id) {
            continue;
        }
        let (erasures, term) = (Arc::clone(&work.erasures), term.clone());
        let act = async move |permit| erasures.expire(permit, stale, term).await;
        let ended = work.gate.work(Job::Scheduler, ACTION, resource, act).await;
        round.note(&id, ended.map(drop))?;
    }
    Ok(())
}

async fn carry_out(
    work: &Work,
    term: &Term,
    round: &Round<'_>,
    due: &TenantDestruction,
) -> Result<()> {
    if due.state == TenantDestructionState::Scheduled {
        begin(work, term, due).await?;
    }
    let mut is_left = false;
    for key in work.erasures.unclosed(&due.tenant).await? {
        if !round.takes(&key) {
            is_left = true;
            continue;
        }
        let closed = close(work, term, due, key).await;
        is_left |= closed.is_err();
        round.note(&key, closed)?;
    }
    for key in work.erasures.remaining(&due.tenant).await? {
        if !round.takes(&key) {
            is_left = true;
            continue;
        }
        let done = destroy(work, term, due, key).await;
        is_left |= done.is_err();
        tell(work, term, due, done.as_ref().err()).await?;
        round.note(&key, done)?;
    }
    if is_left {
        return Ok(());
    }
    finish(work, term, due).await
}

async fn begin(work: &Work, term: &Term, due: &TenantDestruction) -> Result<()> {
    let (erasures, term, begun) = (Arc::clone(&work.erasures), term.clone(), due.clone());
    let act = async move |permit| erasures.begin(permit, begun, term).await;
    let resource = Erasures::resource(due);
    let work = work.gate.work(Job::Scheduler, ACTION, resource, act);
    work.await.map(drop)
}

async fn close(work: &Work, term: &Term, due: &TenantDestruction, key: KeyId) -> Result<()> {
    let (erasures, term) = (Arc::clone(&work.erasures), term.clone());
    let act = async move |permit| erasures.close(permit, key, term).await;
    let resource = Erasures::resource(due);
    let work = work.gate.work(Job::Scheduler, ACTION, resource, act);
    work.await.map(drop)
}

async fn destroy(work: &Work, term: &Term, due: &TenantDestruction, key: KeyId) -> Result<()> {
    let mut shredding = work.erasures.shred(due, key, term).await?;
    if let Some(failure) = shredding.nothing() {
        return failure.map_or(Ok(()), Err);
    }
    let failure = shredding.failure();
    let (erasures, term) = (Arc::clone(&work.erasures), term.clone());
    let act = async move |permit| erasures.conclude(permit, shredding, term).await;
    let resource = Erasures::resource(due);
    let work = work.gate.work(Job::Scheduler, ACTION, resource, act);
    work.await?;
    failure.map_or(Ok(()), Err)
}

async fn finish(work: &Work, term: &Term, due: &TenantDestruction) -> Result<()> {
    let (erasures, term, done) = (Arc::clone(&work.erasures), term.clone(), due.clone());
    let act = async move |permit| erasures.finish(permit, done, term).await;
    let resource = Erasures::resource(due);
    let work = work.gate.work(Job::Scheduler, ACTION, resource, act);
    work.await.map(drop)
}

/// People are told of what does not pass by itself.
async fn tell(
    work: &Work,
    term: &Term,
    due: &TenantDestruction,
    error: Option<&Error>,
) -> Result<()> {
    match error {
        None => Ok(()),
        Some(error) if matches!(error.reason(), Reason::LeaseLost | Reason::Conflict) => Ok(()),
        Some(error) => work.erasures.alert(due, error, term).await,
    }
}
