//! A mutating call that is made again (R-OPS-2): the same key and request get the same answer, the same key with
//! another request is refused.
//!
//! The answer is kept in the transaction of the change, so it exists exactly when the change does. Two calls with one
//! key at the same time: on one replica the second waits for the first; across replicas the database lets one of them
//! commit, and the other gives that one's answer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use prost::Message;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

use crate::{
    audit::Receipt,
    error::{Error, Reason, Result},
    model::{Action, Caller, PrincipalId},
    store::{Db, StoreError, Tx},
};

/// Calls with an idempotency key that are in flight here.
#[derive(Clone, Default)]
pub struct InFlight(Arc<Mutex<Turns>>);

type Turns = HashMap<(PrincipalId, Arc<str>), Weak<Turn<()>>>;

impl InFlight {
    /// Waits until no other call with this principal's key is in flight here. Calls without a key wait for nobody.
    pub async fn turn(&self, caller: &Caller) -> Option<OwnedMutexGuard<()>> {
        let idempotency = caller.idempotency.as_ref()?;
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let entry = turns
                .entry((caller.principal.id, Arc::clone(&idempotency.key)))
                .or_default();
            let turn = entry.upgrade().unwrap_or_default();
            *entry = Arc::downgrade(&turn);
            turn
        };
        Some(turn.lock_owned().await)
    }
}

/// The answer that was given to this very call, with the seq of its audit row. None for a call that is new.
///
/// Errors: IDEMPOTENCY_KEY_REUSED.
pub async fn earlier<M: Message + Default>(db: &Db, caller: &Caller) -> Result<Option<(M, i64)>> {
    let Some(idempotency) = &caller.idempotency else {
        return Ok(None);
    };
    let stored = db.stored_answer(caller.principal.id, &idempotency.key);
    let Some(stored) = stored.await? else {
        return Ok(None);
    };
    if stored.request_hash != idempotency.request_hash {
        return Err(Error::new(
            Reason::IdempotencyKeyReused,
            "this idempotency-key was used for another request; use a new key for a new request",
        ));
    }
    let answer = M::decode(stored.answer.as_slice()).map_err(Error::internal)?;
    Ok(Some((answer, stored.receipt_seq)))
}

/// Keeps the answer beside the change. Errors: `Exists` when another replica was first.
pub async fn keep<M: Message>(
    tx: &mut Tx,
    caller: &Caller,
    action: Action,
    answer: &M,
    receipt: &Receipt,
) -> Result<(), StoreError> {
    let Some(idempotency) = &caller.idempotency else {
        return Ok(());
    };
    let now = tx.now().await?;
    let answer = answer.encode_to_vec();
    tx.remember_answer(
        caller.principal.id,
        idempotency,
        action.name(),
        &answer,
        receipt.seq,
        now,
    )
    .await
}
