//! May a call to a provider be made now? (R-USE-2)
//!
//! One transaction locks the window of every limit that the call is part of, in one order, looks at the budgets, and admits
//! the call to all of them or to none. So it holds across replicas and across calls at the same moment. A budget knows what
//! was recorded, not what is under way: calls that began before it was used up may still cost something.

use super::{
    Usage,
    record::{invalid, unknown_principal},
};
use crate::{
    error::{Error, Reason, Result},
    gate::Permit,
    model::{
        Action, TenantName, Timestamp,
        usage::{Budget, Cost, Limit, Period, Subject, SubjectKind, UsageKey},
    },
    store::{Tx, UsageQuery},
};

/// Most requests of one call.
const MOST: i64 = 10_000;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Acquire {
    /// Who will use what.
    pub key: UsageKey,
    /// How many requests.
    pub requests: i64,
    /// What they may cost, as far as that is known.
    pub cost: Cost,
}

/// A budget over its soft threshold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// What it is of.
    pub subject: Subject,
    /// For which time.
    pub period: Period,
    /// The budget.
    pub budget: Budget,
    /// What was spent.
    pub spent: Cost,
}

/// The call may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquired {
    /// Requests that the narrowest window still takes.
    pub remaining: i64,
    /// Budgets to look after.
    pub warnings: Vec<Warning>,
}

impl Usage {
    /// Admits requests, all or none.
    ///
    /// Errors: RATE_LIMITED and BUDGET_EXHAUSTED, with the time to wait where waiting helps; INVALID_FIELD;
    /// PRINCIPAL_NOT_FOUND.
    pub async fn acquire(
        &self,
        permit: &Permit,
        tenant: &TenantName,
        asked: &Acquire,
    ) -> Result<Acquired> {
        permit.covers_tenant(Action::AcquireUsage, tenant)?;
        if !(1..=MOST).contains(&asked.requests) {
            return Err(invalid("requests must be 1 to 10000"));
        }
        if !self.is_of(tenant, &asked.key.principal).await? {
            return Err(unknown_principal());
        }
        let mut subjects = Subject::of(&asked.key);
        subjects.sort();
        let mut tx = self.db.begin().await?;
        let mut windows = Vec::new();
        let mut limits = Vec::new();
        for subject in subjects {
            let limit = tx.limit(tenant, &subject).await?;
            let rate = limit.as_ref().and_then(|limit| limit.requests_per_minute);
            if let Some(rate) = rate.or_else(|| self.default_rate(&subject, &asked.key)) {
                let window = tx.lock_window(tenant, &subject).await?;
                windows.push((subject, rate, window));
            }
            limits.extend(limit);
        }
        // Only now: whoever waited for a window must not count by a time from before.
        let now = tx.now().await?;
        let mut warnings = Vec::new();
        for limit in &limits {
            warnings.extend(judge(&mut tx, limit, asked.cost, now).await?);
        }
        let mut remaining = i64::MAX;
        for (subject, rate, window) in &mut windows {
            let left = window.admit(now, asked.requests, *rate);
            let left = left.map_err(|wait| rate_limited(subject, *rate, wait))?;
            remaining = remaining.min(left);
        }
        for (subject, _, window) in &windows {
            tx.keep_window(tenant, subject, window, now).await?;
        }
        tx.commit().await?;
        Ok(Acquired {
            remaining,
            warnings,
        })
    }

    /// A credential has a rate without being given one; so has a principal that uses none.
    fn default_rate(&self, subject: &Subject, key: &UsageKey) -> Option<i64> {
        let holds = match subject.kind {
            SubjectKind::Credential => true,
            SubjectKind::Principal => key.credential.is_empty(),
            SubjectKind::Provider | SubjectKind::Tenant => false,
        };
        holds.then_some(self.config.default_requests_per_minute)
    }
}

/// Which budgets of a limit are over their soft threshold. Errors: BUDGET_EXHAUSTED.
async fn judge(tx: &mut Tx, limit: &Limit, cost: Cost, now: Timestamp) -> Result<Vec<Warning>> {
    let mut warnings = Vec::new();
    for (period, budget) in limit.budgets() {
        let (begin, end) = period.around(now);
        let spent = tx.usage_totals(&of(limit, period, begin, end)).await?.cost;
        let is_over = |hard: Cost| spent >= hard || spent.plus(cost) > hard;
        if budget.hard.is_some_and(is_over) {
            return Err(Error::new(
                Reason::BudgetExhausted,
                format!(
                    "{} has spent {spent} this {}, and its budget is {}; a new one begins at {end}",
                    limit.subject,
                    period.as_str(),
                    budget.hard.unwrap_or_default(),
                ),
            )
            .retry_after(end.since(now)));
        }
        if budget.soft.is_some_and(|soft| spent >= soft) {
            warnings.push(Warning {
                subject: limit.subject.clone(),
                period,
                budget,
                spent,
            });
        }
    }
    Ok(warnings)
}

/// What adds up to a budget.
fn of(limit: &Limit, period: Period, from: Timestamp, to: Timestamp) -> UsageQuery {
    UsageQuery {
        tenant: limit.tenant.clone(),
        span: period.span(),
        from,
        to,
        only: limit.subject.filter(),
        apart: [false; 3],
    }
}

fn rate_limited(subject: &Subject, rate: i64, wait: Option<std::time::Duration>) -> Error {
    let error = |text| Error::new(Reason::RateLimited, text);
    match wait {
        Some(wait) => error(format!(
            "{subject} has made its {rate} requests of this minute; retry later"
        ))
        .retry_after(wait),
        None => error(format!(
            "{subject} may make {rate} requests in a minute, fewer than these; ask for fewer at a time"
        )),
    }
}
