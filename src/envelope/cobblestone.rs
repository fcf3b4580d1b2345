//! Cobblestone-256: C2SP chunked-encryption v1 (c2sp.org/chunked-encryption) with SHA-512 and AES-256-GCM.
//!
//! Only the specification, without our header: bytes made here open in every other implementation.
//! `Sealer` and `Opener` work chunk by chunk on the end of a buffer; whole messages are `finish` alone.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    constant_time::verify_slices_are_equal,
    hkdf::{HKDF_SHA512, KeyType, Prk},
};
use zeroize::{Zeroize, Zeroizing};

use super::error::EnvelopeError;
use crate::model::secret::DataKey;

/// Plaintext bytes of every chunk but the last, which is shorter, if need be empty.
pub const CHUNK: usize = 16 * 1024;
/// Ciphertext bytes of every chunk but the last.
pub const SEALED_CHUNK: usize = CHUNK + TAG;
/// Bytes before the first chunk: salt and commitment.
pub const PREFIX: usize = SALT + COMMITMENT;

/// Random, never repeated for a key.
pub type Salt = [u8; SALT];

const SALT: usize = 24;
const COMMITMENT: usize = 32;
const TAG: usize = 16;
const KEY: usize = 32;
const INFO: &[u8] = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0";
/// Chunks are numbered in 38 bits.
const MAX_CHUNKS: u64 = 1 << 38;

/// Length of the ciphertext of a plaintext of `len` bytes.
pub const fn sealed_len(len: usize) -> usize {
    PREFIX + len + (len / CHUNK + 1) * TAG
}

/// Encrypts one message.
pub struct Sealer(MessageKey);

impl Sealer {
    /// Derives the message's key and appends salt and commitment to `out`.
    pub fn begin(
        data_key: &DataKey,
        context: &[u8],
        salt: Salt,
        out: &mut Vec<u8>,
    ) -> Result<Self, EnvelopeError> {
        let (key, commitment) = derive(data_key, context, &salt)?;
        out.extend_from_slice(&salt);
        out.extend_from_slice(&commitment);
        Ok(Self(key))
    }

    /// Appends a full chunk.
    pub fn push(&mut self, chunk: &[u8; CHUNK], out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        self.append(chunk, out)
    }

    /// Appends what is left, of any length, and the end of the message.
    pub fn finish(mut self, rest: &[u8], out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        let (full, last) = rest.as_chunks::<CHUNK>();
        for chunk in full {
            self.push(chunk, out)?;
        }
        self.append(last, out)
    }

    fn append(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        let nonce = self.0.next_nonce()?;
        let start = out.len();
        out.extend_from_slice(chunk);
        let sealed = self
            .0
            .aead
            .seal_in_place_separate_tag(nonce, Aad::empty(), &mut out[start..]);
        match sealed {
            Ok(tag) => out.extend_from_slice(tag.as_ref()),
            Err(_) => {
                wipe_from(out, start);
                return Err(EnvelopeError::Provider);
            }
        }
        Ok(())
    }
}

/// Decrypts one message.
pub struct Opener(MessageKey);

impl Opener {
    /// Decrypts a whole message: salt, commitment and chunks.
    pub fn open(
        data_key: &DataKey,
        context: &[u8],
        message: &[u8],
    ) -> Result<Vec<u8>, EnvelopeError> {
        let (prefix, body) = message
            .split_first_chunk::<PREFIX>()
            .ok_or(EnvelopeError::Truncated)?;
        // The length alone tells a cut ciphertext, before any key is derived.
        if body.len() % SEALED_CHUNK < TAG {
            return Err(EnvelopeError::Truncated);
        }
        let opener = Self::begin(data_key, context, prefix)?;
        let plain = body.len() - (body.len() / SEALED_CHUNK + 1) * TAG;
        let mut out = Zeroizing::new(Vec::with_capacity(plain));
        opener.finish(body, &mut out)?;
        Ok(std::mem::take(&mut *out))
    }

    /// Derives the message's key and checks the commitment, in constant time.
    pub fn begin(
        data_key: &DataKey,
        context: &[u8],
        prefix: &[u8; PREFIX],
    ) -> Result<Self, EnvelopeError> {
        let (salt, commitment) = prefix
            .split_first_chunk::<SALT>()
            .ok_or(EnvelopeError::Truncated)?;
        let (key, expected) = derive(data_key, context, salt)?;
        verify_slices_are_equal(&expected, commitment).map_err(|_| EnvelopeError::Commitment)?;
        Ok(Self(key))
    }

    /// Appends the plaintext of a full chunk. Until `finish` succeeds, more may be missing.
    pub fn push(
        &mut self,
        chunk: &[u8; SEALED_CHUNK],
        out: &mut Vec<u8>,
    ) -> Result<(), EnvelopeError> {
        self.append(chunk, out)
    }

    /// Appends the plaintext of what is left, which must hold the end of the message.
    pub fn finish(mut self, rest: &[u8], out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        let (full, last) = rest.as_chunks::<SEALED_CHUNK>();
        for chunk in full {
            self.push(chunk, out)?;
        }
        self.append(last, out)
    }

    fn append(&mut self, sealed: &[u8], out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        let (chunk, tag) = sealed
            .split_last_chunk::<TAG>()
            .ok_or(EnvelopeError::Truncated)?;
        let nonce = self.0.next_nonce()?;
        let start = out.len();
        out.extend_from_slice(chunk);
        let opened =
            self.0
                .aead
                .open_in_place_separate_tag(nonce, Aad::empty(), tag, &mut out[start..]);
        if opened.is_err() {
            wipe_from(out, start);
            return Err(EnvelopeError::Authentication);
        }
        Ok(())
    }
}

/// The key of one message, and how far it has been used.
struct MessageKey {
    aead: LessSafeKey,
    base_nonce: [u8; NONCE_LEN],
    chunks: u64,
}

impl MessageKey {
    /// Base nonce XOR the big-endian number of the chunk.
    fn next_nonce(&mut self) -> Result<Nonce, EnvelopeError> {
        if self.chunks >= MAX_CHUNKS {
            return Err(EnvelopeError::TooLong);
        }
        let mut nonce = self.base_nonce;
        for (byte, count) in nonce[NONCE_LEN - 8..]
            .iter_mut()
            .zip(self.chunks.to_be_bytes())
        {
            *byte ^= count;
        }
        self.chunks += 1;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// HKDF-Expand from the data key: AES key, base nonce, commitment.
fn derive(
    data_key: &DataKey,
    context: &[u8],
    salt: &Salt,
) -> Result<(MessageKey, [u8; COMMITMENT]), EnvelopeError> {
    let prk = Prk::new_less_safe(HKDF_SHA512, data_key.expose_secret());
    let mut okm = Zeroizing::new([0; OkmLen::BYTES]);
    prk.expand(&[INFO, salt, context], OkmLen)
        .and_then(|expanded| expanded.fill(okm.as_mut_slice()))
        .map_err(|_| EnvelopeError::Provider)?;
    let (key, rest) = okm.split_at(KEY);
    let (nonce, tail) = rest.split_at(NONCE_LEN);
    let mut base_nonce = [0; NONCE_LEN];
    base_nonce.copy_from_slice(nonce);
    let mut commitment = [0; COMMITMENT];
    commitment.copy_from_slice(tail);
    let aead = UnboundKey::new(&AES_256_GCM, key).map_err(|_| EnvelopeError::Provider)?;
    let key = MessageKey {
        aead: LessSafeKey::new(aead),
        base_nonce,
        chunks: 0,
    };
    Ok((key, commitment))
}

struct OkmLen;

impl OkmLen {
    const BYTES: usize = KEY + NONCE_LEN + COMMITMENT;
}

impl KeyType for OkmLen {
    fn len(&self) -> usize {
        Self::BYTES
    }
}

/// Takes back what must not be seen: a chunk that failed.
fn wipe_from(out: &mut Vec<u8>, start: usize) {
    out[start..].zeroize();
    out.truncate(start);
}
