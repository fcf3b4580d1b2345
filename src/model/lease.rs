//! Leases: who holds which value of a credential, and until when.

use super::{CredentialId, CredentialValueId, LeaseId, PrincipalId, TenantName, Timestamp};
use crate::error::{Error, Reason};

/// That a principal holds a value of a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: LeaseId,
    /// The credential.
    pub credential: CredentialId,
    /// The value that was handed out.
    pub value: CredentialValueId,
    /// Tenant of the credential.
    pub tenant: TenantName,
    /// Who holds it.
    pub holder: PrincipalId,
    /// When it was handed out.
    pub created_at: Timestamp,
    /// Until when it is held.
    pub expires_at: Timestamp,
    /// The hard stop: until when it can be renewed at most.
    pub max_expires_at: Timestamp,
    /// When it ended before its time, and how.
    pub ended: Option<(Timestamp, LeaseEnd)>,
}

/// How a lease ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseEnd {
    /// Its holder gave it back.
    Returned,
    /// Somebody else ended it.
    Revoked,
}

impl LeaseEnd {
    /// The text in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Returned => "RETURNED",
            Self::Revoked => "REVOKED",
        }
    }
}

impl std::str::FromStr for LeaseEnd {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        [Self::Returned, Self::Revoked]
            .into_iter()
            .find(|end| end.as_str() == s)
            .ok_or_else(|| Error::new(Reason::InvalidField, "no such end of a lease"))
    }
}

/// What a lease is at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Held.
    Active,
    /// Its time is over.
    Expired,
    /// Ended before its time.
    Ended(LeaseEnd),
}

impl Lease {
    /// Its state at `now`.
    pub fn state(&self, now: Timestamp) -> LeaseState {
        match self.ended {
            Some((_, how)) => LeaseState::Ended(how),
            None if now < self.expires_at => LeaseState::Active,
            None => LeaseState::Expired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_over_when_its_time_is_or_somebody_ends_it() {
        let at = Timestamp::from_micros;
        let mut lease = Lease {
            id: LeaseId::random(),
            credential: CredentialId::random(),
            value: CredentialValueId::random(),
            tenant: TenantName::system(),
            holder: PrincipalId::random(),
            created_at: at(0),
            expires_at: at(10),
            max_expires_at: at(100),
            ended: None,
        };
        assert_eq!(lease.state(at(9)), LeaseState::Active);
        assert_eq!(lease.state(at(10)), LeaseState::Expired);
        lease.ended = Some((at(5), LeaseEnd::Revoked));
        for time in [4, 9, 11] {
            assert_eq!(lease.state(at(time)), LeaseState::Ended(LeaseEnd::Revoked));
        }
    }
}
