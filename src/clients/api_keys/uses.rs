//! When each key was last used, and which hashes are to move to another version of the pepper: noted in memory, written now
//! and then, so that no call waits for a write.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::ApiKeys;
use crate::{
    error::Result,
    model::{ApiKeyHash, ApiKeyId, Kid, Timestamp},
};

/// Keys that one transaction writes.
const AT_ONCE: usize = 100;

/// Uses that no row has yet.
#[derive(Default)]
pub struct Uses {
    noted: Mutex<HashMap<ApiKeyId, Use>>,
    /// One flush at a time: whoever flushes next must find in the rows what the one before has taken.
    flushing: tokio::sync::Mutex<()>,
}

/// What is to be written about one key.
#[derive(Clone, Debug, Default)]
pub struct Use {
    at: Option<Timestamp>,
    moved: Option<Moved>,
}

/// A new hash, and the version of the pepper that the old one is under.
#[derive(Clone, Debug)]
pub struct Moved {
    /// The old version.
    pub from: Kid,
    /// The new hash.
    pub to: ApiKeyHash,
}

impl Uses {
    /// Notes a use.
    pub fn note(&self, id: ApiKeyId, at: Timestamp) {
        let mut noted = self.lock();
        let found = noted.entry(id).or_default();
        found.at = found.at.max(Some(at));
    }

    /// Notes a new hash.
    pub fn note_move(&self, id: ApiKeyId, moved: Moved) {
        self.lock().entry(id).or_default().moved = Some(moved);
    }

    /// Is a new hash of the key noted?
    pub fn is_moving(&self, id: ApiKeyId) -> bool {
        let noted = self.lock();
        noted.get(&id).is_some_and(|found| found.moved.is_some())
    }

    /// The last use that no row has.
    pub fn last(&self, id: ApiKeyId) -> Option<Timestamp> {
        self.lock().get(&id).and_then(|found| found.at)
    }

    fn take(&self) -> Taken<'_> {
        let mut left: Vec<_> = self.lock().drain().collect();
        left.sort_unstable_by_key(|(id, _)| *id.as_bytes());
        Taken { uses: self, left }
    }

    fn put_back(&self, id: ApiKeyId, back: Use) {
        let mut noted = self.lock();
        let found = noted.entry(id).or_default();
        found.at = found.at.max(back.at);
        found.moved = found.moved.take().or(back.moved);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ApiKeyId, Use>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Uses on their way to the database. What is left when this is dropped goes back.
struct Taken<'a> {
    uses: &'a Uses,
    left: Vec<(ApiKeyId, Use)>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        for (id, back) in self.left.drain(..) {
            self.uses.put_back(id, back);
        }
    }
}

impl ApiKeys {
    /// Writes what was noted since the last time. What cannot be written is kept for the next time.
    ///
    /// Errors: DATABASE_UNAVAILABLE.
    pub async fn flush_uses(&self) -> Result<()> {
        let _turn = self.uses.flushing.lock().await;
        let mut taken = self.uses.take();
        while !taken.left.is_empty() {
            let from = taken.left.len().saturating_sub(AT_ONCE);
            self.write_uses(taken.left.get(from..).unwrap_or_default())
                .await?;
            taken.left.truncate(from);
        }
        Ok(())
    }

    /// In the order of the ids, on every replica: nobody who holds one of these rows waits for another of them.
    async fn write_uses(&self, noted: &[(ApiKeyId, Use)]) -> Result<()> {
        for (id, noted) in noted {
            if let Some(moved) = &noted.moved {
                self.write_move(*id, moved).await?;
            }
        }
        let mut tx = self.db.begin().await?;
        for (id, noted) in noted {
            if let Some(at) = noted.at {
                tx.note_api_key_use(*id, at).await?;
            }
        }
        Ok(tx.commit().await?)
    }

    async fn write_move(&self, id: ApiKeyId, moved: &Moved) -> Result<()> {
        let mut tx = self.db.begin().await?;
        tx.rehash_api_key(id, &moved.from, &moved.to).await?;
        // A version that was superseded meanwhile takes no more rows: it could be retired with them under it. The next use
        // moves the key to the version after that.
        if tx.hold_active(&moved.to.pepper).await? {
            tx.commit().await?;
        }
        self.forget(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved() -> Moved {
        Moved {
            from: Kid::random(),
            to: ApiKeyHash {
                value: vec![0; 32],
                scheme: "test".to_owned(),
                pepper: Kid::random(),
            },
        }
    }

    // R-OAUTH-4
    #[test]
    fn a_mark_never_goes_back_and_a_flush_that_is_cut_loses_nothing() {
        let (uses, id) = (Uses::default(), ApiKeyId::random());
        let at = |micros| Some(Timestamp::from_micros(micros));
        for micros in [5, 9, 7] {
            uses.note(id, Timestamp::from_micros(micros));
        }
        uses.note_move(id, moved());
        let taken = uses.take();
        assert_eq!((taken.left.len(), uses.last(id)), (1, None));
        uses.note(id, Timestamp::from_micros(8));
        drop(taken);
        assert_eq!(uses.last(id), at(9));
        assert!(uses.is_moving(id));
    }

    #[test]
    fn a_newer_hash_is_not_replaced_by_one_that_comes_back() {
        let (uses, id) = (Uses::default(), ApiKeyId::random());
        uses.note_move(id, moved());
        let taken = uses.take();
        let newer = moved();
        uses.note_move(id, newer.clone());
        drop(taken);
        let kept = uses.take().left.pop().and_then(|(_, kept)| kept.moved);
        assert_eq!(kept.map(|kept| kept.to.pepper), Some(newer.to.pepper));
    }
}
