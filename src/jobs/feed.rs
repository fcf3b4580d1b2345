//! Follows the admin stream, which is also the change feed: what other replicas changed is forgotten here.
//!
//! Polled, because a notification is only a hint. Each successful read renews the freshness lease (R-EMER-3); a replica
//! whose reads fail goes on until the lease ends and then refuses to use keys.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    audit::{ADMIN_STREAM, Outcome},
    authz::Authz,
    directory::Directory,
    gate::Freshness,
    health::Component,
    keys::Keys,
    store::{AuditRow, Db, StoreError},
};

/// Section `[feed]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FeedConfig {
    /// Time between two reads, in milliseconds. Default 500.
    pub poll_interval_ms: u64,
    /// How old the last read may be before this replica stops using keys, in seconds. Default 5.
    pub max_staleness_seconds: u64,
}

impl Default for FeedConfig {
    fn default() -> Self {
        Self {
            poll_interval_ms: 500,
            max_staleness_seconds: 5,
        }
    }
}

/// Rows read at a time.
const PAGE: i64 = 500;

/// The follower and what it keeps true.
pub struct Feed {
    /// Where the stream is.
    pub db: Db,
    /// Renewed by each read.
    pub freshness: Arc<Freshness>,
    /// Forgets keys.
    pub keys: Arc<Keys>,
    /// Forgets principals.
    pub directory: Arc<Directory>,
    /// Forgets decisions.
    pub authz: Arc<Authz>,
    /// Says whether the database answers.
    pub health: Component,
    /// Last row that was seen.
    pub seen: i64,
}

impl Feed {
    /// Follows until `shutdown` ends.
    pub async fn run(mut self, config: FeedConfig, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut tick = interval(Duration::from_millis(config.poll_interval_ms.max(10)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut shutdown => return,
                _ = tick.tick() => {}
            }
            let began = Instant::now();
            match self.catch_up().await {
                Ok(()) => {
                    self.freshness.observe(began);
                    self.health.up();
                }
                Err(error) => {
                    tracing::warn!(%error, "change feed not read");
                    self.health.down("the database does not answer");
                }
            }
        }
    }

    async fn catch_up(&mut self) -> Result<(), StoreError> {
        loop {
            let next = self.seen + 1;
            let rows = self.db.audit_chain(ADMIN_STREAM, next, PAGE).await?;
            let Some(last) = rows.last() else {
                return Ok(());
            };
            self.seen = last.seq;
            let full = rows.len() as i64 == PAGE;
            rows.iter().for_each(|row| self.apply(row));
            if !full {
                return Ok(());
            }
        }
    }

    /// Only what took effect changes anything.
    fn apply(&self, row: &AuditRow) {
        if row.outcome != Outcome::Success.as_str() {
            return;
        }
        match row.entity.as_str() {
            "key" => self.forget_key(&row.entity_id),
            "rotation" | "incident" => self.forget_key(&named(row, "key_id")),
            "destruction" => {
                self.forget_key(&named(row, "key_id"));
                if let Ok(kid) = named(row, "kid").parse() {
                    self.keys.forget_data_key(&kid);
                }
            }
            // Says what is on a device, and nothing that is cached.
            "intent" => {}
            // Tenants, principals, and whatever a newer release may add.
            _ => {
                self.directory.forget();
                self.authz.forget();
            }
        }
    }

    fn forget_key(&self, id: &str) {
        match id.parse() {
            Ok(id) => self.keys.forget(id),
            // Better forget too much than too little.
            Err(_) => self.keys.forget_all(),
        }
    }
}

/// A text in the details of a row; empty when it has none.
fn named(row: &AuditRow, field: &str) -> String {
    let details: serde_json::Value = serde_json::from_str(&row.data).unwrap_or_default();
    details[field].as_str().unwrap_or_default().to_owned()
}
