//! Egress against servers on loopback that answer what a test says, well or badly.

use std::{net::SocketAddr, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-a: b\r\n\r\nhello";

fn loopback() -> EgressConfig {
    EgressConfig {
        allow_networks: vec!["127.0.0.0/8".parse().unwrap()],
        allow_http: true,
        ..EgressConfig::default()
    }
}

fn egress(config: &EgressConfig) -> Egress {
    Egress::new(config).unwrap()
}

async fn get(config: &EgressConfig, url: &str) -> Result<Answer, EgressError> {
    egress(config).send(Request::new(Method::GET, url)).await
}

fn code(answer: Result<Answer, EgressError>) -> &'static str {
    match answer {
        Ok(_) => "an answer",
        Err(e) => e.as_str(),
    }
}

/// Reads one request up to the end of its head, and the body that its length announces.
async fn request(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |length| length.parse().unwrap());
            if body.len() >= length {
                return text;
            }
        }
        match stream.read(&mut chunk).await {
            Ok(count @ 1..) => bytes.extend(&chunk[..count]),
            Ok(0) | Err(_) => return text,
        }
    }
}

/// A plain server that gives every request the same answer, and tells what it was asked.
async fn plain(answer: impl Into<Vec<u8>>) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let answer = answer.into();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tell.send(request(&mut stream).await);
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
    });
    (address, asked)
}

/// A TLS server for `localhost`, and the file with its CA.
async fn secure(name: &str) -> (SocketAddr, PathBuf) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &ca).unwrap();
    let file = std::env::temp_dir().join(format!("claviger-egress-{}-{name}", std::process::id()));
    std::fs::write(&file, ca.pem()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    request(&mut stream).await;
                    let _ = stream.write_all(OK.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    (address, file)
}

#[tokio::test]
async fn a_request_arrives_as_it_was_made() {
    let (address, mut asked) = plain(OK).await;
    let sent = Request::new(Method::POST, format!("http://{address}/a/b?c=d#e"))
        .header("authorization", "Bearer planted")
        .header("content-length", "3")
        .header("host", "elsewhere.example")
        .body("four");
    let answer = egress(&loopback()).send(sent).await.unwrap();
    assert_eq!((answer.status, answer.is_success()), (200, true));
    assert_eq!(answer.headers["x-a"], "b");
    assert_eq!(answer.body.as_slice(), b"hello");
    let asked = asked.recv().await.unwrap();
    assert!(asked.starts_with("POST /a/b?c=d HTTP/1.1\r\n"), "{asked}");
    for line in [
        "authorization: Bearer planted",
        "content-length: 4",
        &format!("host: {address}"),
        "accept-encoding: identity",
    ] {
        assert_eq!(asked.matches(line).count(), 1, "{line} in {asked}");
    }
    assert!(!asked.contains("elsewhere"), "{asked}");
    assert!(asked.ends_with("\r\n\r\nfour"), "{asked}");
}

#[tokio::test]
async fn every_status_but_a_redirect_is_an_answer() {
    for (status, expected) in [
        (204, Ok(204)),
        (401, Ok(401)),
        (500, Ok(500)),
        (304, Ok(304)),
        (301, Err(EgressError::Redirect)),
        (302, Err(EgressError::Redirect)),
        (303, Err(EgressError::Redirect)),
        (307, Err(EgressError::Redirect)),
        (308, Err(EgressError::Redirect)),
    ] {
        let (other, mut followed) = plain(OK).await;
        let answer = format!(
            "HTTP/1.1 {status} X\r\nlocation: http://{other}/\r\ncontent-length: 0\r\n\r\n"
        );
        let (address, _asked) = plain(answer).await;
        let answer = get(&loopback(), &format!("http://{address}/")).await;
        assert_eq!(answer.map(|answer| answer.status), expected);
        assert!(followed.try_recv().is_err(), "{status} was followed");
    }
}

#[tokio::test]
async fn plain_http_and_inner_addresses_need_the_configuration() {
    let (address, mut asked) = plain(OK).await;
    let url = format!("http://{address}/");
    let mut config = loopback();
    config.allow_http = false;
    assert_eq!(code(get(&config, &url).await), "PLAIN_HTTP");
    config = EgressConfig {
        allow_http: true,
        ..EgressConfig::default()
    };
    let port = address.port();
    for host in [
        "127.0.0.1",
        "localhost",
        "127.1",
        "0x7f000001",
        "2130706433",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
        "0.0.0.0",
    ] {
        let url = format!("http://{host}:{port}/");
        assert_eq!(code(get(&config, &url).await), "REFUSED_ADDRESS", "{host}");
    }
    assert!(asked.try_recv().is_err(), "nothing was sent");
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let config = loopback();
    for url in [
        "",
        "/path",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "http://user@127.0.0.1/",
        "http://:password@127.0.0.1/",
        "https://",
        "http://127.0.0.1:99999/",
    ] {
        assert_eq!(code(get(&config, url).await), "BAD_REQUEST", "{url}");
    }
    let split = Request::new(Method::GET, "http://127.0.0.1:9/").header("x-a", "b\r\nx-c: d");
    assert_eq!(code(egress(&config).send(split).await), "BAD_REQUEST");
}

#[tokio::test]
async fn tls_needs_a_certificate_that_counts_for_the_name() {
    let (address, ca_file) = secure("right").await;
    let (_, foreign) = secure("foreign").await;
    let port = address.port();
    let with = |ca_file: Option<&PathBuf>| EgressConfig {
        // The system's own look-up decides which family `localhost` is asked at first.
        allow_networks: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
        ca_file: ca_file.cloned(),
        ..EgressConfig::default()
    };
    let right = with(Some(&ca_file));
    let answer = get(&right, &format!("https://localhost:{port}/")).await;
    assert_eq!(answer.unwrap().body.as_slice(), b"hello");
    let by_address = get(&right, &format!("https://127.0.0.1:{port}/")).await;
    assert_eq!(code(by_address), "TLS");
    for untrusting in [with(None), with(Some(&foreign))] {
        let answer = get(&untrusting, &format!("https://localhost:{port}/")).await;
        assert_eq!(code(answer), "TLS");
    }
    let (plain, _asked) = plain(OK).await;
    let answer = get(&right, &format!("https://localhost:{}/", plain.port())).await;
    assert_eq!(code(answer), "TLS");
}

#[tokio::test]
async fn answers_have_bounds() {
    let head = "HTTP/1.1 200 OK\r\n";
    let announced = format!("{head}content-length: {}\r\n\r\n", MAX_ANSWER + 1);
    let endless = [
        format!("{head}\r\n").into_bytes(),
        vec![b'a'; MAX_ANSWER + 1],
    ]
    .concat();
    let full = [format!("{head}\r\n").into_bytes(), vec![b'a'; MAX_ANSWER]].concat();
    let headers = format!("{head}x: {}\r\n\r\n", "a".repeat(200 << 10));
    let many = format!("{head}{}\r\n", "x: y\r\n".repeat(200));
    for (answer, expected) in [
        (announced.into_bytes(), "TOO_LONG"),
        (endless, "TOO_LONG"),
        (full, "an answer"),
        (headers.into_bytes(), "TOO_LONG"),
        (many.into_bytes(), "TOO_LONG"),
        (
            format!("{head}content-length: 9\r\n\r\nhell").into_bytes(),
            "BROKEN",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), "BROKEN"),
        (Vec::new(), "BROKEN"),
    ] {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(60)]).into_owned();
        let (address, _asked) = plain(answer).await;
        let answer = get(&loopback(), &format!("http://{address}/")).await;
        assert_eq!(code(answer), expected, "{shown:?}");
    }
}

#[tokio::test]
async fn who_hangs_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let held = tokio::spawn(async move {
        let mut held: Vec<TcpStream> = Vec::new();
        for _ in 0..2 {
            held.push(listener.accept().await.unwrap().0);
        }
        // Both ends of both connections: the client closes what it no longer waits for.
        for mut stream in held {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        }
    });
    for url in [format!("http://{address}/"), format!("https://{address}/")] {
        let hanging = Request::new(Method::GET, url).patience(Duration::from_millis(200));
        assert_eq!(code(egress(&loopback()).send(hanging).await), "TIMEOUT");
    }
    held.await.unwrap();
}

#[tokio::test]
async fn the_configuration_bounds_every_patience() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let mut config = loopback();
    config.max_seconds = 1;
    let patient = Request::new(Method::GET, url).patience(Duration::from_hours(1));
    assert_eq!(code(egress(&config).send(patient).await), "TIMEOUT");
}

#[tokio::test]
async fn nobody_there_is_said_so() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", free.local_addr().unwrap());
    drop(free);
    assert_eq!(code(get(&loopback(), &url).await), "UNREACHABLE");
    // RFC 2606 keeps this name without an address.
    let unknown = get(&loopback(), "http://nowhere.invalid/").await;
    assert_eq!(code(unknown), "UNRESOLVED");
}

#[test]
fn codes_are_unlike_each_other_and_errors_say_nothing_of_the_request() {
    let mut codes: Vec<_> = EgressError::ALL.map(EgressError::as_str).into();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), EgressError::ALL.len());
}

#[test]
fn a_ca_file_without_certificates_is_refused() {
    let file = std::env::temp_dir().join(format!("claviger-egress-{}-none", std::process::id()));
    for text in [
        "",
        "no PEM",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        std::fs::write(&file, text).unwrap();
        let config = EgressConfig {
            ca_file: Some(file.clone()),
            ..EgressConfig::default()
        };
        assert!(Egress::new(&config).is_err(), "{text}");
    }
    let config = EgressConfig {
        ca_file: Some("/nowhere/ca.pem".into()),
        ..EgressConfig::default()
    };
    let error = Egress::new(&config).err().unwrap();
    assert!(error.contains("/nowhere/ca.pem"), "{error}");
    let mut config = EgressConfig::default();
    assert_eq!(config.check(), Ok(()));
    for seconds in [0, 301] {
        config.max_seconds = seconds;
        assert!(config.check().is_err());
    }
}
