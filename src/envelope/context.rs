//! What a ciphertext is bound to, in one canonical encoding.

use std::collections::BTreeMap;

use super::header::Kind;
use crate::model::{KeyId, Kid, TenantName};

/// Kind, tenant, key, version and the caller's additional authenticated data.
///
/// Every field is preceded by its length, so no two contexts share an encoding; the map is sorted by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    kind: Kind,
    kid: Kid,
    encoded: Vec<u8>,
}

impl Context {
    /// The context of what Encrypt makes.
    pub fn new(tenant: &TenantName, key: KeyId, kid: &Kid, aad: &BTreeMap<String, String>) -> Self {
        Self::of(Kind::Data, tenant, key, kid, aad)
    }

    /// The context of a ciphertext of this kind.
    pub fn of(
        kind: Kind,
        tenant: &TenantName,
        key: KeyId,
        kid: &Kid,
        aad: &BTreeMap<String, String>,
    ) -> Self {
        let pairs = || aad.iter().flat_map(|(name, value)| [name, value]);
        let head = [
            kind.domain(),
            &[kind.version()],
            tenant.as_str().as_bytes(),
            key.as_bytes(),
            kid.as_str().as_bytes(),
        ];
        let fields = || head.into_iter().chain(pairs().map(|text| text.as_bytes()));
        let mut encoded = Vec::with_capacity(fields().map(|field| 8 + field.len()).sum());
        for field in fields() {
            encoded.extend_from_slice(&(field.len() as u64).to_be_bytes());
            encoded.extend_from_slice(field);
        }
        Self {
            kind,
            kid: kid.clone(),
            encoded,
        }
    }

    /// What is encrypted.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The version that encrypts, or must have encrypted.
    pub const fn kid(&self) -> &Kid {
        &self.kid
    }

    /// The bytes that enter the key derivation (docs/envelope.md).
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }
}
