//! After a rotation of the key that a tenant's credentials are sealed by: their values move to the ACTIVE version.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::scheduler::Work;
use crate::{
    error::Result,
    model::{Action, Job},
    store::Term,
    vault::{OutdatedValues, Vault},
};

/// Versions looked at in one round.
const PAGE: i64 = 100;
/// How long a look works; the other jobs have their turn then.
const SLICE: Duration = Duration::from_secs(1);

/// Moves a batch of each version that does not seal any more, and again as long as there is time. A version whose values
/// cannot be moved keeps no other from it.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    let round = work.patience.round("rewrap_credentials");
    let until = Instant::now() + SLICE;
    loop {
        let mut took = false;
        for outdated in work.vault.outdated(PAGE).await? {
            let kid = outdated.kid.clone();
            if round.takes(&kid) {
                took = true;
                round.note(&kid, rewrap(work, term, outdated).await)?;
            }
        }
        // What failed has its pause by now.
        if !took || Instant::now() >= until {
            return Ok(());
        }
    }
}

async fn rewrap(work: &Work, term: &Term, outdated: OutdatedValues) -> Result<()> {
    let (vault, term) = (Arc::clone(&work.vault), term.clone());
    let resource = Vault::resource_of(&outdated);
    let act = async move |permit| vault.rewrap(permit, term, outdated).await;
    let (gate, action) = (&work.gate, Action::RewrapCredentials);
    let (moved, _) = gate.work(Job::Scheduler, action, resource, act).await?;
    metrics::counter!("claviger_credentials_rewrapped_total").increment(moved as u64);
    Ok(())
}
