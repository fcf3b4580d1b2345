//! Rotations of credentials (R-CRED-7): what becomes of a new value and of the one that it replaces.

use std::time::Duration;

use super::{
    Approval, CredentialId, CredentialRotationId, CredentialValueId, PrincipalId, ProbeResult,
    Probed, RotationDriver, TenantName, Timestamp, duties::Duties,
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

/// What somebody should look after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Another one must approve the new value.
    WaitsForApproval,
    /// Nothing has come of it for long.
    Stuck,
    /// The old value should be dead and works.
    OldValueAlive,
    /// The old value should be dead, and nobody says whether it is.
    OldValueUnknown,
    /// A driver has minted a value that nobody uses, and has not said that it is revoked.
    MintedValueLeft,
}

impl Attention {
    /// The text on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WaitsForApproval => "WAITS_FOR_APPROVAL",
            Self::Stuck => "STUCK",
            Self::OldValueAlive => "OLD_VALUE_ALIVE",
            Self::OldValueUnknown => "OLD_VALUE_UNKNOWN",
            Self::MintedValueLeft => "MINTED_VALUE_LEFT",
        }
    }
}

/// Requests with a value, and how many of them failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Requests.
    pub requests: i64,
    /// Those of them that failed.
    pub errors: i64,
}

/// When more failures after a promotion take it back.
#[derive(Clone, Copy, Debug)]
pub struct ErrorRule {
    /// So many more of a hundred requests fail than before. 0: never.
    pub rise_percent: u32,
    /// Of at least so many requests, before and after.
    pub min_requests: i64,
}

impl ErrorRule {
    /// Do so many more requests fail since the promotion than before? Without enough of both there is nothing to compare.
    pub fn is_broken(self, before: Rate, after: Rate) -> bool {
        let enough = |rate: Rate| rate.requests >= self.min_requests.max(1);
        if self.rise_percent == 0 || !enough(before) || !enough(after) {
            return false;
        }
        let (of_before, of_after) = (i128::from(before.requests), i128::from(after.requests));
        // after/of_after - before/of_before, without a fraction.
        let rise = i128::from(after.errors) * of_before - i128::from(before.errors) * of_after;
        let least = i128::from(self.rise_percent).saturating_mul(of_before * of_after);
        rise.saturating_mul(100) >= least
    }
}

/// What follows when the error rate has risen: the old value comes back if it works, and nothing else changes.
pub const fn of_errors(next: OfHeld, old: Option<ProbeResult>) -> OfHeld {
    match old {
        Some(ProbeResult::Valid) => OfHeld::RollBack,
        _ => next,
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

    /// May this principal approve the new value?
    ///
    /// Errors: CREDENTIAL_ROTATION_STATE when nobody is asked to, or somebody has; SEPARATION_OF_DUTIES for who staged it.
    pub fn may_approve(&self, who: PrincipalId) -> Result<()> {
        let state = |text| Err(Error::new(Reason::CredentialRotationState, text));
        match (self.needs_approval, self.approval.is_some()) {
            (false, _) => state("this rotation needs nobody's approval"),
            (true, true) => state("this rotation is approved already"),
            (true, false) => self.duties().map_or(Ok(()), |d| d.may_approve(who)),
        }
    }

    /// May this principal promote the new value?
    ///
    /// Errors: CREDENTIAL_ROTATION_STATE while nobody has approved it; SEPARATION_OF_DUTIES for who staged or approved it.
    pub fn may_promote(&self, who: PrincipalId) -> Result<()> {
        if !self.needs_approval {
            return Ok(());
        }
        self.duties().map_or(Ok(()), |d| d.may_deploy(who))?;
        match self.approval {
            Some(_) => Ok(()),
            None => Err(Error::new(
                Reason::CredentialRotationState,
                "nobody has approved this rotation yet; ApproveCredentialRotation does, by another principal",
            )),
        }
    }

    fn duties(&self) -> Option<Duties<'_>> {
        self.requester.map(|requester| Duties {
            requester,
            approvals: self.approval.as_slice(),
        })
    }

    /// What somebody should look after, when nothing may stand still for longer than `patience`.
    pub fn attention(&self, now: Timestamp, patience: Duration) -> Option<Attention> {
        let is_held_too_long = self
            .hold_until
            .is_some_and(|until| until.plus(patience) <= now);
        let unknown = || match self
            .old_probe
            .as_ref()
            .map(|probed| Proof::of(probed.result))
        {
            Some(Proof::Alive) => Some(Attention::OldValueAlive),
            Some(Proof::Unknown) => Some(Attention::OldValueUnknown),
            Some(Proof::Dead) | None => None,
        };
        match self.state {
            CredentialRotationState::Staged if self.needs_approval && self.approval.is_none() => {
                Some(Attention::WaitsForApproval)
            }
            CredentialRotationState::Minting | CredentialRotationState::Staged => {
                (self.updated_at.plus(patience) <= now).then_some(Attention::Stuck)
            }
            CredentialRotationState::Holding if self.is_over(now) => {
                unknown().or_else(|| is_held_too_long.then_some(Attention::Stuck))
            }
            CredentialRotationState::Holding => None,
            CredentialRotationState::Completed => match self.proof() {
                Proof::Alive => Some(Attention::OldValueAlive),
                Proof::Unknown => Some(Attention::OldValueUnknown),
                Proof::Dead => None,
            },
            CredentialRotationState::RolledBack => self
                .withdraw
                .is_some()
                .then_some(Attention::MintedValueLeft),
        }
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
    fn a_rise_of_errors_counts_where_there_is_enough_to_compare() {
        let rule = ErrorRule {
            rise_percent: 20,
            min_requests: 20,
        };
        let rate = |requests, errors| Rate { requests, errors };
        for (before, after, broken) in [
            (rate(1000, 10), rate(100, 21), true),
            (rate(1000, 10), rate(100, 20), false),
            (rate(100, 0), rate(20, 4), true),
            (rate(100, 0), rate(20, 3), false),
            // It was as bad before.
            (rate(100, 90), rate(100, 100), false),
            (rate(100, 80), rate(100, 100), true),
            (rate(100, 50), rate(100, 10), false),
            // Too few to say anything.
            (rate(19, 0), rate(100, 100), false),
            (rate(100, 0), rate(19, 19), false),
            (rate(0, 0), rate(0, 0), false),
            (rate(i64::MAX, 0), rate(i64::MAX, i64::MAX), true),
        ] {
            assert_eq!(
                rule.is_broken(before, after),
                broken,
                "{before:?} {after:?}"
            );
        }
        let off = ErrorRule {
            rise_percent: 0,
            min_requests: 1,
        };
        assert!(!off.is_broken(rate(10, 0), rate(10, 10)));
        let bold = ErrorRule {
            rise_percent: 1,
            min_requests: 0,
        };
        assert!(!bold.is_broken(rate(0, 0), rate(10, 10)));
    }

    #[test]
    fn errors_take_a_value_back_only_where_the_old_one_works() {
        for next in [OfHeld::Wait, OfHeld::Alive, OfHeld::Complete] {
            assert_eq!(of_errors(next, Some(P::Valid)), OfHeld::RollBack);
            for old in ALL[1..].iter().copied().map(Some).chain([None]) {
                assert_eq!(of_errors(next, old), next);
            }
        }
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
