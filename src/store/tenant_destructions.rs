//! Table `tenant_destructions`, and what is left of a tenant whose keys are destroyed.
//!
//! One order of locks: the row of a tenant before those of its destructions.

use super::{
    Db, Result, StoreError, Tx,
    engine::{execute, fetch_all, fetch_optional},
    parse,
};
use crate::model::{
    KeyId, TenantDestruction, TenantDestructionId, TenantName, Timestamp,
    tenant_destruction::TenantDestructionState,
};

const INSERT: &str = "INSERT INTO tenant_destructions (id, tenant, state, reason, requester, requested_at) \
     VALUES ($1, $2, $3, $4, $5, $6)";
const UPDATE: &str = "UPDATE tenant_destructions SET state = $3, approver = $4, approved_at = $5, destroy_at = $6, \
     begun_at = $7, ended_at = $8, cancelled_by = $9, cancel_reason = $10, proof = $11 WHERE id = $1 AND state = $2";
const BY_ID: &str = "SELECT id, tenant, state, reason, requester, requested_at, approver, approved_at, destroy_at, \
     begun_at, ended_at, cancelled_by, cancel_reason, proof FROM tenant_destructions WHERE id = $1";
// Without proofs, which can be long.
const PAGE: &str = "SELECT id, tenant, state, reason, requester, requested_at, approver, approved_at, destroy_at, \
     begun_at, ended_at, cancelled_by, cancel_reason, '' AS proof FROM tenant_destructions \
     WHERE tenant = $1 AND id < $2 ORDER BY id DESC LIMIT $3";
const DUE: &str = "SELECT id, tenant, state, reason, requester, requested_at, approver, approved_at, destroy_at, \
     begun_at, ended_at, cancelled_by, cancel_reason, '' AS proof FROM tenant_destructions \
     WHERE (state = 'DESTROYING' OR (state = 'SCHEDULED' AND destroy_at <= $1)) AND id > $2 ORDER BY id LIMIT $3";
const STALE: &str = "SELECT id, tenant, state, reason, requester, requested_at, approver, approved_at, destroy_at, \
     begun_at, ended_at, cancelled_by, cancel_reason, '' AS proof FROM tenant_destructions \
     WHERE (state = 'REQUESTED' AND requested_at <= $1) \
     OR (state = 'SCHEDULED' AND destroy_at <= $1 AND approved_at <= $2) ORDER BY requested_at, id LIMIT $3";
const COUNT: &str = "SELECT CAST(COALESCE(SUM(CASE WHEN v.state = 'DESTROYED' THEN 0 ELSE 1 END), 0) AS BIGINT), \
     CAST(COALESCE(SUM(CASE WHEN v.state = 'DESTROYED' THEN 1 ELSE 0 END), 0) AS BIGINT) \
     FROM key_versions v JOIN keys k ON k.id = v.key_id WHERE k.tenant = $1";
const REMAINING: &str = "SELECT k.id FROM keys k WHERE k.tenant = $1 AND EXISTS \
     (SELECT 1 FROM key_versions v WHERE v.key_id = k.id AND v.state <> 'DESTROYED') ORDER BY k.id";
// Keys on which something is open that could still be called off.
const UNCLOSED: &str = "SELECT k.id FROM keys k WHERE k.tenant = $1 AND (EXISTS \
     (SELECT 1 FROM rotations r WHERE r.key_id = k.id AND r.state IN ('REQUESTED', 'APPROVED')) OR EXISTS \
     (SELECT 1 FROM key_destructions d WHERE d.key_id = k.id AND d.state IN ('REQUESTED', 'SCHEDULED') AND NOT EXISTS \
     (SELECT 1 FROM backend_intents i WHERE i.kind = 'DESTROY' AND i.kid = d.kid AND i.state = 'PENDING'))) ORDER BY k.id";
const NAMED: &str = "SELECT k.id AS key_id, k.name AS key_name, k.purpose, k.algorithm, v.kid, v.number, \
     COALESCE(v.backend, k.backend) AS backend, v.backend_ref, v.kek_ref, v.state, v.destroyed_at, \
     (SELECT MAX(i.found) FROM backend_intents i WHERE i.kind = 'DESTROY' AND i.state = 'DONE' AND i.kid = v.kid) AS fate \
     FROM keys k JOIN key_versions v ON v.key_id = k.id WHERE k.tenant = $1 ORDER BY k.id, v.number";

/// Greater than every UUID in canonical text.
const AFTER_EVERY_ID: &str = "g";

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    tenant: String,
    state: String,
    reason: String,
    requester: String,
    requested_at: i64,
    approver: Option<String>,
    approved_at: Option<i64>,
    destroy_at: Option<i64>,
    begun_at: Option<i64>,
    ended_at: Option<i64>,
    cancelled_by: Option<String>,
    cancel_reason: String,
    proof: String,
}

/// A key version as a proof of destruction names it.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct NamedVersion {
    /// Id of the key.
    pub key_id: String,
    /// Its name.
    pub key_name: String,
    /// Its purpose.
    pub purpose: String,
    /// Its algorithm.
    pub algorithm: String,
    /// The version.
    pub kid: String,
    /// 1, 2, 3 … within the key.
    pub number: i64,
    /// Backend of the key pair, or of the KEK.
    pub backend: String,
    /// The key pair; None for a data key.
    pub backend_ref: Option<String>,
    /// The KEK that wrapped the data key; None for a key pair.
    pub kek_ref: Option<String>,
    /// Where the version is.
    pub state: String,
    /// When it was destroyed, in microseconds.
    pub destroyed_at: Option<i64>,
    /// What became of the key pair on its device; None or empty when that was not recorded.
    pub fate: Option<String>,
}

impl Tx {
    /// Opens a destruction. Errors: `Exists` when the tenant has an open one.
    pub async fn insert_tenant_destruction(&mut self, d: &TenantDestruction) -> Result<()> {
        execute!(
            self,
            INSERT,
            d.id.to_string(),
            d.tenant.as_str(),
            d.state.as_str(),
            &d.reason,
            d.requester.to_string(),
            d.requested_at.micros(),
        )
        .map(|_| ())
    }

    /// Writes everything that a transition changes, if the destruction is still in state `from`; false when it is not.
    pub async fn update_tenant_destruction(
        &mut self,
        d: &TenantDestruction,
        from: TenantDestructionState,
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
            d.begun_at.map(Timestamp::micros),
            d.ended_at.map(Timestamp::micros),
            d.cancelled_by.map(|id| id.to_string()),
            &d.cancel_reason,
            &d.proof,
        )?;
        Ok(rows == 1)
    }

    /// Writes that it has begun, and from the commit on nothing is created in the tenant; false when it was not SCHEDULED.
    /// The tenant's row comes first, as in every other change.
    pub async fn begin_tenant_destruction(&mut self, d: &TenantDestruction) -> Result<bool> {
        let begun = d.begun_at.unwrap_or(d.requested_at);
        self.erase_tenant(&d.tenant, begun).await?;
        self.end_leases_of_tenant(&d.tenant, begun).await?;
        self.update_tenant_destruction(d, TenantDestructionState::Scheduled)
            .await
    }
}

impl Db {
    /// The destruction with this id, with its proof.
    pub async fn tenant_destruction(
        &self,
        id: TenantDestructionId,
    ) -> Result<Option<TenantDestruction>> {
        let row = fetch_optional!(self, Row, BY_ID, id.to_string())?;
        row.map(TenantDestruction::try_from).transpose()
    }

    /// Up to `limit` destructions of a tenant before `before` (empty: from the newest), newest first, without proofs.
    pub async fn tenant_destructions(
        &self,
        tenant: &TenantName,
        before: &str,
        limit: i64,
    ) -> Result<Vec<TenantDestruction>> {
        let before = match before {
            "" => AFTER_EVERY_ID,
            before => before,
        };
        fetch_all!(self, Row, PAGE, tenant.as_str(), before, limit)?
            .into_iter()
            .map(TenantDestruction::try_from)
            .collect()
    }

    /// Up to `limit` destructions with ids after `after` that have begun, or whose waiting period is over at `now`, in the
    /// order of their ids, without proofs.
    pub async fn due_tenant_destructions(
        &self,
        now: Timestamp,
        after: &str,
        limit: i64,
    ) -> Result<Vec<TenantDestruction>> {
        fetch_all!(self, Row, DUE, now.micros(), after, limit)?
            .into_iter()
            .map(TenantDestruction::try_from)
            .collect()
    }

    /// Up to `limit` destructions that were asked for by `before` and not approved, or that were due by then, approved by
    /// `approved` and have not begun. Without proofs.
    pub async fn stale_tenant_destructions(
        &self,
        before: Timestamp,
        approved: Timestamp,
        limit: i64,
    ) -> Result<Vec<TenantDestruction>> {
        let (before, approved) = (before.micros(), approved.micros());
        fetch_all!(self, Row, STALE, before, approved, limit)?
            .into_iter()
            .map(TenantDestruction::try_from)
            .collect()
    }

    /// How many key versions of a tenant are not destroyed, and how many are.
    pub async fn count_versions(&self, tenant: &TenantName) -> Result<(i64, i64)> {
        let row = fetch_optional!(self, (i64, i64), COUNT, tenant.as_str())?;
        Ok(row.unwrap_or_default())
    }

    /// Keys of a tenant with a version that is not destroyed.
    pub async fn remaining_keys(&self, tenant: &TenantName) -> Result<Vec<KeyId>> {
        ids(fetch_all!(self, (String,), REMAINING, tenant.as_str())?)
    }

    /// Keys of a tenant with an open rotation, or an open destruction that the device has not been told of.
    pub async fn unclosed_keys(&self, tenant: &TenantName) -> Result<Vec<KeyId>> {
        ids(fetch_all!(self, (String,), UNCLOSED, tenant.as_str())?)
    }

    /// Every key version of a tenant, key by key.
    pub async fn named_versions(&self, tenant: &TenantName) -> Result<Vec<NamedVersion>> {
        fetch_all!(self, NamedVersion, NAMED, tenant.as_str())
    }
}

fn ids(rows: Vec<(String,)>) -> Result<Vec<KeyId>> {
    rows.iter().map(|(id,)| parse("key id", id)).collect()
}

impl TryFrom<Row> for TenantDestruction {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            id: parse("tenant destruction id", &row.id)?,
            tenant: parse("tenant", &row.tenant)?,
            state: parse("tenant destruction state", &row.state)?,
            reason: row.reason,
            requester: parse("requester", &row.requester)?,
            requested_at: Timestamp::from_micros(row.requested_at),
            approver: row.approver.map(|id| parse("approver", &id)).transpose()?,
            approved_at: row.approved_at.map(Timestamp::from_micros),
            destroy_at: row.destroy_at.map(Timestamp::from_micros),
            begun_at: row.begun_at.map(Timestamp::from_micros),
            ended_at: row.ended_at.map(Timestamp::from_micros),
            cancelled_by: row
                .cancelled_by
                .map(|id| parse("cancelled_by", &id))
                .transpose()?,
            cancel_reason: row.cancel_reason,
            proof: row.proof,
        })
    }
}
