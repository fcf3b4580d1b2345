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
    fault,
    gate::{AdminPermit, Recorded, not_found},
    model::{
        CredentialId, CredentialRotation, CredentialRotationState, CredentialValueId, ProbeResult,
        ProviderName, Resource, RotationDriver, SecretFields, StoredCredential, ValueLabel,
        credential_rotation::pause_after,
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

    /// The driver of a credential. Errors: CREDENTIAL_ROTATION_STATE when there is none, or none that its tenant may use.
    fn driver(&self, head: &StoredCredential) -> Result<&Driver> {
        let provider = &head.key.provider;
        let driver = self.driver_of(provider, head.rotation_driver)?;
        match driver.serves(&head.key.tenant) {
            true => Ok(driver),
            false => Err(state(format!(
                "tenant {} may not use the driver of {provider}; `tenants` in [vault.rotation.drivers.{provider}] of the \
                 configuration says who may",
                head.key.tenant
            ))),
        }
    }

    pub(super) fn driver_of(
        &self,
        provider: &ProviderName,
        wanted: RotationDriver,
    ) -> Result<&Driver> {
        let driver = self.drivers.get(provider);
        driver.filter(|d| d.kind() == wanted).ok_or_else(|| {
            state(format!(
                "no {} mints values of {provider}; [vault.rotation.drivers.{provider}] of the configuration names one",
                wanted.as_str()
            ))
        })
    }

    /// Up to `limit` credentials that a driver is to rotate now, one of each tenant first; and what the gate decides about.
    pub async fn due_for_drivers(&self, limit: i64) -> Result<Vec<(Resource, CredentialId)>> {
        let (drivers, now) = (self.drivers_in_use(), self.clock.now());
        // What has no driver waits for a person, who is told that it is overdue.
        if drivers.is_empty() {
            return Ok(Vec::new());
        }
        let due = self
            .db
            .credentials_due_for_drivers(now, now.minus(PAUSE), &drivers, limit)
            .await?;
        let due = due.into_iter();
        Ok(due
            .map(|head| (resource(head.id, &head.key), head.id))
            .collect())
    }

    /// A `|provider/driver/tenant|` for each that may be.
    fn drivers_in_use(&self) -> String {
        let mut all = String::new();
        for (provider, driver) in &self.drivers {
            let known = self.catalogue.provider(provider);
            if known.is_ok_and(|provider| provider.probe.is_some()) {
                let kind = driver.kind().as_str();
                all.extend(driver.tenants().map(|t| format!("|{provider}/{kind}/{t}|")));
            }
        }
        all
    }

    /// Moves the next try to begin a rotation of this credential on, before it is tried. Errors: LEASE_LOST.
    pub async fn claim_due(&self, term: &Term, id: CredentialId) -> Result<()> {
        let mut tx = self.db.begin().await?;
        tx.hold(term).await?;
        tx.claim_credential(id, self.clock.now(), pause_after)
            .await?;
        Ok(tx.commit().await?)
    }

    /// Asks the provider about the CURRENT value: nothing is minted while nobody could tell whether what is minted works. The
    /// value that was asked about.
    ///
    /// Errors: CREDENTIAL_ROTATION_STATE when it says neither yes nor no, or there is no such value; CREDENTIAL_UNREADABLE,
    /// CREDENTIAL_KEY_UNAVAILABLE.
    pub async fn ask_before_minting(&self, found: &FullCredential) -> Result<CredentialValueId> {
        self.check_driver(&found.head)?;
        let current = found.value(ValueLabel::Current);
        let current =
            current.ok_or_else(|| state("the credential has no CURRENT value to be replaced"))?;
        let (_, said) = self.ask_about(found, current).await?;
        match said.result {
            ProbeResult::Valid | ProbeResult::Invalid => Ok(current.id),
            ProbeResult::Unexpected | ProbeResult::Unreachable | ProbeResult::NoProbe => {
                Err(state(format!(
                    "the provider does not say whether the CURRENT value works ({}), so nothing is minted now",
                    said.detail
                )))
            }
        }
    }

    /// Begins a rotation whose value a driver mints, in the place of `asked`.
    ///
    /// Errors: CREDENTIAL_NOT_FOUND; CREDENTIAL_ROTATION_STATE when there is nothing to begin by now, or no driver; CONFLICT
    /// when another value is CURRENT by now; TENANT_ERASED, LEASE_LOST.
    pub async fn begin_minting(
        &self,
        permit: AdminPermit,
        term: Term,
        id: CredentialId,
        asked: CredentialValueId,
    ) -> Result<Recorded<CredentialRotation>> {
        let unknown = not_found(permit.permit().resource());
        let tenant = permit.permit().resource().tenant.clone();
        let requester = permit.caller().principal.id;
        let mut mutation = permit.begin_in(&term).await?;
        let (tx, now) = (mutation.tx(), self.clock.now());
        tx.hold_tenant(&tenant).await?;
        let found = tx.lock_credential(id).await?.ok_or(unknown)?;
        let head = &found.head;
        if head.rotation_driver == RotationDriver::Manual {
            return Err(state("there is nothing to rotate by a driver"));
        }
        self.check_driver(head)?;
        let current = found.value(ValueLabel::Current);
        let current = current.filter(|value| value.id == asked);
        let current = current.ok_or_else(conflict)?;
        let new = CredentialValueId::random();
        let rotation = CredentialRotation {
            state: CredentialRotationState::Minting,
            driver: head.rotation_driver,
            hold_for: self.rotation.hold,
            check_at: Some(now),
            needs_approval: self.needs_approval(&head.key),
            ..super::begun(head, (new, current.id), requester, now)
        };
        let inserted = tx.insert_credential_rotation(&rotation).await;
        inserted.map_err(|error| match error {
            StoreError::Exists(_) => state("a rotation of this credential is under way"),
            other => other.into(),
        })?;
        tx.note_rotation_begun(id).await?;
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
        let question = self.question("mint", found).await?;
        let minted = driver.mint(&self.egress, &question, self.clock.now());
        let minted = minted.await?;
        fault::point("credential_minted");
        Ok(minted)
    }

    /// Asks the driver to revoke the old value. Whether it did so, the provider says.
    ///
    /// Errors: CREDENTIAL_ROTATION_STATE, CREDENTIAL_DRIVER_FAILED.
    pub async fn revoke_old(&self, found: &FoundRotation) -> Result<()> {
        let driver = self.driver(&found.credential.head)?;
        let question = self.question("revoke", found).await?;
        let now = self.clock.now();
        driver.revoke(&self.egress, &question, now).await?;
        fault::point("credential_revoked");
        Ok(())
    }

    /// A question about a credential that is there. The end of the old value is in it where a driver has minted that: what an
    /// owner has typed in could be the end of somebody else's.
    async fn question(&self, event: &str, found: &FoundRotation) -> Result<Question> {
        let (rotation, head) = (&found.rotation, &found.credential.head);
        let mut question = question(event, rotation, head);
        if self.db.is_minted(head.id, rotation.old_value).await? {
            let old = found.credential.values.iter();
            let old = old.filter(|value| value.id == rotation.old_value);
            let last_four: String = old.map(|value| value.last_four.as_str()).collect();
            question.body["old_last_four"] = last_four.into();
        }
        Ok(question)
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

/// What a driver is asked about a rotation.
pub(super) fn question(
    event: &str,
    rotation: &CredentialRotation,
    head: &StoredCredential,
) -> Question {
    Question {
        id: format!("{}-{event}", rotation.id),
        body: json!({
            "event": event,
            "rotation_id": rotation.id.to_string(),
            "new_value_id": rotation.new_value.to_string(),
            "old_value_id": rotation.old_value.to_string(),
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
