//! Encrypting and decrypting, as far as they differ.

use bytes::Bytes;

use super::incoming::{Incoming, Part, Start};
use crate::{
    envelope::{Beginning, EnvelopeError, StreamOpener, StreamSealer},
    error::Result,
    gate::Permit,
    grpc::proto,
    keys::{KeySnapshot, Keys},
    model::{Action, Kid},
};

/// Encrypting or decrypting.
pub trait Way: Sized + Send + 'static {
    /// What the client sends.
    type Ask: prost::Message + Default + Send + 'static;
    /// What it gets.
    type Answer: Send + 'static;
    /// What it needs permission for.
    const ACTION: Action;
    /// What the client's bytes are, for people.
    const PAYLOAD: &'static str;

    /// What a message holds.
    fn part(ask: Self::Ask) -> Option<Part>;

    /// The most bytes that may come in, where a plaintext may have `limit`.
    fn bound(limit: u64) -> u64;

    /// A message with these bytes; with the kid when it is the first.
    fn answer(data: Bytes, kid: String) -> Self::Answer;

    /// Reads as much as it must, and begins.
    fn begin(
        keys: &Keys,
        permit: &Permit,
        key: &KeySnapshot,
        start: &Start,
        incoming: &mut Incoming<Self>,
        out: &mut Vec<u8>,
    ) -> impl Future<Output = Result<(Self, Kid)>> + Send;

    /// Takes a piece; appends what may leave now.
    fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), EnvelopeError>;

    /// The client has sent everything; appends the rest.
    fn finish(self, out: &mut Vec<u8>) -> Result<(), EnvelopeError>;
}

impl Way for StreamSealer {
    type Ask = proto::EncryptStreamRequest;
    type Answer = proto::EncryptStreamResponse;
    const ACTION: Action = Action::Encrypt;
    const PAYLOAD: &'static str = "plaintext";

    fn part(ask: Self::Ask) -> Option<Part> {
        use proto::encrypt_stream_request::Part as P;
        Some(match ask.part? {
            P::Start(start) => Part::Start(Start {
                tenant: start.tenant,
                key: start.key,
                aad: start.aad,
            }),
            P::Data(data) => Part::Data(data),
        })
    }

    fn bound(limit: u64) -> u64 {
        limit
    }

    fn answer(data: Bytes, kid: String) -> Self::Answer {
        proto::EncryptStreamResponse { data, kid }
    }

    async fn begin(
        keys: &Keys,
        permit: &Permit,
        key: &KeySnapshot,
        start: &Start,
        incoming: &mut Incoming<Self>,
        out: &mut Vec<u8>,
    ) -> Result<(Self, Kid)> {
        let begun = keys.begin_sealing(permit, key, &start.aad, out).await?;
        // A stream without any is refused before there is anything of it.
        match incoming.fill().await? {
            true => Ok(begun),
            false => Err(incoming.empty()),
        }
    }

    fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        self.push(piece, out)
    }

    fn finish(self, out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        self.finish(out)
    }
}

impl Way for StreamOpener {
    type Ask = proto::DecryptStreamRequest;
    type Answer = proto::DecryptStreamResponse;
    const ACTION: Action = Action::Decrypt;
    const PAYLOAD: &'static str = "ciphertext";

    fn part(ask: Self::Ask) -> Option<Part> {
        use proto::decrypt_stream_request::Part as P;
        Some(match ask.part? {
            P::Start(start) => Part::Start(Start {
                tenant: start.tenant,
                key: start.key,
                aad: start.aad,
            }),
            P::Data(data) => Part::Data(data),
        })
    }

    fn bound(limit: u64) -> u64 {
        limit.saturating_add(limit / 1024 + 512)
    }

    fn answer(data: Bytes, kid: String) -> Self::Answer {
        proto::DecryptStreamResponse { data, kid }
    }

    async fn begin(
        keys: &Keys,
        permit: &Permit,
        key: &KeySnapshot,
        start: &Start,
        incoming: &mut Incoming<Self>,
        _: &mut Vec<u8>,
    ) -> Result<(Self, Kid)> {
        let mut beginning = Beginning::default();
        let mut any = false;
        let header = loop {
            match incoming.fill().await? {
                true => any = true,
                false if any => return Err(EnvelopeError::Truncated.into()),
                false => return Err(incoming.empty()),
            }
            let begun = incoming.with_data(|rest| beginning.push(rest))?;
            if let Some(header) = begun {
                break header;
            }
        };
        keys.begin_opening(permit, key, &start.aad, &header, &beginning)
            .await
    }

    fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        self.push(piece, out)
    }

    fn finish(self, out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        self.finish(out)
    }
}
