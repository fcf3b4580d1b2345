//! Public keys: as JWK, as PEM, as kid, and for verification. The private half is never here.

use std::{fmt::Write, sync::Arc};

use aws_lc_rs::{digest, signature::ParsedPublicKey};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::Value;

use super::{Algorithm, KeySpec, Kid};
use crate::error::{Error, Result};

/// The public half of a key pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// A point on P-256, P-384 or P-521; both coordinates in the curve's full width, big-endian.
    Ec {
        /// P256, P384 or P521.
        curve: Curve,
        /// x coordinate.
        x: Vec<u8>,
        /// y coordinate.
        y: Vec<u8>,
    },
    /// RFC 8032 public key.
    Ed25519([u8; 32]),
    /// Modulus and exponent, big-endian without leading zeros.
    Rsa {
        /// Modulus.
        n: Vec<u8>,
        /// Exponent.
        e: Vec<u8>,
    },
}

/// NIST curves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// secp256r1.
    P256,
    /// secp384r1.
    P384,
    /// secp521r1.
    P521,
}

impl Curve {
    /// `crv` of a JWK.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// Bytes of one coordinate.
    pub const fn width(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// Everything of a SubjectPublicKeyInfo before the uncompressed point (RFC 5480).
    const fn spki_prefix(self) -> &'static [u8] {
        match self {
            Self::P256 => &[
                0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
                0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
            ],
            Self::P384 => &[
                0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
                0x05, 0x2b, 0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
            ],
            Self::P521 => &[
                0x30, 0x81, 0x9b, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
                0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23, 0x03, 0x81, 0x86, 0x00,
            ],
        }
    }
}

/// Everything of an Ed25519 SubjectPublicKeyInfo before the key (RFC 8410).
const ED25519_SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// AlgorithmIdentifier of rsaEncryption with NULL parameters (RFC 3279).
const RSA_ALGORITHM: [u8; 15] = [
    0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];

impl PublicKey {
    /// What kind of key pair it is the half of.
    pub fn key_spec(&self) -> KeySpec {
        match self {
            Self::Ec { curve, .. } => match curve {
                Curve::P256 => KeySpec::P256,
                Curve::P384 => KeySpec::P384,
                Curve::P521 => KeySpec::P521,
            },
            Self::Ed25519(_) => KeySpec::Ed25519,
            Self::Rsa { n, .. } => {
                let leading = n.first().map_or(0, |byte| byte.leading_zeros());
                KeySpec::Rsa((n.len() as u32 * 8).saturating_sub(leading))
            }
        }
    }

    /// The members that RFC 7638 hashes, as canonical JSON. Also the form in the database.
    pub fn canonical_jwk(&self) -> String {
        let b64 = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Ec { curve, x, y } => format!(
                r#"{{"crv":"{}","kty":"EC","x":"{}","y":"{}"}}"#,
                curve.as_str(),
                b64(x),
                b64(y)
            ),
            Self::Ed25519(x) => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, b64(x)),
            Self::Rsa { n, e } => {
                format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, b64(e), b64(n))
            }
        }
    }

    /// Reads what `canonical_jwk` wrote. Errors: not such a JWK.
    pub fn from_canonical_jwk(jwk: &str) -> Result<Self> {
        let bad = |what: &str| Error::internal(format!("stored public key: {what}"));
        let value: Value = serde_json::from_str(jwk).map_err(Error::internal)?;
        let member = |name: &str| -> Result<Vec<u8>> {
            let text = value[name].as_str().ok_or_else(|| bad(name))?;
            BASE64_URL_SAFE_NO_PAD.decode(text).map_err(Error::internal)
        };
        let ec = |curve: Curve| -> Result<Self> {
            let (x, y) = (member("x")?, member("y")?);
            if x.len() != curve.width() || y.len() != curve.width() {
                return Err(bad("coordinate length"));
            }
            Ok(Self::Ec { curve, x, y })
        };
        match (value["kty"].as_str(), value["crv"].as_str()) {
            (Some("EC"), Some("P-256")) => ec(Curve::P256),
            (Some("EC"), Some("P-384")) => ec(Curve::P384),
            (Some("EC"), Some("P-521")) => ec(Curve::P521),
            (Some("OKP"), Some("Ed25519")) => {
                let x = member("x")?.try_into().map_err(|_| bad("x length"))?;
                Ok(Self::Ed25519(x))
            }
            (Some("RSA"), None) => Ok(Self::Rsa {
                n: member("n")?,
                e: member("e")?,
            }),
            _ => Err(bad("kty")),
        }
    }

    /// The kid of this key: its RFC 7638 SHA-256 thumbprint (R-LIFE-1).
    pub fn thumbprint(&self) -> Kid {
        let hash = digest::digest(&digest::SHA256, self.canonical_jwk().as_bytes());
        let text = BASE64_URL_SAFE_NO_PAD.encode(hash);
        // 43 characters of the base64url alphabet: always a kid.
        text.parse().expect("a thumbprint is a kid")
    }

    /// The JWK that verifiers read (RFC 7517), with `kid`, `alg` and `use`.
    pub fn jwk(&self, kid: &Kid, algorithm: Algorithm) -> Value {
        let mut jwk: Value = serde_json::from_str(&self.canonical_jwk()).unwrap_or_default();
        jwk["kid"] = kid.as_str().into();
        jwk["alg"] = algorithm.as_str().into();
        jwk["use"] = "sig".into();
        jwk
    }

    /// SubjectPublicKeyInfo in DER (RFC 5280).
    pub fn spki_der(&self) -> Vec<u8> {
        match self {
            Self::Ec { curve, x, y } => [curve.spki_prefix(), &[0x04], x, y].concat(),
            Self::Ed25519(x) => [&ED25519_SPKI_PREFIX[..], x].concat(),
            Self::Rsa { n, e } => {
                let key = der(0x30, &[der_uint(n), der_uint(e)].concat());
                let bits = der(0x03, &[&[0x00], &key[..]].concat());
                der(0x30, &[&RSA_ALGORITHM[..], &bits].concat())
            }
        }
    }

    /// Reads a SubjectPublicKeyInfo of a NIST curve or Ed25519; None for anything else.
    pub fn from_spki_der(der: &[u8]) -> Option<Self> {
        if let Some(bytes) = der.strip_prefix(&ED25519_SPKI_PREFIX) {
            return Some(Self::Ed25519(bytes.try_into().ok()?));
        }
        [Curve::P256, Curve::P384, Curve::P521]
            .into_iter()
            .find_map(|curve| {
                let point = der
                    .strip_prefix(curve.spki_prefix())?
                    .strip_prefix(&[0x04])?;
                let (x, y) = point.split_at_checked(curve.width())?;
                (y.len() == curve.width()).then(|| Self::Ec {
                    curve,
                    x: x.to_vec(),
                    y: y.to_vec(),
                })
            })
    }

    /// SubjectPublicKeyInfo in PEM (RFC 7468).
    pub fn spki_pem(&self) -> String {
        let text = BASE64_STANDARD.encode(self.spki_der());
        let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
        for line in text.as_bytes().chunks(64) {
            let _ = writeln!(pem, "{}", String::from_utf8_lossy(line));
        }
        pem.push_str("-----END PUBLIC KEY-----\n");
        pem
    }

    /// Parsed once, verifies many times. Errors: the key does not fit the algorithm, or is no valid key.
    pub fn verifier(&self, algorithm: Algorithm) -> Result<Verifier> {
        let fits = match self.key_spec() {
            KeySpec::Rsa(bits) => algorithm.is_rsa() && bits >= super::algorithm::RSA_BITS[0],
            spec => algorithm.key_spec(0) == Some(spec),
        };
        let verification = algorithm.verification().filter(|_| fits);
        let verification = verification
            .ok_or_else(|| Error::internal(format!("public key does not fit {algorithm}")))?;
        let key = ParsedPublicKey::new(verification, self.spki_der()).map_err(Error::internal)?;
        Ok(Verifier {
            key: Arc::new(key),
            algorithm,
        })
    }
}

/// What a signature is over.
#[derive(Clone, Copy)]
pub enum SignInput<'a> {
    /// The whole message.
    Message(&'a [u8]),
    /// The digest, in the length of the algorithm's hash.
    Digest(&'a [u8]),
}

/// A public key ready to verify.
#[derive(Clone, Debug)]
pub struct Verifier {
    key: Arc<ParsedPublicKey>,
    algorithm: Algorithm,
}

impl Verifier {
    /// Is `signature`, in its JOSE form, valid over `input`? A digest of the wrong length never is.
    pub fn verifies(&self, input: SignInput<'_>, signature: &[u8]) -> bool {
        match input {
            SignInput::Message(message) => self.key.verify_sig(message, signature).is_ok(),
            SignInput::Digest(bytes) => self
                .algorithm
                .hash()
                .and_then(|hash| digest::Digest::import_less_safe(bytes, hash.algorithm()).ok())
                .is_some_and(|digest| self.key.verify_digest_sig(&digest, signature).is_ok()),
        }
    }
}

/// An ECDSA signature in its JOSE form, as ASN.1 DER (RFC 3279 section 2.2.3).
pub fn ecdsa_der(raw: &[u8]) -> Vec<u8> {
    let integer = |half: &[u8]| {
        let zeros = half.iter().take_while(|byte| **byte == 0).count();
        der_uint(&half[zeros.min(half.len().saturating_sub(1))..])
    };
    let (r, s) = raw.split_at(raw.len() / 2);
    der(0x30, &[integer(r), integer(s)].concat())
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = content.len();
    let mut out = vec![tag];
    match len {
        0..=0x7f => out.push(len as u8),
        0x80..=0xff => out.extend([0x81, len as u8]),
        _ => {
            out.push(0x82);
            out.extend((len as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(content);
    out
}

fn der_uint(bytes: &[u8]) -> Vec<u8> {
    let sign = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    let padded = [if sign { &[0x00][..] } else { &[] }, bytes].concat();
    der(0x02, &padded)
}
