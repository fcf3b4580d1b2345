//! Rotations of credentials, as far as no person is needed: drivers mint and revoke, new values are tried, old ones looked at
//! until they are dead. And people are told what is due (R-CRED-7).

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::scheduler::Work;
use crate::{
    error::Result,
    model::{
        Action, CredentialRotationId, CredentialRotationState, Job, Probed, Resource,
        RotationDriver, credential_rotation::OfHeld,
    },
    store::Term,
    vault::{Demand, FoundRotation, Look, RollBack},
};

/// Rows looked at in one round.
const PAGE: i64 = 100;
/// For all that one rotation has to ask. Providers that hang must not run the term out.
const PATIENCE: Duration = Duration::from_secs(4);

/// Brings on what is to be brought on. A rotation that cannot be keeps no other from its turn.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    let round = work.patience.round("rotate_credentials");
    for rotation in work.vault.rotations_to_check(PAGE).await? {
        if round.takes(&rotation.id) {
            round.note(&rotation.id, bring_on(work, term, rotation.id).await)?;
        }
    }
    Ok(())
}

/// Begins what drivers are to rotate.
pub async fn begin(work: &Work, term: &Term) -> Result<()> {
    let round = work.patience.round("begin_credential_rotations");
    for (resource, id) in work.vault.due_for_drivers(PAGE).await? {
        if round.takes(&id) {
            let (vault, term) = (Arc::clone(&work.vault), term.clone());
            let act = async move |permit| vault.begin_minting(permit, term, id).await;
            let (gate, action) = (&work.gate, Action::StageCredential);
            let begun = gate.work(Job::Scheduler, action, resource, act).await;
            round.note(&id, begun)?;
        }
    }
    Ok(())
}

async fn bring_on(work: &Work, term: &Term, id: CredentialRotationId) -> Result<()> {
    let (resource, found) = work.vault.find_rotation(id).await?;
    // Its credential was deleted at this very moment, and the rotation with it.
    let Some(found) = found else { return Ok(()) };
    match found.rotation.state {
        CredentialRotationState::Minting | CredentialRotationState::Staged
            if found.is_overtaken() =>
        {
            roll_back(work, term, found, RollBack::Replaced, resource).await
        }
        CredentialRotationState::Minting => mint(work, term, found, resource).await,
        CredentialRotationState::Staged => promote(work, term, found, resource).await,
        CredentialRotationState::Holding => check(work, term, found, resource).await,
        CredentialRotationState::Completed | CredentialRotationState::RolledBack => Ok(()),
    }
}

async fn mint(work: &Work, term: &Term, found: FoundRotation, resource: Resource) -> Result<()> {
    if work.vault.gives_up(&found.rotation) {
        return roll_back(work, term, found, RollBack::NotMinted, resource).await;
    }
    let Some(fields) = work.vault.mint(&found).await? else {
        return work.vault.wait(term, &found, Look::nothing()).await;
    };
    let (vault, term) = (Arc::clone(&work.vault), term.clone());
    let act = async move |permit| vault.stage_minted(permit, term, found, fields).await;
    let (gate, action) = (&work.gate, Action::StageCredential);
    gate.work(Job::Scheduler, action, resource, act).await?;
    Ok(())
}

async fn promote(work: &Work, term: &Term, found: FoundRotation, resource: Resource) -> Result<()> {
    let (vault, term) = (Arc::clone(&work.vault), term.clone());
    let act = async move |permit| {
        let (term, found) = (Some(term), Some(found));
        vault.promote(permit, term, found, Demand::Needed).await
    };
    let (gate, action) = (&work.gate, Action::PromoteCredential);
    gate.work(Job::Scheduler, action, resource, act).await?;
    Ok(())
}

async fn check(work: &Work, term: &Term, found: FoundRotation, resource: Resource) -> Result<()> {
    let mut look = look(work, &found).await?;
    let by_driver = found.rotation.driver != RotationDriver::Manual;
    // Not before the new one is known to work: the old one may be the only one that does.
    if by_driver && look.next == OfHeld::Alive && look.new_works() {
        if let Err(error) = work.vault.revoke_old(&found).await {
            tracing::warn!(rotation = %found.rotation.id, %error, "an old value is not revoked");
        }
        // What counts is what the provider says then.
        look = self::look(work, &found).await?;
    }
    match look {
        Look {
            next: OfHeld::RollBack,
            new: Some(new),
            old: Some(old),
        } => roll_back(work, term, found, RollBack::Refused { new, old }, resource).await,
        Look {
            next: OfHeld::Complete,
            old: Some(old),
            ..
        } => complete(work, term, found, old, resource).await,
        look => work.vault.wait(term, &found, look).await,
    }
}

async fn look(work: &Work, found: &FoundRotation) -> Result<Look> {
    match timeout(PATIENCE, work.vault.look(found)).await {
        Ok(look) => look,
        Err(_) => Ok(Look::nothing()),
    }
}

async fn roll_back(
    work: &Work,
    term: &Term,
    found: FoundRotation,
    why: RollBack,
    resource: Resource,
) -> Result<()> {
    let (vault, term) = (Arc::clone(&work.vault), term.clone());
    let act = async move |permit| vault.roll_back(permit, Some(term), Some(found), why).await;
    let (gate, action) = (&work.gate, Action::RollBackCredential);
    gate.work(Job::Scheduler, action, resource, act).await?;
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
