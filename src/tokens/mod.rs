//! R3: access tokens in the profile of RFC 9068, and the JWK Set that verifies them.
//!
//! `issue` composes the signing input here and has the backend sign it; `verify` is strict and says why it rejects;
//! `jwks` keeps the published set in memory. No row is kept per token; `marks` keeps until when a version's tokens live,
//! `proven` which signatures were verified a moment ago.

mod claims;
mod issue;
mod json;
mod jwks;
mod marks;
mod proven;
mod revoke;
mod verify;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use serde::Deserialize;
use tokio::sync::Mutex;

pub use claims::{Audience, Claims, Confirmation};
pub use issue::{IssueToken, Issued};
pub use json::is_plain_object;
pub use jwks::{JwksConfig, JwksDocument};
pub use revoke::RevokeToken;
pub use verify::{Expectation, Rejection};

use crate::{clock::Clock, keys::Keys, store::Db};

/// Section `[tokens]`. Times are in seconds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokensConfig {
    /// `iss` of every token: the https URL of the public listener as verifiers see it.
    pub issuer: String,
    /// Lifetime when the caller names none. Default 900.
    #[serde(default = "default_ttl")]
    pub default_ttl_seconds: u64,
    /// Longest lifetime. Default 3600, at most 86,400.
    #[serde(default = "max_ttl")]
    pub max_ttl_seconds: u64,
    /// How far the clocks of two machines may differ when times are checked. Default 5, at most 60.
    #[serde(default = "leeway")]
    pub leeway_seconds: u64,
}

/// The longest lifetime that any configuration allows, in seconds.
const LONGEST_TTL: u64 = 86_400;

const fn default_ttl() -> u64 {
    900
}

const fn max_ttl() -> u64 {
    3600
}

const fn leeway() -> u64 {
    5
}

impl TokensConfig {
    /// Errors: a sentence that names the setting.
    pub fn check(&self) -> Result<(), String> {
        if !self.issuer.starts_with("https://") {
            return Err("tokens.issuer must be an https:// URL".into());
        }
        if self.issuer.contains(['?', '#']) {
            return Err(
                "tokens.issuer must have no query and no fragment (RFC 8414 section 2)".into(),
            );
        }
        if !(1..=LONGEST_TTL).contains(&self.max_ttl_seconds) {
            return Err("tokens.max_ttl_seconds must be 1 to 86400".into());
        }
        if !(1..=self.max_ttl_seconds).contains(&self.default_ttl_seconds) {
            return Err("tokens.default_ttl_seconds must be 1 to max_ttl_seconds".into());
        }
        if self.leeway_seconds > 60 {
            return Err("tokens.leeway_seconds must be at most 60".into());
        }
        Ok(())
    }
}

/// Issues, verifies, publishes.
pub struct Tokens {
    db: Db,
    keys: Arc<Keys>,
    clock: Clock,
    config: TokensConfig,
    jwks_max_age: Duration,
    published: ArcSwapOption<jwks::Published>,
    /// One rebuild of the set at a time.
    rebuild: Mutex<()>,
    marks: marks::Marks,
    revocations: Arc<revoke::Revocations>,
    proven: proven::Proven,
}

impl Tokens {
    /// `iss` of every token.
    pub fn issuer(&self) -> &str {
        &self.config.issuer
    }

    /// Tokens over these parts.
    pub fn new(
        db: Db,
        keys: Arc<Keys>,
        clock: Clock,
        config: TokensConfig,
        jwks_max_age: Duration,
    ) -> Self {
        Self {
            db,
            keys,
            clock,
            config,
            jwks_max_age,
            published: ArcSwapOption::empty(),
            rebuild: Mutex::new(()),
            marks: marks::Marks::new(),
            revocations: Arc::default(),
            proven: proven::Proven::new(),
        }
    }

    /// The URL of a path of the public listener, as others see it.
    pub fn endpoint(&self, path: &str) -> String {
        format!("{}{path}", self.config.issuer.trim_end_matches('/'))
    }

    /// The lifetime when nobody names one.
    pub const fn default_ttl(&self) -> Duration {
        Duration::from_secs(self.config.default_ttl_seconds)
    }

    /// The longest lifetime.
    pub const fn longest_ttl(&self) -> Duration {
        Duration::from_secs(self.config.max_ttl_seconds)
    }

    /// How far the clocks of two machines may differ.
    pub const fn leeway(&self) -> Duration {
        Duration::from_secs(self.config.leeway_seconds)
    }

    /// How long verifiers may keep the JWK Set.
    pub const fn jwks_max_age(&self) -> Duration {
        self.jwks_max_age
    }
}
