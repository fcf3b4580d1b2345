//! Section `[vault]`.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use super::{
    Catalogue,
    rotation::{Driver, DriverConfig},
};
use crate::model::{
    CredentialKey, KeyName, Provider, ProviderName, TenantName, credential_rotation::ErrorRule,
};

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
    /// Rotations of credentials.
    pub rotation: CredentialRotationConfig,
}

/// Section `[vault.rotation]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CredentialRotationConfig {
    /// How long an old value is held where a rotation does not say, in seconds: 0 to 30 days. Default a day.
    pub hold_seconds: u64,
    /// How often a provider is asked about the values of a rotation whose old value is held, in seconds: 1 to a day. Default
    /// 300.
    pub check_seconds: u64,
    /// How long before a credential is due people are told, in days: 0 to 365. Default 7.
    pub remind_days: u32,
    /// After how many hours people are told of a rotation of which nothing comes, 1 to 720. Default 24.
    pub stuck_hours: u32,
    /// How many more of a hundred requests with a credential must fail after a promotion than before it for the old value to
    /// come back: 1 to 100, or 0 for never. Default 20.
    pub rollback_error_rise_percent: u32,
    /// Of at least how many requests, before the promotion and after it: 1 to 1000000. Default 20.
    pub rollback_min_requests: u32,
    /// Which rotations need three people: one stages, another approves, a third promotes. Default none.
    pub three_roles: Vec<ThreeRoles>,
    /// What mints new values, by provider. Default none: people bring them.
    pub drivers: BTreeMap<ProviderName, DriverConfig>,
}

/// An entry of `[vault.rotation] three_roles`: credentials of this provider and this tenant; of every one that is left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThreeRoles {
    /// Provider.
    #[serde(default)]
    pub provider: Option<ProviderName>,
    /// Tenant.
    #[serde(default)]
    pub tenant: Option<String>,
}

impl ThreeRoles {
    /// Is it about this credential?
    pub(super) fn covers(&self, key: &CredentialKey) -> bool {
        let tenant = self.tenant.as_deref();
        self.provider
            .as_ref()
            .is_none_or(|name| *name == key.provider)
            && tenant.is_none_or(|name| name == key.tenant.as_str())
    }
}

impl Default for CredentialRotationConfig {
    fn default() -> Self {
        Self {
            hold_seconds: 24 * 60 * 60,
            check_seconds: 300,
            remind_days: 7,
            stuck_hours: 24,
            rollback_error_rise_percent: 20,
            rollback_min_requests: 20,
            three_roles: Vec::new(),
            drivers: BTreeMap::new(),
        }
    }
}

/// The same as lengths of time.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) hold: Duration,
    pub(super) check: Duration,
    pub(super) remind: Duration,
    pub(super) stuck: Duration,
}

impl CredentialRotationConfig {
    fn check(&self) -> Result<(), String> {
        const DAY: u64 = 24 * 60 * 60;
        if self.hold_seconds > 30 * DAY {
            return Err("vault.rotation.hold_seconds must be at most 2592000".into());
        }
        if !(1..=DAY).contains(&self.check_seconds) {
            return Err("vault.rotation.check_seconds must be 1 to 86400".into());
        }
        if self.remind_days > 365 {
            return Err("vault.rotation.remind_days must be at most 365".into());
        }
        if !(1..=720).contains(&self.stuck_hours) {
            return Err("vault.rotation.stuck_hours must be 1 to 720".into());
        }
        if self.rollback_error_rise_percent > 100 {
            return Err("vault.rotation.rollback_error_rise_percent must be at most 100".into());
        }
        if !(1..=1_000_000).contains(&self.rollback_min_requests) {
            return Err("vault.rotation.rollback_min_requests must be 1 to 1000000".into());
        }
        for tenant in self.three_roles.iter().filter_map(|r| r.tenant.as_ref()) {
            let tenant = tenant.parse::<TenantName>();
            tenant.map_err(|e| format!("vault.rotation.three_roles: {}", e.message()))?;
        }
        for (provider, driver) in &self.drivers {
            let checked = driver.check();
            checked.map_err(|e| format!("vault.rotation.drivers.{provider}: {e}"))?;
        }
        Ok(())
    }

    pub(super) fn drivers(&self) -> Result<BTreeMap<ProviderName, Driver>, String> {
        let drivers = self.drivers.iter().map(|(provider, config)| {
            let driver = config.driver();
            let driver = driver.map_err(|e| format!("vault.rotation.drivers.{provider}: {e}"))?;
            Ok((provider.clone(), driver))
        });
        drivers.collect()
    }

    pub(super) fn times(&self) -> Times {
        let days = Duration::from_secs(24 * 60 * 60);
        Times {
            hold: Duration::from_secs(self.hold_seconds),
            check: Duration::from_secs(self.check_seconds),
            remind: days * self.remind_days,
            stuck: Duration::from_secs(60 * 60) * self.stuck_hours,
        }
    }

    pub(super) fn error_rule(&self) -> ErrorRule {
        ErrorRule {
            rise_percent: self.rollback_error_rise_percent,
            min_requests: self.rollback_min_requests.into(),
        }
    }
}

impl Default for VaultConfig {
    fn default() -> Self {
        Self {
            key: "credentials".to_owned(),
            strict: false,
            max_lease_seconds: 24 * 60 * 60,
            providers: Vec::new(),
            base_urls: BTreeMap::new(),
            rotation: CredentialRotationConfig::default(),
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
        self.rotation.check()?;
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
