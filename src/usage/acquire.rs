//! May a call to a provider be made now? (R-USE-2)
//!
//! The budgets are looked at first. A budget knows what was recorded, not what is under way: calls that began before it was
//! used up may still cost something, so nothing is gained by holding anything meanwhile. Then one transaction locks the
//! window of every limit that the call is part of, in one order, and admits the call to all of them or to none. So it holds
//! across replicas and across calls at the same moment.

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
    store::UsageQuery,
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
        // Sums of a month are many rows: nobody waits for a window meanwhile.
        let mut limits = Vec::new();
        for subject in &subjects {
            limits.extend(self.db.limit(tenant, subject).await?);
        }
        let warnings = self.judge(&limits, asked.cost).await?;
        let rates = subjects.into_iter().filter_map(|subject| {
            let own = limits.iter().find(|limit| limit.subject == subject);
            let own = own.and_then(|limit| limit.requests_per_minute);
            let rate = own.or_else(|| self.default_rate(&subject, &asked.key))?;
            Some((subject, rate))
        });
        let remaining = self.admit(tenant, rates, asked.requests).await?;
        Ok(Acquired {
            remaining,
            warnings,
        })
    }

    /// Admits requests to all of these windows or to none; how many more the narrowest takes. Errors: RATE_LIMITED.
    async fn admit(
        &self,
        tenant: &TenantName,
        rates: impl Iterator<Item = (Subject, i64)>,
        requests: i64,
    ) -> Result<i64> {
        let mut tx = self.db.begin().await?;
        let mut windows = Vec::new();
        for (subject, rate) in rates {
            let window = tx.lock_window(tenant, &subject).await?;
            windows.push((subject, rate, window));
        }
        // Only now: whoever waited for a window must not count by a time from before.
        let now = tx.now().await?;
        let mut is_set_back = false;
        for (subject, _, window) in &mut windows {
            if window.set_back(now) {
                is_set_back = true;
                tx.keep_window(tenant, subject, window, now).await?;
            }
        }
        let mut remaining = i64::MAX;
        for (subject, rate, window) in &mut windows {
            match window.admit(now, requests, *rate) {
                Ok(left) => remaining = remaining.min(left),
                Err(wait) => {
                    // Or its seconds would lie ahead for as long as it is full.
                    if is_set_back {
                        tx.commit().await?;
                    }
                    return Err(rate_limited(subject, *rate, wait));
                }
            }
        }
        for (subject, _, window) in &windows {
            tx.keep_window(tenant, subject, window, now).await?;
        }
        tx.commit().await?;
        Ok(remaining)
    }

    /// Which budgets are over their soft threshold. Errors: BUDGET_EXHAUSTED.
    async fn judge(&self, limits: &[Limit], cost: Cost) -> Result<Vec<Warning>> {
        let mut warnings = Vec::new();
        if limits.iter().all(|limit| limit.budgets().next().is_none()) {
            return Ok(warnings);
        }
        let now = self.db.now().await?;
        for limit in limits {
            for (period, budget) in limit.budgets() {
                let (begin, end) = period.around(now);
                let query = of(limit, period, begin, end);
                let spent = self.db.usage_totals(&query).await?.cost;
                warnings.extend(warning(limit, (period, end), budget, (spent, cost), now)?);
            }
        }
        Ok(warnings)
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

/// Is a budget over its soft threshold? Errors: BUDGET_EXHAUSTED.
fn warning(
    limit: &Limit,
    (period, end): (Period, Timestamp),
    budget: Budget,
    (spent, cost): (Cost, Cost),
    now: Timestamp,
) -> Result<Option<Warning>> {
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
    let is_warned = budget.soft.is_some_and(|soft| spent >= soft);
    Ok(is_warned.then(|| Warning {
        subject: limit.subject.clone(),
        period,
        budget,
        spent,
    }))
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
