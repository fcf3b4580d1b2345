//! R1: where private keys live. A backend does only what the device alone can do.
//!
//! `kid`, state, schedule and tenant are ours; a backend knows references and algorithms. There is no software
//! backend, so there is nothing else in the process that could hold a private signing key (R-LIFE-4).
//! Every implementation runs the one conformance suite in `tests/it/conformance.rs`.

use std::{fmt, future::Future, pin::Pin, time::Duration};

use serde::Deserialize;
use tokio::time::Instant;

use crate::model::{
    Algorithm, IntentId, KeySpec, PublicKey, Timestamp, key::BackendRef, public_key::SignInput,
    secret::DataKey,
};

mod awaited;
pub mod aws_kms;
pub mod breaker;
pub mod guarded;
pub mod pkcs11;
mod priority;

pub use priority::{Priority, with_priority};

pub use awaited::Awaited;
pub use guarded::Guarded;

/// The answer of a backend call.
pub type Call<'a, T> = Pin<Box<dyn Future<Output = Result<T, BackendError>> + Send + 'a>>;

/// A device that holds keys. Every call ends by its deadline.
pub trait Backend: Send + Sync + 'static {
    /// What this device can do, as found out when it was opened.
    fn capabilities(&self) -> &Capabilities;

    /// Generates a key that can never leave, tagged with the intent, and reads back that it cannot.
    /// On return the key exists, is durable, and (key pairs) has made a signature that verifies.
    fn create<'a>(
        &'a self,
        spec: KeySpec,
        intent: IntentId,
        label: &'a str,
        deadline: Instant,
    ) -> Call<'a, Created>;

    /// Finds the one existing key that `uri` names and checks it as `create` does. Nothing on the device changes.
    /// `KeySpec::Rsa(0)` stands for any modulus of 2048 bits or more.
    fn adopt<'a>(&'a self, uri: &'a str, spec: KeySpec, deadline: Instant) -> Call<'a, Created>;

    /// The public half of a key pair.
    fn public_key<'a>(&'a self, key: &'a BackendRef, deadline: Instant) -> Call<'a, PublicKey>;

    /// Signs; the signature is in its JOSE form. EdDSA takes a message, every other algorithm a digest.
    fn sign<'a>(
        &'a self,
        key: &'a BackendRef,
        algorithm: Algorithm,
        input: SignInput<'a>,
        deadline: Instant,
    ) -> Call<'a, Vec<u8>>;

    /// Encrypts a data key under a KEK, bound to `aad`.
    fn wrap<'a>(
        &'a self,
        kek: &'a BackendRef,
        key: &'a DataKey,
        aad: &'a [u8],
        deadline: Instant,
    ) -> Call<'a, Vec<u8>>;

    /// The reverse of `wrap`. `Rejected` when the ciphertext, the KEK or `aad` is another one.
    fn unwrap<'a>(
        &'a self,
        kek: &'a BackendRef,
        wrapped: &'a [u8],
        aad: &'a [u8],
        deadline: Instant,
    ) -> Call<'a, DataKey>;

    /// Destroys a key for ever, or makes it unusable and has it destroyed later. `Missing` when it is not there, or is to
    /// be destroyed already.
    fn destroy<'a>(&'a self, key: &'a BackendRef, deadline: Instant) -> Call<'a, Destroyed>;

    /// Describes every object that is tagged with this intent, in words for people; empty when there is none. A token
    /// that has vanished is `Unavailable`, not empty. Nothing on the device changes.
    fn find(&self, intent: IntentId, deadline: Instant) -> Call<'_, Vec<String>>;

    /// Does the device answer, logged in, with its token present?
    fn ready(&self, deadline: Instant) -> Call<'_, ()>;
}

/// What a device can do.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// Name of the backend in the configuration.
    pub name: String,
    /// Make and model, for people.
    pub device: String,
    /// Keys it can generate.
    pub specs: Vec<KeySpec>,
    /// Algorithms it can sign with.
    pub algorithms: Vec<Algorithm>,
    /// How far its signatures are believed; of the configuration.
    pub verify_after_sign: VerifyAfterSign,
    /// It does one thing at a time: while a key is made, nothing else comes back.
    pub one_at_a_time: bool,
    /// Longest message that it signs whole, in bytes, which is what EdDSA needs; None for any. Digests always fit.
    pub longest_message: Option<usize>,
}

/// Which fresh signatures of a backend are verified with the public key before they leave. Setting `verify_after_sign`
/// of a backend; the defaults follow from measurements in docs/backends.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyAfterSign {
    /// Every one.
    Always,
    /// One in 16: a device that signs wrongly is found within a few calls, at a sixteenth of the cost.
    Sampled,
    /// None.
    Off,
}

/// What `stall_ms` may be.
pub(crate) const STALL_MS: std::ops::RangeInclusive<u64> = 100..=60_000;

/// What a device did with a key that was to be destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destroyed {
    /// It is destroyed.
    Now,
    /// It cannot be used, and the device destroys it at this time, by its own clock. Until then whoever administers the
    /// device may take that back.
    Scheduled(Timestamp),
}

/// A key that was created or adopted.
#[derive(Clone, Debug)]
pub struct Created {
    /// Where it is.
    pub reference: BackendRef,
    /// Its public half; None for a KEK.
    pub public_key: Option<PublicKey>,
    /// What it is tagged with, where that can be an intent.
    pub tag: Option<IntentId>,
}

/// Why a backend call failed. Variants say what to do, not which vendor code it was.
#[derive(Debug)]
pub enum BackendError {
    /// The device is gone, busy or in trouble; the call may work later. Opens the circuit breaker.
    Unavailable(String),
    /// No free thread within the deadline.
    Overloaded,
    /// The deadline passed before the device answered.
    DeadlineExceeded,
    /// No object, or more than one, has this reference. Never a reason to create or delete anything.
    Missing(String),
    /// The device works and says no: tampered ciphertext, wrong context, wrong input length.
    Rejected(String),
    /// The key is there and cannot be used in its present state, until an operator changes that: it is disabled, or its
    /// key store is disconnected. The device is well.
    Suspended {
        /// Which, for the log.
        key: String,
        /// The state and what to do about it, for callers too.
        why: String,
    },
    /// The device is well and does not permit us this.
    Denied {
        /// The permission, for callers too.
        needs: String,
        /// What the device said, for the log.
        said: String,
    },
    /// The object must not be used: extractable, of another type, or its signature does not verify.
    Unfit(String),
    /// The device has no such mechanism.
    Unsupported(String),
    /// The PIN is wrong. Tried once; never again until a restart.
    WrongPin,
    /// The configuration names a module, token or KEK that is not there.
    Misconfigured(String),
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) => write!(f, "backend unavailable: {why}"),
            Self::Overloaded => f.write_str("all backend sessions are busy"),
            Self::DeadlineExceeded => f.write_str("backend did not answer in time"),
            Self::Missing(what) => write!(f, "no single object for {what}"),
            Self::Rejected(why) => write!(f, "backend rejected the input: {why}"),
            Self::Suspended { key, why } => write!(f, "{key} cannot be used now: {why}"),
            Self::Denied { needs, said } => write!(
                f,
                "the backend denies {needs}; allow it to the daemon, and where the key has a policy of its own, \
                 there too: {said}"
            ),
            Self::Unfit(why) => write!(f, "key unfit for use: {why}"),
            Self::Unsupported(what) => write!(f, "backend does not support {what}"),
            Self::WrongPin => f.write_str(
                "the token rejected the PIN; it was tried once and will not be tried again until the \
                 daemon restarts, because tokens lock",
            ),
            Self::Misconfigured(why) => write!(f, "backend misconfigured: {why}"),
        }
    }
}

impl std::error::Error for BackendError {}

/// How long a caller should wait before it tries an unavailable backend again.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

impl From<BackendError> for crate::error::Error {
    fn from(error: BackendError) -> Self {
        use crate::error::{Error, Reason};
        let (reason, message) = match &error {
            BackendError::Unavailable(_) => (
                Reason::BackendUnavailable,
                "the key backend does not answer; retry later",
            ),
            BackendError::WrongPin | BackendError::Misconfigured(_) => (
                Reason::BackendUnavailable,
                "the key backend cannot be used; an operator must look at the daemon's log",
            ),
            BackendError::Overloaded => {
                (Reason::Overloaded, "the key backend is busy; retry later")
            }
            BackendError::DeadlineExceeded => (
                Reason::DeadlineExceeded,
                "the key backend did not answer within the deadline",
            ),
            BackendError::Missing(_) => (
                Reason::BackendUnavailable,
                "the backend does not show the key: it is on another token, was deleted, or is about to be; an \
                 operator must look there",
            ),
            BackendError::Suspended { why, .. } => {
                let text = format!("a key in the backend cannot be used now: {why}");
                return Error::new(Reason::KeySuspended, text).because(error);
            }
            BackendError::Denied { needs, .. } => {
                let text = format!(
                    "the backend denies {needs}; an operator must allow it to the daemon, and in the key's own policy"
                );
                return Error::new(Reason::BackendDenied, text).because(error);
            }
            BackendError::Unsupported(_) => (
                Reason::Unsupported,
                "the key backend does not support this algorithm",
            ),
            BackendError::Unfit(why) => {
                return Error::new(Reason::KeyNotAdoptable, format!("key unfit for use: {why}"));
            }
            BackendError::Rejected(_) => return Error::internal(error),
        };
        let retry = matches!(reason, Reason::BackendUnavailable | Reason::Overloaded);
        let public = Error::new(reason, message).because(error);
        if retry {
            public.retry_after(RETRY_AFTER)
        } else {
            public
        }
    }
}
