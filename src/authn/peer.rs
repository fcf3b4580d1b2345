//! What a client's certificate proves, read once per connection.
//!
//! Only certificates whose chain rustls has verified come here. Their names were still chosen by
//! whoever asked the CA for them, so a name that is malformed or ambiguous proves nothing: it is left out, and a
//! certificate without any usable name belongs to nobody. This module never refuses a connection and
//! never maps a name to a principal.

use std::{fmt::Write, net::SocketAddr, ops::Deref, sync::Arc};

use aws_lc_rs::digest;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::model::{Identity, Timestamp};

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What its certificate proves, best first: SPIFFE ID, DNS names, common name. Empty without a
    /// certificate.
    pub identities: Vec<Identity>,
    /// When the certificate expires. Connections outlive certificates, so every call checks this. The epoch without
    /// a certificate: the check then fails.
    pub not_after: Timestamp,
    /// SHA-256 of the certificate's DER, in hex. Empty without a certificate.
    pub fingerprint: String,
    /// Where it connects from.
    pub addr: SocketAddr,
}

/// The [`Peer`], as tonic and axum find it in a request's extensions.
#[derive(Clone, Debug)]
pub struct ConnectedPeer(pub Arc<Peer>);

impl Peer {
    /// A peer that showed no certificate.
    pub const fn anonymous(addr: SocketAddr) -> Self {
        Self {
            identities: Vec::new(),
            not_after: Timestamp::from_micros(0),
            fingerprint: String::new(),
            addr,
        }
    }

    /// A peer that proved to own the key of this leaf certificate. One that cannot be parsed proves nothing.
    pub fn from_certificate(der: &[u8], addr: SocketAddr) -> Self {
        let mut peer = Self::anonymous(addr);
        peer.fingerprint = fingerprint(der);
        if let Ok((_, certificate)) = X509Certificate::from_der(der) {
            peer.not_after = Timestamp::from_seconds(certificate.validity().not_after.timestamp());
            peer.identities = identities(&certificate);
        }
        peer
    }
}

impl Peer {
    /// Has the other end proved to own a certificate of our clients' CAs, whoever it names?
    pub const fn shows_certificate(&self) -> bool {
        !self.fingerprint.is_empty()
    }

    /// The certificate's SHA-256 in base64url, as in `x5t#S256` (RFC 8705 section 3.1). None without a certificate.
    pub fn thumbprint(&self) -> Option<String> {
        let hex = self.fingerprint.as_bytes().chunks(2);
        let bytes = hex.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
        let bytes: Vec<u8> = bytes.collect::<Option<_>>()?;
        (!bytes.is_empty()).then(|| BASE64_URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl Deref for ConnectedPeer {
    type Target = Peer;

    fn deref(&self) -> &Peer {
        &self.0
    }
}

/// The names of a certificate, in the order in which they are believed.
///
/// A SPIFFE ID comes first: it was issued to name a workload. DNS names follow. The common name counts only
/// in a certificate without a subjectAltName extension, as in RFC 9525: beside one it is free text that
/// many CAs do not check, and believing it would let its holder pick a second name.
fn identities(certificate: &X509Certificate<'_>) -> Vec<Identity> {
    match certificate.subject_alternative_name() {
        Ok(Some(extension)) => {
            let names = &extension.value.general_names;
            spiffe(names).into_iter().chain(dns(names)).collect()
        }
        Ok(None) => common_name(certificate).into_iter().collect(),
        // Two such extensions, or one that cannot be parsed.
        Err(_) => Vec::new(),
    }
}

/// The SPIFFE ID. An SVID has exactly one URI; of several, none can be told to be the right one.
fn spiffe(names: &[GeneralName<'_>]) -> Option<Identity> {
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) if is_spiffe_id(uri) => uri.parse().ok(),
        _ => None,
    }
}

/// The form of the SPIFFE ID specification: it has one spelling for one name, which lets names be compared as text.
fn is_spiffe_id(uri: &str) -> bool {
    let Some(rest) = uri.strip_prefix("spiffe://") else {
        return false;
    };
    let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
    let domain_ok = !domain.is_empty()
        && domain.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_')
        });
    let path_ok = rest == domain
        || path.split('/').all(|segment| {
            !matches!(segment, "" | "." | "..")
                && segment
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        });
    domain_ok && path_ok
}

/// DNS names, in lower case because DNS ignores case. A wildcard names no one host and is left out.
fn dns(names: &[GeneralName<'_>]) -> impl Iterator<Item = Identity> {
    names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) if name.is_ascii() && !name.contains('*') => {
            format!("dns:{}", name.to_ascii_lowercase()).parse().ok()
        }
        _ => None,
    })
}

/// The common name, when there is exactly one.
fn common_name(certificate: &X509Certificate<'_>) -> Option<Identity> {
    let mut names = certificate.subject().iter_common_name();
    match (names.next(), names.next()) {
        (Some(name), None) => format!("cn:{}", name.as_str().ok()?).parse().ok(),
        _ => None,
    }
}

fn fingerprint(der: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, der);
    digest.as_ref().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
