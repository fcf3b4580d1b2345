//! Ends: of the daemon while calls are open, of a client while its change is under way.

use std::{convert::Infallible, error::Error};

use bytes::Bytes;
use claviger::grpc::proto::*;
use futures_util::{FutureExt, StreamExt, future::join_all, stream::BoxStream};
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::{
    daemon::{Daemon, Engine, reason},
    pki::connect,
};

type Frames = BoxStream<'static, Result<Frame<Bytes>, Infallible>>;

/// A gRPC request whose body is what is sent to the channel.
fn open_request(path: &str) -> (mpsc::Sender<Bytes>, Request<StreamBody<Frames>>) {
    let (body, frames) = mpsc::channel(4);
    let frames = ReceiverStream::new(frames).map(|bytes| Ok(Frame::data(bytes)));
    let request = Request::post(format!("https://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(frames.boxed()))
        .expect("a request");
    (body, request)
}

/// A Sign call whose request stays open while the daemon is told to end: readiness goes first, the call is answered,
/// the daemon ends with status 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_call_is_finished_before_the_end() {
    let mut daemon = Daemon::start(Engine::Sqlite).await;
    daemon
        .key("acme", "signer", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    let mut config = daemon.ca.client_config(Some(daemon.leaf("service")));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let address = daemon.addresses().grpc.parse().expect("an address");
    let io = connect(address, config).await.expect("TLS");
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(io));
    let (mut sender, connection) = handshake.await.expect("HTTP/2");
    tokio::spawn(connection);
    let (body, request) = open_request("/claviger.v1.CryptoService/Sign");
    let answer = tokio::spawn(sender.send_request(request));
    let message = SignRequest {
        key: "signer".into(),
        payload: Some(sign_request::Payload::Message("hello".into())),
        ..Default::default()
    }
    .encode_to_vec();
    let prefix = u32::try_from(message.len()).expect("short").to_be_bytes();
    let half = [&[0], &prefix[..], &message[..2]].concat();
    body.send(half.into()).await.expect("sent");
    // A second call on the same connection is answered, so the daemon has read the first one's half.
    let (whole, other) = open_request("/claviger.v1.TokenService/GetJwks");
    whole.send(vec![0; 5].into()).await.expect("sent");
    drop(whole);
    let other = sender.send_request(other).await.expect("an answer");
    other.into_body().collect().await.expect("a body");

    let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process"), Signal::TERM).expect("a signal");
    // Bounded by the daemon's own deadline: the open call holds the drain that long.
    while daemon.ops_get("/readyz").await.status != 503 {
        tokio::task::yield_now().await;
    }
    assert_eq!(daemon.ops_get("/livez").await.status, 200);
    body.send(message[2..].to_vec().into()).await.expect("sent");
    drop(body);
    let answer = answer.await.expect("no panic").expect("an answer");
    let answer = answer.into_body().collect().await.expect("a body");
    let trailers = answer.trailers().expect("trailers").clone();
    let status = Status::from_header_map(&trailers).expect("a status");
    assert_eq!(status.code(), Code::Ok, "{status:?}");
    let signed = SignResponse::decode(&answer.to_bytes()[5..]).expect("a signature");
    assert_eq!(signed.signature.len(), 64);
    let ended = daemon.terminate().await;
    assert!(ended.success(), "{ended}");
    // What was answered was recorded.
    let rows = daemon
        .rows("SELECT seq FROM audit_events WHERE action = 'Sign' AND outcome = 'success'")
        .await;
    assert_eq!(rows.len(), 1);
    daemon.stop().await;
}

async fn calls_at_the_end(engine: Engine) {
    let mut daemon = Daemon::start(engine).await;
    daemon
        .key("acme", "signer", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    let callers = (0..8).map(|i| {
        let service = daemon.actor_with(Some(daemon.leaf("service")));
        tokio::spawn(async move {
            let mut answered = 0_u32;
            loop {
                let request = SignRequest {
                    key: "signer".into(),
                    payload: Some(sign_request::Payload::Message(vec![i; 32].into())),
                    ..Default::default()
                };
                match service.crypto().sign(request).await {
                    Ok(_) => answered += 1,
                    Err(status) => return (answered, status),
                }
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    // Everybody is at work: each has been recorded many times over.
    while daemon
        .rows("SELECT COUNT(*) FROM audit_events WHERE action = 'Sign'")
        .await[0][0]
        .parse::<u32>()
        .expect("a number")
        < 200
    {}
    let ended = daemon.terminate().await;
    assert!(ended.success(), "{ended}");
    let mut answered = 0;
    for caller in join_all(callers).await {
        let (count, status) = caller.expect("no panic");
        answered += count;
        // UNAVAILABLE, or a connection that was closed in order and on which nobody answered: the client's own words.
        let closed = reason(&status).is_empty() && status.source().is_some();
        assert!(status.code() == Code::Unavailable || closed, "{status:?}");
    }
    let rows = daemon
        .rows("SELECT COUNT(*) FROM audit_events WHERE action = 'Sign' AND outcome = 'success'")
        .await;
    let recorded: u32 = rows[0][0].parse().expect("a number");
    assert!(
        recorded >= answered,
        "{answered} answers, {recorded} of them on record"
    );
    daemon.up().await.expect("it starts again");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_without_a_record_at_the_end_on_sqlite() {
    calls_at_the_end(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_without_a_record_at_the_end_on_postgres() {
    calls_at_the_end(Engine::Postgres).await;
}

/// Clients that leave at every stage of a change: it is there with its record, or not at all.
async fn changes_of_clients_that_leave(engine: Engine) {
    let mut daemon = Daemon::start(engine).await;
    for i in 0..24 {
        let issuer = daemon.actor("issuer");
        let request = CreateKeyRequest {
            tenant: "acme".into(),
            name: format!("key-{i}"),
            purpose: KeyPurpose::Signing.into(),
            algorithm: Algorithm::Es256.into(),
            owner: "payments".into(),
            ..Default::default()
        };
        let mut client = issuer.keys();
        let mut call = Box::pin(client.create_key(request).fuse());
        // Left after so many steps of the client's own machine; some are through by then.
        for _ in 0..i * 2 {
            if (&mut call).now_or_never().is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(call);
    }
    // Ends after every change has ended.
    let ended = daemon.terminate().await;
    assert!(ended.success(), "{ended}");
    let keys = daemon
        .rows("SELECT id FROM keys WHERE tenant <> 'system' ORDER BY id")
        .await;
    let versions = daemon
        .rows("SELECT v.key_id FROM key_versions v JOIN keys k ON k.id = v.key_id WHERE v.state = 'ACTIVE' AND k.tenant <> 'system' ORDER BY v.key_id")
        .await;
    let recorded = daemon.rows("SELECT entity_id FROM audit_events WHERE stream = 'admin' AND action = 'CreateKey' AND outcome = 'success' ORDER BY entity_id").await;
    let settled = daemon
        .rows("SELECT id FROM backend_intents WHERE state = 'DONE'")
        .await;
    assert_eq!(keys, versions);
    assert_eq!(keys, recorded);
    assert_eq!(settled.len(), keys.len());
    let pending = daemon
        .rows("SELECT id FROM backend_intents WHERE state = 'PENDING'")
        .await;
    assert!(pending.is_empty(), "{pending:?}");
    daemon.up().await.expect("it starts again");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_whole_although_clients_leave_on_sqlite() {
    changes_of_clients_that_leave(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_whole_although_clients_leave_on_postgres() {
    changes_of_clients_that_leave(Engine::Postgres).await;
}
