//! Attribute templates for generation: on the token, private, sensitive, never extractable, one use only.
//!
//! Tokens differ in what they take: some refuse CKA_MODIFIABLE, some want the Edwards curve by name. The
//! variants are tried in order, the strictest first; SENSITIVE and EXTRACTABLE are the same in all of them.

use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, KeyType},
};

use super::objects::{ED25519_NAME, ED25519_OID, P256_OID, P384_OID, P521_OID};
use crate::model::KeySpec;

/// What to pass to `C_GenerateKeyPair`, or (public empty) to `C_GenerateKey`.
pub(super) struct Template {
    pub(super) mechanism: Mechanism<'static>,
    pub(super) public: Vec<Attribute>,
    pub(super) private: Vec<Attribute>,
}

/// Templates for a key of `spec`, in the order to try them.
pub(super) fn variants(spec: KeySpec, id: &[u8], label: &str) -> Vec<Template> {
    let curve = |kind, params: &[u8]| {
        vec![
            Attribute::KeyType(kind),
            Attribute::EcParams(params.to_vec()),
        ]
    };
    let kinds = match spec {
        KeySpec::P256 => vec![curve(KeyType::EC, P256_OID)],
        KeySpec::P384 => vec![curve(KeyType::EC, P384_OID)],
        KeySpec::P521 => vec![curve(KeyType::EC, P521_OID)],
        KeySpec::Ed25519 => [ED25519_OID, ED25519_NAME]
            .map(|params| curve(KeyType::EC_EDWARDS, params))
            .into(),
        KeySpec::Rsa(bits) => vec![vec![
            Attribute::KeyType(KeyType::RSA),
            Attribute::ModulusBits(u64::from(bits).into()),
            Attribute::PublicExponent(vec![0x01, 0x00, 0x01]),
        ]],
        KeySpec::Kek => vec![Vec::new()],
    };
    let frozen = [vec![Attribute::Modifiable(false)], Vec::new()];
    let mut variants = Vec::new();
    for frozen in frozen {
        for kind in &kinds {
            variants.push(template(spec, kind, &frozen, id, label));
        }
    }
    variants
}

fn template(
    spec: KeySpec,
    kind: &[Attribute],
    frozen: &[Attribute],
    id: &[u8],
    label: &str,
) -> Template {
    let named = || {
        [
            Attribute::Token(true),
            Attribute::Id(id.to_vec()),
            Attribute::Label(label.into()),
        ]
        .into_iter()
        .chain(frozen.iter().cloned())
    };
    let guarded = [
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Derive(false),
        Attribute::Unwrap(false),
    ];
    let mechanism = match spec {
        KeySpec::P256 | KeySpec::P384 | KeySpec::P521 => Mechanism::EccKeyPairGen,
        KeySpec::Ed25519 => Mechanism::EccEdwardsKeyPairGen,
        KeySpec::Rsa(_) => Mechanism::RsaPkcsKeyPairGen,
        KeySpec::Kek => Mechanism::AesKeyGen,
    };
    match spec {
        KeySpec::Kek => Template {
            mechanism,
            public: Vec::new(),
            private: named()
                .chain(guarded)
                .chain([
                    Attribute::KeyType(KeyType::AES),
                    Attribute::ValueLen(32.into()),
                    Attribute::Encrypt(true),
                    Attribute::Decrypt(true),
                    Attribute::Wrap(false),
                    Attribute::Sign(false),
                    Attribute::Verify(false),
                ])
                .collect(),
        },
        KeySpec::P256 | KeySpec::P384 | KeySpec::P521 | KeySpec::Ed25519 | KeySpec::Rsa(_) => {
            Template {
                mechanism,
                public: named()
                    .chain(kind.iter().cloned())
                    .chain([
                        Attribute::Private(false),
                        Attribute::Verify(true),
                        Attribute::Encrypt(false),
                        Attribute::Wrap(false),
                    ])
                    .collect(),
                private: named()
                    .chain(guarded)
                    .chain([Attribute::Sign(true), Attribute::Decrypt(false)])
                    .collect(),
            }
        }
    }
}
