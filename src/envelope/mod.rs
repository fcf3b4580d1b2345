//! R1: the ciphertext format (docs/envelope.md). Our header, then Cobblestone-256 of C2SP chunked-encryption.
//!
//! `keys/` calls it with a data key it has unwrapped. It knows no backend, no database and no policy:
//! pure functions of key, context and bytes, so ciphertexts can be read without a daemon. Everything that
//! decides the meaning of a ciphertext (its kind, tenant, key, version, the caller's AAD) is bound through `Context`.

pub mod cobblestone;
mod context;
mod error;
mod header;
mod stream;

use aws_lc_rs::rand;

use self::cobblestone::{Opener, Salt, Sealer};
pub use self::{
    context::Context,
    error::EnvelopeError,
    header::{Header, Kind},
    stream::{Beginning, StreamOpener, StreamSealer},
};
use crate::model::secret::DataKey;

/// Encrypts. The result names the version of the context, so that `header` finds it again.
pub fn seal(
    data_key: &DataKey,
    context: &Context,
    plaintext: &[u8],
) -> Result<Vec<u8>, EnvelopeError> {
    let mut salt = Salt::default();
    rand::fill(&mut salt).map_err(|_| EnvelopeError::Provider)?;
    seal_with_chosen_salt(data_key, context, plaintext, salt)
}

/// As `seal`, with a salt that the caller vouches has never been used with this key. For test vectors.
pub fn seal_with_chosen_salt(
    data_key: &DataKey,
    context: &Context,
    plaintext: &[u8],
    salt: Salt,
) -> Result<Vec<u8>, EnvelopeError> {
    let mut out = Vec::with_capacity(sealed_len(context, plaintext.len()));
    header::write(context.kind(), context.kid(), &mut out);
    Sealer::begin(data_key, context.encoded(), salt, &mut out)?.finish(plaintext, &mut out)?;
    Ok(out)
}

/// Reads what a ciphertext is of and which version made it, before its key is at hand. Nothing is authenticated yet.
pub fn header(ciphertext: &[u8]) -> Result<Header, EnvelopeError> {
    header::parse(ciphertext)?.0.to_owned()
}

/// Decrypts. Whole or nothing: no byte of plaintext is returned unless all of it is authentic.
pub fn open(
    data_key: &DataKey,
    context: &Context,
    ciphertext: &[u8],
) -> Result<Vec<u8>, EnvelopeError> {
    let (header, message) = header::parse(ciphertext)?;
    if header.kind != context.kind() {
        return Err(EnvelopeError::OtherKind);
    }
    if header.kid != context.kid().as_str().as_bytes() {
        return Err(EnvelopeError::OtherVersion);
    }
    Opener::open(data_key, context.encoded(), message)
}

/// Length of the ciphertext of a plaintext of `len` bytes.
pub fn sealed_len(context: &Context, len: usize) -> usize {
    header::len(context.kid()) + cobblestone::sealed_len(len)
}
