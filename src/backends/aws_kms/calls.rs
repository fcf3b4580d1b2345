//! One request to AWS: its turn, its attempts, its end.
//!
//! Every call of this module ends by its deadline. Requests that change something and could do it twice
//! (CreateKey) are repeated only when AWS says that it did nothing.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::rand;
use aws_sdk_kms::{
    Client,
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::Instrument;

use super::{
    errors::{Fault, judge},
    governor::{Class, Governor},
};
use crate::{
    backends::{BackendError, Priority},
    trace,
};

const ATTEMPTS: u32 = 4;
/// A turn that comes within this has not been waited for.
const AT_ONCE: Duration = Duration::from_millis(5);
/// Upper end of the first pause; it doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The client and what bounds it.
pub(super) struct Calls {
    pub(super) client: Client,
    pub(super) governor: Arc<Governor>,
    pub(super) attempt: Duration,
    pub(super) operation: Duration,
}

/// How to make one call.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    /// The IAM action, for people.
    pub(super) name: &'static str,
    pub(super) class: Class,
    pub(super) priority: Priority,
    pub(super) deadline: Instant,
    pub(super) repeat: Repeat,
}

/// When a request may be sent again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Doing it twice is doing it once.
    Always,
    /// Only when AWS says that it did nothing; one attempt has all the time.
    Refused,
}

impl Calls {
    pub(super) async fn run<T, E, F>(
        &self,
        plan: Plan,
        send: impl Fn(Client) -> F + Send + Sync,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>> + Send,
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
        T: Send,
    {
        let began = Instant::now();
        let deadline = plan.deadline.min(began + self.operation);
        let mut attempt = 1;
        let mut is_held = false;
        loop {
            let asked = Instant::now();
            if asked >= deadline {
                return Err(self.late(plan, is_held));
            }
            self.governor
                .admit(plan.class, plan.priority, deadline)
                .instrument(trace::step!("queue"))
                .await?;
            let sent = Instant::now();
            is_held |= sent - asked > AT_ONCE;
            let until = match plan.repeat {
                Repeat::Always => deadline.min(Instant::now() + self.attempt),
                Repeat::Refused => deadline,
            };
            let fault = match timeout_at(until, send(self.client.clone()))
                .instrument(trace::step!(
                    "kms",
                    otel.kind = "client",
                    rpc.method = plan.name
                ))
                .await
            {
                Ok(Ok(answer)) => {
                    record(plan, began, "ok");
                    return Ok(answer);
                }
                Ok(Err(error)) => judge(plan.name, error),
                // An attempt that had all its time is AWS's.
                Err(_) if Instant::now() >= deadline => {
                    let was_short = deadline - sent < self.attempt;
                    self.late(plan, is_held && was_short && plan.repeat == Repeat::Always)
                }
                Err(_) => Fault::Trouble(format!("{} did not answer in time", plan.name)),
            };
            if matches!(fault, Fault::Throttled) {
                self.governor.throttled(plan.class);
                is_held = true;
            }
            let pause = pause_after(attempt);
            let is_last = attempt >= ATTEMPTS || Instant::now() + pause >= deadline;
            if is_last || !may_repeat(&fault, plan.repeat) {
                record(plan, began, outcome(&fault));
                return Err(fault);
            }
            sleep(pause).await;
            attempt += 1;
        }
    }

    /// The caller's time is over, or ours, which is AWS's fault; or the time went by with waiting for a turn.
    fn late(&self, plan: Plan, is_held: bool) -> Fault {
        if is_held {
            return BackendError::Overloaded.into();
        }
        if Instant::now() >= plan.deadline {
            return BackendError::DeadlineExceeded.into();
        }
        Fault::Final(BackendError::Unavailable(format!(
            "{} did not answer within {} ms",
            plan.name,
            self.operation.as_millis()
        )))
    }
}

const fn may_repeat(fault: &Fault, repeat: Repeat) -> bool {
    match fault {
        Fault::Throttled => true,
        Fault::Trouble(_) | Fault::KeyTrouble(_) => matches!(repeat, Repeat::Always),
        Fault::State(_) | Fault::Invalid(_) | Fault::Final(_) => false,
    }
}

const fn outcome(fault: &Fault) -> &'static str {
    match fault {
        Fault::Throttled => "throttled",
        Fault::Trouble(_) | Fault::KeyTrouble(_) => "trouble",
        Fault::State(_) | Fault::Invalid(_) | Fault::Final(_) => "refused",
    }
}

fn record(plan: Plan, began: Instant, outcome: &'static str) {
    metrics::histogram!("claviger_kms_call_seconds", "call" => plan.name, "outcome" => outcome)
        .record(began.elapsed().as_secs_f64());
}

/// Full jitter: anything between nothing and the upper end, so that callers who failed together do not come
/// back together.
pub(super) fn pause_after(attempt: u32) -> Duration {
    let upper = FIRST_PAUSE
        .saturating_mul(1 << attempt.saturating_sub(1).min(10))
        .min(LONGEST_PAUSE);
    let mut random = [0; 4];
    // Without randomness the pause is the longest, which is harmless.
    let part = rand::fill(&mut random).map_or(1.0, |()| {
        f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX)
    });
    upper.mul_f64(part)
}
