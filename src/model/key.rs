//! A key, its versions, and the state machine of a version (SP 800-57 part 1 rev. 5, section 7).
//!
//! Transitions are pure: `state.after(event)` says what follows or why nothing does. Stores and services
//! obey it; none of them decides by itself.

use std::{fmt, str::FromStr, time::Duration};

use super::{Algorithm, KeyId, KeyName, Kid, PublicKey, Purpose, TenantName, Timestamp};
use crate::error::{Error, Reason, Result};

/// A managed key.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// Its tenant.
    pub tenant: TenantName,
    /// Its name, unique in the tenant.
    pub name: KeyName,
    /// Its one purpose.
    pub purpose: Purpose,
    /// Its one algorithm.
    pub algorithm: Algorithm,
    /// RSA modulus bits; 0 for other types.
    pub rsa_bits: u32,
    /// Name of the backend that holds it or wraps its data keys.
    pub backend: String,
    /// Who answers for it (R-LIFE-2).
    pub owner: String,
    /// When it was created (R-LIFE-2).
    pub created_at: Timestamp,
    /// Target time between rotations.
    pub rotation_period: Duration,
    /// When it should next rotate (R-LIFE-2).
    pub next_rotation_at: Timestamp,
    /// Counts changes of the row, for compare-and-set.
    pub revision: i64,
}

/// One version of a key's material.
#[derive(Clone, Debug)]
pub struct KeyVersion {
    /// Its id, for ever.
    pub kid: Kid,
    /// The key it belongs to.
    pub key_id: KeyId,
    /// 1, 2, 3 … within the key.
    pub number: u32,
    /// Where it is in its life.
    pub state: VersionState,
    /// What it is made of.
    pub material: Material,
    /// When it was generated or adopted.
    pub created_at: Timestamp,
    /// When it was announced in the JWKS.
    pub announced_at: Option<Timestamp>,
    /// When it became ACTIVE.
    pub activated_at: Option<Timestamp>,
    /// When it stopped being ACTIVE.
    pub deactivated_at: Option<Timestamp>,
}

/// What a version is made of. Never a private key.
#[derive(Clone, Debug)]
pub enum Material {
    /// A key pair in the backend.
    KeyPair {
        /// Where the private key is.
        reference: BackendRef,
        /// Its public half.
        public_key: PublicKey,
    },
    /// A data key, wrapped by a KEK.
    DataKey {
        /// Which KEK.
        kek: BackendRef,
        /// The wrapped key.
        wrapped: Vec<u8>,
    },
}

/// Names an object in a backend: an RFC 7512 URI or a KMS key ARN. No secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendRef(pub String);

impl fmt::Display for BackendRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a version is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VersionState {
    /// Generated, not in use.
    PreActive,
    /// The one that signs and encrypts.
    Active,
    /// Verifies and decrypts what it made.
    VerifyOnly,
    /// Out of use for verification; still decrypts.
    Retired,
    /// Declared compromised.
    Compromised,
    /// The material is gone.
    Destroyed,
}

/// What can happen to a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VersionEvent {
    /// Its rotation is deployed, or it is the first version of a new key.
    Deploy,
    /// Its successor is deployed.
    Supersede,
    /// The last token it signed has expired.
    GraceOver,
    /// Somebody else may know it.
    Compromise,
    /// The material was destroyed.
    Destroy,
}

impl VersionState {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::PreActive,
        Self::Active,
        Self::VerifyOnly,
        Self::Retired,
        Self::Compromised,
        Self::Destroyed,
    ];

    /// The state that follows, or ROTATION_STATE when nothing does.
    pub fn after(self, event: VersionEvent) -> Result<Self> {
        use VersionEvent as E;
        match (self, event) {
            (Self::PreActive, E::Deploy) => Ok(Self::Active),
            (Self::Active, E::Supersede) => Ok(Self::VerifyOnly),
            (Self::VerifyOnly, E::GraceOver) => Ok(Self::Retired),
            (Self::PreActive | Self::Active | Self::VerifyOnly | Self::Retired, E::Compromise) => {
                Ok(Self::Compromised)
            }
            (Self::Retired | Self::Compromised, E::Destroy) => Ok(Self::Destroyed),
            (state, event) => Err(Error::new(
                Reason::RotationState,
                format!("a key version that is {state} cannot {event}"),
            )),
        }
    }

    /// May it make signatures, tokens and ciphertexts?
    pub const fn makes(self) -> bool {
        matches!(self, Self::Active)
    }

    /// May signatures by it be accepted?
    pub const fn verifies(self) -> bool {
        matches!(self, Self::Active | Self::VerifyOnly)
    }

    /// May data under it be decrypted for a caller?
    pub const fn decrypts(self) -> bool {
        matches!(self, Self::Active | Self::VerifyOnly | Self::Retired)
    }

    /// May data under it be moved to another version?
    pub const fn rewraps(self) -> bool {
        self.decrypts() || matches!(self, Self::Compromised)
    }

    /// The text in the database and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PreActive => "PRE_ACTIVE",
            Self::Active => "ACTIVE",
            Self::VerifyOnly => "VERIFY_ONLY",
            Self::Retired => "RETIRED",
            Self::Compromised => "COMPROMISED",
            Self::Destroyed => "DESTROYED",
        }
    }
}

impl KeyVersion {
    /// Is its public key in the JWKS: announced, active or inside the grace window (R-JWT-4)?
    pub const fn is_published(&self) -> bool {
        match self.state {
            VersionState::PreActive => self.announced_at.is_some(),
            VersionState::Active | VersionState::VerifyOnly => true,
            VersionState::Retired | VersionState::Compromised | VersionState::Destroyed => false,
        }
    }

    /// The public key of a key pair.
    pub const fn public_key(&self) -> Option<&PublicKey> {
        match &self.material {
            Material::KeyPair { public_key, .. } => Some(public_key),
            Material::DataKey { .. } => None,
        }
    }
}

impl Purpose {
    /// The longest rotation period that any policy may set (R-LIFE-3).
    pub const fn max_rotation_period(self) -> Duration {
        const DAY: u64 = 24 * 60 * 60;
        match self {
            Self::Signing | Self::TokenSigning => Duration::from_secs(90 * DAY),
            Self::Encryption => Duration::from_secs(180 * DAY),
        }
    }
}

/// The shortest rotation period: below it, soak and grace would overlap for ever.
pub const MIN_ROTATION_PERIOD: Duration = Duration::from_secs(60 * 60);

impl fmt::Display for VersionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for VersionEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deploy => "be deployed",
            Self::Supersede => "be superseded",
            Self::GraceOver => "end its grace window",
            Self::Compromise => "be declared compromised",
            Self::Destroy => "be destroyed",
        })
    }
}

impl FromStr for VersionState {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == s)
            .ok_or_else(|| Error::new(Reason::InvalidField, "unknown key version state"))
    }
}
