//! What a ciphertext is bound to, in one canonical encoding.

use std::collections::BTreeMap;

use super::header::VERSION;
use crate::model::{KeyId, Kid, TenantName};

/// Keeps this encoding apart from every other use of a data key.
const DOMAIN: &[u8] = b"claviger envelope";

/// Tenant, key, version and the caller's additional authenticated data.
///
/// Every field is preceded by its length, so no two contexts share an encoding; the map is sorted by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    kid: Kid,
    encoded: Vec<u8>,
}

impl Context {
    /// The context of a ciphertext.
    pub fn new(tenant: &TenantName, key: KeyId, kid: &Kid, aad: &BTreeMap<String, String>) -> Self {
        let pairs = || aad.iter().flat_map(|(name, value)| [name, value]);
        let head = [
            DOMAIN,
            &[VERSION],
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
            kid: kid.clone(),
            encoded,
        }
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
