//! Looks for what interrupted attempts to generate a key pair left on the devices.
//!
//! An intent that stays PENDING belongs to a call that crashed or failed. Nothing under its id: the attempt FAILED.
//! Something: it is QUARANTINED, with an alert. Nothing is deleted here, and nothing is taken into use; its tenant may
//! adopt it by `AdoptKey`. Interrupted destructions are finished by `destroy_due`.
//!
//! A device that hung may finish after that what it had begun, when the call's thread or another replica is not there to
//! remove it. So what FAILED is looked for again, at twice its age each time, for a week.

use std::time::Duration;

use serde_json::json;

use super::Work;
use crate::{
    audit,
    error::{Error, Reason, Result},
    gate::{AdminPermit, Recorded},
    model::{Action, AlertId, Job, Resource, Timestamp, time::micros},
    store::{Alert, Intent, IntentState, Term},
};

/// Intents of one run; the next run takes the next ones.
const PAGE: i64 = 100;
/// Those that FAILED and are looked for again; fewer, because hardly ever is there anything.
const AGAIN: i64 = 10;
/// What appeared by then, has appeared.
const GIVEN_UP: Duration = Duration::from_secs(7 * 24 * 3600);

/// Settles the intents that have been pending for too long. One that fails keeps no other from being settled.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    let now = work.db.now().await?.micros();
    let before = now.saturating_sub(micros(work.keys.reconcile_after()));
    let stale = work
        .db
        .stale_intents(Timestamp::from_micros(before), PAGE)
        .await?;
    let mut outcome = Ok(());
    for intent in stale {
        let id = intent.id;
        if let Err(error) = settle(work, term, intent).await {
            if error.reason() == Reason::LeaseLost {
                return Err(error);
            }
            tracing::warn!(intent = %id, ?error, "intent not settled; it is tried again");
            outcome = Err(error);
        }
    }
    look_again(work, term).await?;
    let quarantined = work.db.quarantined_intents().await?.len();
    metrics::gauge!("claviger_leftovers_quarantined").set(quarantined as f64);
    outcome
}

/// Looks again for what attempts that FAILED may have left meanwhile. A look that fails is as good as none found: the
/// next one follows, and a backend that is away keeps nobody's turn.
async fn look_again(work: &Work, term: &Term) -> Result<()> {
    let doubtful = work.db.doubtful_intents(micros(GIVEN_UP), AGAIN).await?;
    for intent in doubtful {
        let id = intent.id;
        match work.keys.left_by(&intent).await {
            Ok(found) if !found.is_empty() => {
                conclude(work, term, intent, found.join(", ")).await?;
                continue;
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(intent = %id, ?error, "not looked for; it is tried again"),
        }
        work.db.looked_for(id).await?;
    }
    Ok(())
}

async fn settle(work: &Work, term: &Term, intent: Intent) -> Result<()> {
    let found = work.keys.left_by(&intent).await?.join(", ");
    conclude(work, term, intent, found).await
}

async fn conclude(work: &Work, term: &Term, intent: Intent, found: String) -> Result<()> {
    let now = work.clock.now();
    let resource = Resource::tenant(intent.tenant.clone());
    let term = term.clone();
    let act = async move |permit| record(permit, intent, found, now, term).await;
    let settled = work
        .gate
        .work(Job::Scheduler, Action::SettleIntent, resource, act);
    settled.await.map(|_| ())
}

async fn record(
    permit: AdminPermit,
    intent: Intent,
    found: String,
    now: Timestamp,
    term: Term,
) -> Result<Recorded<()>> {
    let mut mutation = permit.begin_in(&term).await?;
    mutation.on("intent", intent.id);
    let tx = mutation.tx();
    let (state, is_settled) = if found.is_empty() {
        let settled = tx.settle_open_intent(intent.id, IntentState::Failed);
        ("FAILED", settled.await?)
    } else {
        tx.raise_alert(&alert(&intent, &found, now)).await?;
        let quarantined = tx.quarantine_intent(intent.id, &found);
        ("QUARANTINED", quarantined.await?)
    };
    if !is_settled {
        return Err(Error::new(
            Reason::Conflict,
            "the call that this intent belongs to ended meanwhile",
        ));
    }
    let details = json!({
        "state": state,
        "backend": intent.backend,
        "label": intent.label,
        "found": found,
    });
    mutation.record((), details).await
}

fn alert(intent: &Intent, found: &str, now: Timestamp) -> Alert {
    Alert {
        id: AlertId::random(),
        tenant: intent.tenant.clone(),
        kind: "LEFTOVER_QUARANTINED".into(),
        entity: "intent".into(),
        entity_id: intent.id.to_string(),
        text: format!(
            "an interrupted attempt to generate {} left something in backend {} under CKA_ID {}: {found}; adopt it \
             or have the device's operator remove it",
            intent.label,
            intent.backend,
            audit::hex(intent.id.as_bytes()),
        ),
        raised_at: now,
        window_key: format!("LEFTOVER_QUARANTINED/{}", intent.id),
    }
}
