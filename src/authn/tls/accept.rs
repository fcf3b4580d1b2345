//! The accept loop: TCP connections in, finished TLS connections out.
//!
//! Handshakes run beside each other, each with a time limit, so that a slow client delays nobody. Over
//! `max_connections` a new connection is closed at once, which sends its client to another replica; over
//! `max_handshakes` it waits in the kernel's backlog. Nothing a client does ends the loop.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, stream};
use metrics::{Counter, Gauge, counter, gauge};
use rustls::{CertificateError, Error as RustlsError};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use super::ReloadableTls;
use crate::authn::peer::{ConnectedPeer, Peer};

/// How long accepting pauses when the process or the system is out of something, such as file descriptors.
const BACKOFF: Duration = Duration::from_secs(1);

/// Bounds of one accept loop.
#[derive(Clone, Copy, Debug)]
pub struct AcceptLimits {
    /// Time a client has for its handshake.
    pub handshake_timeout: Duration,
    /// Handshakes that run at the same time.
    pub max_handshakes: usize,
    /// Connections that are open at the same time, handshakes included.
    pub max_connections: usize,
}

impl Default for AcceptLimits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            max_handshakes: 256,
            max_connections: 4096,
        }
    }
}

/// A connection whose handshake is done. It counts against `max_connections` until it is dropped.
pub struct TlsConn {
    stream: TlsStream<TcpStream>,
    peer: Arc<Peer>,
    _place: Place,
}

impl TlsConn {
    /// Who is on the other end.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }
}

/// Connections as they finish their handshakes, until `shutdown` ends or the stream is dropped; both close the listener
/// and drop unfinished handshakes. Items are never `Err`; the type is what tonic takes.
pub fn accept(
    listener: TcpListener,
    tls: Arc<ReloadableTls>,
    limits: AcceptLimits,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = io::Result<TlsConn>> + Send + Unpin {
    let acceptor = Acceptor {
        listener,
        tls,
        limits,
        places: Arc::new(Semaphore::new(limits.max_connections)),
        open: gauge!("claviger_connections_open"),
        refused: counter!("claviger_connections_refused_total"),
        handshakes: JoinSet::new(),
        shutdown: Box::pin(shutdown),
    };
    Box::pin(stream::unfold(acceptor, |mut acceptor| async move {
        let conn = acceptor.next().await?;
        Some((Ok(conn), acceptor))
    }))
}

struct Acceptor {
    listener: TcpListener,
    tls: Arc<ReloadableTls>,
    limits: AcceptLimits,
    places: Arc<Semaphore>,
    open: Gauge,
    refused: Counter,
    handshakes: JoinSet<Option<TlsConn>>,
    shutdown: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Acceptor {
    /// The next connection that is ready; nothing after the shutdown.
    async fn next(&mut self) -> Option<TlsConn> {
        loop {
            tokio::select! {
                biased;
                () = &mut self.shutdown => return None,
                Some(done) = self.handshakes.join_next() => {
                    if let Ok(Some(conn)) = done {
                        return Some(conn);
                    }
                }
                tcp = accept_tcp(&self.listener),
                    if self.handshakes.len() < self.limits.max_handshakes =>
                {
                    if let Some((tcp, addr)) = tcp {
                        self.start(tcp, addr);
                    }
                }
            }
        }
    }

    fn start(&mut self, tcp: TcpStream, addr: SocketAddr) {
        let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() else {
            self.refused.increment(1);
            tracing::warn!(%addr, limit = self.limits.max_connections, "connection refused: too many are open");
            return;
        };
        let place = Place::new(permit, self.open.clone());
        let acceptor = TlsAcceptor::from(self.tls.current());
        let limit = self.limits.handshake_timeout;
        self.handshakes.spawn(async move {
            let failure = match timeout(limit, handshake(acceptor, tcp)).await {
                Ok(Ok(stream)) => return Some(finish(stream, addr, place)),
                Ok(Err(e)) => Failure::of(&e),
                Err(_) => Failure::Timeout,
            };
            failure.report(addr);
            None
        });
    }
}

/// One connection; nothing when it was gone already, or after a pause when the system has no room for it.
async fn accept_tcp(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    match listener.accept().await {
        Ok(accepted) => Some(accepted),
        Err(e) => {
            let gone = matches!(
                e.kind(),
                io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::Interrupted
            );
            if !gone {
                tracing::error!(error = %e, pause = ?BACKOFF, "cannot accept connections");
                sleep(BACKOFF).await;
            }
            None
        }
    }
}

async fn handshake(acceptor: TlsAcceptor, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    tcp.set_nodelay(true)?;
    acceptor.accept(tcp).await
}

fn finish(stream: TlsStream<TcpStream>, addr: SocketAddr, place: Place) -> TlsConn {
    let peer = match stream.get_ref().1.peer_certificates() {
        Some([leaf, ..]) => Peer::from_certificate(leaf, addr),
        Some([]) | None => Peer::anonymous(addr),
    };
    TlsConn {
        stream,
        peer: Arc::new(peer),
        _place: place,
    }
}

/// A place under `max_connections`, and in the gauge.
struct Place {
    _permit: OwnedSemaphorePermit,
    open: Gauge,
}

impl Place {
    fn new(permit: OwnedSemaphorePermit, open: Gauge) -> Self {
        open.increment(1);
        Self {
            _permit: permit,
            open,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.decrement(1);
    }
}

/// Why a handshake failed, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Expired,
    UnknownCa,
    NoCertificate,
    Revoked,
    Protocol,
    Timeout,
    Closed,
    Other,
}

impl Failure {
    fn of(error: &io::Error) -> Self {
        use CertificateError as Bad;
        let tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<RustlsError>());
        match tls {
            Some(RustlsError::NoCertificatesPresented) => Self::NoCertificate,
            Some(RustlsError::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) => {
                Self::Expired
            }
            // A CA that has the name of ours, but not its key, shows as a bad signature.
            Some(RustlsError::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature)) => {
                Self::UnknownCa
            }
            Some(RustlsError::InvalidCertificate(Bad::Revoked)) => Self::Revoked,
            Some(
                RustlsError::PeerIncompatible(_)
                | RustlsError::NoApplicationProtocol
                | RustlsError::InvalidMessage(_),
            ) => Self::Protocol,
            Some(_) => Self::Other,
            None => Self::Closed,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::UnknownCa => "unknown_ca",
            Self::NoCertificate => "no_certificate",
            Self::Revoked => "revoked",
            Self::Protocol => "protocol",
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::Other => "other",
        }
    }

    fn report(self, addr: SocketAddr) {
        let reason = self.label();
        counter!("claviger_tls_handshake_failures_total", "reason" => reason).increment(1);
        if self == Self::Closed {
            // Load balancers probe the port this way every few seconds.
            tracing::debug!(%addr, reason, "TLS handshake failed");
        } else {
            tracing::info!(%addr, reason, "TLS handshake failed");
        }
    }
}

impl Connected for TlsConn {
    type ConnectInfo = ConnectedPeer;

    fn connect_info(&self) -> ConnectedPeer {
        ConnectedPeer(Arc::clone(&self.peer))
    }
}

impl AsyncRead for TlsConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsConn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
