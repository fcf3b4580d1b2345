//! TLS of the listeners: who gets in, who does not, and what a certificate proves.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use claviger::{
    authn::{AcceptLimits, ClientCertificate, Manner, Peer, ReloadableTls, TlsConn, accept},
    clock::Clock,
    model::Timestamp,
    telemetry,
};
use futures_util::{Stream, StreamExt};
use rcgen::{CertificateParams, DnType, SanType, date_time_ymd};
use rustls::{ClientConfig, HandshakeKind, version::TLS12};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::pki::{Ca, Files, connect, dns, named, uri};

const ALICE: &str = "spiffe://example.org/alice";
/// 2026-06-01.
const NOW: i64 = 1_780_272_000;

fn clock() -> Clock {
    Clock::manual(Timestamp::from_seconds(NOW))
}

/// A listener for the clients of a CA.
struct Site {
    ca: Ca,
    files: Files,
    clock: Clock,
    tls: Arc<ReloadableTls>,
}

impl Site {
    fn new() -> Self {
        let ca = Ca::new("test CA");
        let files = Files::new(&ca, &ca.server());
        let clock = clock();
        let tls = ReloadableTls::new(
            files.config(),
            clock.clone(),
            Manner::grpc(ClientCertificate::Required),
        )
        .expect("TLS");
        Self {
            ca,
            files,
            clock,
            tls: Arc::new(tls),
        }
    }

    async fn incoming(
        &self,
        limits: AcceptLimits,
    ) -> (
        SocketAddr,
        impl Stream<Item = io::Result<TlsConn>> + Unpin + Send + use<>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("address");
        let tls = Arc::clone(&self.tls);
        (addr, accept(listener, tls, limits, std::future::pending()))
    }

    /// Greets every client with one byte, and keeps the connection until the test ends.
    async fn greeter(&self, limits: AcceptLimits) -> SocketAddr {
        let (addr, mut incoming) = self.incoming(limits).await;
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Some(Ok(mut conn)) = incoming.next().await {
                // A client that left is its own affair.
                let _ = conn.write_all(b"k").await;
                let _ = conn.flush().await;
                open.push(conn);
            }
        });
        addr
    }

    fn alice(&self) -> ClientConfig {
        self.ca.client_config(Some(&self.ca.client(ALICE)))
    }
}

/// With TLS 1.3 a client learns only from its first read whether its certificate was taken.
async fn is_greeted(addr: SocketAddr, config: impl Into<Arc<ClientConfig>>) -> bool {
    match connect(addr, config).await {
        Ok(mut stream) => matches!(stream.read_u8().await, Ok(b'k')),
        Err(_) => false,
    }
}

#[tokio::test]
async fn only_a_valid_certificate_of_our_ca_gets_in() {
    let metrics = telemetry::metrics().expect("metrics");
    let site = Site::new();
    let addr = site.greeter(AcceptLimits::default()).await;

    assert!(is_greeted(addr, site.alice()).await);
    assert!(!is_greeted(addr, site.ca.client_config(None)).await);

    let other = Ca::new("other CA").client(ALICE);
    assert!(!is_greeted(addr, site.ca.client_config(Some(&other))).await);
    let impostor = Ca::new("test CA").client(ALICE);
    assert!(!is_greeted(addr, site.ca.client_config(Some(&impostor))).await);

    let mut past = named("alice", [uri(ALICE)]);
    past.not_after = date_time_ymd(2026, 5, 31);
    let expired = site.ca.issue(past);
    assert!(!is_greeted(addr, site.ca.client_config(Some(&expired))).await);

    let alice = site.ca.client(ALICE);
    let old = site.ca.client_config_for(Some(&alice), &TLS12);
    assert!(!is_greeted(addr, old).await);

    // None of them ended the loop.
    assert!(is_greeted(addr, site.alice()).await);
    let metrics = metrics.render();
    for reason in ["no_certificate", "unknown_ca", "expired", "protocol"] {
        let line = format!("claviger_tls_handshake_failures_total{{reason=\"{reason}\"}}");
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn certificates_expire_by_the_daemons_clock() {
    let site = Site::new();
    let addr = site.greeter(AcceptLimits::default()).await;
    let mut params = named("alice", [uri(ALICE)]);
    params.not_after = date_time_ymd(2026, 6, 2);
    let leaf = site.ca.issue(params);

    assert!(is_greeted(addr, site.ca.client_config(Some(&leaf))).await);
    site.clock.advance(Duration::from_secs(2 * 86_400));
    assert!(!is_greeted(addr, site.ca.client_config(Some(&leaf))).await);
}

#[tokio::test]
async fn no_session_is_resumed() {
    let site = Site::new();
    let addr = site.greeter(AcceptLimits::default()).await;
    // One configuration, so that the client would offer a ticket if it had one.
    let config = Arc::new(site.alice());
    for _ in 0..3 {
        let mut stream = connect(addr, Arc::clone(&config)).await.expect("handshake");
        assert_eq!(stream.read_u8().await.expect("greeting"), b'k');
        let kind = stream.get_ref().1.handshake_kind();
        assert!(
            matches!(
                kind,
                Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest)
            ),
            "{kind:?}"
        );
        assert_eq!(stream.get_ref().1.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn a_slow_handshake_blocks_nobody() {
    let site = Site::new();
    let addr = site
        .greeter(AcceptLimits {
            handshake_timeout: Duration::from_secs(3600),
            ..AcceptLimits::default()
        })
        .await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        slow.push(TcpStream::connect(addr).await.expect("connect"));
    }
    assert!(is_greeted(addr, site.alice()).await);
}

#[tokio::test]
async fn a_slow_handshake_is_cut() {
    let site = Site::new();
    let addr = site
        .greeter(AcceptLimits {
            handshake_timeout: Duration::from_millis(10),
            ..AcceptLimits::default()
        })
        .await;
    let mut slow = TcpStream::connect(addr).await.expect("connect");
    assert!(is_closed(&mut slow).await);
}

#[tokio::test]
async fn connections_over_the_cap_are_closed_and_a_free_place_is_used() {
    let site = Site::new();
    let limits = AcceptLimits {
        max_connections: 1,
        ..AcceptLimits::default()
    };
    let (addr, mut incoming) = site.incoming(limits).await;
    let (first, client) = tokio::join!(incoming.next(), connect(addr, site.alice()));
    let (first, _client) = (first.expect("open").expect("TLS"), client.expect("TLS"));

    let mut second = TcpStream::connect(addr).await.expect("connect");
    tokio::select! {
        closed = is_closed(&mut second) => assert!(closed),
        _ = incoming.next() => panic!("the second connection got in"),
    }

    drop(first);
    let (third, client) = tokio::join!(incoming.next(), connect(addr, site.alice()));
    assert!(third.is_some_and(|conn| conn.is_ok()));
    assert!(client.is_ok());
}

async fn is_closed(tcp: &mut TcpStream) -> bool {
    matches!(tcp.read_u8().await, Err(e) if e.kind() != io::ErrorKind::WouldBlock)
}

#[tokio::test]
async fn the_peer_is_who_the_certificate_names() {
    let site = Site::new();
    let (addr, mut incoming) = site.incoming(AcceptLimits::default()).await;
    let (conn, client) = tokio::join!(incoming.next(), connect(addr, site.alice()));
    let (conn, client) = (conn.expect("open").expect("TLS"), client.expect("TLS"));
    let peer = conn.peer();
    assert_eq!(names(peer), [ALICE]);
    assert_eq!(peer.addr, client.get_ref().0.local_addr().expect("address"));
    assert_eq!(peer.fingerprint.len(), 64);
    assert!(peer.not_after > Timestamp::from_seconds(NOW));
}

#[test]
fn identities_are_the_unambiguous_names_best_first() {
    let ca = Ca::new("test CA");
    let of = |params| identities(&ca, params);
    let none: [&str; 0] = [];

    assert_eq!(of(named("x", [uri(ALICE)])), [ALICE]);
    assert_eq!(
        of(named("x", [dns("Alice.Example.org"), uri(ALICE), dns("b")])),
        [ALICE, "dns:alice.example.org", "dns:b"]
    );
    // The common name counts only without any SAN.
    assert_eq!(of(named("alice", [])), ["cn:alice"]);
    assert_eq!(
        of(named("alice", [SanType::IpAddress([127, 0, 0, 1].into())])),
        none
    );
    assert_eq!(of(named("alice", [uri("https://example.org/")])), none);
    // An SVID has one URI.
    assert_eq!(
        of(named("x", [uri(ALICE), uri("spiffe://example.org/bob")])),
        none
    );
    assert_eq!(
        of(named("x", [uri(ALICE), uri("urn:x:y"), dns("a")])),
        ["dns:a"]
    );
}

#[test]
fn malformed_names_prove_nothing() {
    let ca = Ca::new("test CA");
    let none: [&str; 0] = [];
    for bad in [
        "spiffe://",
        "spiffe:///alice",
        "spiffe://Example.org/alice",
        "SPIFFE://example.org/alice",
        "spiffe://example.org/",
        "spiffe://example.org/a//b",
        "spiffe://example.org/../alice",
        "spiffe://example.org/al%69ce",
        "spiffe://user@example.org/alice",
        "spiffe://example.org:443/alice",
        "spiffe://example.org/alice?x",
        "spiffe://example.org/alice\0",
        "spiffe://example.org/al\u{1}ice",
    ] {
        assert_eq!(identities(&ca, named("x", [uri(bad)])), none, "{bad:?}");
    }
    for bad in ["*.example.org", "a\0b", "a\nb", "a b", ""] {
        let params = named("x", [dns(bad), dns("good")]);
        assert_eq!(identities(&ca, params), ["dns:good"], "{bad:?}");
    }
    for bad in ["a\0b", "two words", "line\nbreak", ""] {
        assert_eq!(identities(&ca, named(bad, [])), none, "{bad:?}");
    }
    let mut two = named("alice", []);
    two.distinguished_name
        .push(DnType::CustomDnType(vec![2, 5, 4, 3]), "bob");
    assert_eq!(identities(&ca, two), none);

    let garbage = Peer::from_certificate(b"not a certificate", addr());
    assert!(garbage.identities.is_empty());
    assert_eq!(garbage.not_after, Timestamp::from_micros(0));
}

fn identities(ca: &Ca, params: CertificateParams) -> Vec<String> {
    let peer = Peer::from_certificate(&ca.issue(params).der, addr());
    names(&peer)
}

fn names(peer: &Peer) -> Vec<String> {
    peer.identities.iter().map(ToString::to_string).collect()
}

fn addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

#[tokio::test]
async fn a_renewed_certificate_is_served_without_a_restart() {
    let site = Site::new();
    let addr = site.greeter(AcceptLimits::default()).await;
    let served = async || {
        let stream = connect(addr, site.alice()).await.expect("handshake");
        let chain = stream.get_ref().1.peer_certificates().expect("chain");
        chain[0].clone()
    };
    let old = served().await;
    let renewed = site.ca.server();
    site.files.deploy(&renewed);
    assert_eq!(served().await, old, "nothing changes before the reload");
    site.tls.reload().expect("good files");
    assert_eq!(served().await, renewed.der);

    site.files.write("server.pem", "garbage");
    let error = site.tls.reload().expect_err("bad file").to_string();
    assert!(error.contains("server.pem"), "{error}");
    assert_eq!(
        served().await,
        renewed.der,
        "a failed reload changes nothing"
    );
}

#[test]
fn errors_name_the_file_and_what_is_wrong_with_it() {
    let ca = Ca::new("test CA");
    let server = ca.server();
    let files = Files::new(&ca, &server);
    let fails = || {
        let error = ReloadableTls::new(
            files.config(),
            clock(),
            Manner::grpc(ClientCertificate::Required),
        )
        .err();
        error.expect("refused").to_string()
    };
    let has = |text: &str, parts: &[&str]| {
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
    };

    files.write("server.key", &ca.server().key.serialize_pem());
    has(&fails(), &["server.key", "does not belong", "server.pem"]);
    files.write("server.key", &server.pem);
    has(&fails(), &["tls.key", "server.key", "no private key"]);
    std::fs::remove_file(files.path("server.key")).expect("remove");
    has(&fails(), &["tls.key", "cannot read", "server.key"]);

    let mut past = named("server", [dns("localhost")]);
    past.not_after = date_time_ymd(2026, 5, 1);
    files.deploy(&ca.issue(past));
    has(&fails(), &["server.pem", "expired at 2026-05-01", "renew"]);
    let mut future = named("server", [dns("localhost")]);
    future.not_before = date_time_ymd(2026, 7, 1);
    files.deploy(&ca.issue(future));
    has(&fails(), &["server.pem", "not valid before 2026-07-01"]);

    files.deploy(&server);
    files.write("ca.pem", "");
    has(&fails(), &["tls.client_ca", "ca.pem", "no certificate"]);
    let mut config = files.config();
    config.client_ca = None;
    let error = ReloadableTls::new(config, clock(), Manner::grpc(ClientCertificate::Required))
        .err()
        .expect("refused");
    has(&error.to_string(), &["tls.client_ca is missing"]);
}

#[tokio::test]
async fn a_revoked_certificate_is_refused() {
    let site = Site::new();
    let mut params = named("alice", [uri(ALICE)]);
    params.serial_number = Some(7_u64.into());
    let revoked = site.ca.issue(params);
    site.files.write("crl.pem", &site.ca.crl(7));
    let mut config = site.files.config();
    config.crl = Some(site.files.path("crl.pem"));
    let tls = ReloadableTls::new(config, clock(), Manner::grpc(ClientCertificate::Required))
        .expect("TLS");
    let site = Site {
        tls: Arc::new(tls),
        ..site
    };
    let addr = site.greeter(AcceptLimits::default()).await;

    assert!(is_greeted(addr, site.alice()).await);
    assert!(!is_greeted(addr, site.ca.client_config(Some(&revoked))).await);
}
