//! JOSE algorithms and key specs in the vocabulary of PKCS#11, and what a token can do of them.

use cryptoki::{
    context::Pkcs11,
    error::Error,
    mechanism::{
        Mechanism, MechanismType,
        eddsa::{EddsaParams, EddsaSignatureScheme},
        rsa::{PkcsMgfType, PkcsPssParams},
    },
    slot::Slot,
};

use crate::{
    backends::BackendError,
    model::{
        Algorithm, KeySpec,
        algorithm::{Hash, RSA_BITS},
        public_key::SignInput,
    },
};

/// The mechanism that signs the output of `signing_input`. None for encryption.
pub(super) fn signing(algorithm: Algorithm) -> Option<Mechanism<'static>> {
    let pss = |hash: Hash| {
        let (hash_alg, mgf) = match hash {
            Hash::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
            Hash::Sha384 => (MechanismType::SHA384, PkcsMgfType::MGF1_SHA384),
            Hash::Sha512 => (MechanismType::SHA512, PkcsMgfType::MGF1_SHA512),
        };
        Mechanism::RsaPkcsPss(PkcsPssParams {
            hash_alg,
            mgf,
            s_len: (hash.digest_len() as u64).into(),
        })
    };
    Some(match algorithm {
        // CKM_ECDSA signs a digest and answers r || s, which is the JOSE form.
        Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512 => Mechanism::Ecdsa,
        Algorithm::EdDsa => Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519)),
        Algorithm::Rs256 | Algorithm::Rs384 | Algorithm::Rs512 => Mechanism::RsaPkcs,
        Algorithm::Ps256 => pss(Hash::Sha256),
        Algorithm::Ps384 => pss(Hash::Sha384),
        Algorithm::Ps512 => pss(Hash::Sha512),
        Algorithm::A256Gcm | Algorithm::Hs256 | Algorithm::Hs512 => return None,
    })
}

/// The bytes for `C_Sign`: message, digest, or DigestInfo. `Rejected` for input that the algorithm does not
/// take: a token would sign a digest of the wrong length without a word.
pub(super) fn signing_input(
    algorithm: Algorithm,
    input: SignInput<'_>,
) -> Result<Vec<u8>, BackendError> {
    let reject = |what: String| Err(BackendError::Rejected(what));
    match (algorithm, algorithm.hash(), input) {
        (Algorithm::EdDsa, None, SignInput::Message(message)) => Ok(message.to_vec()),
        (_, Some(hash), SignInput::Digest(digest)) if digest.len() == hash.digest_len() => {
            let prefix: &[u8] = match algorithm {
                Algorithm::Rs256 | Algorithm::Rs384 | Algorithm::Rs512 => digest_info(hash),
                _ecdsa_or_pss => &[],
            };
            Ok([prefix, digest].concat())
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

/// DigestInfo of RFC 8017, section 9.2, up to the digest.
const fn digest_info(hash: Hash) -> &'static [u8] {
    match hash {
        Hash::Sha256 => &[
            0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
            0x01, 0x05, 0x00, 0x04, 0x20,
        ],
        Hash::Sha384 => &[
            0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
            0x02, 0x05, 0x00, 0x04, 0x30,
        ],
        Hash::Sha512 => &[
            0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
            0x03, 0x05, 0x00, 0x04, 0x40,
        ],
    }
}

/// Does the algorithm sign with such a key?
pub(super) fn fits(algorithm: Algorithm, spec: KeySpec) -> bool {
    match spec {
        KeySpec::Rsa(bits) => algorithm.is_rsa() && bits >= RSA_BITS[0],
        KeySpec::P256 | KeySpec::P384 | KeySpec::P521 | KeySpec::Ed25519 => {
            algorithm.key_spec(0) == Some(spec)
        }
        KeySpec::Kek => false,
    }
}

/// What the token in `slot` can generate and sign with.
pub(super) fn supported(
    context: &Pkcs11,
    slot: Slot,
) -> Result<(Vec<KeySpec>, Vec<Algorithm>), Error> {
    let list = context.get_mechanism_list(slot)?;
    let has = |mechanism| list.contains(&mechanism);
    // Tokens that do not tell sizes say 0.
    let generates = |mechanism, bits: usize| {
        has(mechanism)
            && context
                .get_mechanism_info(slot, mechanism)
                .is_ok_and(|info| {
                    info.max_key_size() == 0
                        || (info.min_key_size()..=info.max_key_size()).contains(&bits)
                })
    };
    let mut specs = Vec::new();
    for (spec, bits) in [
        (KeySpec::P256, 256),
        (KeySpec::P384, 384),
        (KeySpec::P521, 521),
    ] {
        if has(MechanismType::ECDSA) && generates(MechanismType::ECC_KEY_PAIR_GEN, bits) {
            specs.push(spec);
        }
    }
    if has(MechanismType::EDDSA) && has(MechanismType::ECC_EDWARDS_KEY_PAIR_GEN) {
        specs.push(KeySpec::Ed25519);
    }
    let signs_rsa = has(MechanismType::RSA_PKCS) || has(MechanismType::RSA_PKCS_PSS);
    for bits in RSA_BITS {
        if signs_rsa && generates(MechanismType::RSA_PKCS_KEY_PAIR_GEN, bits as usize) {
            specs.push(KeySpec::Rsa(bits));
        }
    }
    if has(MechanismType::AES_KEY_GEN) && has(MechanismType::AES_GCM) {
        specs.push(KeySpec::Kek);
    }
    let algorithms = Algorithm::ALL
        .into_iter()
        .filter(|algorithm| {
            signing(*algorithm).is_some_and(|mechanism| has(mechanism.mechanism_type()))
                && specs.iter().any(|spec| fits(*algorithm, *spec))
        })
        .collect();
    Ok((specs, algorithms))
}
