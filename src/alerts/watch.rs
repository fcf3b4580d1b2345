//! Looks at usage and budgets, ends alerts that are over, and makes the deliveries of new ones. A scheduled job: one replica
//! at a time, under its term. Whatever it raises or makes is unique, so that it may be cut off and run again.

use std::time::Duration;

use super::{
    Alerts,
    rules::{Rule, Thresholds, subject},
};
use crate::{
    error::Result,
    model::{
        AlertId, TenantName, Timestamp,
        usage::{Limit, Period, aligned},
    },
    store::{Alert, Observed, Term, UsageQuery},
};

/// Alerts that are routed in one transaction.
const PAGE: i64 = 100;
/// Usage that is told so late is still looked at.
const LATE: Duration = Duration::from_secs(5 * 60);

/// An alert about a window, to be raised if it is not yet.
struct Finding {
    alert: Alert,
    ends_at: Timestamp,
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
        // What nobody uses reaches nothing.
        for limit in self.db.budgets_in_use(now.minus(LATE)).await? {
            found.extend(self.reached(&limit, now).await?);
        }
        let mut tx = self.db.begin().await?;
        tx.hold(term).await?;
        for finding in &found {
            tx.raise_alert_until(&finding.alert, finding.ends_at)
                .await?;
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
    ) -> Result<Vec<Finding>> {
        let end = begin.plus(rule.window());
        let worth = rule.worth_a_look(thresholds);
        let window = (begin, end);
        let observed = self.db.observed_usage(rule.span(), window, worth).await?;
        let told = observed.iter().filter_map(|o| {
            let text = rule.judge(o, thresholds)?;
            Some(finding(rule.kind(), o, text, window, now))
        });
        Ok(told.collect())
    }

    /// BUDGET_WARNING and BUDGET_EXHAUSTED, once per period each.
    async fn reached(&self, limit: &Limit, now: Timestamp) -> Result<Vec<Finding>> {
        let mut found = Vec::new();
        for (period, budget) in limit.budgets() {
            let (begin, end) = period.around(now);
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
                        "{} has spent {spent} this {}; the threshold is {threshold}",
                        limit.subject,
                        period.as_str()
                    );
                    found.push(of_budget(kind, limit, period, text, (begin, end), now));
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
