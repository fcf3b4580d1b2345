//! One bound for the request bytes that all calls together hold in memory.
//!
//! Limits per message, stream and connection multiply to more than any machine has, and a request is read before its
//! caller is known. So every byte of a body is counted from its arrival until its call has been answered; a call that
//! would go over the bound is refused with OVERLOADED, and the others go on. A stream gives back what it is done with,
//! message by message, so it counts with what it holds and not with what it has ever sent.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Code, Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{error::Reason, grpc::status::DOMAIN};

/// Bytes that may still be taken.
pub(super) struct Budget(AtomicUsize);

/// What one call has taken; given back when the call is over.
pub(super) struct Held {
    budget: Arc<Budget>,
    bytes: AtomicUsize,
    /// The most that one call may hold.
    most: usize,
}

impl Budget {
    pub(super) const fn new(bytes: usize) -> Self {
        Self(AtomicUsize::new(bytes))
    }

    fn take(&self, bytes: usize) -> bool {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
                left.checked_sub(bytes)
            })
            .is_ok()
    }
}

impl Held {
    pub(super) const fn new(budget: Arc<Budget>, most: usize) -> Self {
        Self {
            budget,
            bytes: AtomicUsize::new(0),
            most,
        }
    }

    fn take(&self, bytes: usize) -> bool {
        // Only the one reader of the body takes, so nothing comes between the look and the addition.
        let fits = bytes <= self.most.saturating_sub(self.bytes.load(Ordering::Acquire));
        let taken = fits && self.budget.take(bytes);
        if taken {
            self.bytes.fetch_add(bytes, Ordering::AcqRel);
        }
        taken
    }

    /// Of a stream: it has done with so many bytes, of those that it has taken.
    pub(super) fn give_back(&self, bytes: usize) {
        let done = self
            .bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
                Some(held.saturating_sub(bytes))
            })
            .unwrap_or_default();
        self.budget.0.fetch_add(done.min(bytes), Ordering::AcqRel);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        self.budget.0.fetch_add(bytes, Ordering::AcqRel);
    }
}

/// `body`, whose bytes `held` counts.
pub(super) fn metered(body: Body, held: Arc<Held>) -> Body {
    Body::new(Metered { body, held })
}

struct Metered {
    body: Body,
    held: Arc<Held>,
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
            && !self.held.take(data.len())
        {
            return Poll::Ready(Some(Err(overloaded())));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn overloaded() -> Status {
    metrics::counter!("claviger_requests_shed_total").increment(1);
    let mut details = ErrorDetails::new();
    details
        .set_error_info(Reason::Overloaded.as_str(), DOMAIN, [])
        .set_retry_info(Some(Duration::from_secs(1)));
    Status::with_error_details(
        Code::ResourceExhausted,
        "too many request bytes are in flight; retry later",
        details,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_given_back_and_no_more_is_given_than_there_is() {
        let budget = Arc::new(Budget::new(10));
        let first = Held::new(Arc::clone(&budget), 10);
        assert!(first.take(6));
        let second = Held::new(Arc::clone(&budget), 10);
        assert!(!second.take(5));
        assert!(second.take(4));
        drop(first);
        assert!(second.take(6));
        assert!(!second.take(1));
        drop(second);
        assert!(budget.take(10));
    }

    #[test]
    fn a_stream_gives_back_what_it_is_done_with_and_nothing_that_it_never_took() {
        let budget = Arc::new(Budget::new(10));
        let held = Held::new(Arc::clone(&budget), 6);
        assert!(held.take(6));
        assert!(!held.take(1), "more than one call may hold");
        held.give_back(4);
        assert!(held.take(4));
        held.give_back(100);
        assert!(budget.take(10) && !budget.take(1));
        drop(held);
        assert!(!budget.take(1));
    }
}
