//! The destruction of every key of a tenant: asked for by one person, approved by another, begun after a waiting period,
//! and done when nothing is left. Pure transitions.

use std::{str::FromStr, time::Duration};

use super::{PrincipalId, TenantDestructionId, TenantName, Timestamp, time::following};
use crate::error::{Error, Reason, Result};

/// Where the destruction of a tenant's keys is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TenantDestructionState {
    /// Waits for a second person.
    Requested,
    /// Approved; the waiting period runs.
    Scheduled,
    /// Key after key is destroyed; there is no way back.
    Destroying,
    /// Everything is gone, and the proof is signed.
    Destroyed,
    /// Called off.
    Cancelled,
}

/// The destruction of every key of one tenant.
#[derive(Clone, Debug)]
pub struct TenantDestruction {
    /// Its id.
    pub id: TenantDestructionId,
    /// The tenant.
    pub tenant: TenantName,
    /// Where it is.
    pub state: TenantDestructionState,
    /// Why, in the requester's words.
    pub reason: String,
    /// Who asked.
    pub requester: PrincipalId,
    /// When.
    pub requested_at: Timestamp,
    /// Who approved.
    pub approver: Option<PrincipalId>,
    /// When.
    pub approved_at: Option<Timestamp>,
    /// When it begins.
    pub destroy_at: Option<Timestamp>,
    /// When it began.
    pub begun_at: Option<Timestamp>,
    /// When it was done or cancelled.
    pub ended_at: Option<Timestamp>,
    /// Who called it off.
    pub cancelled_by: Option<PrincipalId>,
    /// Why it was called off.
    pub cancel_reason: String,
    /// The signed note that names what was destroyed; empty before.
    pub proof: String,
}

impl TenantDestruction {
    /// Somebody asks. Errors: INVALID_FIELD for tenant `system`.
    pub fn request(
        tenant: TenantName,
        reason: String,
        requester: PrincipalId,
        now: Timestamp,
    ) -> Result<Self> {
        if tenant == TenantName::system() {
            return Err(Error::new(
                Reason::InvalidField,
                "the keys of tenant system cannot be destroyed: they are the platform's own, and sign the proof",
            ));
        }
        Ok(Self {
            id: TenantDestructionId::random(),
            tenant,
            state: TenantDestructionState::Requested,
            reason,
            requester,
            requested_at: now,
            approver: None,
            approved_at: None,
            destroy_at: None,
            begun_at: None,
            ended_at: None,
            cancelled_by: None,
            cancel_reason: String::new(),
            proof: String::new(),
        })
    }

    /// A second person agrees that the keys of `tenant` are destroyed, `wait` from now.
    ///
    /// Errors: DESTRUCTION_STATE unless REQUESTED, SEPARATION_OF_DUTIES for the requester, PLAN_CHANGED for another
    /// tenant, CLOCK_BACKWARDS.
    pub fn approve(
        mut self,
        approver: PrincipalId,
        tenant: &TenantName,
        wait: Duration,
        now: Timestamp,
    ) -> Result<Self> {
        self.expect(&[TenantDestructionState::Requested], "approved")?;
        if approver == self.requester {
            return Err(Error::new(
                Reason::SeparationOfDuties,
                "who asked for the destruction of a tenant's keys cannot approve it; a second person must",
            ));
        }
        if *tenant != self.tenant {
            return Err(Error::new(
                Reason::PlanChanged,
                "this destruction is of another tenant; read it again before approving",
            ));
        }
        let now = following(self.requested_at, now)?;
        self.state = TenantDestructionState::Scheduled;
        self.approver = Some(approver);
        self.approved_at = Some(now);
        self.destroy_at = Some(now.plus(wait));
        Ok(self)
    }

    /// Calls it off. Errors: DESTRUCTION_STATE once it has begun or is over, CLOCK_BACKWARDS.
    pub fn cancel(mut self, by: PrincipalId, reason: String, now: Timestamp) -> Result<Self> {
        let open = [
            TenantDestructionState::Requested,
            TenantDestructionState::Scheduled,
        ];
        self.expect(&open, "cancelled")?;
        let now = following(self.approved_at.unwrap_or(self.requested_at), now)?;
        self.state = TenantDestructionState::Cancelled;
        self.ended_at = Some(now);
        self.cancelled_by = Some(by);
        self.cancel_reason = reason;
        Ok(self)
    }

    /// The point of no return. Errors: DESTRUCTION_STATE unless SCHEDULED and due.
    pub fn begin(mut self, now: Timestamp) -> Result<Self> {
        self.expect(&[TenantDestructionState::Scheduled], "begun")?;
        if !self.is_due(now) {
            return Err(Error::new(
                Reason::DestructionState,
                "the waiting period of this destruction is not over",
            ));
        }
        self.state = TenantDestructionState::Destroying;
        self.begun_at = Some(now);
        Ok(self)
    }

    /// Everything is gone. Errors: DESTRUCTION_STATE unless DESTROYING.
    pub fn complete(mut self, now: Timestamp) -> Result<Self> {
        self.expect(&[TenantDestructionState::Destroying], "completed")?;
        // What has been destroyed stays so, whatever the clock says.
        self.ended_at = Some(self.begun_at.map_or(now, |begun| begun.max(now)));
        self.state = TenantDestructionState::Destroyed;
        Ok(self)
    }

    /// Is it approved, and the waiting period over?
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.state == TenantDestructionState::Scheduled
            && self.destroy_at.is_some_and(|at| at <= now)
    }

    /// Has it waited for its approval for `ttl`, or for its beginning for `ttl` after the waiting period? What was approved
    /// then is not what anybody wants now.
    pub fn is_stale(&self, wait: Duration, ttl: Duration, now: Timestamp) -> bool {
        let since = match self.state {
            TenantDestructionState::Requested => Some(self.requested_at),
            // Both: neither a shorter wait in the configuration nor a row can make a fresh approval old.
            TenantDestructionState::Scheduled => self
                .destroy_at
                .zip(self.approved_at)
                .map(|(due, approved)| due.max(approved.plus(wait))),
            TenantDestructionState::Destroying
            | TenantDestructionState::Destroyed
            | TenantDestructionState::Cancelled => None,
        };
        since.is_some_and(|since| since.plus(ttl) <= now)
    }

    fn expect(&self, states: &[TenantDestructionState], done: &str) -> Result<()> {
        if states.contains(&self.state) {
            return Ok(());
        }
        Err(Error::new(
            Reason::DestructionState,
            format!(
                "the destruction is {} and cannot be {done}",
                self.state.as_str()
            ),
        ))
    }
}

impl TenantDestructionState {
    /// Every state.
    pub const ALL: [Self; 5] = [
        Self::Requested,
        Self::Scheduled,
        Self::Destroying,
        Self::Destroyed,
        Self::Cancelled,
    ];

    /// The text in the database and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "REQUESTED",
            Self::Scheduled => "SCHEDULED",
            Self::Destroying => "DESTROYING",
            Self::Destroyed => "DESTROYED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

impl FromStr for TenantDestructionState {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == s)
            .ok_or_else(|| Error::new(Reason::InvalidField, "unknown tenant destruction state"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(86_400);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(1_800_000_000 + seconds)
    }

    fn requested() -> TenantDestruction {
        let tenant = "acme".parse().unwrap();
        TenantDestruction::request(tenant, "gone".into(), PrincipalId::random(), at(0)).unwrap()
    }

    /// In every state, by the permitted way.
    fn all() -> [TenantDestruction; 5] {
        let requested = requested();
        let tenant = requested.tenant.clone();
        let approver = PrincipalId::random();
        let scheduled = requested.clone().approve(approver, &tenant, WAIT, at(1));
        let scheduled = scheduled.unwrap();
        let destroying = scheduled.clone().begin(at(86_401)).unwrap();
        let destroyed = destroying.clone().complete(at(86_402)).unwrap();
        let cancelled = requested.clone().cancel(approver, "no".into(), at(2));
        [
            requested,
            scheduled,
            destroying,
            destroyed,
            cancelled.unwrap(),
        ]
    }

    #[test]
    fn each_step_is_taken_from_its_states_only() {
        use TenantDestructionState as S;
        for d in all() {
            let (state, tenant) = (d.state, d.tenant.clone());
            let who = PrincipalId::random();
            let late = at(1_000_000);
            let approved = d.clone().approve(who, &tenant, WAIT, late).is_ok();
            assert_eq!(approved, state == S::Requested, "{state:?}");
            let cancelled = d.clone().cancel(who, "no".into(), late).is_ok();
            assert_eq!(cancelled, [S::Requested, S::Scheduled].contains(&state));
            assert_eq!(d.clone().begin(late).is_ok(), state == S::Scheduled);
            assert_eq!(d.complete(late).is_ok(), state == S::Destroying);
        }
    }

    #[test]
    fn one_person_or_another_tenant_is_refused() {
        let d = requested();
        let own = d.clone().approve(d.requester, &d.tenant, WAIT, at(1));
        assert_eq!(own.unwrap_err().reason(), Reason::SeparationOfDuties);
        let other = "other".parse().unwrap();
        let wrong = d.approve(PrincipalId::random(), &other, WAIT, at(1));
        assert_eq!(wrong.unwrap_err().reason(), Reason::PlanChanged);
    }

    #[test]
    fn nothing_begins_before_its_time() {
        let [_, scheduled, ..] = all();
        assert!(scheduled.clone().begin(at(86_400)).is_err());
        assert!(scheduled.begin(at(86_401)).is_ok());
    }

    #[test]
    fn requests_and_approvals_grow_old() {
        let ttl = Duration::from_secs(10);
        let [requested, scheduled, destroying, destroyed, cancelled] = all();
        let is_stale = |d: &TenantDestruction, seconds| d.is_stale(WAIT, ttl, at(seconds));
        assert!(!is_stale(&requested, 9) && is_stale(&requested, 10));
        // The waiting period is not held against it.
        assert!(!is_stale(&scheduled, 86_410) && is_stale(&scheduled, 86_411));
        for ended in [destroying, destroyed, cancelled] {
            assert!(!is_stale(&ended, 1_000_000_000));
        }
    }

    #[test]
    fn the_platform_is_not_destroyed() {
        let system = TenantName::system();
        let asked = TenantDestruction::request(system, "no".into(), PrincipalId::random(), at(0));
        assert_eq!(asked.unwrap_err().reason(), Reason::InvalidField);
    }
}
