//! The steps after staging: promotion, the end of the hold, and the way back.

use super::{Demand, FoundRotation, Rates, state, step::Step, unknown_rotation, value_of};
use crate::{
    error::Result,
    gate::{AdminPermit, Recorded},
    model::{
        CredentialRotation, CredentialRotationState, CredentialValue, ProbeResult, Probed,
        RotationDriver, ValueLabel,
        credential_rotation::{OfStaged, Proof, of_staged},
    },
    store::{FullCredential, Term},
    vault::{Vault, catalogue::look_at},
};

/// Code of a new value that its provider does not take.
const REFUSED: &str = "NEW_VALUE_REFUSED";
const NEW_REFUSED: &str =
    ": the provider refuses the new one; the old one stays in use, and another new one is needed";

/// Why a rotation is rolled back.
pub enum RollBack {
    /// The provider refuses the new value, and takes the old one.
    Refused {
        /// What it said of the new value.
        new: Probed,
        /// What it said of the old one.
        old: Probed,
    },
    /// More requests fail since the promotion, and the provider takes the old value.
    Errors {
        /// How many.
        rates: Rates,
        /// What it said of the new value.
        new: Probed,
        /// What it said of the old one.
        old: Probed,
    },
    /// The driver gave no value in time.
    NotMinted,
    /// Somebody put another CURRENT value before the new one came.
    Replaced,
    /// A person wants it; why, in words.
    Asked(String),
}

/// What a provider said of a PENDING value.
pub struct OfPending {
    /// It looks as the catalogue says.
    format_ok: bool,
    /// None where it was not asked.
    said: Option<Probed>,
}

impl OfPending {
    /// What it said, when that leaves the rotation as it is; Err with all of it otherwise.
    pub fn stays(self, rotation: &CredentialRotation) -> std::result::Result<Option<Probed>, Self> {
        let result = self.said.as_ref().map(|said| said.result);
        let refusals = rotation.refusals_with(result);
        match of_staged(result, rotation.driver, refusals) {
            OfStaged::Stay => Ok(self.said),
            OfStaged::Promote | OfStaged::RollBack | OfStaged::Refuse => Err(self),
        }
    }
}

impl Vault {
    /// Asks the provider about the PENDING value unless that is waived, and does what follows: promotes it, drops it, or
    /// leaves it as it is.
    ///
    /// Errors: CREDENTIAL_ROTATION_NOT_FOUND; CREDENTIAL_ROTATION_STATE when it is not STAGED, when the CURRENT value was
    /// replaced meanwhile, and when nobody can be asked; CREDENTIAL_UNREADABLE, CREDENTIAL_KEY_UNAVAILABLE; CONFLICT.
    pub async fn promote(
        &self,
        permit: AdminPermit,
        found: Option<FoundRotation>,
        probe: Demand,
    ) -> Result<Recorded<CredentialRotation>> {
        let found = found.ok_or_else(unknown_rotation)?;
        super::in_state(&found.rotation, CredentialRotationState::Staged)?;
        found.rotation.may_promote(permit.caller().principal.id)?;
        let asked = self.ask_pending(&found, probe).await?;
        self.promote_asked(permit, None, found, asked).await
    }

    /// Asks the provider about the PENDING value, unless that is waived. Nothing is stored.
    ///
    /// Errors: as `promote`.
    pub async fn ask_pending(&self, found: &FoundRotation, probe: Demand) -> Result<OfPending> {
        let FoundRotation {
            rotation,
            credential,
        } = found;
        super::in_state(rotation, CredentialRotationState::Staged)?;
        let pending = value_of(credential, ValueLabel::Pending, rotation.new_value)?;
        let (format_ok, said) = match probe {
            Demand::Waived => (self.looks_right(credential, pending).await?, None),
            Demand::Needed => {
                let (format_ok, said) = self.ask_about(credential, pending).await?;
                (format_ok, Some(said))
            }
        };
        Ok(OfPending { format_ok, said })
    }

    /// Does what follows from what the provider said.
    ///
    /// Errors: as `promote`; LEASE_LOST.
    pub async fn promote_asked(
        &self,
        permit: AdminPermit,
        term: Option<Term>,
        found: FoundRotation,
        asked: OfPending,
    ) -> Result<Recorded<CredentialRotation>> {
        let OfPending { format_ok, said } = asked;
        let (staged, now) = (CredentialRotationState::Staged, self.clock.now());
        let who = permit.caller().principal.id;
        let mut step = Step::begin(permit, term.as_ref(), &found.rotation, staged, now).await?;
        step.rotation.may_promote(who)?;
        let result = said.as_ref().map(|said| said.result);
        let rotation = &mut step.rotation;
        rotation.refusals = rotation.refusals_with(result);
        rotation.new_probe.clone_from(&said);
        let check_at = now.plus(self.rotation.check);
        match of_staged(result, rotation.driver, rotation.refusals) {
            OfStaged::Promote => {
                step.rotation.refusals = 0;
                step.promote(format_ok, said, check_at).await?;
            }
            OfStaged::RollBack => {
                step.because = NEW_REFUSED;
                step.drop_pending(REFUSED).await?;
            }
            // Who began it asks again.
            OfStaged::Stay => {
                let alone = rotation.driver != RotationDriver::Manual && !rotation.needs_approval;
                rotation.check_at = alone.then_some(check_at);
            }
            OfStaged::Refuse => {
                return Err(state(
                    "the catalogue knows no way to ask this provider about a value; try it yourself, and promote it \
                     without_probe",
                ));
            }
        }
        step.done().await
    }

    /// Asks the provider about the PREVIOUS value, and lets it go when it is dead, when nobody can be asked, or when a proof
    /// is waived. Otherwise what is known is noted, and the value stays.
    ///
    /// Errors: CREDENTIAL_ROTATION_NOT_FOUND, CREDENTIAL_ROTATION_STATE; CREDENTIAL_UNREADABLE and
    /// CREDENTIAL_KEY_UNAVAILABLE unless a proof is waived.
    pub async fn complete(
        &self,
        permit: AdminPermit,
        found: Option<FoundRotation>,
        proof: Demand,
    ) -> Result<Recorded<CredentialRotation>> {
        let FoundRotation {
            rotation,
            credential,
        } = found.ok_or_else(unknown_rotation)?;
        let holding = CredentialRotationState::Holding;
        super::in_state(&rotation, holding)?;
        let previous = value_of(&credential, ValueLabel::Previous, rotation.old_value)?;
        let asked = self.ask_about(&credential, previous).await;
        let said = match (asked, proof) {
            (Ok((_, said)), _) => Some(said),
            (Err(_), Demand::Waived) => None,
            (Err(error), Demand::Needed) => return Err(error),
        };
        let mut step = Step::begin(permit, None, &rotation, holding, self.clock.now()).await?;
        let goes = said.as_ref().is_some_and(|said| {
            said.result == ProbeResult::NoProbe || Proof::of(said.result) == Proof::Dead
        });
        step.rotation.old_probe = said;
        if goes || proof == Demand::Waived {
            step.complete().await?;
        }
        step.done().await
    }

    /// As `complete`, for the job: the hold is over, and the provider has said this of the old value.
    ///
    /// Errors: as `complete`; LEASE_LOST.
    pub async fn complete_held(
        &self,
        permit: AdminPermit,
        term: Term,
        found: FoundRotation,
        said: Probed,
    ) -> Result<Recorded<CredentialRotation>> {
        let (rotation, now) = (&found.rotation, self.clock.now());
        let holding = CredentialRotationState::Holding;
        let mut step = Step::begin(permit, Some(&term), rotation, holding, now).await?;
        step.rotation.old_probe = Some(said);
        step.complete().await?;
        step.done().await
    }

    /// The old value is CURRENT, and the new one gone.
    ///
    /// Errors: CREDENTIAL_ROTATION_NOT_FOUND; CREDENTIAL_ROTATION_STATE when it has ended, and when a value was replaced
    /// meanwhile; CREDENTIAL_UNREADABLE, CREDENTIAL_KEY_UNAVAILABLE when the old value does not open; LEASE_LOST.
    pub async fn roll_back(
        &self,
        permit: AdminPermit,
        term: Option<Term>,
        found: Option<FoundRotation>,
        why: RollBack,
    ) -> Result<Recorded<CredentialRotation>> {
        let FoundRotation {
            rotation,
            credential,
        } = found.ok_or_else(unknown_rotation)?;
        let format_ok = match rotation.state {
            CredentialRotationState::Holding => {
                let previous = value_of(&credential, ValueLabel::Previous, rotation.old_value)?;
                self.looks_right(&credential, previous).await?
            }
            CredentialRotationState::Minting | CredentialRotationState::Staged => true,
            CredentialRotationState::Completed | CredentialRotationState::RolledBack => {
                return Err(state(format!(
                    "the rotation is {}; only one that is under way can be rolled back",
                    rotation.state.as_str()
                )));
            }
        };
        let (was, now) = (rotation.state, self.clock.now());
        let mut step = Step::begin(permit, term.as_ref(), &rotation, was, now).await?;
        let code = match why {
            RollBack::Asked(reason) => {
                step.reason = Some(reason);
                "ASKED_FOR"
            }
            RollBack::Replaced => "VALUE_REPLACED",
            RollBack::NotMinted => {
                step.because = ": the driver gave no new value for a day";
                "NOT_MINTED"
            }
            RollBack::Refused { new, old } => {
                step.rotation.new_probe = Some(new);
                step.rotation.old_probe = Some(old);
                step.because = NEW_REFUSED;
                REFUSED
            }
            RollBack::Errors { rates, new, old } => {
                step.rotation.new_probe = Some(new);
                step.rotation.old_probe = Some(old);
                step.because = ": more requests failed with the new one than before";
                let Rates { before, after } = rates;
                step.reason = Some(format!(
                    "{} of {} requests failed, and {} of {} before the promotion",
                    after.errors, after.requests, before.errors, before.requests
                ));
                "ERROR_RATE"
            }
        };
        match was {
            CredentialRotationState::Holding => step.take_back(code, format_ok).await?,
            _ => step.drop_pending(code).await?,
        }
        step.done().await
    }

    /// What the provider says of a value, and whether it looks right.
    ///
    /// Errors: CREDENTIAL_UNREADABLE, CREDENTIAL_KEY_UNAVAILABLE; INVALID_FIELD for a provider that the catalogue does not
    /// have any more.
    pub(super) async fn ask_about(
        &self,
        credential: &FullCredential,
        value: &CredentialValue,
    ) -> Result<(bool, Probed)> {
        let head = &credential.head;
        let provider = self.catalogue.provider(&head.key.provider)?;
        let fields = self.open(head, value).await?;
        let format_ok = look_at(provider, &fields)?.is_empty();
        let (environment, organisation) = (head.key.environment, &head.organisation);
        let said = self.ask(provider, environment, &fields, organisation).await;
        Ok((format_ok, said))
    }

    async fn looks_right(
        &self,
        credential: &FullCredential,
        value: &CredentialValue,
    ) -> Result<bool> {
        let provider = self.catalogue.provider(&credential.head.key.provider)?;
        let fields = self.open(&credential.head, value).await?;
        Ok(look_at(provider, &fields)?.is_empty())
    }
}
