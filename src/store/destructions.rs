//! Table `key_destructions`, and what still needs a version that is to be destroyed.

use super::{
    Counts, Db, Result, StoreError, Tx,
    engine::{execute, fetch_all, fetch_all_in, fetch_optional},
    parse,
};
use crate::model::{
    DestructionId, DestructionState, KeyDestruction, KeyId, Kid, RotationId, TenantName, Timestamp,
};

const INSERT: &str = "INSERT INTO key_destructions (id, tenant, key_id, kid, state, reason, requester, requested_at) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
const UPDATE: &str = "UPDATE key_destructions SET state = $3, approver = $4, approved_at = $5, destroy_at = $6, \
     ended_at = $7, cancelled_by = $8, cancel_reason = $9 WHERE id = $1 AND state = $2";
const BY_ID: &str = "SELECT d.id, d.tenant, d.key_id, k.name AS key_name, d.kid, d.state, d.reason, d.requester, \
     d.requested_at, d.approver, d.approved_at, d.destroy_at, d.ended_at, d.cancelled_by, d.cancel_reason \
     FROM key_destructions d JOIN keys k ON k.id = d.key_id WHERE d.id = $1";
const PAGE: &str = "SELECT d.id, d.tenant, d.key_id, k.name AS key_name, d.kid, d.state, d.reason, d.requester, \
     d.requested_at, d.approver, d.approved_at, d.destroy_at, d.ended_at, d.cancelled_by, d.cancel_reason \
     FROM key_destructions d JOIN keys k ON k.id = d.key_id \
     WHERE d.tenant = $1 AND d.id < $2 AND ($3 = '' OR d.state = $3) ORDER BY d.id DESC LIMIT $4";
const DUE: &str = "SELECT d.id, d.tenant, d.key_id, k.name AS key_name, d.kid, d.state, d.reason, d.requester, \
     d.requested_at, d.approver, d.approved_at, d.destroy_at, d.ended_at, d.cancelled_by, d.cancel_reason \
     FROM key_destructions d JOIN keys k ON k.id = d.key_id \
     WHERE d.state = 'SCHEDULED' AND d.destroy_at <= $1 ORDER BY d.destroy_at, d.id LIMIT $2";
const OPEN_ROTATION: &str = "SELECT id FROM rotations WHERE (old_kid = $1 OR new_kid = $1) \
     AND state IN ('REQUESTED', 'APPROVED') ORDER BY id LIMIT 1";
const NOTE_USE: &str = "UPDATE key_versions SET made = made + $3, opened = opened + $4, rewrapped = rewrapped + $5, \
     last_used_at = CASE WHEN last_used_at IS NULL OR last_used_at < $2 THEN $2 ELSE last_used_at END WHERE kid = $1";
const OPEN: &str = "SELECT d.id, d.tenant, d.key_id, k.name AS key_name, d.kid, d.state, d.reason, d.requester, \
     d.requested_at, d.approver, d.approved_at, d.destroy_at, d.ended_at, d.cancelled_by, d.cancel_reason \
     FROM key_destructions d JOIN keys k ON k.id = d.key_id \
     WHERE d.key_id = $1 AND d.state IN ('REQUESTED', 'SCHEDULED') ORDER BY d.id";

/// Greater than every UUID in canonical text.
const AFTER_EVERY_ID: &str = "g";

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    tenant: String,
    key_id: String,
    key_name: String,
    kid: String,
    state: String,
    reason: String,
    requester: String,
    requested_at: i64,
    approver: Option<String>,
    approved_at: Option<i64>,
    destroy_at: Option<i64>,
    ended_at: Option<i64>,
    cancelled_by: Option<String>,
    cancel_reason: String,
}

impl Tx {
    /// Opens a destruction. Errors: `Exists` when the version has an open one, `TenantErased`.
    pub async fn insert_destruction(&mut self, d: &KeyDestruction) -> Result<()> {
        self.hold_tenant(&d.tenant).await?;
        execute!(
            self,
            INSERT,
            d.id.to_string(),
            d.tenant.as_str(),
            d.key_id.to_string(),
            d.kid.as_str(),
            d.state.as_str(),
            &d.reason,
            d.requester.to_string(),
            d.requested_at.micros(),
        )
        .map(|_| ())
    }

    /// Writes everything that a transition changes, if the destruction is still in state `from`; false when it is not.
    pub async fn update_destruction(
        &mut self,
        d: &KeyDestruction,
        from: DestructionState,
    ) -> Result<bool> {
        let rows = execute!(
            self,
            UPDATE,
            d.id.to_string(),
            from.as_str(),
            d.state.as_str(),
            d.approver.map(|id| id.to_string()),
            d.approved_at.map(Timestamp::micros),
            d.destroy_at.map(Timestamp::micros),
            d.ended_at.map(Timestamp::micros),
            d.cancelled_by.map(|id| id.to_string()),
            &d.cancel_reason,
        )?;
        Ok(rows == 1)
    }

    /// Notes when a version was last used, never earlier than was noted before, and adds how often.
    pub async fn note_use(
        &mut self,
        kid: &Kid,
        at: Option<Timestamp>,
        counts: Counts,
    ) -> Result<()> {
        execute!(
            self,
            NOTE_USE,
            kid.as_str(),
            at.map(Timestamp::micros),
            counts.made,
            counts.opened,
            counts.rewrapped,
        )
        .map(|_| ())
    }

    /// The open destructions of a key's versions, as this transaction sees them.
    pub async fn open_destructions(&mut self, key: KeyId) -> Result<Vec<KeyDestruction>> {
        fetch_all_in!(self, Row, OPEN, key.to_string())?
            .into_iter()
            .map(KeyDestruction::try_from)
            .collect()
    }
}

impl Db {
    /// The destruction with this id.
    pub async fn destruction(&self, id: DestructionId) -> Result<Option<KeyDestruction>> {
        let row = fetch_optional!(self, Row, BY_ID, id.to_string())?;
        row.map(KeyDestruction::try_from).transpose()
    }

    /// Up to `limit` destructions of a tenant before `before` (empty: from the newest), newest first.
    pub async fn destructions(
        &self,
        tenant: &TenantName,
        state: Option<DestructionState>,
        before: &str,
        limit: i64,
    ) -> Result<Vec<KeyDestruction>> {
        let before = match before {
            "" => AFTER_EVERY_ID,
            before => before,
        };
        let state = state.map_or("", DestructionState::as_str);
        fetch_all!(self, Row, PAGE, tenant.as_str(), before, state, limit)?
            .into_iter()
            .map(KeyDestruction::try_from)
            .collect()
    }

    /// Up to `limit` SCHEDULED destructions whose waiting period is over at `now`, the longest overdue first.
    pub async fn due_destructions(
        &self,
        now: Timestamp,
        limit: i64,
    ) -> Result<Vec<KeyDestruction>> {
        fetch_all!(self, Row, DUE, now.micros(), limit)?
            .into_iter()
            .map(KeyDestruction::try_from)
            .collect()
    }

    /// An open rotation from or to this version.
    pub async fn open_rotation_of_kid(&self, kid: &Kid) -> Result<Option<RotationId>> {
        let row = fetch_optional!(self, (String,), OPEN_ROTATION, kid.as_str())?;
        row.map(|(id,)| parse("rotation id", &id)).transpose()
    }
}

impl TryFrom<Row> for KeyDestruction {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            id: parse("destruction id", &row.id)?,
            tenant: parse("tenant", &row.tenant)?,
            key_id: parse("key id", &row.key_id)?,
            key_name: parse("key name", &row.key_name)?,
            kid: parse("kid", &row.kid)?,
            state: parse("destruction state", &row.state)?,
            reason: row.reason,
            requester: parse("requester", &row.requester)?,
            requested_at: Timestamp::from_micros(row.requested_at),
            approver: row.approver.map(|id| parse("approver", &id)).transpose()?,
            approved_at: row.approved_at.map(Timestamp::from_micros),
            destroy_at: row.destroy_at.map(Timestamp::from_micros),
            ended_at: row.ended_at.map(Timestamp::from_micros),
            cancelled_by: row
                .cancelled_by
                .map(|id| parse("cancelled_by", &id))
                .transpose()?,
            cancel_reason: row.cancel_reason,
        })
    }
}
