//! Bounds on administrative calls, so that a flood of them, refused ones too, leaves room for everybody else.
//!
//! Each one ends in a transaction on the one admin stream. A principal has few of them in flight, and only some of the
//! database's connections are ever waiting for that stream: the change feed and the access stream need the rest.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    error::{Error, Reason, Result},
    model::PrincipalId,
    store::{Db, StoreError, Tx},
};

/// Administrative calls that one principal may have in flight.
const PER_PRINCIPAL: usize = 8;
/// Transactions on the admin stream that are open or wait for its lock at the same time.
pub const TURNS: usize = 3;

/// Who has how many of something in flight: principals their administrative calls, tenants their streams.
#[derive(Clone)]
pub struct Crowd<K: Eq + Hash = PrincipalId>(Arc<Mutex<HashMap<K, usize>>>);

/// One of them.
pub struct Seat<K: Eq + Hash = PrincipalId> {
    crowd: Crowd<K>,
    holder: K,
}

impl<K: Eq + Hash> Default for Crowd<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl Crowd {
    /// Errors: OVERLOADED when the principal has too many in flight.
    pub fn enter(&self, principal: PrincipalId) -> Result<Seat> {
        self.take(principal, PER_PRINCIPAL).ok_or_else(|| {
            metrics::counter!("claviger_admin_calls_shed_total").increment(1);
            Error::new(
                Reason::Overloaded,
                "too many administrative calls of this principal are in flight; send them one after the other",
            )
            .retry_after(Duration::from_secs(1))
        })
    }
}

impl<K: Eq + Hash + Clone> Crowd<K> {
    /// One of `most` seats; None when `holder` has taken them all.
    pub fn take(&self, holder: K, most: usize) -> Option<Seat<K>> {
        let mut seats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = seats.entry(holder.clone()).or_default();
        if *taken >= most {
            return None;
        }
        *taken += 1;
        drop(seats);
        Some(Seat {
            crowd: self.clone(),
            holder,
        })
    }
}

impl<K: Eq + Hash> Drop for Seat<K> {
    fn drop(&mut self) {
        let mut seats = self.crowd.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = seats.get_mut(&self.holder) {
            *taken -= 1;
            if *taken == 0 {
                seats.remove(&self.holder);
            }
        }
    }
}

/// Opens transactions on the admin stream, a few at a time.
pub struct Changes {
    db: Db,
    turns: Arc<Semaphore>,
}

/// The right to have one open; dropped with it.
pub type Turn = Option<OwnedSemaphorePermit>;

impl Changes {
    pub const fn new(db: Db, turns: Arc<Semaphore>) -> Self {
        Self { db, turns }
    }

    /// Waits for its turn, then begins.
    pub async fn begin(&self) -> std::result::Result<(Tx, Turn), StoreError> {
        // None only when somebody closed the semaphore, which nobody does.
        let turn = Arc::clone(&self.turns).acquire_owned().await.ok();
        Ok((self.db.begin().await?, turn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_principal_cannot_crowd_out_another() {
        let crowd = Crowd::default();
        let (loud, quiet) = (PrincipalId::random(), PrincipalId::random());
        let mut seats: Vec<_> = (0..PER_PRINCIPAL)
            .map(|_| crowd.enter(loud).expect("a seat"))
            .collect();
        let refused = crowd.enter(loud).err().map(|e| e.reason());
        assert_eq!(refused, Some(Reason::Overloaded));
        assert!(crowd.enter(quiet).is_ok());
        seats.pop();
        assert!(crowd.enter(loud).is_ok());
        drop(seats);
        let seats = crowd.0.lock().unwrap();
        assert!(seats.is_empty(), "nobody is remembered who has left");
    }
}
