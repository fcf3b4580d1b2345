//! Table `backend_intents`: what is about to be created or destroyed in a backend, recorded before it is.

use super::{
    Db, Result, StoreError, Tx,
    engine::{execute, fetch_all, fetch_in, fetch_optional},
    parse,
};
use crate::model::{DestructionId, IntentId, Kid, TenantDestructionId, TenantName, Timestamp};

const INSERT: &str = "INSERT INTO backend_intents (id, backend, tenant, label, state, created_at, kind, kid) \
     VALUES ($1, $2, $3, $4, 'PENDING', $5, $6, $7)";
const SETTLE: &str = "UPDATE backend_intents SET state = $2, settled_at = $3 WHERE id = $1 AND state <> 'DONE' \
     AND (state = 'PENDING' OR $2 = 'DONE')";
const DESTROYED: &str = "UPDATE backend_intents SET state = 'DONE', found = $2, settled_at = $3 \
     WHERE id = $1 AND state <> 'DONE'";
const QUARANTINE: &str = "UPDATE backend_intents SET state = 'QUARANTINED', found = $2, settled_at = $3 \
     WHERE id = $1 AND state IN ('PENDING', 'FAILED')";
// An attempt is looked at again when it is twice as old as at the last look.
const DOUBTFUL: &str = "SELECT id, backend, tenant, label, state, found, created_at FROM backend_intents \
     WHERE state = 'FAILED' AND kind = 'CREATE' AND settled_at - created_at < $1 \
     AND $2 - settled_at > settled_at - created_at ORDER BY settled_at, id LIMIT $3";
const LOOKED: &str =
    "UPDATE backend_intents SET settled_at = $2 WHERE id = $1 AND state = 'FAILED'";
const BY_ID: &str = "SELECT id, backend, tenant, label, state, found, created_at FROM backend_intents \
     WHERE id = $1";
const PENDING: &str = "SELECT id, backend, tenant, label, state, found, created_at FROM backend_intents \
     WHERE state = 'PENDING' AND kind = 'CREATE' AND created_at < $1 ORDER BY created_at, id LIMIT $2";
const QUARANTINED: &str = "SELECT id, backend, tenant, label, state, found, created_at FROM backend_intents \
     WHERE state = 'QUARANTINED' ORDER BY created_at, id";
const BEGUN: &str =
    "SELECT id FROM backend_intents WHERE kind = 'DESTROY' AND kid = $1 AND state = 'PENDING'";
const IS_SCHEDULED: &str =
    "UPDATE key_destructions SET state = state WHERE id = $1 AND state = 'SCHEDULED'";
const IS_DESTROYING: &str =
    "UPDATE tenant_destructions SET state = state WHERE id = $1 AND state = 'DESTROYING'";

/// How an intent ended, or that it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntentState {
    /// Begun; a crash may have left something behind.
    Pending,
    /// The object is recorded as a key version, or is destroyed as it was to be.
    Done,
    /// The attempt failed and left nothing, as far as anybody saw.
    Failed,
    /// The attempt failed and left something that has this id on the device. Nothing uses or deletes it.
    Quarantined,
}

impl IntentState {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Done => "DONE",
            Self::Failed => "FAILED",
            Self::Quarantined => "QUARANTINED",
        }
    }

    fn of(text: &str) -> Result<Self> {
        [Self::Pending, Self::Done, Self::Failed, Self::Quarantined]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| StoreError::Corrupt(format!("intent state {text:?}")))
    }
}

/// What was about to happen in a backend.
#[derive(Clone, Debug)]
pub struct Intent {
    /// Its id; a created object carries it as `CKA_ID`.
    pub id: IntentId,
    /// Name of the backend.
    pub backend: String,
    /// Tenant it is for.
    pub tenant: TenantName,
    /// `tenant/key/number`, for people.
    pub label: String,
    /// Where it is.
    pub state: IntentState,
    /// What the reconciler saw under this id, or what became of a pair that was to be destroyed; empty otherwise.
    pub found: String,
    /// When it was recorded, by database time.
    pub created_at: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    backend: String,
    tenant: String,
    label: String,
    state: String,
    found: String,
    created_at: i64,
}

impl Db {
    /// Records the intent to create, durably, on its own.
    pub async fn record_intent(
        &self,
        id: IntentId,
        backend: &str,
        tenant: &TenantName,
        label: &str,
        now: Timestamp,
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        execute!(
            &mut tx,
            INSERT,
            id.to_string(),
            backend,
            tenant.as_str(),
            label,
            now.micros(),
            "CREATE",
            None::<String>,
        )?;
        tx.commit().await
    }

    /// The intent with this id.
    pub async fn intent(&self, id: IntentId) -> Result<Option<Intent>> {
        let row = fetch_optional!(self, Row, BY_ID, id.to_string())?;
        row.map(Intent::try_from).transpose()
    }

    /// Up to `limit` intents to create that are pending since before `before`, oldest first.
    pub async fn stale_intents(&self, before: Timestamp, limit: i64) -> Result<Vec<Intent>> {
        fetch_all!(self, Row, PENDING, before.micros(), limit)?
            .into_iter()
            .map(Intent::try_from)
            .collect()
    }

    /// Up to `limit` intents to create that FAILED, and that nobody has looked for since they were half as old: a device
    /// that hung may finish long afterwards what it had begun. None that were `given_up` microseconds old at the last
    /// look.
    pub async fn doubtful_intents(&self, given_up: i64, limit: i64) -> Result<Vec<Intent>> {
        let now = self.now().await?.micros();
        fetch_all!(self, Row, DOUBTFUL, given_up, now, limit)?
            .into_iter()
            .map(Intent::try_from)
            .collect()
    }

    /// Notes that nothing was found once more of an intent that FAILED.
    pub async fn looked_for(&self, id: IntentId) -> Result<()> {
        let mut tx = self.begin().await?;
        let now = tx.now().await?;
        execute!(&mut tx, LOOKED, id.to_string(), now.micros())?;
        tx.commit().await
    }

    /// Every quarantined leftover, oldest first.
    pub async fn quarantined_intents(&self) -> Result<Vec<Intent>> {
        fetch_all!(self, Row, QUARANTINED)?
            .into_iter()
            .map(Intent::try_from)
            .collect()
    }

    /// The database's time.
    pub async fn now(&self) -> Result<Timestamp> {
        self.begin().await?.now().await
    }
}

impl Tx {
    /// Records how an intent ended, in the transaction of what it led to. DONE is the last word; FAILED only follows
    /// PENDING.
    pub async fn settle_intent(&mut self, id: IntentId, state: IntentState) -> Result<()> {
        self.settle_open_intent(id, state).await.map(|_| ())
    }

    /// As `settle_intent`; false when the intent had ended otherwise.
    pub async fn settle_open_intent(&mut self, id: IntentId, state: IntentState) -> Result<bool> {
        let now = self.now().await?;
        let rows = execute!(self, SETTLE, id.to_string(), state.as_str(), now.micros())?;
        Ok(rows == 1)
    }

    /// Records that a pair is gone, and in a line what became of it.
    pub async fn settle_destroy(&mut self, id: IntentId, fate: &str) -> Result<()> {
        let now = self.now().await?;
        execute!(self, DESTROYED, id.to_string(), fate, now.micros()).map(|_| ())
    }

    /// Sets aside what an intent left on the device that is pending or failed; false when it ended otherwise.
    pub async fn quarantine_intent(&mut self, id: IntentId, found: &str) -> Result<bool> {
        let now = self.now().await?;
        let rows = execute!(self, QUARANTINE, id.to_string(), found, now.micros())?;
        Ok(rows == 1)
    }

    /// The pending intent to destroy this version, if its destruction has begun on the device.
    pub async fn begun_destroy(&mut self, kid: &Kid) -> Result<Option<IntentId>> {
        let row = fetch_in!(self, (String,), BEGUN, kid.as_str())?;
        row.map(|(id,)| parse("intent id", &id)).transpose()
    }

    /// Records the intent to destroy the pair of `kid`, if its destruction is still SCHEDULED; from then on it cannot
    /// be called off. The intent that is pending already, if there is one. None when it is not SCHEDULED any more.
    pub async fn begin_destroy(
        &mut self,
        destruction: DestructionId,
        kid: &Kid,
        backend: &str,
        tenant: &TenantName,
    ) -> Result<Option<IntentId>> {
        // Locks the row: a cancellation that is under way is waited for, one that comes later sees the intent.
        if execute!(self, IS_SCHEDULED, destruction.to_string())? != 1 {
            return Ok(None);
        }
        self.destroy_intent(kid, backend, tenant).await.map(Some)
    }

    /// Records the intent to destroy the pair of `kid` with all keys of its tenant, while that is DESTROYING. The intent
    /// that is pending already, if there is one. None when it is not DESTROYING any more.
    pub async fn begin_shred(
        &mut self,
        destruction: TenantDestructionId,
        kid: &Kid,
        backend: &str,
        tenant: &TenantName,
    ) -> Result<Option<IntentId>> {
        if execute!(self, IS_DESTROYING, destruction.to_string())? != 1 {
            return Ok(None);
        }
        self.destroy_intent(kid, backend, tenant).await.map(Some)
    }

    async fn destroy_intent(
        &mut self,
        kid: &Kid,
        backend: &str,
        tenant: &TenantName,
    ) -> Result<IntentId> {
        if let Some(begun) = self.begun_destroy(kid).await? {
            return Ok(begun);
        }
        let (id, now) = (IntentId::random(), self.now().await?);
        execute!(
            self,
            INSERT,
            id.to_string(),
            backend,
            tenant.as_str(),
            kid.as_str(),
            now.micros(),
            "DESTROY",
            Some(kid.as_str()),
        )?;
        Ok(id)
    }
}

impl TryFrom<Row> for Intent {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            id: parse("intent id", &row.id)?,
            backend: row.backend,
            tenant: parse("tenant", &row.tenant)?,
            label: row.label,
            state: IntentState::of(&row.state)?,
            found: row.found,
            created_at: Timestamp::from_micros(row.created_at),
        })
    }
}
