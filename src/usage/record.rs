//! Recording: an event counts once, whichever daemon it comes to and however often.
//!
//! The mark of the event and the sums that it is added to are one transaction, and so is the note that a budget is to be
//! looked at. Marks are left in the order of their ids, sums are changed in the order of their keys, and budgets are noted in
//! the order of their subjects, so that two batches at the same time wait for each other at most one way round.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use aws_lc_rs::digest::{Context, SHA256};

use super::Usage;
use crate::{
    error::{Error, Reason, Result},
    gate::Permit,
    model::{
        Action, PrincipalId, TenantName, Timestamp,
        usage::{Cost, Span, Subject, UsageEvent, UsageKey, Used},
    },
    store::{EventMark, Tx},
};

/// How far ahead the clock of a recorder may be.
const AHEAD: Duration = Duration::from_secs(5 * 60);
/// How much longer the id of an event is kept than the event is taken, for clocks that differ.
const SLACK: Duration = Duration::from_secs(60 * 60);

/// What became of an event that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It counts.
    New,
    /// It counted already.
    Duplicate,
}

/// Sums to be added to, in the order in which they are locked.
pub(super) type Sums = BTreeMap<(Span, Timestamp, UsageKey), Used>;

/// Adds a use to the sums of every span.
fn add(sums: &mut Sums, at: Timestamp, key: &UsageKey, used: &Used) {
    add_spans(sums, &Span::ALL, at, key, used);
}

/// A time that stands for every period in which `at` lies.
pub(super) fn budget_time(at: Timestamp) -> Timestamp {
    Span::Hour.begin(at)
}

/// As `add`, for these spans.
pub(super) fn add_spans(
    sums: &mut Sums,
    spans: &[Span],
    at: Timestamp,
    key: &UsageKey,
    used: &Used,
) {
    for span in spans {
        let sum = sums.entry((*span, span.begin(at), key.clone()));
        sum.or_default().add(used);
    }
}

impl Usage {
    /// Records events; those that are errors already stay what they are. One answer for each, in their order.
    ///
    /// Errors of an event: INVALID_FIELD for a time that is too old or in the future; PRINCIPAL_NOT_FOUND;
    /// EVENT_ID_REUSED. Errors of all: DATABASE_UNAVAILABLE, and nothing is recorded.
    pub async fn record(
        &self,
        permit: &Permit,
        tenant: &TenantName,
        events: Vec<Result<UsageEvent>>,
    ) -> Result<Vec<Result<Recorded>>> {
        permit.covers_tenant(Action::RecordUsage, tenant)?;
        let mut events: Vec<_> = events
            .into_iter()
            .map(|event| event.and_then(|event| self.timely(event)))
            .collect();
        self.expect_principals(tenant, &mut events).await?;
        let mut order: Vec<usize> = (0..events.len()).collect();
        order.sort_by(|a, b| id(&events, *a).cmp(id(&events, *b)));
        let mut outcomes = HashMap::new();
        let (mut sums, mut budgets) = (Sums::new(), BTreeSet::new());
        let mut tx = self.db.begin().await?;
        for index in order {
            let Some(Ok(event)) = events.get(index) else {
                continue;
            };
            let outcome = self.mark(&mut tx, tenant, event).await?;
            if matches!(outcome, Ok(Recorded::New)) {
                add(&mut sums, event.at, &event.key, &event.used);
                if event.used.cost > Cost::ZERO {
                    let at = budget_time(event.at);
                    let subjects = Subject::of(&event.key).into_iter();
                    budgets.extend(subjects.map(|subject| (subject, at)));
                }
            }
            outcomes.insert(index, outcome);
        }
        for ((span, begins_at, key), used) in &sums {
            tx.add_usage(tenant, (*span, *begins_at), key, used).await?;
        }
        let shard = self.clock.now().micros();
        for (subject, at) in &budgets {
            tx.mark_budget(tenant, subject, *at, shard).await?;
        }
        tx.commit().await?;
        let outcome = |(index, event): (usize, Result<UsageEvent>)| {
            let outcome = event.map(|_| outcomes.remove(&index));
            outcome?.unwrap_or_else(|| Err(Error::internal("an event was left out")))
        };
        Ok(events.into_iter().enumerate().map(outcome).collect())
    }

    async fn mark(
        &self,
        tx: &mut Tx,
        tenant: &TenantName,
        event: &UsageEvent,
    ) -> Result<Result<Recorded>> {
        let until = event.at.max(self.clock.now());
        let until = until.plus(self.config.event_retention()).plus(SLACK);
        let digest = digest(event);
        Ok(
            match tx.mark_usage(tenant, &event.id, &digest, until).await? {
                EventMark::New => Ok(Recorded::New),
                EventMark::Same => Ok(Recorded::Duplicate),
                EventMark::Other => Err(Error::new(
                    Reason::EventIdReused,
                    "another event was recorded under this id; it still counts and this one does not; give each event an id of \
                 its own",
                )),
            },
        )
    }

    /// An event older than the ids that are kept could come a second time.
    fn timely(&self, event: UsageEvent) -> Result<UsageEvent> {
        let now = self.clock.now();
        if event.at > now.plus(AHEAD) {
            return Err(invalid("time is more than 5 minutes ahead"));
        }
        if now.since(event.at) > self.config.event_retention() {
            return Err(invalid(format!(
                "time is more than {} days ago; whether it was recorded already is not known any more",
                self.config.event_retention_days
            )));
        }
        Ok(event)
    }

    /// Usage of somebody who is not of this tenant, or nobody, is refused.
    async fn expect_principals(
        &self,
        tenant: &TenantName,
        events: &mut [Result<UsageEvent>],
    ) -> Result<()> {
        let mut known: HashMap<String, bool> = HashMap::new();
        for event in events.iter_mut() {
            let Ok(UsageEvent { key, .. }) = event else {
                continue;
            };
            let is_here = match known.get(&key.principal) {
                Some(is_here) => *is_here,
                None => {
                    let is_here = self.is_of(tenant, &key.principal).await?;
                    known.insert(key.principal.clone(), is_here);
                    is_here
                }
            };
            if !is_here {
                *event = Err(unknown_principal());
            }
        }
        Ok(())
    }

    /// Is this the id of a principal of the tenant?
    pub(super) async fn is_of(&self, tenant: &TenantName, id: &str) -> Result<bool> {
        let Ok(id) = id.parse::<PrincipalId>() else {
            return Ok(false);
        };
        let found = self.db.principal(id).await?;
        Ok(found.is_some_and(|principal| principal.tenant == *tenant))
    }
}

/// What is said of an id that is nobody's, and of one of another tenant.
pub(super) fn unknown_principal() -> Error {
    Error::new(
        Reason::PrincipalNotFound,
        "principal_id is no principal of this tenant",
    )
}

pub(super) fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Reason::InvalidField, message)
}

fn id(events: &[Result<UsageEvent>], index: usize) -> &str {
    match events.get(index) {
        Some(Ok(event)) => &event.id,
        Some(Err(_)) | None => "",
    }
}

/// Of everything the event says. Each text is preceded by its length, so two events never look the same.
fn digest(event: &UsageEvent) -> Vec<u8> {
    let mut digest = Context::new(&SHA256);
    let UsageKey {
        provider,
        credential,
        principal,
    } = &event.key;
    for text in [provider, credential, principal] {
        digest.update(&(text.len() as u64).to_be_bytes());
        digest.update(text.as_bytes());
    }
    let used = &event.used;
    for number in [
        used.requests,
        used.errors,
        used.tokens_in,
        used.tokens_out,
        used.cost.nanos(),
    ] {
        digest.update(&number.to_be_bytes());
    }
    digest.finish().as_ref().to_vec()
}
