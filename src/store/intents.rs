//! Table `backend_intents`: what is about to be created in a backend, recorded before it is.

use super::{Db, Result, Tx, engine::execute};
use crate::model::{IntentId, TenantName, Timestamp};

const INSERT: &str = "INSERT INTO backend_intents (id, backend, tenant, label, state, created_at) \
     VALUES ($1, $2, $3, $4, 'PENDING', $5)";
const SETTLE: &str = "UPDATE backend_intents SET state = $2 WHERE id = $1 AND state = 'PENDING'";

/// How an intent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntentState {
    /// The object is recorded as a key version.
    Done,
    /// The attempt failed; whatever it left on the device has this id.
    Failed,
}

impl IntentState {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "DONE",
            Self::Failed => "FAILED",
        }
    }
}

impl Db {
    /// Records an intent, durably, on its own.
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
        )?;
        tx.commit().await
    }
}

impl Tx {
    /// Records how an intent ended, in the transaction of what it led to.
    pub async fn settle_intent(&mut self, id: IntentId, state: IntentState) -> Result<()> {
        execute!(self, SETTLE, id.to_string(), state.as_str()).map(|_| ())
    }
}
