//! Forgets answers that nobody will ask for again, revocations of tokens that have expired, webhook deliveries and client
//! assertions that are too old to come again, and usage and alerts that are older than their retention.

use std::time::Duration;

use serde::Deserialize;

use super::Work;
use crate::{
    error::Result,
    model::{Timestamp, time::micros, usage::Span},
    store::{Term, Tx},
    usage::UsageConfig,
};

/// Section `[idempotency]`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdempotencyConfig {
    /// How long the answer to a mutating call is kept for a caller who makes it again with the same key, in hours.
    /// Default 24.
    pub retention_hours: u64,
}

impl Default for IdempotencyConfig {
    fn default() -> Self {
        Self {
            retention_hours: 24,
        }
    }
}

impl IdempotencyConfig {
    /// Errors: a sentence that names the setting.
    pub fn check(&self) -> std::result::Result<(), String> {
        match self.retention_hours {
            1..=8760 => Ok(()),
            _ => Err("idempotency.retention_hours must be 1 to 8760".into()),
        }
    }

    const fn retention(self) -> Duration {
        Duration::from_secs(self.retention_hours * 60 * 60)
    }
}

/// Forgets the answers to mutating calls that are older than the retention, and revocations, webhook deliveries and
/// client assertions that are over, by database time.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    let mut tx = work.db.begin().await?;
    tx.hold(term).await?;
    let now = tx.now().await?;
    let before = now
        .micros()
        .saturating_sub(micros(work.idempotency.retention()));
    let answers = tx.prune_answers(Timestamp::from_micros(before)).await?;
    let revocations = tx.prune_revocations(now).await?;
    let webhooks = tx.prune_webhooks(now).await?;
    let assertions = tx.prune_assertions(now).await?;
    let before = now.minus(work.alerts.config().retention());
    let told = tx.prune_alerts(before).await? + tx.prune_deliveries(before).await?;
    let used = prune_usage(&mut tx, work.usage.config(), now).await?;
    tx.commit().await?;
    if answers + revocations + webhooks + assertions + used + told > 0 {
        tracing::debug!(
            answers,
            revocations,
            webhooks,
            assertions,
            used,
            told,
            "forgot what is over"
        );
    }
    Ok(())
}

/// Windows in which nothing was admitted for so long say nothing.
const IDLE_WINDOW: Duration = Duration::from_secs(10 * 60);

/// Forgets ids of events, sums and windows that are over.
async fn prune_usage(tx: &mut Tx, config: &UsageConfig, now: Timestamp) -> Result<u64> {
    let mut rows = tx.prune_usage_events(now).await?;
    for span in Span::ALL {
        let before = now.minus(config.retention(span));
        rows += tx.prune_usage(span, before).await?;
    }
    Ok(rows + tx.prune_windows(now.minus(IDLE_WINDOW)).await?)
}
