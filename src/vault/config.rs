//! Section `[vault]`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Catalogue;
use crate::model::{KeyName, Provider, ProviderName};

/// Section `[vault]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaultConfig {
    /// Name of the ENCRYPTION key of each tenant that its credentials are sealed by. Made with the tenant's first one, and
    /// reserved: callers can do nothing with it. Default `credentials`.
    pub key: String,
    /// Refuse values that do not look as the catalogue says, instead of warning. Default false: a provider may have newer
    /// keys than the catalogue knows.
    pub strict: bool,
    /// How long a lease can be held at most, renewals included, in seconds: 60 to 30 days. Default a day.
    pub max_lease_seconds: u64,
    /// Providers beside those of the catalogue, or instead of them.
    pub providers: Vec<Provider>,
    /// Where providers are asked, by name, instead of where the catalogue says: a proxy, a region, a stand-in.
    pub base_urls: BTreeMap<ProviderName, String>,
}

impl Default for VaultConfig {
    fn default() -> Self {
        Self {
            key: "credentials".to_owned(),
            strict: false,
            max_lease_seconds: 24 * 60 * 60,
            providers: Vec::new(),
            base_urls: BTreeMap::new(),
        }
    }
}

impl VaultConfig {
    /// Errors: a sentence that names the setting.
    pub fn check(&self) -> Result<(), String> {
        self.key()?;
        if !(60..=30 * 24 * 60 * 60).contains(&self.max_lease_seconds) {
            return Err("vault.max_lease_seconds must be 60 to 2592000".into());
        }
        self.catalogue().map(|_| ())
    }

    /// Name of the tenants' key for credentials. Errors: a sentence that names the setting.
    pub fn key(&self) -> Result<KeyName, String> {
        let name = self.key.parse::<KeyName>();
        name.map_err(|e| format!("vault.key: {}", e.message()))
    }

    pub(super) fn catalogue(&self) -> Result<Catalogue, String> {
        let catalogue = Catalogue::new(&self.providers, &self.base_urls);
        catalogue.map_err(|e| format!("vault.providers: {e}"))
    }
}
