//! Table `tenants`.

use super::{
    Db, Result, StoreError, Tx,
    engine::{execute, fetch_all, fetch_in, fetch_optional},
    parse,
};
use crate::model::{KeyId, TenantName, Timestamp};

const INSERT: &str = "INSERT INTO tenants (name, created_at) VALUES ($1, $2)";
const BY_NAME: &str = "SELECT name, created_at FROM tenants WHERE name = $1";
const PAGE: &str = "SELECT name, created_at FROM tenants WHERE name > $1 ORDER BY name LIMIT $2";
const ERASE: &str = "UPDATE tenants SET erased_at = $2 WHERE name = $1 AND erased_at IS NULL";
// Locks the row: who creates and who erases come one after the other.
const HOLD: &str = "UPDATE tenants SET erased_at = erased_at WHERE name = $1 AND erased_at IS NULL";
const HOLD_OF_KEY: &str = "UPDATE tenants SET erased_at = erased_at \
     WHERE name = (SELECT tenant FROM keys WHERE id = $1) AND erased_at IS NULL";
const ERASED: &str = "SELECT name FROM tenants WHERE name = $1 AND erased_at IS NOT NULL";
const ERASED_OF_KEY: &str = "SELECT t.name FROM tenants t JOIN keys k ON k.tenant = t.name \
     WHERE k.id = $1 AND t.erased_at IS NOT NULL";

impl Tx {
    /// From the commit on, nothing is created in the tenant any more. False when that was so already.
    pub async fn erase_tenant(&mut self, name: &TenantName, now: Timestamp) -> Result<bool> {
        let rows = execute!(self, ERASE, name.as_str(), now.micros())?;
        Ok(rows == 1)
    }

    /// Nobody erases the tenant before this transaction ends. Every insert into a tenant begins with it.
    ///
    /// Errors: `TenantErased`.
    pub async fn hold_tenant(&mut self, name: &TenantName) -> Result<()> {
        if execute!(self, HOLD, name.as_str())? == 1 {
            return Ok(());
        }
        // No such tenant: the insert itself says so.
        let erased = fetch_in!(self, (String,), ERASED, name.as_str())?;
        erased.map_or(Ok(()), |_| Err(StoreError::TenantErased))
    }

    /// As `hold_tenant`, of the tenant that a key belongs to.
    pub async fn hold_tenant_of(&mut self, key: KeyId) -> Result<()> {
        if execute!(self, HOLD_OF_KEY, key.to_string())? == 1 {
            return Ok(());
        }
        let erased = fetch_in!(self, (String,), ERASED_OF_KEY, key.to_string())?;
        erased.map_or(Ok(()), |_| Err(StoreError::TenantErased))
    }

    /// Adds a tenant. Errors: `Exists`.
    pub async fn insert_tenant(&mut self, name: &TenantName, now: Timestamp) -> Result<()> {
        execute!(self, INSERT, name.as_str(), now.micros()).map(|_| ())
    }
}

impl Db {
    /// Is there such a tenant?
    pub async fn tenant_exists(&self, name: &TenantName) -> Result<bool> {
        let row = fetch_optional!(self, (String, i64), BY_NAME, name.as_str())?;
        Ok(row.is_some())
    }

    /// Errors: `TenantErased`. For whoever is about to do something slow; the insert asks again.
    pub async fn expect_unerased(&self, name: &TenantName) -> Result<()> {
        let erased = fetch_optional!(self, (String,), ERASED, name.as_str())?;
        erased.map_or(Ok(()), |_| Err(StoreError::TenantErased))
    }

    /// Up to `limit` tenants after `after`, by name.
    pub async fn tenants(&self, after: &str, limit: i64) -> Result<Vec<(TenantName, Timestamp)>> {
        fetch_all!(self, (String, i64), PAGE, after, limit)?
            .into_iter()
            .map(|(name, at)| Ok((parse("tenant", &name)?, Timestamp::from_micros(at))))
            .collect()
    }
}
