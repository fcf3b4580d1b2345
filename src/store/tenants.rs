//! Table `tenants`.

use super::{
    Db, Result, Tx,
    engine::{execute, fetch_all, fetch_optional},
    parse,
};
use crate::model::{TenantName, Timestamp};

const INSERT: &str = "INSERT INTO tenants (name, created_at) VALUES ($1, $2)";
const BY_NAME: &str = "SELECT name, created_at FROM tenants WHERE name = $1";
const PAGE: &str = "SELECT name, created_at FROM tenants WHERE name > $1 ORDER BY name LIMIT $2";

impl Tx {
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

    /// Up to `limit` tenants after `after`, by name.
    pub async fn tenants(&self, after: &str, limit: i64) -> Result<Vec<(TenantName, Timestamp)>> {
        fetch_all!(self, (String, i64), PAGE, after, limit)?
            .into_iter()
            .map(|(name, at)| Ok((parse("tenant", &name)?, Timestamp::from_micros(at))))
            .collect()
    }
}
