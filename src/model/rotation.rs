//! A rotation: who asked, who approved exactly which plan, who deployed. Pure transitions.
//!
//! Separation of duties (R-LIFE-7) is decided in `duties` and nowhere else; no policy can soften it.

use std::{str::FromStr, time::Duration};

use super::{
    Action, Algorithm, KeyId, KeyName, Kid, PrincipalId, RotationId, TenantName, Timestamp,
    duties::{Duties, expect_digest, plan_digest},
    time::following,
};
use crate::error::{Error, Reason, Result};

/// Where a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RotationState {
    /// Waits for approval.
    Requested,
    /// Approved and announced; soaks.
    Approved,
    /// The new version is ACTIVE, the old one in its grace window.
    Deployed,
    /// The old version is RETIRED.
    Completed,
    /// An approver turned it down.
    Rejected,
    /// It was taken back, or a compromise overtook it.
    Cancelled,
    /// It was not deployed in time.
    Expired,
}

/// One approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// Who.
    pub approver: PrincipalId,
    /// When.
    pub at: Timestamp,
}

/// A rotation of one key.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// Its id.
    pub id: RotationId,
    /// Tenant of the key.
    pub tenant: TenantName,
    /// The key.
    pub key_id: KeyId,
    /// The key's name, for people.
    pub key_name: KeyName,
    /// Where it is.
    pub state: RotationState,
    /// Version that is ACTIVE until deployment.
    pub old_kid: Kid,
    /// Version that becomes ACTIVE.
    pub new_kid: Kid,
    /// Why, in the requester's words.
    pub justification: String,
    /// The canonical plan that is approved.
    pub plan: String,
    /// Time that must pass between announcement and deployment.
    pub soak: Duration,
    /// How long the old version keeps verifying, beside the tokens it issued.
    pub grace: Duration,
    /// Did the scheduler open it, because the key was due?
    pub scheduled: bool,
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
    pub announced_at: Option<Timestamp>,
    /// When it was deployed.
    pub deployed_at: Option<Timestamp>,
    /// When it expires unless it is deployed before.
    pub expires_at: Timestamp,
    /// When the old version may retire; set at the deployment.
    pub grace_ends_at: Option<Timestamp>,
    /// When it was completed, rejected, cancelled or expired.
    pub ended_at: Option<Timestamp>,
    /// Who rejected or cancelled it.
    pub ended_by: Option<PrincipalId>,
    /// Why it was rejected or cancelled.
    pub end_reason: String,
}

/// A number of approvals, never zero.
pub type ApprovalsNeeded = std::num::NonZeroU32;

/// Everything that an approver agrees to.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// The rotation.
    pub rotation: RotationId,
    /// The key's tenant.
    pub tenant: &'a TenantName,
    /// The key.
    pub key: KeyId,
    /// The key's algorithm.
    pub algorithm: Algorithm,
    /// The key's backend.
    pub backend: &'a str,
    /// Version to be replaced.
    pub old_kid: &'a Kid,
    /// Version to be activated.
    pub new_kid: &'a Kid,
    /// Time between announcement and deployment.
    pub soak: Duration,
    /// How long the old version keeps verifying, beside the tokens it issued.
    pub grace: Duration,
    /// Approvals it takes.
    pub approvals_needed: ApprovalsNeeded,
}

impl Plan<'_> {
    /// RFC 8785 JSON: members sorted, no blanks. What is hashed is exactly what people are shown.
    pub fn canonical(&self) -> String {
        // Every value is a UUID, a kid, a name or an integer, so nothing needs escaping but the backend.
        let backend = serde_json::Value::from(self.backend);
        format!(
            "{{\"algorithm\":\"{}\",\"approvals_needed\":{},\"backend\":{},\"grace_seconds\":{},\"key\":\"{}\",\
             \"new_kid\":\"{}\",\"old_kid\":\"{}\",\"rotation\":\"{}\",\"soak_seconds\":{},\"tenant\":\"{}\"}}",
            self.algorithm,
            self.approvals_needed,
            backend,
            self.grace.as_secs(),
            self.key,
            self.new_kid,
            self.old_kid,
            self.rotation,
            self.soak.as_secs(),
            self.tenant
        )
    }
}

impl Rotation {
    /// SHA-256 of the plan, in hex.
    pub fn plan_digest(&self) -> String {
        plan_digest(&self.plan)
    }

    /// When deployment becomes possible; None before approval.
    pub fn deployable_at(&self) -> Option<Timestamp> {
        self.announced_at.map(|at| at.plus(self.soak))
    }

    /// When the last recorded step was taken.
    pub fn last_step(&self) -> Timestamp {
        let approvals = self.approvals.iter().map(|approval| approval.at);
        [self.announced_at, self.deployed_at, self.ended_at]
            .into_iter()
            .flatten()
            .chain(approvals)
            .fold(self.requested_at, Timestamp::max)
    }

    /// What a person does next: approve it or deploy it. None when it waits for nobody.
    pub const fn next_step(&self) -> Option<Action> {
        match self.state {
            RotationState::Requested => Some(Action::ApproveRotation),
            RotationState::Approved => Some(Action::DeployRotation),
            RotationState::Deployed
            | RotationState::Completed
            | RotationState::Rejected
            | RotationState::Cancelled
            | RotationState::Expired => None,
        }
    }

    /// Has this principal asked for it, approved it or deployed it?
    pub fn has_part(&self, principal: PrincipalId) -> bool {
        self.requester == principal
            || self.deployer == Some(principal)
            || self.approvals.iter().any(|a| a.approver == principal)
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
            self.announced_at = Some(now);
        }
        Ok(self)
    }

    /// Records the deployment.
    ///
    /// Errors: ROTATION_STATE unless APPROVED, ROTATION_EXPIRED, SEPARATION_OF_DUTIES for the requester or an
    /// approver, ROTATION_SOAKING before `deployable_at`, CLOCK_BACKWARDS.
    pub fn deploy(mut self, deployer: PrincipalId, now: Timestamp) -> Result<Self> {
        self.expect(&[RotationState::Approved], "deployed")?;
        self.expect_time(now)?;
        self.duties().may_deploy(deployer)?;
        let now = following(self.last_step(), now)?;
        let possible = self.deployable_at().ok_or_else(|| {
            Error::internal(format!(
                "rotation {} is approved but not announced",
                self.id
            ))
        })?;
        if now < possible {
            return Err(Error::new(
                Reason::RotationSoaking,
                format!("verifiers may not know the new kid yet; deploy from {possible} on"),
            )
            .retry_after(possible.since(now)));
        }
        self.state = RotationState::Deployed;
        self.deployer = Some(deployer);
        self.deployed_at = Some(now);
        Ok(self)
    }

    /// Turns it down. Errors: ROTATION_STATE unless open, SEPARATION_OF_DUTIES for the requester.
    pub fn reject(self, by: PrincipalId, reason: String, now: Timestamp) -> Result<Self> {
        self.duties().may_reject(by, "CancelRotation")?;
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

    /// Ends it because the old version is RETIRED. Errors: ROTATION_STATE unless DEPLOYED.
    pub fn complete(mut self, now: Timestamp) -> Result<Self> {
        self.expect(&[RotationState::Deployed], "completed")?;
        self.ended_at = Some(now.max(self.last_step()));
        self.state = RotationState::Completed;
        Ok(self)
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

    /// Errors: ROTATION_EXPIRED from `expires_at` on, whether a job has noticed or not.
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

impl RotationState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Requested,
        Self::Approved,
        Self::Deployed,
        Self::Completed,
        Self::Rejected,
        Self::Cancelled,
        Self::Expired,
    ];

    /// The text in the database and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "REQUESTED",
            Self::Approved => "APPROVED",
            Self::Deployed => "DEPLOYED",
            Self::Completed => "COMPLETED",
            Self::Rejected => "REJECTED",
            Self::Cancelled => "CANCELLED",
            Self::Expired => "EXPIRED",
        }
    }

    /// Does it keep another rotation of the key from being opened?
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Requested | Self::Approved)
    }
}

impl FromStr for RotationState {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == s)
            .ok_or_else(|| Error::new(Reason::InvalidField, "unknown rotation state"))
    }
}
