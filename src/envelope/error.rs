//! Why a ciphertext does not open. Precise for the log, one sentence for the caller.

use std::fmt;

use crate::error::{Error, Reason};

/// What is wrong with a ciphertext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvelopeError {
    /// It ends before it is complete.
    Truncated,
    /// It does not begin as ours do.
    Malformed,
    /// Its format version is not one we know.
    UnknownFormat(u8),
    /// It is a ciphertext of something else: a wrapped data key is not data.
    OtherKind,
    /// Another key version made it than the one it is opened with.
    OtherVersion,
    /// It was made with another key or another context, or its salt or commitment was changed.
    Commitment,
    /// A chunk was changed, moved, added or removed.
    Authentication,
    /// The message is longer than the format allows.
    TooLong,
    /// The crypto provider failed; nothing is said about the ciphertext.
    Provider,
}

impl fmt::Display for EnvelopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("ciphertext is truncated"),
            Self::Malformed => f.write_str("not a claviger ciphertext"),
            Self::UnknownFormat(version) => write!(f, "unknown format version {version}"),
            Self::OtherKind => f.write_str("a ciphertext of another kind"),
            Self::OtherVersion => f.write_str("ciphertext names another key version"),
            Self::Commitment => f.write_str("key commitment does not match: other key or context"),
            Self::Authentication => f.write_str("a chunk does not authenticate"),
            Self::TooLong => f.write_str("message is longer than the format allows"),
            Self::Provider => f.write_str("the crypto provider failed"),
        }
    }
}

impl std::error::Error for EnvelopeError {}

/// A caller learns that it does not open, not why: the reasons would be an oracle.
impl From<EnvelopeError> for Error {
    fn from(error: EnvelopeError) -> Self {
        match error {
            EnvelopeError::Truncated
            | EnvelopeError::Malformed
            | EnvelopeError::UnknownFormat(_)
            | EnvelopeError::OtherKind
            | EnvelopeError::OtherVersion
            | EnvelopeError::Commitment
            | EnvelopeError::Authentication => Self::new(
                Reason::CiphertextInvalid,
                "the ciphertext cannot be decrypted: it was changed or cut, or it belongs to another \
                 key, tenant or additional authenticated data",
            )
            .because(error),
            EnvelopeError::TooLong => Self::new(
                Reason::PayloadTooLarge,
                "the payload is longer than the ciphertext format allows",
            ),
            EnvelopeError::Provider => Self::internal(error),
        }
    }
}
