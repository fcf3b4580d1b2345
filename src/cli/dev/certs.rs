//! The development CA and the certificates it signs: one for the server, one per identity.
//!
//! ECDSA P-256, 30 days, renewed by the next run when less than a day is left. The CA's key stays in
//! `secrets/`. Nothing outside `claviger dev` trusts this CA.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::files;
use crate::{
    cli::exit::{Failure, Result},
    clock::Clock,
};

/// Who gets a client certificate. `stranger` has a valid one and is nobody.
pub const CLIENTS: [&str; 11] = [
    "admin", "issuer", "approver", "deployer", "officer", "auditor", "service", "other", "deputy",
    "partner", "stranger",
];

const DAY: Duration = Duration::from_hours(24);
const LEAF_LIFE: Duration = Duration::from_hours(24 * 30);
const CA_LIFE: Duration = Duration::from_hours(24 * 365);

/// The SPIFFE identity in a client's certificate.
pub fn identity(name: &str) -> String {
    format!("spiffe://claviger.dev/{name}")
}

/// Certificate and key of `name` below `dir`.
pub fn pair(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    let certs = dir.join("certs");
    (
        certs.join(format!("{name}.crt")),
        certs.join(format!("{name}.key")),
    )
}

/// Makes what is missing or about to expire. Returns how many certificates were made.
pub fn provision(dir: &Path) -> Result<usize> {
    let ca_path = dir.join("certs/ca.crt");
    let ca_key_path = dir.join("secrets/ca.key");
    // The CA must outlive what it signs.
    let renew_ca = !lasts(&ca_path, LEAF_LIFE + DAY) || !ca_key_path.is_file();
    if renew_ca {
        let key = new_key()?;
        let certificate = ca_params()?.self_signed(&key).map_err(failed)?;
        files::private(&ca_key_path, key.serialize_pem().as_bytes())?;
        files::public(&ca_path, certificate.pem().as_bytes())?;
    }
    let key = KeyPair::from_pem(&files::text(&ca_key_path)?).map_err(failed)?;
    let issuer = Issuer::from_ca_cert_pem(&files::text(&ca_path)?, key).map_err(failed)?;
    let mut made = 0;
    for name in CLIENTS.into_iter().chain(["server"]) {
        let (certificate_path, key_path) = pair(dir, name);
        if !renew_ca && lasts(&certificate_path, DAY) && key_path.is_file() {
            continue;
        }
        let params = match name {
            "server" => server_params()?,
            client => client_params(client)?,
        };
        let key = new_key()?;
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        files::private(&key_path, key.serialize_pem().as_bytes())?;
        files::public(&certificate_path, certificate.pem().as_bytes())?;
        made += 1;
    }
    Ok(made)
}

fn new_key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)
}

fn params(common_name: &str, life: Duration) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let now = u64::try_from(Clock::System.now().seconds()).unwrap_or_default();
    let epoch = date_time_ymd(1970, 1, 1);
    // A clock that is a little behind, in a virtual machine say, shall accept them too.
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(300));
    params.not_after = epoch + Duration::from_secs(now) + life;
    Ok(params)
}

fn ca_params() -> Result<CertificateParams> {
    let mut params = params("Claviger development CA", CA_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn client_params(name: &str) -> Result<CertificateParams> {
    let mut params = params(name, LEAF_LIFE)?;
    let uri = identity(name).try_into().map_err(failed)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn server_params() -> Result<CertificateParams> {
    let mut params = params("localhost", LEAF_LIFE)?;
    params.subject_alt_names = vec![
        SanType::DnsName("localhost".try_into().map_err(failed)?),
        SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Is there a certificate that is valid for at least `remaining`?
fn lasts(path: &Path, remaining: Duration) -> bool {
    let Ok(der) = CertificateDer::from_pem_file(path) else {
        return false;
    };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else {
        return false;
    };
    let until = Clock::System.now().plus(remaining).seconds();
    certificate.validity().not_after.timestamp() > until
}

fn failed(error: rcgen::Error) -> Failure {
    Failure::other(format!("cannot make a development certificate: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::dev::files::tests::Scratch;

    #[test]
    fn certificates_are_made_once_and_renewed_with_their_ca() {
        let scratch = Scratch::new("certs");
        let dir = scratch.path();
        files::directories(dir).unwrap();
        assert_eq!(provision(dir).unwrap(), CLIENTS.len() + 1);
        assert_eq!(provision(dir).unwrap(), 0);
        std::fs::remove_file(dir.join("certs/service.crt")).unwrap();
        assert_eq!(provision(dir).unwrap(), 1);
        std::fs::remove_file(dir.join("secrets/ca.key")).unwrap();
        assert_eq!(provision(dir).unwrap(), CLIENTS.len() + 1);
    }

    #[test]
    fn they_work_as_tls_identities() {
        use crate::cli::tls;
        let scratch = Scratch::new("tls");
        let dir = scratch.path();
        files::directories(dir).unwrap();
        provision(dir).unwrap();
        let (certificate, key) = pair(dir, "service");
        let ca = dir.join("certs/ca.crt");
        let identity = tls::Identity {
            certificate: &certificate,
            key: &key,
        };
        tls::config(&ca, Some(identity), b"h2").unwrap();
        let (_, wrong_key) = pair(dir, "other");
        let identity = tls::Identity {
            certificate: &certificate,
            key: &wrong_key,
        };
        assert!(tls::config(&ca, Some(identity), b"h2").is_err());
    }
}
