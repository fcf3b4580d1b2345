//! Rotations of credentials whose old value is held: looked at until it is dead, rolled back when the new one fails. And
//! people are told what is due (R-CRED-7).

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::scheduler::Work;
use crate::{
    error::Result,
    model::{Action, CredentialRotationId, Job, Probed, Resource, credential_rotation::OfHeld},
    store::Term,
    vault::{FoundRotation, Look, RollBack},
};

/// Rows looked at in one round.
const PAGE: i64 = 100;
/// For all that one rotation has to ask. Providers that hang must not run the term out.
const PATIENCE: Duration = Duration::from_secs(4);

/// Looks at what is to be looked at. A rotation that cannot be keeps no other from its turn.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    let round = work.patience.round("rotate_credentials");
    for rotation in work.vault.rotations_to_check(PAGE).await? {
        if round.takes(&rotation.id) {
            round.note(&rotation.id, check(work, term, rotation.id).await)?;
        }
    }
    Ok(())
}

async fn check(work: &Work, term: &Term, id: CredentialRotationId) -> Result<()> {
    let (resource, found) = work.vault.find_rotation(id).await?;
    // Its credential was deleted at this very moment, and the rotation with it.
    let Some(found) = found else { return Ok(()) };
    let look = match timeout(PATIENCE, work.vault.look(&found)).await {
        Ok(look) => look?,
        Err(_) => Look::nothing(),
    };
    let (vault, gate, scheduler) = (Arc::clone(&work.vault), &work.gate, Job::Scheduler);
    match look {
        Look {
            next: OfHeld::RollBack,
            new: Some(new),
            old: Some(old),
        } => {
            let (term, why) = (term.clone(), RollBack::Refused { new, old });
            let act =
                async move |permit| vault.roll_back(permit, Some(term), Some(found), why).await;
            let action = Action::RollBackCredential;
            gate.work(scheduler, action, resource, act).await?;
        }
        Look {
            next: OfHeld::Complete,
            old: Some(old),
            ..
        } => complete(work, term, found, old, resource).await?,
        look => work.vault.keep_holding(term, &found, look).await?,
    }
    Ok(())
}

async fn complete(
    work: &Work,
    term: &Term,
    found: FoundRotation,
    said: Probed,
    resource: Resource,
) -> Result<()> {
    let (vault, term) = (Arc::clone(&work.vault), term.clone());
    let act = async move |permit| vault.complete_held(permit, term, found, said).await;
    let (gate, action) = (&work.gate, Action::CompleteCredentialRotation);
    gate.work(Job::Scheduler, action, resource, act).await?;
    Ok(())
}

/// Tells people what is due.
pub async fn remind(work: &Work, term: &Term) -> Result<()> {
    let round = work.patience.round("remind_credentials");
    for reminder in work.vault.reminders(PAGE).await? {
        let id = reminder.credential.id;
        if round.takes(&id) {
            round.note(&id, work.vault.remind(term, &reminder).await)?;
        }
    }
    Ok(())
}
