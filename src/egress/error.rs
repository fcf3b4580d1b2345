//! Why nothing, or nothing usable, came back.

use std::fmt;

/// Why a request has no answer. It names no URL, no header and no byte of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EgressError {
    /// The URL, or a header, cannot be sent.
    BadRequest,
    /// Plain HTTP, and the configuration does not allow it.
    PlainHttp,
    /// The host has no address.
    Unresolved,
    /// One of the host's addresses is not one that the daemon may speak to.
    RefusedAddress,
    /// No address of the host takes a connection.
    Unreachable,
    /// No TLS: the certificate does not count, or the host speaks something else.
    Tls,
    /// It took too long.
    Timeout,
    /// The answer is a redirect; none is followed.
    Redirect,
    /// The answer is longer than [`super::MAX_ANSWER`], or its headers are too many.
    TooLong,
    /// The connection broke, or the answer is not HTTP.
    Broken,
}

impl EgressError {
    /// Every error.
    pub const ALL: [Self; 10] = [
        Self::BadRequest,
        Self::PlainHttp,
        Self::Unresolved,
        Self::RefusedAddress,
        Self::Unreachable,
        Self::Tls,
        Self::Timeout,
        Self::Redirect,
        Self::TooLong,
        Self::Broken,
    ];

    /// A stable code, for rows, answers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "BAD_REQUEST",
            Self::PlainHttp => "PLAIN_HTTP",
            Self::Unresolved => "UNRESOLVED",
            Self::RefusedAddress => "REFUSED_ADDRESS",
            Self::Unreachable => "UNREACHABLE",
            Self::Tls => "TLS",
            Self::Timeout => "TIMEOUT",
            Self::Redirect => "REDIRECT",
            Self::TooLong => "TOO_LONG",
            Self::Broken => "BROKEN",
        }
    }

    /// Whether the same request may well succeed later. The others need a person.
    pub const fn is_passing(self) -> bool {
        match self {
            Self::Unresolved | Self::Unreachable | Self::Timeout | Self::Broken => true,
            Self::BadRequest
            | Self::PlainHttp
            | Self::RefusedAddress
            | Self::Tls
            | Self::Redirect
            | Self::TooLong => false,
        }
    }
}

impl fmt::Display for EgressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadRequest => "the URL or a header cannot be sent",
            Self::PlainHttp => "plain HTTP is not allowed; use https, or egress.allow_http in dev",
            Self::Unresolved => "the host name has no address",
            Self::RefusedAddress => {
                "the host has an address that is not public; egress.allow_networks can allow it"
            }
            Self::Unreachable => "the host does not take a connection",
            Self::Tls => "no TLS with the host: its certificate does not count; see egress.ca_file",
            Self::Timeout => "the host does not answer in time",
            Self::Redirect => "the host answers with a redirect, and none is followed",
            Self::TooLong => "the answer is too long",
            Self::Broken => "the connection broke, or the answer is not HTTP",
        })
    }
}

impl std::error::Error for EgressError {}
