//! Tables `keks`, `kek_rotations` and `kek_rotation_approvals`, and the wrapped data keys of `key_versions`.
//!
//! One order of locks: the row of a key before that of a KEK. A version with a data key is added while the row of its
//! KEK is held, and a KEK is retired under the same lock: no data key is ever recorded under a KEK that is RETIRED.

use super::{
    Db, Result, StoreError, Tx,
    engine::{execute, fetch_all, fetch_all_in, fetch_in, fetch_optional},
    parse, unsigned,
};
use crate::model::{
    Approval, KekRotation, KekRotationId, KekRow, KekState, KeyId, Kid, RotationState, TenantName,
    Timestamp, kek::Progress, key::BackendRef,
};

const INSERT: &str = "INSERT INTO keks (reference, backend, state, probe, probe_digest, created_at, activated_at) \
     VALUES ($1, $2, $3, $4, $5, $6, $7)";
const ALL: &str = "SELECT reference, backend, state, probe, probe_digest, created_at, activated_at, deactivated_at, \
     retired_at FROM keks ORDER BY created_at DESC, reference";
const COUNTS: &str = "SELECT kek_ref, CAST(COUNT(*) AS BIGINT) FROM key_versions WHERE wrapped_key IS NOT NULL \
     AND kek_ref IS NOT NULL GROUP BY kek_ref";
const HOLD: &str =
    "UPDATE keks SET state = state WHERE reference = $1 AND state IN ('ACTIVE', 'DEACTIVATED')";
const READMIT: &str = "UPDATE keks SET state = 'PRE_ACTIVE', backend = $2, probe = $3, probe_digest = $4, \
     retired_at = NULL WHERE reference = $1 AND state = 'RETIRED' AND activated_at IS NULL";
const MOVE: &str = "UPDATE keks SET state = $3, \
     activated_at = CASE WHEN $3 = 'ACTIVE' THEN $4 ELSE activated_at END, \
     deactivated_at = CASE WHEN $3 = 'DEACTIVATED' THEN $4 ELSE deactivated_at END, \
     retired_at = CASE WHEN $3 = 'RETIRED' THEN $4 ELSE retired_at END WHERE reference = $1 AND state = $2";

const COUNT_UNDER: &str = "SELECT CAST(COUNT(*) AS BIGINT) FROM key_versions WHERE kek_ref = $1 AND wrapped_key IS NOT NULL";
const UNDER: &str = "SELECT v.kid, v.key_id, k.tenant, v.kek_ref, v.wrapped_key FROM key_versions v \
     JOIN keys k ON k.id = v.key_id WHERE v.kek_ref = $1 AND v.kid > $2 AND v.wrapped_key IS NOT NULL \
     ORDER BY v.kid LIMIT $3";
// kids of data keys are ordered by time, so a stretch of them would not be a fair sample.
const SAMPLE: &str = "SELECT v.kid, v.key_id, k.tenant, v.kek_ref, v.wrapped_key FROM key_versions v \
     JOIN keys k ON k.id = v.key_id WHERE v.wrapped_key IS NOT NULL AND v.kek_ref IS NOT NULL \
     ORDER BY RANDOM() LIMIT $1";
const WRAPPED: &str = "SELECT v.kid, v.key_id, k.tenant, v.kek_ref, v.wrapped_key FROM key_versions v \
     JOIN keys k ON k.id = v.key_id WHERE v.kid = $1 AND v.wrapped_key IS NOT NULL AND v.kek_ref IS NOT NULL";
const REWRAP: &str = "UPDATE key_versions SET kek_ref = $4, wrapped_key = $5 \
     WHERE kid = $1 AND kek_ref = $2 AND wrapped_key = $3";

const INSERT_ROTATION: &str = "INSERT INTO kek_rotations (id, state, old_kek, new_kek, justification, plan, requester, \
     approvals_needed, requested_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
const UPDATE_ROTATION: &str = "UPDATE kek_rotations SET state = $3, deployer = $4, approved_at = $5, deployed_at = $6, \
     ended_at = $7, ended_by = $8, end_reason = $9, total = $10 WHERE id = $1 AND state = $2";
const PROGRESS: &str = "UPDATE kek_rotations SET rewrapped = rewrapped + $2, \
     failed = CASE WHEN failed < $3 THEN $3 ELSE failed END WHERE id = $1 AND state = 'DEPLOYED'";
const FAILED: &str = "UPDATE kek_rotations SET failed = $2 WHERE id = $1 AND state = 'DEPLOYED'";
const INSERT_APPROVAL: &str =
    "INSERT INTO kek_rotation_approvals (rotation_id, approver, at) VALUES ($1, $2, $3)";
const COUNT_APPROVALS: &str =
    "SELECT CAST(COUNT(*) AS BIGINT) FROM kek_rotation_approvals WHERE rotation_id = $1";
const APPROVALS: &str =
    "SELECT approver, at FROM kek_rotation_approvals WHERE rotation_id = $1 ORDER BY at, approver";
const BY_ID: &str = "SELECT r.id, r.state, r.old_kek, r.new_kek, n.backend AS new_backend, r.justification, r.plan, \
     r.requester, r.approvals_needed, r.deployer, r.requested_at, r.approved_at, r.deployed_at, r.expires_at, \
     r.ended_at, r.ended_by, r.end_reason, r.total, r.rewrapped, r.failed, \
     CASE WHEN r.state IN ('REQUESTED', 'APPROVED', 'DEPLOYED') OR r.failed > 0 THEN (SELECT CAST(COUNT(*) AS BIGINT) \
     FROM key_versions v WHERE v.kek_ref = r.old_kek AND v.wrapped_key IS NOT NULL) ELSE CAST(0 AS BIGINT) END \
     AS remaining FROM kek_rotations r JOIN keks n ON n.reference = r.new_kek WHERE r.id = $1";
const PAGE: &str = "SELECT r.id, r.state, r.old_kek, r.new_kek, n.backend AS new_backend, r.justification, r.plan, \
     r.requester, r.approvals_needed, r.deployer, r.requested_at, r.approved_at, r.deployed_at, r.expires_at, \
     r.ended_at, r.ended_by, r.end_reason, r.total, r.rewrapped, r.failed, \
     CASE WHEN r.state IN ('REQUESTED', 'APPROVED', 'DEPLOYED') OR r.failed > 0 THEN (SELECT CAST(COUNT(*) AS BIGINT) \
     FROM key_versions v WHERE v.kek_ref = r.old_kek AND v.wrapped_key IS NOT NULL) ELSE CAST(0 AS BIGINT) END \
     AS remaining FROM kek_rotations r JOIN keks n ON n.reference = r.new_kek WHERE r.id < $1 ORDER BY r.id DESC LIMIT $2";
// At most one, by index. The scheduler asks each second, so it looks whether any data key is left and does not count them.
const UNFINISHED: &str = "SELECT r.id, r.state, r.old_kek, r.new_kek, n.backend AS new_backend, r.justification, r.plan, \
     r.requester, r.approvals_needed, r.deployer, r.requested_at, r.approved_at, r.deployed_at, r.expires_at, \
     r.ended_at, r.ended_by, r.end_reason, r.total, r.rewrapped, r.failed, \
     CASE WHEN EXISTS (SELECT 1 FROM key_versions v WHERE v.kek_ref = r.old_kek AND v.wrapped_key IS NOT NULL) \
     THEN CAST(1 AS BIGINT) ELSE CAST(0 AS BIGINT) END AS remaining FROM kek_rotations r \
     JOIN keks n ON n.reference = r.new_kek WHERE r.state IN ('REQUESTED', 'APPROVED', 'DEPLOYED')";

/// Greater than every UUID in canonical text.
const AFTER_EVERY_ID: &str = "g";

/// A KEK and how many data keys it wraps.
#[derive(Debug)]
pub struct ListedKek {
    /// The KEK.
    pub kek: KekRow,
    /// Data keys under it.
    pub data_keys: i64,
}

/// A wrapped data key and what it is bound to.
#[derive(Clone, Debug)]
pub struct WrappedKey {
    /// Its version.
    pub kid: Kid,
    /// The key of the version.
    pub key: KeyId,
    /// The tenant of the key.
    pub tenant: TenantName,
    /// The KEK that wraps it.
    pub kek: BackendRef,
    /// The wrapped key.
    pub wrapped: Vec<u8>,
}

/// A data key that was wrapped anew.
#[derive(Debug)]
pub struct Rewrapped {
    /// As it was read.
    pub old: WrappedKey,
    /// The same data key under the new KEK.
    pub wrapped: Vec<u8>,
}

#[derive(sqlx::FromRow)]
struct Row {
    reference: String,
    backend: String,
    state: String,
    probe: Vec<u8>,
    probe_digest: Vec<u8>,
    created_at: i64,
    activated_at: Option<i64>,
    deactivated_at: Option<i64>,
    retired_at: Option<i64>,
}

#[derive(sqlx::FromRow)]
struct WrappedRow {
    kid: String,
    key_id: String,
    tenant: String,
    kek_ref: String,
    wrapped_key: Vec<u8>,
}

#[derive(sqlx::FromRow)]
struct RotationRow {
    id: String,
    state: String,
    old_kek: String,
    new_kek: String,
    new_backend: String,
    justification: String,
    plan: String,
    requester: String,
    approvals_needed: i64,
    deployer: Option<String>,
    requested_at: i64,
    approved_at: Option<i64>,
    deployed_at: Option<i64>,
    expires_at: i64,
    ended_at: Option<i64>,
    ended_by: Option<String>,
    end_reason: String,
    total: i64,
    rewrapped: i64,
    failed: i64,
    remaining: i64,
}

impl Tx {
    /// Adds a KEK. Errors: `Exists` for the reference, or a second ACTIVE one.
    pub async fn insert_kek(&mut self, kek: &KekRow) -> Result<()> {
        execute!(
            self,
            INSERT,
            &kek.reference.0,
            &kek.backend,
            kek.state.as_str(),
            &kek.probe,
            &kek.probe_digest,
            kek.created_at.micros(),
            kek.activated_at.map(Timestamp::micros),
        )
        .map(|_| ())
    }

    /// Takes a RETIRED KEK that never was ACTIVE into another rotation, with a new probe; false when it is none.
    pub async fn readmit_kek(&mut self, kek: &KekRow) -> Result<bool> {
        let rows = execute!(
            self,
            READMIT,
            &kek.reference.0,
            &kek.backend,
            &kek.probe,
            &kek.probe_digest,
        )?;
        Ok(rows == 1)
    }

    /// Moves a KEK from one state to another; false when it is not in `from`.
    pub async fn move_kek(
        &mut self,
        reference: &BackendRef,
        from: KekState,
        to: KekState,
        at: Timestamp,
    ) -> Result<bool> {
        let rows = execute!(
            self,
            MOVE,
            &reference.0,
            from.as_str(),
            to.as_str(),
            at.micros()
        )?;
        Ok(rows == 1)
    }

    /// Keeps a KEK from being retired before this transaction ends, and others from counting what is under it.
    ///
    /// Errors: `KekGone` when nobody unwraps with it.
    pub async fn hold_kek(&mut self, reference: &str) -> Result<()> {
        match execute!(self, HOLD, reference)? {
            1 => Ok(()),
            _ => Err(StoreError::KekGone),
        }
    }

    /// Data keys under a KEK, as this transaction sees it.
    pub async fn count_data_keys_under(&mut self, kek: &BackendRef) -> Result<i64> {
        let row = fetch_in!(self, (i64,), COUNT_UNDER, &kek.0)?;
        Ok(row.map_or(0, |(count,)| count))
    }

    /// Moves a data key to another KEK, if it still is as it was read; false when it is not.
    pub async fn rewrap(&mut self, moved: &Rewrapped, new: &BackendRef) -> Result<bool> {
        let rows = execute!(
            self,
            REWRAP,
            moved.old.kid.as_str(),
            &moved.old.kek.0,
            &moved.old.wrapped,
            &new.0,
            &moved.wrapped,
        )?;
        Ok(rows == 1)
    }

    /// Opens a rotation of the KEK. Errors: `Exists` when there is one that has not ended.
    pub async fn insert_kek_rotation(&mut self, r: &KekRotation) -> Result<()> {
        execute!(
            self,
            INSERT_ROTATION,
            r.id.to_string(),
            r.state.as_str(),
            &r.old_kek.0,
            &r.new_kek.0,
            &r.justification,
            &r.plan,
            r.requester.to_string(),
            i64::from(r.approvals_needed.get()),
            r.requested_at.micros(),
            r.expires_at.micros(),
        )
        .map(|_| ())
    }

    /// Writes everything that a transition changes, if the rotation is still in state `from`; false when it is not.
    pub async fn update_kek_rotation(
        &mut self,
        r: &KekRotation,
        from: RotationState,
    ) -> Result<bool> {
        let rows = execute!(
            self,
            UPDATE_ROTATION,
            r.id.to_string(),
            from.as_str(),
            r.state.as_str(),
            r.deployer.map(|id| id.to_string()),
            r.approved_at.map(Timestamp::micros),
            r.deployed_at.map(Timestamp::micros),
            r.ended_at.map(Timestamp::micros),
            r.ended_by.map(|id| id.to_string()),
            &r.end_reason,
            r.progress.total,
        )?;
        Ok(rows == 1)
    }

    /// Counts data keys that this transaction moved, and at least `failed` that do not unwrap; false when the rotation
    /// is not DEPLOYED.
    pub async fn count_rewrapped(
        &mut self,
        id: KekRotationId,
        moved: i64,
        failed: i64,
    ) -> Result<bool> {
        let rows = execute!(self, PROGRESS, id.to_string(), moved, failed)?;
        Ok(rows == 1)
    }

    /// Writes how many data keys do not unwrap; false when the rotation is not DEPLOYED.
    pub async fn set_undecryptable(&mut self, id: KekRotationId, failed: i64) -> Result<bool> {
        let rows = execute!(self, FAILED, id.to_string(), failed)?;
        Ok(rows == 1)
    }

    /// Adds an approval. Errors: `Exists` when this principal has approved already.
    pub async fn insert_kek_approval(
        &mut self,
        id: KekRotationId,
        approval: &Approval,
    ) -> Result<()> {
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
    pub async fn count_kek_approvals(&mut self, id: KekRotationId) -> Result<i64> {
        let row = fetch_in!(self, (i64,), COUNT_APPROVALS, id.to_string())?;
        Ok(row.map_or(0, |(count,)| count))
    }

    /// Every KEK, newest first, as this transaction sees it.
    pub async fn keks(&mut self) -> Result<Vec<KekRow>> {
        fetch_all_in!(self, Row, ALL)?
            .into_iter()
            .map(KekRow::try_from)
            .collect()
    }
}

impl Db {
    /// Every KEK, newest first.
    pub async fn keks(&self) -> Result<Vec<KekRow>> {
        fetch_all!(self, Row, ALL)?
            .into_iter()
            .map(KekRow::try_from)
            .collect()
    }

    /// How many data keys are under each KEK that wraps any.
    pub async fn data_keys_by_kek(&self) -> Result<Vec<(BackendRef, i64)>> {
        let rows = fetch_all!(self, (String, i64), COUNTS)?;
        let counts = rows.into_iter().map(|(kek, n)| (BackendRef(kek), n));
        Ok(counts.collect())
    }

    /// Up to `limit` data keys under a KEK whose kid is after `after`, in the order of their kids.
    pub async fn data_keys_under(
        &self,
        kek: &BackendRef,
        after: &str,
        limit: i64,
    ) -> Result<Vec<WrappedKey>> {
        fetch_all!(self, WrappedRow, UNDER, &kek.0, after, limit)?
            .into_iter()
            .map(WrappedKey::try_from)
            .collect()
    }

    /// Up to `limit` data keys by chance.
    pub async fn sample_of_data_keys(&self, limit: i64) -> Result<Vec<WrappedKey>> {
        fetch_all!(self, WrappedRow, SAMPLE, limit)?
            .into_iter()
            .map(WrappedKey::try_from)
            .collect()
    }

    /// The wrapped data key of a version; None when it has none, or not any more.
    pub async fn wrapped_key(&self, kid: &Kid) -> Result<Option<WrappedKey>> {
        let row = fetch_optional!(self, WrappedRow, WRAPPED, kid.as_str())?;
        row.map(WrappedKey::try_from).transpose()
    }

    /// The rotation of the KEK with this id.
    pub async fn kek_rotation(&self, id: KekRotationId) -> Result<Option<KekRotation>> {
        match fetch_optional!(self, RotationRow, BY_ID, id.to_string())? {
            Some(row) => self.with_kek_approvals(row).await.map(Some),
            None => Ok(None),
        }
    }

    /// Up to `limit` rotations of the KEK before `before` (empty: from the newest), newest first.
    pub async fn kek_rotations(&self, before: &str, limit: i64) -> Result<Vec<KekRotation>> {
        let before = match before {
            "" => AFTER_EVERY_ID,
            before => before,
        };
        let mut rotations = Vec::new();
        for row in fetch_all!(self, RotationRow, PAGE, before, limit)? {
            rotations.push(self.with_kek_approvals(row).await?);
        }
        Ok(rotations)
    }

    /// The rotation of the KEK that has not ended. Its `progress.remaining` is 1 when any data key is left.
    pub async fn unfinished_kek_rotation(&self) -> Result<Option<KekRotation>> {
        match fetch_optional!(self, RotationRow, UNFINISHED)? {
            Some(row) => self.with_kek_approvals(row).await.map(Some),
            None => Ok(None),
        }
    }

    async fn with_kek_approvals(&self, row: RotationRow) -> Result<KekRotation> {
        let approvals = fetch_all!(self, (String, i64), APPROVALS, &row.id)?;
        rotation(row, approvals)
    }
}

impl TryFrom<Row> for KekRow {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            reference: BackendRef(row.reference),
            backend: row.backend,
            state: parse("state of a KEK", &row.state)?,
            probe: row.probe,
            probe_digest: row.probe_digest,
            created_at: Timestamp::from_micros(row.created_at),
            activated_at: row.activated_at.map(Timestamp::from_micros),
            deactivated_at: row.deactivated_at.map(Timestamp::from_micros),
            retired_at: row.retired_at.map(Timestamp::from_micros),
        })
    }
}

impl TryFrom<WrappedRow> for WrappedKey {
    type Error = StoreError;

    fn try_from(row: WrappedRow) -> Result<Self> {
        Ok(Self {
            kid: parse("kid", &row.kid)?,
            key: parse("key id", &row.key_id)?,
            tenant: parse("tenant", &row.tenant)?,
            kek: BackendRef(row.kek_ref),
            wrapped: row.wrapped_key,
        })
    }
}

fn rotation(row: RotationRow, approvals: Vec<(String, i64)>) -> Result<KekRotation> {
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
    Ok(KekRotation {
        id: parse("KEK rotation id", &row.id)?,
        state: parse("rotation state", &row.state)?,
        old_kek: BackendRef(row.old_kek),
        new_kek: BackendRef(row.new_kek),
        new_backend: row.new_backend,
        justification: row.justification,
        plan: row.plan,
        requester: parse("requester", &row.requester)?,
        approvals,
        approvals_needed: needed
            .try_into()
            .map_err(|_| StoreError::Corrupt("approvals_needed is 0".into()))?,
        deployer: row.deployer.map(|id| parse("deployer", &id)).transpose()?,
        requested_at: Timestamp::from_micros(row.requested_at),
        approved_at: row.approved_at.map(Timestamp::from_micros),
        deployed_at: row.deployed_at.map(Timestamp::from_micros),
        expires_at: Timestamp::from_micros(row.expires_at),
        ended_at: row.ended_at.map(Timestamp::from_micros),
        ended_by: row.ended_by.map(|id| parse("ended_by", &id)).transpose()?,
        end_reason: row.end_reason,
        progress: Progress {
            total: row.total,
            rewrapped: row.rewrapped,
            remaining: row.remaining,
            failed: row.failed,
        },
    })
}
