//! Scheduled work: one replica at a time, under a lease, one job after the other.
//!
//! Every job is idempotent: it looks for rows that are due, and its changes are compare-and-set, so a job that is cut
//! off half-way, or run twice, does no harm. Each of its transactions holds the term, so that a replica that lost the
//! lease cannot commit. A job goes through everything that is due, whatever fails on the way: an item that fails pauses
//! by itself (`Patience`), and a job that fails as a whole is logged, counted and tried again, later and later. Neither
//! keeps any other from running.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    Checkpoints, IdempotencyConfig, Pruning, alerts, checkpoint_audit, complete_grace, destroy_due,
    destroy_tenants, expire_api_keys, expire_requests, keep_standby, leader::Leader, overdue,
    prune, prune_audit, reconcile, rewrap_credentials, rewrap_data_keys,
    rewrap_data_keys::Rewrapping, rotate_credentials, rotate_due, round::Patience, switch_key,
};
use crate::{
    alerts::Alerts,
    clients::ApiKeys,
    clock::Clock,
    destruction::Destructions,
    egress::Egress,
    erasure::Erasures,
    error::{Reason, Result},
    gate::Gate,
    incidents::Incidents,
    keys::Keys,
    rotation::{KekRotations, Rotations},
    store::{Db, Term},
    usage::Usage,
    vault::Vault,
};

/// Section `[scheduler]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SchedulerConfig {
    /// Time between two looks at what is due, in milliseconds. Default 1000.
    pub interval_ms: u64,
    /// How long a term lasts that is not renewed, in seconds. A replica that dies is replaced within it. Default 15.
    pub lease_seconds: u64,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            interval_ms: 1000,
            lease_seconds: 15,
        }
    }
}

impl SchedulerConfig {
    /// Errors: a sentence that names the setting.
    pub fn check(&self) -> Result<(), String> {
        if !(10..=60_000).contains(&self.interval_ms) {
            return Err("scheduler.interval_ms must be 10 to 60000".into());
        }
        if !(2..=300).contains(&self.lease_seconds)
            || self.lease_seconds * 1000 < self.interval_ms * 2
        {
            return Err(
                "scheduler.lease_seconds must be 2 to 300 and at least two intervals".into(),
            );
        }
        Ok(())
    }
}

/// What jobs work with.
pub struct Work {
    /// The one door; jobs enter as `Job` principals.
    pub gate: Arc<Gate>,
    /// For looking up what is due.
    pub db: Db,
    /// The time.
    pub clock: Clock,
    /// Keys.
    pub keys: Arc<Keys>,
    /// Rotations.
    pub rotations: Arc<Rotations>,
    /// Rotations of the KEK.
    pub kek_rotations: Arc<KekRotations>,
    /// Where the rewrapping of data keys is.
    pub rewrapping: Rewrapping,
    /// With what failed lately.
    pub patience: Patience,
    /// Destructions.
    pub destructions: Arc<Destructions>,
    /// Destructions of the keys of tenants.
    pub erasures: Arc<Erasures>,
    /// API keys.
    pub api_keys: Arc<ApiKeys>,
    /// How long answers are kept.
    pub idempotency: IdempotencyConfig,
    /// Incidents.
    pub incidents: Arc<Incidents>,
    /// The way out.
    pub egress: Arc<Egress>,
    /// Writes checkpoints of the audit log, where that is configured.
    pub checkpoints: Option<Checkpoints>,
    /// Prunes the audit log, where that is configured.
    pub pruning: Option<Pruning>,
    /// The vault.
    pub vault: Arc<Vault>,
    /// Usage and limits.
    pub usage: Arc<Usage>,
    /// Alerts.
    pub alerts: Arc<Alerts>,
}

type Run = for<'a> fn(&'a Work, &'a Term) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// One kind of scheduled work.
struct Job {
    /// In logs and metrics.
    name: &'static str,
    /// Time between two runs; shorter than the interval means at every look.
    every: Duration,
    run: Run,
    /// Not before this.
    next: Option<Instant>,
    /// Failures in a row.
    failures: u32,
}

/// The longest wait after failures. Each failed change leaves an audit row, so they must not come at every look.
const MAX_BACK_OFF: Duration = Duration::from_secs(60);

const fn job(name: &'static str, every: Duration, run: Run) -> Job {
    Job {
        name,
        every,
        run,
        next: None,
        failures: 0,
    }
}

/// Every job, in the order in which they run. Zero: at every look.
fn jobs() -> Vec<Job> {
    let at_every_look = Duration::ZERO;
    vec![
        // First: a key without an ACTIVE version serves nobody.
        job("switch_key", at_every_look, |work, term| {
            Box::pin(switch_key::run(work, term))
        }),
        job("expire_requests", at_every_look, |work, term| {
            Box::pin(expire_requests::run(work, term))
        }),
        job("complete_grace", at_every_look, |work, term| {
            Box::pin(complete_grace::run(work, term))
        }),
        job("rotate_due", at_every_look, |work, term| {
            Box::pin(rotate_due::run(work, term))
        }),
        job("keep_standby", at_every_look, |work, term| {
            Box::pin(keep_standby::run(work, term))
        }),
        // After the work that makes some of them unnecessary.
        job("overdue", at_every_look, |work, term| {
            Box::pin(overdue::run(work, term))
        }),
        job("expire_api_keys", at_every_look, |work, term| {
            Box::pin(expire_api_keys::run(work, term))
        }),
        job("warn_api_keys", at_every_look, |work, term| {
            Box::pin(expire_api_keys::warn(work, term))
        }),
        job("reconcile", Duration::from_secs(5), |work, term| {
            Box::pin(reconcile::run(work, term))
        }),
        job("destroy_due", Duration::ZERO, |work, term| {
            Box::pin(destroy_due::run(work, term))
        }),
        job("destroy_tenants", Duration::ZERO, |work, term| {
            Box::pin(destroy_tenants::run(work, term))
        }),
        job("look_at_usage", Duration::from_secs(5), |work, term| {
            Box::pin(alerts::look_at_usage(work, term))
        }),
        // After everything that raises any.
        job("route_alerts", at_every_look, |work, term| {
            Box::pin(alerts::route(work, term))
        }),
        job("checkpoint_audit", at_every_look, |work, term| {
            Box::pin(checkpoint_audit::run(work, term))
        }),
        job("prune", Duration::from_secs(60), |work, term| {
            Box::pin(prune::run(work, term))
        }),
        job("prune_audit", at_every_look, |work, term| {
            Box::pin(prune_audit::run(work, term))
        }),
        job(
            "rewrap_credentials",
            Duration::from_secs(2),
            |work, term| Box::pin(rewrap_credentials::run(work, term)),
        ),
        job("begin_credential_rotations", at_every_look, |work, term| {
            Box::pin(rotate_credentials::begin(work, term))
        }),
        job("rotate_credentials", at_every_look, |work, term| {
            Box::pin(rotate_credentials::run(work, term))
        }),
        job(
            "remind_credentials",
            Duration::from_secs(5),
            |work, term| Box::pin(rotate_credentials::remind(work, term)),
        ),
        // Last: in the course of a rotation of the KEK it uses up its slice of time at every look.
        job("rewrap_data_keys", at_every_look, |work, term| {
            Box::pin(rewrap_data_keys::run(work, term))
        }),
    ]
}

/// Does scheduled work until `shutdown` ends.
pub async fn run_scheduler(
    work: Work,
    replica: String,
    config: SchedulerConfig,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = std::pin::pin!(shutdown);
    let ttl = Duration::from_secs(config.lease_seconds);
    let mut leader = Leader::new(work.db.clone(), work.clock.clone(), &replica, ttl);
    let mut jobs = jobs();
    let mut tick = interval(Duration::from_millis(config.interval_ms));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = &mut shutdown => return leader.resign().await,
            _ = tick.tick() => {}
        }
        for job in &mut jobs {
            // Asked before each: a slow job must not run the term out for the next.
            match leader.term().await {
                Ok(Some(term)) => job.run_if_due(&work, &term).await,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "lease not taken; no scheduled work for now");
                    break;
                }
            }
        }
    }
}

impl Job {
    async fn run_if_due(&mut self, work: &Work, term: &Term) {
        if self.next.is_some_and(|next| Instant::now() < next) {
            return;
        }
        let result = (self.run)(work, term).await;
        let outcome = match &result {
            Ok(()) => "success",
            Err(error) if error.reason() == Reason::LeaseLost => "lease_lost",
            Err(error) => {
                tracing::error!(
                    job = self.name,
                    ?error,
                    "scheduled work failed; it is tried again"
                );
                "failure"
            }
        };
        self.failures = match &result {
            Ok(()) => 0,
            Err(_) => self.failures.saturating_add(1),
        };
        self.next = Some(Instant::now() + self.every.max(back_off(self.failures)));
        metrics::counter!("claviger_job_runs_total", "job" => self.name, "outcome" => outcome)
            .increment(1);
    }
}

/// Nothing after a success; then one second, two, four, to a minute.
fn back_off(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        n => Duration::from_secs(1 << (n - 1).min(6)).min(MAX_BACK_OFF),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_tried_again_later_and_later_and_never_after_more_than_a_minute() {
        let waits: Vec<_> = (0..9).map(|n| back_off(n).as_secs()).collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(back_off(u32::MAX), MAX_BACK_OFF);
    }
}
