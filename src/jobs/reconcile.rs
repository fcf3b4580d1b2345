//! Looks for what interrupted attempts to generate a key pair left on the devices.
//!
//! An intent that stays PENDING belongs to a call that crashed or failed. Nothing under its id: the attempt FAILED.
//! Something: it is QUARANTINED, with an alert. Nothing is deleted here, and nothing is taken into use; its tenant may
//! adopt it by `AdoptKey`. Interrupted destructions are finished by `destroy_due`.

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
    let quarantined = work.db.quarantined_intents().await?.len();
    metrics::gauge!("claviger_leftovers_quarantined").set(quarantined as f64);
    outcome
}

async fn settle(work: &Work, term: &Term, intent: Intent) -> Result<()> {
    let found = work.keys.left_by(&intent).await?.join(", ");
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
