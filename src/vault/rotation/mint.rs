//! Rotations without a person: a driver mints the new value, and is asked to revoke the old one.
//!
//! That a value is being minted is a row before the driver is asked, so the driver is asked with the same id again when
//! nobody knows what has become of the first time.

use std::time::Duration;

use serde_json::json;

use super::{
    FoundRotation,
    driver::{Driver, Question},
    state,
    step::Step,
    unknown_rotation,
};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Recorded, not_found},
    model::{
        CredentialId, CredentialRotation, CredentialRotationId, CredentialRotationState,
        CredentialValueId, Resource, RotationDriver, SecretFields, StoredCredential, ValueLabel,
    },
    store::{FullCredential, StoreError, Term},
    vault::{
        Vault, conflict, details, invalid,
        put::{PERIODS, hold},
        resource,
    },
};

/// From one rotation by a driver to the next of the same credential, however the first one went.
const PAUSE: Duration = Duration::from_secs(60 * 60);
/// How long a driver is asked for one value.
const GIVE_UP: Duration = Duration::from_secs(24 * 60 * 60);

/// How a credential is to be rotated from now on; None leaves it as it is.
pub struct SetRotation {
    /// Where new values come from.
    pub driver: Option<RotationDriver>,
    /// How long a value may be CURRENT.
    pub period: Option<Duration>,
}

impl Vault {
    /// Says how a credential is rotated.
    ///
    /// Errors: CREDENTIAL_NOT_FOUND; INVALID_FIELD; CREDENTIAL_ROTATION_STATE when no such driver is configured for the
    /// provider, or nobody can ask the provider about a value; CONFLICT.
    pub async fn set_rotation(
        &self,
        permit: AdminPermit,
        found: Option<FullCredential>,
        request: SetRotation,
    ) -> Result<Recorded<FullCredential>> {
        let mut found = found.ok_or_else(|| not_found(permit.permit().resource()))?;
        let current = found.value(ValueLabel::Current).cloned();
        let head = &mut found.head;
        if let Some(driver) = request.driver {
            head.rotation_driver = driver;
            self.check_driver(head)?;
        }
        if let Some(period) = request.period {
            if !PERIODS.contains(&period) {
                return Err(invalid("rotation_period must be 1 to 365 days"));
            }
            let since = current.and_then(|value| value.promoted_at);
            head.rotation_period = period;
            head.rotation_due_at = since.unwrap_or(head.created_at).plus(period);
        }
        head.updated_at = self.clock.now();
        let mut details = details(&head.key);
        details["driver"] = head.rotation_driver.as_str().into();
        details["rotation_days"] = (head.rotation_period.as_secs() / 86_400).into();
        let mut mutation = permit.begin().await?;
        if !mutation.tx().update_credential(head).await? {
            return Err(conflict());
        }
        head.revision += 1;
        mutation.record(found, details).await
    }

    fn check_driver(&self, head: &StoredCredential) -> Result<()> {
        if head.rotation_driver == RotationDriver::Manual {
            return Ok(());
        }
        self.driver(head)?;
        match self.catalogue.provider(&head.key.provider)?.probe {
            Some(_) => Ok(()),
            None => Err(state(
                "the catalogue knows no way to ask this provider about a value, so no value of it is promoted without a \
                 person",
            )),
        }
    }

    fn driver(&self, head: &StoredCredential) -> Result<&Driver> {
        let (provider, wanted) = (&head.key.provider, head.rotation_driver);
        let driver = self.drivers.get(provider);
        driver.filter(|d| d.kind() == wanted).ok_or_else(|| {
            state(format!(
                "no {} mints values of {provider}; [vault.rotation.drivers.{provider}] of the configuration names one",
                wanted.as_str()
            ))
        })
    }

    /// Up to `limit` credentials that a driver is to rotate now, and what the gate decides about.
    pub async fn due_for_drivers(&self, limit: i64) -> Result<Vec<(Resource, CredentialId)>> {
        let now = self.clock.now();
        let due = self
            .db
            .credentials_due_for_drivers(now, now.minus(PAUSE), limit)
            .await?;
        // Without a driver it waits for a person, who is told that it is overdue.
        let due = due
            .into_iter()
            .filter(|head| self.check_driver(head).is_ok());
        Ok(due
            .map(|head| (resource(head.id, &head.key), head.id))
            .collect())
    }

    /// Begins a rotation whose value a driver mints.
    ///
    /// Errors: CREDENTIAL_NOT_FOUND; CREDENTIAL_ROTATION_STATE when there is nothing to begin by now, or no driver;
    /// TENANT_ERASED, LEASE_LOST.
    pub async fn begin_minting(
        &self,
        permit: AdminPermit,
        term: Term,
        id: CredentialId,
    ) -> Result<Recorded<CredentialRotation>> {
        let unknown = not_found(permit.permit().resource());
        let tenant = permit.permit().resource().tenant.clone();
        let mut mutation = permit.begin_in(&term).await?;
        let (tx, now) = (mutation.tx(), self.clock.now());
        tx.hold_tenant(&tenant).await?;
        let found = tx.lock_credential(id).await?.ok_or(unknown)?;
        let head = &found.head;
        self.check_driver(head)?;
        let current = found.value(ValueLabel::Current);
        let current = current.filter(|_| head.rotation_driver != RotationDriver::Manual);
        let current = current.ok_or_else(|| state("there is nothing to rotate by a driver"))?;
        let rotation = CredentialRotation {
            id: CredentialRotationId::random(),
            credential: id,
            tenant,
            state: CredentialRotationState::Minting,
            driver: head.rotation_driver,
            new_value: CredentialValueId::random(),
            old_value: current.id,
            due_before: head.rotation_due_at,
            hold_for: self.rotation.hold,
            hold_until: None,
            check_at: Some(now),
            new_probe: None,
            old_probe: None,
            why: String::new(),
            created_at: now,
            updated_at: now,
        };
        let inserted = tx.insert_credential_rotation(&rotation).await;
        inserted.map_err(|error| match error {
            StoreError::Exists(_) => state("a rotation of this credential is under way"),
            other => other.into(),
        })?;
        let mut details = details(&head.key);
        details["rotation_id"] = rotation.id.to_string().into();
        details["state"] = rotation.state.as_str().into();
        details["driver"] = rotation.driver.as_str().into();
        details["new_value"] = rotation.new_value.to_string().into();
        details["old_value"] = rotation.old_value.to_string().into();
        mutation.record(rotation, details).await
    }

    /// Has the driver had its time?
    pub fn gives_up(&self, rotation: &CredentialRotation) -> bool {
        self.clock.now().since(rotation.created_at) > GIVE_UP
    }

    /// Asks the driver for the new value; None when it needs more time.
    ///
    /// Errors: CREDENTIAL_ROTATION_STATE, CREDENTIAL_DRIVER_FAILED; INVALID_FIELD for what cannot be a secret.
    pub async fn mint(&self, found: &FoundRotation) -> Result<Option<SecretFields>> {
        let driver = self.driver(&found.credential.head)?;
        let question = question("mint", found);
        driver.mint(&self.egress, &question, self.clock.now()).await
    }

    /// Asks the driver to revoke the old value. Whether it did so, the provider says.
    ///
    /// Errors: CREDENTIAL_ROTATION_STATE, CREDENTIAL_DRIVER_FAILED.
    pub async fn revoke_old(&self, found: &FoundRotation) -> Result<()> {
        let driver = self.driver(&found.credential.head)?;
        let question = question("revoke", found);
        driver
            .revoke(&self.egress, &question, self.clock.now())
            .await
    }

    /// Stores what a driver has minted as PENDING.
    ///
    /// Errors: as `stage`; LEASE_LOST.
    pub async fn stage_minted(
        &self,
        permit: AdminPermit,
        term: Term,
        found: FoundRotation,
        fields: SecretFields,
    ) -> Result<Recorded<CredentialRotation>> {
        let FoundRotation {
            rotation,
            credential,
        } = found;
        let head = &credential.head;
        let provider = self.catalogue.provider(&head.key.provider)?;
        self.judge(provider, &fields)?;
        let current = credential.value(ValueLabel::Current);
        let current = current.ok_or_else(unknown_rotation)?;
        if let Ok(before) = self.open(head, current).await
            && before.is_same(&fields)?
        {
            return Err(Error::new(
                Reason::CredentialDriverFailed,
                "the driver gave the CURRENT value again instead of a new one",
            ));
        }
        let now = self.clock.now();
        let (place, pending) = ((head.id, &head.key), ValueLabel::Pending);
        let value = self
            .seal_as(rotation.new_value, place, provider, &fields, pending, now)
            .await?;
        let mut mutation = permit.begin_in(&term).await?;
        hold(&mut mutation, &value).await?;
        mutation.tx().hold_tenant(&head.key.tenant).await?;
        let minting = CredentialRotationState::Minting;
        let mut step = Step::lock(mutation, &rotation, minting, now).await?;
        step.stage(&value).await?;
        step.done().await
    }
}

fn question(event: &str, found: &FoundRotation) -> Question {
    let (rotation, head) = (&found.rotation, &found.credential.head);
    let old = found.credential.values.iter();
    let old = old.filter(|value| value.id == rotation.old_value);
    let last_four: String = old.map(|value| value.last_four.as_str()).collect();
    Question {
        id: format!("{}-{event}", rotation.id),
        body: json!({
            "event": event,
            "rotation_id": rotation.id.to_string(),
            "new_value_id": rotation.new_value.to_string(),
            "old_value_id": rotation.old_value.to_string(),
            "old_last_four": last_four,
            "credential_id": head.id.to_string(),
            "tenant": head.key.tenant.as_str(),
            "owner_id": head.key.owner.to_string(),
            "provider": head.key.provider.as_str(),
            "environment": head.key.environment.as_str(),
            "name": head.key.name,
            "organisation": head.organisation,
        }),
    }
}
