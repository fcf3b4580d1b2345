//! The boundary error as a gRPC status: one exhaustive match, and typed details.
//!
//! Details: `ErrorInfo` with the stable reason, `RequestInfo` with the request id, `RetryInfo` where waiting helps. The
//! private cause is logged here, once, and goes nowhere else.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::proto;
use crate::error::{Error, Kind};

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

/// Failures of ours and of our parts; what callers did wrong is in the audit log and the metrics.
fn log(error: &Error) {
    match error.kind() {
        Kind::Internal => tracing::error!(?error, "call failed"),
        Kind::Unavailable | Kind::DeadlineExceeded | Kind::ResourceExhausted => {
            tracing::warn!(?error, "call failed");
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
