//! When each version was last used: noted in memory, written at most once a minute, so that no call waits for it.
//!
//! The mark is coarse on purpose. It answers one question: does anybody still need what is to be destroyed?

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::Keys;
use crate::{
    error::Result,
    model::{Kid, Timestamp},
};

/// Uses that no row has yet.
#[derive(Default)]
pub struct Uses(Mutex<HashMap<Kid, Timestamp>>);

impl Uses {
    fn note(&self, kid: &Kid, now: Timestamp) {
        let mut uses = self.lock();
        match uses.get_mut(kid) {
            Some(at) => *at = now.max(*at),
            None => {
                uses.insert(kid.clone(), now);
            }
        }
    }

    fn last(&self, kid: &Kid) -> Option<Timestamp> {
        self.lock().get(kid).copied()
    }

    fn take(&self) -> HashMap<Kid, Timestamp> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Kid, Timestamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    /// Notes that a version signed, verified, encrypted or decrypted just now.
    pub fn note_use(&self, kid: &Kid) {
        self.uses.note(kid, self.clock.now());
    }

    /// The last use of a version: the one that its row knows, or a later one by this replica.
    pub fn last_use(&self, kid: &Kid, stored: Option<Timestamp>) -> Option<Timestamp> {
        self.uses.last(kid).max(stored)
    }

    /// Writes what was noted since the last time, each version in a transaction of its own: one that held several rows
    /// could wait for a deployment that waits for it. What cannot be written is kept for the next time.
    pub async fn flush_uses(&self) -> Result<()> {
        let mut outcome = Ok(());
        for (kid, at) in self.uses.take() {
            if outcome.is_ok() {
                outcome = self.write_use(&kid, at).await;
            }
            if outcome.is_err() {
                self.uses.note(&kid, at);
            }
        }
        outcome
    }

    async fn write_use(&self, kid: &Kid, at: Timestamp) -> Result<()> {
        let mut tx = self.db.begin().await?;
        tx.note_use(kid, at).await?;
        Ok(tx.commit().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_never_goes_back() {
        let uses = Uses::default();
        let kid = Kid::random();
        for at in [5, 9, 7] {
            uses.note(&kid, Timestamp::from_micros(at));
        }
        assert_eq!(uses.last(&kid), Some(Timestamp::from_micros(9)));
        assert_eq!(uses.take().len(), 1);
        assert_eq!(uses.last(&kid), None);
    }
}
