//! Table `replicas`: how far each daemon has followed the admin stream, so that a freeze can wait for all of them.
//!
//! A row says "wait for me". Whoever waits strikes a replica whose row is too old: its lease is over, it uses no key. A
//! replica that finds itself struck reads the stream once more before it goes on, because nobody has waited for it. The
//! row's lock orders the two. Only PostgreSQL has more than one daemon; on SQLite there is nobody to tell.

use std::time::Duration;

use super::{Db, Result, Tx, engine::fetch_all};
use crate::model::time::micros;

const REPORT: &str = "UPDATE replicas SET seen_seq = $2, max_staleness = $3, level = $4, \
     seen_at = CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) WHERE name = $1";
const REGISTER: &str = "INSERT INTO replicas (name, seen_seq, max_staleness, level, seen_at) \
     VALUES ($1, $2, $3, $4, CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)) ON CONFLICT (name) DO NOTHING";
const BEHIND: &str = "SELECT name, \
     seen_at + max_staleness + $3 - CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) \
     FROM replicas WHERE name <> $1 AND seen_seq < $2";
const STRIKE: &str = "DELETE FROM replicas WHERE name = $1 AND seen_seq < $2 \
     AND seen_at + max_staleness + $3 < CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)";
const OLDER: &str = "SELECT name FROM replicas WHERE COALESCE(level, 0) < $1 \
     AND seen_at + max_staleness + $2 >= CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) \
     ORDER BY name LIMIT 1";
const LIVE: &str = "SELECT name FROM replicas \
     WHERE seen_at + max_staleness + $1 >= CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) \
     ORDER BY name LIMIT 1";
const REMOVE: &str = "DELETE FROM replicas WHERE name = $1";

/// How much longer than its lease a replica is waited for: clocks run at slightly different speeds.
const MARGIN: Duration = Duration::from_millis(200);
/// What this release knows of the data. Raised when a release must not do something beside one that does not know of it.
/// 1: KEKs that rotate, and tenants that are erased.
const LEVEL: i64 = 1;
/// How long after its lease an older replica may still write: one that was paused goes on where it was.
const PAUSED: Duration = Duration::from_secs(60);

impl Db {
    /// Says how far this replica has followed the admin stream. False when nobody was waiting for it until now: then it
    /// must read once more, from a moment after this call, before it relies on what it has read.
    ///
    /// One statement each, so that a caller may give up waiting without leaving a transaction behind.
    pub async fn report_replica(
        &self,
        name: &str,
        seen_seq: i64,
        max_staleness: Duration,
    ) -> Result<bool> {
        let Self::Postgres(pool) = self else {
            return Ok(true);
        };
        let lease = micros(max_staleness);
        let bound = |sql| {
            let query = sqlx::query(sql).bind(name).bind(seen_seq);
            query.bind(lease).bind(LEVEL)
        };
        if bound(REPORT).execute(pool).await?.rows_affected() == 1 {
            return Ok(true);
        }
        bound(REGISTER).execute(pool).await?;
        Ok(false)
    }

    /// The longest time that a replica other than `besides` may still be using what row `seq` of the admin stream
    /// changed; None when all of them have seen it or have stopped.
    pub async fn replicas_behind(&self, besides: &str, seq: i64) -> Result<Option<Duration>> {
        let Self::Postgres(pool) = self else {
            return Ok(None);
        };
        let margin = micros(MARGIN);
        let behind = fetch_all!(self, (String, i64), BEHIND, besides, seq, margin)?;
        let mut longest = None;
        for (name, left) in behind {
            let stopped = left < 0 && {
                let strike = sqlx::query(STRIKE).bind(name).bind(seq).bind(margin);
                strike.execute(pool).await?.rows_affected() == 1
            };
            if !stopped {
                let left = Duration::from_micros(left.max(0).unsigned_abs());
                longest = longest.max(Some(left));
            }
        }
        Ok(longest)
    }

    /// A replica that may be using keys over this database, if there is any. On SQLite the lock on the file says so.
    pub async fn live_replica(&self) -> Result<Option<String>> {
        let Self::Postgres(pool) = self else {
            return Ok(None);
        };
        let live = sqlx::query_scalar(LIVE).bind(micros(MARGIN));
        Ok(live.fetch_optional(pool).await?)
    }

    /// Takes every replica off the list: for a copy on which none has worked yet.
    pub async fn forget_replicas(&self) -> Result<()> {
        if let Self::Postgres(pool) = self {
            sqlx::query("DELETE FROM replicas").execute(pool).await?;
        }
        Ok(())
    }

    /// Takes a replica off the list that has stopped using keys for good.
    pub async fn remove_replica(&self, name: &str) -> Result<()> {
        if let Self::Postgres(pool) = self {
            sqlx::query(REMOVE).bind(name).execute(pool).await?;
        }
        Ok(())
    }
}

impl Tx {
    /// A live replica of a release that knows less of the data than this one, if there is any: what it read before a
    /// change that it does not know of, it may write after it.
    pub async fn older_replica(&mut self) -> Result<Option<String>> {
        let Self::Postgres(tx, _) = self else {
            return Ok(None);
        };
        let older = sqlx::query_scalar(OLDER).bind(LEVEL).bind(micros(PAUSED));
        Ok(older.fetch_optional(&mut **tx).await?)
    }
}
