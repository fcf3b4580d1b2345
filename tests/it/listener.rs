//! The gRPC listener and its layers, without any of our services: unknown RPCs, broken requests, deadlines,
//! panics, abuse, drain.

use std::{convert::Infallible, future, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use claviger::{
    authn::{ClientCertificate, ConnectedPeer, Manner, ReloadableTls, accept},
    clock::Clock,
    grpc::{
        layers::{Deadline, RequestId},
        listener::{self, GrpcConfig},
    },
    model::METHODS,
    telemetry,
};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body, service::Routes};
use tonic_types::StatusExt;
use tower::Service;

use crate::pki::{Ca, Files, connect};

const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// A listener in plain HTTP/2, which `run` serves like any other connection.
struct Site {
    addr: SocketAddr,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

impl Site {
    async fn new<S>(service: S, config: GrpcConfig) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("address");
        let stop = CancellationToken::new();
        let ended = stop.clone().cancelled_owned();
        let served = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let result = listener::run(service, incoming, &config, ended).await;
            result.expect("served");
        });
        Self { addr, stop, served }
    }

    /// With the health service, whose requests may have 16 bytes.
    async fn health(config: GrpcConfig) -> Self {
        let (_, health) = tonic_health::server::health_reporter();
        let routes = Routes::new(health.max_decoding_message_size(16)).prepare();
        Self::new(routes, config).await
    }

    async fn client(&self) -> Client {
        Client::new(TcpStream::connect(self.addr).await.expect("connect")).await
    }

    async fn call(&self, path: &str, headers: &[(&'static str, &str)], message: &[u8]) -> Answer {
        self.client().await.call(path, headers, message).await
    }
}

struct Client {
    sender: SendRequest<Full<Bytes>>,
    closed: JoinHandle<bool>,
}

impl Client {
    async fn new<IO>(io: IO) -> Self
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, conn) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io))
                .await
                .expect("HTTP/2");
        let closed = tokio::spawn(async move { conn.await.is_ok() });
        Self { sender, closed }
    }

    async fn call(
        &mut self,
        path: &str,
        headers: &[(&'static str, &str)],
        message: &[u8],
    ) -> Answer {
        let mut frame = BytesMut::from(&[0][..]);
        let length = u32::try_from(message.len()).expect("short");
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(message);
        let mut request = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(frame.freeze()))
            .expect("request");
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).expect("header");
            request.headers_mut().insert(*name, value);
        }
        let response = self.sender.send_request(request).await.expect("response");
        let headers = response.headers().clone();
        let body = response.into_body().collect().await.expect("body");
        let trailers = body.trailers().cloned().unwrap_or_default();
        Answer { headers, trailers }
    }
}

struct Answer {
    headers: HeaderMap,
    trailers: HeaderMap,
}

impl Answer {
    fn status(&self) -> Status {
        Status::from_header_map(&self.trailers)
            .or_else(|| Status::from_header_map(&self.headers))
            .expect("a status")
    }

    fn request_id(&self) -> &str {
        self.headers["x-request-id"].to_str().expect("ASCII")
    }

    /// Code and reason.
    fn error(&self) -> (Code, String) {
        let status = self.status();
        let details = status.get_error_details();
        let info = details.error_info().expect("ErrorInfo");
        assert_eq!(info.domain, "claviger");
        let request = details.request_info().expect("RequestInfo");
        assert_eq!(request.request_id, self.request_id());
        (status.code(), info.reason.clone())
    }
}

#[tokio::test]
async fn an_unknown_rpc_gets_a_typed_reason() {
    let site = Site::health(GrpcConfig::default()).await;
    for path in [
        "/claviger.v1.Nothing/Here",
        "/grpc.health.v1.Health/Nope",
        "/",
        METHODS[0].path,
    ] {
        let answer = site.call(path, &[], b"").await;
        let (code, reason) = answer.error();
        assert_eq!(
            (code, reason.as_str()),
            (Code::Unimplemented, "UNKNOWN_METHOD"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn requests_that_reach_no_handler_get_a_typed_reason() {
    let site = Site::health(GrpcConfig::default()).await;
    let broken = site.call(HEALTH, &[], &[0xff]).await;
    assert_eq!(
        broken.error(),
        (Code::InvalidArgument, "MALFORMED_REQUEST".into())
    );

    let large = site.call(HEALTH, &[], &[0; 17]).await;
    assert_eq!(
        large.error(),
        (Code::InvalidArgument, "PAYLOAD_TOO_LARGE".into())
    );

    // What only the service can mean stays as it said it.
    let missing = site.call(HEALTH, &[], b"\x0a\x01x").await.status();
    assert_eq!(missing.code(), Code::NotFound);
    assert!(missing.details().is_empty());
}

#[tokio::test]
async fn the_request_id_is_the_callers_or_a_new_one() {
    let site = Site::health(GrpcConfig::default()).await;
    let ok = site.call(HEALTH, &[("x-request-id", "order-7")], b"").await;
    assert_eq!(ok.status().code(), Code::Ok);
    assert_eq!(ok.request_id(), "order-7");

    let error = site
        .call("/no/such", &[("x-request-id", "order-8")], b"")
        .await;
    assert_eq!(error.request_id(), "order-8");

    let bad = site.call(HEALTH, &[("x-request-id", "a b")], b"").await;
    let fresh = site.call(HEALTH, &[], b"").await;
    for answer in [&bad, &fresh] {
        assert_eq!(answer.request_id().len(), 36);
    }
    assert_ne!(bad.request_id(), fresh.request_id());
}

#[tokio::test]
async fn handlers_see_the_request_id_and_the_deadline() {
    let service = tower::service_fn(async |request: Request<Body>| {
        let extensions = request.extensions();
        let id = extensions.get::<RequestId>().expect("id").to_string();
        assert!(extensions.get::<Deadline>().is_some());
        Ok(Status::aborted(id).into_http())
    });
    let site = Site::new(service, GrpcConfig::default()).await;
    let answer = site.call("/a/b", &[("x-request-id", "order-7")], b"").await;
    assert_eq!(answer.status().message(), "order-7");
}

#[tokio::test]
async fn the_callers_deadline_ends_the_call() {
    let service = tower::service_fn(async |_| future::pending().await);
    let site = Site::new(service, GrpcConfig::default()).await;
    for timeout in ["1m", "1n", "0S"] {
        let answer = site.call("/a/b", &[("grpc-timeout", timeout)], b"").await;
        assert_eq!(
            answer.error(),
            (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into())
        );
    }
}

#[tokio::test]
async fn our_own_limit_ends_a_call_without_a_deadline() {
    let service = tower::service_fn(async |_| future::pending().await);
    let config = GrpcConfig {
        request_timeout_seconds: 0,
        ..GrpcConfig::default()
    };
    let site = Site::new(service, config).await;
    let answer = site.call("/a/b", &[], b"").await;
    assert_eq!(answer.error().0, Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_panic_is_an_internal_error_of_one_call() {
    let service = tower::service_fn(async |request: Request<Body>| {
        assert_ne!(request.uri().path(), "/boom/boom", "canary-in-a-panic");
        Ok(Status::aborted("fine").into_http())
    });
    let site = Site::new(service, GrpcConfig::default()).await;
    let mut client = site.client().await;
    let answer = client.call("/boom/boom", &[], b"").await;
    assert_eq!(answer.error(), (Code::Internal, "INTERNAL".into()));
    assert!(!answer.status().message().contains("canary"));
    let next = client.call("/a/b", &[], b"").await;
    assert_eq!(next.status().code(), Code::Aborted);
}

#[tokio::test]
async fn metrics_have_no_label_from_the_caller() {
    let metrics = telemetry::metrics().expect("telemetry");
    let site = Site::health(GrpcConfig::default()).await;
    site.call(HEALTH, &[], b"").await;
    site.call("/claviger.v1.Scan/canary-path", &[], b"").await;
    let text = metrics.render();
    assert!(!text.contains("canary-path"));
    for line in [
        "claviger_rpc_total{method=\"grpc.health.v1.Health/Check\",exposure=\"internal\",code=\"OK\"}",
        "claviger_rpc_total{method=\"unknown\",exposure=\"unknown\",code=\"UNIMPLEMENTED\"}",
        "claviger_rpc_seconds_bucket{method=\"unknown\",exposure=\"unknown\",le=\"0.00005\"}",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn a_stop_lets_open_calls_finish() {
    let (entered, mut entries) = tokio::sync::mpsc::unbounded_channel();
    let (release, released) = tokio::sync::watch::channel(false);
    let service = tower::service_fn(move |_: Request<Body>| {
        let (entered, mut released) = (entered.clone(), released.clone());
        async move {
            let _ = entered.send(());
            let _ = released.wait_for(|go| *go).await;
            Ok(Status::aborted("finished").into_http())
        }
    });
    let site = Site::new(service, GrpcConfig::default()).await;
    let mut client = site.client().await;
    let call = tokio::spawn(async move { (client.call("/a/b", &[], b"").await, client) });
    entries.recv().await.expect("the call is under way");

    site.stop.cancel();
    // The port closes at once, the call goes on.
    while TcpStream::connect(site.addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
    release.send(true).expect("listening");
    let (answer, client) = call.await.expect("answered");
    assert_eq!(answer.status().message(), "finished");
    site.served.await.expect("drained");
    assert!(client.closed.await.expect("task"), "a clean close");
}

#[tokio::test]
async fn a_drain_does_not_wait_for_ever() {
    let (entered, mut entries) = tokio::sync::mpsc::unbounded_channel();
    let service = tower::service_fn(move |_: Request<Body>| {
        let entered = entered.clone();
        async move {
            let _ = entered.send(());
            future::pending().await
        }
    });
    let config = GrpcConfig {
        drain_seconds: 0,
        request_timeout_seconds: 3600,
        ..GrpcConfig::default()
    };
    let site = Site::new(service, config).await;
    let mut client = site.client().await;
    let call = tokio::spawn(async move {
        let _ = client.call("/a/b", &[], b"").await;
    });
    entries.recv().await.expect("the call is under way");
    site.stop.cancel();
    site.served.await.expect("stopped");
    assert!(call.await.is_err(), "the call was cut");
}

#[tokio::test]
async fn an_old_connection_is_told_to_go() {
    let config = GrpcConfig {
        max_connection_age_seconds: 0,
        max_connection_age_grace_seconds: 3600,
        ..GrpcConfig::default()
    };
    let site = Site::health(config).await;
    let client = site.client().await;
    assert!(client.closed.await.expect("task"), "a clean close");
}

/// CVE-2025-8671: a client makes the server reset streams, 5,000 times on one connection.
#[tokio::test]
async fn provoked_resets_end_the_connection() {
    let site = Site::health(GrpcConfig::default()).await;
    let tcp = TcpStream::connect(site.addr).await.expect("connect");
    let (mut reader, mut writer) = tcp.into_split();
    let attack = tokio::spawn(async move {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        for n in 0..5000 {
            let stream = 2 * n + 1;
            bytes.extend(frame(1, 0x4, stream, &request_headers()));
            // Lifts the stream's window over 2^31 - 1.
            bytes.extend(frame(8, 0, stream, &0x7fff_ffff_u32.to_be_bytes()));
        }
        // Fails as soon as the server has had enough.
        let _ = writer.write_all(&bytes).await;
        writer
    });
    let goaway = loop {
        let mut head = [0; 9];
        if reader.read_exact(&mut head).await.is_err() {
            break None;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).expect("length")];
        reader.read_exact(&mut payload).await.expect("payload");
        if head[3] == 7 {
            break Some(payload[7]);
        }
    };
    attack.await.expect("task");
    const ENHANCE_YOUR_CALM: u8 = 11;
    assert_eq!(goaway, Some(ENHANCE_YOUR_CALM));
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// HPACK: POST, http, `/a/b`, authority `x`, content type `application/grpc`.
fn request_headers() -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04, 4];
    block.extend(b"/a/b");
    block.extend([0x01, 1, b'x', 0x0f, 0x10, 16]);
    block.extend(b"application/grpc");
    block
}

#[tokio::test]
async fn handlers_see_who_is_on_the_other_end() {
    const ALICE: &str = "spiffe://example.org/alice";
    let ca = Ca::new("test CA");
    let files = Files::new(&ca, &ca.server());
    let tls = ReloadableTls::new(
        files.config(),
        Clock::System,
        Manner::grpc(ClientCertificate::Required),
    )
    .expect("TLS");
    let service = tower::service_fn(async |request: Request<Body>| {
        let peer = request.extensions().get::<ConnectedPeer>().expect("peer");
        Ok::<_, Infallible>(Status::aborted(peer.identities[0].as_str()).into_http::<Body>())
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("address");
    let stop = CancellationToken::new();
    let config = GrpcConfig::default();
    let ended = stop.clone().cancelled_owned();
    let incoming = accept(listener, Arc::new(tls), config.accept_limits(), ended);
    let served = tokio::spawn(async move {
        let result = listener::run(service, incoming, &config, future::pending()).await;
        result.expect("served");
    });

    let alice = ca.client_config(Some(&ca.client(ALICE)));
    let mut client = Client::new(connect(addr, alice).await.expect("handshake")).await;
    let answer = client.call("/a/b", &[], b"").await;
    assert_eq!(answer.status().message(), ALICE);

    // The end of the accept loop is a shutdown too.
    stop.cancel();
    served.await.expect("drained");
    assert!(client.closed.await.expect("task"), "a clean close");
}

#[test]
fn the_section_has_safe_defaults_and_refuses_unknown_fields() {
    let config: GrpcConfig = serde_json::from_str("{\"max_concurrent_streams\": 7}").expect("ok");
    assert_eq!(config.max_concurrent_streams, 7);
    assert!(!config.reflection);
    assert_eq!(
        config.accept_limits().handshake_timeout,
        Duration::from_secs(10)
    );
    assert!(serde_json::from_str::<GrpcConfig>("{\"max_streams\": 7}").is_err());
}
