//! Three people for one rotation, where the configuration asks for them: who stages, who approves, who promotes (R-LIFE-7).
//!
//! What is approved is the rotation, and with it the one value that was staged: another value is another rotation.

use super::{FoundRotation, step::Step, unknown_rotation};
use crate::{
    error::Result,
    gate::{AdminPermit, Recorded},
    model::{Approval, CredentialKey, CredentialRotation, CredentialRotationState},
    vault::Vault,
};

/// Kind of the alert that somebody is to approve.
pub(super) const WAITING: &str = "CREDENTIAL_ROTATION_WAITING";

impl Vault {
    /// Does a rotation of this credential need three people?
    pub(super) fn needs_approval(&self, key: &CredentialKey) -> bool {
        self.three_roles.iter().any(|entry| entry.covers(key))
    }

    /// Agrees to the promotion of the staged value.
    ///
    /// Errors: CREDENTIAL_ROTATION_NOT_FOUND; CREDENTIAL_ROTATION_STATE when it is not STAGED, needs no approval or has one;
    /// SEPARATION_OF_DUTIES for who staged it.
    pub async fn approve(
        &self,
        permit: AdminPermit,
        found: Option<FoundRotation>,
    ) -> Result<Recorded<CredentialRotation>> {
        let FoundRotation { rotation, .. } = found.ok_or_else(unknown_rotation)?;
        let (approver, now) = (permit.caller().principal.id, self.clock.now());
        let staged = CredentialRotationState::Staged;
        let mut step = Step::begin(permit, None, &rotation, staged, now).await?;
        step.rotation.may_approve(approver)?;
        step.rotation.approval = Some(Approval { approver, at: now });
        step.end_alert(WAITING).await?;
        step.done().await
    }
}

/// What people are told who may approve.
pub(super) fn waiting(key: &CredentialKey, rotation: &CredentialRotation) -> String {
    format!(
        "a new value of credential {key} of tenant {} waits for approval by another one than who staged it; `claviger \
         credential rotation approve {}`",
        key.tenant, rotation.id
    )
}
