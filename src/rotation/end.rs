//! How a rotation ends: rejected, cancelled, expired or completed.
//!
//! One that comes to nothing takes its successor with it in the same transaction, so that an announced kid leaves the
//! JWKS with the reason to announce it.

use super::{Rotations, conflict, details, found, moved, successor_of};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Mutation, Recorded},
    keys::{KeySnapshot, expect_no_credentials},
    model::{Rotation, RotationState, Timestamp, VersionState, key::VersionEvent},
    store::{Term, Tx},
};

impl Rotations {
    /// Turns an open rotation down.
    ///
    /// Errors: ROTATION_NOT_FOUND, ROTATION_STATE, SEPARATION_OF_DUTIES for the requester, CONFLICT, CLOCK_BACKWARDS.
    pub async fn reject(
        &self,
        permit: AdminPermit,
        rotation: Option<Rotation>,
        reason: String,
    ) -> Result<Recorded<Rotation>> {
        let open = found(rotation, permit.permit())?;
        let (was, by) = (open.state, permit.caller().principal.id);
        let rejected = open.reject(by, reason, self.clock.now())?;
        let key = self.keys.fresh(&rejected.tenant, rejected.key_id).await?;
        let mutation = permit.begin_on(key.key.id).await?;
        self.record_withdrawn(mutation, &key, was, rejected).await
    }

    /// Takes an open rotation back.
    ///
    /// Errors: ROTATION_NOT_FOUND, ROTATION_STATE, CONFLICT, CLOCK_BACKWARDS.
    pub async fn cancel(
        &self,
        permit: AdminPermit,
        rotation: Option<Rotation>,
        reason: String,
    ) -> Result<Recorded<Rotation>> {
        let open = found(rotation, permit.permit())?;
        let (was, by) = (open.state, permit.caller().principal.id);
        let cancelled = open.cancel(by, reason, self.clock.now())?;
        let key = self.keys.fresh(&cancelled.tenant, cancelled.key_id).await?;
        let mutation = permit.begin_on(key.key.id).await?;
        self.record_withdrawn(mutation, &key, was, cancelled).await
    }

    /// Ends an open rotation whose time is over.
    ///
    /// Errors: ROTATION_STATE, CONFLICT, CLOCK_BACKWARDS, LEASE_LOST.
    pub async fn expire(
        &self,
        permit: AdminPermit,
        term: Term,
        rotation: Rotation,
    ) -> Result<Recorded<Rotation>> {
        let was = rotation.state;
        let expired = rotation.expire(self.clock.now())?;
        let key = self.keys.fresh(&expired.tenant, expired.key_id).await?;
        let mutation = permit.begin_on_in(key.key.id, &term).await?;
        self.record_withdrawn(mutation, &key, was, expired).await
    }

    /// Ends a deployed rotation whose grace window is over: the old version is RETIRED.
    ///
    /// Errors: ROTATION_STATE before the end of the grace window, VERSION_IN_USE, CONFLICT, CLOCK_BACKWARDS, LEASE_LOST.
    pub async fn complete(
        &self,
        permit: AdminPermit,
        term: Term,
        rotation: Rotation,
    ) -> Result<Recorded<Rotation>> {
        let now = self.clock.now();
        let key = self.keys.fresh(&rotation.tenant, rotation.key_id).await?;
        let found = key.version(&rotation.old_kid).map(|v| v.version.clone());
        let mut old = found.ok_or_else(|| {
            Error::internal(format!("rotation {} lost its old version", rotation.id))
        })?;
        // An incident or a revocation may have ended the version before its time; then there is nothing to retire.
        let in_grace = old.state == VersionState::VerifyOnly;
        let over = old
            .grace_ends_at(rotation.grace, self.config.clock_skew())
            .max(rotation.grace_ends_at);
        if in_grace && over.is_none_or(|over| now < over) {
            return Err(Error::new(
                Reason::RotationState,
                "the grace window of the old version is not over",
            ));
        }
        let completed = rotation.complete(now)?;
        let mut mutation = permit.begin_on_in(key.key.id, &term).await?;
        let tx = mutation.tx();
        moved(tx, &completed, RotationState::Deployed).await?;
        if in_grace {
            expect_no_credentials(tx, &old.kid).await?;
            let before = old.advance(VersionEvent::GraceOver, now)?;
            if !tx.update_version(&old, before).await? {
                return Err(conflict(None));
            }
        }
        let details = details(&completed);
        self.record(mutation, completed, details).await
    }

    async fn record_withdrawn(
        &self,
        mut mutation: Mutation,
        key: &KeySnapshot,
        was: RotationState,
        ended: Rotation,
    ) -> Result<Recorded<Rotation>> {
        let tx = mutation.tx();
        moved(tx, &ended, was).await?;
        withdraw(tx, key, &ended, ended.last_step()).await?;
        let mut details = details(&ended);
        details["why"] = ended.end_reason.as_str().into();
        self.record(mutation, ended, details).await
    }
}

/// The successor of a rotation that came to nothing is RETIRED, unless an incident has ended it already.
async fn withdraw(
    tx: &mut Tx,
    key: &KeySnapshot,
    rotation: &Rotation,
    now: Timestamp,
) -> Result<()> {
    let mut version = successor_of(key, rotation)?.clone();
    if version.state != VersionState::PreActive {
        return Ok(());
    }
    let before = version.advance(VersionEvent::Withdraw, now)?;
    match tx.update_version(&version, before).await? {
        true => Ok(()),
        false => Err(conflict(None)),
    }
}
