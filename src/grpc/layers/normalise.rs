//! Gives a typed reason to errors that no handler made: unknown RPCs, requests that cannot be decoded.
//!
//! Handlers' errors come from `status.rs` with their details and pass through untouched, and so do statuses that
//! only a service can mean, such as the health service's NOT_FOUND. What is left comes from tonic itself;
//! its code is replaced where `Reason` says another, because a reason has one code wherever it appears.

use http::HeaderMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::RequestId;
use crate::{error::Reason, grpc::status::DOMAIN};

/// What callers learn about failures of ours.
pub(super) const INTERNAL: &str =
    "internal error; the daemon's log has details under this request id";

/// Where a status was found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Before any message: the request was refused.
    Headers,
    /// After the handler answered: its answer could not be sent.
    Trailers,
}

/// What is known about the call.
pub(super) struct Normaliser {
    pub(super) request_id: RequestId,
    pub(super) max_request_bytes: usize,
}

impl Normaliser {
    /// The status in `headers`, if there is one, after an error without details was given some.
    pub(super) fn check(&self, headers: &mut HeaderMap, place: Place) -> Option<Code> {
        let code = Code::from_bytes(headers.get("grpc-status")?.as_bytes());
        if code == Code::Ok || headers.contains_key("grpc-status-details-bin") {
            return Some(code);
        }
        let said = Status::from_header_map(headers)?;
        // tonic's answer to a compression that we do not accept; the protocol wants exactly that code.
        if headers.contains_key("grpc-accept-encoding") {
            return Some(code);
        }
        let Some((code, reason, message)) = self.replacement(code, place, said.message()) else {
            return Some(code);
        };
        if reason == Reason::Internal {
            tracing::error!(request_id = %self.request_id, status = %said, "a call failed outside of its handler");
        }
        let status = self.status(code, reason, &message);
        // Fails only on metadata, of which it has none.
        status.add_header(headers).is_ok().then_some(code)
    }

    /// A status with its details.
    pub(super) fn status(&self, code: Code, reason: Reason, message: &str) -> Status {
        let mut details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, []);
        details.set_request_info(&*self.request_id.0, "");
        Status::with_error_details(code, message, details)
    }

    fn replacement(&self, code: Code, place: Place, said: &str) -> Option<(Code, Reason, String)> {
        let internal = Some((Code::Internal, Reason::Internal, INTERNAL.to_owned()));
        match (place, code) {
            (Place::Headers, Code::Unimplemented) => Some((
                Code::Unimplemented,
                Reason::UnknownMethod,
                "there is no such RPC; check its name against the API reference, and that client \
                 and daemon have the same version"
                    .to_owned(),
            )),
            (Place::Headers, Code::OutOfRange | Code::ResourceExhausted) => Some((
                Code::InvalidArgument,
                Reason::PayloadTooLarge,
                format!(
                    "the request is larger than {} bytes, the most this daemon accepts",
                    self.max_request_bytes
                ),
            )),
            (Place::Headers, Code::Internal) => Some((
                Code::InvalidArgument,
                Reason::MalformedRequest,
                format!("the request cannot be decoded: {said}"),
            )),
            (_, Code::Cancelled | Code::DeadlineExceeded) => Some((
                Code::DeadlineExceeded,
                Reason::DeadlineExceeded,
                "the call's time is over; retry with a longer deadline".to_owned(),
            )),
            (_, Code::Unknown) => internal,
            (Place::Trailers, Code::Internal | Code::OutOfRange | Code::ResourceExhausted) => {
                internal
            }
            // Only a service says these.
            (Place::Trailers, Code::Unimplemented)
            | (
                _,
                Code::Ok
                | Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::PermissionDenied
                | Code::FailedPrecondition
                | Code::Aborted
                | Code::Unavailable
                | Code::DataLoss
                | Code::Unauthenticated,
            ) => None,
        }
    }
}
