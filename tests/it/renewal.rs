//! Certificates that are replaced on disk while the daemon runs, as cert-manager does it: no signal, no restart, no call that
//! fails. R-OPS-3.

use std::{fs, sync::Arc};

use claviger::grpc::proto::*;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    daemon::{Daemon, Engine, Setup, identity},
    pki::{Leaf, named, uri},
};

async fn daemon() -> Daemon {
    let setup = Setup::new(Engine::Sqlite).replace("[tls]\n", "[tls]\nreload_seconds = 1\n");
    let daemon = setup.start().await;
    daemon
        .key("acme", "orders", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    daemon
}

/// The certificate that a new connection to this listener is shown.
async fn shown(daemon: &Daemon, address: &str) -> Vec<u8> {
    let mut config = daemon.ca.client_config(Some(daemon.leaf("service")));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(address).await.expect("a connection");
    let name = ServerName::try_from("localhost").expect("a name");
    let tls = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await;
    let tls = tls.expect("TLS");
    let chain = tls.get_ref().1.peer_certificates().expect("a certificate");
    chain[0].to_vec()
}

async fn sign(daemon: &Daemon) {
    let request = SignRequest {
        key: "orders".into(),
        payload: Some(sign_request::Payload::Message("10 EUR".into())),
        ..Default::default()
    };
    let answer = daemon.actor("service").crypto().sign(request).await;
    answer.expect("Sign");
}

fn deploy(daemon: &Daemon, name: &str, text: &str) {
    let path = daemon.path("certs").join(name);
    let beside = path.with_extension("new");
    fs::write(&beside, text).expect("a file");
    fs::rename(beside, path).expect("a file");
}

fn key(leaf: &Leaf) -> String {
    leaf.key.serialize_pem()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_while_calls_go_on() {
    let daemon = daemon().await;
    let addresses = daemon.addresses().clone();
    let old = shown(&daemon, &addresses.grpc).await;
    // The connection that was opened before goes on to the end.
    sign(&daemon).await;
    let renewed = daemon.ca.server();
    // The certificate comes first: until the key is there too, they do not fit, and the old pair stays in use.
    deploy(&daemon, "server.crt", &renewed.pem);
    daemon
        .until(async || daemon.log().contains("certificates not reloaded"))
        .await;
    assert!(daemon.log().contains("does not belong to the certificate"));
    assert_eq!(shown(&daemon, &addresses.grpc).await, old);
    deploy(&daemon, "server.key", &key(&renewed));
    daemon
        .until(async || shown(&daemon, &addresses.grpc).await != old)
        .await;
    let new = shown(&daemon, &addresses.grpc).await;
    assert_eq!(shown(&daemon, &addresses.public).await, new);
    sign(&daemon).await;

    // What is bad is said once, not at every look, and changes nothing.
    deploy(&daemon, "ca.crt", "not a certificate");
    let said = || daemon.log().matches("certificates not reloaded").count();
    daemon.until(async || said() == 2).await;
    sign(&daemon).await;
    assert_eq!(shown(&daemon, &addresses.grpc).await, new);
    deploy(&daemon, "ca.crt", &daemon.ca.pem());
    // Another pair, and the same CA again.
    let renewed = daemon.ca.server();
    deploy(&daemon, "server.key", &key(&renewed));
    deploy(&daemon, "server.crt", &renewed.pem);
    daemon
        .until(async || shown(&daemon, &addresses.grpc).await != new)
        .await;
    // A look between the two files may have met a pair that does not fit.
    assert!(said() <= 3, "{}", daemon.log());
    sign(&daemon).await;
    daemon.stop().await;
}

/// A client whose certificate is revoked is let in no more, once the list is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_revocation_list_holds_for_new_connections() {
    let setup = Setup::new(Engine::Sqlite).edit(|text| {
        let ca = text.lines().find(|line| line.starts_with("client_ca"));
        let crl = ca
            .expect("a CA")
            .replace("client_ca", "crl")
            .replace("ca.crt", "ca.crl");
        text.replace("[tls]\n", &format!("[tls]\nreload_seconds = 1\n{crl}\n"))
    });
    let mut daemon = setup.provision().await;
    deploy(&daemon, "ca.crl", &daemon.ca.crl(6));
    daemon.up().await.expect("it starts");
    daemon
        .key("acme", "orders", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    let mut params = named("service", [uri(&identity("service"))]);
    params.serial_number = Some(7_u64.into());
    let leaf = daemon.ca.issue(params);
    let call = async || {
        let request = SignRequest {
            key: "orders".into(),
            payload: Some(sign_request::Payload::Message("10 EUR".into())),
            ..Default::default()
        };
        let somebody = daemon.actor_with(Some(&leaf));
        somebody.crypto().sign(request).await
    };
    call().await.expect("not revoked yet");
    deploy(&daemon, "ca.crl", &daemon.ca.crl(7));
    daemon
        .until(async || daemon.log().contains("certificates reloaded"))
        .await;
    assert!(call().await.is_err(), "a revoked certificate was let in");
    sign(&daemon).await;
    daemon.stop().await;
}
