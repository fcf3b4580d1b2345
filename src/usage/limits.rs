//! Limits: set, listed, taken away.

use serde_json::{Value, json};

use super::{
    Usage,
    record::{budget_time, invalid, unknown_principal},
};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Permit, Recorded},
    model::{
        Action, TenantName,
        usage::{Budget, Cost, Limit, OWN_PREFIX, Period, Subject, SubjectKind},
    },
};

impl Usage {
    /// Sets a limit, in place of the one that its subject has.
    ///
    /// Errors: INVALID_FIELD for a limit that says nothing, or that is none; PRINCIPAL_NOT_FOUND.
    pub async fn set_limit(
        &self,
        permit: AdminPermit,
        mut limit: Limit,
    ) -> Result<Recorded<Limit>> {
        permit
            .permit()
            .covers_tenant(Action::SetLimit, &limit.tenant)?;
        check(&limit)?;
        let subject = &limit.subject;
        if subject.kind == SubjectKind::Principal && !self.is_of(&limit.tenant, &subject.id).await?
        {
            return Err(unknown_principal());
        }
        limit.set_by = permit.caller().principal.id.to_string();
        limit.set_at = self.clock.now();
        let details = details(&limit);
        let mut mutation = permit.begin().await?;
        mutation.on("usage_limit", name(&limit.subject));
        let (tx, now) = (mutation.tx(), self.clock.now());
        tx.set_limit(&limit).await?;
        // It may be reached already.
        tx.mark_budget(&limit.tenant, &limit.subject, budget_time(now), 0)
            .await?;
        mutation.record(limit, details).await
    }

    /// Takes a limit away. Errors: LIMIT_NOT_FOUND.
    pub async fn delete_limit(
        &self,
        permit: AdminPermit,
        tenant: TenantName,
        subject: Subject,
    ) -> Result<Recorded<()>> {
        permit
            .permit()
            .covers_tenant(Action::DeleteLimit, &tenant)?;
        let mut mutation = permit.begin().await?;
        mutation.on("usage_limit", name(&subject));
        if !mutation.tx().delete_limit(&tenant, &subject).await? {
            return Err(Error::new(
                Reason::LimitNotFound,
                format!("{subject} has no limit of its own"),
            ));
        }
        mutation.record((), json!({})).await
    }

    /// Up to `limit` limits of a tenant after the subject of this kind and id.
    pub async fn limits(
        &self,
        permit: &Permit,
        tenant: &TenantName,
        after: (&str, &str),
        limit: i64,
    ) -> Result<Vec<Limit>> {
        permit.covers_tenant(Action::ListLimits, tenant)?;
        Ok(self.db.limits(tenant, after, limit).await?)
    }
}

fn check(limit: &Limit) -> Result<()> {
    if limit.requests_per_minute.is_none() && limit.budgets().next().is_none() {
        return Err(invalid(
            "a limit needs requests_per_minute or a budget; DeleteLimit takes one away",
        ));
    }
    let rates = 1..=1_000_000;
    if limit
        .requests_per_minute
        .is_some_and(|rate| !rates.contains(&rate))
    {
        return Err(invalid("requests_per_minute must be 1 to 1000000"));
    }
    for (period, budget) in limit.budgets() {
        if matches!((budget.soft, budget.hard), (Some(soft), Some(hard)) if soft > hard) {
            return Err(invalid(format!(
                "the soft threshold of a {} must not be above the hard one",
                period.as_str()
            )));
        }
    }
    let subject = &limit.subject;
    if subject.kind == SubjectKind::Provider && subject.id.starts_with(OWN_PREFIX) {
        return Err(invalid("the daemon's own calls have no limit of this kind"));
    }
    Ok(())
}

/// How the audit log names it.
fn name(subject: &Subject) -> String {
    match subject.id.as_str() {
        "" => subject.kind.as_str().to_owned(),
        id => format!("{}/{id}", subject.kind.as_str()),
    }
}

fn details(limit: &Limit) -> Value {
    let cost = |cost: Option<Cost>| cost.map(|cost| cost.to_string());
    let budgets = limit.budgets().map(|(period, Budget { soft, hard })| {
        let name = |period: Period| period.as_str().to_owned();
        (
            name(period),
            json!({"soft": cost(soft), "hard": cost(hard)}),
        )
    });
    json!({
        "requests_per_minute": limit.requests_per_minute,
        "budgets": budgets.collect::<serde_json::Map<_, _>>(),
    })
}
