//! Rotations of credentials (R-CRED-7): what becomes of a new value and of the one that it replaces.

use std::time::Duration;

use super::{
    Approval, CredentialId, CredentialRotationId, CredentialValueId, PrincipalId, ProbeResult,
    Probed, RotationDriver, TenantName, Timestamp,
};
use crate::error::{Error, Reason, Result};

/// How often in a row a provider refuses a value that was minted a moment ago before that is believed: it may not know the
/// value everywhere yet.
pub const BELIEVED: u32 = 8;
/// The same of a minted value that it has taken before.
pub const BELIEVED_LATER: u32 = 3;
/// Longest pause after tries that led to nothing.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// A rotation of a credential.
#[derive(Clone, Debug)]
pub struct CredentialRotation {
    /// Its id.
    pub id: CredentialRotationId,
    /// The credential.
    pub credential: CredentialId,
    /// Tenant of the credential.
    pub tenant: TenantName,
    /// Where it is.
    pub state: CredentialRotationState,
    /// How the new value came.
    pub driver: RotationDriver,
    /// The new value.
    pub new_value: CredentialValueId,
    /// The value that it replaces.
    pub old_value: CredentialValueId,
    /// When the old value was to be replaced.
    pub due_before: Timestamp,
    /// How long the old value is held once the new one is CURRENT.
    pub hold_for: Duration,
    /// Until when it is held; None before the promotion.
    pub hold_until: Option<Timestamp>,
    /// When the driver or the provider is asked again; None when nothing is to be asked.
    pub check_at: Option<Timestamp>,
    /// Tries in a row that led to nothing.
    pub attempts: u32,
    /// How often in a row the provider has refused the new value.
    pub refusals: u32,
    /// What the driver is still to be asked, as JSON without a secret, about a value that it minted and nobody uses.
    pub withdraw: Option<String>,
    /// Who staged the new value; None in rows of a release that did not note it.
    pub requester: Option<PrincipalId>,
    /// Must another one approve it, and a third one promote it?
    pub needs_approval: bool,
    /// Who approved it.
    pub approval: Option<Approval>,
    /// What the provider said last of the new value.
    pub new_probe: Option<Probed>,
    /// What it said last of the old one.
    pub old_probe: Option<Probed>,
    /// Why it was rolled back.
    pub why: String,
    /// When it began.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// Where a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CredentialRotationState {
    /// A driver is asked for the new value.
    Minting,
    /// The new value is PENDING.
    Staged,
    /// The new value is CURRENT, the old one PREVIOUS.
    Holding,
    /// The old value is gone from here.
    Completed,
    /// The new value is gone from here.
    RolledBack,
}

impl CredentialRotationState {
    const ALL: [Self; 5] = [
        Self::Minting,
        Self::Staged,
        Self::Holding,
        Self::Completed,
        Self::RolledBack,
    ];

    /// The text in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Minting => "MINTING",
            Self::Staged => "STAGED",
            Self::Holding => "HOLDING",
            Self::Completed => "COMPLETED",
            Self::RolledBack => "ROLLED_BACK",
        }
    }
}

impl std::str::FromStr for CredentialRotationState {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|state| state.as_str() == s);
        found.ok_or_else(|| {
            Error::new(
                Reason::InvalidField,
                "no such state of a rotation of a credential",
            )
        })
    }
}

/// What is to be done with a staged value, by what its provider says to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfStaged {
    /// It becomes CURRENT.
    Promote,
    /// It goes.
    RollBack,
    /// The provider said neither yes nor no: it stays where it is, and is asked about again.
    Stay,
    /// Nobody can ask: a person must say that it goes without.
    Refuse,
}

/// What follows for a staged value that the provider has refused so often in a row, this time included. None: a person wants
/// it promoted without asking.
pub const fn of_staged(
    said: Option<ProbeResult>,
    driver: RotationDriver,
    refusals: u32,
) -> OfStaged {
    let is_believed = matches!(driver, RotationDriver::Manual) || refusals >= BELIEVED;
    match said {
        None | Some(ProbeResult::Valid) => OfStaged::Promote,
        Some(ProbeResult::Invalid) if is_believed => OfStaged::RollBack,
        Some(ProbeResult::Invalid) => OfStaged::Stay,
        Some(ProbeResult::Unexpected | ProbeResult::Unreachable) => OfStaged::Stay,
        Some(ProbeResult::NoProbe) => OfStaged::Refuse,
    }
}

/// What is to be done with a rotation whose old value is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfHeld {
    /// The old value becomes CURRENT again: its provider takes it, and refuses the new one.
    RollBack,
    /// The old value goes: it is dead, or nobody can ask whether it is.
    Complete,
    /// The hold is over and the old value still works: somebody must revoke it at the provider.
    Alive,
    /// Nothing yet.
    Wait,
}

/// What follows for a held rotation. None: not asked about.
pub const fn of_held(is_over: bool, new: Option<ProbeResult>, old: Option<ProbeResult>) -> OfHeld {
    match (new, old) {
        (Some(ProbeResult::Invalid), Some(ProbeResult::Valid)) => OfHeld::RollBack,
        // Neither is taken, perhaps because nothing of ours is at this moment: no time to give one of them away.
        (Some(ProbeResult::Invalid), _) => OfHeld::Wait,
        (_, Some(ProbeResult::Invalid | ProbeResult::NoProbe)) if is_over => OfHeld::Complete,
        (_, Some(ProbeResult::Valid)) if is_over => OfHeld::Alive,
        _ => OfHeld::Wait,
    }
}

/// How long after so many tries in a row that led to nothing the next one is made.
pub fn pause_after(tries: u32) -> Duration {
    Duration::from_secs(1 << tries.min(9)).min(LONGEST_PAUSE)
}

/// What is known of the death of an old value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Its provider refuses it.
    Dead,
    /// Its provider takes it.
    Alive,
    /// Nobody was asked, or nobody said.
    Unknown,
}

impl Proof {
    /// What an answer proves.
    pub const fn of(said: ProbeResult) -> Self {
        match said {
            ProbeResult::Invalid => Self::Dead,
            ProbeResult::Valid => Self::Alive,
            ProbeResult::Unexpected | ProbeResult::Unreachable | ProbeResult::NoProbe => {
                Self::Unknown
            }
        }
    }

    /// The text in the audit log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dead => "DEAD",
            Self::Alive => "ALIVE",
            Self::Unknown => "UNKNOWN",
        }
    }
}

impl CredentialRotation {
    /// What is known of the death of the old value.
    pub fn proof(&self) -> Proof {
        let said = self.old_probe.as_ref();
        said.map_or(Proof::Unknown, |probed| Proof::of(probed.result))
    }

    /// How often in a row the new value was refused, when the provider says this now. What is neither yes nor no changes
    /// nothing.
    pub const fn refusals_with(&self, said: Option<ProbeResult>) -> u32 {
        match said {
            Some(ProbeResult::Invalid) => self.refusals.saturating_add(1),
            Some(ProbeResult::Valid) => 0,
            _ => self.refusals,
        }
    }

    /// Is it believed now that the provider refuses a new value which is CURRENT?
    pub fn is_refusal_believed(&self, refusals: u32) -> bool {
        self.driver == RotationDriver::Manual || refusals >= BELIEVED_LATER
    }

    /// Is the time over for which the old value is held?
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.hold_until.is_some_and(|until| until <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::{ProbeResult as P, *};

    const ALL: [P; 5] = [
        P::Valid,
        P::Invalid,
        P::Unexpected,
        P::Unreachable,
        P::NoProbe,
    ];

    // R-CRED-7
    #[test]
    fn only_what_the_provider_takes_or_a_person_vouches_for_is_promoted() {
        let manual = RotationDriver::Manual;
        let promoted = |said| of_staged(said, manual, 1) == OfStaged::Promote;
        assert!(promoted(None) && promoted(Some(P::Valid)));
        assert!(!ALL[1..].iter().any(|said| promoted(Some(*said))));
        let refused = Some(P::Invalid);
        assert_eq!(of_staged(refused, manual, 1), OfStaged::RollBack);
    }

    // R-CRED-7
    #[test]
    fn one_refusal_of_a_minted_value_is_not_believed() {
        for driver in [RotationDriver::Webhook, RotationDriver::Command] {
            for n in 0..BELIEVED {
                let next = of_staged(Some(P::Invalid), driver, n);
                assert_eq!(next, OfStaged::Stay, "{n}");
            }
            let last = of_staged(Some(P::Invalid), driver, BELIEVED);
            assert_eq!(last, OfStaged::RollBack);
            let taken = of_staged(Some(P::Valid), driver, BELIEVED);
            assert_eq!(taken, OfStaged::Promote);
        }
    }

    #[test]
    fn pauses_grow_and_end_at_five_minutes() {
        let pauses: Vec<_> = (0..12).map(|n| pause_after(n).as_secs()).collect();
        assert_eq!(pauses[..5], [1, 2, 4, 8, 16]);
        assert!(pauses.is_sorted());
        assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    }

    #[test]
    fn an_old_value_comes_back_only_where_it_works_and_the_new_one_does_not() {
        for is_over in [false, true] {
            for new in ALL.map(Some).into_iter().chain([None]) {
                for old in ALL.map(Some).into_iter().chain([None]) {
                    let back = of_held(is_over, new, old) == OfHeld::RollBack;
                    assert_eq!(back, new == Some(P::Invalid) && old == Some(P::Valid));
                }
            }
        }
    }

    #[test]
    fn an_old_value_goes_when_its_time_is_over_and_it_is_dead() {
        assert_eq!(
            of_held(false, Some(P::Valid), Some(P::Invalid)),
            OfHeld::Wait
        );
        assert_eq!(
            of_held(true, Some(P::Valid), Some(P::Invalid)),
            OfHeld::Complete
        );
        assert_eq!(
            of_held(true, Some(P::NoProbe), Some(P::NoProbe)),
            OfHeld::Complete
        );
        assert_eq!(of_held(true, Some(P::Valid), Some(P::Valid)), OfHeld::Alive);
        assert_eq!(
            of_held(true, Some(P::Valid), Some(P::Unreachable)),
            OfHeld::Wait
        );
        assert_eq!(of_held(true, Some(P::Valid), None), OfHeld::Wait);
        for old in [P::Invalid, P::NoProbe, P::Unreachable] {
            assert_eq!(of_held(true, Some(P::Invalid), Some(old)), OfHeld::Wait);
        }
    }
}
