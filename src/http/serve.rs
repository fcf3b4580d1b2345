//! Runs a router on a stream of connections, HTTP/1.1 or HTTP/2, within limits, and drains it.
//!
//! Both HTTP listeners end here. hyper bounds neither the time for headers nor what a client may provoke unless told;
//! everything it leaves open is set below. TLS, if any, is done before.

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, response::IntoResponse};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tower::ServiceExt;

use super::problem::Problem;
use crate::error::Reason;

/// How long accepting pauses when the process or the system is out of something.
const BACKOFF: Duration = Duration::from_secs(1);
/// Age at which a connection is told to end: clients reconnect and meet new replicas and certificates.
const MAX_AGE: Duration = Duration::from_secs(600);
const MAX_HEADER_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
const MAX_STREAMS: u32 = 64;
/// Flow control: what one client can make us hold is a connection's window, not a body per stream.
const STREAM_WINDOW: u32 = 32 << 10;
const CONNECTION_WINDOW: u32 = 64 << 10;
const MAX_RESETS: usize = 64;

/// Bounds of one listener.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Time to send the headers of a request, and to begin the next one.
    pub header_timeout: Duration,
    /// Time for one request.
    pub request_timeout: Duration,
    /// Bytes of one request body.
    pub max_body_bytes: usize,
    /// Time for open requests to finish after the shutdown.
    pub drain: Duration,
}

/// Serves `router` on `incoming` until `shutdown` or `incoming` ends; then open requests finish within `limits.drain`,
/// and what is left is cut. Handlers find the connection's `ConnectInfo` in the request's extensions.
pub async fn run<I, IO>(
    incoming: I,
    router: Router,
    limits: HttpLimits,
    shutdown: impl Future<Output = ()>,
) where
    I: Stream<Item = io::Result<IO>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let stopping = CancellationToken::new();
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    {
        // Dropped at the end of the block: the port closes before the drain begins.
        let mut incoming = pin!(incoming);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => {}
                next = incoming.next() => match next {
                    Some(Ok(io)) => {
                        let stop = stopping.clone();
                        connections.spawn(connection(io, router.clone(), limits, stop));
                    }
                    Some(Err(e)) => tracing::debug!(error = %e, "connection lost before it began"),
                    None => break,
                },
            }
        }
    }
    stopping.cancel();
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.drain, drained).await.is_err() {
        tracing::warn!("requests are still open after the drain period; cutting them");
    }
}

async fn connection<IO>(io: IO, router: Router, limits: HttpLimits, stopping: CancellationToken)
where
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let info = io.connect_info();
    let begun = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&begun);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        seen.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(info.clone());
        let router = router.clone();
        async move {
            let framing = Framing::of(&request);
            let answer = match framing {
                Framing::Ambiguous => two_lengths(),
                Framing::Plain | Framing::Chunked => answer(router, request, limits).await,
            };
            Ok::<_, Infallible>(framing.ended(answer))
        }
    });
    // hyper's header timeout does not cover the bytes that tell HTTP/1.1 from HTTP/2, nor HTTP/2's preface.
    let silent = async {
        sleep(limits.header_timeout).await;
        if begun.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let builder = builder(limits);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(io), service));
    let result = tokio::select! {
        result = &mut serving => result,
        () = silent => return,
        () = async { tokio::select! { () = stopping.cancelled() => {}, () = sleep(MAX_AGE) => {} } } => {
            serving.as_mut().graceful_shutdown();
            match timeout(limits.drain, serving).await {
                Ok(result) => result,
                Err(_) => return,
            }
        }
    };
    if let Err(e) = result {
        tracing::debug!(error = e, "HTTP connection failed");
    }
}

async fn answer(router: Router, request: Request<Incoming>, limits: HttpLimits) -> Response<Body> {
    let request = request.map(|body| Body::new(Limited::new(body, limits.max_body_bytes)));
    match timeout(limits.request_timeout, router.oneshot(request)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(never)) => match never {},
        Err(_) => Problem::new(
            StatusCode::GATEWAY_TIMEOUT,
            Reason::DeadlineExceeded,
            "the request's time is over",
        )
        .into_response(),
    }
}

fn two_lengths() -> Response<Body> {
    Problem::new(
        StatusCode::BAD_REQUEST,
        Reason::MalformedRequest,
        "the request has a Content-Length and a Transfer-Encoding",
    )
    .into_response()
}

/// How the end of an HTTP/1.1 request's body is found. Where a proxy in front of us could find another end, what follows
/// could be a request that it never saw (RFC 9112 section 11.2): nothing that follows is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// By its length, or as a stream of HTTP/2.
    Plain,
    /// By Transfer-Encoding. hyper hides a Content-Length that comes after it, so there may have been one.
    Chunked,
    /// By both.
    Ambiguous,
}

impl Framing {
    fn of<B>(request: &Request<B>) -> Self {
        let has = |name| request.headers().contains_key(name);
        match (has(header::TRANSFER_ENCODING), has(header::CONTENT_LENGTH)) {
            (false, _) => Self::Plain,
            (true, false) => Self::Chunked,
            (true, true) => Self::Ambiguous,
        }
    }

    fn ended(self, mut answer: Response<Body>) -> Response<Body> {
        if self != Self::Plain {
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(header::CONNECTION, close);
        }
        answer
    }
}

fn builder(limits: HttpLimits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.header_timeout)
        .keep_alive_timeout(limits.header_timeout)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_RESETS)
        .max_header_list_size(16 << 10);
    builder
}

/// Connections of a listener without TLS, until `shutdown` ends. Over `max_connections`, new ones wait.
pub fn plain(
    listener: TcpListener,
    max_connections: usize,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = io::Result<PlainConn>> + Send {
    let places = Arc::new(Semaphore::new(max_connections));
    let accepting = stream::unfold((listener, places), |(listener, places)| async move {
        let place = Arc::clone(&places).acquire_owned().await.ok()?;
        let accepted = listener.accept().await;
        if let Err(e) = &accepted {
            tracing::error!(error = %e, pause = ?BACKOFF, "cannot accept connections");
            sleep(BACKOFF).await;
        }
        let conn = accepted.map(|(tcp, _)| PlainConn { tcp, _place: place });
        Some((conn, (listener, places)))
    });
    accepting.take_until(shutdown)
}

/// A TCP connection that counts against `max_connections` until it is dropped.
pub struct PlainConn {
    tcp: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl Connected for PlainConn {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.tcp.connect_info()
    }
}

impl AsyncRead for PlainConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for PlainConn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
