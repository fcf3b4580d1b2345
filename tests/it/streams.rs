//! EncryptStream and DecryptStream through a real daemon: R-CARD-4, R-EMER-3, R-ACL-2.

mod bounds;
mod bytes;
mod commands;
mod memory;

use std::{collections::BTreeMap, time::Duration};

use ::bytes::Bytes;
use claviger::{
    envelope::cobblestone::{CHUNK, SEALED_CHUNK},
    grpc::proto::*,
};
use futures_util::{StreamExt, stream};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use crate::{
    daemon::{Actor, Daemon, Engine, PATIENCE, reason},
    incidents::declared,
    rpcs::{World, send},
};

const VAULT: &str = "vault";

async fn vault(daemon: &Daemon) -> Key {
    daemon
        .key("acme", VAULT, KeyPurpose::Encryption, Algorithm::A256gcm)
        .await
}

fn text(len: usize) -> Bytes {
    (0..len).map(|i| (i * i + i / 251) as u8).collect()
}

fn aad(document: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("document".to_owned(), document.to_owned())])
}

fn start_sealing(document: &str) -> EncryptStreamRequest {
    use encrypt_stream_request::{Part, Start};
    let start = Start {
        tenant: "acme".into(),
        key: VAULT.into(),
        aad: aad(document),
    };
    EncryptStreamRequest {
        part: Some(Part::Start(start)),
    }
}

fn plain(data: Bytes) -> EncryptStreamRequest {
    EncryptStreamRequest {
        part: Some(encrypt_stream_request::Part::Data(data)),
    }
}

fn start_opening(document: &str) -> DecryptStreamRequest {
    use decrypt_stream_request::{Part, Start};
    let start = Start {
        tenant: "acme".into(),
        key: VAULT.into(),
        aad: aad(document),
    };
    DecryptStreamRequest {
        part: Some(Part::Start(start)),
    }
}

fn secret(data: Bytes) -> DecryptStreamRequest {
    DecryptStreamRequest {
        part: Some(decrypt_stream_request::Part::Data(data)),
    }
}

/// Pieces of these sizes, over and over.
fn cut(bytes: &Bytes, sizes: &[usize]) -> Vec<Bytes> {
    let mut rest = bytes.clone();
    let mut sizes = sizes.iter().cycle();
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let size = sizes.next().expect("a size");
        pieces.push(rest.split_to(rest.len().min(*size)));
    }
    pieces
}

/// What came, and how it ended.
struct Came {
    bytes: Vec<u8>,
    kids: Vec<String>,
    end: Result<(), Status>,
}

impl Came {
    #[track_caller]
    fn whole(self) -> Vec<u8> {
        self.end.expect("a whole stream");
        assert!(!self.kids[0].is_empty(), "no kid in the first message");
        assert!(
            self.kids[1..].iter().all(String::is_empty),
            "the kid is in later messages"
        );
        self.bytes
    }

    #[track_caller]
    fn failed(self, code: Code, why: &str) -> Vec<u8> {
        let status = self.end.expect_err(why);
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (code, why),
            "{status}"
        );
        self.bytes
    }
}

async fn seal_messages(actor: &Actor, messages: Vec<EncryptStreamRequest>) -> Came {
    let answer = actor.crypto().encrypt_stream(stream::iter(messages)).await;
    let mut came = Came {
        bytes: Vec::new(),
        kids: Vec::new(),
        end: Ok(()),
    };
    match answer {
        Ok(answers) => {
            let mut answers = answers.into_inner();
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(answer) => {
                        came.bytes.extend_from_slice(&answer.data);
                        came.kids.push(answer.kid);
                    }
                    Err(status) => came.end = Err(status),
                }
            }
        }
        Err(status) => came.end = Err(status),
    }
    came
}

async fn open_messages(actor: &Actor, messages: Vec<DecryptStreamRequest>) -> Came {
    let answer = actor.crypto().decrypt_stream(stream::iter(messages)).await;
    let mut came = Came {
        bytes: Vec::new(),
        kids: Vec::new(),
        end: Ok(()),
    };
    match answer {
        Ok(answers) => {
            let mut answers = answers.into_inner();
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(answer) => {
                        came.bytes.extend_from_slice(&answer.data);
                        came.kids.push(answer.kid);
                    }
                    Err(status) => came.end = Err(status),
                }
            }
        }
        Err(status) => came.end = Err(status),
    }
    came
}

async fn seal(actor: &Actor, pieces: Vec<Bytes>) -> Came {
    let data = pieces.into_iter().map(plain);
    let messages = [start_sealing("4711")].into_iter().chain(data);
    seal_messages(actor, messages.collect()).await
}

async fn open(actor: &Actor, document: &str, pieces: Vec<Bytes>) -> Came {
    let data = pieces.into_iter().map(secret);
    let messages = [start_opening(document)].into_iter().chain(data);
    open_messages(actor, messages.collect()).await
}

/// A stream whose client takes its time.
struct Live {
    say: Option<mpsc::Sender<EncryptStreamRequest>>,
    answers: Streaming<EncryptStreamResponse>,
}

impl Live {
    /// Encrypts; `deadline` is the client's.
    async fn start(actor: &Actor, deadline: Option<Duration>) -> Result<Self, Status> {
        let (say, said) = mpsc::channel(1);
        say.send(start_sealing("4711")).await.expect("room");
        let mut request = Request::new(ReceiverStream::new(said));
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        let answers = actor.crypto().encrypt_stream(request).await?;
        Ok(Self {
            say: Some(say),
            answers: answers.into_inner(),
        })
    }

    async fn send(&self, data: Bytes) {
        let say = self.say.as_ref().expect("not ended");
        say.send(plain(data)).await.expect("the call goes on");
    }

    async fn next(&mut self) -> Result<Option<EncryptStreamResponse>, Status> {
        let next = timeout(PATIENCE, self.answers.message()).await;
        next.expect("an answer")
    }

    /// Sends a piece and waits for its answer, so that the stream is under way.
    async fn exchange(&mut self) {
        self.send(text(CHUNK)).await;
        let answer = self.next().await.expect("an answer").expect("a piece");
        assert!(!answer.data.is_empty());
    }

    /// The error that it ends with; pieces that were on their way may come before it.
    async fn failure(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended well"),
                Err(status) => return status,
            }
        }
    }
}

/// Outcome and details of the rows of an action, oldest first.
async fn rows(daemon: &Daemon, action: &str) -> Vec<(String, serde_json::Value)> {
    let query = format!(
        "SELECT outcome, data FROM audit_events WHERE action = '{action}' AND stream = 'access/one' ORDER BY seq"
    );
    let rows = daemon.rows(&query).await.into_iter();
    rows.map(|row| (row[0].clone(), serde_json::from_str(&row[1]).expect("JSON")))
        .collect()
}

/// Waits until the last row of Encrypt is the end of a stream, and returns it.
async fn ended(daemon: &Daemon) -> (String, serde_json::Value) {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(last) = rows(daemon, "Encrypt").await.pop()
            && last.1["part"] == "ended"
        {
            return last;
        }
        assert!(Instant::now() < until, "no row says that it ended");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until so many streams are open.
async fn expect_open(daemon: &Daemon, streams: usize) {
    let until = Instant::now() + PATIENCE;
    let line = format!("claviger_streams_open {streams}");
    loop {
        let metrics = daemon.ops_get("/metrics").await.text();
        if metrics.lines().any(|l| l == line) {
            return;
        }
        let found: Vec<_> = metrics
            .lines()
            .filter(|l| l.contains("streams_open"))
            .collect();
        assert!(Instant::now() < until, "not {line}: {found:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

// R-CARD-4
#[tokio::test]
async fn streams_and_single_calls_open_what_the_other_made() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    vault(&daemon).await;
    let service = daemon.actor("service");
    let mixed = [1, 16_384, 70_000, 3, 262_144, 16_383, 1_048_576];
    let sizes = [1, CHUNK - 1, CHUNK, CHUNK + 1, 5 << 20];
    for size in sizes {
        let plaintext = text(size);
        for cuts in [&[64 << 10][..], &mixed, &[4 << 20]] {
            let sealed = seal(&service, cut(&plaintext, cuts)).await.whole();
            let sealed = Bytes::from(sealed);
            let opened = open(&service, "4711", cut(&sealed, cuts)).await.whole();
            assert!(opened == plaintext, "{size} bytes came back changed");
            if size <= 4 << 20 {
                let request = DecryptRequest {
                    tenant: "acme".into(),
                    key: VAULT.into(),
                    ciphertext: sealed,
                    aad: aad("4711"),
                };
                let opened = service.crypto().decrypt(request).await.expect("Decrypt");
                assert!(opened.into_inner().plaintext == plaintext);
            }
        }
        if size <= 4 << 20 {
            let request = EncryptRequest {
                tenant: "acme".into(),
                key: VAULT.into(),
                plaintext: plaintext.clone(),
                aad: aad("4711"),
            };
            let sealed = service.crypto().encrypt(request).await.expect("Encrypt");
            let sealed = sealed.into_inner().ciphertext;
            let opened = open(&service, "4711", cut(&sealed, &mixed)).await.whole();
            assert!(opened == plaintext);
        }
    }
    let (outcome, last) = rows(&daemon, "Decrypt").await.pop().expect("a row");
    assert_eq!(
        (outcome.as_str(), &last["part"]),
        ("success", &"ended".into())
    );
    expect_open(&daemon, 0).await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_no_stream_is_refused_and_leaves_one_row() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    vault(&daemon).await;
    let service = daemon.actor("service");
    let data = || plain(text(10));
    let start = || start_sealing("4711");
    let invalid = Code::InvalidArgument;
    let mut unknown = start();
    if let Some(encrypt_stream_request::Part::Start(start)) = &mut unknown.part {
        start.key = "no-such-key".into();
    }
    let too_long = plain(text((4 << 20) + 1));
    // As much as a client of these tests sends, and more than any request may have.
    let huge = plain(text((8 << 20) + (32 << 10)));
    let cases = [
        (vec![], invalid, "INVALID_FIELD"),
        (vec![start()], invalid, "PAYLOAD_EMPTY"),
        (vec![data()], invalid, "INVALID_FIELD"),
        (vec![data(), start()], invalid, "INVALID_FIELD"),
        (
            vec![EncryptStreamRequest { part: None }],
            invalid,
            "INVALID_FIELD",
        ),
        (vec![start(), plain(Bytes::new())], invalid, "PAYLOAD_EMPTY"),
        (vec![start(), too_long], invalid, "PAYLOAD_TOO_LARGE"),
        (vec![start(), huge], invalid, "PAYLOAD_TOO_LARGE"),
        (vec![unknown, data()], Code::NotFound, "KEY_NOT_FOUND"),
    ];
    let count = cases.len();
    for (messages, code, why) in cases {
        let came = seal_messages(&service, messages).await;
        assert!(came.failed(code, why).is_empty(), "{why}");
    }
    // These have begun, so they leave two.
    for (second, why) in [
        (start(), "INVALID_FIELD"),
        (EncryptStreamRequest { part: None }, "INVALID_FIELD"),
    ] {
        let messages = vec![start(), plain(text(100_000)), second];
        let came = seal_messages(&service, messages).await;
        came.failed(invalid, why);
    }
    let rows = rows(&daemon, "Encrypt").await;
    assert_eq!(rows.len(), count + 4, "{rows:#?}");
    let (begun, ended) = (&rows[count], &rows[count + 1]);
    assert_eq!((begun.0.as_str(), ended.0.as_str()), ("success", "failed"));
    assert_eq!(begun.1["stream"], ended.1["stream"]);
    assert_eq!(begun.1["kid"], ended.1["kid"]);
    assert_eq!(ended.1["reason"], "INVALID_FIELD");
    let nothing = open(&service, "4711", vec![]).await;
    nothing.failed(invalid, "PAYLOAD_EMPTY");
    expect_open(&daemon, 0).await;
    daemon.stop().await;
}

// R-CARD-4
#[tokio::test]
async fn a_damaged_stream_fails_and_what_came_before_was_right() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    vault(&daemon).await;
    let service = daemon.actor("service");
    let plaintext = text(4 * CHUNK + 100);
    let sealed = Bytes::from(seal(&service, vec![plaintext.clone()]).await.whole());
    let head = sealed.len() - 4 * SEALED_CHUNK - 116;
    let chunk = |i: usize| sealed.slice(head + i * SEALED_CHUNK..head + (i + 1) * SEALED_CHUNK);
    let rest = |from: usize| sealed.slice(head + from * SEALED_CHUNK..);
    let mut flipped = sealed.to_vec();
    flipped[head + 2 * SEALED_CHUNK + 5] ^= 1;
    let damaged: Vec<(&str, Vec<Bytes>)> = vec![
        ("cut in the header", vec![sealed.slice(..10)]),
        ("cut in the salt", vec![sealed.slice(..head - 1)]),
        ("nothing but the beginning", vec![sealed.slice(..head)]),
        (
            "cut at the border of a chunk",
            vec![sealed.slice(..head + 2 * SEALED_CHUNK)],
        ),
        (
            "cut before the last byte",
            vec![sealed.slice(..sealed.len() - 1)],
        ),
        (
            "two swapped",
            vec![sealed.slice(..head), chunk(1), chunk(0), rest(2)],
        ),
        (
            "one twice",
            vec![sealed.slice(..head), chunk(0), chunk(0), rest(1)],
        ),
        (
            "one left out",
            vec![sealed.slice(..head), chunk(0), rest(2)],
        ),
        ("a byte more", vec![sealed.clone(), text(1)]),
        ("a bit flipped", vec![flipped.into()]),
        ("no ciphertext", vec![text(1000)]),
    ];
    for (what, pieces) in damaged {
        let came = open(&service, "4711", pieces).await;
        let bytes = came.failed(Code::InvalidArgument, "CIPHERTEXT_INVALID");
        assert!(
            plaintext.starts_with(&bytes),
            "{what}: wrong bytes came out"
        );
    }
    let other = open(&service, "4712", vec![sealed.clone()]).await;
    let bytes = other.failed(Code::InvalidArgument, "CIPHERTEXT_INVALID");
    assert!(bytes.is_empty());
    let rows = rows(&daemon, "Decrypt").await;
    let ends = rows.iter().filter(|(outcome, _)| outcome == "failed");
    assert_eq!(ends.count(), 12, "{rows:#?}");
    daemon.stop().await;
}

// R-ACL-2
#[tokio::test]
async fn a_client_that_leaves_in_the_middle_is_on_record() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    vault(&daemon).await;
    let mut live = Live::start(&daemon.actor("service"), None)
        .await
        .expect("begins");
    live.exchange().await;
    expect_open(&daemon, 1).await;
    drop(live);
    let (outcome, details) = ended(&daemon).await;
    assert_eq!(outcome, "failed");
    assert_eq!(details["reason"], "ABANDONED");
    assert!(details["bytes"].as_u64().is_some_and(|n| n > CHUNK as u64));
    expect_open(&daemon, 0).await;
    daemon.stop().await;
}

// R-EMER-3
#[tokio::test]
async fn a_frozen_key_ends_its_streams() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    vault(&daemon).await;
    let mut live = Live::start(&daemon.actor("service"), None)
        .await
        .expect("begins");
    live.exchange().await;
    declared(&daemon, VAULT, "").await;
    live.send(text(CHUNK)).await;
    // Nothing leaves any more, not one piece.
    let refused = live.next().await.expect_err("frozen");
    assert_eq!(reason(&refused), "KEY_COMPROMISED", "{refused}");
    let (outcome, details) = ended(&daemon).await;
    assert_eq!(
        (outcome.as_str(), &details["reason"]),
        ("failed", &"KEY_COMPROMISED".into())
    );
    daemon.stop().await;
}

// R-ACL-1
#[tokio::test]
async fn whoever_may_not_encrypt_any_more_does_not_go_on() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    vault(&daemon).await;
    let mut live = Live::start(&daemon.actor("service"), None)
        .await
        .expect("begins");
    live.exchange().await;
    let revoke = RevokeRoleRequest {
        principal_id: daemon.id_of("service").await,
        role: "crypto-user".into(),
        tenant: "acme".into(),
    };
    let admin = daemon.actor("admin");
    admin
        .principals()
        .revoke_role(revoke)
        .await
        .expect("RevokeRole");
    live.send(text(CHUNK)).await;
    let refused = live.failure().await;
    assert_eq!(reason(&refused), "PERMISSION_DENIED", "{refused}");
    let (outcome, _) = ended(&daemon).await;
    assert_eq!(outcome, "refused");
    daemon.stop().await;
}

// R-ACL-1, R-ACL-3
#[tokio::test]
async fn streams_are_for_those_who_may_encrypt_and_decrypt() {
    let world = World::new(Engine::Sqlite).await;
    let people = [
        ("service", Code::Ok),
        ("issuer", Code::PermissionDenied),
        ("admin", Code::PermissionDenied),
        ("other", Code::NotFound),
        ("stranger", Code::Unauthenticated),
    ];
    for path in [
        "/claviger.v1.CryptoService/EncryptStream",
        "/claviger.v1.CryptoService/DecryptStream",
    ] {
        let case = world.case(path).await;
        for (person, expected) in people {
            let answer = send(&world.daemon.actor(person), path, &case.valid).await;
            let code = answer.map_or_else(|status| status.code(), |_| Code::Ok);
            assert_eq!(code, expected, "{path} as {person}");
        }
    }
    let refused = "SELECT outcome, data FROM audit_events WHERE outcome = 'refused' \
                   AND action IN ('Encrypt', 'Decrypt')";
    let refused = world.daemon.rows(refused).await;
    assert_eq!(refused.len(), 8, "{refused:?}");
    world.daemon.stop().await;
}
