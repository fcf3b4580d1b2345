//! Tables `audit_events` and `audit_heads`. Rows are only ever added; the chain is computed in `audit/`.

use std::fmt::Write;

use sqlx::AssertSqlSafe;

use super::{
    Db, Result, Tx,
    engine::{execute, fetch_all, fetch_in, fetch_optional, statement},
};

const HEAD: &str = "SELECT seq, hash FROM audit_heads WHERE stream = $1";
const HEADS: &str = "SELECT stream, seq, hash FROM audit_heads ORDER BY stream";
const INSERT_HEAD: &str = "INSERT INTO audit_heads (stream, seq, hash) VALUES ($1, $2, $3)";
const MOVE_HEAD: &str = "UPDATE audit_heads SET seq = $3, hash = $4 WHERE stream = $1 AND seq = $2";
const INSERT: &str = "INSERT INTO audit_events (stream, seq, at, tenant, actor, actor_type, action, entity, \
     entity_id, outcome, request_id, data, prev_hash, hash) VALUES ";
/// The stream that every replica follows.
const ADMIN_STREAM: &str = "admin";
const COLUMNS: usize = 14;
/// Rows of one INSERT; 14 binds each stay below SQLite's 32,766 and PostgreSQL's 65,535.
const MAX_ROWS: usize = 512;
const CHAIN: &str = "SELECT stream, seq, at, tenant, actor, actor_type, action, entity, entity_id, outcome, \
     request_id, data, prev_hash, hash FROM audit_events WHERE stream = $1 AND seq >= $2 ORDER BY seq LIMIT $3";
const LIST: &str = "SELECT stream, seq, at, tenant, actor, actor_type, action, entity, entity_id, outcome, \
     request_id, data, prev_hash, hash FROM audit_events \
     WHERE ($1 = '*' OR tenant = $1) AND ($2 = '' OR stream = $2) AND ($3 = '' OR actor = $3) \
     AND ($4 = '' OR action = $4) AND ($5 = '' OR entity_id = $5) AND ($6 = '' OR outcome = $6) \
     AND at >= $7 AND at < $8 AND (at < $9 OR (at = $9 AND (stream > $10 OR (stream = $10 AND seq < $11)))) \
     ORDER BY at DESC, stream, seq DESC LIMIT $12";
const ROW_HASH: &str = "SELECT hash FROM audit_events WHERE stream = $1 AND seq = $2";
const STREAMS: &str = "SELECT DISTINCT stream FROM audit_events ORDER BY stream";

/// A row of the log, exactly as stored.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct AuditRow {
    /// `admin` or `access/<replica>`.
    pub stream: String,
    /// 1, 2, 3 … in the stream.
    pub seq: i64,
    /// Database time, microseconds since the Unix epoch.
    pub at: i64,
    /// Tenant of the entity.
    pub tenant: String,
    /// Principal id, or certificate identity of an unknown caller.
    pub actor: String,
    /// `user`, `service`, `job` or `unknown`.
    pub actor_type: String,
    /// Action.
    pub action: String,
    /// Kind of entity.
    pub entity: String,
    /// Its id.
    pub entity_id: String,
    /// `success`, `refused` or `failed`.
    pub outcome: String,
    /// Id of the request.
    pub request_id: String,
    /// JSON object.
    pub data: String,
    /// Hash of the row before, 32 bytes.
    pub prev_hash: Vec<u8>,
    /// Hash of this row, 32 bytes.
    pub hash: Vec<u8>,
}

/// The last row of a stream.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Head {
    /// Its seq; 0 for an empty stream.
    pub seq: i64,
    /// Its hash.
    pub hash: Vec<u8>,
}

/// What to list. Empty texts mean no condition; `tenant` `*` means all.
#[derive(Clone, Debug)]
pub struct AuditFilter {
    /// Tenant, or `*`.
    pub tenant: String,
    /// Stream.
    pub stream: String,
    /// Actor.
    pub actor: String,
    /// Action.
    pub action: String,
    /// Entity id.
    pub entity_id: String,
    /// Outcome.
    pub outcome: String,
    /// At or after, microseconds.
    pub since: i64,
    /// Before, microseconds.
    pub until: i64,
    /// Continue behind this row: (at, stream, seq).
    pub after: Option<(i64, String, i64)>,
    /// At most so many.
    pub limit: i64,
}

impl Tx {
    /// The last row of a stream; None for a stream that has none.
    pub async fn audit_head(&mut self, stream: &str) -> Result<Option<Head>> {
        fetch_in!(self, Head, HEAD, stream)
    }

    /// Adds rows that follow one another in one stream, and moves the stream's head from `from` to the last of them.
    /// False, and nothing may be committed, when the head is not at `from`.
    pub async fn append_audit(&mut self, rows: &[AuditRow], from: i64) -> Result<bool> {
        let Some(last) = rows.last() else {
            return Ok(true);
        };
        for chunk in powers_of_two(rows) {
            self.insert_audit_rows(chunk).await?;
        }
        let moved = match from {
            0 => execute!(self, INSERT_HEAD, &last.stream, last.seq, &last.hash)?,
            _ => execute!(self, MOVE_HEAD, &last.stream, from, last.seq, &last.hash)?,
        };
        if last.stream == ADMIN_STREAM {
            self.notify_admin_stream().await?;
        }
        Ok(moved == 1)
    }

    async fn insert_audit_rows(&mut self, rows: &[AuditRow]) -> Result<()> {
        macro_rules! insert {
            ($tx:expr, $span:expr, $engine:expr, $placeholder:expr) => {{
                let sql = insert_sql(rows.len(), $placeholder);
                let mut query = sqlx::query(AssertSqlSafe(sql));
                for r in rows {
                    query = query
                        .bind(&r.stream)
                        .bind(r.seq)
                        .bind(r.at)
                        .bind(&r.tenant)
                        .bind(&r.actor)
                        .bind(&r.actor_type)
                        .bind(&r.action)
                        .bind(&r.entity)
                        .bind(&r.entity_id)
                        .bind(&r.outcome)
                        .bind(&r.request_id)
                        .bind(&r.data)
                        .bind(&r.prev_hash)
                        .bind(&r.hash);
                }
                statement!($span, $engine, INSERT, query.execute(&mut **$tx)).map(|_| ())
            }};
        }
        match self {
            Self::Sqlite(tx, span) => insert!(tx, span, "sqlite", Placeholder::Anonymous)?,
            Self::Postgres(tx, span) => insert!(tx, span, "postgresql", Placeholder::Numbered)?,
        }
        Ok(())
    }
}

impl Db {
    /// The last row of a stream; None for a stream that has none.
    pub async fn audit_head(&self, stream: &str) -> Result<Option<Head>> {
        fetch_optional!(self, Head, HEAD, stream)
    }

    /// The last row of every stream, at one moment, by name.
    pub async fn audit_heads(&self) -> Result<Vec<(String, Head)>> {
        let heads = fetch_all!(self, (String, i64, Vec<u8>), HEADS)?;
        let named = |(stream, seq, hash)| (stream, Head { seq, hash });
        Ok(heads.into_iter().map(named).collect())
    }

    /// The stored hash of one row; None when it is not there.
    pub async fn audit_row_hash(&self, stream: &str, seq: i64) -> Result<Option<Vec<u8>>> {
        let row = fetch_optional!(self, (Vec<u8>,), ROW_HASH, stream, seq)?;
        Ok(row.map(|(hash,)| hash))
    }

    /// Every stream that has rows or a head.
    pub async fn audit_streams(&self) -> Result<Vec<String>> {
        let heads = fetch_all!(self, (String, i64, Vec<u8>), HEADS)?;
        let rows = fetch_all!(self, (String,), STREAMS)?;
        let mut streams: Vec<String> = heads
            .into_iter()
            .map(|(stream, ..)| stream)
            .chain(rows.into_iter().map(|(stream,)| stream))
            .collect();
        streams.sort_unstable();
        streams.dedup();
        Ok(streams)
    }

    /// Up to `limit` rows of a stream from `from` on, in order.
    pub async fn audit_chain(&self, stream: &str, from: i64, limit: i64) -> Result<Vec<AuditRow>> {
        fetch_all!(self, AuditRow, CHAIN, stream, from, limit)
    }

    /// Rows that match, newest first.
    pub async fn audit_events(&self, f: &AuditFilter) -> Result<Vec<AuditRow>> {
        let (at, stream, seq) = f.after.clone().unwrap_or((i64::MAX, String::new(), 0));
        fetch_all!(
            self,
            AuditRow,
            LIST,
            &f.tenant,
            &f.stream,
            &f.actor,
            &f.action,
            &f.entity_id,
            &f.outcome,
            f.since,
            f.until,
            at,
            &stream,
            seq,
            f.limit,
        )
    }
}

/// Cuts rows into pieces whose lengths are powers of two, so that there are ten texts of the INSERT and each
/// connection's statement cache holds them all.
fn powers_of_two(mut rows: &[AuditRow]) -> impl Iterator<Item = &[AuditRow]> {
    std::iter::from_fn(move || {
        let len = match rows.len() {
            0 => return None,
            n => (1 << n.ilog2()).min(MAX_ROWS),
        };
        let (piece, rest) = rows.split_at(len);
        rows = rest;
        Some(piece)
    })
}

/// How an engine's binds are written in a statement of many rows.
#[derive(Clone, Copy)]
enum Placeholder {
    /// `?`: SQLite looks `$N` up by name, in a list, for each bind: quadratic in the number of rows.
    Anonymous,
    /// `$N`, the only one that PostgreSQL knows.
    Numbered,
}

/// `INSERT … VALUES ($1, …, $14), ($15, …) …`: placeholders only, no data.
fn insert_sql(rows: usize, placeholder: Placeholder) -> String {
    let mut sql = String::with_capacity(INSERT.len() + rows * COLUMNS * 6);
    sql.push_str(INSERT);
    for row in 0..rows {
        sql.push_str(if row == 0 { "(" } else { ", (" });
        for column in 1..=COLUMNS {
            if column > 1 {
                sql.push_str(", ");
            }
            match placeholder {
                Placeholder::Anonymous => sql.push('?'),
                Placeholder::Numbered => {
                    // Writing to a String cannot fail.
                    let _ = write!(sql, "${}", row * COLUMNS + column);
                }
            }
        }
        sql.push(')');
    }
    sql
}
