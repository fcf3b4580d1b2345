//! Stub until the room is built.

use std::sync::Arc;

use crate::{
    error::Result,
    model::{ApiKey, ApiKeyText, Principal},
};

/// API keys.
pub struct ApiKeys;

/// A key that counts.
pub struct Admitted {
    /// The key.
    pub key: Arc<ApiKey>,
    /// Its owner, limited.
    pub principal: Arc<Principal>,
}

/// Why a key does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// No such key.
    Unknown,
}

impl Rejection {
    /// The text in audit rows and metrics.
    pub const fn as_str(self) -> &'static str {
        "UNKNOWN"
    }
}

impl ApiKeys {
    /// Does a key count?
    pub async fn admit(
        &self,
        _shown: &ApiKeyText,
        _may_look: bool,
    ) -> Result<std::result::Result<Admitted, Rejection>> {
        Ok(Err(Rejection::Unknown))
    }
}
