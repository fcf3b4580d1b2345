//! Our key kinds and algorithms in the words of KMS, and its encodings in ours.

use aws_sdk_kms::types::{KeySpec as AwsSpec, KeyUsageType, SigningAlgorithmSpec};
use x509_parser::{prelude::FromDer, x509::SubjectPublicKeyInfo};

use crate::{
    backends::BackendError,
    model::{
        Algorithm, KeySpec, PublicKey,
        algorithm::RSA_BITS,
        public_key::{Curve, SignInput},
    },
};

/// Longest message that KMS signs as it is, in bytes.
pub(super) const MAX_RAW: usize = 4096;

/// Keys and algorithms that an endpoint offers.
pub(super) fn supported(has_ed25519: bool) -> (Vec<KeySpec>, Vec<Algorithm>) {
    let mut specs = vec![KeySpec::P256, KeySpec::P384, KeySpec::P521];
    specs.extend(RSA_BITS.map(KeySpec::Rsa));
    specs.push(KeySpec::Kek);
    if has_ed25519 {
        specs.push(KeySpec::Ed25519);
    }
    let algorithms = Algorithm::ALL
        .into_iter()
        .filter(|a| signing(*a).is_some() && (has_ed25519 || *a != Algorithm::EdDsa))
        .collect();
    (specs, algorithms)
}

/// What to ask CreateKey for. None for RSA lengths that KMS does not have.
pub(super) fn to_aws(spec: KeySpec) -> Option<(AwsSpec, KeyUsageType)> {
    let spec = match spec {
        KeySpec::P256 => AwsSpec::EccNistP256,
        KeySpec::P384 => AwsSpec::EccNistP384,
        KeySpec::P521 => AwsSpec::EccNistP521,
        KeySpec::Ed25519 => AwsSpec::EccNistEdwards25519,
        KeySpec::Rsa(2048) => AwsSpec::Rsa2048,
        KeySpec::Rsa(3072) => AwsSpec::Rsa3072,
        KeySpec::Rsa(4096) => AwsSpec::Rsa4096,
        KeySpec::Rsa(_) => return None,
        KeySpec::Kek => return Some((AwsSpec::SymmetricDefault, KeyUsageType::EncryptDecrypt)),
    };
    Some((spec, KeyUsageType::SignVerify))
}

/// Our name for what DescribeKey shows. None for kinds that we have no use for.
pub(super) fn from_aws(spec: &AwsSpec, usage: &KeyUsageType) -> Option<KeySpec> {
    let candidates = [
        KeySpec::P256,
        KeySpec::P384,
        KeySpec::P521,
        KeySpec::Ed25519,
        KeySpec::Kek,
    ];
    candidates
        .into_iter()
        .chain(RSA_BITS.map(KeySpec::Rsa))
        .find(|ours| to_aws(*ours) == Some((spec.clone(), usage.clone())))
}

/// Signs what a new key pair is tried with.
pub(super) const fn trial(spec: KeySpec) -> Option<Algorithm> {
    match spec {
        KeySpec::P256 => Some(Algorithm::Es256),
        KeySpec::P384 => Some(Algorithm::Es384),
        KeySpec::P521 => Some(Algorithm::Es512),
        KeySpec::Ed25519 => Some(Algorithm::EdDsa),
        KeySpec::Rsa(_) => Some(Algorithm::Ps256),
        KeySpec::Kek => None,
    }
}

pub(super) const fn signing(algorithm: Algorithm) -> Option<SigningAlgorithmSpec> {
    Some(match algorithm {
        Algorithm::Es256 => SigningAlgorithmSpec::EcdsaSha256,
        Algorithm::Es384 => SigningAlgorithmSpec::EcdsaSha384,
        Algorithm::Es512 => SigningAlgorithmSpec::EcdsaSha512,
        Algorithm::EdDsa => SigningAlgorithmSpec::Ed25519Sha512,
        Algorithm::Ps256 => SigningAlgorithmSpec::RsassaPssSha256,
        Algorithm::Ps384 => SigningAlgorithmSpec::RsassaPssSha384,
        Algorithm::Ps512 => SigningAlgorithmSpec::RsassaPssSha512,
        Algorithm::Rs256 => SigningAlgorithmSpec::RsassaPkcs1V15Sha256,
        Algorithm::Rs384 => SigningAlgorithmSpec::RsassaPkcs1V15Sha384,
        Algorithm::Rs512 => SigningAlgorithmSpec::RsassaPkcs1V15Sha512,
        Algorithm::A256Gcm | Algorithm::Hs256 | Algorithm::Hs512 => return None,
    })
}

/// The bytes to sign, or why not. What has a hash comes as a digest, whatever the length of its message;
/// Ed25519 takes the message itself, and KMS takes 1 to 4096 bytes of it. (`ED25519_PH_SHA_512` would take
/// longer ones, but it is another algorithm: EdDSA verifiers refuse it.)
pub(super) fn signing_input(
    algorithm: Algorithm,
    input: SignInput<'_>,
) -> Result<Vec<u8>, BackendError> {
    let reject = |what: String| Err(BackendError::Rejected(what));
    match (algorithm, algorithm.hash(), input) {
        (Algorithm::EdDsa, None, SignInput::Message(message)) => match message.len() {
            1..=MAX_RAW => Ok(message.to_vec()),
            len => reject(format!(
                "KMS signs EdDSA messages of 1 to {MAX_RAW} bytes, not {len}"
            )),
        },
        (_, Some(hash), SignInput::Digest(digest)) if digest.len() == hash.digest_len() => {
            Ok(digest.to_vec())
        }
        (_, Some(hash), SignInput::Digest(digest)) => reject(format!(
            "{algorithm} signs a digest of {} bytes, not {}",
            hash.digest_len(),
            digest.len()
        )),
        (_, Some(_), SignInput::Message(_)) => reject(format!("{algorithm} signs a digest")),
        (_, None, _) => reject(format!("{algorithm} does not sign that")),
    }
}

/// A signature of KMS in its JOSE form. None when it is not one.
pub(super) fn jose_signature(algorithm: Algorithm, signature: &[u8]) -> Option<Vec<u8>> {
    let width = match algorithm {
        Algorithm::Es256 => Curve::P256.width(),
        Algorithm::Es384 => Curve::P384.width(),
        Algorithm::Es512 => Curve::P521.width(),
        _not_ecdsa => return Some(signature.to_vec()),
    };
    raw_ecdsa(signature, width)
}

/// `SEQUENCE { INTEGER r, INTEGER s }` in DER to `r || s`, each in `width` bytes.
fn raw_ecdsa(der: &[u8], width: usize) -> Option<Vec<u8>> {
    let (pair, rest) = element(0x30, der)?;
    let (r, after) = element(0x02, pair)?;
    let (s, end) = element(0x02, after)?;
    if !rest.is_empty() || !end.is_empty() {
        return None;
    }
    Some([fixed(r, width)?, fixed(s, width)?].concat())
}

/// The content of the first element, and what follows it.
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = der.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        // P-521 needs one length byte more.
        0x81 => {
            let (length, rest) = rest.split_first()?;
            (usize::from(*length), rest)
        }
        _ => return None,
    };
    (*first == tag && rest.len() >= length).then(|| rest.split_at(length))
}

/// A positive INTEGER without its sign byte, padded to `width`.
fn fixed(integer: &[u8], width: usize) -> Option<Vec<u8>> {
    let digits = match integer {
        [0, rest @ ..] => rest,
        [first, ..] if first & 0x80 != 0 => return None,
        digits => digits,
    };
    let padding = width.checked_sub(digits.len())?;
    Some([&vec![0; padding], digits].concat())
}

/// The public half that GetPublicKey shows, as SubjectPublicKeyInfo in DER.
pub(super) fn public_key(der: &[u8], spec: KeySpec) -> Result<PublicKey, BackendError> {
    let key = parse_public_key(der, spec);
    // Written again, it must be the same: nothing in it was overlooked.
    key.filter(|key| key.key_spec() == spec && key.spki_der() == der)
        .ok_or_else(|| BackendError::Unfit(format!("its public half is no {spec:?} key")))
}

fn parse_public_key(der: &[u8], spec: KeySpec) -> Option<PublicKey> {
    let (_, info) = SubjectPublicKeyInfo::from_der(der).ok()?;
    let bits = info.subject_public_key.data.as_ref();
    let ec = |curve: Curve| {
        let (tag, point) = bits.split_first()?;
        if *tag != 0x04 || point.len() != 2 * curve.width() {
            return None;
        }
        let (x, y) = point.split_at(curve.width());
        Some(PublicKey::Ec {
            curve,
            x: x.to_vec(),
            y: y.to_vec(),
        })
    };
    match spec {
        KeySpec::P256 => ec(Curve::P256),
        KeySpec::P384 => ec(Curve::P384),
        KeySpec::P521 => ec(Curve::P521),
        KeySpec::Ed25519 => Some(PublicKey::Ed25519(bits.try_into().ok()?)),
        KeySpec::Rsa(_) => match info.parsed().ok()? {
            x509_parser::public_key::PublicKey::RSA(key) => Some(PublicKey::Rsa {
                n: unpadded(key.modulus),
                e: unpadded(key.exponent),
            }),
            _ => None,
        },
        KeySpec::Kek => None,
    }
}

fn unpadded(integer: &[u8]) -> Vec<u8> {
    integer.iter().copied().skip_while(|b| *b == 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sequences of two INTEGERs with these contents.
    fn der(r: &[u8], s: &[u8]) -> Vec<u8> {
        let integer = |value: &[u8]| [&[0x02, value.len() as u8], value].concat();
        let pair = [integer(r), integer(s)].concat();
        match pair.len() {
            len @ 0..=0x7f => [&[0x30, len as u8], &pair[..]].concat(),
            len => [&[0x30, 0x81, len as u8], &pair[..]].concat(),
        }
    }

    #[test]
    fn der_signatures_become_raw() {
        let short = der(&[1], &[0, 0x80]);
        let mut wanted = vec![0; 64];
        (wanted[31], wanted[63]) = (1, 0x80);
        assert_eq!(raw_ecdsa(&short, 32), Some(wanted));
        let long = der(&[0x01; 66], &[0x7f; 66]);
        assert_eq!(raw_ecdsa(&long, 66).map(|raw| raw.len()), Some(132));
        let padded = [&[0][..], &[0xff; 32]].concat();
        let raw = raw_ecdsa(&der(&padded, &padded), 32);
        assert_eq!(raw, Some(vec![0xff; 64]));
    }

    #[test]
    fn what_is_no_signature_is_refused() {
        let good = der(&[1; 32], &[2; 32]);
        assert!(raw_ecdsa(&good, 32).is_some());
        for cut in 0..good.len() {
            assert_eq!(raw_ecdsa(&good[..cut], 32), None, "{cut} bytes");
        }
        let longer = [&good[..], &[0]].concat();
        assert_eq!(raw_ecdsa(&longer, 32), None, "a byte more");
        assert_eq!(raw_ecdsa(&der(&[0x80], &[1]), 32), None, "negative");
        assert_eq!(raw_ecdsa(&der(&[1; 33], &[1]), 32), None, "too wide");
    }

    #[test]
    fn names_go_there_and_back() {
        for spec in supported(true).0 {
            let (aws, usage) = to_aws(spec).expect("KMS has it");
            assert_eq!(from_aws(&aws, &usage), Some(spec));
        }
        let usage = KeyUsageType::SignVerify;
        assert_eq!(from_aws(&AwsSpec::EccSecgP256K1, &usage), None);
        assert_eq!(from_aws(&AwsSpec::SymmetricDefault, &usage), None);
    }

    #[test]
    fn messages_for_kms_are_short_and_digests_fit() {
        let message = vec![1; MAX_RAW + 1];
        let over = signing_input(Algorithm::EdDsa, SignInput::Message(&message));
        assert!(matches!(over, Err(BackendError::Rejected(_))));
        assert!(signing_input(Algorithm::EdDsa, SignInput::Message(&message[1..])).is_ok());
        let none = signing_input(Algorithm::EdDsa, SignInput::Message(&[]));
        assert!(matches!(none, Err(BackendError::Rejected(_))));
    }
}
