//! What a driver has minted and nobody uses: the driver is asked to revoke it at the provider, until it says that it has.
//!
//! What it is asked is kept in the row of the rotation, because the credential may be gone by then.

use serde::Deserialize;

use super::{
    mint::question,
    step::{Step, alert},
    unknown_rotation,
};
use crate::{
    error::{Error, Result},
    fault,
    gate::{AdminPermit, Recorded},
    model::{
        CredentialRotation, CredentialRotationState, Entity, PrincipalId, ProviderName, Resource,
        RotationDriver, StoredCredential, TenantName, Timestamp,
    },
    store::{StoreError, Term},
    vault::Vault,
};

/// Code of a rotation whose tenant is no more.
pub(super) const ERASED: &str = "TENANT_ERASED";
/// Tries that led to nothing before people are told.
const TELL_AFTER: u32 = 3;

/// What a driver is to be asked about a value that nobody uses.
pub struct Withdrawal {
    rotation: CredentialRotation,
    body: serde_json::Value,
    provider: ProviderName,
    owner: PrincipalId,
}

#[derive(Deserialize)]
struct Kept {
    provider: String,
    owner_id: String,
}

/// The rotation as it is once the new value is gone from here. What a driver has minted, or may have, is to be withdrawn.
pub fn ended(
    mut rotation: CredentialRotation,
    head: &StoredCredential,
    why: &str,
    now: Timestamp,
) -> CredentialRotation {
    rotation.state = CredentialRotationState::RolledBack;
    why.clone_into(&mut rotation.why);
    rotation.attempts = 0;
    rotation.updated_at = now;
    rotation.withdraw = (rotation.driver != RotationDriver::Manual)
        .then(|| question("withdraw", &rotation, head).body.to_string());
    rotation.check_at = rotation.withdraw.is_some().then_some(now);
    rotation
}

impl Withdrawal {
    /// What is left to be asked about this rotation; None for nothing. Errors: the row is not what was written.
    pub fn of(rotation: CredentialRotation) -> Result<Option<Self>> {
        let Some(text) = &rotation.withdraw else {
            return Ok(None);
        };
        let kept: Kept = serde_json::from_str(text).map_err(Error::internal)?;
        Ok(Some(Self {
            body: serde_json::from_str(text).map_err(Error::internal)?,
            provider: kept.provider.parse()?,
            owner: kept.owner_id.parse()?,
            rotation,
        }))
    }

    /// What the gate decides about.
    pub fn resource(&self) -> Resource {
        Resource {
            tenant: self.rotation.tenant.clone(),
            entity: Entity::Credential {
                id: self.rotation.credential,
                owner: self.owner,
                provider: self.provider.clone(),
            },
        }
    }
}

impl Vault {
    /// Are the keys of this tenant destroyed, or being destroyed?
    pub async fn is_erased(&self, tenant: &TenantName) -> Result<bool> {
        match self.db.expect_unerased(tenant).await {
            Ok(()) => Ok(false),
            Err(StoreError::TenantErased) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a rotation of a tenant whose values do not open any more. They stay as they are; what was minted is withdrawn.
    ///
    /// Errors: CREDENTIAL_ROTATION_NOT_FOUND, CREDENTIAL_ROTATION_STATE, LEASE_LOST.
    pub async fn close_erased(
        &self,
        permit: AdminPermit,
        term: Term,
        rotation: CredentialRotation,
    ) -> Result<Recorded<CredentialRotation>> {
        let (was, now) = (rotation.state, self.clock.now());
        let mut step = Step::begin(permit, Some(&term), &rotation, was, now).await?;
        step.give_up(ERASED);
        step.done().await
    }

    /// Asks the driver to revoke what it has minted; false when it needs more time.
    ///
    /// Errors: CREDENTIAL_ROTATION_STATE when it is not configured any more, CREDENTIAL_DRIVER_FAILED.
    pub async fn withdraw(&self, withdrawal: &Withdrawal) -> Result<bool> {
        let (rotation, provider) = (&withdrawal.rotation, &withdrawal.provider);
        // Whether its tenant may still mint does not matter: this undoes.
        let driver = self.driver_of(provider, rotation.driver)?;
        let question = super::driver::Question {
            id: format!("{}-withdraw", rotation.id),
            body: withdrawal.body.clone(),
        };
        let now = self.clock.now();
        let done = driver.revoke(&self.egress, &question, now).await?;
        fault::point("credential_withdrawn");
        Ok(done)
    }

    /// Records that the driver has revoked what it minted.
    ///
    /// Errors: CREDENTIAL_ROTATION_NOT_FOUND, LEASE_LOST.
    pub async fn note_withdrawn(
        &self,
        permit: AdminPermit,
        term: Term,
        withdrawal: Withdrawal,
    ) -> Result<Recorded<()>> {
        let (id, now) = (withdrawal.rotation.id, self.clock.now());
        let mut mutation = permit.begin_in(&term).await?;
        let tx = mutation.tx();
        tx.lock_credential(withdrawal.rotation.credential).await?;
        let rotation = tx.lock_credential_rotation(id).await?;
        let mut rotation = rotation.ok_or_else(unknown_rotation)?;
        rotation.withdraw = None;
        rotation.check_at = None;
        rotation.attempts = 0;
        tx.update_credential_rotation(&rotation).await?;
        tx.end_credential_alert("CREDENTIAL_MINTED_VALUE_LEFT", id, now)
            .await?;
        let details = serde_json::json!({
            "rotation_id": id.to_string(),
            "new_value": rotation.new_value.to_string(),
            "withdrawn": true,
        });
        mutation.record((), details).await
    }

    /// Tells people, once, of a value that its driver does not revoke. Errors: LEASE_LOST.
    pub async fn tell_left(&self, term: &Term, withdrawal: &Withdrawal) -> Result<()> {
        let rotation = &withdrawal.rotation;
        if rotation.attempts < TELL_AFTER {
            return Ok(());
        }
        let text = format!(
            "the driver of {} minted value {} for tenant {}, nobody uses it, and the driver does not revoke it; revoke it \
             at the provider",
            withdrawal.provider, rotation.new_value, rotation.tenant
        );
        let kind = "CREDENTIAL_MINTED_VALUE_LEFT";
        let alert = alert(rotation, kind, text, self.clock.now());
        let mut tx = self.db.begin().await?;
        tx.hold(term).await?;
        if tx.raise_alert(&alert).await? {
            tracing::warn!(kind, rotation = %rotation.id, "{}", alert.text);
        }
        Ok(tx.commit().await?)
    }
}
