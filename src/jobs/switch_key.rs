//! Keys that were compromised while their device did not answer get their successor as soon as it does.

use std::time::Duration;

use super::Work;
use crate::{error::Result, store::Term};

/// The daemon that was asked to declare an incident is at work already; only what is older was left behind.
const HEAD_START: Duration = Duration::from_secs(5);

/// Switches every key that waits for it.
pub async fn run(work: &Work, term: &Term) -> Result<()> {
    let now = work.clock.now().micros();
    let before = now - crate::model::time::micros(HEAD_START);
    let before = crate::model::Timestamp::from_micros(before);
    let round = work.patience.round("switch_key");
    for incident in work.incidents.without_successor(before).await? {
        if round.takes(&incident.id) {
            let switched = work.incidents.switch(&work.gate, incident.id, Some(term));
            round.note(&incident.id, switched.await)?;
        }
    }
    Ok(())
}
