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
    alert_service_client::AlertServiceClient, api_key_service_client::ApiKeyServiceClient,
    audit_service_client::AuditServiceClient, client_service_client::ClientServiceClient,
    crypto_service_client::CryptoServiceClient, data_key_service_client::DataKeyServiceClient,
    erasure_service_client::ErasureServiceClient, incident_service_client::IncidentServiceClient,
    kek_service_client::KekServiceClient, key_service_client::KeyServiceClient,
    mac_service_client::MacServiceClient, principal_service_client::PrincipalServiceClient,
    rotation_service_client::RotationServiceClient, token_service_client::TokenServiceClient,
    usage_service_client::UsageServiceClient,
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
    channel: Channel,
    service: Service,
}

/// What generated clients call.
pub type Service = InterceptedService<Channel, Deadline>;

impl Connection {
    /// For clients of services that are not ours.
    pub fn service(&self) -> Service {
        self.service.clone()
    }

    /// `CryptoService` for calls that take as long as their input: without a deadline.
    pub fn streams(&self) -> CryptoServiceClient<Service> {
        let service = InterceptedService::new(self.channel.clone(), Deadline(None));
        CryptoServiceClient::new(service)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }
}

/// Tells the server how long the caller waits, if there is an end to it.
#[derive(Clone, Copy)]
pub struct Deadline(Option<Duration>);

impl Interceptor for Deadline {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(timeout) = self.0 {
            request.set_timeout(timeout);
        }
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
    /// Client of `DataKeyService`.
    data_keys: DataKeyServiceClient,
    /// Client of `MacService`.
    macs: MacServiceClient,
    /// Client of `KeyService`.
    keys: KeyServiceClient,
    /// Client of `RotationService`.
    rotations: RotationServiceClient,
    /// Client of `ErasureService`.
    erasures: ErasureServiceClient,
    /// The key-encryption key.
    keks: KekServiceClient,
    /// Client of `IncidentService`.
    incidents: IncidentServiceClient,
    /// Client of `TokenService`.
    tokens: TokenServiceClient,
    /// Client of `PrincipalService`.
    principals: PrincipalServiceClient,
    /// Client of `ClientService`.
    clients: ClientServiceClient,
    /// Client of `ApiKeyService`.
    api_keys: ApiKeyServiceClient,
    /// Client of `AuditService`.
    audit: AuditServiceClient,
    /// Client of `UsageService`.
    usage: UsageServiceClient,
    /// Client of `AlertService`.
    alerts: AlertServiceClient,
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
    let deadline = Deadline(Some(target.timeout));
    Ok(Connection {
        service: InterceptedService::new(channel.clone(), deadline),
        channel,
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
    use std::{net::SocketAddr, path::Path};

    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{
        Response,
        transport::{Certificate, Identity, Server, ServerTlsConfig},
    };

    use super::*;
    use crate::{
        cli::{
            dev::{certs, files, files::tests::Scratch},
            exit::Exit,
        },
        grpc::proto::{
            GetJwksRequest, GetJwksResponse, IssueTokenRequest, IssueTokenResponse,
            RevokeTokenRequest, RevokeTokenResponse, VerifyTokenRequest, VerifyTokenResponse,
            token_service_server::{TokenService, TokenServiceServer},
        },
    };

    /// Answers GetJwks with the deadline it was given.
    struct Fake;

    #[tonic::async_trait]
    impl TokenService for Fake {
        async fn get_jwks(
            &self,
            request: Request<GetJwksRequest>,
        ) -> std::result::Result<Response<GetJwksResponse>, Status> {
            let deadline = request
                .metadata()
                .get("grpc-timeout")
                .and_then(|value| value.to_str().ok());
            let etag = deadline.unwrap_or_default().to_owned();
            Ok(Response::new(GetJwksResponse {
                etag,
                ..Default::default()
            }))
        }

        async fn issue_token(
            &self,
            _: Request<IssueTokenRequest>,
        ) -> std::result::Result<Response<IssueTokenResponse>, Status> {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Err(Status::internal("too late"))
        }

        async fn verify_token(
            &self,
            _: Request<VerifyTokenRequest>,
        ) -> std::result::Result<Response<VerifyTokenResponse>, Status> {
            Err(Status::unimplemented("not here"))
        }

        async fn revoke_token(
            &self,
            _: Request<RevokeTokenRequest>,
        ) -> std::result::Result<Response<RevokeTokenResponse>, Status> {
            Err(Status::unimplemented("not here"))
        }
    }

    /// Certificates of one CA, and a server that trusts them.
    async fn serve(name: &str) -> (Scratch, SocketAddr) {
        let scratch = Scratch::new(name);
        let dir = scratch.path();
        files::directories(dir).unwrap();
        certs::provision(dir).unwrap();
        let (certificate, key) = certs::pair(dir, "server");
        let read = |path: &Path| std::fs::read(path).unwrap();
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(read(&certificate), read(&key)))
            .client_ca_root(Certificate::from_pem(read(&dir.join("certs/ca.crt"))));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(TokenServiceServer::new(Fake));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (scratch, address)
    }

    fn target(dir: &Path, address: SocketAddr) -> Target {
        Target {
            address: format!("https://{address}"),
            ca: dir.join("certs/ca.crt"),
            identity: Some(certs::pair(dir, "service")),
            server_name: None,
            timeout: Duration::from_secs(5),
        }
    }

    async fn call(target: &Target) -> Result<GetJwksResponse> {
        let connection = connect(target).await?;
        Ok(connection
            .tokens()
            .get_jwks(GetJwksRequest {})
            .await?
            .into_inner())
    }

    #[tokio::test]
    async fn calls_carry_a_deadline_and_end_with_it() {
        let (scratch, address) = serve("client-good").await;
        let mut target = target(scratch.path(), address);
        assert_eq!(call(&target).await.unwrap().etag, "5000000u");
        target.timeout = Duration::from_millis(300);
        let connection = connect(&target).await.unwrap();
        let late = connection
            .tokens()
            .issue_token(IssueTokenRequest::default())
            .await;
        assert_eq!(Failure::from(late.unwrap_err()).exit(), Exit::Unavailable);
    }

    #[tokio::test]
    async fn a_server_that_is_not_trusted_is_named_as_such() {
        let (scratch, address) = serve("client-server").await;
        let (foreign, _) = serve("client-foreign").await;
        let mut wrong = target(scratch.path(), address);
        wrong.ca = foreign.path().join("certs/ca.crt");
        let failure = call(&wrong).await.unwrap_err();
        assert!(failure.to_string().contains("did not sign it"), "{failure}");
        let mut wrong = target(scratch.path(), address);
        wrong.server_name = Some("example.org".into());
        let failure = call(&wrong).await.unwrap_err();
        assert!(
            failure.to_string().contains("not for \"example.org\""),
            "{failure}"
        );
    }

    #[tokio::test]
    async fn a_refused_client_certificate_is_named_as_such() {
        let (scratch, address) = serve("client-refused").await;
        let (foreign, _) = serve("client-refused-foreign").await;
        for identity in [None, Some(certs::pair(foreign.path(), "service"))] {
            let mut refused = target(scratch.path(), address);
            refused.identity = identity;
            let failure = call(&refused).await.unwrap_err();
            assert!(
                failure
                    .to_string()
                    .contains("refused the client certificate"),
                "{failure}"
            );
            assert_eq!(failure.exit(), Exit::Denied);
        }
    }

    #[tokio::test]
    async fn missing_files_and_servers_are_named() {
        let (scratch, address) = serve("client-missing").await;
        let mut missing = target(scratch.path(), address);
        missing.ca = "/nowhere/ca.crt".into();
        let failure = call(&missing).await.unwrap_err();
        assert!(failure.to_string().contains("/nowhere/ca.crt"), "{failure}");
        let free = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let failure = call(&target(scratch.path(), free)).await.unwrap_err();
        assert!(failure.to_string().contains("cannot connect"), "{failure}");
        assert_eq!(failure.exit(), Exit::Unavailable);
    }

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
