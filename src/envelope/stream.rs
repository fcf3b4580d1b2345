//! The same ciphertexts, made and opened piece by piece in constant memory.
//!
//! Pieces may be cut anywhere: whatever the cuts, the bytes are those of `seal` and `open`. A full chunk is never the
//! last one of a message, so each can be sealed or opened as soon as it is complete; that a message was cut at the
//! border of a chunk shows when it ends without its last, shorter one. Pure functions of bytes; who may have what comes
//! out, and when, is decided in `gate`.

use aws_lc_rs::rand;
use zeroize::Zeroizing;

use super::{
    Context, EnvelopeError, Header,
    cobblestone::{CHUNK, Opener, PREFIX, SEALED_CHUNK, Salt, Sealer},
    header,
};
use crate::model::secret::DataKey;

/// The longest beginning of a ciphertext: fixed fields, a kid of a length that one byte can name, salt, commitment.
const MAX_BEGINNING: usize = 5 + 255 + PREFIX;

/// Encrypts one message. Dropped before `finish`, it has made something that does not open.
pub struct StreamSealer {
    sealer: Sealer,
    /// The beginning of a chunk.
    rest: Zeroizing<Vec<u8>>,
}

impl StreamSealer {
    /// Derives the message's key and appends header, salt and commitment to `out`.
    pub fn begin(
        data_key: &DataKey,
        context: &Context,
        out: &mut Vec<u8>,
    ) -> Result<Self, EnvelopeError> {
        let mut salt = Salt::default();
        rand::fill(&mut salt).map_err(|_| EnvelopeError::Provider)?;
        Self::begin_with_chosen_salt(data_key, context, salt, out)
    }

    /// As `begin`, with a salt that the caller vouches has never been used with this key. For test vectors.
    pub fn begin_with_chosen_salt(
        data_key: &DataKey,
        context: &Context,
        salt: Salt,
        out: &mut Vec<u8>,
    ) -> Result<Self, EnvelopeError> {
        header::write(context.kind(), context.kid(), out);
        Ok(Self {
            sealer: Sealer::begin(data_key, context.encoded(), salt, out)?,
            // In one piece from the start, so that growing leaves no copy behind.
            rest: Zeroizing::new(Vec::with_capacity(CHUNK)),
        })
    }

    /// Appends the chunks that are complete with this piece, which may be none.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        let piece = complete(&mut self.rest, CHUNK, piece);
        if let Some(chunk) = self.rest.first_chunk::<CHUNK>() {
            self.sealer.push(chunk, out)?;
            self.rest.clear();
        }
        let (chunks, rest) = piece.as_chunks::<CHUNK>();
        out.reserve(chunks.len() * SEALED_CHUNK);
        for chunk in chunks {
            self.sealer.push(chunk, out)?;
        }
        self.rest.extend_from_slice(rest);
        Ok(())
    }

    /// Appends the last chunk.
    pub fn finish(self, out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        self.sealer.finish(&self.rest, out)
    }
}

/// What a ciphertext begins with, as far as it has come.
#[derive(Default)]
pub struct Beginning(Vec<u8>);

impl Beginning {
    /// Takes bytes off the front of `piece`. The header, once it and what belongs to it are complete; nothing is
    /// authenticated yet.
    ///
    /// Errors: as soon as it cannot become a ciphertext of ours.
    pub fn push(&mut self, piece: &mut &[u8]) -> Result<Option<Header>, EnvelopeError> {
        *piece = top_up(&mut self.0, MAX_BEGINNING, piece);
        match header::parse(&self.0) {
            Ok((raw, message)) if message.len() >= PREFIX => raw.to_owned().map(Some),
            Ok(_) | Err(EnvelopeError::Truncated) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Decrypts one message.
pub struct StreamOpener {
    opener: Opener,
    /// The beginning of a chunk.
    rest: Vec<u8>,
}

impl StreamOpener {
    /// Derives the message's key and checks the commitment.
    pub fn begin(
        data_key: &DataKey,
        context: &Context,
        beginning: &Beginning,
    ) -> Result<Self, EnvelopeError> {
        let (header, message) = header::parse(&beginning.0)?;
        if header.kid != context.kid().as_str().as_bytes() {
            return Err(EnvelopeError::OtherVersion);
        }
        if header.kind != context.kind() {
            return Err(EnvelopeError::OtherKind);
        }
        let (prefix, rest) = message
            .split_first_chunk::<PREFIX>()
            .ok_or(EnvelopeError::Truncated)?;
        let opener = Opener::begin(data_key, context.encoded(), prefix)?;
        Ok(Self {
            opener,
            rest: rest.to_vec(),
        })
    }

    /// Appends the plaintext of the chunks that are complete with this piece, which may be none. What is appended is
    /// authentic; until `finish` succeeds, more may be missing. After an error the opener must not be used again.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        let piece = complete(&mut self.rest, SEALED_CHUNK, piece);
        if let Some(chunk) = self.rest.first_chunk::<SEALED_CHUNK>() {
            self.opener.push(chunk, out)?;
            self.rest.clear();
        }
        let (chunks, rest) = piece.as_chunks::<SEALED_CHUNK>();
        out.reserve(chunks.len() * CHUNK);
        for chunk in chunks {
            self.opener.push(chunk, out)?;
        }
        self.rest.extend_from_slice(rest);
        Ok(())
    }

    /// Appends the plaintext of the last chunk, which must be here.
    pub fn finish(self, out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        self.opener.finish(&self.rest, out)
    }
}

/// Moves bytes of `piece` to the end of `held` until that has `most`; returns the others.
fn top_up<'a>(held: &mut Vec<u8>, most: usize, piece: &'a [u8]) -> &'a [u8] {
    let (taken, others) = piece.split_at(piece.len().min(most - held.len()));
    held.extend_from_slice(taken);
    others
}

/// As `top_up`, for a chunk that has been begun. Chunks that a piece holds whole are worked on where they are.
fn complete<'a>(begun: &mut Vec<u8>, chunk: usize, piece: &'a [u8]) -> &'a [u8] {
    match begun.is_empty() {
        true => piece,
        false => top_up(begun, chunk, piece),
    }
}
