//! Section `[egress]`.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::Network;

/// Section `[egress]`: where the daemon's own requests may go.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EgressConfig {
    /// Networks that are not public and may be spoken to, such as `10.20.0.0/16`. Default none.
    pub allow_networks: Vec<Network>,
    /// Whether `http://` may be used. Refused outside `dev`. Default false.
    pub allow_http: bool,
    /// CAs, in PEM, that count besides those of the system. Default none.
    pub ca_file: Option<PathBuf>,
    /// Seconds that a request may take at most. Default 30.
    pub max_seconds: u64,
}

impl Default for EgressConfig {
    fn default() -> Self {
        Self {
            allow_networks: Vec::new(),
            allow_http: false,
            ca_file: None,
            max_seconds: 30,
        }
    }
}

impl EgressConfig {
    /// Errors: a bound out of range.
    pub fn check(&self) -> Result<(), String> {
        match self.max_seconds {
            1..=300 => Ok(()),
            _ => Err("egress.max_seconds must be 1 to 300".into()),
        }
    }

    pub(super) const fn longest(&self) -> Duration {
        Duration::from_secs(self.max_seconds)
    }
}
