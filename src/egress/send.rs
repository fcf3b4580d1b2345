//! One request over one connection of its own: look up, check, connect, TLS, HTTP/1.1.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use url::{Host, Url};
use zeroize::Zeroizing;

use super::{Answer, Egress, EgressError, MAX_ANSWER, Network, Request, address::may_reach};

/// Headers of an answer at most, and bytes of them.
const MAX_HEADERS: usize = 100;
const MAX_HEAD: usize = 64 << 10;
/// Addresses of one host that are tried at most.
const MAX_ADDRESSES: usize = 4;

type Outgoing = http::Request<Full<Bytes>>;

pub(super) async fn send(
    egress: &Egress,
    request: Request,
    patience: Duration,
) -> Result<Answer, EgressError> {
    let url = target(&request.url, egress.allow_http)?;
    let outgoing = outgoing(&url, request)?;
    let addresses = resolve(&url, &egress.allowed).await?;
    let stream = connect(&addresses, patience).await?;
    match url.scheme() {
        "https" => {
            let connector = TlsConnector::from(Arc::clone(&egress.tls));
            let stream = connector.connect(server_name(&url)?, stream).await;
            exchange(stream.map_err(|_| EgressError::Tls)?, outgoing).await
        }
        _ => exchange(stream, outgoing).await,
    }
}

/// The URL, if it is one that may be asked.
fn target(text: &str, allow_http: bool) -> Result<Url, EgressError> {
    let url = Url::parse(text).map_err(|_| EgressError::BadRequest)?;
    match url.scheme() {
        "https" => {}
        "http" if allow_http => {}
        "http" => return Err(EgressError::PlainHttp),
        _ => return Err(EgressError::BadRequest),
    }
    let names_user = !url.username().is_empty() || url.password().is_some();
    match url.host().is_some() && !names_user {
        true => Ok(url),
        false => Err(EgressError::BadRequest),
    }
}

fn outgoing(url: &Url, request: Request) -> Result<Outgoing, EgressError> {
    let bad = |_| EgressError::BadRequest;
    let path = Zeroizing::new(match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    });
    let host = url.host_str().unwrap_or_default();
    let host = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let body = Full::new(Bytes::copy_from_slice(&request.body));
    let mut outgoing = http::Request::builder()
        .method(request.method)
        .uri(path.as_str())
        .body(body)
        .map_err(|_| EgressError::BadRequest)?;
    let headers = outgoing.headers_mut();
    for (name, value) in &request.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| EgressError::BadRequest)?;
        let mut value = HeaderValue::from_str(value).map_err(bad)?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    headers.insert(header::HOST, HeaderValue::from_str(&host).map_err(bad)?);
    // What is compressed could unfold to any length.
    let identity = HeaderValue::from_static("identity");
    headers.insert(header::ACCEPT_ENCODING, identity);
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
    Ok(outgoing)
}

/// The addresses of the host, if the daemon may speak to every one of them: a name that also leads inside is not trusted
/// with its other addresses.
async fn resolve(url: &Url, allowed: &[Network]) -> Result<Vec<SocketAddr>, EgressError> {
    let port = url.port_or_known_default().ok_or(EgressError::BadRequest)?;
    let addresses: Vec<SocketAddr> = match url.host() {
        Some(Host::Ipv4(address)) => vec![(address, port).into()],
        Some(Host::Ipv6(address)) => vec![(address, port).into()],
        Some(Host::Domain(name)) => {
            let found = tokio::net::lookup_host((name, port)).await;
            found.map_err(|_| EgressError::Unresolved)?.collect()
        }
        None => Vec::new(),
    };
    if addresses.is_empty() {
        return Err(EgressError::Unresolved);
    }
    match addresses.iter().all(|at| may_reach(at.ip(), allowed)) {
        true => Ok(addresses),
        false => Err(EgressError::RefusedAddress),
    }
}

/// To the first address that takes it; each has its share of the time.
async fn connect(addresses: &[SocketAddr], patience: Duration) -> Result<TcpStream, EgressError> {
    let tried = addresses.len().min(MAX_ADDRESSES);
    let share = patience / u32::try_from(tried).unwrap_or(1).max(1);
    for address in addresses.iter().take(tried) {
        let connected = tokio::time::timeout(share, TcpStream::connect(address)).await;
        if let Ok(Ok(stream)) = connected {
            return Ok(stream);
        }
    }
    Err(EgressError::Unreachable)
}

fn server_name(url: &Url) -> Result<ServerName<'static>, EgressError> {
    let name = match url.host() {
        Some(Host::Ipv4(address)) => Some(ServerName::from(std::net::IpAddr::V4(address))),
        Some(Host::Ipv6(address)) => Some(ServerName::from(std::net::IpAddr::V6(address))),
        Some(Host::Domain(name)) => ServerName::try_from(name.to_owned()).ok(),
        None => None,
    };
    name.ok_or(EgressError::BadRequest)
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    outgoing: Outgoing,
) -> Result<Answer, EgressError> {
    let opened = http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = opened.map_err(|_| EgressError::Broken)?;
    let answered = async {
        let answer = sender.send_request(outgoing).await;
        read(answer.map_err(|e| reason(&e))?).await
    };
    tokio::pin!(answered, connection);
    // The connection is driven here and not in a task: who gives up waiting closes it.
    tokio::select! {
        biased;
        answer = &mut answered => answer,
        _ = &mut connection => answered.await,
    }
}

async fn read(answer: http::Response<Incoming>) -> Result<Answer, EgressError> {
    let (head, body) = answer.into_parts();
    if is_redirect(head.status) {
        return Err(EgressError::Redirect);
    }
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    let body = body.map_err(|e| match e.is::<LengthLimitError>() {
        true => EgressError::TooLong,
        false => EgressError::Broken,
    })?;
    Ok(Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: Zeroizing::new(body.to_bytes().to_vec()),
    })
}

const fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// A handshake that the server refuses after TLS 1.3's first flight looks like a broken read; so does a cut connection.
fn reason(error: &hyper::Error) -> EgressError {
    let tls = std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::get_ref)
        .is_some_and(|inner| inner.is::<rustls::Error>());
    match (tls, error.is_parse_too_large()) {
        (true, _) => EgressError::Tls,
        (false, true) => EgressError::TooLong,
        (false, false) => EgressError::Broken,
    }
}
