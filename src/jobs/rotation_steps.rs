//! The steps of a rotation that the daemon takes by itself.

use std::sync::Arc;

use super::scheduler::Work;
use crate::{
    error::Result,
    model::{Action, Job, RotationId},
    store::Term,
};

/// A step of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The standing approval approves it.
    Approve,
    /// It is deployed under the standing approval.
    Deploy,
    /// Its time is over.
    Expire,
    /// Its grace window is over.
    Complete,
}

impl Step {
    /// In logs and metrics.
    const fn name(self) -> &'static str {
        match self {
            Self::Approve => "approve_standing",
            Self::Deploy => "deploy_standing",
            Self::Expire => "expire_requests",
            Self::Complete => "complete_grace",
        }
    }

    const fn action(self) -> Action {
        match self {
            Self::Approve => Action::ApproveRotation,
            Self::Deploy => Action::DeployRotation,
            Self::Expire => Action::ExpireRotation,
            Self::Complete => Action::CompleteRotation,
        }
    }

    /// Who takes it: never the one who asked for the rotation deploys it (R-LIFE-7).
    const fn job(self) -> Job {
        match self {
            Self::Deploy => Job::Deployer,
            Self::Approve | Self::Expire | Self::Complete => Job::Scheduler,
        }
    }
}

/// Takes one step of each of these rotations.
pub async fn take(work: &Work, term: &Term, step: Step, due: Vec<RotationId>) -> Result<()> {
    let round = work.patience.round(step.name());
    for id in due {
        if round.takes(&id) {
            round.note(&id, take_one(work, term, step, id).await)?;
        }
    }
    Ok(())
}

async fn take_one(work: &Work, term: &Term, step: Step, id: RotationId) -> Result<()> {
    let (resource, found) = work.rotations.find(id).await?;
    let Some(rotation) = found else {
        return Ok(());
    };
    let (rotations, term) = (Arc::clone(&work.rotations), term.clone());
    let act = async move |permit| match step {
        Step::Approve => rotations.approve_standing(permit, term, rotation).await,
        Step::Deploy => rotations.deploy_standing(permit, term, rotation).await,
        Step::Expire => rotations.expire(permit, term, rotation).await,
        Step::Complete => rotations.complete(permit, term, rotation).await,
    };
    let taken = work.gate.work(step.job(), step.action(), resource, act);
    let (rotation, _) = taken.await?;
    tracing::info!(rotation = %id, key = %rotation.key_name, state = rotation.state.as_str(), "rotation");
    Ok(())
}
