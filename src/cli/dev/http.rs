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
