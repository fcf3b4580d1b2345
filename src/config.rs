//! R6: the configuration: a TOML file, overridden by `CLAVIGER_…` environment variables, composed of the sections
//! that modules declare.
//!
//! Unknown fields are refused. `environment` has no default (R-ENV-1), and what only `dev` may do is refused elsewhere.
//! A nested setting is `CLAVIGER_SECTION__FIELD`; secrets come from files (`pin_file`, `url_file`).

use std::{collections::BTreeMap, fmt, path::Path, path::PathBuf, time::Duration};

use figment::{
    Figment,
    error::Kind,
    providers::{Env, Format, Toml},
};
use serde::Deserialize;

use crate::{
    alerts::AlertsConfig,
    audit::{AccessConfig, AccessMode},
    authn::{AuthnConfig, ClientCertificate, TlsConfig},
    backends::{aws_kms::AwsKmsConfig, pkcs11::Pkcs11Config},
    clients::{ApiKeysConfig, OauthConfig},
    directory::BootstrapConfig,
    egress::EgressConfig,
    grpc::{LimitsConfig, listener::GrpcConfig},
    http::{ops::OpsConfig, public::PublicConfig},
    jobs::{FeedConfig, IdempotencyConfig, SchedulerConfig},
    keys::KeysConfig,
    rotation::RotationConfig,
    store::DatabaseConfig,
    telemetry::{Identity, LogConfig, TelemetryConfig},
    tokens::{JwksConfig, TokensConfig},
    usage::UsageConfig,
    vault::VaultConfig,
};

/// The whole configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where this daemon runs. Required.
    pub environment: Environment,
    /// File that receives the bound addresses as JSON, for tools that let the system choose ports.
    #[serde(default)]
    pub addresses_file: Option<PathBuf>,
    /// The gRPC listener.
    #[serde(default)]
    pub grpc: GrpcConfig,
    /// The public listener.
    #[serde(default)]
    pub public: PublicConfig,
    /// The ops listener.
    #[serde(default)]
    pub ops: OpsConfig,
    /// Certificate, key and client CA of the listeners.
    pub tls: TlsConfig,
    /// The database.
    pub database: DatabaseConfig,
    /// Key backends by name.
    pub backends: BTreeMap<String, BackendConfig>,
    /// The key-encryption key.
    pub kek: KekConfig,
    /// Who is let in.
    #[serde(default)]
    pub authn: AuthnConfig,
    /// Access policies.
    #[serde(default)]
    pub authz: AuthzConfig,
    /// Audit.
    #[serde(default)]
    pub audit: AccessConfig,
    /// Keys.
    #[serde(default)]
    pub keys: KeysConfig,
    /// Rotations.
    #[serde(default)]
    pub rotation: RotationConfig,
    /// Tokens.
    pub tokens: TokensConfig,
    /// The JWK Set.
    #[serde(default)]
    pub jwks: JwksConfig,
    /// OAuth clients.
    #[serde(default)]
    pub oauth: OauthConfig,
    /// The change feed.
    #[serde(default)]
    pub feed: FeedConfig,
    /// Scheduled work.
    #[serde(default)]
    pub scheduler: SchedulerConfig,
    /// Answers kept for callers who ask again.
    #[serde(default)]
    pub idempotency: IdempotencyConfig,
    /// API keys.
    #[serde(default)]
    pub api_keys: ApiKeysConfig,
    /// Bounds of payloads.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Logs.
    #[serde(default)]
    pub log: LogConfig,
    /// First tenants and principals.
    #[serde(default)]
    pub bootstrap: BootstrapConfig,
    /// Usage and limits.
    #[serde(default)]
    pub usage: UsageConfig,
    /// Alerts and their channels.
    #[serde(default)]
    pub alerts: AlertsConfig,
    /// Where the daemon's own requests may go.
    #[serde(default)]
    pub egress: EgressConfig,
    /// The vault.
    #[serde(default)]
    pub vault: VaultConfig,
    /// Traces.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
}

/// Where a daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// On a developer's machine.
    Dev,
    /// Before production.
    Staging,
    /// For real.
    Production,
}

impl Environment {
    /// As the configuration says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Staging => "staging",
            Self::Production => "production",
        }
    }
}

/// One key backend.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BackendConfig {
    /// A PKCS#11 token.
    Pkcs11(Pkcs11Config),
    /// AWS KMS in one account and region.
    AwsKms(AwsKmsConfig),
}

impl BackendConfig {
    /// How long no call may come back before the device counts as hanging.
    pub const fn stall(&self) -> Duration {
        match self {
            Self::Pkcs11(pkcs11) => Duration::from_millis(pkcs11.stall_ms),
            Self::AwsKms(kms) => kms.stall(),
        }
    }
}

/// Section `[kek]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KekConfig {
    /// Name of the backend that holds it.
    pub backend: String,
    /// RFC 7512 URI that names it; in AWS KMS its key ARN or alias.
    pub uri: String,
}

/// Section `[authz]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthzConfig {
    /// Directory of Cedar policies; the built-in ones when left out.
    pub policies: Option<PathBuf>,
}

/// What is wrong with the configuration; the text says what to do.
#[derive(Debug)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "configuration: {}", self.0)
    }
}

impl std::error::Error for ConfigError {}

/// Prefixes of variables that are not the daemon's.
const OTHERS: [&str; 3] = ["client_", "dev_", "test_"];

/// A parser's error without the line of the file that it quotes: that line may hold a secret.
fn unquoted(error: &figment::Error) -> String {
    let text = error.to_string();
    let quotes = |line: &&str| {
        let margin = line.split_once('|').map(|(margin, _)| margin.trim());
        margin.is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()))
    };
    let said = text.lines().filter(|line| !quotes(line));
    said.collect::<Vec<_>>().join(": ")
}

impl Config {
    /// Reads and checks the file and the environment.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let env = Env::prefixed("CLAVIGER_")
            .filter(|key| {
                let key = key.as_str().to_ascii_lowercase();
                !OTHERS.iter().any(|other| key.starts_with(other))
            })
            .split("__");
        let figment = Figment::new().merge(Toml::file_exact(path)).merge(env);
        if path.is_file()
            && figment
                .find_value("environment")
                .is_err_and(|e| matches!(e.kind, Kind::MissingField(_)))
        {
            return Err(ConfigError(
                "environment is missing; set it to dev, staging or production".into(),
            ));
        }
        let config: Self = figment
            .extract()
            .map_err(|e| ConfigError(format!("{}: {}", path.display(), unquoted(&e))))?;
        config.check()?;
        Ok(config)
    }

    /// The backend that generates key pairs when CreateKey names none.
    pub fn default_backend(&self) -> &str {
        let chosen = self.keys.default_backend.as_ref();
        chosen.unwrap_or(&self.kek.backend)
    }

    /// What this daemon's traces say about it.
    pub fn identity(&self) -> Identity {
        Identity {
            environment: self.environment.as_str(),
            replica: self.audit.replica.clone(),
        }
    }

    /// How long a new kid is announced before it may sign.
    pub const fn soak(&self) -> Duration {
        let (max_age, skew) = (self.jwks.max_age_seconds, self.rotation.clock_skew_seconds);
        Duration::from_secs(max_age.saturating_add(skew))
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |text: String| Err(ConfigError(text));
        if let Err(e) = self.ops.check() {
            return wrong(e.to_string());
        }
        if let Err(e) = self.tokens.check() {
            return wrong(e);
        }
        if let Err(e) = self.authn.check(&self.tokens.issuer) {
            return wrong(e);
        }
        if self.grpc.client_certificate == ClientCertificate::None {
            return wrong("grpc.client_certificate must be required or optional".into());
        }
        if self.public.client_certificate == ClientCertificate::Required {
            return wrong(
                "public.client_certificate must be none or optional: verifiers of tokens have none"
                    .into(),
            );
        }
        if let Err(e) = self.rotation.check(self.soak()) {
            return wrong(e);
        }
        if let Err(e) = self.oauth.check() {
            return wrong(e);
        }
        if let Err(e) = self.scheduler.check() {
            return wrong(e);
        }
        if let Err(e) = self.idempotency.check().and_then(|()| self.keys.check()) {
            return wrong(e);
        }
        if let Some(checkpoint) = &self.audit.checkpoint
            && let Err(e) = checkpoint.check(&self.tokens.issuer)
        {
            return wrong(e);
        }
        if let Err(e) = self.tls.check() {
            return wrong(e);
        }
        let is_dev = self.environment == Environment::Dev;
        if let Err(e) = self.audit.retention.check(is_dev) {
            return wrong(e);
        }
        if self.audit.retention.prunes() && self.audit.checkpoint.is_none() {
            return wrong("audit.retention needs [audit.checkpoint]: rows are pruned behind a checkpoint only".into());
        }
        if let Err(e) = self.api_keys.check() {
            return wrong(e);
        }
        if let Err(e) = self.vault.check() {
            return wrong(e);
        }
        if let Err(e) = self.usage.check().and_then(|()| self.alerts.check()) {
            return wrong(e);
        }
        if let Err(e) = self.bootstrap.check() {
            return wrong(e.message().to_owned());
        }
        if let Err(e) = self.egress.check() {
            return wrong(e);
        }
        if let Err(e) = self.telemetry.check(self.environment == Environment::Dev) {
            return wrong(e);
        }
        if !self.backends.contains_key(&self.kek.backend) {
            return wrong(format!(
                "kek.backend {:?} is not one of [backends]",
                self.kek.backend
            ));
        }
        if !self.backends.contains_key(self.default_backend()) {
            return wrong(format!(
                "keys.default_backend {:?} is not one of [backends]",
                self.default_backend()
            ));
        }
        if let Err(e) = self.limits.check_streams() {
            return wrong(e);
        }
        let payload = self.limits.max_payload_bytes;
        // Room for the other fields of a request and for what a ciphertext is longer than its plaintext.
        if payload == 0 || payload + (64 << 10) > self.grpc.max_request_bytes {
            return wrong(format!(
                "limits.max_payload_bytes must be 1 to 64 KiB less than grpc.max_request_bytes ({})",
                self.grpc.max_request_bytes
            ));
        }
        if self.grpc.max_in_flight_bytes < self.grpc.max_request_bytes {
            return wrong(
                "grpc.max_in_flight_bytes must hold one request of max_request_bytes".into(),
            );
        }
        if !(1..=60).contains(&self.feed.max_staleness_seconds) {
            return wrong("feed.max_staleness_seconds must be 1 to 60".into());
        }
        if self.environment != Environment::Dev {
            self.check_outside_dev()?;
        }
        Ok(())
    }

    /// R-ENV-1: conveniences of `dev` do not exist elsewhere.
    fn check_outside_dev(&self) -> Result<(), ConfigError> {
        let is_plain = |backend: &BackendConfig| match backend {
            BackendConfig::AwsKms(kms) => kms.is_plain_http(),
            BackendConfig::Pkcs11(_) => false,
        };
        let refused = [
            (self.grpc.reflection, "grpc.reflection = true"),
            (
                self.backends.values().any(is_plain),
                "an http:// endpoint of AWS KMS",
            ),
            (
                self.database.is_plain(),
                "a PostgreSQL server elsewhere without sslmode=verify-full (or verify-ca, require) in its URL",
            ),
            (
                self.audit.access != AccessMode::Required,
                "audit.access other than required",
            ),
            (
                self.jwks.max_age_seconds < 60,
                "jwks.max_age_seconds below 60",
            ),
            (
                self.rotation.clock_skew_seconds < 10,
                "rotation.clock_skew_seconds below 10",
            ),
            (
                self.rotation.is_hasty(),
                "rotation.request_ttl_seconds below 3600",
            ),
            (
                self.keys.destruction_wait_seconds < 24 * 60 * 60,
                "keys.destruction_wait_seconds below 86400",
            ),
            (
                self.keys.tenant_destruction_wait_seconds < 24 * 60 * 60,
                "keys.tenant_destruction_wait_seconds below 86400",
            ),
            (
                self.keys.reconcile_after_seconds < 30,
                "keys.reconcile_after_seconds below 30",
            ),
            (self.egress.allow_http, "egress.allow_http = true"),
        ];
        match refused.into_iter().find(|(is_set, _)| *is_set) {
            Some((_, what)) => Err(ConfigError(format!(
                "{what} is possible in environment dev only"
            ))),
            None => Ok(()),
        }
    }
}
