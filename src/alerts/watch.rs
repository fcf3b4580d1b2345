//! Looks at usage and budgets, ends alerts that are over, and makes the deliveries of new ones. A scheduled job: one replica
//! at a time, under its term. Whatever it raises or makes is unique, so that it may be cut off and run again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    Alerts,
    rules::{Rule, Thresholds, subject},
};
use crate::{
    error::{Kind, Result},
    model::{
        AlertId, TenantName, Timestamp,
        usage::{Limit, Period, Subject, aligned},
    },
    store::{Alert, BudgetMark, Observed, SUMMARY, Term, Tx, UsageQuery},
};

/// Alerts that are routed in one transaction.
const PAGE: i64 = 100;
/// Usage that is told so late is still looked at.
const LATE: Duration = Duration::from_secs(5 * 60);

/// Things that one rule tells of in one window of one tenant; beyond that their number is told. Whoever can make many of
/// them, such as somebody with many addresses, cannot flood the channels.
const MOST_FINDINGS: i64 = 20;
/// Budgets of one look; the rest are looked at in the next one.
const MOST_MARKS: i64 = 500;

/// An alert about a window, to be raised if it is not yet.
struct Finding {
    alert: Alert,
    ends_at: Timestamp,
}

/// What one rule found in one window of one tenant.
struct Findings {
    rule: Rule,
    tenant: TenantName,
    window: (Timestamp, Timestamp),
    /// The worst first; perhaps not all.
    found: Vec<Finding>,
    in_all: i64,
}

impl Alerts {
    /// Raises what the rules find in the usage of the current window and of those before, and budgets that are reached; ends
    /// alerts that are over.
    pub async fn look_at_usage(&self, term: &Term) -> Result<()> {
        let now = self.clock.now();
        let thresholds = self.thresholds();
        let mut found = Vec::new();
        for rule in Rule::ALL {
            let mut begin = aligned(now.minus(LATE), rule.window());
            while begin <= now {
                found.extend(self.apply(rule, &thresholds, begin, now).await?);
                begin = begin.plus(rule.window());
            }
        }
        let mut marks = self.db.budget_marks(MOST_MARKS).await?;
        let reached = self.reached(&marks, now).await?;
        // The order in which recorders mark.
        marks.sort_by(|a, b| (&a.tenant, &a.subject, a.at).cmp(&(&b.tenant, &b.subject, b.at)));
        let mut tx = self.db.begin().await?;
        tx.hold(term).await?;
        for findings in &found {
            raise(&mut tx, findings, now).await?;
        }
        for finding in &reached {
            tx.raise_alert_until(&finding.alert, finding.ends_at)
                .await?;
        }
        for mark in &marks {
            tx.unmark_budget(mark).await?;
        }
        tx.resolve_alerts(now).await?;
        Ok(tx.commit().await?)
    }

    /// Has what is new delivered to every channel.
    pub async fn route(&self, term: &Term) -> Result<()> {
        let new = self.db.unrouted_alerts(PAGE).await?;
        if new.is_empty() {
            return Ok(());
        }
        let mut tx = self.db.begin().await?;
        tx.hold(term).await?;
        let now = tx.now().await?;
        for alert in new {
            for channel in self.channels.names() {
                tx.add_delivery(alert.id, &alert.tenant, channel, now)
                    .await?;
            }
            tx.note_routed(alert.id, now).await?;
            metrics::counter!("claviger_alerts_total", "kind" => alert.kind).increment(1);
        }
        Ok(tx.commit().await?)
    }

    async fn apply(
        &self,
        rule: Rule,
        thresholds: &Thresholds,
        begin: Timestamp,
        now: Timestamp,
    ) -> Result<Vec<Findings>> {
        let window = (begin, begin.plus(rule.window()));
        let (observed, strangers) = match rule {
            Rule::FailedAuthentications => {
                let least = thresholds.failed_logins;
                let seen = self.db.observed_strangers(window, least, MOST_FINDINGS);
                seen.await?
            }
            Rule::ErrorRate | Rule::RequestRate | Rule::CostRate => {
                let worth = rule.worth_a_look(thresholds);
                let seen = self.db.observed_usage(rule.span(), window, worth);
                (seen.await?, 0)
            }
        };
        let mut told: BTreeMap<TenantName, Vec<(i64, Finding)>> = BTreeMap::new();
        for o in &observed {
            if let Some(text) = rule.judge(o, thresholds) {
                let finding = finding(rule.kind(), o, text, window, now);
                let found = told.entry(o.tenant.clone()).or_default();
                found.push((rule.badness(o), finding));
            }
        }
        let findings = told.into_iter().map(|(tenant, mut found)| {
            found.sort_by_key(|(badness, _)| std::cmp::Reverse(*badness));
            let in_all = i64::try_from(found.len()).unwrap_or(i64::MAX);
            Findings {
                rule,
                tenant,
                window,
                found: found.into_iter().map(|(_, finding)| finding).collect(),
                in_all: in_all.max(strangers),
            }
        });
        Ok(findings.collect())
    }

    /// BUDGET_WARNING and BUDGET_EXHAUSTED of the budgets that something was recorded for, once per period each. What is wrong
    /// with one keeps no other from being looked at.
    async fn reached(&self, marks: &[BudgetMark], now: Timestamp) -> Result<Vec<Finding>> {
        let mut found = Vec::new();
        let times = marks
            .iter()
            .map(|mark| (&mark.tenant, &mark.subject, mark.at));
        for (tenant, subject, at) in times.collect::<BTreeSet<_>>() {
            match self.reached_by(tenant, subject, at, now).await {
                Ok(more) => found.extend(more),
                Err(error) if error.kind() == Kind::Internal => {
                    tracing::error!(%tenant, %subject, ?error, "a budget cannot be looked at");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    async fn reached_by(
        &self,
        tenant: &TenantName,
        subject: &Subject,
        at: Timestamp,
        now: Timestamp,
    ) -> Result<Vec<Finding>> {
        let mut found = Vec::new();
        // Taken away meanwhile: it limits nothing.
        let Some(limit) = self.db.limit(tenant, subject).await? else {
            return Ok(found);
        };
        for (period, budget) in limit.budgets() {
            let (begin, end) = period.around(at);
            let query = UsageQuery {
                tenant: limit.tenant.clone(),
                span: period.span(),
                from: begin,
                to: end,
                only: limit.subject.filter(),
                apart: [false; 3],
            };
            let spent = self.db.usage_totals(&query).await?.cost;
            for (kind, threshold) in [
                ("BUDGET_WARNING", budget.soft),
                ("BUDGET_EXHAUSTED", budget.hard),
            ] {
                if let Some(threshold) = threshold
                    && spent >= threshold
                {
                    let text = format!(
                        "{} has spent {spent} in the {} that began at {begin}; the threshold is {threshold}",
                        limit.subject,
                        period.as_str()
                    );
                    found.push(of_budget(kind, &limit, period, text, (begin, end), now));
                }
            }
        }
        Ok(found)
    }

    fn thresholds(&self) -> Thresholds {
        let config = &self.config;
        Thresholds {
            error_percent: config.error_rate_percent,
            error_min_requests: config.error_rate_min_requests,
            requests: config.requests_per_minute,
            cost: config.hourly_cost(),
            failed_logins: config.failed_authentications,
        }
    }
}

/// Raises as many as one window may tell of. Once the window is over and all is known, it is told how many more there were.
async fn raise(tx: &mut Tx, f: &Findings, now: Timestamp) -> Result<()> {
    let (begin, end) = f.window;
    let kind = f.rule.kind();
    let mut told = tx.alerts_of_window(kind, &f.tenant, end).await?;
    for finding in &f.found {
        if told >= MOST_FINDINGS {
            break;
        }
        let is_new = tx.raise_alert_until(&finding.alert, end).await?;
        told += i64::from(is_new);
    }
    let more = f.in_all.saturating_sub(told);
    if now < end || more <= 0 {
        return Ok(());
    }
    let text = format!(
        "{more} more are over the threshold of {kind} in the window that began at {begin}, besides the {told} that have \
         alerts of their own"
    );
    let window_key = format!("{kind}/{}/more/{}", f.tenant, begin.micros());
    let about = (SUMMARY, f.tenant.as_str());
    let summary = alert(kind, &f.tenant, about, text, window_key, now);
    tx.raise_alert_until(&summary, end).await?;
    Ok(())
}

fn finding(
    kind: &str,
    o: &Observed,
    text: String,
    (begin, end): (Timestamp, Timestamp),
    now: Timestamp,
) -> Finding {
    let ((entity, id), _) = subject(o);
    let (provider, at) = (&o.key.provider, begin.micros());
    let window_key = format!("{kind}/{}/{provider}/{entity}/{id}/{at}", o.tenant);
    Finding {
        alert: alert(kind, &o.tenant, (entity, id), text, window_key, now),
        ends_at: end,
    }
}

fn of_budget(
    kind: &str,
    limit: &Limit,
    period: Period,
    text: String,
    (begin, end): (Timestamp, Timestamp),
    now: Timestamp,
) -> Finding {
    let (tenant, subject) = (&limit.tenant, &limit.subject);
    let entity = match subject.id.as_str() {
        "" => ("tenant", tenant.as_str()),
        id => (subject.kind.entity(), id),
    };
    let window_key = format!(
        "{kind}/{tenant}/{}/{}/{}/{}",
        subject.kind.as_str(),
        subject.id,
        period.as_str(),
        begin.micros()
    );
    Finding {
        alert: alert(kind, tenant, entity, text, window_key, now),
        ends_at: end,
    }
}

fn alert(
    kind: &str,
    tenant: &TenantName,
    (entity, id): (&str, &str),
    text: String,
    window_key: String,
    now: Timestamp,
) -> Alert {
    Alert {
        id: AlertId::random(),
        tenant: tenant.clone(),
        kind: kind.to_owned(),
        entity: entity.to_owned(),
        entity_id: id.to_owned(),
        text,
        raised_at: now,
        window_key,
    }
}
