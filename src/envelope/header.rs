//! The bytes before the message: `"CLV"`, format version, length of the kid, the kid. The version is also the kind.

use std::str;

use super::error::EnvelopeError;
use crate::model::Kid;

const MAGIC: &[u8; 3] = b"CLV";
/// Magic, format version and length of the kid.
const FIXED: usize = MAGIC.len() + 2;

/// What a ciphertext is a ciphertext of, so that one is never opened as the other. Each is a format version of its own
/// and has a domain of its own in `Context`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes that a caller gave to Encrypt.
    Data,
    /// A data key that a caller encrypts with.
    WrappedKey,
    /// The secret of an imported MAC key. It stays in the database.
    MacSecret,
    /// The secret of a credential of another system. It stays in the database.
    Credential,
}

impl Kind {
    /// The format version.
    pub(super) const fn version(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::WrappedKey => 2,
            Self::MacSecret => 3,
            Self::Credential => 4,
        }
    }

    /// Keeps the encoding of the context apart from every other use of a data key.
    pub(super) const fn domain(self) -> &'static [u8] {
        match self {
            Self::Data => b"claviger envelope",
            Self::WrappedKey => b"claviger wrapped data key",
            Self::MacSecret => b"claviger imported mac secret",
            Self::Credential => b"claviger credential",
        }
    }

    const fn of(version: u8) -> Option<Self> {
        match version {
            1 => Some(Self::Data),
            2 => Some(Self::WrappedKey),
            3 => Some(Self::MacSecret),
            4 => Some(Self::Credential),
            _ => None,
        }
    }
}

/// What a ciphertext says about itself. Not authenticated before `open`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is a ciphertext of.
    pub kind: Kind,
    /// The key version that made it.
    pub kid: Kid,
}

/// A header still in the ciphertext.
#[derive(Clone, Copy)]
pub(super) struct Raw<'a> {
    pub(super) kind: Kind,
    pub(super) kid: &'a [u8],
}

impl Raw<'_> {
    pub(super) fn to_owned(self) -> Result<Header, EnvelopeError> {
        let kid = str::from_utf8(self.kid).map_err(|_| EnvelopeError::Malformed)?;
        let kid = kid.parse().map_err(|_| EnvelopeError::Malformed)?;
        Ok(Header {
            kind: self.kind,
            kid,
        })
    }
}

pub(super) fn len(kid: &Kid) -> usize {
    FIXED + kid.as_str().len()
}

pub(super) fn write(kind: Kind, kid: &Kid, out: &mut Vec<u8>) {
    let kid = kid.as_str().as_bytes();
    out.extend_from_slice(MAGIC);
    // A kid has at most 64 bytes.
    out.extend([kind.version(), kid.len() as u8]);
    out.extend_from_slice(kid);
}

/// Splits a ciphertext into header and message.
pub(super) fn parse(ciphertext: &[u8]) -> Result<(Raw<'_>, &[u8]), EnvelopeError> {
    let (fixed, rest) = ciphertext
        .split_first_chunk::<FIXED>()
        .ok_or(EnvelopeError::Truncated)?;
    let &[m0, m1, m2, version, kid_len] = fixed;
    if [m0, m1, m2] != *MAGIC {
        return Err(EnvelopeError::Malformed);
    }
    let kind = Kind::of(version).ok_or(EnvelopeError::UnknownFormat(version))?;
    let (kid, message) = rest
        .split_at_checked(usize::from(kid_len))
        .ok_or(EnvelopeError::Truncated)?;
    Ok((Raw { kind, kid }, message))
}
