//! A long payload through EncryptStream, and on through DecryptStream, beside AES-256-GCM alone in this process.

use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::super::{
    client::Connection,
    exit::{Failure, Result},
};
use crate::grpc::proto::{
    DecryptStreamRequest, EncryptStreamRequest, decrypt_stream_request as decrypting,
    encrypt_stream_request as encrypting,
};

/// Bytes of one message.
const PIECE: usize = 256 << 10;
/// Bytes of one chunk of the ciphertext format, the unit of the comparison.
const CHUNK: usize = 16 << 10;
const MIB: usize = 1 << 20;

/// Rates in MiB/s.
pub struct Measured {
    /// EncryptStream, its answer thrown away.
    pub sealed: f64,
    /// EncryptStream and DecryptStream at the same time, the one behind the other.
    pub piped: f64,
    /// Raw AES-256-GCM on one thread: sealing.
    pub raw_sealed: f64,
    /// Sealing and opening again.
    pub raw_piped: f64,
}

/// Measures `mib` MiB each. Errors: of the calls; bytes that came back changed.
pub async fn measure(
    sealing: &Connection,
    opening: &Connection,
    key: &str,
    mib: usize,
) -> Result<Measured> {
    let raw = tokio::task::block_in_place(|| raw(mib));
    let (raw_sealed, raw_piped) = raw.map_err(|_| Failure::other("raw AES-256-GCM failed"))?;
    let began = Instant::now();
    let mut client = sealing.streams();
    let sealed = client.encrypt_stream(plaintext(key, mib)).await?;
    let mut sealed = sealed.into_inner();
    while sealed.message().await?.is_some() {}
    let sealed = rate(mib, began.elapsed());

    let began = Instant::now();
    pipe(sealing, opening, key, mib).await?;
    let piped = rate(mib, began.elapsed());
    Ok(Measured {
        sealed,
        piped,
        raw_sealed,
        raw_piped,
    })
}

async fn pipe(sealing: &Connection, opening: &Connection, key: &str, mib: usize) -> Result<()> {
    let mut client = sealing.streams();
    let sealed = client.encrypt_stream(plaintext(key, mib)).await?;
    let start = decrypting::Start {
        key: key.to_owned(),
        ..decrypting::Start::default()
    };
    // A failure ends the ciphertext too early, which DecryptStream cannot take for the whole.
    let data = sealed.into_inner().filter_map(async |answer| {
        let data = answer.ok()?.data;
        Some(decrypting::Part::Data(data))
    });
    let parts = stream::iter([decrypting::Part::Start(start)]).chain(data);
    let asked = parts.map(|part| DecryptStreamRequest { part: Some(part) });
    let mut client = opening.streams();
    let mut opened = client.decrypt_stream(Box::pin(asked)).await?.into_inner();
    let mut expected = Expected::default();
    while let Some(answer) = opened.message().await? {
        expected.compare(&answer.data)?;
    }
    match expected.at == mib * MIB {
        true => Ok(()),
        false => Err(Failure::other("fewer bytes came back than were sent")),
    }
}

/// The messages of EncryptStream. No two pieces are alike, so that one in another's place is noticed.
fn plaintext(
    key: &str,
    mib: usize,
) -> impl futures_util::Stream<Item = EncryptStreamRequest> + use<> {
    let start = encrypting::Start {
        key: key.to_owned(),
        ..encrypting::Start::default()
    };
    let data = (0..mib * MIB / PIECE).map(|i| encrypting::Part::Data(piece(i)));
    let parts = [encrypting::Part::Start(start)].into_iter().chain(data);
    stream::iter(parts.map(|part| EncryptStreamRequest { part: Some(part) }))
}

fn piece(i: usize) -> Bytes {
    let mut piece = vec![i as u8; PIECE];
    piece[..8].copy_from_slice(&(i as u64).to_be_bytes());
    piece.into()
}

/// What must come back next.
#[derive(Default)]
struct Expected {
    at: usize,
    piece: Bytes,
}

impl Expected {
    fn compare(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.at.is_multiple_of(PIECE) {
                self.piece = piece(self.at / PIECE);
            }
            let rest = &self.piece[self.at % PIECE..];
            let (these, others) = bytes.split_at(bytes.len().min(rest.len()));
            if these != &rest[..these.len()] {
                return Err(Failure::other("other bytes came back than were sent"));
            }
            self.at += these.len();
            bytes = others;
        }
        Ok(())
    }
}

/// One thread, one buffer: what the cipher can do on this machine when nothing else is done.
fn raw(mib: usize) -> std::result::Result<(f64, f64), aws_lc_rs::error::Unspecified> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32])?);
    let mut chunk = vec![0x5a; CHUNK];
    let chunks = mib * MIB / CHUNK;
    let began = Instant::now();
    for i in 0..chunks {
        key.seal_in_place_separate_tag(nonce(i), Aad::empty(), &mut chunk)
            .map(drop)?;
    }
    let sealed = rate(mib, began.elapsed());
    let began = Instant::now();
    for i in 0..chunks {
        let tag = key.seal_in_place_separate_tag(nonce(i), Aad::empty(), &mut chunk)?;
        key.open_in_place_separate_tag(nonce(i), Aad::empty(), tag.as_ref(), &mut chunk)?;
    }
    Ok((sealed, rate(mib, began.elapsed())))
}

fn nonce(i: usize) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 8..].copy_from_slice(&(i as u64).to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn rate(mib: usize, took: Duration) -> f64 {
    mib as f64 / took.as_secs_f64().max(1e-9)
}
