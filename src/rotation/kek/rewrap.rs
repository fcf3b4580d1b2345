//! Recording rewrapped data keys: each one is compare-and-set and counted in the transaction that moves it, so that an
//! interrupted rewrapping is neither repeated nor miscounted.

use std::collections::BTreeSet;

use serde_json::json;

use super::{KekRotations, conflict, step};
use crate::{
    error::Result,
    gate::{AdminPermit, Recorded},
    keys::Batch,
    model::{KekRotation, KekRotationId},
    store::Term,
};

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
        let mut moved = 0;
        for one in &batch.moved {
            moved += i64::from(tx.rewrap(one, &rotation.new_kek).await?);
        }
        if !tx.count_rewrapped(rotation.id, moved, failed).await? {
            return Err(conflict(None));
        }
        let details = json!({ "rewrapped": moved, "undecryptable": batch.undecryptable.len() });
        mutation.record(moved, details).await
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
