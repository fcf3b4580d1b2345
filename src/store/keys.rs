//! Tables `keys` and `key_versions`.

use std::time::Duration;

use super::{
    Db, Result, StoreError, Tx,
    engine::{execute, fetch_all, fetch_in, fetch_optional},
    parse, unsigned,
};
use crate::model::{
    Approval, Key, KeyId, KeyRef, KeyVersion, Kid, PublicKey, RotationPolicy, TenantName,
    Timestamp, VersionState,
    key::{BackendRef, Material},
    time::micros,
};

const INSERT_KEY: &str = "INSERT INTO keys (id, tenant, name, purpose, algorithm, rsa_bits, backend, owner, \
     created_at, rotation_period, next_rotation_at, revision, rotation_mode, approvals_needed, standby, grace, \
     policy_set_by, policy_approved_by, policy_approved_at, schedule_set_by, standby_backend) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)";
const UPDATE_KEY: &str = "UPDATE keys SET owner = $3, rotation_period = $4, next_rotation_at = $5, rotation_mode = $6, \
     approvals_needed = $7, standby = $8, grace = $9, policy_set_by = $10, policy_approved_by = $11, \
     policy_approved_at = $12, schedule_set_by = $13, backend = $14, standby_backend = $15, \
     revision = revision + 1 WHERE id = $1 AND revision = $2";
// The release before this one leaves `backend` empty, which means that of the key: said in the row before the key moves on.
const KEEP_BACKENDS: &str = "UPDATE key_versions SET backend = (SELECT k.backend FROM keys k WHERE k.id = key_id) \
     WHERE key_id = $1 AND backend IS NULL AND backend_ref IS NOT NULL";
const INSERT_VERSION: &str = "INSERT INTO key_versions (kid, key_id, number, state, backend_ref, public_jwk, \
     kek_ref, wrapped_key, created_at, announced_at, activated_at, deactivated_at, is_standby, backend, sealed_secret) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)";
// A data key is shredded here and never written: whoever read the version a moment ago does not know whether it was
// rewrapped since.
const UPDATE_VERSION: &str = "UPDATE key_versions SET state = $3, announced_at = $4, activated_at = $5, \
     deactivated_at = $6, retired_at = $7, compromised_at = $8, destroyed_at = $9, is_standby = $10, \
     wrapped_key = CASE WHEN $11 = 1 THEN NULL ELSE wrapped_key END, \
     sealed_secret = CASE WHEN $11 = 1 THEN NULL ELSE sealed_secret END WHERE kid = $1 AND state = $2";
const KEY_BY_ID: &str = "SELECT id, tenant, name, purpose, algorithm, rsa_bits, backend, owner, created_at, \
     rotation_period, next_rotation_at, revision, rotation_mode, approvals_needed, standby, grace, policy_set_by, \
     policy_approved_by, policy_approved_at, schedule_set_by, standby_backend FROM keys WHERE id = $1";
const KEY_BY_NAME: &str = "SELECT id, tenant, name, purpose, algorithm, rsa_bits, backend, owner, created_at, \
     rotation_period, next_rotation_at, revision, rotation_mode, approvals_needed, standby, grace, policy_set_by, \
     policy_approved_by, policy_approved_at, schedule_set_by, standby_backend FROM keys WHERE tenant = $1 AND name = $2";
// The ACTIVE kid and the flag come with the row, whatever the length of the page.
const KEY_PAGE: &str = "SELECT k.id, k.tenant, k.name, k.purpose, k.algorithm, k.rsa_bits, k.backend, k.owner, \
     k.created_at, k.rotation_period, k.next_rotation_at, k.revision, k.rotation_mode, k.approvals_needed, k.standby, \
     k.grace, k.policy_set_by, k.policy_approved_by, k.policy_approved_at, k.schedule_set_by, k.standby_backend, v.kid AS active_kid, \
     CASE WHEN EXISTS (SELECT 1 FROM key_versions c WHERE c.key_id = k.id AND c.state = 'COMPROMISED') \
     THEN CAST(1 AS BIGINT) ELSE CAST(0 AS BIGINT) END AS compromised \
     FROM keys k LEFT JOIN key_versions v ON v.key_id = k.id AND v.state = 'ACTIVE' \
     WHERE k.tenant = $1 AND k.id > $2 AND k.next_rotation_at < $3 AND ($4 = '' OR k.owner = $4) AND ($5 = 0 OR EXISTS \
     (SELECT 1 FROM key_versions c WHERE c.key_id = k.id AND c.state = 'COMPROMISED')) ORDER BY k.id LIMIT $6";
// Not those whose secret was imported, which only people can bring the next of. Not those with an open rotation, nor those whose last one was turned down or ran out only just.
const DUE: &str = "SELECT k.id, k.tenant FROM keys k JOIN key_versions v ON v.key_id = k.id AND v.state = 'ACTIVE' \
     WHERE k.next_rotation_at <= $1 AND v.sealed_secret IS NULL \
     AND NOT EXISTS (SELECT 1 FROM tenants t WHERE t.name = k.tenant AND t.erased_at IS NOT NULL) \
     AND NOT EXISTS (SELECT 1 FROM rotations r WHERE r.key_id = k.id \
     AND (r.state IN ('REQUESTED', 'APPROVED') OR (r.state IN ('REJECTED', 'CANCELLED', 'EXPIRED') AND r.ended_at > $2))) \
     ORDER BY k.next_rotation_at, k.id LIMIT $3";
const STANDBY_MISSING: &str = "SELECT k.id, k.tenant FROM keys k \
     JOIN key_versions v ON v.key_id = k.id AND v.state = 'ACTIVE' WHERE k.standby = 1 \
     AND NOT EXISTS (SELECT 1 FROM tenants t WHERE t.name = k.tenant AND t.erased_at IS NOT NULL) AND NOT EXISTS \
     (SELECT 1 FROM key_versions s WHERE s.key_id = k.id AND s.state = 'PRE_ACTIVE' AND s.is_standby = 1) \
     ORDER BY k.id LIMIT $1";
// Those of a key that wants none, and those in another backend than the key wants it in by now.
const STANDBY_UNWANTED: &str = "SELECT DISTINCT k.id, k.tenant FROM keys k JOIN key_versions s ON s.key_id = k.id \
     WHERE (k.standby = 0 OR (s.backend IS NOT NULL \
     AND s.backend <> CASE k.standby_backend WHEN '' THEN k.backend ELSE k.standby_backend END)) \
     AND s.state = 'PRE_ACTIVE' AND s.is_standby = 1 ORDER BY k.id LIMIT $1";
// In its grace window without a rotation that will end it: an incident, and not a deployment, replaced its successor. Not
// those that ACTIVE API keys are hashed under.
const GRACE_OVER: &str = "SELECT v.kid, k.id, k.tenant FROM key_versions v JOIN keys k ON k.id = v.key_id \
     WHERE v.state = 'VERIFY_ONLY' AND v.deactivated_at + k.grace <= $1 \
     AND (v.last_token_exp IS NULL OR v.last_token_exp + $2 <= $1) \
     AND NOT EXISTS (SELECT 1 FROM rotations r WHERE r.old_kid = v.kid AND r.state = 'DEPLOYED') \
     AND NOT EXISTS (SELECT 1 FROM api_keys a WHERE a.pepper_kid = v.kid AND a.state = 'ACTIVE') \
     ORDER BY v.kid LIMIT $3";
// Under a standing approval the scheduler is about to rotate it, so people are told only when that takes long: $2 is before $1,
// which is asked for by itself because the index on the date knows nothing of the mode.
const OVERDUE: &str = "SELECT k.id, k.tenant FROM keys k WHERE k.next_rotation_at < $1 AND k.next_rotation_at < CASE \
     WHEN k.rotation_mode = 'AUTOMATIC' AND k.policy_approved_by IS NOT NULL THEN $2 ELSE $1 END \
     AND NOT EXISTS (SELECT 1 FROM tenants t WHERE t.name = k.tenant AND t.erased_at IS NOT NULL) \
     AND NOT EXISTS (SELECT 1 FROM alerts a \
     WHERE a.window_key = 'KEY_OVERDUE/' || k.id || '/' || CAST(k.next_rotation_at AS TEXT)) ORDER BY k.id LIMIT $3";
const COUNT_OVERDUE: &str = "SELECT CAST(COUNT(*) AS BIGINT) FROM keys k WHERE k.next_rotation_at < $1 \
     AND NOT EXISTS (SELECT 1 FROM tenants t WHERE t.name = k.tenant AND t.erased_at IS NOT NULL)";
const USAGE: &str = "SELECT kid, number, state, made, opened, rewrapped, last_used_at, kek_ref FROM key_versions \
     WHERE key_id = $1 ORDER BY number";
// Pairs that a backend must be able to show, of whatever tenant.
const PAIRS: &str = "SELECT v.backend_ref FROM key_versions v JOIN keys k ON k.id = v.key_id \
     WHERE v.state <> 'DESTROYED' AND v.backend_ref IS NOT NULL AND v.backend_ref <> $2 \
     AND COALESCE(v.backend, k.backend) = $1 AND NOT EXISTS (SELECT 1 FROM backend_intents i \
     WHERE i.kind = 'DESTROY' AND i.kid = v.kid AND i.state = 'PENDING') ORDER BY v.created_at DESC LIMIT $3";
const HOLD_KEY: &str = "UPDATE keys SET revision = revision WHERE id = $1 AND revision = $2";
const LOCK_KEY: &str = "UPDATE keys SET revision = revision WHERE id = $1";
const HOLD_ACTIVE: &str =
    "UPDATE key_versions SET state = state WHERE kid = $1 AND state = 'ACTIVE'";
const VERSIONS: &str = "SELECT kid, key_id, number, state, backend_ref, public_jwk, kek_ref, wrapped_key, \
     created_at, announced_at, activated_at, deactivated_at, retired_at, compromised_at, destroyed_at, \
     last_token_exp, last_used_at, is_standby, sealed_secret, COALESCE(backend, \
     (SELECT k.backend FROM keys k WHERE k.id = key_id)) AS backend FROM key_versions WHERE key_id = $1 ORDER BY number";
const VERSION: &str = "SELECT kid, key_id, number, state, backend_ref, public_jwk, kek_ref, wrapped_key, \
     created_at, announced_at, activated_at, deactivated_at, retired_at, compromised_at, destroyed_at, \
     last_token_exp, last_used_at, is_standby, sealed_secret, COALESCE(backend, \
     (SELECT k.backend FROM keys k WHERE k.id = key_id)) AS backend FROM key_versions WHERE kid = $1";
const STANDBY: &str = "SELECT kid, key_id, number, state, backend_ref, public_jwk, kek_ref, wrapped_key, \
     created_at, announced_at, activated_at, deactivated_at, retired_at, compromised_at, destroyed_at, \
     last_token_exp, last_used_at, is_standby, sealed_secret, COALESCE(backend, \
     (SELECT k.backend FROM keys k WHERE k.id = key_id)) AS backend FROM key_versions \
     WHERE key_id = $1 AND state = 'PRE_ACTIVE' AND is_standby = 1 ORDER BY number DESC LIMIT 1";
const LAST_TOKEN_EXP: &str = "SELECT last_token_exp FROM key_versions WHERE kid = $1";
const RAISE_LAST_TOKEN_EXP: &str = "UPDATE key_versions SET last_token_exp = $2 \
     WHERE kid = $1 AND state = 'ACTIVE' AND (last_token_exp IS NULL OR last_token_exp < $2)";
const ACTIVE_MARK: &str =
    "SELECT last_token_exp FROM key_versions WHERE kid = $1 AND state = 'ACTIVE'";
const ACTIVE_KID: &str = "SELECT kid FROM key_versions WHERE key_id = $1 AND state = 'ACTIVE'";
const KEY_OF_KID: &str = "SELECT key_id FROM key_versions WHERE kid = $1";
const PUBLISHED: &str = "SELECT v.kid, k.algorithm, v.public_jwk FROM key_versions v \
     JOIN keys k ON k.id = v.key_id WHERE k.purpose = 'TOKEN_SIGNING' AND v.public_jwk IS NOT NULL \
     AND (v.state IN ('ACTIVE', 'VERIFY_ONLY') OR (v.state = 'PRE_ACTIVE' AND v.announced_at IS NOT NULL)) \
     ORDER BY v.created_at, v.kid";

/// A key as it stands in table `keys`.
#[derive(sqlx::FromRow)]
struct KeyRow {
    id: String,
    tenant: String,
    name: String,
    purpose: String,
    algorithm: String,
    rsa_bits: i64,
    backend: String,
    owner: String,
    created_at: i64,
    rotation_period: i64,
    next_rotation_at: i64,
    revision: i64,
    rotation_mode: String,
    approvals_needed: i64,
    standby: i64,
    grace: i64,
    policy_set_by: Option<String>,
    policy_approved_by: Option<String>,
    policy_approved_at: Option<i64>,
    schedule_set_by: Option<String>,
    standby_backend: String,
}

#[derive(sqlx::FromRow)]
struct ListedRow {
    #[sqlx(flatten)]
    key: KeyRow,
    active_kid: Option<String>,
    compromised: i64,
}

/// A key in a list.
#[derive(Debug)]
pub struct ListedKey {
    /// The key.
    pub key: Key,
    /// kid of its ACTIVE version.
    pub active_kid: Option<Kid>,
    /// Is one of its versions COMPROMISED?
    pub compromised: bool,
}

/// How often a version was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ciphertexts, signatures or MACs made.
    pub made: i64,
    /// Ciphertexts decrypted, signatures or MACs verified.
    pub opened: i64,
    /// Ciphertexts moved from it to another version.
    pub rewrapped: i64,
}

/// What is known about the use of a version.
#[derive(Clone, Debug)]
pub struct VersionUsage {
    /// The version.
    pub kid: Kid,
    /// 1, 2, 3 … within the key.
    pub number: u32,
    /// Where it is in its life.
    pub state: VersionState,
    /// How often it was used.
    pub counts: Counts,
    /// Last known use.
    pub last_used_at: Option<Timestamp>,
    /// The KEK that wraps or wrapped the data key; None for a key pair.
    pub kek: Option<BackendRef>,
}

#[derive(sqlx::FromRow)]
struct UsageRow {
    kid: String,
    number: i64,
    state: String,
    made: i64,
    opened: i64,
    rewrapped: i64,
    last_used_at: Option<i64>,
    kek_ref: Option<String>,
}

/// Which keys of a tenant to list.
#[derive(Clone, Debug, Default)]
pub struct KeyFilter {
    /// Only those whose next rotation is before this.
    pub due_before: Option<Timestamp>,
    /// Only those with a COMPROMISED version.
    pub compromised_only: bool,
    /// Only those of this owner; empty for everybody's.
    pub owner: String,
}

/// Rows that a job takes on at once; the rest is there at its next look.
const AT_ONCE: i64 = 10_000;

#[derive(sqlx::FromRow)]
struct VersionRow {
    kid: String,
    key_id: String,
    number: i64,
    state: String,
    backend_ref: Option<String>,
    public_jwk: Option<String>,
    kek_ref: Option<String>,
    wrapped_key: Option<Vec<u8>>,
    created_at: i64,
    announced_at: Option<i64>,
    activated_at: Option<i64>,
    deactivated_at: Option<i64>,
    retired_at: Option<i64>,
    compromised_at: Option<i64>,
    destroyed_at: Option<i64>,
    last_token_exp: Option<i64>,
    last_used_at: Option<i64>,
    is_standby: i64,
    sealed_secret: Option<Vec<u8>>,
    backend: Option<String>,
}

/// What a version is made of, column by column.
#[derive(Default)]
struct Columns<'a> {
    backend: Option<&'a str>,
    reference: Option<&'a str>,
    public_jwk: Option<String>,
    kek: Option<&'a str>,
    wrapped: Option<&'a [u8]>,
    sealed_secret: Option<&'a [u8]>,
}

impl<'a> Columns<'a> {
    fn of(material: &'a Material) -> Self {
        match material {
            Material::KeyPair {
                backend,
                reference,
                public_key,
            } => Self {
                backend: Some(backend),
                reference: Some(&reference.0),
                public_jwk: Some(public_key.canonical_jwk()),
                ..Self::default()
            },
            Material::DataKey {
                kek,
                wrapped,
                sealed_secret,
            } => Self {
                kek: Some(&kek.0),
                wrapped: Some(wrapped),
                sealed_secret: sealed_secret.as_deref(),
                ..Self::default()
            },
            Material::Shredded { kek } => Self {
                kek: Some(&kek.0),
                ..Self::default()
            },
        }
    }
}

impl Tx {
    /// Adds a key. Errors: `Exists` for the name, `TenantErased`.
    pub async fn insert_key(&mut self, key: &Key) -> Result<()> {
        self.hold_tenant(&key.tenant).await?;
        let standing = key.policy.standing_approval.as_ref();
        execute!(
            self,
            INSERT_KEY,
            key.id.to_string(),
            key.tenant.as_str(),
            key.name.as_str(),
            key.purpose.as_str(),
            key.algorithm.as_str(),
            i64::from(key.rsa_bits),
            &key.backend,
            &key.owner,
            key.created_at.micros(),
            micros(key.rotation_period),
            key.next_rotation_at.micros(),
            key.revision,
            key.policy.mode.as_str(),
            i64::from(key.policy.approvals_needed.get()),
            i64::from(key.policy.standby),
            micros(key.policy.grace),
            key.policy.set_by.map(|id| id.to_string()),
            standing.map(|a| a.approver.to_string()),
            standing.map(|a| a.at.micros()),
            key.policy.schedule_set_by.map(|id| id.to_string()),
            key.policy.standby_backend.as_deref().unwrap_or_default(),
        )
        .map(|_| ())
    }

    /// Writes owner, period, next rotation and policy, if the row still has `key.revision`; false when it has not.
    pub async fn update_key(&mut self, key: &Key) -> Result<bool> {
        execute!(self, KEEP_BACKENDS, key.id.to_string())?;
        let standing = key.policy.standing_approval.as_ref();
        let rows = execute!(
            self,
            UPDATE_KEY,
            key.id.to_string(),
            key.revision,
            &key.owner,
            micros(key.rotation_period),
            key.next_rotation_at.micros(),
            key.policy.mode.as_str(),
            i64::from(key.policy.approvals_needed.get()),
            i64::from(key.policy.standby),
            micros(key.policy.grace),
            key.policy.set_by.map(|id| id.to_string()),
            standing.map(|a| a.approver.to_string()),
            standing.map(|a| a.at.micros()),
            key.policy.schedule_set_by.map(|id| id.to_string()),
            &key.backend,
            key.policy.standby_backend.as_deref().unwrap_or_default(),
        )?;
        Ok(rows == 1)
    }

    /// False when the row has not `key.revision` any more. True: nobody changes it before this transaction ends.
    pub async fn hold_key(&mut self, key: &Key) -> Result<bool> {
        let rows = execute!(self, HOLD_KEY, key.id.to_string(), key.revision)?;
        Ok(rows == 1)
    }

    /// Waits until no other change of this key's life is open, and keeps others waiting until this one ends.
    pub async fn lock_key(&mut self, key: KeyId) -> Result<()> {
        execute!(self, LOCK_KEY, key.to_string()).map(|_| ())
    }

    /// False when the version is not ACTIVE any more. True: nobody supersedes or freezes it before this transaction ends.
    pub async fn hold_active(&mut self, kid: &Kid) -> Result<bool> {
        let rows = execute!(self, HOLD_ACTIVE, kid.as_str())?;
        Ok(rows == 1)
    }

    /// Adds a version. Errors: `Exists` for the kid, the number, or a second ACTIVE version; `TenantErased`; `KekGone` for a
    /// data key under a KEK that nobody unwraps with any more.
    pub async fn insert_version(&mut self, v: &KeyVersion) -> Result<()> {
        self.hold_tenant_of(v.key_id).await?;
        let made_of = Columns::of(&v.material);
        if let Some(kek) = made_of.kek {
            self.hold_kek(kek).await?;
        }
        execute!(
            self,
            INSERT_VERSION,
            v.kid.as_str(),
            v.key_id.to_string(),
            i64::from(v.number),
            v.state.as_str(),
            made_of.reference,
            made_of.public_jwk.as_deref(),
            made_of.kek,
            made_of.wrapped,
            v.created_at.micros(),
            v.announced_at.map(Timestamp::micros),
            v.activated_at.map(Timestamp::micros),
            v.deactivated_at.map(Timestamp::micros),
            i64::from(v.is_standby),
            made_of.backend,
            made_of.sealed_secret,
        )
        .map(|_| ())
    }

    /// Writes what a transition changes in a version, if it is still in state `from`; false when it is not.
    pub async fn update_version(&mut self, v: &KeyVersion, from: VersionState) -> Result<bool> {
        let shredded = matches!(v.material, Material::Shredded { .. });
        let rows = execute!(
            self,
            UPDATE_VERSION,
            v.kid.as_str(),
            from.as_str(),
            v.state.as_str(),
            v.announced_at.map(Timestamp::micros),
            v.activated_at.map(Timestamp::micros),
            v.deactivated_at.map(Timestamp::micros),
            v.retired_at.map(Timestamp::micros),
            v.compromised_at.map(Timestamp::micros),
            v.destroyed_at.map(Timestamp::micros),
            i64::from(v.is_standby),
            i64::from(shredded),
        )?;
        Ok(rows == 1)
    }
}

impl Tx {
    /// A key, as this transaction sees it.
    pub async fn key(&mut self, id: KeyId) -> Result<Option<Key>> {
        let row = fetch_in!(self, KeyRow, KEY_BY_ID, id.to_string())?;
        row.map(Key::try_from).transpose()
    }

    /// A version, as this transaction sees it.
    pub async fn version(&mut self, kid: &Kid) -> Result<Option<KeyVersion>> {
        let row = fetch_in!(self, VersionRow, VERSION, kid.as_str())?;
        row.map(KeyVersion::try_from).transpose()
    }

    /// The version of a key that is kept for a compromise, as this transaction sees it.
    pub async fn standby(&mut self, key: KeyId) -> Result<Option<KeyVersion>> {
        let row = fetch_in!(self, VersionRow, STANDBY, key.to_string())?;
        row.map(KeyVersion::try_from).transpose()
    }

    /// The high-water mark of a version, as this transaction sees it.
    pub async fn last_token_exp(&mut self, kid: &Kid) -> Result<Option<Timestamp>> {
        let row = fetch_in!(self, (Option<i64>,), LAST_TOKEN_EXP, kid.as_str())?;
        Ok(row.and_then(|(exp,)| exp).map(Timestamp::from_micros))
    }

    /// The high-water mark of an ACTIVE version; None when the version is not ACTIVE (any more).
    pub async fn active_mark(&mut self, kid: &Kid) -> Result<Option<Option<Timestamp>>> {
        let row = fetch_in!(self, (Option<i64>,), ACTIVE_MARK, kid.as_str())?;
        Ok(row.map(|(exp,)| exp.map(Timestamp::from_micros)))
    }

    /// Raises the high-water mark of an ACTIVE version to `exp`; false when the version is not ACTIVE or the mark is
    /// there already.
    pub async fn raise_last_token_exp(&mut self, kid: &Kid, exp: Timestamp) -> Result<bool> {
        let rows = execute!(self, RAISE_LAST_TOKEN_EXP, kid.as_str(), exp.micros())?;
        Ok(rows == 1)
    }
}

impl Db {
    /// The key that the tenant knows by this id or name.
    pub async fn key(&self, tenant: &TenantName, key: &KeyRef) -> Result<Option<Key>> {
        let row = match key {
            KeyRef::Id(id) => fetch_optional!(self, KeyRow, KEY_BY_ID, id.to_string())?,
            KeyRef::Name(name) => {
                fetch_optional!(self, KeyRow, KEY_BY_NAME, tenant.as_str(), name.as_str())?
            }
        };
        let key = row.map(Key::try_from).transpose()?;
        Ok(key.filter(|key| key.tenant == *tenant))
    }

    /// Up to `limit` keys of a tenant after `after`, oldest first.
    pub async fn keys(
        &self,
        tenant: &TenantName,
        after: &str,
        filter: &KeyFilter,
        limit: i64,
    ) -> Result<Vec<ListedKey>> {
        fetch_all!(
            self,
            ListedRow,
            KEY_PAGE,
            tenant.as_str(),
            after,
            filter.due_before.map_or(i64::MAX, Timestamp::micros),
            &filter.owner,
            i64::from(filter.compromised_only),
            limit
        )?
        .into_iter()
        .map(ListedKey::try_from)
        .collect()
    }

    /// Keys with an ACTIVE version that are due at `now`, the longest due first. Not those with an open rotation, nor
    /// those whose last one was rejected, cancelled or expired after `ended_before`.
    pub async fn keys_due(
        &self,
        now: Timestamp,
        ended_before: Timestamp,
    ) -> Result<Vec<(KeyId, TenantName)>> {
        let (now, ended) = (now.micros(), ended_before.micros());
        of_tenants(fetch_all!(
            self,
            (String, String),
            DUE,
            now,
            ended,
            AT_ONCE
        )?)
    }

    /// Keys with an ACTIVE version whose policy wants a standby version and that have none.
    pub async fn keys_without_standby(&self) -> Result<Vec<(KeyId, TenantName)>> {
        of_tenants(fetch_all!(
            self,
            (String, String),
            STANDBY_MISSING,
            AT_ONCE
        )?)
    }

    /// Keys that have a standby version and whose policy does not want it, or wants it elsewhere.
    pub async fn keys_with_unwanted_standby(&self) -> Result<Vec<(KeyId, TenantName)>> {
        of_tenants(fetch_all!(
            self,
            (String, String),
            STANDBY_UNWANTED,
            AT_ONCE
        )?)
    }

    /// VERIFY_ONLY versions whose grace window is over at `now` and that no DEPLOYED rotation will retire. `skew` is how
    /// far the clocks of verifiers may be off.
    pub async fn versions_past_grace(
        &self,
        now: Timestamp,
        skew: Duration,
    ) -> Result<Vec<(Kid, KeyId, TenantName)>> {
        let (now, skew) = (now.micros(), micros(skew));
        let rows = fetch_all!(
            self,
            (String, String, String),
            GRACE_OVER,
            now,
            skew,
            AT_ONCE
        )?;
        rows.iter()
            .map(|(kid, key, tenant)| {
                Ok((
                    parse("kid", kid)?,
                    parse("key id", key)?,
                    parse("tenant", tenant)?,
                ))
            })
            .collect()
    }

    /// Keys that are overdue at `now` and that no alert was raised about since they became due. Those under a standing
    /// approval count from `automatic` on.
    pub async fn keys_to_alert_about(
        &self,
        now: Timestamp,
        automatic: Timestamp,
    ) -> Result<Vec<(KeyId, TenantName)>> {
        let (now, automatic) = (now.micros(), automatic.micros());
        of_tenants(fetch_all!(
            self,
            (String, String),
            OVERDUE,
            now,
            automatic,
            AT_ONCE
        )?)
    }

    /// How many keys of all tenants are overdue at `now`.
    pub async fn count_overdue_keys(&self, now: Timestamp) -> Result<i64> {
        let row = fetch_optional!(self, (i64,), COUNT_OVERDUE, now.micros())?;
        Ok(row.map_or(0, |(count,)| count))
    }

    /// All versions of a key, oldest first.
    pub async fn versions(&self, key: KeyId) -> Result<Vec<KeyVersion>> {
        fetch_all!(self, VersionRow, VERSIONS, key.to_string())?
            .into_iter()
            .map(KeyVersion::try_from)
            .collect()
    }

    /// How the versions of a key were used, oldest first.
    pub async fn version_usage(&self, key: KeyId) -> Result<Vec<VersionUsage>> {
        fetch_all!(self, UsageRow, USAGE, key.to_string())?
            .into_iter()
            .map(VersionUsage::try_from)
            .collect()
    }

    /// Up to `limit` key pairs that are in a backend as far as the rows say, without `but`, the newest first.
    pub async fn pairs_in(
        &self,
        backend: &str,
        but: &BackendRef,
        limit: i64,
    ) -> Result<Vec<BackendRef>> {
        let rows = fetch_all!(self, (String,), PAIRS, backend, &but.0, limit)?;
        Ok(rows.into_iter().map(|(pair,)| BackendRef(pair)).collect())
    }

    /// kid of the ACTIVE version.
    pub async fn active_kid(&self, key: KeyId) -> Result<Option<Kid>> {
        let row = fetch_optional!(self, (String,), ACTIVE_KID, key.to_string())?;
        row.map(|(kid,)| parse("kid", &kid)).transpose()
    }

    /// The key that a kid is a version of.
    pub async fn key_of_kid(&self, kid: &Kid) -> Result<Option<KeyId>> {
        let row = fetch_optional!(self, (String,), KEY_OF_KID, kid.as_str())?;
        row.map(|(id,)| parse("key id", &id)).transpose()
    }

    /// Every public key that verifiers of tokens need: announced, active or in grace (R-JWT-4).
    pub async fn published_keys(&self) -> Result<Vec<(Kid, crate::model::Algorithm, PublicKey)>> {
        fetch_all!(self, (String, String, String), PUBLISHED)?
            .into_iter()
            .map(|(kid, algorithm, jwk)| {
                Ok((
                    parse("kid", &kid)?,
                    parse("algorithm", &algorithm)?,
                    public_key(&jwk)?,
                ))
            })
            .collect()
    }
}

impl TryFrom<UsageRow> for VersionUsage {
    type Error = StoreError;

    fn try_from(row: UsageRow) -> Result<Self> {
        Ok(Self {
            kid: parse("kid", &row.kid)?,
            number: unsigned("number", row.number)?,
            state: parse("state", &row.state)?,
            counts: Counts {
                made: row.made,
                opened: row.opened,
                rewrapped: row.rewrapped,
            },
            last_used_at: row.last_used_at.map(Timestamp::from_micros),
            kek: row.kek_ref.map(BackendRef),
        })
    }
}

impl TryFrom<ListedRow> for ListedKey {
    type Error = StoreError;

    fn try_from(row: ListedRow) -> Result<Self> {
        Ok(Self {
            key: row.key.try_into()?,
            active_kid: row.active_kid.map(|kid| parse("kid", &kid)).transpose()?,
            compromised: row.compromised != 0,
        })
    }
}

fn of_tenants(rows: Vec<(String, String)>) -> Result<Vec<(KeyId, TenantName)>> {
    rows.iter()
        .map(|(key, tenant)| Ok((parse("key id", key)?, parse("tenant", tenant)?)))
        .collect()
}

impl TryFrom<KeyRow> for Key {
    type Error = StoreError;

    fn try_from(row: KeyRow) -> Result<Self> {
        Ok(Self {
            id: parse("key id", &row.id)?,
            tenant: parse("tenant", &row.tenant)?,
            name: parse("key name", &row.name)?,
            purpose: parse("purpose", &row.purpose)?,
            algorithm: parse("algorithm", &row.algorithm)?,
            rsa_bits: unsigned("rsa_bits", row.rsa_bits)?,
            backend: row.backend,
            owner: row.owner,
            created_at: Timestamp::from_micros(row.created_at),
            rotation_period: Duration::from_micros(unsigned(
                "rotation_period",
                row.rotation_period,
            )?),
            next_rotation_at: Timestamp::from_micros(row.next_rotation_at),
            policy: RotationPolicy {
                mode: parse("rotation mode", &row.rotation_mode)?,
                approvals_needed: unsigned::<u32>("approvals_needed", row.approvals_needed)?
                    .try_into()
                    .map_err(|_| StoreError::Corrupt("approvals_needed is 0".into()))?,
                standby: row.standby != 0,
                standby_backend: Some(row.standby_backend).filter(|name| !name.is_empty()),
                grace: Duration::from_micros(unsigned("grace", row.grace)?),
                set_by: row
                    .policy_set_by
                    .map(|id| parse("policy_set_by", &id))
                    .transpose()?,
                schedule_set_by: row
                    .schedule_set_by
                    .map(|id| parse("schedule_set_by", &id))
                    .transpose()?,
                standing_approval: match (row.policy_approved_by, row.policy_approved_at) {
                    (Some(approver), Some(at)) => Some(Approval {
                        approver: parse("policy_approved_by", &approver)?,
                        at: Timestamp::from_micros(at),
                    }),
                    _ => None,
                },
            },
            revision: row.revision,
        })
    }
}

impl TryFrom<VersionRow> for KeyVersion {
    type Error = StoreError;

    fn try_from(row: VersionRow) -> Result<Self> {
        let material = match (
            row.backend_ref,
            row.public_jwk,
            row.kek_ref,
            row.wrapped_key,
        ) {
            (Some(reference), Some(jwk), None, None) => Material::KeyPair {
                backend: row.backend.unwrap_or_default(),
                reference: BackendRef(reference),
                public_key: public_key(&jwk)?,
            },
            (None, None, Some(kek), Some(wrapped)) => Material::DataKey {
                kek: BackendRef(kek),
                wrapped,
                sealed_secret: row.sealed_secret,
            },
            (None, None, Some(kek), None) if row.destroyed_at.is_some() => Material::Shredded {
                kek: BackendRef(kek),
            },
            _ => {
                return Err(StoreError::Corrupt(format!(
                    "key version {} is neither a key pair nor a data key",
                    row.kid
                )));
            }
        };
        Ok(Self {
            kid: parse("kid", &row.kid)?,
            key_id: parse("key id", &row.key_id)?,
            number: unsigned("number", row.number)?,
            state: parse("state", &row.state)?,
            material,
            created_at: Timestamp::from_micros(row.created_at),
            announced_at: row.announced_at.map(Timestamp::from_micros),
            activated_at: row.activated_at.map(Timestamp::from_micros),
            deactivated_at: row.deactivated_at.map(Timestamp::from_micros),
            retired_at: row.retired_at.map(Timestamp::from_micros),
            compromised_at: row.compromised_at.map(Timestamp::from_micros),
            destroyed_at: row.destroyed_at.map(Timestamp::from_micros),
            last_token_exp: row.last_token_exp.map(Timestamp::from_micros),
            last_used_at: row.last_used_at.map(Timestamp::from_micros),
            is_standby: row.is_standby != 0,
        })
    }
}

fn public_key(jwk: &str) -> Result<PublicKey> {
    PublicKey::from_canonical_jwk(jwk).map_err(|e| StoreError::Corrupt(format!("{e:?}")))
}
