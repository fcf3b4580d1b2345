//! The ops listener: `/livez`, `/readyz` and `/metrics`, in plain HTTP and without authentication.
//!
//! Metrics and readiness tell an attacker what to attack, so the listener stays on loopback unless the
//! configuration says otherwise by name. `/livez` answers while the process runs and looks at nothing: a restart cannot
//! bring back an HSM, but it can lock its PIN.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderValue, StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    public::finish,
    serve::{self, HttpLimits},
};
use crate::health::Health;

/// Section `ops`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpsConfig {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Allow an address that other machines reach. In a pod it has to be true, because the kubelet and Prometheus
    /// come from outside; a network policy must then keep others away.
    pub expose: bool,
    /// Connections open at the same time.
    pub max_connections: usize,
    /// `/readyz` answers 503 while a key backend is away. Default false: a backend that all replicas share would take
    /// all of them out of rotation, and with them verification, the JWKS and cached decryption, which need no backend.
    pub ready_requires_backends: bool,
}

/// The listener would be open to other machines.
#[derive(Debug, thiserror::Error)]
#[error(
    "ops.listen is {0}, which other machines reach, and it serves metrics without authentication; listen on \
     127.0.0.1 or [::1], or set ops.expose = true where a network policy protects the port"
)]
pub struct Exposed(SocketAddr);

impl Default for OpsConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            expose: false,
            max_connections: 64,
            ready_requires_backends: false,
        }
    }
}

impl OpsConfig {
    /// Refuses an address that is open to others unless `expose` says so.
    pub fn check(&self) -> Result<(), Exposed> {
        let local = self.listen.ip().to_canonical().is_loopback();
        if local || self.expose {
            Ok(())
        } else {
            Err(Exposed(self.listen))
        }
    }
}

/// The routes.
pub fn router(health: Health, metrics: PrometheusHandle) -> Router {
    let routes = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz).with_state(health))
        .route("/metrics", get(render).with_state(metrics));
    finish(routes)
}

/// Serves `router` on `listener`, which must be bound to the address that [`OpsConfig::check`] passed, until
/// `shutdown` ends.
pub async fn run(
    listener: TcpListener,
    router: Router,
    config: &OpsConfig,
    shutdown: impl Future<Output = ()>,
) {
    let limits = HttpLimits {
        header_timeout: Duration::from_secs(10),
        request_timeout: Duration::from_secs(10),
        max_body_bytes: 1024,
        drain: Duration::from_secs(2),
    };
    let stopping = CancellationToken::new();
    let ended = stopping.clone().cancelled_owned();
    let incoming = serve::plain(listener, config.max_connections, ended);
    let signal = async {
        shutdown.await;
        stopping.cancel();
    };
    serve::run(incoming, router, limits, signal).await;
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    degraded: bool,
    checks: Vec<Check>,
}

#[derive(Serialize)]
struct Check {
    name: String,
    ok: bool,
    advisory: bool,
    detail: String,
}

async fn readyz(State(health): State<Health>) -> Response {
    let snapshot = health.snapshot();
    let status = if snapshot.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let checks = snapshot.checks.into_iter().map(|check| Check {
        name: check.name,
        ok: check.ok,
        advisory: check.advisory,
        detail: check.detail,
    });
    let body = Readiness {
        ready: snapshot.ready,
        degraded: snapshot.degraded,
        checks: checks.collect(),
    };
    (status, Json(body)).into_response()
}

async fn render(State(metrics): State<PrometheusHandle>) -> Response {
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, text)], metrics.render()).into_response()
}
