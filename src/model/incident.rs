//! An incident: one compromised key version, and the people who declared and closed it. Pure transitions.

use std::str::FromStr;

use super::{
    IncidentId, KeyId, KeyName, Kid, NoteId, PrincipalId, TenantName, Timestamp, time::following,
};
use crate::error::{Error, Reason, Result};

/// Where an incident is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IncidentState {
    /// Being handled.
    Open,
    /// A postmortem is recorded; a second person must confirm.
    Closing,
    /// Closed by two people.
    Closed,
}

/// The compromise of one key version.
#[derive(Clone, Debug)]
pub struct Incident {
    /// Its id.
    pub id: IncidentId,
    /// Tenant of the key.
    pub tenant: TenantName,
    /// The key.
    pub key_id: KeyId,
    /// The key's name, for people.
    pub key_name: KeyName,
    /// The compromised version.
    pub kid: Kid,
    /// Where it is.
    pub state: IncidentState,
    /// What happened, in the words of who declared it.
    pub reason: String,
    /// Who declared it.
    pub declared_by: PrincipalId,
    /// When the version was frozen.
    pub declared_at: Timestamp,
    /// Was the compromised version ACTIVE, so that the key needs another one?
    pub needs_successor: bool,
    /// Version that the key was switched to.
    pub successor_kid: Option<Kid>,
    /// When it was switched.
    pub switched_at: Option<Timestamp>,
    /// Reference of the postmortem; empty before there is one.
    pub postmortem: String,
    /// Who proposed to close it.
    pub close_requested_by: Option<PrincipalId>,
    /// When.
    pub close_requested_at: Option<Timestamp>,
    /// Who confirmed.
    pub closed_by: Option<PrincipalId>,
    /// When.
    pub closed_at: Option<Timestamp>,
}

/// A note in an incident.
#[derive(Clone, Debug)]
pub struct IncidentNote {
    /// Its id.
    pub id: NoteId,
    /// Who wrote it.
    pub author: PrincipalId,
    /// When.
    pub at: Timestamp,
    /// What.
    pub text: String,
}

impl Incident {
    /// Records the switch to a successor.
    #[must_use]
    pub fn switch(mut self, successor: Kid, now: Timestamp) -> Self {
        self.successor_kid = Some(successor);
        self.switched_at = Some(now.max(self.declared_at));
        self
    }

    /// Errors: INCIDENT_STATE when it is closed.
    pub fn expect_open(&self) -> Result<()> {
        match self.state {
            IncidentState::Open | IncidentState::Closing => Ok(()),
            IncidentState::Closed => Err(Error::new(
                Reason::IncidentState,
                "the incident is CLOSED; nothing more is added to it",
            )),
        }
    }

    /// The first call proposes to close with a postmortem; another person's call with the same one closes. The first
    /// person may correct the reference.
    ///
    /// Errors: POSTMORTEM_REQUIRED, INCIDENT_STATE, SEPARATION_OF_DUTIES for a confirmation by who proposed,
    /// POSTMORTEM_MISMATCH, CLOCK_BACKWARDS.
    pub fn close(mut self, by: PrincipalId, postmortem: &str, now: Timestamp) -> Result<Self> {
        self.expect_open()?;
        if postmortem.is_empty() {
            return Err(Error::new(
                Reason::PostmortemRequired,
                "an incident is closed with the reference of its postmortem; write it first",
            ));
        }
        let now = following(self.close_requested_at.unwrap_or(self.declared_at), now)?;
        match (self.state, self.close_requested_by) {
            (IncidentState::Closing, Some(proposer)) if proposer == by => {
                if self.postmortem == postmortem {
                    return Err(Error::new(
                        Reason::SeparationOfDuties,
                        "who proposed to close an incident cannot confirm it; a second person must",
                    ));
                }
                postmortem.clone_into(&mut self.postmortem);
                self.close_requested_at = Some(now);
            }
            (IncidentState::Closing, Some(_)) => {
                if self.postmortem != postmortem {
                    return Err(Error::new(
                        Reason::PostmortemMismatch,
                        "the confirmation names another postmortem than the proposal; read the incident again",
                    ));
                }
                self.state = IncidentState::Closed;
                self.closed_by = Some(by);
                self.closed_at = Some(now);
            }
            _ => {
                self.state = IncidentState::Closing;
                postmortem.clone_into(&mut self.postmortem);
                self.close_requested_by = Some(by);
                self.close_requested_at = Some(now);
            }
        }
        Ok(self)
    }
}

impl IncidentState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Open, Self::Closing, Self::Closed];

    /// The text in the database and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "OPEN",
            Self::Closing => "CLOSING",
            Self::Closed => "CLOSED",
        }
    }
}

impl FromStr for IncidentState {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == s)
            .ok_or_else(|| Error::new(Reason::InvalidField, "unknown incident state"))
    }
}
