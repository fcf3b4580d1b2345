//! The first step: a new value beside the CURRENT one.

use std::time::Duration;

use super::{
    Demand,
    approve::{WAITING, waiting},
    state,
    step::alert,
};
use crate::{
    error::Result,
    gate::{AdminPermit, Recorded, not_found},
    model::{CredentialRotation, SecretFields, ValueLabel},
    store::{FullCredential, StoreError},
    vault::{Vault, Warnings, conflict, details, invalid, put::hold},
};

/// Longest hold.
const LONGEST_HOLD: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What StageCredential is asked for, besides the credential.
pub struct StageCredential {
    /// The new secret.
    pub fields: SecretFields,
    /// How long the old value is held; None for what is configured.
    pub hold: Option<Duration>,
}

/// What was staged.
pub struct Staged {
    /// The rotation.
    pub rotation: CredentialRotation,
    /// What is unusual about the value.
    pub warnings: Warnings,
}

impl Vault {
    /// Stores a new value as PENDING.
    ///
    /// Errors: CREDENTIAL_NOT_FOUND; INVALID_FIELD, also for the value that is CURRENT already, and under `strict` for one of
    /// an unusual format; CREDENTIAL_ROTATION_STATE while another rotation is under way, and for a credential without a
    /// CURRENT value; CREDENTIAL_KEY_UNAVAILABLE, TENANT_ERASED, CONFLICT.
    pub async fn stage(
        &self,
        permit: AdminPermit,
        found: Option<FullCredential>,
        request: StageCredential,
    ) -> Result<Recorded<Staged>> {
        let found = found.ok_or_else(|| not_found(permit.permit().resource()))?;
        let hold_for = request.hold.unwrap_or(self.rotation.hold);
        if hold_for > LONGEST_HOLD {
            return Err(invalid("hold must be at most 30 days"));
        }
        let head = &found.head;
        let current = found.value(ValueLabel::Current);
        let current = current.ok_or_else(|| {
            state("the credential has no CURRENT value that could be replaced; put one")
        })?;
        let provider = self.catalogue.provider(&head.key.provider)?;
        let warnings = self.judge(provider, &request.fields)?;
        // A value that does not open is a reason to rotate and none against it.
        if let Ok(before) = self.open(head, current).await
            && before.is_same(&request.fields)?
        {
            return Err(invalid("the value is the CURRENT one already"));
        }
        let now = self.clock.now();
        let (place, pending) = ((head.id, &head.key), ValueLabel::Pending);
        let value = self
            .seal(place, provider, &request.fields, pending, now)
            .await?;
        let requester = permit.caller().principal.id;
        let rotation = CredentialRotation {
            hold_for,
            needs_approval: self.needs_approval(&head.key),
            ..super::begun(head, (value.id, current.id), requester, now)
        };
        let mut details = details(&head.key);
        details["rotation_id"] = rotation.id.to_string().into();
        details["driver"] = rotation.driver.as_str().into();
        details["new_value"] = rotation.new_value.to_string().into();
        details["old_value"] = rotation.old_value.to_string().into();
        details["kid"] = value.kid.as_str().into();
        details["needs_approval"] = rotation.needs_approval.into();
        let mut mutation = permit.begin().await?;
        hold(&mut mutation, &value).await?;
        let tx = mutation.tx();
        tx.hold_tenant(&head.key.tenant).await?;
        let locked = tx.lock_credential(head.id).await?;
        let now_current = locked.as_ref().and_then(|c| c.value(ValueLabel::Current));
        if now_current.map(|value| value.id) != Some(current.id) {
            return Err(conflict());
        }
        let inserted = tx.insert_credential_rotation(&rotation).await;
        inserted.map_err(|error| match error {
            StoreError::Exists(_) => state(
                "a rotation of this credential is under way; complete it or roll it back first",
            ),
            other => other.into(),
        })?;
        tx.insert_credential_value(&head.key, &value).await?;
        if rotation.needs_approval {
            let text = waiting(&head.key, &rotation);
            tx.raise_alert(&alert(&rotation, WAITING, text, now))
                .await?;
        }
        let staged = Staged { rotation, warnings };
        mutation.record(staged, details).await
    }
}

impl Demand {
    /// What a request that may waive it demands.
    pub const fn unless(waived: bool) -> Self {
        match waived {
            true => Self::Waived,
            false => Self::Needed,
        }
    }
}
