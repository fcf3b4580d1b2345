//! Tables `usage_events` and `usage_aggregates`: what was used, once and in sums.

use super::{
    Db, Result, StoreError, Tx,
    engine::{execute, fetch_all, fetch_in, fetch_optional},
    parse,
};
use crate::model::{
    TenantName, Timestamp,
    usage::{Cost, FAILED_LOGINS, Span, UsageKey, Used},
};

const MARK: &str = "INSERT INTO usage_events (tenant, event_id, digest, keep_until) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (tenant, event_id) DO NOTHING";
const MARKED: &str = "SELECT digest FROM usage_events WHERE tenant = $1 AND event_id = $2";
/// The most that a sum says, which is what the columns take.
const MOST: i64 = 9_000_000_000_000_000_000;

/// A sum that stops at the most, in place of the error that both engines have for one that is too large: nobody's sums keep
/// others from being looked at. In two halves, so that nothing on the way is too large either.
macro_rules! sum {
    ($column:literal) => {
        concat!(
            "CASE WHEN CAST(SUM(",
            $column,
            " / 1000000000) AS BIGINT) \
             + CAST(SUM(",
            $column,
            " % 1000000000) AS BIGINT) / 1000000000 >= 9000000000 THEN 9000000000000000000 \
             ELSE CAST(SUM(",
            $column,
            " / 1000000000) AS BIGINT) * 1000000000 \
             + CAST(SUM(",
            $column,
            " % 1000000000) AS BIGINT) END"
        )
    };
}
/// What a row comes to when it is added to; it stops at the most.
macro_rules! added {
    ($column:literal) => {
        concat!(
            $column,
            " = CASE WHEN usage_aggregates.",
            $column,
            " > 9000000000000000000 - excluded.",
            $column,
            " THEN 9000000000000000000 ELSE usage_aggregates.",
            $column,
            " + excluded.",
            $column,
            " END"
        )
    };
}

const ADD: &str = concat!(
    "INSERT INTO usage_aggregates (tenant, span, begins_at, provider, credential_id, principal_id, requests, \
     errors, tokens_in, tokens_out, cost, last_used_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
     ON CONFLICT (tenant, span, begins_at, provider, credential_id, principal_id) DO UPDATE SET ",
    added!("requests"),
    ", ",
    added!("errors"),
    ", ",
    added!("tokens_in"),
    ", ",
    added!("tokens_out"),
    ", ",
    added!("cost"),
    ", last_used_at = CASE WHEN excluded.last_used_at > usage_aggregates.last_used_at THEN excluded.last_used_at \
     ELSE usage_aggregates.last_used_at END"
);
// Failed authentications are no use of anything; who wants to see them asks for them.
const REPORT: &str = concat!(
    "SELECT begins_at, provider, credential_id, principal_id, requests, errors, tokens_in, tokens_out, cost, \
     last_used_at FROM (SELECT begins_at, CASE WHEN $5 = 1 THEN provider ELSE '' END AS provider, \
     CASE WHEN $6 = 1 THEN credential_id ELSE '' END AS credential_id, \
     CASE WHEN $7 = 1 THEN principal_id ELSE '' END AS principal_id, ",
    sum!("requests"),
    " AS requests, ",
    sum!("errors"),
    " AS errors, ",
    sum!("tokens_in"),
    " AS tokens_in, ",
    sum!("tokens_out"),
    " AS tokens_out, ",
    sum!("cost"),
    " AS cost, \
     MAX(last_used_at) AS last_used_at FROM usage_aggregates WHERE tenant = $1 AND span = $2 AND begins_at >= $3 \
     AND begins_at < $4 AND ($8 = '' OR provider = $8) AND ($9 = '' OR credential_id = $9) \
     AND ($10 = '' OR principal_id = $10) AND ($8 <> '' OR provider <> $11) GROUP BY 1, 2, 3, 4) AS grouped \
     WHERE (begins_at, provider, credential_id, principal_id) > ($12, $13, $14, $15) \
     ORDER BY begins_at, provider, credential_id, principal_id LIMIT $16"
);
const TOTALS: &str = concat!(
    "SELECT COALESCE(",
    sum!("requests"),
    ", 0) AS requests, COALESCE(",
    sum!("errors"),
    ", 0) AS errors, COALESCE(",
    sum!("tokens_in"),
    ", 0) AS tokens_in, COALESCE(",
    sum!("tokens_out"),
    ", 0) AS tokens_out, COALESCE(",
    sum!("cost"),
    ", 0) AS cost, MAX(last_used_at) AS last_used_at FROM usage_aggregates WHERE tenant = $1 AND span = $2 \
     AND begins_at >= $3 AND begins_at < $4 AND ($5 = '' OR provider = $5) AND ($6 = '' OR credential_id = $6) \
     AND ($7 = '' OR principal_id = $7) AND ($5 <> '' OR provider <> $8)"
);
// The principal tells the daemon's own rows apart, the credential all others.
const OBSERVED: &str = concat!(
    "SELECT tenant, provider, credential_id, principal_id, requests, errors, cost FROM (SELECT tenant, \
     provider, credential_id, CASE WHEN provider LIKE 'claviger%' THEN principal_id ELSE '' END AS principal_id, ",
    sum!("requests"),
    " AS requests, ",
    sum!("errors"),
    " AS errors, ",
    sum!("cost"),
    " AS cost \
     FROM usage_aggregates WHERE span = $1 AND begins_at >= $2 AND begins_at < $3 AND provider <> $7 \
     GROUP BY 1, 2, 3, 4) AS grouped WHERE errors >= $4 OR requests > $5 OR cost > $6 \
     ORDER BY tenant, provider, credential_id, principal_id"
);
// Anybody can make these rows, so few are read; the last column says how many there are.
const STRANGERS: &str = concat!(
    "SELECT tenant, provider, credential_id, principal_id, requests, errors, cost, CAST(COUNT(*) OVER () AS BIGINT) AS rows_in_all \
     FROM (SELECT tenant, provider, credential_id, principal_id, ",
    sum!("requests"),
    " AS requests, ",
    sum!("errors"),
    " AS errors, ",
    sum!("cost"),
    " AS cost \
     FROM usage_aggregates WHERE span = 'MINUTE' AND begins_at >= $1 AND begins_at < $2 AND provider = $3 \
     GROUP BY 1, 2, 3, 4) AS grouped WHERE errors >= $4 ORDER BY errors DESC, principal_id LIMIT $5"
);
const PRUNE_EVENTS: &str = "DELETE FROM usage_events WHERE keep_until <= $1";
const PRUNE_AGGREGATES: &str = "DELETE FROM usage_aggregates WHERE span = $1 AND begins_at < $2";

/// Whether an event was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventMark {
    /// It was not.
    New,
    /// It was, and said the same.
    Same,
    /// Its id was there, and said something else.
    Other,
}

/// What a report is about.
#[derive(Clone, Debug)]
pub struct UsageQuery {
    /// Tenant.
    pub tenant: TenantName,
    /// Length of a row.
    pub span: Span,
    /// First begin of a row.
    pub from: Timestamp,
    /// Rows begin before this.
    pub to: Timestamp,
    /// What is not empty must be the same.
    pub only: UsageKey,
    /// Are rows told apart by provider, credential, principal?
    pub apart: [bool; 3],
}

/// One row of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRow {
    /// When it begins.
    pub begins_at: Timestamp,
    /// What it is told apart by.
    pub key: UsageKey,
    /// How much.
    pub used: Used,
}

/// What was used in a window of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Tenant.
    pub tenant: TenantName,
    /// Whose; the principal only of the daemon's own rows.
    pub key: UsageKey,
    /// Requests.
    pub requests: i64,
    /// Those of them that failed.
    pub errors: i64,
    /// Cost.
    pub cost: Cost,
}

/// Rows that are worth a look: at least one of these must hold.
#[derive(Clone, Copy, Debug)]
pub struct WorthALook {
    /// So many errors.
    pub errors: i64,
    /// More requests.
    pub requests: i64,
    /// A higher cost.
    pub cost: Cost,
}

#[derive(sqlx::FromRow)]
struct Row {
    begins_at: i64,
    provider: String,
    credential_id: String,
    principal_id: String,
    requests: i64,
    errors: i64,
    tokens_in: i64,
    tokens_out: i64,
    cost: i64,
    last_used_at: i64,
}

#[derive(sqlx::FromRow)]
struct Sum {
    requests: i64,
    errors: i64,
    tokens_in: i64,
    tokens_out: i64,
    cost: i64,
    last_used_at: Option<i64>,
}

#[derive(sqlx::FromRow)]
struct ObservedRow {
    tenant: String,
    provider: String,
    credential_id: String,
    principal_id: String,
    requests: i64,
    errors: i64,
    cost: i64,
}

#[derive(sqlx::FromRow)]
struct StrangerRow {
    #[sqlx(flatten)]
    row: ObservedRow,
    rows_in_all: i64,
}

impl Tx {
    /// Notes an event. On PostgreSQL it waits for another transaction that is about to note the same.
    pub async fn mark_usage(
        &mut self,
        tenant: &TenantName,
        event_id: &str,
        digest: &[u8],
        keep_until: Timestamp,
    ) -> Result<EventMark> {
        let until = keep_until.micros();
        if execute!(self, MARK, tenant.as_str(), event_id, digest, until)? == 1 {
            return Ok(EventMark::New);
        }
        let known = fetch_in!(self, (Vec<u8>,), MARKED, tenant.as_str(), event_id)?;
        let (known,) = known.ok_or_else(|| StoreError::Corrupt("a usage event vanished".into()))?;
        Ok(match known == digest {
            true => EventMark::Same,
            false => EventMark::Other,
        })
    }

    /// Adds to the sums of one span. Callers add in the order of their keys, or two could wait for each other.
    pub async fn add_usage(
        &mut self,
        tenant: &TenantName,
        (span, begins_at): (Span, Timestamp),
        key: &UsageKey,
        used: &Used,
    ) -> Result<()> {
        execute!(
            self,
            ADD,
            tenant.as_str(),
            span.as_str(),
            begins_at.micros(),
            &key.provider,
            &key.credential,
            &key.principal,
            used.requests.min(MOST),
            used.errors.min(MOST),
            used.tokens_in.min(MOST),
            used.tokens_out.min(MOST),
            used.cost.nanos().min(MOST),
            used.last.unwrap_or(begins_at).micros(),
        )
        .map(|_| ())
    }

    /// Forgets events that would be refused by `now` if they came again; how many.
    pub async fn prune_usage_events(&mut self, now: Timestamp) -> Result<u64> {
        execute!(self, PRUNE_EVENTS, now.micros())
    }

    /// Forgets sums that began before `before`; how many.
    pub async fn prune_usage(&mut self, span: Span, before: Timestamp) -> Result<u64> {
        execute!(self, PRUNE_AGGREGATES, span.as_str(), before.micros())
    }
}

impl Db {
    /// Up to `limit` rows of a report after a row that begins at `after` with that key.
    pub async fn usage_report(
        &self,
        q: &UsageQuery,
        (after, key): (Timestamp, &UsageKey),
        limit: i64,
    ) -> Result<Vec<UsageRow>> {
        let [provider, credential, principal] = q.apart.map(i64::from);
        let rows = fetch_all!(
            self,
            Row,
            REPORT,
            q.tenant.as_str(),
            q.span.as_str(),
            q.from.micros(),
            q.to.micros(),
            provider,
            credential,
            principal,
            &q.only.provider,
            &q.only.credential,
            &q.only.principal,
            FAILED_LOGINS,
            after.micros(),
            &key.provider,
            &key.credential,
            &key.principal,
            limit,
        )?;
        Ok(rows.into_iter().map(Row::row).collect())
    }

    /// The sum of everything that a report is about.
    pub async fn usage_totals(&self, q: &UsageQuery) -> Result<Used> {
        let sum = fetch_optional!(
            self,
            Sum,
            TOTALS,
            q.tenant.as_str(),
            q.span.as_str(),
            q.from.micros(),
            q.to.micros(),
            &q.only.provider,
            &q.only.credential,
            &q.only.principal,
            FAILED_LOGINS,
        )?;
        Ok(sum.map(Sum::used).unwrap_or_default())
    }

    /// What was used in rows of `span` that begin from `from` and before `to`, of all tenants, where that is worth a look.
    /// Strangers are not in it.
    pub async fn observed_usage(
        &self,
        span: Span,
        (from, to): (Timestamp, Timestamp),
        worth: WorthALook,
    ) -> Result<Vec<Observed>> {
        let rows = fetch_all!(
            self,
            ObservedRow,
            OBSERVED,
            span.as_str(),
            from.micros(),
            to.micros(),
            worth.errors,
            worth.requests,
            worth.cost.nanos(),
            FAILED_LOGINS,
        )?;
        rows.into_iter().map(ObservedRow::observed).collect()
    }

    /// The addresses from which at least `least` authentications failed in a window, the worst `most` of them; and how many
    /// there are.
    pub async fn observed_strangers(
        &self,
        (from, to): (Timestamp, Timestamp),
        least: i64,
        most: i64,
    ) -> Result<(Vec<Observed>, i64)> {
        let (from, to) = (from.micros(), to.micros());
        let rows = fetch_all!(
            self,
            StrangerRow,
            STRANGERS,
            from,
            to,
            FAILED_LOGINS,
            least,
            most
        )?;
        let in_all = rows.first().map_or(0, |row| row.rows_in_all);
        let observed = rows.into_iter().map(|row| row.row.observed());
        Ok((observed.collect::<Result<_>>()?, in_all))
    }
}

impl Row {
    fn row(self) -> UsageRow {
        UsageRow {
            begins_at: Timestamp::from_micros(self.begins_at),
            key: UsageKey {
                provider: self.provider,
                credential: self.credential_id,
                principal: self.principal_id,
            },
            used: Used {
                requests: self.requests,
                errors: self.errors,
                tokens_in: self.tokens_in,
                tokens_out: self.tokens_out,
                cost: Cost::from_nanos(self.cost),
                last: Some(Timestamp::from_micros(self.last_used_at)),
            },
        }
    }
}

impl Sum {
    fn used(self) -> Used {
        Used {
            requests: self.requests,
            errors: self.errors,
            tokens_in: self.tokens_in,
            tokens_out: self.tokens_out,
            cost: Cost::from_nanos(self.cost),
            last: self.last_used_at.map(Timestamp::from_micros),
        }
    }
}

impl ObservedRow {
    fn observed(self) -> Result<Observed> {
        Ok(Observed {
            tenant: parse("tenant", &self.tenant)?,
            key: UsageKey {
                provider: self.provider,
                credential: self.credential_id,
                principal: self.principal_id,
            },
            requests: self.requests,
            errors: self.errors,
            cost: Cost::from_nanos(self.cost),
        })
    }
}
