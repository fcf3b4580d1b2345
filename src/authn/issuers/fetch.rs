//! Gets a JWK Set over HTTPS: one GET, no redirects, bounded in time and bytes.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{IssuerConfig, keys::MAX_BYTES};

const PATIENCE: Duration = Duration::from_secs(5);

/// Asks one URL.
pub(super) struct Fetcher {
    url: Uri,
    bearer_token_file: Option<PathBuf>,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl Fetcher {
    /// Errors: no URL, or no CA certificates.
    pub(super) fn new(url: &str, config: &IssuerConfig) -> Result<Self, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots(config)?)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .build();
        Ok(Self {
            url: url.parse().map_err(|e| format!("jwks_url: {e}"))?,
            bearer_token_file: config.bearer_token_file.clone(),
            client: Client::builder(TokioExecutor::new()).build(connector),
        })
    }

    /// The document. Errors: whatever went wrong, in a sentence.
    pub(super) async fn get(&self) -> Result<Vec<u8>, String> {
        let asked = async {
            let mut request = Request::get(&self.url).header(header::ACCEPT, "application/json");
            if let Some(file) = &self.bearer_token_file {
                let token = tokio::fs::read_to_string(file).await;
                let token = token.map_err(|e| format!("cannot read {}: {e}", file.display()))?;
                let value = Zeroizing::new(format!("Bearer {}", token.trim()));
                request = request.header(header::AUTHORIZATION, value.as_str());
            }
            let request = request
                .body(Empty::new())
                .map_err(|_| "the request cannot be made".to_owned())?;
            let answer = self.client.request(request).await;
            let answer = answer.map_err(|e| format!("{} does not answer: {e}", self.url))?;
            if !answer.status().is_success() {
                return Err(format!("{} answers {}", self.url, answer.status()));
            }
            let body = Limited::new(answer.into_body(), MAX_BYTES).collect().await;
            let body = body.map_err(|e| format!("{}: {e}", self.url))?;
            Ok(body.to_bytes().to_vec())
        };
        let answer = timeout(PATIENCE, asked).await;
        answer.unwrap_or_else(|_| Err(format!("{} does not answer in time", self.url)))
    }
}

fn roots(config: &IssuerConfig) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let certificates = match &config.ca_file {
        Some(file) => {
            let unusable = |e: &dyn std::fmt::Display| format!("ca_file {}: {e}", file.display());
            let found = CertificateDer::pem_file_iter(file).map_err(|e| unusable(&e))?;
            let found: Result<Vec<_>, _> = found.collect();
            found.map_err(|e| unusable(&e))?
        }
        None => rustls_native_certs::load_native_certs().certs,
    };
    roots.add_parsable_certificates(certificates);
    match roots.is_empty() {
        true => Err("no CA certificate to check jwks_url with; set ca_file".into()),
        false => Ok(roots),
    }
}
