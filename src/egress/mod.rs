//! R1: the way out: one bounded HTTPS request to an address that the daemon may speak to.
//!
//! Probes of credentials, webhooks and readers of secret managers send through here and nowhere else, because their URLs
//! come from people and configuration: a name is resolved once, every address it has is checked, and a checked address
//! is the one connected to. It never follows a redirect, never takes a proxy from the environment, keeps no connection
//! open, and its errors tell nothing of the request or the answer.

mod address;
mod config;
mod error;
mod send;
#[cfg(test)]
mod tests;
mod tls;

use std::{borrow::Cow, sync::Arc, time::Duration};

use http::{HeaderMap, Method};
use rustls::ClientConfig;
use tracing::{Instrument, field};
use zeroize::Zeroizing;

pub use address::Network;
pub use config::EgressConfig;
pub use error::EgressError;

use crate::trace;

/// Bytes of an answer's body at most.
pub const MAX_ANSWER: usize = 1 << 20;

/// Sends requests as the configuration allows.
pub struct Egress {
    tls: Arc<ClientConfig>,
    allowed: Vec<Network>,
    allow_http: bool,
    longest: Duration,
}

/// What to send. Its parts may be secrets, so it cannot be printed.
pub struct Request {
    /// The method.
    pub method: Method,
    /// An absolute `https://` URL without user information; `http://` where the configuration allows it. It may hold a
    /// secret: no error names it.
    pub url: Zeroizing<String>,
    /// Names and values of headers. `Host`, `Content-Length` and `Accept-Encoding` are set here.
    pub headers: Vec<(Cow<'static, str>, Zeroizing<String>)>,
    /// The body; empty for none.
    pub body: Zeroizing<Vec<u8>>,
    /// For everything from the first look-up to the last byte; `[egress] max_seconds` bounds it.
    pub patience: Duration,
}

impl Request {
    /// A request without headers and body that may take ten seconds.
    pub fn new(method: Method, url: impl Into<String>) -> Self {
        Self {
            method,
            url: Zeroizing::new(url.into()),
            headers: Vec::new(),
            body: Zeroizing::default(),
            patience: Duration::from_secs(10),
        }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        self.headers
            .push((name.into(), Zeroizing::new(value.into())));
        self
    }

    /// With this body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Zeroizing::new(body.into());
        self
    }

    /// With this time for all of it.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

/// What came back, whatever its status, redirects excepted. It may hold secrets, so it cannot be printed.
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as it was sent: at most [`MAX_ANSWER`] bytes.
    pub body: Zeroizing<Vec<u8>>,
}

impl Answer {
    /// A status of 200 to 299.
    pub const fn is_success(&self) -> bool {
        matches!(self.status, 200..=299)
    }
}

impl Egress {
    /// Errors: `ca_file` cannot be read, or holds no certificate.
    pub fn new(config: &EgressConfig) -> Result<Self, String> {
        Ok(Self {
            tls: Arc::new(tls::config(config.ca_file.as_deref())?),
            allowed: config.allow_networks.clone(),
            allow_http: config.allow_http,
            longest: config.longest(),
        })
    }

    /// Sends one request and reads all of its answer. Nothing is tried twice.
    pub async fn send(&self, request: Request) -> Result<Answer, EgressError> {
        let patience = request.patience.min(self.longest);
        // Neither where it goes nor what comes back: both may be secrets. Nor is the trace told to whoever is asked.
        let step = trace::step!(
            "egress",
            otel.kind = "client",
            otel.status_code = field::Empty,
            http.request.method = request.method.as_str(),
            http.response.status_code = field::Empty,
        );
        let sent = send::send(self, request, patience);
        let answer = tokio::time::timeout(patience, sent).instrument(step.clone());
        let answer = answer.await.unwrap_or(Err(EgressError::Timeout));
        match &answer {
            Ok(answer) => step.record("http.response.status_code", answer.status),
            Err(_) => step.record("otel.status_code", "ERROR"),
        };
        answer
    }
}
