//! Ends rotations that were not deployed in time; their announced kids leave the JWKS.

use super::{
    rotation_steps::{Step, take},
    scheduler::Work,
};
use crate::{error::Result, store::Term};

/// Expires open rotations whose time is over.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    take(work, term, Step::Expire, work.rotations.overtime().await?).await
}
