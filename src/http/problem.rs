//! Errors over HTTP: RFC 9457 problem documents with our stable reason.
//!
//! Every route answers errors through [`Problem`]. The private cause of an error is for the log, which
//! `public` and `ops` write at the boundary; it never reaches the document.

use std::{borrow::Cow, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::error::{Error, Kind, Reason};

/// An error as a response.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    reason: Reason,
    detail: Cow<'static, str>,
    retry_after: Option<Duration>,
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    reason: &'a str,
}

/// The HTTP status of a kind.
pub const fn status_of(kind: Kind) -> StatusCode {
    match kind {
        Kind::InvalidArgument => StatusCode::BAD_REQUEST,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::PermissionDenied => StatusCode::FORBIDDEN,
        // Over HTTP, an operation that does not exist is a path that does not exist.
        Kind::NotFound | Kind::Unimplemented => StatusCode::NOT_FOUND,
        // All three tell the caller to look at the current state first.
        Kind::AlreadyExists | Kind::FailedPrecondition | Kind::Aborted => StatusCode::CONFLICT,
        Kind::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl Problem {
    /// For an error that the kind's status does not fit.
    pub fn new(status: StatusCode, reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            reason,
            detail: detail.into(),
            retry_after: None,
        }
    }

    /// There is nothing under this path.
    pub fn no_such_route() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            Reason::UnknownMethod,
            "there is nothing under this path",
        )
    }

    /// The path exists for other methods; the router adds `Allow`.
    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            Reason::UnknownMethod,
            "this path does not take this method; the Allow header lists those it takes",
        )
    }
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        Self {
            status: status_of(error.kind()),
            reason: error.reason(),
            detail: error.message().to_owned().into(),
            retry_after: error.retry_delay(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = Document {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            reason: self.reason.as_str(),
        };
        // Strings and a number always serialize.
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let json = HeaderValue::from_static("application/problem+json");
        let mut response = (self.status, [(header::CONTENT_TYPE, json)], body).into_response();
        if let Some(delay) = self.retry_after {
            // Rounded up: a retry that comes too early is wasted.
            let seconds = delay.as_millis().div_ceil(1000).min(u128::from(u32::MAX));
            if let Ok(value) = HeaderValue::from_str(&seconds.to_string()) {
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
        }
        response
    }
}
