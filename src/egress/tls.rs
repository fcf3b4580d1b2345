//! Whom a host's certificate must come from.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};

/// TLS 1.2 and 1.3 with the CAs of the system and those of `ca_file`. Without any, every handshake fails.
pub(super) fn config(ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = ca_file {
        let unusable = |e: &dyn std::fmt::Display| format!("ca_file {}: {e}", file.display());
        let found = CertificateDer::pem_file_iter(file).map_err(|e| unusable(&e))?;
        let mut count = 0;
        for certificate in found {
            let certificate = certificate.map_err(|e| unusable(&e))?;
            roots.add(certificate).map_err(|e| unusable(&e))?;
            count += 1;
        }
        if count == 0 {
            return Err(unusable(&"no certificate in PEM"));
        }
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
