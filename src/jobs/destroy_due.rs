//! Carries out the destructions whose waiting period is over, and finishes those that a crash cut short.

use std::sync::Arc;

use super::Work;
use crate::{
    error::{Reason, Result},
    model::{Action, Job, KeyDestruction},
    store::Term,
};

/// Destructions of one run; the next run takes the next ones.
const PAGE: i64 = 20;

/// Destroys what is due. One that fails keeps no other from being destroyed; the last failure is the answer.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    let mut outcome = Ok(());
    for due in work.destructions.due(PAGE).await? {
        let id = due.id;
        if let Err(error) = destroy(work, term, due).await {
            if error.reason() == Reason::LeaseLost {
                return Err(error);
            }
            tracing::warn!(destruction = %id, ?error, "destruction not carried out; it is tried again");
            outcome = Err(error);
        }
    }
    outcome
}

async fn destroy(work: &Work, term: &Term, due: KeyDestruction) -> Result<()> {
    let Some(due) = work.destructions.prepare(due, term).await? else {
        return Ok(());
    };
    let (destructions, term) = (Arc::clone(&work.destructions), term.clone());
    let resource = due.resource();
    let act = async move |permit| destructions.conclude(permit, due, term).await;
    work.gate
        .work(Job::Scheduler, Action::DestroyMaterial, resource, act)
        .await?;
    Ok(())
}
