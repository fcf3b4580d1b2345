//! What the scheduler does with rotations: it opens those that are due, and takes AUTOMATIC ones through under a
//! standing approval.
//!
//! Three principals stay three: the scheduler asks, the approval is that of the person who gave the standing one, and
//! the deployer deploys. A key without a standing approval waits for people, whatever its mode.

use std::sync::Arc;

use super::{Deployment, Rotations, conflict, details};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Recorded},
    keys::KeySnapshot,
    model::{Approval, KeyId, Kid, Rotation, RotationId, RotationMode, RotationState, TenantName},
    store::Term,
};

impl Rotations {
    /// Keys that a rotation should be opened for now.
    pub async fn due_keys(&self) -> Result<Vec<(KeyId, TenantName)>> {
        let now = self.clock.now();
        let ended_before = now.minus(self.config.reopen_after());
        Ok(self.db.keys_due(now, ended_before).await?)
    }

    /// Rotations that the standing approval approves now.
    pub async fn approvable(&self) -> Result<Vec<RotationId>> {
        self.standing(RotationState::Requested).await
    }

    /// Rotations that can be deployed under the standing approval now.
    pub async fn deployable(&self) -> Result<Vec<RotationId>> {
        self.standing(RotationState::Approved).await
    }

    /// Open rotations whose time is over.
    pub async fn overtime(&self) -> Result<Vec<RotationId>> {
        Ok(self.db.rotations_overtime(self.clock.now()).await?)
    }

    /// Deployed rotations whose grace window is over.
    pub async fn past_grace(&self) -> Result<Vec<RotationId>> {
        Ok(self.db.rotations_past_grace(self.clock.now()).await?)
    }

    /// Versions whose grace window is over and that no rotation will retire.
    pub async fn versions_past_grace(&self) -> Result<Vec<(Kid, KeyId, TenantName)>> {
        let skew = self.config.clock_skew();
        Ok(self.db.versions_past_grace(self.clock.now(), skew).await?)
    }

    async fn standing(&self, state: RotationState) -> Result<Vec<RotationId>> {
        let now = self.clock.now();
        Ok(self
            .db
            .rotations_under_standing_approval(state, now)
            .await?)
    }

    /// Opens a rotation for a key that is due.
    ///
    /// Errors: as `request`; CONFLICT when the key is not due any more, LEASE_LOST.
    pub async fn open_due(
        &self,
        permit: AdminPermit,
        term: Term,
        key: Arc<KeySnapshot>,
    ) -> Result<Recorded<Rotation>> {
        let key = self.keys.fresh(&key.key.tenant, key.key.id).await?;
        let due = key.key.next_rotation_at;
        if self.clock.now() < due {
            return Err(conflict(None));
        }
        let scheduler = permit.caller().principal.id;
        // Whoever moved the date has asked for this rotation, and can neither approve nor deploy it (R-LIFE-7).
        let requester = key.key.policy.schedule_set_by.unwrap_or(scheduler);
        let successor = self.successor(&key, None).await?;
        let why = format!("due on {due}");
        let mut rotation = self.draft(&key, &successor.version, requester, why)?;
        rotation.scheduled = true;
        let mutation = permit.begin_on_in(key.key.id, &term).await?;
        self.record_opened(mutation, &key, successor, rotation)
            .await
    }

    /// Records the standing approval as the approval of this rotation.
    ///
    /// Errors: ROTATION_POLICY when there is none any more; as `approve`; LEASE_LOST.
    pub async fn approve_standing(
        &self,
        permit: AdminPermit,
        term: Term,
        rotation: Rotation,
    ) -> Result<Recorded<Rotation>> {
        let key = self.keys.fresh(&rotation.tenant, rotation.key_id).await?;
        let standing = standing_approval(&key, &rotation)?;
        let (approver, given) = (standing.approver, standing.at);
        let digest = rotation.plan_digest();
        let approved = rotation.approve(approver, &digest, self.clock.now())?;
        let mut details = details(&approved);
        details["standing_approval_of"] = approver.to_string().into();
        details["standing_approval_at"] = given.to_string().into();
        let mut mutation = permit.begin_on_in(key.key.id, &term).await?;
        // A standing approval that is taken back at this moment approves nothing.
        if !mutation.tx().hold_key(&key.key).await? {
            return Err(conflict(None));
        }
        self.record_approved(mutation, &key, approved, details)
            .await
    }

    /// Deploys a rotation under the standing approval.
    ///
    /// Errors: ROTATION_POLICY when there is none any more; as `deploy`; LEASE_LOST.
    pub async fn deploy_standing(
        &self,
        permit: AdminPermit,
        term: Term,
        rotation: Rotation,
    ) -> Result<Recorded<Rotation>> {
        let key = self.keys.fresh(&rotation.tenant, rotation.key_id).await?;
        standing_approval(&key, &rotation)?;
        let deployer = permit.caller().principal.id;
        let deployed = rotation.deploy(deployer, self.clock.now())?;
        let change = Deployment::new(&key, deployed)?;
        let mutation = permit.begin_on_in(key.key.id, &term).await?;
        self.record_deployed(mutation, change).await
    }
}

/// The approval under which jobs take this rotation through. Errors: ROTATION_POLICY.
fn standing_approval<'a>(key: &'a KeySnapshot, rotation: &Rotation) -> Result<&'a Approval> {
    let policy = &key.key.policy;
    let covers = rotation.scheduled && policy.mode == RotationMode::Automatic;
    let standing = policy.standing_approval.as_ref();
    standing.filter(|_| covers).ok_or_else(|| {
        Error::new(
            Reason::RotationPolicy,
            "no standing approval covers this rotation; people approve and deploy it",
        )
    })
}
