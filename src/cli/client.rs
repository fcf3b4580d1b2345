//! The gRPC connection of the command line, and one typed client per service.
//!
//! Every call carries its deadline to the server, so that work nobody waits for is not done.

use std::{path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use tonic::{
    Request, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Uri},
};

use super::{
    exit::{Failure, Result},
    tls,
};
use crate::grpc::proto::{
    audit_service_client::AuditServiceClient, crypto_service_client::CryptoServiceClient,
    key_service_client::KeyServiceClient, principal_service_client::PrincipalServiceClient,
    rotation_service_client::RotationServiceClient, token_service_client::TokenServiceClient,
};

/// The largest message either side may send, and room for its frame: proto/claviger/v1/crypto.proto.
const MAX_MESSAGE: usize = (8 << 20) + (64 << 10);

/// Where to connect, and as whom.
#[derive(Clone, Debug)]
pub struct Target {
    /// `https://host:port`.
    pub address: String,
    /// CA that signed the server's certificate.
    pub ca: PathBuf,
    /// Client certificate and key; without them only public RPCs can be called.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name in the server's certificate, when it is not the host of the address.
    pub server_name: Option<String>,
    /// For connecting, and for each call.
    pub timeout: Duration,
}

/// An open connection. Cloning is cheap.
#[derive(Clone)]
pub struct Connection {
    service: Service,
}

type Service = InterceptedService<Channel, Deadline>;

/// Tells the server how long the caller waits.
#[derive(Clone, Copy)]
pub struct Deadline(Duration);

impl Interceptor for Deadline {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        request.set_timeout(self.0);
        Ok(request)
    }
}

macro_rules! clients {
    ($($(#[$doc:meta])* $name:ident: $client:ident,)*) => {
        impl Connection {
            $($(#[$doc])*
            pub fn $name(&self) -> $client<Service> {
                $client::new(self.service.clone())
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE)
            })*
        }
    };
}

clients! {
    /// Client of `CryptoService`.
    crypto: CryptoServiceClient,
    /// Client of `KeyService`.
    keys: KeyServiceClient,
    /// Client of `RotationService`.
    rotations: RotationServiceClient,
    /// Client of `TokenService`.
    tokens: TokenServiceClient,
    /// Client of `PrincipalService`.
    principals: PrincipalServiceClient,
    /// Client of `AuditService`.
    audit: AuditServiceClient,
}

/// Connects to `target`. Errors say which of file, address, server or client certificate is at fault.
pub async fn connect(target: &Target) -> Result<Connection> {
    let (host, address) = host_and_port(&target.address)?;
    let identity = target.identity.as_ref();
    let identity = identity.map(|(certificate, key)| tls::Identity { certificate, key });
    let config = tls::config(&target.ca, identity, b"h2")?;
    let name = target.server_name.clone().unwrap_or(host);

    // TLS is ours, so the endpoint itself is plain; the origin is what the server sees.
    let origin: Uri = format!("https://{address}").parse().map_err(bad_address)?;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(bad_address)?
        .origin(origin)
        .timeout(target.timeout);
    let timeout = target.timeout;
    let connector = tower::service_fn(move |_: Uri| {
        let (config, address, name) = (config.clone(), address.clone(), name.clone());
        async move {
            let late =
                |_| Failure::unavailable(format!("no connection to {address} in {timeout:?}"));
            let connecting = tls::connect(config, &address, &name);
            let stream = tokio::time::timeout(timeout, connecting)
                .await
                .map_err(late)??;
            Ok::<_, Failure>(TokioIo::new(stream))
        }
    });
    let channel = endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|e| Status::from_error(Box::new(e)))?;
    Ok(Connection {
        service: InterceptedService::new(channel, Deadline(target.timeout)),
    })
}

/// `("localhost", "localhost:8443")` of `https://localhost:8443`.
fn host_and_port(address: &str) -> Result<(String, String)> {
    let url = url::Url::parse(address).map_err(bad_address)?;
    if url.scheme() != "https" {
        return Err(bad_address("it must begin with https://"));
    }
    let host = url
        .host_str()
        .ok_or_else(|| bad_address("it has no host"))?;
    let port = url.port().unwrap_or(8443);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    Ok((bare.to_owned(), format!("{host}:{port}")))
}

fn bad_address(why: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("wrong --address: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_https_with_a_port() {
        let parsed = |address| host_and_port(address).map_err(|e| e.to_string());
        let ok = |host: &str, address: &str| Ok((host.to_owned(), address.to_owned()));
        assert_eq!(
            parsed("https://a.example:1"),
            ok("a.example", "a.example:1")
        );
        assert_eq!(
            parsed("https://a.example"),
            ok("a.example", "a.example:8443")
        );
        assert_eq!(parsed("https://[::1]:5"), ok("::1", "[::1]:5"));
        assert!(parsed("http://a.example:1").is_err());
        assert!(parsed("localhost:8443").is_err());
    }
}
