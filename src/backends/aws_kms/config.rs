//! The `[backends.<name>]` section of AWS KMS.
//!
//! It holds no secret: credentials come from the standard AWS chain (environment, web identity token of a
//! Kubernetes service account, container and instance roles, profile).

use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use super::arn::is_account;
use crate::backends::{BackendError, STALL_MS, VerifyAfterSign};

/// Keys in AWS KMS, in one account and region.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsKmsConfig {
    /// Region of the keys, for example `eu-west-1`.
    pub region: String,
    /// Account of the keys, 12 digits; keys of other accounts are then refused. Left out: AWS decides.
    pub account: Option<String>,
    /// URL of the endpoint, for interface endpoints without private DNS and for tests. Default: that of the
    /// region. `http://` in environment `dev` only.
    pub endpoint: Option<String>,
    /// Use the FIPS endpoint of the region.
    #[serde(default)]
    pub fips: bool,
    /// Whether the endpoint has Ed25519 keys. Default: yes, and no where `endpoint` is set.
    pub ed25519: Option<bool>,
    /// Longest that one request may take, in milliseconds, 50 to 60,000; then it is sent again.
    #[serde(default = "default_attempt")]
    pub attempt_timeout_ms: u64,
    /// Longest that one operation may take with all its attempts, in milliseconds, up to 300,000. The
    /// caller's deadline holds too.
    #[serde(default = "default_operation")]
    pub operation_timeout_ms: u64,
    /// Request quotas of the account.
    #[serde(default)]
    pub quotas: QuotaConfig,
    /// How long no call may come back while calls wait before the device counts as hanging, in milliseconds, 100 to
    /// 60,000. Default: twice `attempt_timeout_ms` and half a second, so that one lost answer, which is asked for again,
    /// is no stall.
    pub stall_ms: Option<u64>,
    /// Which fresh signatures are verified before they leave. Default `always`.
    #[serde(default = "default_verify_after_sign")]
    pub verify_after_sign: VerifyAfterSign,
}

/// Request quotas of the account in the region, and how much of them this daemon takes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuotaConfig {
    /// Sign: requests per second for RSA and elliptic-curve keys together.
    pub asymmetric_per_second: u32,
    /// Encrypt and Decrypt: requests per second.
    pub symmetric_per_second: u32,
    /// CreateKey, CreateAlias and ScheduleKeyDeletion: requests per second.
    pub control_per_second: u32,
    /// DescribeKey, GetPublicKey, ListKeys and ListResourceTags: requests per second.
    pub read_per_second: u32,
    /// Share of the quotas that this daemon may use, 1 to 100. Divide by the number of replicas.
    pub share_percent: u32,
}

impl Default for QuotaConfig {
    /// What AWS grants a new account, and room for others in it.
    fn default() -> Self {
        Self {
            asymmetric_per_second: 1000,
            symmetric_per_second: 10_000,
            control_per_second: 5,
            read_per_second: 500,
            share_percent: 80,
        }
    }
}

/// What is wrong with the section.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AwsKmsConfigError {
    /// Not a region.
    #[error("region must be the name of an AWS region, for example eu-west-1")]
    Region,
    /// Not an account.
    #[error("account must be the 12 digits of an AWS account")]
    Account,
    /// Not a URL of ours.
    #[error("endpoint must be an https:// or http:// URL without credentials, query and fragment")]
    Endpoint,
    /// Two answers to one question.
    #[error("fips chooses the region's FIPS endpoint, so leave endpoint out")]
    FipsAndEndpoint,
    /// Out of range.
    #[error("attempt_timeout_ms must be 50 to 60000, not {0}")]
    Attempt(u64),
    /// Out of range.
    #[error("operation_timeout_ms must be at least attempt_timeout_ms and at most 300000, not {0}")]
    Operation(u64),
    /// Out of range.
    #[error("stall_ms must be 100 to 60000, not {0}")]
    Stall(u64),
    /// Out of range.
    #[error("quotas.{0} must be 1 to 1000000")]
    Quota(&'static str),
    /// Out of range.
    #[error("quotas.share_percent must be 1 to 100")]
    Share,
}

const fn default_verify_after_sign() -> VerifyAfterSign {
    VerifyAfterSign::Always
}

const fn default_attempt() -> u64 {
    1000
}

const fn default_operation() -> u64 {
    10_000
}

impl AwsKmsConfig {
    /// Checks everything that can be checked without AWS.
    pub fn validate(&self) -> Result<(), AwsKmsConfigError> {
        let region = self.region.as_bytes();
        let letter = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        if !(3..=40).contains(&region.len()) || !region.iter().all(letter) {
            return Err(AwsKmsConfigError::Region);
        }
        if self.account.as_deref().is_some_and(|a| !is_account(a)) {
            return Err(AwsKmsConfigError::Account);
        }
        if self.endpoint.as_deref().is_some_and(|e| !is_endpoint(e)) {
            return Err(AwsKmsConfigError::Endpoint);
        }
        if self.fips && self.endpoint.is_some() {
            return Err(AwsKmsConfigError::FipsAndEndpoint);
        }
        if !(50..=60_000).contains(&self.attempt_timeout_ms) {
            return Err(AwsKmsConfigError::Attempt(self.attempt_timeout_ms));
        }
        if !(self.attempt_timeout_ms..=300_000).contains(&self.operation_timeout_ms) {
            return Err(AwsKmsConfigError::Operation(self.operation_timeout_ms));
        }
        match self.stall_ms {
            Some(stall) if !STALL_MS.contains(&stall) => {
                return Err(AwsKmsConfigError::Stall(stall));
            }
            Some(_) | None => {}
        }
        self.quotas.validate()
    }

    /// Requests would travel in clear.
    pub fn is_plain_http(&self) -> bool {
        let url = self.endpoint.as_deref().unwrap_or_default();
        url.get(..5)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("http:"))
    }

    /// How long no call may come back before KMS counts as hanging.
    pub const fn stall(&self) -> Duration {
        Duration::from_millis(match self.stall_ms {
            Some(stall) => stall,
            None => 2 * self.attempt_timeout_ms + 500,
        })
    }

    pub(super) fn has_ed25519(&self) -> bool {
        self.ed25519.unwrap_or(self.endpoint.is_none())
    }

    pub(super) const fn attempt_timeout(&self) -> Duration {
        Duration::from_millis(self.attempt_timeout_ms)
    }

    pub(super) const fn operation_timeout(&self) -> Duration {
        Duration::from_millis(self.operation_timeout_ms)
    }
}

impl QuotaConfig {
    fn validate(&self) -> Result<(), AwsKmsConfigError> {
        let quotas = [
            ("asymmetric_per_second", self.asymmetric_per_second),
            ("symmetric_per_second", self.symmetric_per_second),
            ("control_per_second", self.control_per_second),
            ("read_per_second", self.read_per_second),
        ];
        for (name, quota) in quotas {
            if !(1..=1_000_000).contains(&quota) {
                return Err(AwsKmsConfigError::Quota(name));
            }
        }
        match self.share_percent {
            1..=100 => Ok(()),
            _ => Err(AwsKmsConfigError::Share),
        }
    }
}

fn is_endpoint(text: &str) -> bool {
    let Ok(url) = url::Url::parse(text) else {
        return false;
    };
    let bare = url.username().is_empty() && url.password().is_none();
    let plain = url.query().is_none() && url.fragment().is_none();
    matches!(url.scheme(), "https" | "http") && url.has_host() && bare && plain
}

impl From<AwsKmsConfigError> for BackendError {
    fn from(error: AwsKmsConfigError) -> Self {
        Self::Misconfigured(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A lost answer is asked for again before the breaker opens, however long an attempt may take.
    #[test]
    fn a_stall_is_longer_than_an_attempt() {
        for attempt in [50, default_attempt(), 9000] {
            let section = json!({ "region": "eu-west-1", "attempt_timeout_ms": attempt });
            let config: AwsKmsConfig = serde_json::from_value(section).expect("a section");
            config.validate().expect("valid");
            assert!(config.stall() > 2 * config.attempt_timeout(), "{attempt}");
        }
        let told = json!({ "region": "eu-west-1", "stall_ms": 99 });
        let told: AwsKmsConfig = serde_json::from_value(told).expect("a section");
        assert_eq!(told.validate(), Err(AwsKmsConfigError::Stall(99)));
    }
}
