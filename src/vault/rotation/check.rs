//! The hold, as the job sees it: providers are asked about new values that might fail, and old ones that should be dead.
//!
//! A look leaves no audit row unless it changes something: there are many of them.

use std::time::Duration;

use super::{FoundRotation, Rates, step::alert, value_of};
use crate::{
    error::Result,
    model::{
        CredentialRotation, ProbeResult, Probed, Timestamp, ValueLabel,
        credential_rotation::{OfHeld, of_errors, of_held, pause_after},
    },
    store::{FullCredential, Term},
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
    /// How many more requests fail, where that is why the old value comes back.
    pub errors: Option<Rates>,
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
            errors: None,
        }
    }

    /// Nothing was asked.
    pub const fn nothing() -> Self {
        Self {
            next: OfHeld::Wait,
            new: None,
            old: None,
            errors: None,
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
        let errors = match new_result {
            // Another value is CURRENT by now, or it is refused as it is.
            None | Some(ProbeResult::Invalid) => None,
            // Three people have brought it on, and anybody who records usage could take it back. Or the old one's time is
            // over: it may have been revoked a moment ago.
            _ if rotation.needs_approval || is_over => None,
            Some(_) => self.risen_errors(credential).await?,
        };
        let old = match is_over || is_refused || errors.is_some() {
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
        let next = match errors {
            Some(_) => of_errors(next, old.as_ref().map(|said| said.result)),
            None => next,
        };
        Ok(Look {
            next,
            new,
            old,
            errors,
        })
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
        let is_alive = look.next == OfHeld::Alive;
        if let Some((kind, text)) = trouble(&rotation, &found.credential, is_alive, now) {
            let alert = alert(&rotation, kind, text, now);
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

/// How long after its time nobody says whether an old value is dead before people are told.
const SILENCE: Duration = Duration::from_secs(10 * 60);

/// What people are to be told about a rotation in its hold, besides that it goes on.
fn trouble(
    rotation: &CredentialRotation,
    credential: &FullCredential,
    is_alive: bool,
    now: Timestamp,
) -> Option<(&'static str, String)> {
    let key = &credential.head.key;
    let (what, id) = (
        format!("credential {key} of tenant {}", key.tenant),
        rotation.id,
    );
    let result = |probed: &Option<Probed>| probed.as_ref().map(|said| said.result);
    let is_late = rotation
        .hold_until
        .is_some_and(|until| until.plus(SILENCE) <= now);
    let (new, old) = (result(&rotation.new_probe), result(&rotation.old_probe));
    match (new, old) {
        _ if is_alive => Some((
            "CREDENTIAL_OLD_VALUE_ALIVE",
            format!(
                "the old value of {what} still works; revoke it at the provider: the daemon completes the rotation once it \
                 is refused, as does `claviger credential rotation complete {id}`"
            ),
        )),
        (Some(ProbeResult::Invalid), Some(ProbeResult::Invalid)) => Some((
            "CREDENTIAL_REFUSED",
            format!(
                "the provider refuses the new value of {what} and the old one; stage another one"
            ),
        )),
        (_, Some(ProbeResult::Unexpected | ProbeResult::Unreachable)) if is_late => Some((
            "CREDENTIAL_OLD_VALUE_UNKNOWN",
            format!(
                "the provider does not say whether the old value of {what} still works; `claviger credential rotation get \
                 {id}` shows its answer"
            ),
        )),
        _ => None,
    }
}
