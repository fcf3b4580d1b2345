//! A webhook receiver over TLS, on loopback, that remembers what it was sent.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{ServerConfig, crypto::aws_lc_rs};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use crate::{
    daemon::Daemon,
    pki::{dns, named},
};

/// What the receiver does with one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Take,
    Fail,
    Refuse,
    Redirect,
    Hang,
}

/// One delivery, as it came.
#[derive(Clone, Debug)]
pub struct Received {
    pub id: String,
    pub timestamp: String,
    pub signature: String,
    pub body: Bytes,
}

#[derive(Default)]
struct State {
    manners: VecDeque<Manner>,
    received: Vec<Received>,
}

pub struct Receiver {
    pub port: u16,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

impl Receiver {
    /// One that does these things first and takes everything after.
    pub async fn start(daemon: &Daemon, manners: &[Manner]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(Mutex::new(State {
            manners: manners.iter().copied().collect(),
            received: Vec::new(),
        }));
        let acceptor = acceptor(daemon);
        let shared = Arc::clone(&state);
        let server = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else {
                        return;
                    };
                    let answer = service_fn(move |request| answer(request, Arc::clone(&state)));
                    let served = http1::Builder::new().serve_connection(TokioIo::new(tls), answer);
                    let _ = served.await;
                });
            }
        });
        Self {
            port,
            state,
            server,
        }
    }

    /// Everything that was taken or refused so far.
    pub fn received(&self) -> Vec<Received> {
        self.state.lock().expect("no panic").received.clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn acceptor(daemon: &Daemon) -> TlsAcceptor {
    let loopback = rcgen::SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    let leaf = daemon
        .ca
        .issue(named("receiver", [dns("localhost"), loopback]));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der.clone()], leaf.private_key())
        .expect("a certificate");
    TlsAcceptor::from(Arc::new(config))
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let header = |name: &str| {
        let value = request.headers().get(name);
        let value = value.and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
    let signature = header("webhook-signature");
    let body = request.into_body().collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let manner = {
        let mut state = state.lock().expect("no panic");
        state.received.push(Received {
            id,
            timestamp,
            signature,
            body,
        });
        state.manners.pop_front().unwrap_or(Manner::Take)
    };
    let answer = Response::builder();
    let answer = match manner {
        Manner::Take => answer.status(204),
        Manner::Fail => answer.status(503),
        Manner::Refuse => answer.status(400),
        Manner::Redirect => answer
            .status(302)
            .header("location", "https://127.0.0.1:1/"),
        Manner::Hang => std::future::pending().await,
    };
    Ok(answer.body(Full::default()).expect("an answer"))
}
