//! Tells people what waits for them: keys that are overdue (R-LIFE-3), rotations that nobody answers (R-USE-3).

use super::scheduler::Work;
use crate::{error::Result, store::Term};

/// Raises alerts, each once, and counts what is overdue.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    let rotations = &work.rotations;
    let overdue = rotations.count_overdue().await?;
    metrics::gauge!("claviger_keys_overdue").set(overdue as f64);
    let round = work.patience.round("alert_overdue");
    for (key, tenant) in rotations.keys_to_alert_about().await? {
        if round.takes(&key) {
            let raised = rotations.alert_overdue(term, key, &tenant).await;
            round.note(&key, raised)?;
        }
    }
    let round = work.patience.round("alert_waiting");
    for id in rotations.rotations_to_alert_about().await? {
        if round.takes(&id) {
            let (_, found) = rotations.find(id).await?;
            let Some(rotation) = found else { continue };
            round.note(&id, rotations.alert_waiting(term, &rotation).await)?;
        }
    }
    Ok(())
}
