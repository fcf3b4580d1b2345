//! The HTTP listeners: JWKS over TLS, liveness, readiness and metrics in plain HTTP.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    routing::{self, post},
};
use bytes::Bytes;
use claviger::{
    authn::{ClientCertificate, Manner, ReloadableTls},
    clock::Clock,
    error::{Error, Kind, Reason},
    health::Health,
    http::{JwksSource, OpsConfig, PublicConfig, jwks, ops, problem, public},
    telemetry,
    tokens::JwksDocument,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::pki::{Ca, Files, connect};

const JWKS: &str = "/.well-known/jwks.json";

/// The public listener.
struct Site {
    ca: Ca,
    _files: Files,
    addr: SocketAddr,
    served: JoinHandle<()>,
    stop: CancellationToken,
}

impl Site {
    async fn new() -> Self {
        Self::with(PublicConfig::default(), Router::new()).await
    }

    async fn with(config: PublicConfig, others: Router) -> Self {
        let ca = Ca::new("test CA");
        let files = Files::new(&ca, &ca.server());
        let tls = ReloadableTls::new(
            files.config(),
            Clock::System,
            Manner::public(ClientCertificate::None),
        )
        .expect("TLS");
        let document = Arc::new(JwksDocument::new("{\"keys\":[]}", Duration::from_secs(300)));
        let source = move || {
            let document = Arc::clone(&document);
            Box::pin(async move { Ok(document) }) as _
        };
        let source: JwksSource = Arc::new(source);
        let jwks = routing::get(jwks::answer).with_state(source);
        let router = public::dressed(Router::new().route(JWKS, jwks).merge(others));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("address");
        let stop = CancellationToken::new();
        let ended = stop.clone().cancelled_owned();
        let served = tokio::spawn(async move {
            public::run(listener, Arc::new(tls), router, &config, ended).await;
        });
        Self {
            ca,
            _files: files,
            addr,
            served,
            stop,
        }
    }

    async fn ask(&self, request: Request<Full<Bytes>>) -> (StatusCode, HeaderMap, Bytes) {
        let tls = connect(self.addr, self.ca.client_config(None)).await;
        http1(tls.expect("handshake"), request).await
    }
}

async fn http1<IO>(io: IO, request: Request<Full<Bytes>>) -> (StatusCode, HeaderMap, Bytes)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, conn) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .expect("HTTP/1.1");
    tokio::spawn(conn);
    parts(sender.send_request(request).await.expect("response")).await
}

async fn parts(response: Response<hyper::body::Incoming>) -> (StatusCode, HeaderMap, Bytes) {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("body").to_bytes();
    (parts.status, parts.headers, body)
}

fn request(method: Method, path: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .body(Full::default())
        .expect("request")
}

fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> &str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

#[tokio::test]
async fn verifiers_fetch_the_jwks_and_cache_it() {
    let site = Site::new().await;
    let (status, headers, body) = site.ask(request(Method::GET, JWKS)).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body, "{\"keys\":[]}");
    assert_eq!(
        text(&headers, header::CONTENT_TYPE),
        "application/jwk-set+json"
    );
    assert_eq!(
        text(&headers, header::CACHE_CONTROL),
        "public, max-age=300, must-revalidate"
    );
    assert_eq!(text(&headers, "x-content-type-options"), "nosniff");
    let etag = text(&headers, header::ETAG).to_owned();
    assert!(etag.starts_with('"') && etag.len() > 10);

    let mut again = request(Method::GET, JWKS);
    let value = format!("\"old\", W/{etag}").parse().expect("header");
    again.headers_mut().insert(header::IF_NONE_MATCH, value);
    let (status, headers, body) = site.ask(again).await;
    assert_eq!(status, StatusCode::NOT_MODIFIED);
    assert!(body.is_empty());
    assert_eq!(text(&headers, header::ETAG), etag);
    assert!(text(&headers, header::CACHE_CONTROL).contains("max-age=300"));

    let (status, headers, body) = site.ask(request(Method::HEAD, JWKS)).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(text(&headers, header::CONTENT_LENGTH), "11");
    assert!(body.is_empty());
}

#[tokio::test]
async fn the_jwks_comes_over_http2_too() {
    let site = Site::new().await;
    let mut config = site.ca.client_config(None);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tls = connect(site.addr, config).await.expect("handshake");
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
            .await
            .expect("HTTP/2");
    tokio::spawn(conn);
    let request = request(Method::GET, &format!("https://localhost{JWKS}"));
    let (status, _, body) = parts(sender.send_request(request).await.expect("response")).await;
    assert_eq!((status, body), (StatusCode::OK, "{\"keys\":[]}".into()));
}

#[tokio::test]
async fn wrong_methods_and_paths_are_problem_documents() {
    let site = Site::new().await;
    let (status, headers, body) = site.ask(request(Method::POST, JWKS)).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(text(&headers, header::ALLOW), "GET,HEAD");
    assert_eq!(problem_of(&headers, &body), ("UNKNOWN_METHOD".into(), 405));

    let (status, headers, body) = site.ask(request(Method::GET, "/nothing")).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(problem_of(&headers, &body), ("UNKNOWN_METHOD".into(), 404));
    assert_eq!(text(&headers, header::CACHE_CONTROL), "no-store");
    assert_eq!(text(&headers, "x-content-type-options"), "nosniff");
}

fn problem_of(headers: &HeaderMap, body: &[u8]) -> (String, u64) {
    assert_eq!(
        text(headers, header::CONTENT_TYPE),
        "application/problem+json"
    );
    let problem: serde_json::Value = serde_json::from_slice(body).expect("JSON");
    let reason = problem["reason"].as_str().expect("reason").to_owned();
    (reason, problem["status"].as_u64().expect("status"))
}

#[tokio::test]
async fn bodies_and_headers_over_the_limit_are_refused() {
    let others = Router::new().route("/echo", post(async |body: Bytes| body));
    let config = PublicConfig {
        max_body_bytes: 16,
        ..PublicConfig::default()
    };
    let site = Site::with(config, others).await;
    let echo = |body: &'static str| request(Method::POST, "/echo").map(|_| body.into());
    let (status, _, body) = site.ask(echo("sixteen bytes :)")).await;
    assert_eq!((status, &*body), (StatusCode::OK, &b"sixteen bytes :)"[..]));
    let (status, ..) = site.ask(echo("seventeen bytes!!")).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);

    let mut long = request(Method::GET, JWKS);
    let value = "x".repeat(32 << 10).parse().expect("header");
    long.headers_mut().insert("x-long", value);
    let (status, ..) = site.ask(long).await;
    assert_eq!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[tokio::test]
async fn a_client_that_says_nothing_is_cut() {
    let config = PublicConfig {
        header_timeout_seconds: 0,
        ..PublicConfig::default()
    };
    let site = Site::with(config, Router::new()).await;
    let mut tls = connect(site.addr, site.ca.client_config(None))
        .await
        .expect("handshake");
    // The start of HTTP/2's preface, and no more.
    let _ = tls.write_all(b"PRI").await;
    assert!(tls.read_u8().await.is_err());
}

#[tokio::test]
async fn a_stop_drains_and_closes_the_port() {
    let site = Site::new().await;
    let tls = connect(site.addr, site.ca.client_config(None)).await;
    let (mut sender, conn) =
        hyper::client::conn::http1::handshake(TokioIo::new(tls.expect("handshake")))
            .await
            .expect("HTTP/1.1");
    let conn = tokio::spawn(conn);
    let response = sender.send_request(request(Method::GET, JWKS)).await;
    parts(response.expect("response")).await;

    site.stop.cancel();
    site.served.await.expect("stopped");
    conn.await
        .expect("task")
        .expect("a clean close of the idle connection");
    assert!(TcpStream::connect(site.addr).await.is_err());
}

async fn ops_listener(health: Health) -> (SocketAddr, DropGuard) {
    let metrics = telemetry::metrics().expect("telemetry");
    let router = ops::router(health, metrics);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("address");
    let stop = CancellationToken::new();
    let ended = stop.clone().cancelled_owned();
    tokio::spawn(async move { ops::run(listener, router, &OpsConfig::default(), ended).await });
    (addr, stop.drop_guard())
}

async fn get(addr: SocketAddr, path: &str) -> (StatusCode, HeaderMap, Bytes) {
    let tcp = TcpStream::connect(addr).await.expect("connect");
    http1(tcp, request(Method::GET, path)).await
}

#[tokio::test]
async fn readiness_follows_health_and_liveness_does_not() {
    let health = Health::default();
    let database = health.component("database");
    let (addr, _stop) = ops_listener(health.clone()).await;

    let (status, _, body) = get(addr, "/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(body["ready"], false);
    assert_eq!(body["checks"][0]["name"], "database");
    assert_eq!(body["checks"][0]["ok"], false);
    assert_eq!(body["checks"][0]["detail"], "starting");
    assert_eq!(get(addr, "/livez").await.0, StatusCode::OK);

    database.up();
    assert_eq!(get(addr, "/readyz").await.0, StatusCode::OK);

    // What all replicas share is named, and takes none of them out.
    let hsm = health.advisory("backend hsm");
    let (status, _, body) = get(addr, "/readyz").await;
    assert_eq!(status, StatusCode::OK);
    let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(body["ready"], true);
    assert_eq!(body["degraded"], true);
    assert_eq!(body["checks"][1]["name"], "backend hsm");
    assert_eq!(body["checks"][1]["ok"], false);
    assert_eq!(body["checks"][1]["advisory"], true);
    hsm.up();
    let (_, _, body) = get(addr, "/readyz").await;
    let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(body["degraded"], false);

    health.drain();
    assert_eq!(
        get(addr, "/readyz").await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );
    assert_eq!(get(addr, "/livez").await.0, StatusCode::OK);
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let (addr, _stop) = ops_listener(Health::default()).await;
    let (status, headers, body) = get(addr, "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(text(&headers, header::CONTENT_TYPE).starts_with("text/plain; version=0.0.4"));
    let body = String::from_utf8(body.to_vec()).expect("UTF-8");
    assert!(body.contains("claviger_build_info{version="), "{body}");
}

#[test]
fn the_ops_listener_stays_on_loopback_unless_told() {
    let at = |listen: &str, expose| OpsConfig {
        listen: listen.parse().expect("address"),
        expose,
        ..OpsConfig::default()
    };
    for local in [
        "127.0.0.1:1",
        "127.9.9.9:1",
        "[::1]:1",
        "[::ffff:127.0.0.1]:1",
    ] {
        assert!(at(local, false).check().is_ok(), "{local}");
    }
    for open in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[::ffff:192.0.2.1]:1"] {
        let error = at(open, false).check().expect_err(open).to_string();
        assert!(error.contains("ops.expose = true"), "{error}");
        assert!(at(open, true).check().is_ok(), "{open}");
    }
}

#[tokio::test]
async fn problems_hold_the_public_half_of_an_error() {
    let error = Error::new(Reason::Overloaded, "try later")
        .because("queue of the token at 10.0.0.7 is full")
        .retry_after(Duration::from_millis(1500));
    let response = axum::response::IntoResponse::into_response(problem::Problem::from(&error));
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(text(response.headers(), header::RETRY_AFTER), "2");
    let body = response
        .into_body()
        .collect()
        .await
        .expect("body")
        .to_bytes();
    let body = String::from_utf8(body.to_vec()).expect("UTF-8");
    assert!(body.contains("OVERLOADED") && body.contains("try later"));
    assert!(!body.contains("10.0.0.7"));
    assert_eq!(
        problem::status_of(Kind::Internal),
        StatusCode::INTERNAL_SERVER_ERROR
    );
}

#[test]
fn sections_refuse_unknown_fields_and_have_defaults() {
    let config: PublicConfig = serde_json::from_str("{}").expect("defaults");
    assert_eq!(config.max_body_bytes, 64 << 10);
    let typo = serde_json::from_str::<PublicConfig>("{\"max_boby_bytes\": 1}");
    assert!(typo.is_err());
}
