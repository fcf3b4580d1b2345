//! When and how often each version was used: noted in memory, written at most once a minute, so that no call waits for it.
//!
//! The mark of the last use is coarse on purpose, and made before the work, so that an attempt counts too. It answers one
//! question: does anybody still need what is to be destroyed? The counts are made after the work, one for each thing that
//! was made, opened or moved; what a replica counted and did not write before it crashed is not in them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use super::Keys;
use crate::{
    error::Result,
    gate::Permit,
    model::{Action, KeyId, Kid, Timestamp},
    store::{Counts, VersionUsage},
};

/// Uses that no row has yet.
#[derive(Default)]
pub struct Uses {
    noted: Mutex<HashMap<Kid, Use>>,
    /// One flush at a time: whoever flushes next must find in the rows what the one before has taken.
    flushing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Use {
    /// None when the row knows.
    at: Option<Timestamp>,
    counter: Arc<Counter>,
}

/// Counts the uses of one version. Whoever noted a use holds it, and counts without a lock.
#[derive(Debug, Default)]
pub struct Counter {
    made: AtomicI64,
    opened: AtomicI64,
    rewrapped: AtomicI64,
}

impl Counter {
    /// A ciphertext, signature or MAC was made.
    pub fn made(&self) {
        self.made.fetch_add(1, Ordering::Relaxed);
    }

    /// A ciphertext was decrypted, or a signature or MAC verified.
    pub fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// A ciphertext was moved to another version.
    pub fn rewrapped(&self) {
        self.rewrapped.fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self) -> Counts {
        Counts {
            made: self.made.swap(0, Ordering::Relaxed),
            opened: self.opened.swap(0, Ordering::Relaxed),
            rewrapped: self.rewrapped.swap(0, Ordering::Relaxed),
        }
    }

    fn add(&self, counts: Counts) {
        self.made.fetch_add(counts.made, Ordering::Relaxed);
        self.opened.fetch_add(counts.opened, Ordering::Relaxed);
        self.rewrapped
            .fetch_add(counts.rewrapped, Ordering::Relaxed);
    }
}

impl Uses {
    fn note(&self, kid: &Kid, now: Timestamp) -> Arc<Counter> {
        let mut uses = self.lock();
        if let Some(found) = uses.get_mut(kid) {
            found.at = found.at.max(Some(now));
            return Arc::clone(&found.counter);
        }
        let new = Use {
            at: Some(now),
            counter: Arc::default(),
        };
        let counter = Arc::clone(&new.counter);
        uses.insert(kid.clone(), new);
        counter
    }

    fn last(&self, kid: &Kid) -> Option<Timestamp> {
        self.lock().get(kid).and_then(|found| found.at)
    }

    /// What no row has of the versions that are `wanted`. A version stays as long as somebody may still count under it.
    fn take(&self, wanted: impl Fn(&Kid) -> bool) -> Taken<'_> {
        let mut taken = Vec::new();
        self.lock().retain(|kid, found| {
            if !wanted(kid) {
                return true;
            }
            // Asked first: who lets go of it from here on has counted already.
            let is_held = Arc::strong_count(&found.counter) > 1;
            // Pairs with the release of the last holder, so that what it counted is seen.
            std::sync::atomic::fence(Ordering::Acquire);
            let (at, counts) = (found.at.take(), found.counter.take());
            if at.is_some() || counts != Counts::default() {
                taken.push((kid.clone(), at, counts));
            }
            is_held
        });
        Taken {
            uses: self,
            left: taken,
        }
    }

    /// Takes back what could not be written.
    fn put_back(&self, kid: &Kid, at: Option<Timestamp>, counts: Counts) {
        let mut uses = self.lock();
        let found = uses.entry(kid.clone()).or_default();
        found.at = found.at.max(at);
        found.counter.add(counts);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Kid, Use>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Uses on their way to the database. What is left when this is dropped goes back: a caller who leaves in the middle of a
/// flush must not make a version look unused.
struct Taken<'a> {
    uses: &'a Uses,
    left: Vec<(Kid, Option<Timestamp>, Counts)>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        for (kid, at, counts) in self.left.drain(..) {
            self.uses.put_back(&kid, at, counts);
        }
    }
}

impl Keys {
    /// Notes that a version is about to sign, verify, encrypt or decrypt. Whoever does it counts with the answer, once it
    /// is done.
    pub fn note_use(&self, kid: &Kid) -> Arc<Counter> {
        self.uses.note(kid, self.clock.now())
    }

    /// The last use of a version: the one that its row knows, or a later one by this replica.
    pub fn last_use(&self, kid: &Kid, stored: Option<Timestamp>) -> Option<Timestamp> {
        self.uses.last(kid).max(stored)
    }

    /// Writes what was noted since the last time, each version in a transaction of its own: one that held several rows
    /// could wait for a deployment that waits for it. What cannot be written is kept for the next time.
    pub async fn flush_uses(&self) -> Result<()> {
        self.flush(|_| true).await
    }

    async fn flush(&self, wanted: impl Fn(&Kid) -> bool) -> Result<()> {
        let _turn = self.uses.flushing.lock().await;
        let mut taken = self.uses.take(wanted);
        while let Some((kid, at, counts)) = taken.left.last() {
            self.write_use(kid, *at, *counts).await?;
            taken.left.pop();
        }
        Ok(())
    }

    /// How the versions of a key were used, oldest first: all that this replica counted, and what the others have written.
    ///
    /// Errors: DATABASE_UNAVAILABLE.
    pub async fn usage(&self, permit: &Permit, key: KeyId) -> Result<Vec<VersionUsage>> {
        permit.covers_key(Action::GetKeyVersionUsage, key)?;
        // Only this key's: what others noted is not the caller's to wait for.
        let known = self.db.version_usage(key).await?;
        self.flush(|kid| known.iter().any(|version| version.kid == *kid))
            .await?;
        Ok(self.db.version_usage(key).await?)
    }

    async fn write_use(&self, kid: &Kid, at: Option<Timestamp>, counts: Counts) -> Result<()> {
        let mut tx = self.db.begin().await?;
        tx.note_use(kid, at, counts).await?;
        Ok(tx.commit().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a flush writes.
    fn written(uses: &Uses) -> Vec<(Kid, Option<Timestamp>, Counts)> {
        std::mem::take(&mut uses.take(|_| true).left)
    }

    #[test]
    fn a_flush_that_is_cut_loses_nothing() {
        let uses = Uses::default();
        let (kid, other) = (Kid::random(), Kid::random());
        for kid in [&kid, &other] {
            uses.note(kid, Timestamp::from_micros(5)).made();
        }
        let taken = uses.take(|wanted| *wanted == kid);
        assert_eq!(taken.left.len(), 1, "only what is wanted");
        assert_eq!(uses.last(&kid), None);
        drop(taken);
        assert_eq!(uses.last(&kid), Some(Timestamp::from_micros(5)));
        let taken = uses.take(|_| true);
        assert_eq!(taken.left.len(), 2);
        assert!(taken.left.iter().all(|(_, _, counts)| counts.made == 1));
    }

    #[test]
    fn a_mark_never_goes_back() {
        let uses = Uses::default();
        let kid = Kid::random();
        for at in [5, 9, 7] {
            uses.note(&kid, Timestamp::from_micros(at));
        }
        assert_eq!(uses.last(&kid), Some(Timestamp::from_micros(9)));
        assert_eq!(written(&uses).len(), 1);
        assert_eq!(uses.last(&kid), None);
    }

    #[test]
    fn what_is_counted_after_a_flush_is_in_the_next() {
        let uses = Uses::default();
        let (kid, now) = (Kid::random(), Timestamp::from_micros(1));
        let held = uses.note(&kid, now);
        held.made();
        let made = |made| Counts {
            made,
            ..Counts::default()
        };
        assert_eq!(written(&uses), [(kid.clone(), Some(now), made(1))]);
        assert_eq!(written(&uses), []);
        held.made();
        drop(held);
        assert_eq!(written(&uses), [(kid.clone(), None, made(1))]);
        assert!(uses.lock().is_empty(), "nobody holds it any more");
        uses.put_back(&kid, Some(now), made(2));
        uses.note(&kid, now).made();
        assert_eq!(written(&uses), [(kid, Some(now), made(3))]);
    }
}
