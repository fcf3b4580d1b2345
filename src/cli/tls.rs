//! TLS as a client: TLS 1.3 only, one CA, the aws-lc-rs provider named outright.
//!
//! `client.rs` puts gRPC on top, `dev/http.rs` an HTTPS GET. What goes wrong is told apart here, where the
//! typed error still exists: no file, no connection, a server that is not trusted, a client that is refused.

use std::{io, path::Path, sync::Arc};

use rustls::{CertificateError, ClientConfig, RootCertStore, version::TLS13};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::exit::{Exit, Failure, Result, refused_certificate};

/// What a client trusts and shows.
pub struct Identity<'a> {
    /// Certificate chain, PEM.
    pub certificate: &'a Path,
    /// Its private key, PEM.
    pub key: &'a Path,
}

/// A configuration that trusts `ca` only and offers `alpn`.
///
/// Errors name the file that is missing or holds something else.
pub fn config(ca: &Path, identity: Option<Identity<'_>>, alpn: &[u8]) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots
            .add(certificate)
            .map_err(|e| Failure::usage(format!("{}: not a CA certificate: {e}", ca.display())))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(Failure::other)?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(Identity { certificate, key }) => {
            let chain = certificates(certificate)?;
            let private = PrivateKeyDer::from_pem_file(key).map_err(|e| pem_failure(key, e))?;
            builder.with_client_auth_cert(chain, private).map_err(|e| {
                let (certificate, key) = (certificate.display(), key.display());
                Failure::usage(format!(
                    "{certificate} and {key} do not belong together: {e}"
                ))
            })?
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

/// Connects and shakes hands. `address` is `host:port`; `name` is what the server's certificate must be for.
pub async fn connect(
    config: Arc<ClientConfig>,
    address: &str,
    name: &str,
) -> Result<TlsStream<TcpStream>> {
    let server = ServerName::try_from(name.to_owned())
        .map_err(|_| Failure::usage(format!("{name:?} is not a host name or IP address")))?;
    let tcp = TcpStream::connect(address)
        .await
        .map_err(|e| Failure::unavailable(format!("cannot connect to {address}: {e}")))?;
    // Small messages must not wait for each other.
    tcp.set_nodelay(true).map_err(Failure::other)?;
    TlsConnector::from(config)
        .connect(server, tcp)
        .await
        .map_err(|e| handshake_failure(address, name, &e))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|e| pem_failure(path, e))?
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| pem_failure(path, e))?;
    match chain.is_empty() {
        true => Err(Failure::usage(format!(
            "{}: holds no PEM certificate",
            path.display()
        ))),
        false => Ok(chain),
    }
}

fn pem_failure(path: &Path, error: rustls_pki_types::pem::Error) -> Failure {
    use rustls_pki_types::pem::Error;
    let path = path.display();
    match error {
        Error::Io(e) => Failure::usage(format!("cannot read {path}: {e}")),
        // The other variants may quote the file, and it may be a key.
        _ => Failure::usage(format!(
            "{path}: not a PEM file of the kind that is needed here"
        )),
    }
}

fn handshake_failure(address: &str, name: &str, error: &io::Error) -> Failure {
    use CertificateError as Bad;
    let tls = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    let untrusted = |why: &str| {
        let text = format!("the certificate of the server at {address} is not trusted: {why}");
        Failure::new(Exit::Other, text)
    };
    match tls {
        Some(rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature)) => {
            untrusted("the CA given with --ca did not sign it")
        }
        Some(rustls::Error::InvalidCertificate(
            Bad::NotValidForName | Bad::NotValidForNameContext { .. },
        )) => untrusted(&format!("it is not for {name:?}; see --server-name")),
        Some(rustls::Error::InvalidCertificate(other)) => untrusted(&other.to_string()),
        Some(rustls::Error::AlertReceived(alert)) => refused_certificate(format!("{alert:?}")),
        Some(rustls::Error::InvalidMessage(_)) => {
            Failure::unavailable(format!("{address} does not speak TLS"))
        }
        Some(other) => Failure::unavailable(format!("TLS handshake with {address}: {other}")),
        None => Failure::unavailable(format!("TLS handshake with {address}: {error}")),
    }
}
