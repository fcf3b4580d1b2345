//! What bounds a call whose messages come and go one by one.

use std::sync::Arc;

use http::HeaderMap;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{budget::Held, deadline};

/// Found in the extensions of every request; streams need it.
#[derive(Clone)]
pub struct StreamBounds {
    deadline: Option<Instant>,
    held: Arc<Held>,
    last_call: Arc<CancellationToken>,
}

impl StreamBounds {
    pub(super) fn new(
        headers: &HeaderMap,
        held: Arc<Held>,
        last_call: Arc<CancellationToken>,
    ) -> Self {
        Self {
            deadline: deadline::asked(headers).map(|asked| Instant::now() + asked),
            held,
            last_call,
        }
    }

    /// When the caller stops waiting, if it has said so.
    pub const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Cancelled when the daemon goes down and can wait no longer.
    pub fn last_call(&self) -> &CancellationToken {
        &self.last_call
    }

    /// A message with so many bytes is not held any more.
    pub fn give_back(&self, bytes: usize) {
        self.held.give_back(bytes);
    }
}
