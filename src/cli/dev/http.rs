//! One HTTP GET, plain for the ops listener and TLS for the public one. What a verifier needs, no more.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
pub use http::header::{CACHE_CONTROL, ETAG};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    client::conn::http1,
    rt::{Read, Write},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::cli::{
    exit::{Failure, Result},
    tls,
};

const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_BODY: usize = 1 << 20;

/// What came back.
pub struct Answer {
    /// Status code.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// GET over HTTPS, trusting `ca` only. `address` is `host:port`.
pub async fn https(ca: &Path, address: &str, path: &str) -> Result<Answer> {
    // No HTTP/2 for a single request.
    let config = tls::config(ca, None, b"http/1.1")?;
    within(address, async {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let stream = tls::connect(Arc::clone(&config), address, host).await?;
        get(TokioIo::new(stream), address, path).await
    })
    .await
}

/// GET over plain HTTP.
pub async fn plain(address: &str, path: &str) -> Result<Answer> {
    within(address, async {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|e| Failure::unavailable(format!("cannot connect to {address}: {e}")))?;
        get(TokioIo::new(stream), address, path).await
    })
    .await
}

async fn within(address: &str, work: impl Future<Output = Result<Answer>>) -> Result<Answer> {
    let late = |_| Failure::unavailable(format!("no answer from {address} in {TIMEOUT:?}"));
    tokio::time::timeout(TIMEOUT, work).await.map_err(late)?
}

async fn get<T>(io: T, address: &str, path: &str) -> Result<Answer>
where
    T: Read + Write + Unpin + Send + 'static,
{
    let failed =
        |e: &dyn std::fmt::Display| Failure::unavailable(format!("GET {path} from {address}: {e}"));
    let (mut sender, connection) = http1::handshake(io).await.map_err(|e| failed(&e))?;
    let request = Request::get(path)
        .header(header::HOST, address)
        .body(Empty::<Bytes>::new())
        .map_err(|e| failed(&e))?;
    let exchange = async {
        let (parts, body) = sender
            .send_request(request)
            .await
            .map_err(|e| failed(&e))?
            .into_parts();
        let body = Limited::new(body, MAX_BODY)
            .collect()
            .await
            .map_err(|e| failed(&e))?;
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.to_bytes(),
        })
    };
    // The connection does the reading and writing; it ends with the exchange, or fails and ends it.
    let mut connection = std::pin::pin!(connection);
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(e) => Err(failed(&e)),
        },
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use hyper_util::service::TowerToHyperService;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::cli::dev::{certs, files, files::tests::Scratch};

    fn app() -> Router {
        Router::new().route("/here", get(async || "hello"))
    }

    #[tokio::test]
    async fn a_plain_get_gets_an_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(axum::serve(listener, app()).into_future());
        let answer = plain(&address, "/here").await.unwrap();
        assert_eq!(
            (answer.status.as_u16(), &answer.body[..]),
            (200, &b"hello"[..])
        );
        assert_eq!(
            plain(&address, "/there").await.unwrap().status.as_u16(),
            404
        );
    }

    #[tokio::test]
    async fn https_trusts_the_given_ca_only() {
        let scratch = Scratch::new("https");
        let dir = scratch.path();
        files::directories(dir).unwrap();
        certs::provision(dir).unwrap();
        let (certificate, key) = certs::pair(dir, "server");
        let chain = vec![CertificateDer::from_pem_file(&certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(&key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(tcp).await else {
                    continue;
                };
                let service = TowerToHyperService::new(app());
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(serving);
            }
        });
        let ca = dir.join("certs/ca.crt");
        let answer = https(&ca, &address, "/here").await.unwrap();
        assert_eq!(
            (answer.status.as_u16(), &answer.body[..]),
            (200, &b"hello"[..])
        );

        let foreign = Scratch::new("https-foreign");
        files::directories(foreign.path()).unwrap();
        certs::provision(foreign.path()).unwrap();
        let refused = https(&foreign.path().join("certs/ca.crt"), &address, "/here").await;
        assert!(refused.is_err());
    }
}
