//! Table `webhook_events`: what was seen of webhook deliveries, for as long as they could come again.

use super::{
    Result, Tx,
    engine::{execute, fetch_in},
};
use crate::model::{KeyId, Timestamp};

const MARK: &str = "INSERT INTO webhook_events (key_id, mark, seen_at, keep_until) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (key_id, mark) DO NOTHING";
const SEEN: &str = "SELECT MIN(seen_at) FROM webhook_events WHERE key_id = $1 AND mark IN ($2, $3)";
const PRUNE: &str = "DELETE FROM webhook_events WHERE keep_until <= $1";

/// One thing by which a delivery is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookMark {
    /// `id:` and the event id, or `sha256:` and a digest of what was signed.
    pub mark: String,
    /// When it may be forgotten.
    pub keep_until: Timestamp,
}

impl Tx {
    /// Leaves a mark; false when it is there. On PostgreSQL it waits for another transaction that is about to leave it.
    pub async fn mark_webhook(
        &mut self,
        key: KeyId,
        mark: &WebhookMark,
        now: Timestamp,
    ) -> Result<bool> {
        let rows = execute!(
            self,
            MARK,
            key.to_string(),
            &mark.mark,
            now.micros(),
            mark.keep_until.micros(),
        )?;
        Ok(rows == 1)
    }

    /// When the first of two marks was left; None when there is neither. A mark that this transaction has just left
    /// counts with the time that it was left with.
    pub async fn webhook_seen(
        &mut self,
        key: KeyId,
        one: &str,
        other: &str,
    ) -> Result<Option<Timestamp>> {
        let row = fetch_in!(self, (Option<i64>,), SEEN, key.to_string(), one, other)?;
        Ok(row.and_then(|(seen,)| seen).map(Timestamp::from_micros))
    }

    /// Forgets what could not come again by `now`; how many.
    pub async fn prune_webhooks(&mut self, now: Timestamp) -> Result<u64> {
        execute!(self, PRUNE, now.micros())
    }
}
