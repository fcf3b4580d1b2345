//! The hold, as the job sees it: providers are asked about new values that might fail, and old ones that should be dead.
//!
//! A look leaves no audit row unless it changes something: there are many of them.

use super::{FoundRotation, step::alert, value_of};
use crate::{
    error::Result,
    model::{
        CredentialRotation, ProbeResult, Probed, ValueLabel,
        credential_rotation::{OfHeld, of_held, pause_after},
    },
    store::Term,
    vault::Vault,
};

/// What a look at a rotation in its hold found.
pub struct Look {
    /// What follows.
    pub next: OfHeld,
    /// What the provider says of the new value; None when another one is CURRENT by now.
    pub new: Option<Probed>,
    /// What it says of the old one; None where it was not asked.
    pub old: Option<Probed>,
}

impl Look {
    /// Does the provider take the new value, or is another one CURRENT by now?
    pub fn new_works(&self) -> bool {
        let said = self.new.as_ref().map(|said| said.result);
        said.is_none_or(|said| said == ProbeResult::Valid)
    }

    /// The provider said this of a new value that is not CURRENT.
    pub const fn of_new(new: Option<Probed>) -> Self {
        Self {
            next: OfHeld::Wait,
            new,
            old: None,
        }
    }

    /// Nothing was asked.
    pub const fn nothing() -> Self {
        Self {
            next: OfHeld::Wait,
            new: None,
            old: None,
        }
    }
}

impl Vault {
    /// Moves the next look at a rotation on, before it is looked at; false when somebody else has it.
    ///
    /// Errors: LEASE_LOST.
    pub async fn claim_rotation(&self, term: &Term, rotation: &CredentialRotation) -> Result<bool> {
        let next = self.clock.now().plus(pause_after(rotation.attempts));
        let mut tx = self.db.begin().await?;
        tx.hold(term).await?;
        let is_ours = tx.claim_credential_rotation(rotation, next).await?;
        tx.commit().await?;
        Ok(is_ours)
    }

    /// Up to `limit` rotations to look at now, one of each tenant first.
    pub async fn rotations_to_check(&self, limit: i64) -> Result<Vec<CredentialRotation>> {
        let now = self.clock.now();
        Ok(self.db.credential_rotations_to_check(now, limit).await?)
    }

    /// Asks the provider what there is to ask. Nothing is stored.
    ///
    /// Errors: CREDENTIAL_UNREADABLE, CREDENTIAL_KEY_UNAVAILABLE; INVALID_FIELD for a provider that the catalogue does not
    /// have any more.
    pub async fn look(&self, found: &FoundRotation) -> Result<Look> {
        let FoundRotation {
            rotation,
            credential,
        } = found;
        let new = match value_of(credential, ValueLabel::Current, rotation.new_value) {
            Ok(value) => Some(self.ask_about(credential, value).await?.1),
            Err(_) => None,
        };
        let is_over = rotation.is_over(self.clock.now());
        let new_result = new.as_ref().map(|said| said.result);
        let is_refused = new_result == Some(ProbeResult::Invalid);
        let old = match is_over || is_refused {
            true => {
                let value = value_of(credential, ValueLabel::Previous, rotation.old_value)?;
                Some(self.ask_about(credential, value).await?.1)
            }
            false => None,
        };
        let is_believed = rotation.is_refusal_believed(rotation.refusals_with(new_result));
        let next = match is_refused && !is_believed {
            true => OfHeld::Wait,
            false => of_held(is_over, new_result, old.as_ref().map(|said| said.result)),
        };
        Ok(Look { next, new, old })
    }

    /// Notes what a look found that changes nothing, and when the next one is. Who must revoke an old value is told, once.
    ///
    /// Errors: LEASE_LOST.
    pub async fn wait(&self, term: &Term, found: &FoundRotation, look: Look) -> Result<()> {
        let now = self.clock.now();
        let mut tx = self.db.begin().await?;
        tx.hold(term).await?;
        tx.lock_credential(found.rotation.credential).await?;
        let locked = tx.lock_credential_rotation(found.rotation.id).await?;
        // Somebody else has brought it on.
        let Some(mut rotation) = locked.filter(|r| r.state == found.rotation.state) else {
            return Ok(());
        };
        rotation.attempts = 0;
        rotation.refusals = rotation.refusals_with(look.new.as_ref().map(|said| said.result));
        // Asked soon again whether it is meant.
        let pause = match rotation.refusals {
            0 => self.rotation.check,
            n => self.rotation.check.min(pause_after(n)),
        };
        let next = now.plus(pause);
        rotation.check_at = match rotation.hold_until {
            Some(until) if now < until => Some(next.min(until)),
            _ => Some(next),
        };
        rotation.new_probe = look.new.or(rotation.new_probe);
        rotation.old_probe = look.old.or(rotation.old_probe);
        tx.update_credential_rotation(&rotation).await?;
        if look.next == OfHeld::Alive {
            let key = &found.credential.head.key;
            let text = format!(
                "the old value of credential {key} of tenant {} still works; revoke it at the provider: the daemon \
                 completes the rotation once it is refused, as does `claviger credential rotation complete {}`",
                key.tenant, rotation.id
            );
            let alert = alert(&rotation, "CREDENTIAL_OLD_VALUE_ALIVE", text, now);
            if tx.raise_alert(&alert).await? {
                tracing::warn!(
                    kind = alert.kind,
                    entity_id = alert.entity_id,
                    "{}",
                    alert.text
                );
            }
        }
        Ok(tx.commit().await?)
    }
}
