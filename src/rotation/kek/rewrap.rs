//! Recording rewrapped data keys: each one is compare-and-set and counted in the transaction that moves it, so that an
//! interrupted rewrapping is neither repeated nor miscounted. And giving up those that do not unwrap.

use std::collections::BTreeSet;

use serde_json::json;

use super::{KekRotations, conflict, details, moved, step};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Recorded},
    keys::Batch,
    model::{KekRotation, KekRotationId, RotationState},
    store::Term,
};

/// Data keys that can be given up at a time: they are named in the audit log. More of them is a matter for a backup.
const GIVEN_UP: usize = 1000;

impl KekRotations {
    /// Records a batch; `failed` is how many data keys did not unwrap so far in this pass. The answer is how many rows
    /// moved: one that somebody else moved, or whose version was destroyed meanwhile, is not among them.
    ///
    /// Errors: CONFLICT when the rotation is not DEPLOYED any more, LEASE_LOST.
    pub async fn record_batch(
        &self,
        permit: AdminPermit,
        term: Term,
        rotation: KekRotation,
        batch: Batch,
        failed: i64,
    ) -> Result<Recorded<i64>> {
        let mut mutation = permit.begin_in(&term).await?;
        let tx = mutation.tx();
        // Changes of a key's life lock the key before its versions, so this does too; several, in the order of their ids.
        let keys: BTreeSet<_> = batch.moved.iter().map(|m| m.old.key.to_string()).collect();
        for key in keys {
            tx.lock_key(key.parse()?).await?;
        }
        let mut count = 0;
        for one in &batch.moved {
            count += i64::from(tx.rewrap(one, &rotation.new_kek).await?);
        }
        if !tx.count_rewrapped(rotation.id, count, failed).await? {
            return Err(conflict(None));
        }
        let details = json!({ "rewrapped": count, "undecryptable": batch.undecryptable.len() });
        mutation.record(count, details).await
    }

    /// Ends a deployed rotation for all data keys but those that do not unwrap, which are tried here once more and named in
    /// the audit log. They stay under the old KEK, which stays DEACTIVATED and is still needed at every start: a row that
    /// comes back from a backup unwraps. The completion of a later rotation retires it once it wraps nothing.
    ///
    /// Errors: ROTATION_STATE while the daemon itself can get on; CONFLICT when a data key changed meanwhile; the backend's.
    pub(super) async fn give_up(
        &self,
        permit: AdminPermit,
        rotation: KekRotation,
        reason: String,
    ) -> Result<Recorded<KekRotation>> {
        let old = rotation.old_kek.clone();
        let most = GIVEN_UP as i64 + 1;
        let rows = self.keys.data_keys_under(&old, "", most).await?;
        let left = rows.len();
        if left > GIVEN_UP || (left == 0 && rotation.progress.failed == 0) {
            return Err(gets_on());
        }
        let batch = self.keys.rewrap_data_keys(rows, &rotation.new_kek).await?;
        if !batch.moved.is_empty() {
            return Err(gets_on());
        }
        let (by, left) = (permit.caller().principal.id, left as i64);
        let mut ended = rotation.give_up(by, reason, self.clock.now())?;
        ended.progress.remaining = left;
        ended.progress.failed = left.max(ended.progress.failed);
        let mut mutation = permit.begin().await?;
        let tx = mutation.tx();
        tx.hold_kek(&old.0).await?;
        if tx.count_data_keys_under(&old).await? != left {
            return Err(conflict(None));
        }
        step(tx.set_undecryptable(ended.id, ended.progress.failed)).await?;
        moved(tx, &ended, RotationState::Deployed).await?;
        let mut details = details(&ended);
        details["given_up"] = batch.undecryptable.iter().map(|kid| kid.as_str()).collect();
        mutation.record(ended, details).await
    }

    /// Writes how many data keys did not unwrap in a whole pass. Errors: CONFLICT, LEASE_LOST.
    pub async fn note_undecryptable(
        &self,
        term: &Term,
        rotation: KekRotationId,
        failed: i64,
    ) -> Result<()> {
        let mut tx = self.db.begin().await?;
        tx.hold(term).await?;
        step(tx.set_undecryptable(rotation, failed)).await?;
        Ok(tx.commit().await?)
    }
}

fn gets_on() -> Error {
    Error::new(
        Reason::RotationState,
        "the rotation is deployed and there is no way back; it can be ended only when nothing is left of it but at most \
         1000 data keys that do not unwrap",
    )
}
