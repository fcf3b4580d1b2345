//! API keys. A stand-in until the real ones are here.

use std::sync::Arc;

use crate::{
    error::Result,
    model::{ApiKey, ApiKeyText, Principal, Scopes},
};

/// API keys.
pub struct ApiKeys;

/// A key that counts.
#[derive(Debug)]
pub struct Admitted {
    /// The key.
    pub key: Arc<ApiKey>,
    /// Its owner, with no more than the key brings along.
    pub principal: Arc<Principal>,
    /// What the key brings along.
    pub scopes: Scopes,
}

/// Why a key does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// There is none.
    Unknown,
}

impl Rejection {
    /// The text in audit rows.
    pub const fn as_str(self) -> &'static str {
        "UNKNOWN"
    }
}

impl ApiKeys {
    /// Stand-in.
    pub async fn admit(&self, _shown: ApiKeyText) -> Result<Result<Admitted, Rejection>> {
        Ok(Err(Rejection::Unknown))
    }
}
