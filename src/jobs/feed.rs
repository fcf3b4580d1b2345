//! Follows the admin stream, which is also the change feed: what other replicas changed is forgotten here.
//!
//! Polled, because a notification is only a hint. Each round reads, forgets, reports how far it has come, and only then
//! renews the freshness lease, counted from the beginning of the read (R-EMER-3). So whoever waits for this replica can
//! rely on its report, and a replica whose rounds fail goes on until the lease ends and then refuses to use keys.
//!
//! A database that was set back, by a restore or a failover to an older copy, lacks rows that were followed already, or has
//! others in their place. Then nothing that is cached can be trusted and nothing tells what to forget: the rounds fail until
//! the replica is started again.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    audit::{ADMIN_STREAM, Outcome},
    authz::Authz,
    clients::{ApiKeys, Clients},
    directory::Directory,
    error::{Error, Reason, Result},
    gate::Freshness,
    health::Component,
    keys::Keys,
    model::{Action, Timestamp},
    store::{AuditRow, Db, Head, TokenRevocation},
    tokens::Tokens,
    vault::Vault,
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
    /// Forgets API keys.
    pub api_keys: Arc<ApiKeys>,
    /// Forgets decisions.
    pub authz: Arc<Authz>,
    /// Learns which tokens are revoked.
    pub tokens: Arc<Tokens>,
    /// Forgets OAuth clients.
    pub clients: Arc<Clients>,
    /// Tells those who watch credentials.
    pub vault: Arc<Vault>,
    /// Says whether the database answers.
    pub health: Component,
    /// Name that this replica reports itself under.
    pub replica: String,
    /// Last row that was seen; None while the stream has none.
    pub seen: Option<Head>,
}

impl Feed {
    /// Follows until `shutdown` ends.
    pub async fn run(mut self, config: FeedConfig, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let (db, woken) = (self.db.clone(), Notify::new());
        let mut listen = std::pin::pin!(db.listen_to_admin_stream(&woken));
        let mut tick = interval(Duration::from_millis(config.poll_interval_ms.max(10)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut shutdown => return,
                () = &mut listen => {}
                () = woken.notified() => {}
                _ = tick.tick() => {}
            }
            if let Err(error) = self.round().await {
                tracing::warn!(%error, "change feed not followed");
            }
        }
    }

    /// Follows to the end of the stream, once. Errors: the database does not answer in time to be of use.
    pub async fn round(&mut self) -> Result<()> {
        // A database that hangs must not hang us: the lease would be over anyway.
        let patience = self.freshness.max_staleness();
        let done = timeout(patience, self.follow()).await;
        let done = done.unwrap_or_else(|_| {
            Err(Error::new(
                Reason::DatabaseUnavailable,
                "the database does not answer in time",
            ))
        });
        match &done {
            Ok(()) => self.health.up(),
            Err(error) => self.health.down(error.message()),
        }
        done
    }

    async fn follow(&mut self) -> Result<()> {
        loop {
            let began = Instant::now();
            self.catch_up().await?;
            let lease = self.freshness.max_staleness();
            let seen = self.seen.as_ref().map_or(0, |head| head.seq);
            let report = self.db.report_replica(&self.replica, seen, lease);
            if report.await? {
                self.freshness.observe(began);
                return Ok(());
            }
            // Nobody waited for this replica while it read. Now they do: read what it may have missed.
        }
    }

    async fn catch_up(&mut self) -> Result<()> {
        loop {
            // From the last row that was seen on, to see that it is still the same one.
            let from = self.seen.as_ref().map_or(1, |head| head.seq);
            let mut rows = self.db.audit_chain(ADMIN_STREAM, from, PAGE).await?;
            let is_full = (rows.len() as i64) == PAGE;
            if let Some(seen) = &self.seen {
                let same = |row: &AuditRow| row.seq == seen.seq && row.hash == seen.hash;
                if !rows.first().is_some_and(same) {
                    return Err(set_back());
                }
                rows.remove(0);
            }
            for row in &rows {
                self.apply(row);
                if row.entity == "kek_rotation" && row.action != Action::RewrapDataKeys.name() {
                    // Before the row counts as seen: whoever waits for this replica relies on it.
                    self.keys.keks().reload().await?;
                }
                self.seen = Some(Head {
                    seq: row.seq,
                    hash: row.hash.clone(),
                });
            }
            if !is_full {
                return Ok(());
            }
        }
    }

    /// Only what took effect changes anything.
    fn apply(&self, row: &AuditRow) {
        if row.outcome != Outcome::Success.as_str() {
            return;
        }
        if row.data.starts_with(REPEATED) {
            return;
        }
        match row.entity.as_str() {
            "key" => self.forget_key(&row.entity_id),
            "rotation" => self.forget_key(&named(row, "key_id")),
            "incident" | "destruction" => {
                self.forget_key(&named(row, "key_id"));
                if let Ok(kid) = named(row, "kid").parse() {
                    self.keys.forget_data_key(&kid);
                }
            }
            "tenant_destruction" => self.forget_shredded(row),
            "api_key" => match row.entity_id.parse() {
                Ok(id) => self.api_keys.forget(id),
                Err(_) => self.api_keys.forget_all(),
            },
            // Says what is on a device, and nothing that is cached.
            "intent" => {}
            "token" => self.learn_revocation(row),
            "client" => {
                // Its state is kept with each of its keys.
                self.api_keys.forget_all();
                self.forget_client(&row.entity_id);
            }
            "credential" => self.look_again(row),
            "tenant" if row.action == Action::ImportCredentials.name() => self.look_again(row),
            // A client revoked a token that is none of its own: nothing happened.
            "tenant" if row.action == Action::RevokeOwnToken.name() => {}
            // A checkpoint changes nothing that is cached.
            "audit" => {}
            // Read in the transaction of each decision.
            "usage_limit" | "alert" | "alert_delivery" => {}
            // What shows a data key under the old KEK is true as long as that one unwraps.
            "kek_rotation" if row.action == Action::CompleteKekRotation.name() => {
                self.keys.forget_all();
            }
            "kek_rotation" => {}
            // Tenants, principals, and whatever a newer release may add.
            _ => {
                self.directory.forget();
                self.authz.forget();
                self.clients.forget_tokens();
            }
        }
    }

    /// Nothing about credentials is cached; those who watch them look again. Most rows change no value.
    fn look_again(&self, row: &AuditRow) {
        let details = details(row);
        let imported = details["credentials"].as_array().into_iter().flatten();
        let ids = imported.filter_map(|id| id.as_str());
        for id in ids.chain([row.entity_id.as_str()]) {
            if let Ok(id) = id.parse() {
                self.vault.changed(id);
            }
        }
    }

    fn forget_client(&self, id: &str) {
        match id.parse() {
            Ok(id) => self.clients.forget(id),
            Err(_) => tracing::error!(id, "a change of a client names none"),
        }
    }

    /// Most rows of a tenant's destruction change no key: they have no key_id.
    fn forget_shredded(&self, row: &AuditRow) {
        let details = details(row);
        let Some(key) = details["key_id"].as_str() else {
            return;
        };
        self.forget_key(key);
        let kids = details["kids"].as_array().into_iter().flatten();
        for kid in kids.filter_map(|kid| kid.as_str()?.parse().ok()) {
            self.keys.forget_data_key(&kid);
        }
    }

    fn learn_revocation(&self, row: &AuditRow) {
        let (Ok(tenant), Ok(jti)) = (row.tenant.parse(), row.entity_id.parse()) else {
            tracing::error!(seq = row.seq, "a revocation names no token");
            return;
        };
        let keep_until = details(row)["keep_until"].as_i64().unwrap_or(i64::MAX);
        self.tokens.revoked_elsewhere(TokenRevocation {
            tenant,
            jti,
            keep_until: Timestamp::from_micros(keep_until),
        });
    }

    fn forget_key(&self, id: &str) {
        match id.parse() {
            Ok(id) => self.keys.forget(id),
            // Better forget too much than too little.
            Err(_) => self.keys.forget_all(),
        }
    }
}

fn set_back() -> Error {
    Error::new(
        Reason::DatabaseUnavailable,
        "the database was set back: it lacks audit rows that this replica has seen; restart every replica, then compare \
         with the checkpoints by claviger audit verify",
    )
}

/// A text in the details of a row; empty when it has none.
fn named(row: &AuditRow, field: &str) -> String {
    details(row)[field].as_str().unwrap_or_default().to_owned()
}

/// How the details of a call begin that was made again and changed nothing.
const REPEATED: &str = r#"{"repeats":"#;

fn details(row: &AuditRow) -> serde_json::Value {
    serde_json::from_str(&row.data).unwrap_or_default()
}
