//! Answers of the OAuth endpoints: JSON that nobody may store, errors as RFC 6749 section 5.2 has them.
//!
//! An error says what a well-meaning client needs to correct its request, and nothing about which part of a credential
//! was wrong. Texts are constants: nothing of the request comes back.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::{
    clients::Denial,
    error::{Error, Kind},
};

/// A request that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    status: StatusCode,
    error: &'static str,
    description: &'static str,
    retry_after: Option<u64>,
}

#[derive(Serialize)]
struct Body {
    error: &'static str,
    error_description: &'static str,
}

/// When to try again if nobody knows better, in seconds.
const RETRY_AFTER: u64 = 1;

impl Refused {
    const fn new(status: StatusCode, error: &'static str, description: &'static str) -> Self {
        Self {
            status,
            error,
            description,
            retry_after: None,
        }
    }

    /// The request is malformed.
    pub const fn invalid_request(description: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", description)
    }

    /// The client is none. One answer, whatever is wrong with its credential.
    pub const fn invalid_client() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "invalid_client",
            "client authentication failed",
        )
    }

    /// The grant is not client_credentials.
    pub const fn unsupported_grant_type() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "unsupported_grant_type",
            "the only grant_type here is client_credentials",
        )
    }

    /// Too many credentials that do not count came from here.
    pub const fn too_many_failures(retry_after: u64) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "invalid_client",
                "too many failed authentications; wait, and check the credential",
            )
        }
    }

    /// It took too long.
    pub const fn too_slow() -> Self {
        Self {
            retry_after: Some(RETRY_AFTER),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "temporarily_unavailable",
                "the answer took too long; retry later",
            )
        }
    }

    /// The text of `error`.
    pub const fn code(&self) -> &'static str {
        self.error
    }

    /// Is it not the client's fault?
    pub fn is_ours(&self) -> bool {
        self.status.is_server_error()
    }

    /// As it is written in the audit log.
    pub fn reason(&self) -> &'static str {
        match self.error {
            "invalid_request" => "INVALID_REQUEST",
            "invalid_client" => "INVALID_CLIENT",
            _ => "REFUSED",
        }
    }
}

impl From<Denial> for Refused {
    fn from(denial: Denial) -> Self {
        let bad = |error, description| Self::new(StatusCode::BAD_REQUEST, error, description);
        match denial {
            Denial::Scope => bad(
                "invalid_scope",
                "scope is malformed, or asks for more than the client and its owner hold",
            ),
            Denial::Audience => bad(
                "invalid_target",
                "the client may not have tokens for this audience",
            ),
            Denial::NoAudience => bad(
                "unauthorized_client",
                "no audience is configured for API keys that belong to no client",
            ),
        }
    }
}

impl From<&Error> for Refused {
    fn from(error: &Error) -> Self {
        let unavailable = |description| Self {
            retry_after: Some(retry_after(error)),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "temporarily_unavailable",
                description,
            )
        };
        match error.kind() {
            Kind::InvalidArgument | Kind::AlreadyExists => {
                Self::invalid_request("a parameter is malformed")
            }
            Kind::Unauthenticated => Self::invalid_client(),
            Kind::PermissionDenied | Kind::NotFound | Kind::Unimplemented => Self::new(
                StatusCode::BAD_REQUEST,
                "unauthorized_client",
                "the client may not do this",
            ),
            Kind::FailedPrecondition => {
                unavailable("the tenant has no key that signs tokens at this moment")
            }
            Kind::Aborted
            | Kind::ResourceExhausted
            | Kind::Unavailable
            | Kind::DeadlineExceeded => {
                unavailable("a part that is needed does not answer; retry later")
            }
            Kind::Internal => Self {
                retry_after: Some(RETRY_AFTER),
                ..Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "server_error",
                    "internal error; the daemon's log has details",
                )
            },
        }
    }
}

/// In seconds, rounded up: a retry that comes too early is wasted.
fn retry_after(error: &Error) -> u64 {
    let delay = error.retry_delay().unwrap_or_default();
    u64::try_from(delay.as_millis().div_ceil(1000)).map_or(RETRY_AFTER, |s| s.max(RETRY_AFTER))
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = Body {
            error: self.error,
            error_description: self.description,
        };
        let mut response = json(self.status, &body);
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"claviger\", charset=\"UTF-8\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// JSON that no cache keeps (RFC 6749 section 5.1).
pub fn json(status: StatusCode, body: &impl Serialize) -> Response {
    // Texts, numbers and lists of them always serialize.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
        (header::PRAGMA, "no-cache"),
    ]
    .map(|(name, value)| (name, HeaderValue::from_static(value)));
    (status, headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    #[test]
    fn errors_become_those_of_rfc_6749() {
        for (reason, status, code) in [
            (Reason::InvalidField, 400, "invalid_request"),
            (Reason::CredentialInvalid, 401, "invalid_client"),
            (Reason::PermissionDenied, 400, "unauthorized_client"),
            (Reason::KeyCompromised, 503, "temporarily_unavailable"),
            (Reason::Overloaded, 503, "temporarily_unavailable"),
            (Reason::DatabaseUnavailable, 503, "temporarily_unavailable"),
            (Reason::ReplicaStale, 503, "temporarily_unavailable"),
            (Reason::Internal, 500, "server_error"),
        ] {
            let error = Error::new(reason, "text").because("10.0.0.7");
            let response = Refused::from(&error).into_response();
            assert_eq!(response.status(), status, "{reason:?}");
            assert_eq!(Refused::from(&error).code(), code, "{reason:?}");
            let has = |name| response.headers().contains_key(name);
            assert_eq!(has(header::RETRY_AFTER), status >= 500, "{reason:?}");
            assert_eq!(has(header::WWW_AUTHENTICATE), status == 401, "{reason:?}");
            assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
            assert_eq!(response.headers()[header::PRAGMA], "no-cache");
        }
    }
}
