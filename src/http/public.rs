//! The public listener's routes and what they share: TLS, limits, typed errors, security headers.
//!
//! `app` builds the router with [`router`] and runs it with [`run`]. Whatever is merged into it answers to
//! anybody on the network: no route here may trust the client's address or a header.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router, middleware,
    response::Response,
    routing::{MethodRouter, delete, get, post},
};
use http::{HeaderName, HeaderValue, header};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    BrokerCredentials, credentials,
    jwks::{self, JwksSource},
    metrics::{Routes, measured},
    oauth::{self, Metadata, Oauth},
    problem::Problem,
    serve::{self, HttpLimits},
};
use crate::{
    authn::{self, AcceptLimits, ClientCertificate, ReloadableTls},
    model::{Action, ROUTES, Route},
};

/// Section `public`. Times are in seconds.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublicConfig {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// `none`, the default, or `optional`: then OAuth clients may prove themselves by certificate.
    pub client_certificate: ClientCertificate,
    /// Connections open at the same time; over it, new ones are closed at once.
    pub max_connections: usize,
    /// Time a client has for its TLS handshake.
    pub handshake_timeout_seconds: u64,
    /// Time a client has to send the headers of a request, and to begin the next one on an idle connection.
    pub header_timeout_seconds: u64,
    /// Time for one request.
    pub request_timeout_seconds: u64,
    /// Bytes of one request body.
    pub max_body_bytes: usize,
    /// Time for open requests to finish when the daemon stops.
    pub drain_seconds: u64,
}

impl Default for PublicConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8444)),
            client_certificate: ClientCertificate::None,
            max_connections: 4096,
            handshake_timeout_seconds: 10,
            header_timeout_seconds: 10,
            request_timeout_seconds: 10,
            max_body_bytes: 64 << 10,
            drain_seconds: 30,
        }
    }
}

impl PublicConfig {
    /// How long a handler may take that wants to say itself that it took too long.
    pub const fn patience(&self) -> Duration {
        Duration::from_millis(self.request_timeout_seconds.saturating_mul(900))
    }
}

/// What answers on the public listener.
pub struct Site {
    /// Gives the JWK Set.
    pub jwks: JwksSource,
    /// The OAuth endpoints.
    pub oauth: Arc<Oauth>,
    /// What they are and take.
    pub metadata: Metadata,
    /// The vault.
    pub credentials: Arc<BrokerCredentials>,
}

/// Every route that is declared, and no other (R-ACL-1, R-ACL-4). Errors: nothing answers on a declared route.
pub fn router(site: &Site) -> Result<Router, String> {
    let mut router = Router::new();
    for route in ROUTES {
        let handler = handler(route, site)
            .ok_or_else(|| format!("nothing answers {} {}", route.method, route.path))?;
        router = router.route(route.path, handler);
    }
    Ok(dressed(router))
}

fn handler(route: &Route, site: &Site) -> Option<MethodRouter> {
    let oauth = Arc::clone(&site.oauth);
    match (route.method, route.action) {
        ("GET", Action::GetJwks) => Some(get(jwks::answer).with_state(Arc::clone(&site.jwks))),
        ("GET", Action::GetMetadata) => {
            let metadata = site.metadata.clone();
            Some(get(async move || metadata.answer()))
        }
        ("POST", Action::IssueClientToken) => Some(post(oauth::token).with_state(oauth)),
        ("POST", Action::IntrospectToken) => Some(post(oauth::introspect).with_state(oauth)),
        ("POST", Action::RevokeOwnToken) => Some(post(oauth::revoke).with_state(oauth)),
        (method, action) => vault_handler(method, action, Arc::clone(&site.credentials)),
    }
}

fn vault_handler(
    method: &str,
    action: Action,
    parts: Arc<BrokerCredentials>,
) -> Option<MethodRouter> {
    match (method, action) {
        ("GET", Action::ListCredentials) => Some(get(credentials::list).with_state(parts)),
        ("POST", Action::PutCredential) => Some(post(credentials::put).with_state(parts)),
        ("GET", Action::GetCredential) => Some(get(credentials::show).with_state(parts)),
        ("DELETE", Action::DeleteCredential) => Some(delete(credentials::delete).with_state(parts)),
        ("POST", Action::RevealCredential) => Some(post(credentials::reveal).with_state(parts)),
        _ => None,
    }
}

/// What all routes of the listener share: typed 404 and 405, security headers, metrics.
pub fn dressed(routes: Router) -> Router {
    let handles = Arc::new(Routes::new());
    finish(routes).layer(middleware::from_fn_with_state(handles, measured))
}

/// Serves `router` over TLS until `shutdown` ends, then drains.
pub async fn run(
    listener: TcpListener,
    tls: Arc<ReloadableTls>,
    router: Router,
    config: &PublicConfig,
    shutdown: impl Future<Output = ()>,
) {
    let limits = AcceptLimits {
        handshake_timeout: Duration::from_secs(config.handshake_timeout_seconds),
        max_connections: config.max_connections,
        ..AcceptLimits::default()
    };
    let stopping = CancellationToken::new();
    let incoming = authn::accept(listener, tls, limits, stopping.clone().cancelled_owned());
    let http = HttpLimits {
        header_timeout: Duration::from_secs(config.header_timeout_seconds),
        request_timeout: Duration::from_secs(config.request_timeout_seconds),
        max_body_bytes: config.max_body_bytes,
        drain: Duration::from_secs(config.drain_seconds),
    };
    let signal = async {
        shutdown.await;
        stopping.cancel();
    };
    serve::run(incoming, router, http, signal).await;
}

/// What every router of ours ends with.
pub(super) fn finish(router: Router) -> Router {
    router
        .fallback(|| async { Problem::no_such_route() })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .layer(middleware::map_response(security_headers))
}

async fn security_headers(mut response: Response) -> Result<Response, Infallible> {
    const HEADERS: [(HeaderName, &str); 4] = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'",
        ),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // What does not say that it may be cached may hold a token.
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    Ok(response)
}
