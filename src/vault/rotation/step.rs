//! One step of a rotation: its rows, locked, and what changes in them.

use std::time::Duration;

use super::{
    approve::{WAITING, waiting},
    ended, in_state, unknown_rotation, value_of,
    withdraw::ERASED,
};
use crate::{
    error::Result,
    gate::{AdminPermit, Mutation, Recorded},
    model::{
        AlertId, CredentialRotation, CredentialRotationState, CredentialValue, Probed, Timestamp,
        ValueLabel, credential_rotation::Proof,
    },
    store::{Alert, FullCredential, Term},
    vault::{conflict, details},
};

/// Rows that nobody else changes before this ends.
pub(super) struct Step {
    mutation: Mutation,
    pub(super) credential: FullCredential,
    pub(super) rotation: CredentialRotation,
    pub(super) now: Timestamp,
    /// Why, as a person put it.
    pub(super) reason: Option<String>,
    /// What people are told besides, when it is rolled back.
    pub(super) because: &'static str,
    /// Where it was.
    was: CredentialRotationState,
}

/// How long a notice fires.
const NOTICE: Duration = Duration::from_secs(60 * 60);

impl Step {
    /// Locks a rotation that is in this state, in a job's term where there is one.
    ///
    /// Errors: CREDENTIAL_ROTATION_NOT_FOUND when it is gone with its credential, CREDENTIAL_ROTATION_STATE, LEASE_LOST.
    pub(super) async fn begin(
        permit: AdminPermit,
        term: Option<&Term>,
        rotation: &CredentialRotation,
        state: CredentialRotationState,
        now: Timestamp,
    ) -> Result<Self> {
        let mutation = match term {
            Some(term) => permit.begin_in(term).await?,
            None => permit.begin().await?,
        };
        Self::lock(mutation, rotation, state, now).await
    }

    /// As `begin`, in a change that has begun.
    pub(super) async fn lock(
        mut mutation: Mutation,
        rotation: &CredentialRotation,
        state: CredentialRotationState,
        now: Timestamp,
    ) -> Result<Self> {
        let tx = mutation.tx();
        let credential = tx.lock_credential(rotation.credential).await?;
        let credential = credential.ok_or_else(unknown_rotation)?;
        let rotation = tx.lock_credential_rotation(rotation.id).await?;
        let rotation = rotation.ok_or_else(unknown_rotation)?;
        in_state(&rotation, state)?;
        Ok(Self {
            mutation,
            credential,
            rotation,
            now,
            reason: None,
            because: "",
            was: state,
        })
    }

    /// What a driver has minted becomes PENDING.
    pub(super) async fn stage(&mut self, value: &CredentialValue) -> Result<()> {
        value_of(
            &self.credential,
            ValueLabel::Current,
            self.rotation.old_value,
        )?;
        self.rotation.state = CredentialRotationState::Staged;
        // Two people bring on what needs them.
        self.rotation.check_at = (!self.rotation.needs_approval).then_some(self.now);
        let (tx, key) = (self.mutation.tx(), &self.credential.head.key);
        Ok(tx.insert_credential_value(key, value).await?)
    }

    /// PENDING becomes CURRENT, and CURRENT becomes PREVIOUS.
    pub(super) async fn promote(
        &mut self,
        format_ok: bool,
        said: Option<Probed>,
        check_at: Timestamp,
    ) -> Result<()> {
        let (current, pending) = (ValueLabel::Current, ValueLabel::Pending);
        let mut old = value_of(&self.credential, current, self.rotation.old_value)?.clone();
        let mut new = value_of(&self.credential, pending, self.rotation.new_value)?.clone();
        let until = self.now.plus(self.rotation.hold_for);
        old.label = ValueLabel::Previous;
        old.hold_until = Some(until);
        new.label = current;
        new.promoted_at = Some(self.now);
        let tx = self.mutation.tx();
        // The old one first: the database has one value of each label.
        let moved = tx.relabel_credential_value(&old, current).await?
            && tx.relabel_credential_value(&new, pending).await?;
        if !moved {
            return Err(conflict());
        }
        let head = &mut self.credential.head;
        head.rotation_due_at = self.now.plus(head.rotation_period);
        head.format_ok = format_ok;
        head.probe = said;
        self.rotation.state = CredentialRotationState::Holding;
        self.rotation.hold_until = Some(until);
        self.rotation.check_at = Some(check_at.min(until));
        self.store_head().await
    }

    /// PENDING goes.
    pub(super) async fn drop_pending(&mut self, why: &str) -> Result<()> {
        self.roll_back(why);
        let (tx, id) = (self.mutation.tx(), self.credential.head.id);
        tx.delete_credential_value(id, ValueLabel::Pending).await?;
        Ok(())
    }

    /// CURRENT goes, and PREVIOUS becomes CURRENT again.
    pub(super) async fn take_back(&mut self, why: &str, format_ok: bool) -> Result<()> {
        let (current, previous) = (ValueLabel::Current, ValueLabel::Previous);
        value_of(&self.credential, current, self.rotation.new_value)?;
        let mut old = value_of(&self.credential, previous, self.rotation.old_value)?.clone();
        old.label = current;
        old.hold_until = None;
        let (tx, id) = (self.mutation.tx(), self.credential.head.id);
        let moved = tx.delete_credential_value(id, current).await?
            && tx.relabel_credential_value(&old, previous).await?;
        if !moved {
            return Err(conflict());
        }
        let head = &mut self.credential.head;
        head.rotation_due_at = self.rotation.due_before;
        head.format_ok = format_ok;
        head.probe.clone_from(&self.rotation.old_probe);
        self.roll_back(why);
        self.store_head().await
    }

    /// PREVIOUS goes.
    pub(super) async fn complete(&mut self) -> Result<()> {
        let previous = ValueLabel::Previous;
        value_of(&self.credential, previous, self.rotation.old_value)?;
        self.rotation.state = CredentialRotationState::Completed;
        self.rotation.check_at = None;
        let (tx, id) = (self.mutation.tx(), self.credential.head.id);
        tx.delete_credential_value(id, previous).await?;
        Ok(())
    }

    /// What an alert of this kind said does not hold any more.
    pub(super) async fn end_alert(&mut self, kind: &str) -> Result<()> {
        let (id, now) = (self.rotation.id, self.now);
        let ended = self.mutation.tx().end_credential_alert(kind, id, now);
        Ok(ended.await?)
    }

    /// The teams are told what has happened. There is nothing to be done about it, so that ends by itself.
    pub(super) async fn notice(&mut self, kind: &str, text: String) -> Result<()> {
        let alert = alert(&self.rotation, kind, text, self.now);
        tracing::info!(kind, credential = %self.rotation.credential, "{}", alert.text);
        let until = self.now.plus(NOTICE);
        let tx = self.mutation.tx();
        tx.raise_alert_until(&alert, until).await?;
        Ok(())
    }

    /// People are told, once for this rotation.
    pub(super) async fn tell(&mut self, kind: &str, text: String) -> Result<()> {
        let alert = alert(&self.rotation, kind, text, self.now);
        tracing::warn!(kind, credential = %self.rotation.credential, "{}", alert.text);
        self.mutation.tx().raise_alert(&alert).await?;
        Ok(())
    }

    /// Stores and records the rotation as it is now.
    pub(super) async fn done(mut self) -> Result<Recorded<CredentialRotation>> {
        self.rotation.updated_at = self.now;
        self.rotation.attempts = 0;
        if self.rotation.state != self.was {
            let (id, now) = (self.credential.head.id, self.now);
            self.mutation.tx().end_credential_alerts(id, now).await?;
            // Behind it, or it would be over as soon as it is there.
            if self.rotation.state == CredentialRotationState::Staged
                && self.rotation.needs_approval
            {
                let text = waiting(&self.credential.head.key, &self.rotation);
                self.tell(WAITING, text).await?;
            }
        }
        self.news().await?;
        let (tx, rotation) = (self.mutation.tx(), self.rotation);
        tx.update_credential_rotation(&rotation).await?;
        let mut details = details(&self.credential.head.key);
        details["rotation_id"] = rotation.id.to_string().into();
        details["state"] = rotation.state.as_str().into();
        details["new_value"] = rotation.new_value.to_string().into();
        details["old_value"] = rotation.old_value.to_string().into();
        if rotation.needs_approval {
            details["requester"] = rotation.requester.map(|id| id.to_string()).into();
            let approver = rotation.approval.as_ref().map(|a| a.approver.to_string());
            details["approver"] = approver.into();
        }
        for (name, probed) in [
            ("new_probe", &rotation.new_probe),
            ("old_probe", &rotation.old_probe),
        ] {
            if let Some(probed) = probed {
                details[name] = format!("{} {}", probed.result.as_str(), probed.detail).into();
            }
        }
        if rotation.state == CredentialRotationState::Completed {
            details["proof"] = rotation.proof().as_str().into();
        }
        if !rotation.why.is_empty() {
            details["why"] = rotation.why.as_str().into();
        }
        if let Some(reason) = self.reason {
            details["reason"] = reason.into();
        }
        count(&rotation);
        self.mutation.record(rotation, details).await
    }

    /// What the teams hear of a step that was taken.
    async fn news(&mut self) -> Result<()> {
        // Nobody is left to be told of a tenant that is no more.
        if self.rotation.state == self.was || self.rotation.why == ERASED {
            return Ok(());
        }
        let key = &self.credential.head.key;
        let what = format!("credential {key} of tenant {}", key.tenant);
        let (kind, text) = match self.rotation.state {
            CredentialRotationState::Holding => (
                "CREDENTIAL_PROMOTED",
                format!("{what} has a new value; the old one is held, lease it again"),
            ),
            CredentialRotationState::Completed => {
                let old = match self.rotation.proof() {
                    Proof::Dead => "its provider refuses the old one",
                    Proof::Alive => "the old one still works: revoke it at the provider",
                    Proof::Unknown => "nobody says whether the old one still works",
                };
                ("CREDENTIAL_ROTATED", format!("{what} is rotated; {old}"))
            }
            CredentialRotationState::RolledBack => (
                "CREDENTIAL_ROLLED_BACK",
                format!(
                    "{what} keeps its old value ({}){}",
                    self.rotation.why, self.because
                ),
            ),
            CredentialRotationState::Minting | CredentialRotationState::Staged => return Ok(()),
        };
        self.notice(kind, text).await
    }

    /// The rotation ends, and the values stay what they are.
    pub(super) fn give_up(&mut self, why: &str) {
        self.roll_back(why);
    }

    /// The new value is gone.
    fn roll_back(&mut self, why: &str) {
        let head = &self.credential.head;
        self.rotation = ended(self.rotation.clone(), head, why, self.now);
    }

    async fn store_head(&mut self) -> Result<()> {
        self.credential.head.updated_at = self.now;
        let head = &self.credential.head;
        match self.mutation.tx().update_credential(head).await? {
            true => Ok(()),
            false => Err(conflict()),
        }
    }
}

/// What people are told about a rotation.
pub(super) fn alert(
    rotation: &CredentialRotation,
    kind: &str,
    text: String,
    now: Timestamp,
) -> Alert {
    Alert {
        id: AlertId::random(),
        tenant: rotation.tenant.clone(),
        kind: kind.to_owned(),
        entity: "credential".to_owned(),
        entity_id: rotation.credential.to_string(),
        text,
        raised_at: now,
        window_key: format!("{kind}/{}", rotation.id),
    }
}

fn count(rotation: &CredentialRotation) {
    let proof = match rotation.state {
        CredentialRotationState::Completed => rotation.proof(),
        _ => Proof::Unknown,
    };
    metrics::counter!(
        "claviger_credential_rotation_steps_total",
        "state" => rotation.state.as_str(), "proof" => proof.as_str()
    )
    .increment(1);
}
