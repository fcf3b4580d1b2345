//! A certificate authority for tests, and TLS clients that trust it.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use claviger::authn::TlsConfig;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    version::TLS13,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A CA with its own name and key.
pub struct Ca {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
pub struct Leaf {
    pub der: CertificateDer<'static>,
    pub pem: String,
    pub key: KeyPair,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = cn(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("key");
        let certificate = params.self_signed(&key).expect("self-signed");
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    pub fn issue(&self, params: CertificateParams) -> Leaf {
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        Leaf {
            der: certificate.der().clone(),
            pem: certificate.pem(),
            key,
        }
    }

    /// A server certificate for `localhost`.
    pub fn server(&self) -> Leaf {
        self.issue(named("server", [dns("localhost")]))
    }

    /// A client certificate with that SPIFFE ID.
    pub fn client(&self, id: &str) -> Leaf {
        self.issue(named("client", [uri(id)]))
    }

    /// A revocation list with one serial number.
    pub fn crl(&self, serial: u64) -> String {
        let revoked = RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: 1_u64.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let crl = params.signed_by(&self.issuer).expect("signed");
        crl.pem().expect("PEM")
    }

    /// A client configuration that trusts this CA and shows `leaf`, if any.
    pub fn client_config(&self, leaf: Option<&Leaf>) -> ClientConfig {
        self.client_config_for(leaf, &TLS13)
    }

    pub fn client_config_for(
        &self,
        leaf: Option<&Leaf>,
        version: &'static SupportedProtocolVersion,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).expect("root");
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[version])
            .expect("version")
            .with_root_certificates(roots);
        match leaf {
            Some(leaf) => builder
                .with_client_auth_cert(vec![leaf.der.clone()], leaf.private_key())
                .expect("client certificate"),
            None => builder.with_no_client_auth(),
        }
    }
}

impl Leaf {
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

/// A directory with the PEM files of a server; it goes away with the value.
pub struct Files {
    directory: PathBuf,
}

impl Files {
    pub fn new(ca: &Ca, server: &Leaf) -> Self {
        let directory = std::env::temp_dir().join(format!("claviger-{}", uuid::Uuid::now_v7()));
        fs::create_dir(&directory).expect("directory");
        let files = Self { directory };
        files.write("ca.pem", &ca.pem());
        files.deploy(server);
        files
    }

    pub fn deploy(&self, server: &Leaf) {
        self.write("server.pem", &server.pem);
        self.write("server.key", &server.key.serialize_pem());
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("write");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub fn config(&self) -> TlsConfig {
        TlsConfig {
            certificate: self.path("server.pem"),
            key: self.path("server.key"),
            client_ca: Some(self.path("ca.pem")),
            crl: None,
            reload_seconds: 30,
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Path::new(&self.directory));
    }
}

pub fn named(name: &str, sans: impl IntoIterator<Item = SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = cn(name);
    params.subject_alt_names = sans.into_iter().collect();
    params
}

pub fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("ASCII"))
}

pub fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().expect("ASCII"))
}

fn cn(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Connects as TLS client to `localhost`.
pub async fn connect(
    addr: SocketAddr,
    config: impl Into<Arc<ClientConfig>>,
) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(addr).await?;
    let name = ServerName::try_from("localhost").expect("name");
    TlsConnector::from(config.into()).connect(name, tcp).await
}
