//! A key, its versions, and the state machine of a version (SP 800-57 part 1 rev. 5, section 7).
//!
//! Transitions are pure: `state.after(event)` says what follows or why nothing does. Stores and services
//! obey it; none of them decides by itself.

use std::{fmt, num::NonZeroU32, str::FromStr, time::Duration};

use super::{
    Algorithm, Approval, KeyId, KeyName, Kid, PrincipalId, PublicKey, Purpose, TenantName,
    Timestamp, time::following,
};
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
    /// Name of the backend that generates its next version or wraps its data keys.
    pub backend: String,
    /// Who answers for it (R-LIFE-2).
    pub owner: String,
    /// When it was created (R-LIFE-2).
    pub created_at: Timestamp,
    /// Target time between rotations.
    pub rotation_period: Duration,
    /// When it should next rotate (R-LIFE-2).
    pub next_rotation_at: Timestamp,
    /// How it rotates.
    pub policy: RotationPolicy,
    /// Counts changes of the row, for compare-and-set.
    pub revision: i64,
}

/// How a key rotates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotationPolicy {
    /// Who starts rotations.
    pub mode: RotationMode,
    /// Approvals that each rotation needs; at least one, by type.
    pub approvals_needed: NonZeroU32,
    /// Is a standby version kept?
    pub standby: bool,
    /// Backend of the standby version; None for the key's own.
    pub standby_backend: Option<String>,
    /// How long a superseded version keeps verifying, beside the tokens it issued.
    pub grace: Duration,
    /// Who set mode or approvals last; None for a key older than policies.
    pub set_by: Option<PrincipalId>,
    /// The standing approval of AUTOMATIC.
    pub standing_approval: Option<Approval>,
    /// Who changed period or date last; None while they are as they were created.
    pub schedule_set_by: Option<PrincipalId>,
}

/// Who starts a key's rotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RotationMode {
    /// The scheduler opens a due rotation; people approve and deploy it.
    Manual,
    /// The scheduler also approves and deploys it, under a standing approval.
    Automatic,
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
    /// When it was retired.
    pub retired_at: Option<Timestamp>,
    /// When it was declared compromised.
    pub compromised_at: Option<Timestamp>,
    /// When its material was destroyed.
    pub destroyed_at: Option<Timestamp>,
    /// High-water mark: no token under it expires later. None when it issued none.
    pub last_token_exp: Option<Timestamp>,
    /// Last known use.
    pub last_used_at: Option<Timestamp>,
    /// Is it kept ready for a compromise?
    pub is_standby: bool,
}

/// What a version is made of. Never a private key.
#[derive(Clone, Debug)]
pub enum Material {
    /// A key pair in the backend.
    KeyPair {
        /// Name of the backend that holds it.
        backend: String,
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
        /// The imported secret of a MAC key, encrypted by this data key; None where the data key itself is the secret.
        sealed_secret: Option<Vec<u8>>,
    },
    /// A data key that was destroyed: nobody has it any more.
    Shredded {
        /// The KEK that wrapped it.
        kek: BackendRef,
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
    /// Its grace window is ended early.
    Revoke,
    /// It will never be used: its rotation was rejected, cancelled or expired, or it is a standby no longer wanted.
    Withdraw,
    /// Somebody else may know it.
    Compromise,
    /// The material was destroyed.
    Destroy,
    /// The material was destroyed with all keys of its tenant, whatever it was in use for.
    Shred,
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

    /// The state that follows. Errors: VERSION_STATE when nothing does.
    pub fn after(self, event: VersionEvent) -> Result<Self> {
        use VersionEvent as E;
        match (self, event) {
            (Self::PreActive, E::Deploy) => Ok(Self::Active),
            (Self::Active, E::Supersede) => Ok(Self::VerifyOnly),
            (Self::VerifyOnly, E::GraceOver | E::Revoke) | (Self::PreActive, E::Withdraw) => {
                Ok(Self::Retired)
            }
            (Self::PreActive | Self::Active | Self::VerifyOnly | Self::Retired, E::Compromise) => {
                Ok(Self::Compromised)
            }
            (Self::Retired | Self::Compromised, E::Destroy) => Ok(Self::Destroyed),
            (
                Self::PreActive
                | Self::Active
                | Self::VerifyOnly
                | Self::Retired
                | Self::Compromised,
                E::Shred,
            ) => Ok(Self::Destroyed),
            (state, event) => Err(Error::new(
                Reason::VersionState,
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
    /// A version that was just made: PRE_ACTIVE and unknown to anybody outside.
    pub const fn pre_active(
        key_id: KeyId,
        number: u32,
        kid: Kid,
        material: Material,
        now: Timestamp,
    ) -> Self {
        Self {
            kid,
            key_id,
            number,
            state: VersionState::PreActive,
            material,
            created_at: now,
            announced_at: None,
            activated_at: None,
            deactivated_at: None,
            retired_at: None,
            compromised_at: None,
            destroyed_at: None,
            last_token_exp: None,
            last_used_at: None,
            is_standby: false,
        }
    }

    /// Takes the step of `event` and notes when. Answers the state it was in, for compare-and-set.
    ///
    /// Errors: VERSION_STATE when nothing follows, CLOCK_BACKWARDS.
    pub fn advance(&mut self, event: VersionEvent, now: Timestamp) -> Result<VersionState> {
        let before = self.state;
        let after = before.after(event)?;
        let at = Some(match event {
            // What takes a version out of use must not fail because some clock was ahead.
            VersionEvent::Compromise
            | VersionEvent::Revoke
            | VersionEvent::Withdraw
            | VersionEvent::Shred => now.max(self.last_step()),
            VersionEvent::Deploy
            | VersionEvent::Supersede
            | VersionEvent::GraceOver
            | VersionEvent::Destroy => following(self.last_step(), now)?,
        });
        match event {
            VersionEvent::Deploy => {
                self.activated_at = at;
                self.is_standby = false;
            }
            VersionEvent::Supersede => self.deactivated_at = at,
            VersionEvent::GraceOver | VersionEvent::Revoke | VersionEvent::Withdraw => {
                self.retired_at = at;
                self.is_standby = false;
            }
            VersionEvent::Compromise => {
                if before.makes() {
                    self.deactivated_at = at;
                }
                self.compromised_at = at;
                self.is_standby = false;
            }
            VersionEvent::Destroy | VersionEvent::Shred => {
                if before.makes() {
                    self.deactivated_at = at;
                }
                self.destroyed_at = at;
                self.is_standby = false;
                if let Material::DataKey { kek, .. } = &self.material {
                    self.material = Material::Shredded { kek: kek.clone() };
                }
            }
        }
        self.state = after;
        Ok(before)
    }

    /// When the last recorded step was taken.
    pub fn last_step(&self) -> Timestamp {
        [
            self.announced_at,
            self.activated_at,
            self.deactivated_at,
            self.retired_at,
            self.compromised_at,
            self.destroyed_at,
        ]
        .into_iter()
        .flatten()
        .fold(self.created_at, Timestamp::max)
    }

    /// When it may retire: the grace after it was superseded and, by the high-water mark, its last token are over.
    /// None while it is not superseded. `skew` is how far the clocks of verifiers may be off.
    pub fn grace_ends_at(&self, grace: Duration, skew: Duration) -> Option<Timestamp> {
        let superseded = self.deactivated_at?.plus(grace);
        let tokens = self.last_token_exp.map(|exp| exp.plus(skew));
        Some(tokens.map_or(superseded, |tokens| tokens.max(superseded)))
    }

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
            Material::DataKey { .. } | Material::Shredded { .. } => None,
        }
    }
}

impl Purpose {
    /// The longest rotation period that any policy may set (R-LIFE-3).
    pub const fn max_rotation_period(self) -> Duration {
        const DAY: u64 = 24 * 60 * 60;
        match self {
            Self::Signing | Self::TokenSigning => Duration::from_secs(90 * DAY),
            Self::Encryption | Self::Mac => Duration::from_secs(180 * DAY),
        }
    }
}

/// The longest grace that a policy may set: ten years.
pub const MAX_GRACE: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// The most approvals that a policy may ask for.
pub const MAX_APPROVALS: u32 = 8;

impl RotationMode {
    /// The text in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "MANUAL",
            Self::Automatic => "AUTOMATIC",
        }
    }
}

impl FromStr for RotationMode {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "MANUAL" => Ok(Self::Manual),
            "AUTOMATIC" => Ok(Self::Automatic),
            _ => Err(Error::new(Reason::InvalidField, "unknown rotation mode")),
        }
    }
}

impl RotationPolicy {
    /// What a key of this purpose has when nobody says anything else.
    pub fn of(purpose: Purpose) -> Self {
        let (mode, grace_days) = match purpose {
            Purpose::Encryption => (RotationMode::Automatic, 0),
            // Signatures carry no expiry, so verifiers get as long as a key may live.
            Purpose::Signing => (RotationMode::Manual, 90),
            Purpose::TokenSigning => (RotationMode::Manual, 0),
            // Nor do MACs.
            Purpose::Mac => (RotationMode::Automatic, 90),
        };
        Self {
            mode,
            approvals_needed: NonZeroU32::MIN,
            standby: false,
            standby_backend: None,
            grace: Duration::from_secs(grace_days * 24 * 60 * 60),
            set_by: None,
            standing_approval: None,
            schedule_set_by: None,
        }
    }

    /// Errors: ROTATION_POLICY, INVALID_FIELD when out of bounds.
    pub fn check(&self) -> Result<()> {
        if self.grace > MAX_GRACE {
            return Err(Error::new(
                Reason::InvalidField,
                "grace must be at most 3650 days",
            ));
        }
        if self.approvals_needed.get() > MAX_APPROVALS {
            return Err(Error::new(
                Reason::InvalidField,
                format!("approvals_needed must be 1 to {MAX_APPROVALS}"),
            ));
        }
        if self.mode == RotationMode::Automatic && self.approvals_needed.get() > 1 {
            return Err(Error::new(
                Reason::RotationPolicy,
                "AUTOMATIC rotation carries one standing approval; with more than one, use MANUAL",
            ));
        }
        Ok(())
    }

    /// Gives the standing approval.
    ///
    /// Errors: ROTATION_POLICY unless AUTOMATIC, SEPARATION_OF_DUTIES for who set the policy, or when nobody knows who did.
    pub fn approve(mut self, approver: PrincipalId, now: Timestamp) -> Result<Self> {
        if self.mode != RotationMode::Automatic {
            return Err(Error::new(
                Reason::RotationPolicy,
                "only AUTOMATIC rotation takes a standing approval; this key rotates MANUAL",
            ));
        }
        if self.set_by.is_none_or(|setter| setter == approver) {
            return Err(Error::new(
                Reason::SeparationOfDuties,
                "who set a rotation policy cannot approve it; somebody else must",
            ));
        }
        self.standing_approval = Some(Approval { approver, at: now });
        Ok(self)
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
            Self::Revoke => "be revoked",
            Self::Withdraw => "be withdrawn",
            Self::Compromise => "be declared compromised",
            Self::Destroy => "be destroyed",
            Self::Shred => "be destroyed with its tenant",
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
