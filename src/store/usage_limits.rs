//! Tables `usage_limits` and `usage_windows`: how much may be used, and what was admitted lately.

use super::{
    Db, Result, StoreError, Tx,
    engine::{execute, fetch_all, fetch_in},
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
// Those whose subject used something since $1, and those that were set since then.
const BUDGETS_IN_USE: &str = "SELECT tenant, subject_kind, subject, requests_per_minute, hour_soft, hour_hard, day_soft, \
     day_hard, month_soft, month_hard, set_by, set_at FROM usage_limits l WHERE (hour_soft IS NOT NULL OR hour_hard IS NOT NULL \
     OR day_soft IS NOT NULL OR day_hard IS NOT NULL OR month_soft IS NOT NULL OR month_hard IS NOT NULL) \
     AND (set_at >= $1 OR EXISTS (SELECT 1 FROM usage_aggregates u WHERE u.tenant = l.tenant AND u.span = 'MINUTE' \
     AND u.begins_at >= $1 AND (l.subject_kind = 'TENANT' OR (l.subject_kind = 'CREDENTIAL' AND u.credential_id = l.subject) \
     OR (l.subject_kind = 'PROVIDER' AND u.provider = l.subject) \
     OR (l.subject_kind = 'PRINCIPAL' AND u.principal_id = l.subject)))) ORDER BY tenant, subject_kind, subject";
// Writes first, so that whoever asks at the same time waits, and reads what this transaction has left.
const LOCK_WINDOW: &str = "INSERT INTO usage_windows (tenant, subject_kind, subject, slots, touched_at) \
     VALUES ($1, $2, $3, '', 0) ON CONFLICT (tenant, subject_kind, subject) DO UPDATE SET touched_at = usage_windows.touched_at";
const WINDOW: &str =
    "SELECT slots FROM usage_windows WHERE tenant = $1 AND subject_kind = $2 AND subject = $3";
const KEEP_WINDOW: &str = "UPDATE usage_windows SET slots = $4, touched_at = $5 \
     WHERE tenant = $1 AND subject_kind = $2 AND subject = $3";
const PRUNE_WINDOWS: &str = "DELETE FROM usage_windows WHERE touched_at < $1";

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

    /// The limit of a subject.
    pub async fn limit(&mut self, tenant: &TenantName, subject: &Subject) -> Result<Option<Limit>> {
        let (kind, id) = (subject.kind.as_str(), &subject.id);
        let row = fetch_in!(self, Row, ONE, tenant.as_str(), kind, id)?;
        row.map(Row::limit).transpose()
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

    /// Forgets windows in which nothing was admitted since `before`; how many.
    pub async fn prune_windows(&mut self, before: Timestamp) -> Result<u64> {
        execute!(self, PRUNE_WINDOWS, before.micros())
    }
}

impl Db {
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

    /// The limits of all tenants that have a budget, and whose subject used something since `since`, or that were set since
    /// then.
    pub async fn budgets_in_use(&self, since: Timestamp) -> Result<Vec<Limit>> {
        let rows = fetch_all!(self, Row, BUDGETS_IN_USE, since.micros())?;
        rows.into_iter().map(Row::limit).collect()
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
