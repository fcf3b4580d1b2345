//! The key-encryption key and its rotation: who asked, who approved exactly which plan, who deployed. Pure transitions.
//!
//! There is one ACTIVE KEK, which wraps; every other that is not RETIRED unwraps what is not rewrapped yet. A rotation
//! goes forward only: once deployed it ends when no data key needs the old KEK, or when a person says that it is not to
//! wait for those that do not unwrap, and then the old KEK stays. A KEK that has wrapped data keys and is RETIRED is never
//! taken again. Who wants the old one back has its cryptoperiod and its use to answer for.

use std::str::FromStr;

use super::{
    Approval, KekRotationId, PrincipalId, RotationState, Timestamp,
    duties::{Duties, expect_digest, plan_digest},
    key::BackendRef,
    rotation::ApprovalsNeeded,
    time::following,
};
use crate::error::{Error, Reason, Result};

/// Where a KEK is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KekState {
    /// Its rotation is not deployed.
    PreActive,
    /// Wraps new data keys.
    Active,
    /// Only unwraps.
    Deactivated,
    /// No data key needs it.
    Retired,
}

/// A key-encryption key.
#[derive(Clone, Debug)]
pub struct KekRow {
    /// What `Material::DataKey::kek` names.
    pub reference: BackendRef,
    /// Name of its backend.
    pub backend: String,
    /// Where it is.
    pub state: KekState,
    /// A random data key, wrapped by it.
    pub probe: Vec<u8>,
    /// SHA-256 of what the probe unwraps to.
    pub probe_digest: Vec<u8>,
    /// When the daemon first knew it.
    pub created_at: Timestamp,
    /// When it became ACTIVE.
    pub activated_at: Option<Timestamp>,
    /// When another took its place.
    pub deactivated_at: Option<Timestamp>,
    /// When no data key needed it any more.
    pub retired_at: Option<Timestamp>,
}

/// A rotation of the KEK.
#[derive(Clone, Debug)]
pub struct KekRotation {
    /// Its id.
    pub id: KekRotationId,
    /// As of a key's rotation; DEPLOYED means that data keys are being rewrapped.
    pub state: RotationState,
    /// Wraps until the deployment.
    pub old_kek: BackendRef,
    /// Wraps from then on.
    pub new_kek: BackendRef,
    /// Name of the new KEK's backend.
    pub new_backend: String,
    /// Why, in the requester's words.
    pub justification: String,
    /// The canonical plan that is approved.
    pub plan: String,
    /// Who asked.
    pub requester: PrincipalId,
    /// Who approved.
    pub approvals: Vec<Approval>,
    /// How many approvals it takes; at least one, by construction.
    pub approvals_needed: ApprovalsNeeded,
    /// Who deployed.
    pub deployer: Option<PrincipalId>,
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// When the last needed approval arrived.
    pub approved_at: Option<Timestamp>,
    /// When it was deployed.
    pub deployed_at: Option<Timestamp>,
    /// When it expires unless it is deployed before.
    pub expires_at: Timestamp,
    /// When it was completed, rejected, cancelled or expired.
    pub ended_at: Option<Timestamp>,
    /// Who rejected or cancelled it.
    pub ended_by: Option<PrincipalId>,
    /// Why it was rejected or cancelled.
    pub end_reason: String,
    /// How far the rewrapping has come.
    pub progress: Progress,
}

/// How far the rewrapping has come, in data keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Under the old KEK at the deployment.
    pub total: i64,
    /// Moved so far, each counted in the transaction that moved it.
    pub rewrapped: i64,
    /// Still under the old KEK.
    pub remaining: i64,
    /// Those of them that do not unwrap.
    pub failed: i64,
}

/// Everything that an approver agrees to.
#[derive(Clone, Debug)]
pub struct KekPlan<'a> {
    /// The rotation.
    pub rotation: KekRotationId,
    /// The KEK that wraps now.
    pub old_kek: &'a BackendRef,
    /// Its backend.
    pub old_backend: &'a str,
    /// The KEK that is to wrap.
    pub new_kek: &'a BackendRef,
    /// Its backend.
    pub new_backend: &'a str,
    /// Approvals it takes.
    pub approvals_needed: ApprovalsNeeded,
}

impl KekPlan<'_> {
    /// RFC 8785 JSON: members sorted, no blanks. What is hashed is exactly what people are shown.
    pub fn canonical(&self) -> String {
        let text = |text: &str| serde_json::Value::from(text);
        format!(
            "{{\"approvals_needed\":{},\"new_backend\":{},\"new_kek\":{},\"old_backend\":{},\"old_kek\":{},\
             \"rotation\":\"{}\"}}",
            self.approvals_needed,
            text(self.new_backend),
            text(&self.new_kek.0),
            text(self.old_backend),
            text(&self.old_kek.0),
            self.rotation,
        )
    }
}

impl KekRotation {
    /// SHA-256 of the plan, in hex.
    pub fn plan_digest(&self) -> String {
        plan_digest(&self.plan)
    }

    /// When the last recorded step was taken.
    pub fn last_step(&self) -> Timestamp {
        let approvals = self.approvals.iter().map(|approval| approval.at);
        [self.approved_at, self.deployed_at, self.ended_at]
            .into_iter()
            .flatten()
            .chain(approvals)
            .fold(self.requested_at, Timestamp::max)
    }

    /// Records an approval of the plan with this digest.
    ///
    /// Errors: ROTATION_STATE unless REQUESTED, ROTATION_EXPIRED, SEPARATION_OF_DUTIES for the requester or a second
    /// approval by the same principal, PLAN_CHANGED for another digest, CLOCK_BACKWARDS.
    pub fn approve(mut self, approver: PrincipalId, digest: &str, now: Timestamp) -> Result<Self> {
        self.expect(&[RotationState::Requested], "approved")?;
        self.expect_time(now)?;
        self.duties().may_approve(approver)?;
        expect_digest(&self.plan, digest)?;
        let now = following(self.last_step(), now)?;
        self.approvals.push(Approval { approver, at: now });
        if self.approvals.len() >= self.approvals_needed.get() as usize {
            self.state = RotationState::Approved;
            self.approved_at = Some(now);
        }
        Ok(self)
    }

    /// Records the deployment.
    ///
    /// Errors: ROTATION_STATE unless APPROVED, ROTATION_EXPIRED, SEPARATION_OF_DUTIES for the requester or an
    /// approver, CLOCK_BACKWARDS.
    pub fn deploy(mut self, deployer: PrincipalId, now: Timestamp) -> Result<Self> {
        self.expect(&[RotationState::Approved], "deployed")?;
        self.expect_time(now)?;
        self.duties().may_deploy(deployer)?;
        self.deployed_at = Some(following(self.last_step(), now)?);
        self.state = RotationState::Deployed;
        self.deployer = Some(deployer);
        Ok(self)
    }

    /// Turns it down. Errors: ROTATION_STATE unless open, SEPARATION_OF_DUTIES for the requester.
    pub fn reject(self, by: PrincipalId, reason: String, now: Timestamp) -> Result<Self> {
        self.duties().may_reject(by, "CancelKekRotation")?;
        self.end(RotationState::Rejected, Some(by), reason, now)
    }

    /// Takes it back. Errors: ROTATION_STATE unless open.
    pub fn cancel(self, by: PrincipalId, reason: String, now: Timestamp) -> Result<Self> {
        self.end(RotationState::Cancelled, Some(by), reason, now)
    }

    /// Ends it because its time is over. Errors: ROTATION_STATE unless open and due.
    pub fn expire(self, now: Timestamp) -> Result<Self> {
        if now < self.expires_at {
            return Err(Error::new(
                Reason::RotationState,
                format!("the rotation can be deployed until {}", self.expires_at),
            ));
        }
        self.end(RotationState::Expired, None, String::new(), now)
    }

    /// Ends it because no data key needs the old KEK. Errors: ROTATION_STATE unless DEPLOYED.
    pub fn complete(mut self, now: Timestamp) -> Result<Self> {
        self.expect(&[RotationState::Deployed], "completed")?;
        self.ended_at = Some(now.max(self.last_step()));
        self.state = RotationState::Completed;
        Ok(self)
    }

    /// Ends it for all data keys but those that do not unwrap: a person says that it is not to wait for them.
    ///
    /// Errors: ROTATION_STATE unless DEPLOYED.
    pub fn give_up(self, by: PrincipalId, reason: String, now: Timestamp) -> Result<Self> {
        let mut ended = self.complete(now)?;
        ended.ended_by = Some(by);
        ended.end_reason = reason;
        Ok(ended)
    }

    const fn duties(&self) -> Duties<'_> {
        Duties {
            requester: self.requester,
            approvals: self.approvals.as_slice(),
        }
    }

    fn end(
        mut self,
        state: RotationState,
        by: Option<PrincipalId>,
        reason: String,
        now: Timestamp,
    ) -> Result<Self> {
        let open = [RotationState::Requested, RotationState::Approved];
        self.expect(&open, "ended")?;
        // Ending must not fail because some clock was ahead.
        self.ended_at = Some(now.max(self.last_step()));
        self.state = state;
        self.ended_by = by;
        self.end_reason = reason;
        Ok(self)
    }

    fn expect_time(&self, now: Timestamp) -> Result<()> {
        if now < self.expires_at {
            return Ok(());
        }
        Err(Error::new(
            Reason::RotationExpired,
            format!(
                "the rotation expired at {}; request a new one",
                self.expires_at
            ),
        ))
    }

    fn expect(&self, states: &[RotationState], done: &str) -> Result<()> {
        if states.contains(&self.state) {
            return Ok(());
        }
        let wanted: Vec<_> = states.iter().map(|state| state.as_str()).collect();
        Err(Error::new(
            Reason::RotationState,
            format!(
                "the rotation is {}; only one that is {} can be {done}",
                self.state.as_str(),
                wanted.join(" or ")
            ),
        ))
    }
}

impl KekState {
    /// Every state.
    pub const ALL: [Self; 4] = [
        Self::PreActive,
        Self::Active,
        Self::Deactivated,
        Self::Retired,
    ];

    /// The text in the database and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PreActive => "PRE_ACTIVE",
            Self::Active => "ACTIVE",
            Self::Deactivated => "DEACTIVATED",
            Self::Retired => "RETIRED",
        }
    }

    /// May a data key be under it?
    pub const fn unwraps(self) -> bool {
        matches!(self, Self::Active | Self::Deactivated)
    }
}

impl FromStr for KekState {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == s)
            .ok_or_else(|| Error::new(Reason::InvalidField, "unknown state of a KEK"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotation(needed: u32) -> KekRotation {
        let (old, new) = (BackendRef("old".into()), BackendRef("new".into()));
        let id = KekRotationId::random();
        let approvals_needed = needed.try_into().unwrap();
        let plan = KekPlan {
            rotation: id,
            old_kek: &old,
            old_backend: "hsm",
            new_kek: &new,
            new_backend: "h\"sm",
            approvals_needed,
        };
        KekRotation {
            id,
            state: RotationState::Requested,
            plan: plan.canonical(),
            old_kek: old,
            new_kek: new,
            new_backend: "h\"sm".into(),
            justification: String::new(),
            requester: PrincipalId::random(),
            approvals: Vec::new(),
            approvals_needed,
            deployer: None,
            requested_at: Timestamp::from_micros(0),
            approved_at: None,
            deployed_at: None,
            expires_at: Timestamp::from_micros(1_000),
            ended_at: None,
            ended_by: None,
            end_reason: String::new(),
            progress: Progress::default(),
        }
    }

    fn reason<T>(result: Result<T>) -> Option<Reason> {
        result.err().map(|e| e.reason())
    }

    /// R-LIFE-7: three people take turns in every way; only three different ones get through.
    #[test]
    fn requester_approver_and_deployer_are_three_people() {
        let people = [0; 3].map(|_| PrincipalId::random());
        for case in 0..27 {
            let (r, a, d) = (people[case / 9], people[case / 3 % 3], people[case % 3]);
            let mut asked = rotation(1);
            asked.requester = r;
            let (now, digest) = (Timestamp::from_micros(1), asked.plan_digest());
            let approved = asked.approve(a, &digest, now);
            if r == a {
                assert_eq!(reason(approved), Some(Reason::SeparationOfDuties));
                continue;
            }
            let deployed = approved.unwrap().deploy(d, now);
            match d == r || d == a {
                true => assert_eq!(reason(deployed), Some(Reason::SeparationOfDuties)),
                false => assert_eq!(deployed.unwrap().state, RotationState::Deployed),
            }
        }
    }

    #[test]
    fn an_approval_is_of_this_very_plan_and_counts_once() {
        let (asked, now) = (rotation(2), Timestamp::from_micros(1));
        let digest = asked.plan_digest();
        let first = PrincipalId::random();
        let other = asked.clone().approve(first, &"0".repeat(64), now);
        assert_eq!(reason(other), Some(Reason::PlanChanged));
        let once = asked.approve(first, &digest, now).unwrap();
        assert_eq!(once.state, RotationState::Requested);
        let twice = once.clone().approve(first, &digest, now);
        assert_eq!(reason(twice), Some(Reason::SeparationOfDuties));
        let done = once.approve(PrincipalId::random(), &digest, now).unwrap();
        assert_eq!(done.state, RotationState::Approved);
    }

    #[test]
    fn a_rotation_ends_once_and_in_time() {
        let (asked, now) = (rotation(1), Timestamp::from_micros(1));
        let late = Timestamp::from_micros(1_000);
        let (digest, who) = (asked.plan_digest(), PrincipalId::random());
        let expired = asked.clone().approve(who, &digest, late);
        assert_eq!(reason(expired), Some(Reason::RotationExpired));
        assert!(asked.clone().expire(now).is_err() && asked.clone().expire(late).is_ok());
        let early = asked.clone().give_up(who, "lost".into(), now);
        assert_eq!(reason(early), Some(Reason::RotationState));
        let own = asked.clone().reject(asked.requester, String::new(), now);
        assert_eq!(reason(own), Some(Reason::SeparationOfDuties));
        assert!(asked.clone().complete(now).is_err());
        let cancelled = asked.cancel(who, "no".into(), now).unwrap();
        assert!(cancelled.clone().reject(who, "no".into(), now).is_err());
        assert!(cancelled.approve(who, &digest, now).is_err());
    }

    #[test]
    fn the_plan_is_canonical_json() {
        let asked = rotation(1);
        let value: serde_json::Value = serde_json::from_str(&asked.plan).unwrap();
        assert_eq!(value["new_backend"], "h\"sm");
        assert_eq!(asked.plan, value.to_string());
    }
}
