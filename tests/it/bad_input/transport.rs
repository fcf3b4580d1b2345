//! What is turned away before, or instead of, a call.

use std::sync::Arc;

use bytes::Bytes;
use claviger::grpc::proto::{GetJwksRequest, ListKeysRequest};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::date_time_ymd;
use rustls::{ClientConfig, version::TLS12};
use tonic::{Code, Status, transport::Endpoint};
use tonic_types::StatusExt;

use super::{assert_sentence, state};
use crate::{
    daemon::{Actor, Daemon, Engine, reason},
    pki::{Ca, connect, named, uri},
};

const SERVICE: &str = "spiffe://claviger.test/service";

async fn turned_away(daemon: &Daemon, who: &Actor) {
    let answer = who.tokens().get_jwks(GetJwksRequest {}).await;
    let status = answer.expect_err("turned away");
    // No call took place, so nobody gave a reason.
    assert_eq!(reason(&status), "", "{status:?}");
    let still = daemon
        .actor("service")
        .keys()
        .list_keys(ListKeysRequest::default())
        .await;
    still.expect("everybody else is served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_right_certificate_are_closed() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let before = state(&daemon).await;
    turned_away(&daemon, &daemon.actor_with(None)).await;

    let mut expired = named("service", [uri(SERVICE)]);
    expired.not_before = date_time_ymd(2020, 1, 1);
    expired.not_after = date_time_ymd(2021, 1, 1);
    let expired = daemon.ca.issue(expired);
    turned_away(&daemon, &daemon.actor_with(Some(&expired))).await;

    let mut early = named("service", [uri(SERVICE)]);
    early.not_before = date_time_ymd(4000, 1, 1);
    let early = daemon.ca.issue(early);
    turned_away(&daemon, &daemon.actor_with(Some(&early))).await;

    // Another CA with the very names of ours.
    let impostor = Ca::new("Claviger end-to-end tests").client(SERVICE);
    turned_away(&daemon, &daemon.actor_with(Some(&impostor))).await;

    let old = daemon
        .ca
        .client_config_for(Some(daemon.leaf("service")), &TLS12);
    turned_away(&daemon, &daemon.actor_over(old)).await;

    // HTTP/2 without TLS.
    let plain = Endpoint::from_shared(format!("http://{}", daemon.addresses().grpc));
    let channel = plain.expect("an address").connect_lazy();
    turned_away(&daemon, &Actor { channel }).await;
    assert_eq!(state(&daemon).await, before);
    daemon.stop().await;
}

fn tls(daemon: &Daemon, alpn: &[u8]) -> Arc<ClientConfig> {
    let mut config = daemon.ca.client_config(Some(daemon.leaf("service")));
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_1_is_not_spoken() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let address = daemon.addresses().grpc.parse().expect("an address");
    assert!(connect(address, tls(&daemon, b"http/1.1")).await.is_err());
    // Also not by somebody who said h2.
    let io = connect(address, tls(&daemon, b"h2")).await.expect("TLS");
    let (mut sender, connection) = http1::handshake(TokioIo::new(io))
        .await
        .expect("no bytes yet");
    tokio::spawn(connection);
    let get = Request::get("/")
        .header("host", "localhost")
        .body(Full::<Bytes>::default());
    assert!(sender.send_request(get.expect("a request")).await.is_err());
    daemon.stop().await;
}

/// A gRPC call of any path with any bytes as its body.
async fn raw(daemon: &Daemon, path: &str, body: &[u8]) -> Status {
    let address = daemon.addresses().grpc.parse().expect("an address");
    let io = connect(address, tls(daemon, b"h2")).await.expect("TLS");
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(io));
    let (mut sender, connection) = handshake.await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::post(format!("https://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::copy_from_slice(body)))
        .expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    assert_eq!(response.status(), 200);
    if let Some(status) = Status::from_header_map(response.headers()) {
        return status;
    }
    let body = response.into_body().collect().await.expect("a body");
    let trailers = body.trailers().expect("trailers").clone();
    Status::from_header_map(&trailers).expect("a status")
}

fn framed(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).expect("short").to_be_bytes();
    [&[0], &len[..], message].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_none_get_a_reason() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let before = state(&daemon).await;
    for path in [
        "/claviger.v1.CryptoService/ExportKey",
        "/claviger.v1.CryptoService/",
        "/claviger.v1.Nothing/Sign",
        "/claviger.v2.CryptoService/Sign",
        "/",
        "/..%2f..%2fetc/passwd",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ] {
        let status = raw(&daemon, path, &framed(&[])).await;
        let found = (status.code(), reason(&status));
        assert_eq!(
            found,
            (Code::Unimplemented, "UNKNOWN_METHOD".into()),
            "{path}"
        );
        assert_sentence(status.message());
        assert!(!status.message().contains("passwd"));
    }
    let sign = "/claviger.v1.CryptoService/Sign";
    for body in [
        // Not the protobuf it should be.
        framed(&[0xff; 40]),
        framed(b"{\"key\": \"signer\"}"),
        framed(&[0x12, 0x7f, b'x']),
        framed(&[0x12, 2, 0xc3, 0x28]),
        framed(&[0x12, 3, b'\n', 0xff, 0x1b]),
        // A varint without end.
        framed(&[
            0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
        ]),
        // No message, half a prefix, half a message.
        vec![],
        vec![0, 0, 0],
        vec![0, 0, 0, 0, 9, 1],
        // Compressed, which was not agreed on; an unknown flag.
        vec![1, 0, 0, 0, 1, 0],
        vec![7, 0, 0, 0, 1, 0],
    ] {
        let status = raw(&daemon, sign, &body).await;
        let text = format!("{body:?}: {status:?}");
        assert_eq!(reason(&status), "MALFORMED_REQUEST", "{text}");
        assert_eq!(status.code(), Code::InvalidArgument, "{text}");
        assert_sentence(status.message());
    }
    // A length that nobody has to believe.
    let status = raw(&daemon, sign, &[0, 0xff, 0xff, 0xff, 0xff, 1]).await;
    assert_eq!(reason(&status), "PAYLOAD_TOO_LARGE");
    let request = status.get_error_details();
    assert!(request.request_info().is_some());
    assert_eq!(state(&daemon).await, before);
    daemon.stop().await;
}
