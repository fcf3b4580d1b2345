//! Table `alerts`: what people should be told, once per window. Raised in the transaction of what it is about;
//! delivery works on the rows.

use super::{
    Db, Result, Tx,
    engine::{execute, fetch_all},
    parse,
};
use crate::model::{AlertId, TenantName, Timestamp};

const RAISE: &str = "INSERT INTO alerts (id, tenant, kind, entity, entity_id, text, state, raised_at, window_key) \
     VALUES ($1, $2, $3, $4, $5, $6, 'FIRING', $7, $8) ON CONFLICT (window_key) DO NOTHING";
const OF_ENTITY: &str = "SELECT id, tenant, kind, entity, entity_id, text, raised_at, window_key FROM alerts \
     WHERE entity_id = $1 ORDER BY id";

/// Something that people should be told.
#[derive(Clone, Debug)]
pub struct Alert {
    /// Its id.
    pub id: AlertId,
    /// Tenant it is about.
    pub tenant: TenantName,
    /// Kind, UPPER_SNAKE_CASE.
    pub kind: String,
    /// Kind of entity, as in the audit log.
    pub entity: String,
    /// Its id.
    pub entity_id: String,
    /// A sentence for people; no secret.
    pub text: String,
    /// When.
    pub raised_at: Timestamp,
    /// What it is about and in which window: the same alert is not raised twice.
    pub window_key: String,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    tenant: String,
    kind: String,
    entity: String,
    entity_id: String,
    text: String,
    raised_at: i64,
    window_key: String,
}

impl Tx {
    /// Raises an alert; false when this window has it already.
    pub async fn raise_alert(&mut self, a: &Alert) -> Result<bool> {
        let rows = execute!(
            self,
            RAISE,
            a.id.to_string(),
            a.tenant.as_str(),
            &a.kind,
            &a.entity,
            &a.entity_id,
            &a.text,
            a.raised_at.micros(),
            &a.window_key,
        )?;
        Ok(rows == 1)
    }
}

impl Db {
    /// The alerts about an entity, oldest first.
    pub async fn alerts_about(&self, entity_id: &str) -> Result<Vec<Alert>> {
        fetch_all!(self, Row, OF_ENTITY, entity_id)?
            .into_iter()
            .map(|row| {
                Ok(Alert {
                    id: parse("alert id", &row.id)?,
                    tenant: parse("tenant", &row.tenant)?,
                    kind: row.kind,
                    entity: row.entity,
                    entity_id: row.entity_id,
                    text: row.text,
                    raised_at: Timestamp::from_micros(row.raised_at),
                    window_key: row.window_key,
                })
            })
            .collect()
    }
}
