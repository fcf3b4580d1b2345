//! Section `[alerts]`.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::model::usage::Cost;

/// Section `[alerts]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlertsConfig {
    /// ERROR_RATE: more than so many percent of the requests of five minutes failed. Default 5.
    pub error_rate_percent: u32,
    /// ... and there were at least so many of them. Default 20.
    pub error_rate_min_requests: i64,
    /// REQUEST_RATE: more than so many requests in a minute, of one credential. Default 100.
    pub requests_per_minute: i64,
    /// COST_RATE: one credential cost more than this in an hour. Default "10".
    pub cost_per_hour: String,
    /// FAILED_AUTHENTICATIONS: so many from one address within five minutes. Default 5.
    pub failed_authentications: i64,
    /// Whether every alert is written to the log. Default true.
    pub log: bool,
    /// Alerts by e-mail; none when left out.
    pub email: Option<EmailConfig>,
    /// Webhooks that alerts are sent to.
    pub webhooks: Vec<WebhookConfig>,
    /// Time for one delivery, in seconds. Default 10.
    pub timeout_seconds: u64,
    /// Time before the second attempt, in seconds; twice as much before each further one, up to an hour. Default 5.
    pub first_retry_seconds: u64,
    /// Attempts before a delivery is given up. Default 12, which takes about five hours.
    pub max_attempts: i64,
    /// How long alerts and deliveries are kept, in days. Default 365.
    pub retention_days: u64,
}

/// Section `[alerts.email]`: one SMTP server, always over TLS.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmailConfig {
    /// Host name of the server, as in its certificate.
    pub host: String,
    /// Its port. Default 587.
    #[serde(default = "submission")]
    pub port: u16,
    /// `starttls` (default) or `implicit`.
    #[serde(default)]
    pub tls: MailTls,
    /// CA of the server's certificate, PEM, besides those of the system.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Whose account is used; none when left out.
    #[serde(default)]
    pub username: Option<String>,
    /// File with its password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// Sender.
    pub from: String,
    /// Recipients.
    pub to: Vec<String>,
}

/// How a connection to a mail server is secured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MailTls {
    /// STARTTLS, required (RFC 3207).
    #[default]
    Starttls,
    /// From the first byte (RFC 8314).
    Implicit,
}

/// One of `[[alerts.webhooks]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// Name of the channel, 1 to 32 lower-case letters, digits and `-`; not `log` or `email`.
    pub name: String,
    /// Where to, `https://…`.
    pub url: String,
    /// File with the secret that deliveries are signed with: `whsec_` and base64, or any text of at least 24 characters.
    pub secret_file: PathBuf,
}

const fn submission() -> u16 {
    587
}

impl Default for AlertsConfig {
    fn default() -> Self {
        Self {
            error_rate_percent: 5,
            error_rate_min_requests: 20,
            requests_per_minute: 100,
            cost_per_hour: "10".to_owned(),
            failed_authentications: 5,
            log: true,
            email: None,
            webhooks: Vec::new(),
            timeout_seconds: 10,
            first_retry_seconds: 5,
            max_attempts: 12,
            retention_days: 365,
        }
    }
}

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

impl AlertsConfig {
    /// Errors: a sentence that names the setting.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u64, most: u64| match value {
            value if (1..=most).contains(&value) => Ok(()),
            _ => Err(format!("alerts.{name} must be 1 to {most}")),
        };
        within("error_rate_percent", self.error_rate_percent.into(), 99)?;
        within("timeout_seconds", self.timeout_seconds, 30)?;
        within("first_retry_seconds", self.first_retry_seconds, 3600)?;
        within("retention_days", self.retention_days, 3660)?;
        for (name, value) in [
            ("error_rate_min_requests", self.error_rate_min_requests),
            ("requests_per_minute", self.requests_per_minute),
            ("failed_authentications", self.failed_authentications),
            ("max_attempts", self.max_attempts),
        ] {
            within(name, value.try_into().unwrap_or(0), 1_000_000)?;
        }
        self.cost_per_hour
            .parse::<Cost>()
            .map_err(|e| format!("alerts.cost_per_hour: {}", e.message()))?;
        self.check_webhooks()
    }

    fn check_webhooks(&self) -> Result<(), String> {
        let mut names = BTreeSet::from(["log", "email"]);
        for webhook in &self.webhooks {
            let name = webhook.name.as_str();
            let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if !(1..=32).contains(&name.len()) || !name.bytes().all(fits) {
                return Err(
                    "alerts.webhooks.name must be 1 to 32 lower-case letters, digits and -".into(),
                );
            }
            if !names.insert(name) {
                return Err(format!("alerts.webhooks.name {name:?} is taken"));
            }
        }
        Ok(())
    }

    /// Time for one delivery.
    pub const fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }

    /// For how long a delivery is claimed: longer than any attempt takes.
    pub const fn claim(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds * 2 + 5)
    }

    /// Time after attempt number `attempt`, from 1, failed.
    pub fn pause(&self, attempt: i64) -> Duration {
        let doublings = u32::try_from(attempt.clamp(1, 20) - 1).unwrap_or(0);
        let pause = Duration::from_secs(self.first_retry_seconds) * 2_u32.pow(doublings);
        pause.min(LONGEST_PAUSE)
    }

    /// How long alerts and deliveries are kept.
    pub const fn retention(&self) -> Duration {
        Duration::from_secs(self.retention_days * 24 * 60 * 60)
    }

    /// What one credential may cost in an hour before people are told.
    pub fn hourly_cost(&self) -> Cost {
        self.cost_per_hour.parse().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_come_ever_more_rarely_and_at_least_every_hour() {
        let config = AlertsConfig::default();
        let pauses: Vec<_> = (1..13).map(|n| config.pause(n).as_secs()).collect();
        assert_eq!(pauses[..5], [5, 10, 20, 40, 80]);
        assert_eq!(pauses.last(), Some(&3600));
        assert_eq!(config.pause(i64::MAX), LONGEST_PAUSE);
        assert!(config.claim() > config.patience() * 2);
    }
}
