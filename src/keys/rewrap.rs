//! Data keys from one KEK to another, and trial unwrappings. Data is never touched.
//!
//! A data key that was moved is unwrapped under the new KEK and compared before anybody records it: the old wrapped form
//! is the only other copy.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    Keys,
    data_keys::binding,
    keks::{Kek, unwrap},
};
use crate::{
    backends::BackendError,
    error::{Error, Reason, Result},
    model::{Kid, key::BackendRef},
    store::{Rewrapped, WrappedKey},
};

/// Data keys in work at the same time: enough to keep a few sessions busy, few enough to leave callers their turn.
const AT_ONCE: usize = 8;
/// Undecryptable data keys that are remembered by name.
const REMEMBERED: usize = 1000;

/// What became of a batch.
#[derive(Default)]
pub struct Batch {
    /// Wrapped anew, to be recorded.
    pub moved: Vec<Rewrapped>,
    /// Do not unwrap under the KEK that their rows name.
    pub undecryptable: Vec<Kid>,
}

/// What became of one.
enum Fate {
    Moved(Rewrapped),
    /// It is where it should be.
    Proved,
    Undecryptable(Kid),
}

impl Batch {
    fn of(fates: Vec<Fate>) -> Self {
        let mut batch = Self::default();
        for fate in fates {
            match fate {
                Fate::Moved(moved) => batch.moved.push(moved),
                Fate::Proved => {}
                Fate::Undecryptable(kid) => batch.undecryptable.push(kid),
            }
        }
        batch
    }
}

/// What a round of trial unwrappings found.
#[derive(Debug, Default)]
pub struct Trial {
    /// Data keys that were tried.
    pub tried: usize,
    /// Those that do not unwrap, the ones of earlier rounds included.
    pub undecryptable: Vec<Kid>,
}

/// Data keys that did not unwrap when they were last tried.
#[derive(Default)]
pub struct Undecryptable(Mutex<BTreeSet<Kid>>);

impl Undecryptable {
    /// Remembers, or forgets, a data key; true when that is news.
    fn note(&self, kid: &Kid, fails: bool) -> bool {
        let mut known = self.lock();
        match fails {
            true if known.len() < REMEMBERED => known.insert(kid.clone()),
            true => false,
            false => known.remove(kid),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<Kid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a trial says about a data key.
enum Verdict {
    Fine,
    Undecryptable,
}

impl Keys {
    /// Up to `limit` data keys under a KEK whose kid is after `after`, in the order of their kids.
    pub async fn data_keys_under(
        &self,
        kek: &BackendRef,
        after: &str,
        limit: i64,
    ) -> Result<Vec<WrappedKey>> {
        Ok(self.db.data_keys_under(kek, after, limit).await?)
    }

    /// Wraps these data keys under another KEK. Nothing is recorded. Those that do not unwrap are set aside.
    ///
    /// Errors: a KEK or its backend is not available; then nothing of the batch is to be recorded.
    pub async fn rewrap_data_keys(&self, rows: Vec<WrappedKey>, new: &BackendRef) -> Result<Batch> {
        let new = self.known(new).await?;
        let calls = rows.into_iter().map(|row| self.rewrap_one(row, &new));
        let done: Vec<_> = stream::iter(calls).buffered(AT_ONCE).try_collect().await?;
        Ok(Batch::of(done))
    }

    /// Unwraps these data keys under the KEK that their rows name. One that does not, but does under `old`, was written
    /// beside the new KEK by somebody who had read it before it was moved: it is wrapped anew. Nothing is recorded.
    ///
    /// Errors: as `rewrap_data_keys`.
    pub async fn prove_data_keys(
        &self,
        rows: Vec<WrappedKey>,
        old: &BackendRef,
        new: &BackendRef,
    ) -> Result<Batch> {
        let new = self.known(new).await?;
        let calls = rows.into_iter().map(|row| self.prove_one(row, old, &new));
        let done: Vec<_> = stream::iter(calls).buffered(AT_ONCE).try_collect().await?;
        Ok(Batch::of(done))
    }

    async fn prove_one(&self, row: WrappedKey, old: &BackendRef, new: &Kek) -> Result<Fate> {
        match unwrap(new, &row, self.patience()).await {
            Ok(_) => {
                self.note_verdict(&row, &Verdict::Fine);
                return Ok(Fate::Proved);
            }
            Err(BackendError::Rejected(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let as_before = WrappedKey {
            kek: old.clone(),
            ..row.clone()
        };
        Ok(match self.rewrap_one(as_before, new).await? {
            Fate::Moved(moved) => Fate::Moved(Rewrapped { old: row, ..moved }),
            fate => fate,
        })
    }

    async fn rewrap_one(&self, row: WrappedKey, new: &Kek) -> Result<Fate> {
        let old = self.known(&row.kek).await?;
        let plain = match unwrap(&old, &row, self.patience()).await {
            Ok(plain) => plain,
            Err(BackendError::Rejected(_)) => {
                self.keks.expect_opens_probe(&row.kek).await?;
                self.note_verdict(&row, &Verdict::Undecryptable);
                return Ok(Fate::Undecryptable(row.kid));
            }
            Err(error) => return Err(error.into()),
        };
        let aad = binding(&row.tenant, row.key, &row.kid);
        let wrapping = new
            .backend
            .wrap(&new.reference, &plain, &aad, self.deadline());
        let moved = WrappedKey {
            kek: new.reference.clone(),
            wrapped: wrapping.await?,
            ..row.clone()
        };
        let again = unwrap(new, &moved, self.patience()).await?;
        verify_slices_are_equal(plain.expose_secret(), again.expose_secret()).map_err(|_| {
            Error::internal(format!(
                "the new KEK unwraps data key {} to something else",
                row.kid
            ))
        })?;
        self.note_verdict(&row, &Verdict::Fine);
        Ok(Fate::Moved(Rewrapped {
            old: row,
            wrapped: moved.wrapped,
        }))
    }

    /// Unwraps a random sample of `size` data keys past the cache, and those again that failed before.
    ///
    /// Errors: the database, a KEK or its backend does not answer. That says nothing about data keys.
    pub async fn try_data_keys(&self, size: usize) -> Result<Trial> {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        let mut rows = self.db.sample_of_data_keys(size).await?;
        let before = self.undecryptable.lock().clone();
        for kid in &before {
            match self.db.wrapped_key(kid).await? {
                Some(row) if rows.iter().all(|r| r.kid != row.kid) => rows.push(row),
                Some(_) => {}
                // It was destroyed meanwhile.
                None => {
                    self.undecryptable.note(kid, false);
                }
            }
        }
        let tried = rows.len();
        for row in rows {
            let verdict = self.try_data_key(&row).await?;
            self.note_verdict(&row, &verdict);
        }
        Ok(Trial {
            tried,
            undecryptable: self.undecryptable.lock().iter().cloned().collect(),
        })
    }

    async fn try_data_key(&self, row: &WrappedKey) -> Result<Verdict> {
        let kek = match self.known(&row.kek).await {
            Ok(kek) => kek,
            // Rewrapped since it was read, or under a KEK that nobody has.
            Err(error) => match self.db.wrapped_key(&row.kid).await? {
                Some(now) if now.kek == row.kek && !self.is_known(&row.kek).await? => {
                    return Ok(Verdict::Undecryptable);
                }
                Some(now) if now.kek == row.kek => return Err(error),
                _ => return Ok(Verdict::Fine),
            },
        };
        match unwrap(&kek, row, self.patience()).await {
            Ok(_) => Ok(Verdict::Fine),
            Err(BackendError::Rejected(_)) => {
                self.keks.expect_opens_probe(&row.kek).await?;
                Ok(Verdict::Undecryptable)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Is there a row of a KEK that data keys may be under?
    async fn is_known(&self, kek: &BackendRef) -> Result<bool> {
        let rows = self.db.keks().await?;
        Ok(rows
            .iter()
            .any(|row| row.reference == *kek && row.state.unwraps()))
    }

    /// The KEK with this reference; one that this replica has not heard of yet is looked up.
    ///
    /// Errors: BACKEND_UNAVAILABLE when there is none, or its backend is not configured here.
    pub(super) async fn known(&self, reference: &BackendRef) -> Result<Kek> {
        if let Some(kek) = self.keks.unwrapping(reference) {
            return Ok(kek);
        }
        self.keks.reload().await?;
        self.keks.unwrapping(reference).ok_or_else(|| {
            Error::new(
                Reason::BackendUnavailable,
                "the data key is wrapped by a key-encryption key that this replica does not have",
            )
            .retry_after(crate::backends::RETRY_AFTER)
        })
    }

    fn note_verdict(&self, row: &WrappedKey, verdict: &Verdict) {
        let fails = matches!(verdict, Verdict::Undecryptable);
        if self.undecryptable.note(&row.kid, fails) && fails {
            tracing::error!(tenant = %row.tenant, key = %row.key, kid = %row.kid, "data key does not unwrap under its KEK");
            metrics::counter!("claviger_data_key_undecryptable_total").increment(1);
        }
    }

    const fn patience(&self) -> Duration {
        Duration::from_millis(self.config.backend_timeout_ms)
    }
}
