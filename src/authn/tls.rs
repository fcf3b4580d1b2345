//! TLS of the listeners: 1.3 only. Whether a client must show a certificate, may, or is not asked, is up to the listener;
//! one that is shown is always verified.
//!
//! No session is ever resumed: rustls would accept the certificate of the first handshake again, even after it expired
//! or was revoked. The certificate on disk can be renewed while the daemon runs: [`ReloadableTls::reload`]
//! reads and checks everything before it replaces anything. `accept` turns a TCP listener into
//! connections whose handshake is done; who the client is, is for `peer` to say.

mod accept;
mod files;
pub mod renewal;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::UnixTime,
    server::{
        NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier, danger::ClientCertVerifier,
    },
    sign::SingleCertAndKey,
    time_provider::TimeProvider,
    version::TLS13,
};
use serde::Deserialize;

pub use self::{
    accept::{AcceptLimits, TlsConn, accept},
    files::first_expiry,
};
use crate::{clock::Clock, model::Timestamp};

/// Section `tls` of a listener. All files are PEM.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The daemon's certificate, leaf first, then intermediates.
    pub certificate: PathBuf,
    /// The certificate's private key: PKCS#8, SEC1 or PKCS#1.
    pub key: PathBuf,
    /// Certificates of the CAs whose client certificates count. Required where a listener asks for one.
    pub client_ca: Option<PathBuf>,
    /// Revocation lists of those CAs, in one file. With it, a client whose issuer has no list in the file
    /// is refused.
    pub crl: Option<PathBuf>,
    /// Time between two looks at whether the files have changed, in seconds, 1 to 86,400. Default 30.
    #[serde(default = "reload_seconds")]
    pub reload_seconds: u64,
}

const fn reload_seconds() -> u64 {
    30
}

impl TlsConfig {
    /// Errors: a sentence that names the setting.
    pub fn check(&self) -> Result<(), String> {
        match self.reload_seconds {
            1..=86_400 => Ok(()),
            _ => Err("tls.reload_seconds must be 1 to 86400".into()),
        }
    }
}

/// Why TLS cannot be set up: which file, what is wrong with it, what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be opened or read.
    #[error("tls.{setting}: cannot read {}: {source}; check the path and its permissions", .path.display())]
    Unreadable {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A file holds nothing of the expected kind.
    #[error(
        "tls.{setting}: {} holds no {expected} in PEM format; point it at a PEM file",
        .path.display()
    )]
    NotPem {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
    },
    /// A file holds PEM, but what is inside cannot be used.
    #[error("tls.{setting}: {} cannot be used: {detail}; replace the file", .path.display())]
    Unusable {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with the content; never the content.
        detail: String,
    },
    /// The private key belongs to another certificate.
    #[error(
        "tls.key: {} does not belong to the certificate in {}; deploy the two files together",
        .key.display(), .certificate.display()
    )]
    KeyMismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// The certificate is not valid any more.
    #[error("tls.certificate: {} expired at {not_after}; renew it", .path.display())]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// When it expired.
        not_after: Timestamp,
    },
    /// The certificate is not valid yet.
    #[error(
        "tls.certificate: {} is not valid before {not_before}; check the clock, or deploy it later",
        .path.display()
    )]
    NotYetValid {
        /// The certificate's file.
        path: PathBuf,
        /// When it becomes valid.
        not_before: Timestamp,
    },
    /// A listener that asks for client certificates has no CA to check them against.
    #[error(
        "tls.client_ca is missing; set it to the PEM file of the CA that issues client certificates"
    )]
    NoClientCa,
    /// rustls refuses the combination.
    #[error("tls cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
}

/// Whether a listener asks its clients for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificate {
    /// No connection without one.
    Required,
    /// Who has none may come with a token or an API key.
    Optional,
    /// Nobody is asked.
    None,
}

/// How a listener speaks TLS.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Whether it asks for a certificate.
    pub client_certificate: ClientCertificate,
    /// Protocols it offers, best first (RFC 7301).
    pub alpn: &'static [&'static [u8]],
}

impl Manner {
    /// The gRPC listener's.
    pub const fn grpc(client_certificate: ClientCertificate) -> Self {
        Self {
            client_certificate,
            alpn: &[b"h2"],
        }
    }

    /// The public listener's.
    pub const fn public(client_certificate: ClientCertificate) -> Self {
        Self {
            client_certificate,
            alpn: &[b"h2", b"http/1.1"],
        }
    }
}

/// The configuration of a listener. Errors: a file that cannot be used, named.
pub fn server_config(
    config: &TlsConfig,
    clock: &Clock,
    manner: Manner,
) -> Result<ServerConfig, TlsError> {
    let provider = provider();
    let verifier = match manner.client_certificate {
        ClientCertificate::None => WebPkiClientVerifier::no_client_auth(),
        asked => verifier(config, &provider, asked)?,
    };
    let identity = files::certified_key(config, &provider, clock.now())?;
    let time = Arc::new(ClockTime(clock.clone()));
    let mut tls = ServerConfig::builder_with_details(provider, time)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
    tls.alpn_protocols = manner.alpn.iter().map(|name| name.to_vec()).collect();
    // Resumption, by any of three ways, would skip the check of the client's certificate.
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.ticketer = Arc::new(NoTickets);
    tls.max_early_data_size = 0;
    Ok(tls)
}

fn verifier(
    config: &TlsConfig,
    provider: &Arc<CryptoProvider>,
    asked: ClientCertificate,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let ca = config.client_ca.as_deref().ok_or(TlsError::NoClientCa)?;
    let mut verifier = WebPkiClientVerifier::builder_with_provider(
        Arc::new(files::roots("client_ca", ca)?),
        Arc::clone(provider),
    );
    if asked == ClientCertificate::Optional {
        verifier = verifier.allow_unauthenticated();
    }
    if let Some(crl) = &config.crl {
        verifier = verifier
            .with_crls(files::crls("crl", crl)?)
            .only_check_end_entity_revocation();
    }
    let verifier = verifier.build().map_err(|e| {
        let (setting, path) = match &config.crl {
            Some(crl) => ("crl", crl.as_path()),
            None => ("client_ca", ca),
        };
        unusable(setting, path, &e)
    })?;
    Ok(verifier)
}

/// The TLS configuration of one listener, replaceable while it runs.
pub struct ReloadableTls {
    config: TlsConfig,
    clock: Clock,
    manner: Manner,
    current: ArcSwap<ServerConfig>,
}

impl ReloadableTls {
    /// Reads every file. Errors: one that cannot be used, named.
    pub fn new(config: TlsConfig, clock: Clock, manner: Manner) -> Result<Self, TlsError> {
        let current = ArcSwap::from_pointee(server_config(&config, &clock, manner)?);
        Ok(Self {
            config,
            clock,
            manner,
            current,
        })
    }

    /// Reads every file again. New connections use the result; on an error they go on with what there was.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.renew(self.read()?);
        Ok(())
    }

    /// What every file says now.
    pub(super) fn read(&self) -> Result<ServerConfig, TlsError> {
        server_config(&self.config, &self.clock, self.manner)
    }

    /// New connections use this from now on.
    pub(super) fn renew(&self, fresh: ServerConfig) {
        self.current.store(Arc::new(fresh));
    }

    /// What the next connection uses.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn unusable(setting: &'static str, path: &Path, detail: &dyn std::fmt::Display) -> TlsError {
    TlsError::Unusable {
        setting,
        path: path.to_owned(),
        detail: detail.to_string(),
    }
}

/// Certificates expire by the daemon's own clock, so that tests can hold it.
#[derive(Debug)]
struct ClockTime(Clock);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().seconds()).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            seconds,
        )))
    }
}

#[derive(Debug)]
struct NoTickets;

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _plain: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _cipher: &[u8]) -> Option<Vec<u8>> {
        None
    }
}
