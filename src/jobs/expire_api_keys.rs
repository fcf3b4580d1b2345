//! API keys and time: those that end soon are announced, those whose time is over are EXPIRED (R-OAUTH-4).

use std::sync::Arc;

use super::scheduler::Work;
use crate::{
    clients::ApiKeys,
    error::Result,
    model::{Action, Job},
    store::{OverdueApiKey, Term},
};

/// Rows read at a time.
const PAGE: i64 = 100;

/// Expires what is over, page after page, as long as the round lasts. A key that cannot be expired keeps no other from it.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    let round = work.patience.round("expire_api_keys");
    let mut after = Default::default();
    loop {
        let (page, next) = work.api_keys.overdue(&after, PAGE).await?;
        let Some(next) = next else { return Ok(()) };
        for overdue in page {
            let overdue = match overdue {
                Ok(overdue) => overdue,
                Err(error) => {
                    tracing::error!(%error, "an API key whose time is over cannot be read");
                    continue;
                }
            };
            if round.takes(&overdue.id) {
                let expired = expire(work, term, &overdue).await;
                round.note(&overdue.id, expired)?;
            }
        }
        if round.is_over() {
            return Ok(());
        }
        after = next;
    }
}

async fn expire(work: &Work, term: &Term, overdue: &OverdueApiKey) -> Result<()> {
    let (api_keys, term, id) = (Arc::clone(&work.api_keys), term.clone(), overdue.id);
    let resource = ApiKeys::resource_of(overdue);
    let act = async move |permit| api_keys.expire(permit, term, id).await;
    let gate = &work.gate;
    gate.work(Job::Scheduler, Action::ExpireApiKey, resource, act)
        .await?;
    Ok(())
}

/// Announces what ends soon.
pub async fn warn(work: &Work, term: &Term) -> Result<()> {
    let round = work.patience.round("warn_api_keys");
    for key in work.api_keys.expiring(PAGE).await? {
        if round.takes(&key.id) {
            round.note(&key.id, work.api_keys.warn(term, &key).await)?;
        }
    }
    Ok(())
}
