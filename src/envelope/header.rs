//! The bytes before the message: `"CLV"`, format version, length of the kid, the kid.

use std::str;

use super::error::EnvelopeError;
use crate::model::Kid;

const MAGIC: &[u8; 3] = b"CLV";
/// The one format there is. It is bound through the domain of `Context`.
pub(super) const VERSION: u8 = 1;
/// Magic, format version and length of the kid.
const FIXED: usize = MAGIC.len() + 2;

/// What a ciphertext says about itself. Not authenticated before `open`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The key version that made it.
    pub kid: Kid,
}

/// A header still in the ciphertext.
#[derive(Clone, Copy)]
pub(super) struct Raw<'a> {
    pub(super) kid: &'a [u8],
}

impl Raw<'_> {
    pub(super) fn to_owned(self) -> Result<Header, EnvelopeError> {
        let kid = str::from_utf8(self.kid).map_err(|_| EnvelopeError::Malformed)?;
        let kid = kid.parse().map_err(|_| EnvelopeError::Malformed)?;
        Ok(Header { kid })
    }
}

pub(super) fn len(kid: &Kid) -> usize {
    FIXED + kid.as_str().len()
}

pub(super) fn write(kid: &Kid, out: &mut Vec<u8>) {
    let kid = kid.as_str().as_bytes();
    out.extend_from_slice(MAGIC);
    // A kid has at most 64 bytes.
    out.extend([VERSION, kid.len() as u8]);
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
    if version != VERSION {
        return Err(EnvelopeError::UnknownFormat(version));
    }
    let (kid, message) = rest
        .split_at_checked(usize::from(kid_len))
        .ok_or(EnvelopeError::Truncated)?;
    Ok((Raw { kid }, message))
}
