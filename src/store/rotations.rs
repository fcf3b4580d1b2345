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
const WAITING: &str = "SELECT r.id, r.tenant, r.key_id, k.name AS key_name, r.state, r.old_kid, r.new_kid, \
     r.justification, r.plan, r.soak, r.requester, r.approvals_needed, r.deployer, r.requested_at, \
     r.announced_at, r.deployed_at, r.grace, r.scheduled, r.expires_at, r.grace_ends_at, r.ended_at, r.ended_by, \
     r.end_reason FROM rotations r JOIN keys k ON k.id = r.key_id \
     WHERE r.tenant = $1 AND r.id < $2 AND ($3 = '' OR r.key_id = $3) AND ($4 = '' OR r.state = $4) \
     AND r.state IN ('REQUESTED', 'APPROVED') AND r.expires_at > $5 ORDER BY r.id DESC LIMIT $6";
const OVERTIME: &str = "SELECT id FROM rotations WHERE state IN ('REQUESTED', 'APPROVED') AND expires_at <= $1 \
     ORDER BY id LIMIT $2";
// An old version that ACTIVE API keys are hashed under waits for them.
const GRACE_OVER: &str = "SELECT id FROM rotations WHERE state = 'DEPLOYED' AND grace_ends_at <= $1 AND NOT EXISTS \
     (SELECT 1 FROM api_keys a JOIN key_versions v ON v.kid = a.pepper_kid WHERE a.pepper_kid = old_kid \
     AND a.state = 'ACTIVE' AND v.state = 'VERIFY_ONLY') ORDER BY id LIMIT $2";
// What a standing approval covers: opened by the scheduler, and the key still rotates AUTOMATIC.
const STANDING: &str = "SELECT r.id FROM rotations r JOIN keys k ON k.id = r.key_id \
     WHERE r.state = $1 AND r.scheduled = 1 AND r.expires_at > $2 AND k.rotation_mode = 'AUTOMATIC' \
     AND k.policy_approved_by IS NOT NULL AND (r.announced_at IS NULL OR r.announced_at + r.soak <= $2) \
     ORDER BY r.id LIMIT $3";
// Since when it waits is when it was asked for, or when it could have been deployed.
const UNANSWERED: &str = "SELECT r.id FROM rotations r WHERE r.state IN ('REQUESTED', 'APPROVED') AND r.expires_at > $1 \
     AND COALESCE(r.announced_at + r.soak, r.requested_at) <= $2 \
     AND NOT EXISTS (SELECT 1 FROM alerts a WHERE a.window_key = 'ROTATION_WAITING/' || r.id || '/' || r.state) \
     ORDER BY r.id LIMIT $3";
const COUNT_APPROVALS: &str =
    "SELECT CAST(COUNT(*) AS BIGINT) FROM rotation_approvals WHERE rotation_id = $1";
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

/// Rows that a job takes on at once; the rest is there at its next look.
const AT_ONCE: i64 = 10_000;

fn or_newest(before: &str) -> &str {
    if before.is_empty() {
        AFTER_EVERY_ID
    } else {
        before
    }
}

fn ids(rows: Vec<(String,)>) -> Result<Vec<RotationId>> {
    rows.iter().map(|(id,)| parse("rotation id", id)).collect()
}

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

    /// How many approvals a rotation has, as this transaction sees it.
    pub async fn count_approvals(&mut self, id: RotationId) -> Result<i64> {
        let row = fetch_in!(self, (i64,), COUNT_APPROVALS, id.to_string())?;
        Ok(row.map_or(0, |(count,)| count))
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
        let rows = fetch_all!(
            self,
            Row,
            PAGE,
            tenant.as_str(),
            or_newest(before),
            key.map(|id| id.to_string()).unwrap_or_default(),
            state.map_or("", RotationState::as_str),
            limit,
        )?;
        self.all_with_approvals(rows).await
    }

    /// As `rotations`, of those that wait for an approval or a deployment and have not expired at `now`.
    pub async fn waiting_rotations(
        &self,
        tenant: &TenantName,
        key: Option<KeyId>,
        state: Option<RotationState>,
        now: Timestamp,
        before: &str,
        limit: i64,
    ) -> Result<Vec<Rotation>> {
        let rows = fetch_all!(
            self,
            Row,
            WAITING,
            tenant.as_str(),
            or_newest(before),
            key.map(|id| id.to_string()).unwrap_or_default(),
            state.map_or("", RotationState::as_str),
            now.micros(),
            limit,
        )?;
        self.all_with_approvals(rows).await
    }

    /// Rotations whose time is over at `now` and that are open all the same.
    pub async fn rotations_overtime(&self, now: Timestamp) -> Result<Vec<RotationId>> {
        ids(fetch_all!(
            self,
            (String,),
            OVERTIME,
            now.micros(),
            AT_ONCE
        )?)
    }

    /// DEPLOYED rotations whose grace window is over at `now`.
    pub async fn rotations_past_grace(&self, now: Timestamp) -> Result<Vec<RotationId>> {
        ids(fetch_all!(
            self,
            (String,),
            GRACE_OVER,
            now.micros(),
            AT_ONCE
        )?)
    }

    /// Scheduled rotations in `state` whose next step a standing approval covers and whose soak, if it began, is over.
    pub async fn rotations_under_standing_approval(
        &self,
        state: RotationState,
        now: Timestamp,
    ) -> Result<Vec<RotationId>> {
        let state = state.as_str();
        ids(fetch_all!(
            self,
            (String,),
            STANDING,
            state,
            now.micros(),
            AT_ONCE
        )?)
    }

    /// Rotations that people keep waiting since `since` or longer, and that no alert was raised about in this state.
    pub async fn rotations_unanswered(
        &self,
        now: Timestamp,
        since: Timestamp,
    ) -> Result<Vec<RotationId>> {
        let (now, since) = (now.micros(), since.micros());
        ids(fetch_all!(
            self,
            (String,),
            UNANSWERED,
            now,
            since,
            AT_ONCE
        )?)
    }

    async fn all_with_approvals(&self, rows: Vec<Row>) -> Result<Vec<Rotation>> {
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
