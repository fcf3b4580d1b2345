//! The boundary error as a gRPC status: one exhaustive match, and typed details.
//!
//! Details: `ErrorInfo` with the stable reason, `RequestInfo` with the request id, `RetryInfo` where waiting helps. The
//! private cause is logged here, once, and goes nowhere else.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::proto;
use crate::error::{Error, Kind, Reason};

/// `ErrorInfo.domain` of every error.
pub const DOMAIN: &str = "claviger";

/// The code of a class of failures.
pub const fn code_of(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Aborted => Code::Aborted,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::Internal => Code::Internal,
    }
}

/// The status that a caller gets.
pub fn status(error: &Error, request_id: &str) -> Status {
    log(error);
    let mut details = ErrorDetails::new();
    details
        .set_error_info(error.reason().as_str(), DOMAIN, HashMap::new())
        .set_request_info(request_id, "");
    if let Some(delay) = error.retry_delay() {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code_of(error.kind()), error.message(), details)
}

/// The failure of one item of a batch.
pub fn item_error(error: &Error) -> proto::ItemError {
    log(error);
    proto::ItemError {
        code: code_of(error.kind()) as i32,
        reason: error.reason().as_str().to_owned(),
        message: error.message().to_owned(),
    }
}

/// The shortest time between two warnings for the same reason.
const SILENCE: Duration = Duration::from_secs(5);

/// One for the process, as its log is.
static QUIET: LazyLock<Quiet> = LazyLock::new(Quiet::default);

/// Lets one line in `SILENCE` through for each reason, so that a device that is away cannot flood the log.
#[derive(Default)]
struct Quiet(Mutex<HashMap<Reason, Said>>);

/// When something was said last, and how often it was not said since.
struct Said {
    at: Instant,
    unsaid: u64,
}

impl Quiet {
    /// May this be said at `now`? Then how often it was not said since the last time.
    fn speak(&self, reason: Reason, now: Instant) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match said.get_mut(&reason) {
            Some(said) if now.saturating_duration_since(said.at) < SILENCE => {
                said.unsaid += 1;
                None
            }
            Some(said) => {
                said.at = now;
                Some(std::mem::take(&mut said.unsaid))
            }
            None => {
                said.insert(reason, Said { at: now, unsaid: 0 });
                Some(0)
            }
        }
    }
}

/// Failures of ours and of our parts; what callers did wrong is in the audit log and the metrics.
fn log(error: &Error) {
    match error.kind() {
        Kind::Internal => tracing::error!(?error, "call failed"),
        // An outage fails every call: the metrics count them, and one in a while says why.
        Kind::Unavailable | Kind::DeadlineExceeded | Kind::ResourceExhausted => {
            match QUIET.speak(error.reason(), Instant::now()) {
                Some(unsaid) => tracing::warn!(?error, unsaid, "call failed"),
                None => tracing::debug!(?error, "call failed"),
            }
        }
        Kind::InvalidArgument
        | Kind::Unauthenticated
        | Kind::PermissionDenied
        | Kind::NotFound
        | Kind::AlreadyExists
        | Kind::FailedPrecondition
        | Kind::Aborted
        | Kind::Unimplemented => tracing::debug!(?error, "call refused"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_says_so_now_and_then_and_how_often_it_did_not() {
        let (quiet, began) = (Quiet::default(), Instant::now());
        let (device, queue) = (Reason::BackendUnavailable, Reason::Overloaded);
        assert_eq!(quiet.speak(device, began), Some(0));
        for _ in 0..1000 {
            assert_eq!(quiet.speak(device, began + SILENCE / 2), None);
        }
        // One trouble does not hide another.
        assert_eq!(quiet.speak(queue, began + SILENCE / 2), Some(0));
        assert_eq!(quiet.speak(device, began + SILENCE), Some(1000));
        assert_eq!(quiet.speak(device, began + SILENCE), None);
    }
}
