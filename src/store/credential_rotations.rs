//! Table `credential_rotations`. (`rotations` is those of keys.)

use std::time::Duration;

use super::{
    Db, Result, StoreError, Tx,
    engine::{execute, fetch_all, fetch_in, fetch_optional},
    parse, unsigned,
};
use crate::model::{
    Approval, CredentialId, CredentialRotation, CredentialRotationId, CredentialValueId, Probed,
    TenantName, Timestamp, time::micros,
};

/// Every reader gets the same columns.
macro_rules! rotations {
    ($which:literal) => {
        concat!(
            "SELECT id, credential_id, tenant, state, driver, new_value, old_value, due_before, hold_for, hold_until, \
             check_at, new_probe_result, new_probe_detail, new_probed_at, old_probe_result, old_probe_detail, \
             old_probed_at, why, attempts, refusals, withdraw, requested_by, needs_approval, approved_by, approved_at, \
             created_at, updated_at FROM credential_rotations ",
            $which
        )
    };
}

const INSERT: &str = "INSERT INTO credential_rotations (id, credential_id, tenant, state, driver, new_value, old_value, \
     due_before, hold_for, check_at, created_at, updated_at, requested_by, needs_approval) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)";
const UPDATE: &str = "UPDATE credential_rotations SET state = $2, hold_until = $3, check_at = $4, new_probe_result = $5, \
     new_probe_detail = $6, new_probed_at = $7, old_probe_result = $8, old_probe_detail = $9, old_probed_at = $10, \
     why = $11, updated_at = $12, attempts = $13, refusals = $14, withdraw = $15, approved_by = $16, approved_at = $17 \
     WHERE id = $1";
const LOCK: &str = "UPDATE credential_rotations SET state = state WHERE id = $1";
const CLAIM: &str = "UPDATE credential_rotations SET check_at = $3, attempts = attempts + 1 WHERE id = $1 AND check_at = $2";
const OPEN: &str =
    rotations!("WHERE credential_id = $1 AND state IN ('MINTING', 'STAGED', 'HOLDING')");
const BY_ID: &str = rotations!("WHERE id = $1");
const OF_CREDENTIAL: &str = rotations!("WHERE credential_id = $1 AND id > $2 ORDER BY id LIMIT $3");
const OF_TENANT: &str = rotations!("WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3");
// One of each tenant, then a second one of each: nobody waits behind all of somebody else's.
const TO_CHECK: &str = rotations!(
    "JOIN (SELECT id AS due, ROW_NUMBER() OVER (PARTITION BY tenant ORDER BY check_at, id) AS turn \
     FROM credential_rotations WHERE check_at <= $1) AS fair ON fair.due = id \
     ORDER BY fair.turn, check_at, id LIMIT $2"
);

const MINTED: &str = "SELECT id FROM credential_rotations WHERE credential_id = $1 AND new_value = $2 AND driver <> 'manual'";
/// What is said of a rotation that stands still.
const END_ALERTS: &str = "UPDATE alerts SET ends_at = $2 WHERE entity_id = $1 AND state = 'FIRING' AND ends_at IS NULL \
     AND kind IN ('CREDENTIAL_OLD_VALUE_ALIVE', 'CREDENTIAL_OLD_VALUE_UNKNOWN', 'CREDENTIAL_ROTATION_STUCK', \
     'CREDENTIAL_ROTATION_WAITING', 'CREDENTIAL_REFUSED')";
// A hold is as long as somebody wanted it; what comes after it is not.
const STUCK: &str = rotations!(
    "WHERE ((state IN ('MINTING', 'STAGED') AND updated_at <= $1) OR (state = 'HOLDING' AND hold_until <= $1)) \
     AND NOT EXISTS (SELECT 1 FROM tenants t WHERE t.name = credential_rotations.tenant AND t.erased_at IS NOT NULL) \
     AND NOT EXISTS (SELECT 1 FROM alerts a WHERE a.window_key = \
     'CREDENTIAL_ROTATION_STUCK/' || credential_rotations.id || '/' || credential_rotations.state) \
     ORDER BY updated_at, id LIMIT $2"
);
const END_ALERT: &str =
    "UPDATE alerts SET ends_at = $2 WHERE window_key = $1 AND state = 'FIRING' AND ends_at IS NULL";

/// Which rotations to list.
#[derive(Clone, Debug)]
pub enum CredentialRotationsOf {
    /// Of one credential.
    Credential(CredentialId),
    /// Of every credential of a tenant.
    Tenant(TenantName),
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    credential_id: String,
    tenant: String,
    state: String,
    driver: String,
    new_value: String,
    old_value: String,
    due_before: i64,
    hold_for: i64,
    hold_until: Option<i64>,
    check_at: Option<i64>,
    new_probe_result: Option<String>,
    new_probe_detail: Option<String>,
    new_probed_at: Option<i64>,
    old_probe_result: Option<String>,
    old_probe_detail: Option<String>,
    old_probed_at: Option<i64>,
    why: String,
    attempts: i64,
    refusals: i64,
    withdraw: Option<String>,
    requested_by: Option<String>,
    needs_approval: bool,
    approved_by: Option<String>,
    approved_at: Option<i64>,
    created_at: i64,
    updated_at: i64,
}

impl TryFrom<Row> for CredentialRotation {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self> {
        let hold_for = unsigned("hold_for", row.hold_for)?;
        let approval = match (row.approved_by, row.approved_at) {
            (Some(by), Some(at)) => Some(Approval {
                approver: parse("approver", &by)?,
                at: Timestamp::from_micros(at),
            }),
            _ => None,
        };
        let requester = row.requested_by.as_deref();
        Ok(Self {
            id: parse("rotation id", &row.id)?,
            credential: parse("credential id", &row.credential_id)?,
            tenant: parse("tenant", &row.tenant)?,
            state: parse("state", &row.state)?,
            driver: parse("driver", &row.driver)?,
            new_value: parse("value id", &row.new_value)?,
            old_value: parse("value id", &row.old_value)?,
            due_before: Timestamp::from_micros(row.due_before),
            hold_for: Duration::from_micros(hold_for),
            hold_until: row.hold_until.map(Timestamp::from_micros),
            check_at: row.check_at.map(Timestamp::from_micros),
            new_probe: probe(
                row.new_probe_result,
                row.new_probe_detail,
                row.new_probed_at,
            )?,
            old_probe: probe(
                row.old_probe_result,
                row.old_probe_detail,
                row.old_probed_at,
            )?,
            why: row.why,
            attempts: tries(row.attempts),
            refusals: tries(row.refusals),
            withdraw: row.withdraw,
            requester: requester.map(|id| parse("requester", id)).transpose()?,
            needs_approval: row.needs_approval,
            approval,
            created_at: Timestamp::from_micros(row.created_at),
            updated_at: Timestamp::from_micros(row.updated_at),
        })
    }
}

/// A count that only ever orders pauses.
fn tries(count: i64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn probe(
    result: Option<String>,
    detail: Option<String>,
    at: Option<i64>,
) -> Result<Option<Probed>> {
    let (Some(result), Some(at)) = (result, at) else {
        return Ok(None);
    };
    Ok(Some(Probed {
        result: parse("probe result", &result)?,
        detail: detail.unwrap_or_default(),
        at: Timestamp::from_micros(at),
    }))
}

impl Tx {
    /// Adds a rotation. Errors: `Exists` when one of this credential is under way.
    pub async fn insert_credential_rotation(&mut self, r: &CredentialRotation) -> Result<()> {
        execute!(
            self,
            INSERT,
            r.id.to_string(),
            r.credential.to_string(),
            r.tenant.as_str(),
            r.state.as_str(),
            r.driver.as_str(),
            r.new_value.to_string(),
            r.old_value.to_string(),
            r.due_before.micros(),
            micros(r.hold_for),
            r.check_at.map(Timestamp::micros),
            r.created_at.micros(),
            r.updated_at.micros(),
            r.requester.map(|id| id.to_string()),
            r.needs_approval,
        )
        .map(|_| ())
    }

    /// The rotation as it is now; nobody changes it before this transaction ends. Its credential is locked before it.
    pub async fn lock_credential_rotation(
        &mut self,
        id: CredentialRotationId,
    ) -> Result<Option<CredentialRotation>> {
        execute!(self, LOCK, id.to_string())?;
        let row = fetch_in!(self, Row, BY_ID, id.to_string())?;
        row.map(CredentialRotation::try_from).transpose()
    }

    /// Stores what may change of a rotation that is locked.
    pub async fn update_credential_rotation(&mut self, r: &CredentialRotation) -> Result<()> {
        let (new, old) = (r.new_probe.as_ref(), r.old_probe.as_ref());
        execute!(
            self,
            UPDATE,
            r.id.to_string(),
            r.state.as_str(),
            r.hold_until.map(Timestamp::micros),
            r.check_at.map(Timestamp::micros),
            new.map(|p| p.result.as_str()),
            new.map(|p| p.detail.as_str()),
            new.map(|p| p.at.micros()),
            old.map(|p| p.result.as_str()),
            old.map(|p| p.detail.as_str()),
            old.map(|p| p.at.micros()),
            &r.why,
            r.updated_at.micros(),
            i64::from(r.attempts),
            i64::from(r.refusals),
            r.withdraw.as_deref(),
            r.approval.as_ref().map(|a| a.approver.to_string()),
            r.approval.as_ref().map(|a| a.at.micros()),
        )
        .map(|_| ())
    }

    /// Moves the next look at a rotation on, before it is looked at: whatever happens then, it is not the first in line for
    /// ever. False when somebody else was faster.
    pub async fn claim_credential_rotation(
        &mut self,
        r: &CredentialRotation,
        next: Timestamp,
    ) -> Result<bool> {
        let before = r.check_at.map(Timestamp::micros);
        Ok(execute!(self, CLAIM, r.id.to_string(), before, next.micros())? == 1)
    }

    /// What an alert of this kind said of a rotation does not hold any more.
    pub async fn end_credential_alert(
        &mut self,
        kind: &str,
        id: CredentialRotationId,
        now: Timestamp,
    ) -> Result<()> {
        let window = format!("{kind}/{id}");
        execute!(self, END_ALERT, window, now.micros()).map(|_| ())
    }

    /// A rotation of this credential goes on, or it goes itself: what alerts say of it does not hold any more.
    pub async fn end_credential_alerts(&mut self, id: CredentialId, now: Timestamp) -> Result<()> {
        execute!(self, END_ALERTS, id.to_string(), now.micros()).map(|_| ())
    }

    /// What is under way of a credential that is locked.
    pub async fn open_credential_rotation(
        &mut self,
        credential: CredentialId,
    ) -> Result<Option<CredentialRotation>> {
        let row = fetch_in!(self, Row, OPEN, credential.to_string())?;
        row.map(CredentialRotation::try_from).transpose()
    }
}

impl Db {
    /// One rotation.
    pub async fn credential_rotation(
        &self,
        id: CredentialRotationId,
    ) -> Result<Option<CredentialRotation>> {
        let row = fetch_optional!(self, Row, BY_ID, id.to_string())?;
        row.map(CredentialRotation::try_from).transpose()
    }

    /// Up to `limit` rotations of which nothing has come since `since`, and that nobody was told of.
    pub async fn stuck_credential_rotations(
        &self,
        since: Timestamp,
        limit: i64,
    ) -> Result<Vec<CredentialRotation>> {
        let rows = fetch_all!(self, Row, STUCK, since.micros(), limit)?;
        rows.into_iter().map(CredentialRotation::try_from).collect()
    }

    /// Was this value minted by a driver?
    pub async fn is_minted(
        &self,
        credential: CredentialId,
        value: CredentialValueId,
    ) -> Result<bool> {
        let (credential, value) = (credential.to_string(), value.to_string());
        let row = fetch_optional!(self, (String,), MINTED, credential, value)?;
        Ok(row.is_some())
    }

    /// Up to `limit` rotations after `after`, oldest first.
    pub async fn credential_rotations(
        &self,
        of: &CredentialRotationsOf,
        after: &str,
        limit: i64,
    ) -> Result<Vec<CredentialRotation>> {
        let (sql, whose) = match of {
            CredentialRotationsOf::Credential(id) => (OF_CREDENTIAL, id.to_string()),
            CredentialRotationsOf::Tenant(tenant) => (OF_TENANT, tenant.to_string()),
        };
        let rows = fetch_all!(self, Row, sql, &whose, after, limit)?;
        rows.into_iter().map(CredentialRotation::try_from).collect()
    }

    /// Up to `limit` rotations whose driver or provider is to be asked by `now`: one of each tenant first, those that wait
    /// longest.
    pub async fn credential_rotations_to_check(
        &self,
        now: Timestamp,
        limit: i64,
    ) -> Result<Vec<CredentialRotation>> {
        let rows = fetch_all!(self, Row, TO_CHECK, now.micros(), limit)?;
        rows.into_iter().map(CredentialRotation::try_from).collect()
    }
}
