//! Tables `usage_limits`, `usage_windows` and `usage_budget_marks`: how much may be used, what was admitted lately, and which
//! budgets are to be looked at.

use super::{
    Db, Result, StoreError, Tx,
    engine::{execute, fetch_all, fetch_in, fetch_optional},
    parse,
};
use crate::model::{
    TenantName, Timestamp,
    usage::{Budget, Cost, Limit, Subject, SubjectKind, Window},
};

const SET: &str = "INSERT INTO usage_limits (tenant, subject_kind, subject, requests_per_minute, hour_soft, hour_hard, \
     day_soft, day_hard, month_soft, month_hard, set_by, set_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
     ON CONFLICT (tenant, subject_kind, subject) DO UPDATE SET requests_per_minute = excluded.requests_per_minute, \
     hour_soft = excluded.hour_soft, hour_hard = excluded.hour_hard, day_soft = excluded.day_soft, \
     day_hard = excluded.day_hard, month_soft = excluded.month_soft, month_hard = excluded.month_hard, \
     set_by = excluded.set_by, set_at = excluded.set_at";
const DELETE: &str =
    "DELETE FROM usage_limits WHERE tenant = $1 AND subject_kind = $2 AND subject = $3";
const ONE: &str = "SELECT tenant, subject_kind, subject, requests_per_minute, hour_soft, hour_hard, day_soft, day_hard, \
     month_soft, month_hard, set_by, set_at FROM usage_limits WHERE tenant = $1 AND subject_kind = $2 AND subject = $3";
const PAGE: &str = "SELECT tenant, subject_kind, subject, requests_per_minute, hour_soft, hour_hard, day_soft, day_hard, \
     month_soft, month_hard, set_by, set_at FROM usage_limits WHERE tenant = $1 AND (subject_kind, subject) > ($2, $3) \
     ORDER BY subject_kind, subject LIMIT $4";
// Only where there is a budget.
const MARK: &str = "INSERT INTO usage_budget_marks (tenant, subject_kind, subject, at, shard, marks) \
     SELECT tenant, subject_kind, subject, CAST($4 AS BIGINT), CAST($5 AS BIGINT), 1 FROM usage_limits \
     WHERE tenant = $1 AND subject_kind = $2 AND subject = $3 AND (hour_soft IS NOT NULL OR hour_hard IS NOT NULL \
     OR day_soft IS NOT NULL OR day_hard IS NOT NULL OR month_soft IS NOT NULL OR month_hard IS NOT NULL) \
     ON CONFLICT (tenant, subject_kind, subject, at, shard) DO UPDATE SET marks = usage_budget_marks.marks + 1";
const MARKS: &str = "SELECT tenant, subject_kind, subject, at, shard, marks FROM usage_budget_marks \
     ORDER BY at, tenant, subject_kind, subject, shard LIMIT $1";
const UNMARK: &str = "DELETE FROM usage_budget_marks WHERE tenant = $1 AND subject_kind = $2 AND subject = $3 AND at = $4 \
     AND shard = $5 AND marks = $6";
// Writes first, so that whoever asks at the same time waits, and reads what this transaction has left.
const LOCK_WINDOW: &str = "INSERT INTO usage_windows (tenant, subject_kind, subject, slots, touched_at) \
     VALUES ($1, $2, $3, '', 0) ON CONFLICT (tenant, subject_kind, subject) DO UPDATE SET touched_at = usage_windows.touched_at";
const WINDOW: &str =
    "SELECT slots FROM usage_windows WHERE tenant = $1 AND subject_kind = $2 AND subject = $3";
const KEEP_WINDOW: &str = "UPDATE usage_windows SET slots = $4, touched_at = $5 \
     WHERE tenant = $1 AND subject_kind = $2 AND subject = $3";
const PRUNE_WINDOWS: &str = "DELETE FROM usage_windows WHERE touched_at < $1";

/// A budget that something was recorded for.
#[derive(Clone, Debug)]
pub struct BudgetMark {
    /// Tenant.
    pub tenant: TenantName,
    /// Whose limit.
    pub subject: Subject,
    /// A time in the periods.
    pub at: Timestamp,
    shard: i64,
    marks: i64,
}

#[derive(sqlx::FromRow)]
struct MarkRow {
    tenant: String,
    subject_kind: String,
    subject: String,
    at: i64,
    shard: i64,
    marks: i64,
}

/// Rows among which the marks of one budget are spread.
const SHARDS: i64 = 8;

#[derive(sqlx::FromRow)]
struct Row {
    tenant: String,
    subject_kind: String,
    subject: String,
    requests_per_minute: Option<i64>,
    hour_soft: Option<i64>,
    hour_hard: Option<i64>,
    day_soft: Option<i64>,
    day_hard: Option<i64>,
    month_soft: Option<i64>,
    month_hard: Option<i64>,
    set_by: String,
    set_at: i64,
}

impl Tx {
    /// Sets a limit, in place of the one that the subject has.
    pub async fn set_limit(&mut self, l: &Limit) -> Result<()> {
        let [hour, day, month] = l.budgets;
        let nanos = |cost: Option<Cost>| cost.map(Cost::nanos);
        execute!(
            self,
            SET,
            l.tenant.as_str(),
            l.subject.kind.as_str(),
            &l.subject.id,
            l.requests_per_minute,
            nanos(hour.soft),
            nanos(hour.hard),
            nanos(day.soft),
            nanos(day.hard),
            nanos(month.soft),
            nanos(month.hard),
            &l.set_by,
            l.set_at.micros(),
        )
        .map(|_| ())
    }

    /// Takes a limit away; false when there is none.
    pub async fn delete_limit(&mut self, tenant: &TenantName, subject: &Subject) -> Result<bool> {
        let (kind, id) = (subject.kind.as_str(), &subject.id);
        Ok(execute!(self, DELETE, tenant.as_str(), kind, id)? == 1)
    }

    /// What was admitted of a subject lately. Nobody else reads or changes it before this transaction ends. Callers lock
    /// several in the order of their subjects.
    pub async fn lock_window(&mut self, tenant: &TenantName, subject: &Subject) -> Result<Window> {
        let (kind, id) = (subject.kind.as_str(), &subject.id);
        execute!(self, LOCK_WINDOW, tenant.as_str(), kind, id)?;
        let slots = fetch_in!(self, (String,), WINDOW, tenant.as_str(), kind, id)?;
        let (slots,) = slots.ok_or_else(|| StoreError::Corrupt("a window vanished".into()))?;
        parse("slots", &slots)
    }

    /// Keeps what was admitted.
    pub async fn keep_window(
        &mut self,
        tenant: &TenantName,
        subject: &Subject,
        window: &Window,
        now: Timestamp,
    ) -> Result<()> {
        let (kind, id, slots) = (subject.kind.as_str(), &subject.id, window.to_string());
        let now = now.micros();
        execute!(self, KEEP_WINDOW, tenant.as_str(), kind, id, slots, now).map(|_| ())
    }

    /// Notes that the budgets of a subject, if it has any, are to be looked at, in the periods of `at`; which of the shards
    /// does not matter. Callers mark in the order of subjects and times.
    pub async fn mark_budget(
        &mut self,
        tenant: &TenantName,
        subject: &Subject,
        at: Timestamp,
        shard: i64,
    ) -> Result<()> {
        let (kind, id, shard) = (subject.kind.as_str(), &subject.id, shard.rem_euclid(SHARDS));
        let (tenant, at) = (tenant.as_str(), at.micros());
        execute!(self, MARK, tenant, kind, id, at, shard).map(|_| ())
    }

    /// Takes a mark away, unless there was another one since. Callers take several in the order in which they are made.
    pub async fn unmark_budget(&mut self, m: &BudgetMark) -> Result<()> {
        let (kind, id, at) = (m.subject.kind.as_str(), &m.subject.id, m.at.micros());
        let tenant = m.tenant.as_str();
        execute!(self, UNMARK, tenant, kind, id, at, m.shard, m.marks).map(|_| ())
    }

    /// Forgets windows in which nothing was admitted since `before`; how many.
    pub async fn prune_windows(&mut self, before: Timestamp) -> Result<u64> {
        execute!(self, PRUNE_WINDOWS, before.micros())
    }
}

impl Db {
    /// The limit of a subject.
    pub async fn limit(&self, tenant: &TenantName, subject: &Subject) -> Result<Option<Limit>> {
        let (kind, id) = (subject.kind.as_str(), &subject.id);
        let row = fetch_optional!(self, Row, ONE, tenant.as_str(), kind, id)?;
        row.map(Row::limit).transpose()
    }

    /// Up to `limit` limits of a tenant after the subject of this kind and id.
    pub async fn limits(
        &self,
        tenant: &TenantName,
        (kind, id): (&str, &str),
        limit: i64,
    ) -> Result<Vec<Limit>> {
        let rows = fetch_all!(self, Row, PAGE, tenant.as_str(), kind, id, limit)?;
        rows.into_iter().map(Row::limit).collect()
    }

    /// Up to `limit` budgets to be looked at, those of the oldest time first.
    pub async fn budget_marks(&self, limit: i64) -> Result<Vec<BudgetMark>> {
        let rows = fetch_all!(self, MarkRow, MARKS, limit)?;
        rows.into_iter().map(MarkRow::mark).collect()
    }
}

impl MarkRow {
    fn mark(self) -> Result<BudgetMark> {
        Ok(BudgetMark {
            tenant: parse("tenant", &self.tenant)?,
            subject: Subject {
                kind: parse("subject kind", &self.subject_kind)?,
                id: self.subject,
            },
            at: Timestamp::from_micros(self.at),
            shard: self.shard,
            marks: self.marks,
        })
    }
}

impl Row {
    fn limit(self) -> Result<Limit> {
        let budget = |soft: Option<i64>, hard: Option<i64>| Budget {
            soft: soft.map(Cost::from_nanos),
            hard: hard.map(Cost::from_nanos),
        };
        let kind: SubjectKind = parse("subject kind", &self.subject_kind)?;
        Ok(Limit {
            tenant: parse("tenant", &self.tenant)?,
            subject: Subject {
                kind,
                id: self.subject,
            },
            requests_per_minute: self.requests_per_minute,
            budgets: [
                budget(self.hour_soft, self.hour_hard),
                budget(self.day_soft, self.day_hard),
                budget(self.month_soft, self.month_hard),
            ],
            set_by: self.set_by,
            set_at: Timestamp::from_micros(self.set_at),
        })
    }
}
