//! OAuth 2.0 clients: who may ask the token endpoint, how it proves itself, and for what.

use std::{str::FromStr, time::Duration};

use super::{ClientId, Identity, PrincipalId, Scopes, TenantName, Timestamp};
use crate::error::{Error, Reason};

/// A registered client. It acts as its owner and gets no more than both hold.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its id: the `client_id`.
    pub id: ClientId,
    /// Tenant of the owner.
    pub tenant: TenantName,
    /// Who it acts as.
    pub owner: PrincipalId,
    /// What people call it.
    pub name: String,
    /// How it proves itself.
    pub proof: ClientProof,
    /// What it may ask for.
    pub scopes: Scopes,
    /// Audiences it may ask for, the default first; never empty.
    pub audiences: Vec<String>,
    /// Lifetime of its tokens; None for the daemon's default.
    pub ttl: Option<Duration>,
    /// Equal requests get the same token for a while.
    pub coalesces: bool,
    /// Whether it gets tokens.
    pub state: ClientState,
    /// Raised by each change; a change names the one it has read.
    pub revision: i64,
    /// When it was registered.
    pub created_at: Timestamp,
}

/// How a client proves itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientProof {
    /// By an API key that belongs to it: client_secret_basic and client_secret_post (RFC 6749 section 2.3.1).
    Secret,
    /// By an assertion under one of these keys, a JWK Set: private_key_jwt (RFC 7523).
    Assertion {
        /// The JWK Set, as it was registered.
        jwks: String,
    },
    /// By a certificate with this identity: tls_client_auth (RFC 8705).
    Certificate {
        /// `spiffe://…` or `dns:NAME`.
        identity: Identity,
    },
}

/// Whether a client gets tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientState {
    /// It does.
    Active,
    /// It does not; the tokens it has end by themselves.
    Suspended,
}

impl ClientProof {
    /// The text in the database and the audit log.
    pub const fn method(&self) -> &'static str {
        match self {
            Self::Secret => "CLIENT_SECRET",
            Self::Assertion { .. } => "PRIVATE_KEY_JWT",
            Self::Certificate { .. } => "TLS_CLIENT_AUTH",
        }
    }
}

impl ClientState {
    /// The text in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Suspended => "SUSPENDED",
        }
    }
}

impl FromStr for ClientState {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        [Self::Active, Self::Suspended]
            .into_iter()
            .find(|state| state.as_str() == s)
            .ok_or_else(|| Error::new(Reason::InvalidField, "state must be ACTIVE or SUSPENDED"))
    }
}
