//! Tables `rotations` and `rotation_approvals`.

use std::time::Duration;

use super::{
    Db, Result, StoreError, Tx,
    engine::{execute, fetch_all, fetch_all_in, fetch_in, fetch_optional},
    parse, unsigned,
};
use crate::model::{
    Approval, KeyId, Kid, Rotation, RotationId, RotationState, TenantName, Timestamp, time::micros,
};

const INSERT: &str = "INSERT INTO rotations (id, tenant, key_id, state, old_kid, new_kid, justification, plan, soak, \
     requester, approvals_needed, requested_at, grace, scheduled, expires_at) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)";
const UPDATE: &str = "UPDATE rotations SET state = $3, deployer = $4, announced_at = $5, deployed_at = $6, \
     grace_ends_at = $7, ended_at = $8, ended_by = $9, end_reason = $10 WHERE id = $1 AND state = $2";
const INSERT_APPROVAL: &str =
    "INSERT INTO rotation_approvals (rotation_id, approver, at) VALUES ($1, $2, $3)";
const BY_ID: &str = "SELECT r.id, r.tenant, r.key_id, k.name AS key_name, r.state, r.old_kid, r.new_kid, \
     r.justification, r.plan, r.soak, r.requester, r.approvals_needed, r.deployer, r.requested_at, \
     r.announced_at, r.deployed_at, r.grace, r.scheduled, r.expires_at, r.grace_ends_at, r.ended_at, r.ended_by, \
     r.end_reason FROM rotations r JOIN keys k ON k.id = r.key_id WHERE r.id = $1";
const PAGE: &str = "SELECT r.id, r.tenant, r.key_id, k.name AS key_name, r.state, r.old_kid, r.new_kid, \
     r.justification, r.plan, r.soak, r.requester, r.approvals_needed, r.deployer, r.requested_at, \
     r.announced_at, r.deployed_at, r.grace, r.scheduled, r.expires_at, r.grace_ends_at, r.ended_at, r.ended_by, \
     r.end_reason FROM rotations r JOIN keys k ON k.id = r.key_id \
     WHERE r.tenant = $1 AND r.id < $2 AND ($3 = '' OR r.key_id = $3) AND ($4 = '' OR r.state = $4) \
     ORDER BY r.id DESC LIMIT $5";
const OPEN: &str = "SELECT r.id, r.tenant, r.key_id, k.name AS key_name, r.state, r.old_kid, r.new_kid, \
     r.justification, r.plan, r.soak, r.requester, r.approvals_needed, r.deployer, r.requested_at, \
     r.announced_at, r.deployed_at, r.grace, r.scheduled, r.expires_at, r.grace_ends_at, r.ended_at, r.ended_by, \
     r.end_reason FROM rotations r JOIN keys k ON k.id = r.key_id \
     WHERE r.key_id = $1 AND r.state IN ('REQUESTED', 'APPROVED')";
const DEPLOYED: &str = "SELECT r.id, r.tenant, r.key_id, k.name AS key_name, r.state, r.old_kid, r.new_kid, \
     r.justification, r.plan, r.soak, r.requester, r.approvals_needed, r.deployer, r.requested_at, \
     r.announced_at, r.deployed_at, r.grace, r.scheduled, r.expires_at, r.grace_ends_at, r.ended_at, r.ended_by, \
     r.end_reason FROM rotations r JOIN keys k ON k.id = r.key_id WHERE r.old_kid = $1 AND r.state = 'DEPLOYED'";
const APPROVALS: &str =
    "SELECT approver, at FROM rotation_approvals WHERE rotation_id = $1 ORDER BY at, approver";

/// Greater than every UUID in canonical text.
const AFTER_EVERY_ID: &str = "g";

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    tenant: String,
    key_id: String,
    key_name: String,
    state: String,
    old_kid: String,
    new_kid: String,
    justification: String,
    plan: String,
    soak: i64,
    requester: String,
    approvals_needed: i64,
    deployer: Option<String>,
    requested_at: i64,
    announced_at: Option<i64>,
    deployed_at: Option<i64>,
    grace: i64,
    scheduled: i64,
    expires_at: i64,
    grace_ends_at: Option<i64>,
    ended_at: Option<i64>,
    ended_by: Option<String>,
    end_reason: String,
}

impl Tx {
    /// Opens a rotation. Errors: `Exists` when the key has an open one.
    pub async fn insert_rotation(&mut self, r: &Rotation) -> Result<()> {
        execute!(
            self,
            INSERT,
            r.id.to_string(),
            r.tenant.as_str(),
            r.key_id.to_string(),
            r.state.as_str(),
            r.old_kid.as_str(),
            r.new_kid.as_str(),
            &r.justification,
            &r.plan,
            micros(r.soak),
            r.requester.to_string(),
            i64::from(r.approvals_needed.get()),
            r.requested_at.micros(),
            micros(r.grace),
            i64::from(r.scheduled),
            r.expires_at.micros(),
        )
        .map(|_| ())
    }

    /// Writes everything that a transition changes, if the rotation is still in state `from`; false when it is not.
    pub async fn update_rotation(&mut self, r: &Rotation, from: RotationState) -> Result<bool> {
        let rows = execute!(
            self,
            UPDATE,
            r.id.to_string(),
            from.as_str(),
            r.state.as_str(),
            r.deployer.map(|id| id.to_string()),
            r.announced_at.map(Timestamp::micros),
            r.deployed_at.map(Timestamp::micros),
            r.grace_ends_at.map(Timestamp::micros),
            r.ended_at.map(Timestamp::micros),
            r.ended_by.map(|id| id.to_string()),
            &r.end_reason,
        )?;
        Ok(rows == 1)
    }

    /// Adds an approval. Errors: `Exists` when this principal has approved already.
    pub async fn insert_approval(&mut self, id: RotationId, approval: &Approval) -> Result<()> {
        execute!(
            self,
            INSERT_APPROVAL,
            id.to_string(),
            approval.approver.to_string(),
            approval.at.micros(),
        )
        .map(|_| ())
    }
}

impl Tx {
    /// The open rotation of a key, as this transaction sees it.
    pub async fn open_rotation(&mut self, key: KeyId) -> Result<Option<Rotation>> {
        let row = fetch_in!(self, Row, OPEN, key.to_string())?;
        self.with_approvals(row).await
    }

    /// The rotation that took a version out of use and whose grace window is not over, as this transaction sees it.
    pub async fn deployed_rotation_from(&mut self, old_kid: &Kid) -> Result<Option<Rotation>> {
        let row = fetch_in!(self, Row, DEPLOYED, old_kid.as_str())?;
        self.with_approvals(row).await
    }

    async fn with_approvals(&mut self, row: Option<Row>) -> Result<Option<Rotation>> {
        let Some(row) = row else { return Ok(None) };
        let approvals = fetch_all_in!(self, (String, i64), APPROVALS, &row.id)?;
        rotation(row, approvals).map(Some)
    }
}

impl Db {
    /// The rotation with this id.
    pub async fn rotation(&self, id: RotationId) -> Result<Option<Rotation>> {
        match fetch_optional!(self, Row, BY_ID, id.to_string())? {
            Some(row) => self.with_approvals(row).await.map(Some),
            None => Ok(None),
        }
    }

    /// Up to `limit` rotations of a tenant before `before` (empty: from the newest), newest first.
    pub async fn rotations(
        &self,
        tenant: &TenantName,
        key: Option<KeyId>,
        state: Option<RotationState>,
        before: &str,
        limit: i64,
    ) -> Result<Vec<Rotation>> {
        let before = if before.is_empty() {
            AFTER_EVERY_ID
        } else {
            before
        };
        let rows = fetch_all!(
            self,
            Row,
            PAGE,
            tenant.as_str(),
            before,
            key.map(|id| id.to_string()).unwrap_or_default(),
            state.map_or("", RotationState::as_str),
            limit,
        )?;
        let mut rotations = Vec::with_capacity(rows.len());
        for row in rows {
            rotations.push(self.with_approvals(row).await?);
        }
        Ok(rotations)
    }

    async fn with_approvals(&self, row: Row) -> Result<Rotation> {
        let approvals = fetch_all!(self, (String, i64), APPROVALS, &row.id)?;
        rotation(row, approvals)
    }
}

fn rotation(row: Row, approvals: Vec<(String, i64)>) -> Result<Rotation> {
    let approvals = approvals
        .into_iter()
        .map(|(approver, at)| {
            Ok(Approval {
                approver: parse("approver", &approver)?,
                at: Timestamp::from_micros(at),
            })
        })
        .collect::<Result<_>>()?;
    let needed: u32 = unsigned("approvals_needed", row.approvals_needed)?;
    Ok(Rotation {
        id: parse("rotation id", &row.id)?,
        tenant: parse("tenant", &row.tenant)?,
        key_id: parse("key id", &row.key_id)?,
        key_name: parse("key name", &row.key_name)?,
        state: parse("rotation state", &row.state)?,
        old_kid: parse("old kid", &row.old_kid)?,
        new_kid: parse("new kid", &row.new_kid)?,
        justification: row.justification,
        plan: row.plan,
        soak: Duration::from_micros(unsigned("soak", row.soak)?),
        requester: parse("requester", &row.requester)?,
        approvals,
        approvals_needed: needed
            .try_into()
            .map_err(|_| StoreError::Corrupt("approvals_needed is 0".into()))?,
        deployer: row.deployer.map(|id| parse("deployer", &id)).transpose()?,
        requested_at: Timestamp::from_micros(row.requested_at),
        announced_at: row.announced_at.map(Timestamp::from_micros),
        deployed_at: row.deployed_at.map(Timestamp::from_micros),
        grace: Duration::from_micros(unsigned("grace", row.grace)?),
        scheduled: row.scheduled != 0,
        expires_at: Timestamp::from_micros(row.expires_at),
        grace_ends_at: row.grace_ends_at.map(Timestamp::from_micros),
        ended_at: row.ended_at.map(Timestamp::from_micros),
        ended_by: row.ended_by.map(|id| parse("ended_by", &id)).transpose()?,
        end_reason: row.end_reason,
    })
}
