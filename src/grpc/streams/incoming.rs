//! What a client sends in a stream, message by message, and every bound on it.

use std::{collections::BTreeMap, mem, time::Duration};

use bytes::{Buf, Bytes};
use prost::Message;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::{Code, Status, Streaming};

use super::Way;
use crate::{
    error::{Error, Reason, Result},
    grpc::{LimitsConfig, convert, layers::StreamBounds},
};

/// What gRPC puts before a message.
const FRAME: usize = 5;

/// What a message holds.
pub enum Part {
    Start(Start),
    Data(Bytes),
}

/// What the stream is about.
pub struct Start {
    pub tenant: String,
    pub key: String,
    pub aad: BTreeMap<String, String>,
}

/// The client's side of a stream.
pub struct Incoming<W: Way> {
    messages: Streaming<W::Ask>,
    bounds: StreamBounds,
    limits: LimitsConfig,
    /// What is left of the message at hand.
    data: Bytes,
    /// What that message counts with in the budget of bytes in flight.
    weight: usize,
    received: u64,
}

impl<W: Way> Incoming<W> {
    pub fn new(messages: Streaming<W::Ask>, bounds: StreamBounds, limits: LimitsConfig) -> Self {
        Self {
            messages,
            bounds,
            limits,
            data: Bytes::new(),
            weight: 0,
            received: 0,
        }
    }

    /// The first message. Errors: INVALID_FIELD when there is none, or another.
    pub async fn start(&mut self) -> Result<Start> {
        match self.message().await? {
            Some(Part::Start(start)) => Ok(start),
            Some(Part::Data(_)) | None => Err(convert::invalid(
                "the first message of a stream must be start",
            )),
        }
    }

    /// Waits for bytes, unless there are some already; false when there will be none.
    ///
    /// Errors: INVALID_FIELD, PAYLOAD_EMPTY or PAYLOAD_TOO_LARGE for what is not well-formed; DEADLINE_EXCEEDED,
    /// SHUTTING_DOWN, OVERLOADED.
    pub async fn fill(&mut self) -> Result<bool> {
        // Also where there is much to do and nothing to wait for.
        self.check()?;
        if !self.data.is_empty() {
            return Ok(true);
        }
        match self.message().await? {
            None => Ok(false),
            Some(Part::Start(_)) => Err(convert::invalid("start is the first message only")),
            Some(Part::Data(data)) => {
                self.count(&data)?;
                self.data = data;
                Ok(true)
            }
        }
    }

    /// At most so many of the bytes that are there.
    pub fn take(&mut self, most: usize) -> Bytes {
        self.data.split_to(most.min(self.data.len()))
    }

    /// Lets `read` take bytes off the front of those that are there.
    pub fn with_data<T>(&mut self, read: impl FnOnce(&mut &[u8]) -> T) -> T {
        let mut rest = &self.data[..];
        let value = read(&mut rest);
        let taken = self.data.len() - rest.len();
        self.data.advance(taken);
        value
    }

    /// Errors: the caller's time is over, or the daemon's.
    pub fn check(&self) -> Result<()> {
        if self
            .bounds
            .deadline()
            .is_some_and(|at| at <= Instant::now())
        {
            return Err(late());
        }
        match self.bounds.last_call().is_cancelled() {
            true => Err(shutting_down()),
            false => Ok(()),
        }
    }

    /// Nothing came.
    pub fn empty(&self) -> Error {
        Error::new(
            Reason::PayloadEmpty,
            format!("the {} is empty; at least one byte is required", W::PAYLOAD),
        )
    }

    async fn message(&mut self) -> Result<Option<Part>> {
        // The one before is done with.
        self.bounds.give_back(mem::take(&mut self.weight));
        let Some(ask) = self.wait().await? else {
            return Ok(None);
        };
        self.weight = FRAME + ask.encoded_len();
        let part = W::part(ask);
        part.map(Some)
            .ok_or_else(|| convert::invalid("every message of a stream has start or data"))
    }

    async fn wait(&mut self) -> Result<Option<W::Ask>> {
        let deadline = self.bounds.deadline();
        let out_of_time = async {
            match deadline {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let patience = Duration::from_secs(self.limits.stream_idle_seconds);
        let message = async {
            match self.messages.message().await {
                Ok(message) => Ok(message),
                Err(status) if has_left(&status) => std::future::pending().await,
                Err(status) => Err(broken(&status)),
            }
        };
        tokio::select! {
            // A message that is there is taken before anything else is thought of; timers cost nothing until then.
            biased;
            message = message => message,
            () = out_of_time => Err(late()),
            () = self.bounds.last_call().cancelled() => Err(shutting_down()),
            () = sleep(patience) => Err(idle("nothing was sent", patience)),
        }
    }

    fn count(&mut self, data: &Bytes) -> Result<()> {
        let most = self.limits.max_payload_bytes;
        if data.is_empty() {
            return Err(Error::new(
                Reason::PayloadEmpty,
                "a message without data; at least one byte is required in each",
            ));
        }
        if data.len() > most {
            let text = format!(
                "a message has {} bytes of data; at most {most} are allowed, 64 KiB to 1 MiB work best",
                data.len()
            );
            return Err(Error::new(Reason::PayloadTooLarge, text));
        }
        self.received = self.received.saturating_add(data.len() as u64);
        let bound = W::bound(self.limits.max_stream_bytes);
        if self.received > bound {
            let text = format!(
                "the {} has more than {bound} bytes, the most a stream may have",
                W::PAYLOAD
            );
            return Err(Error::new(Reason::PayloadTooLarge, text));
        }
        Ok(())
    }
}

/// Did the transport break? It then lets go of the answer too, which ends the stream; until it does there is nothing to
/// say to anybody.
fn has_left(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// What tonic and the layers say about a message that cannot be read.
fn broken(status: &Status) -> Error {
    match status.code() {
        Code::OutOfRange => Error::new(
            Reason::PayloadTooLarge,
            "a message of the stream is larger than any request may be; send 64 KiB to 1 MiB in each",
        ),
        Code::ResourceExhausted => Error::new(
            Reason::Overloaded,
            "too many request bytes are in flight; retry later",
        )
        .retry_after(Duration::from_secs(1)),
        _ => Error::new(
            Reason::MalformedRequest,
            "a message of the stream cannot be decoded",
        )
        .because(status.message().to_owned()),
    }
}

fn late() -> Error {
    Error::new(
        Reason::DeadlineExceeded,
        "the call's time is over; retry with a longer deadline",
    )
}

fn shutting_down() -> Error {
    Error::new(
        Reason::ShuttingDown,
        "the daemon is going down and this stream is not complete; begin it again, another replica will answer",
    )
    .retry_after(Duration::from_secs(1))
}

/// The client does not do its part.
pub fn idle(what: &str, patience: Duration) -> Error {
    Error::new(
        Reason::DeadlineExceeded,
        format!(
            "{what} for {} s (limits.stream_idle_seconds); begin the stream again and keep it going",
            patience.as_secs()
        ),
    )
}
