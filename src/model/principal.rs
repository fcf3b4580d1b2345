//! Who may call, with which roles, in which tenants.

use std::{fmt, str::FromStr, sync::Arc};

use aws_lc_rs::digest;

use super::{Action, ApiKeyId, KeyName, PrincipalId, Scopes, TenantName, Timestamp};
use crate::error::{Error, Reason};

/// Identities of one principal.
pub const MAX_IDENTITIES: usize = 8;

/// A user, service or job.
#[derive(Clone, Debug)]
pub struct Principal {
    /// Its id, for ever.
    pub id: PrincipalId,
    /// Its home tenant.
    pub tenant: TenantName,
    /// Its name, unique in the tenant.
    pub name: KeyName,
    /// What it is.
    pub kind: PrincipalKind,
    /// Who answers for it; free text.
    pub owner: String,
    /// Whether it is let in.
    pub state: PrincipalState,
    /// Identities that authenticate as it.
    pub identities: Vec<Identity>,
    /// Roles it holds.
    pub grants: Vec<Grant>,
    /// Entitlements it holds, without those of its roles.
    pub scopes: Scopes,
    /// When it was created.
    pub created_at: Timestamp,
}

/// Whether a principal is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PrincipalState {
    /// It is.
    Active,
    /// It is not, whatever it shows.
    Suspended,
}

/// Kinds of principals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PrincipalKind {
    /// A person.
    User,
    /// A program.
    Service,
    /// A part of the daemon itself.
    Job,
}

/// A role; what it may do is written in `policies/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Creates keys and requests rotations.
    KeyIssuer,
    /// Approves rotations.
    KeyApprover,
    /// Deploys approved rotations.
    KeyDeployer,
    /// Handles incidents.
    SecurityOfficer,
    /// Manages tenants, principals and roles.
    PrincipalAdmin,
    /// Reads everything that is recorded, changes nothing.
    Auditor,
    /// Manages stored credentials.
    CredentialManager,
    /// Issues tokens.
    TokenIssuer,
    /// Signs, verifies, encrypts and decrypts.
    CryptoUser,
}

/// Where a role holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// In one tenant.
    Tenant(TenantName),
    /// In every tenant; for principals of the platform's own tenant only.
    All,
}

/// One role in one scope.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Grant {
    /// The role.
    pub role: Role,
    /// Where it holds.
    pub scope: Scope,
}

/// What a certificate proves: `spiffe://…` (URI SAN), `dns:NAME` (DNS SAN) or `cn:NAME` (subject CN); or what a token of a
/// configured issuer does: `oidc:ISSUER/SUBJECT`, with the name that the configuration gives the issuer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Arc<str>);

/// An authenticated caller: the principal, and the request it makes.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who calls, with no more roles and scopes than the credential brings along.
    pub principal: Arc<Principal>,
    /// What it showed.
    pub credential: Credential,
    /// Id of the request: in the audit rows, the logs and the error details.
    pub request_id: Arc<str>,
    /// What makes a repetition of a mutating call recognisable (R-OPS-2).
    pub idempotency: Option<Idempotency>,
}

/// What somebody showed to be let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// Nothing: a part of the daemon.
    Job,
    /// A client certificate.
    Certificate,
    /// An API key.
    ApiKey(ApiKeyId),
    /// A token: one of ours, or of a configured issuer.
    Token {
        /// Who issued it: `claviger`, or the configured name of the issuer.
        issuer: Arc<str>,
        /// Its `jti`; empty when it has none.
        jti: Arc<str>,
    },
}

/// The caller's key for one mutating call, and what was asked with it.
#[derive(Clone, Debug)]
pub struct Idempotency {
    /// The caller's key: 1 to 128 visible ASCII characters, unique per principal.
    pub key: Arc<str>,
    /// SHA-256 of the request.
    pub request_hash: [u8; 32],
}

impl Idempotency {
    /// Of a call: every value that was given for its key, and the request without its secrets, in an encoding of its own that
    /// is the same for the same request. None when no key was given.
    ///
    /// Errors: INVALID_FIELD for two keys, of which nobody could say which counts, and for one that is none.
    pub fn of<'a>(
        mut given: impl Iterator<Item = &'a [u8]>,
        action: Action,
        request: &[u8],
    ) -> Result<Option<Self>, Error> {
        let key = match (given.next(), given.next()) {
            (None, _) => return Ok(None),
            (Some(key), None) => std::str::from_utf8(key).unwrap_or_default(),
            (Some(_), Some(_)) => "",
        };
        if !(1..=128).contains(&key.len()) || !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::new(
                Reason::InvalidField,
                "idempotency-key must be given once: 1 to 128 visible ASCII characters without blanks",
            ));
        }
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(action.name().as_bytes());
        hash.update(b"\0");
        hash.update(request);
        let mut request_hash = [0; 32];
        request_hash.copy_from_slice(hash.finish().as_ref());
        Ok(Some(Self {
            key: key.into(),
            request_hash,
        }))
    }
}

/// A part of the daemon that acts by itself. Two of them, because nobody deploys what they requested (R-LIFE-7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Job {
    /// Opens due rotations, ends what is over, keeps standby versions, destroys what is due.
    Scheduler,
    /// Deploys rotations that a standing approval covers.
    Deployer,
}

impl Job {
    /// Every job.
    pub const ALL: [Self; 2] = [Self::Scheduler, Self::Deployer];

    /// The principal it acts as: the same one in every installation, without identities and roles, so that nobody can
    /// authenticate as it and nobody can give it anything.
    pub fn principal(self) -> Principal {
        let (id, name) = match self {
            Self::Scheduler => ("00000000-0000-7000-8000-000000000001", "job.scheduler"),
            Self::Deployer => ("00000000-0000-7000-8000-000000000002", "job.deployer"),
        };
        Principal {
            id: PrincipalId::constant(id),
            tenant: TenantName::system(),
            name: KeyName::constant(name),
            kind: PrincipalKind::Job,
            owner: String::new(),
            state: PrincipalState::Active,
            identities: Vec::new(),
            grants: Vec::new(),
            scopes: Scopes::default(),
            created_at: Timestamp::default(),
        }
    }

    /// It as a caller, under a request id of its own.
    pub fn caller(self) -> Caller {
        Caller {
            principal: Arc::new(self.principal()),
            credential: Credential::Job,
            request_id: format!("job-{}", uuid::Uuid::now_v7()).into(),
            idempotency: None,
        }
    }
}

impl Credential {
    /// What kind it is: `job`, `certificate`, `api_key` or `token`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Certificate => "certificate",
            Self::ApiKey(_) => "api_key",
            Self::Token { .. } => "token",
        }
    }
}

impl Principal {
    /// The roles that hold in `tenant`.
    pub fn roles_in<'a>(&'a self, tenant: &'a TenantName) -> impl Iterator<Item = Role> + 'a {
        self.grants
            .iter()
            .filter(move |grant| grant.scope.covers(tenant))
            .map(|grant| grant.role)
    }

    /// Does the principal hold `role` everywhere that `scope` reaches?
    pub fn holds(&self, role: Role, scope: &Scope) -> bool {
        self.grants.iter().any(|grant| {
            grant.role == role
                && match scope {
                    Scope::Tenant(tenant) => grant.scope.covers(tenant),
                    Scope::All => grant.scope == Scope::All,
                }
        })
    }

    /// True when the principal belongs to the tenant or holds any role in it. Whoever does not cannot
    /// tell the tenant's things from things that do not exist (R-ACL-3).
    pub fn sees(&self, tenant: &TenantName) -> bool {
        self.tenant == *tenant || self.roles_in(tenant).next().is_some()
    }
}

impl Principal {
    /// Every scope it holds: its entitlements, and those that its roles stand for.
    pub fn held(&self) -> Scopes {
        self.scopes
            .union(&Scopes::of_roles(self.grants.iter().map(|g| g.role)))
    }

    /// The principal as a credential with these scopes brings it along: nothing it does not hold, and no role whose scope
    /// is not among them (R-OAUTH-2).
    pub fn limited_to(&self, scopes: &Scopes) -> Self {
        let grants = self.grants.iter().filter(|g| scopes.allows(g.role));
        Self {
            id: self.id,
            tenant: self.tenant.clone(),
            name: self.name.clone(),
            kind: self.kind,
            owner: self.owner.clone(),
            state: self.state,
            identities: self.identities.clone(),
            grants: grants.cloned().collect(),
            scopes: self.scopes.intersection(scopes),
            created_at: self.created_at,
        }
    }
}

impl PrincipalState {
    /// The text in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Suspended => "SUSPENDED",
        }
    }
}

impl FromStr for PrincipalState {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        [Self::Active, Self::Suspended]
            .into_iter()
            .find(|state| state.as_str() == s)
            .ok_or_else(|| Error::new(Reason::InvalidField, "state must be ACTIVE or SUSPENDED"))
    }
}

impl Scope {
    /// Does a role with this scope hold in `tenant`?
    pub fn covers(&self, tenant: &TenantName) -> bool {
        match self {
            Self::Tenant(own) => own == tenant,
            Self::All => true,
        }
    }

    /// The text in the database and on the wire: the tenant's name, or `*`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Tenant(tenant) => tenant.as_str(),
            Self::All => "*",
        }
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        match s {
            "*" => Ok(Self::All),
            name => name.parse().map(Self::Tenant),
        }
    }
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 9] = [
        Self::KeyIssuer,
        Self::KeyApprover,
        Self::KeyDeployer,
        Self::SecurityOfficer,
        Self::PrincipalAdmin,
        Self::Auditor,
        Self::CredentialManager,
        Self::TokenIssuer,
        Self::CryptoUser,
    ];

    /// The name in policies, configuration and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeyIssuer => "key-issuer",
            Self::KeyApprover => "key-approver",
            Self::KeyDeployer => "key-deployer",
            Self::SecurityOfficer => "security-officer",
            Self::PrincipalAdmin => "principal-admin",
            Self::Auditor => "auditor",
            Self::CredentialManager => "credential-manager",
            Self::TokenIssuer => "token-issuer",
            Self::CryptoUser => "crypto-user",
        }
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == s)
            .ok_or_else(|| {
                let names: Vec<_> = Self::ALL.iter().map(|role| role.as_str()).collect();
                Error::new(
                    Reason::InvalidField,
                    format!("role must be one of {}", names.join(", ")),
                )
            })
    }
}

impl PrincipalKind {
    /// The text in the database, the audit log and `principal_type` claims.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Service => "service",
            Self::Job => "job",
        }
    }
}

impl FromStr for PrincipalKind {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        [Self::User, Self::Service, Self::Job]
            .into_iter()
            .find(|kind| kind.as_str() == s)
            .ok_or_else(|| Error::new(Reason::InvalidField, "type must be user or service"))
    }
}

impl Identity {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Identity {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let rest = ["spiffe://", "dns:", "cn:", "oidc:"]
            .iter()
            .find_map(|prefix| s.strip_prefix(prefix));
        let ok = rest.is_some_and(|r| !r.is_empty())
            && s.len() <= 255
            && s.chars().all(|c| !c.is_control() && !c.is_whitespace());
        ok.then(|| Self(s.into())).ok_or_else(|| {
            Error::new(
                Reason::InvalidField,
                "identity must be spiffe://TRUST-DOMAIN/PATH, dns:NAME, cn:NAME or oidc:ISSUER/SUBJECT, at most \
                 255 characters without blanks",
            )
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
