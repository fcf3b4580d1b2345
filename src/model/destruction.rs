//! The destruction of a key version: asked for by one person, approved by another, done after a waiting period. Pure
//! transitions.

use std::{str::FromStr, time::Duration};

use super::{
    DestructionId, KeyId, KeyName, Kid, PrincipalId, TenantName, Timestamp, time::following,
};
use crate::error::{Error, Reason, Result};

/// Where a destruction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestructionState {
    /// Waits for a second person.
    Requested,
    /// Approved; the waiting period runs.
    Scheduled,
    /// The material is gone.
    Destroyed,
    /// Called off.
    Cancelled,
}

/// The destruction of one key version.
#[derive(Clone, Debug)]
pub struct KeyDestruction {
    /// Its id.
    pub id: DestructionId,
    /// Tenant of the key.
    pub tenant: TenantName,
    /// The key.
    pub key_id: KeyId,
    /// The key's name, for people.
    pub key_name: KeyName,
    /// The version.
    pub kid: Kid,
    /// Where it is.
    pub state: DestructionState,
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
    /// When the material is destroyed.
    pub destroy_at: Option<Timestamp>,
    /// When it was destroyed or cancelled.
    pub ended_at: Option<Timestamp>,
    /// Who called it off.
    pub cancelled_by: Option<PrincipalId>,
    /// Why it was called off.
    pub cancel_reason: String,
}

impl KeyDestruction {
    /// A second person agrees that `kid` is destroyed, `wait` from now.
    ///
    /// Errors: DESTRUCTION_STATE unless REQUESTED, SEPARATION_OF_DUTIES for the requester, PLAN_CHANGED for another
    /// kid, CLOCK_BACKWARDS.
    pub fn approve(
        mut self,
        approver: PrincipalId,
        kid: &Kid,
        wait: Duration,
        now: Timestamp,
    ) -> Result<Self> {
        self.expect(&[DestructionState::Requested], "approved")?;
        if approver == self.requester {
            return Err(Error::new(
                Reason::SeparationOfDuties,
                "who asked for a destruction cannot approve it; a second person must",
            ));
        }
        if *kid != self.kid {
            return Err(Error::new(
                Reason::PlanChanged,
                "this destruction is of another version; read it again before approving",
            ));
        }
        let now = following(self.requested_at, now)?;
        self.state = DestructionState::Scheduled;
        self.approver = Some(approver);
        self.approved_at = Some(now);
        self.destroy_at = Some(now.plus(wait));
        Ok(self)
    }

    /// Calls it off. Errors: DESTRUCTION_STATE when it is over, CLOCK_BACKWARDS.
    pub fn cancel(mut self, by: PrincipalId, reason: String, now: Timestamp) -> Result<Self> {
        let open = [DestructionState::Requested, DestructionState::Scheduled];
        self.expect(&open, "cancelled")?;
        let now = following(self.approved_at.unwrap_or(self.requested_at), now)?;
        self.state = DestructionState::Cancelled;
        self.ended_at = Some(now);
        self.cancelled_by = Some(by);
        self.cancel_reason = reason;
        Ok(self)
    }

    /// The material is gone. Errors: DESTRUCTION_STATE unless SCHEDULED and due.
    pub fn complete(mut self, now: Timestamp) -> Result<Self> {
        self.expect(&[DestructionState::Scheduled], "carried out")?;
        if !self.is_due(now) {
            return Err(Error::new(
                Reason::DestructionState,
                "the waiting period of this destruction is not over",
            ));
        }
        self.state = DestructionState::Destroyed;
        self.ended_at = Some(now);
        Ok(self)
    }

    /// Is it approved, and the waiting period over?
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.state == DestructionState::Scheduled && self.destroy_at.is_some_and(|at| at <= now)
    }

    fn expect(&self, states: &[DestructionState], done: &str) -> Result<()> {
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

impl DestructionState {
    /// Every state.
    pub const ALL: [Self; 4] = [
        Self::Requested,
        Self::Scheduled,
        Self::Destroyed,
        Self::Cancelled,
    ];

    /// The text in the database and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "REQUESTED",
            Self::Scheduled => "SCHEDULED",
            Self::Destroyed => "DESTROYED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

impl FromStr for DestructionState {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == s)
            .ok_or_else(|| Error::new(Reason::InvalidField, "unknown destruction state"))
    }
}
