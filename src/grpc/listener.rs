//! The gRPC listener: tonic's server with every bound it leaves open set, and a drain that ends.
//!
//! `app` calls [`run`] with the connections of `authn::accept`. Three things tonic 0.14 does not do are done
//! here: `max_connection_age_grace` makes it close connections without the GOAWAY that should come first, its request
//! timeout answers CANCELLED from outside every layer (`layers` has the deadline instead), and its drain waits for ever
//! for a client that keeps a stream open.

mod bounded;

use std::{io, net::SocketAddr, pin::pin, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use http::{Request, Response};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    transport::{Server, server::Connected},
};
use tower::Service;

use self::bounded::Bounded;
use super::layers::RpcLayer;
use crate::authn::{AcceptLimits, ClientCertificate};

/// Streams that a client may open and reset before we close its connection (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 32;
/// Streams that a client may make *us* reset before we close its connection (CVE-2025-8671). tonic lifts hyper's
/// own limit unless told otherwise.
const MAX_PROVOKED_RESETS: usize = 256;
/// Flow control: a 4 MiB payload crosses a link of 1 ms in a few round trips, and one client cannot make
/// us buffer more than a connection's window.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// Section `grpc`. Times are in seconds.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpcConfig {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// `required`, the default, or `optional`: then tokens and API keys may come without a certificate, as far as
    /// `authn.accept` takes them.
    pub client_certificate: ClientCertificate,
    /// Serve the reflection API, which lists every RPC to whoever can connect.
    pub reflection: bool,
    /// Connections open at the same time; over it, new ones are closed at once.
    pub max_connections: usize,
    /// TLS handshakes under way at the same time; over it, new ones wait.
    pub max_handshakes: usize,
    /// Time a client has for its TLS handshake.
    pub handshake_timeout_seconds: u64,
    /// Calls open at the same time on one connection, as announced to the client.
    pub max_concurrent_streams: u32,
    /// Calls handled at the same time on one connection. Calls over it wait outside of their deadline, so keep it at
    /// `max_concurrent_streams` unless handlers are known to be short.
    pub concurrency_per_connection: usize,
    /// Bytes of one request message.
    pub max_request_bytes: usize,
    /// Bytes of all requests together that are read and not answered yet; calls over it are refused.
    pub max_in_flight_bytes: usize,
    /// Time for one call; a shorter `grpc-timeout` of the client wins.
    pub request_timeout_seconds: u64,
    /// Age at which a client is told to reconnect, so that load spreads over new replicas and new CA
    /// lists reach everybody.
    pub max_connection_age_seconds: u64,
    /// Time after that for open calls to finish.
    pub max_connection_age_grace_seconds: u64,
    /// Pause between HTTP/2 pings on a connection.
    pub keepalive_interval_seconds: u64,
    /// Time for the answer to a ping, after which the connection is dead.
    pub keepalive_timeout_seconds: u64,
    /// Time for open calls to finish when the daemon stops.
    pub drain_seconds: u64,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        let accept = AcceptLimits::default();
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8443)),
            client_certificate: ClientCertificate::Required,
            reflection: false,
            max_connections: accept.max_connections,
            max_handshakes: accept.max_handshakes,
            handshake_timeout_seconds: accept.handshake_timeout.as_secs(),
            max_concurrent_streams: 256,
            concurrency_per_connection: 256,
            max_request_bytes: 8 << 20,
            max_in_flight_bytes: 128 << 20,
            request_timeout_seconds: 10,
            max_connection_age_seconds: 30 * 60,
            max_connection_age_grace_seconds: 30,
            keepalive_interval_seconds: 30,
            keepalive_timeout_seconds: 10,
            drain_seconds: 30,
        }
    }
}

impl GrpcConfig {
    /// The bounds of this listener's accept loop.
    pub const fn accept_limits(&self) -> AcceptLimits {
        AcceptLimits {
            handshake_timeout: Duration::from_secs(self.handshake_timeout_seconds),
            max_handshakes: self.max_handshakes,
            max_connections: self.max_connections,
        }
    }
}

/// Serves `service` on `incoming` until `shutdown` ends, then drains: GOAWAY to everybody, open calls finish, and
/// after `drain_seconds` what is left is cut; streams are told so after half of it. The end of `incoming` is a shutdown
/// too.
pub async fn run<S, B, I, IO>(
    service: S,
    incoming: I,
    config: &GrpcConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<tonic::codegen::StdError> + Send + 'static,
    B: http_body::Body<Data = bytes::Bytes> + Send + Unpin + 'static,
    B::Error: Into<tonic::codegen::StdError>,
    I: Stream<Item = io::Result<IO>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let stopping = CancellationToken::new();
    let cut = CancellationToken::new();
    let last_call = CancellationToken::new();
    let lifetime = Duration::from_secs(
        config
            .max_connection_age_seconds
            .saturating_add(config.max_connection_age_grace_seconds),
    );
    let ended = stopping.clone();
    let incoming = incoming
        .map(|io| io.map(|io| Bounded::new(io, lifetime, cut.clone())))
        .chain(stream::poll_fn(move |_| {
            ended.cancel();
            std::task::Poll::Ready(None)
        }));
    let signal = async {
        shutdown.await;
        stopping.cancel();
    };

    let mut serving = pin!(
        server(config)
            .layer(RpcLayer::new(config, last_call.clone()))
            .serve_with_incoming_shutdown(service, incoming, signal)
    );
    let overdue = async {
        stopping.cancelled().await;
        let half = Duration::from_secs(config.drain_seconds) / 2;
        sleep(half).await;
        // A stream may have hours to go. It learns why it ends, and its end is recorded, while there is time for that.
        last_call.cancel();
        sleep(half).await;
    };
    tokio::select! {
        result = &mut serving => return result,
        () = overdue => {}
    }
    tracing::warn!(
        seconds = config.drain_seconds,
        "calls are still open after the drain period; cutting their connections"
    );
    cut.cancel();
    serving.await
}

/// tonic's server with every limit set. `tcp_nodelay` and TLS are the accept loop's; no `timeout`, because `layers`
/// keeps the deadline; no `max_connection_age_grace`, because [`Bounded`] keeps it.
fn server(config: &GrpcConfig) -> Server {
    Server::builder()
        .max_concurrent_streams(config.max_concurrent_streams)
        .concurrency_limit_per_connection(config.concurrency_per_connection)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_PROVOKED_RESETS))
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(Duration::from_secs(config.keepalive_interval_seconds)))
        .http2_keepalive_timeout(Some(Duration::from_secs(config.keepalive_timeout_seconds)))
        .max_connection_age(Duration::from_secs(config.max_connection_age_seconds))
}
