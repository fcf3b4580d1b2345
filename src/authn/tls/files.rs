//! Reads and checks the PEM files of a [`TlsConfig`]; every error names the setting and the file.

use std::path::Path;

use rustls::{
    Error as RustlsError, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{TlsConfig, TlsError, unusable};
use crate::model::Timestamp;

/// The daemon's own certificate and key, which must belong together and be valid at `now`.
pub(super) fn certified_key(
    config: &TlsConfig,
    provider: &CryptoProvider,
    now: Timestamp,
) -> Result<CertifiedKey, TlsError> {
    let chain: Vec<CertificateDer<'static>> =
        pem_items("certificate", &config.certificate, "certificate")?;
    check_validity(&config.certificate, &chain, now)?;

    let mut keys: Vec<PrivateKeyDer<'static>> = pem_items("key", &config.key, "private key")?;
    let key = provider
        .key_provider
        .load_private_key(keys.swap_remove(0))
        .map_err(|e| unusable("key", &config.key, &e))?;

    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(RustlsError::InconsistentKeys(_)) => Err(TlsError::KeyMismatch {
            key: config.key.clone(),
            certificate: config.certificate.clone(),
        }),
        Err(e) => Err(unusable("certificate", &config.certificate, &e)),
    }
}

/// The CAs in a file; each must be usable, because a CA that is left out silently locks its clients out.
pub(super) fn roots(setting: &'static str, path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in pem_items::<CertificateDer<'static>>(setting, path, "certificate")? {
        roots
            .add(certificate)
            .map_err(|e| unusable(setting, path, &e))?;
    }
    Ok(roots)
}

/// The revocation lists in a file.
pub(super) fn crls(
    setting: &'static str,
    path: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    pem_items(setting, path, "revocation list")
}

/// Every item of one kind in a PEM file; at least one.
fn pem_items<T: PemObject>(
    setting: &'static str,
    path: &Path,
    expected: &'static str,
) -> Result<Vec<T>, TlsError> {
    let unreadable = |source| TlsError::Unreadable {
        setting,
        path: path.to_owned(),
        source,
    };
    let text = std::fs::read(path).map_err(unreadable)?;
    let items: Result<Vec<T>, pem::Error> = T::pem_slice_iter(&text).collect();
    match items {
        Ok(items) if !items.is_empty() => Ok(items),
        // The parser's own message quotes lines of the file, which may be a key.
        Ok(_) | Err(_) => Err(TlsError::NotPem {
            setting,
            path: path.to_owned(),
            expected,
        }),
    }
}

/// When the first certificate of a file expires. Errors name the file.
pub fn first_expiry(path: &Path) -> Result<Timestamp, TlsError> {
    let chain: Vec<CertificateDer<'static>> = pem_items("certificate", path, "certificate")?;
    let mut first = None;
    for der in &chain {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|e| unusable("certificate", path, &e))?;
        let at = Timestamp::from_seconds(certificate.validity().not_after.timestamp());
        first = Some(first.map_or(at, |first: Timestamp| first.min(at)));
    }
    // `pem_items` gives at least one.
    Ok(first.unwrap_or_default())
}

fn check_validity(
    path: &Path,
    chain: &[CertificateDer<'static>],
    now: Timestamp,
) -> Result<(), TlsError> {
    for der in chain {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|e| unusable("certificate", path, &e))?;
        let validity = certificate.validity();
        let not_after = Timestamp::from_seconds(validity.not_after.timestamp());
        let not_before = Timestamp::from_seconds(validity.not_before.timestamp());
        if not_after < now {
            return Err(TlsError::Expired {
                path: path.to_owned(),
                not_after,
            });
        }
        if now < not_before {
            return Err(TlsError::NotYetValid {
                path: path.to_owned(),
                not_before,
            });
        }
    }
    Ok(())
}
