//! The high-water mark of a version: no token under it expires later, so the version is published until then and not a
//! minute less (R-LIFE-5, R-JWT-4).
//!
//! The mark in the database is raised before a token that goes over it is signed, and only while the version is ACTIVE:
//! whoever supersedes it reads the last word. It is raised a little beyond what is needed, so that the calls of the next
//! minute need no database.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use quick_cache::sync::Cache;
use tokio::sync::Mutex;

use crate::{
    error::{Error, Result},
    model::{KeyVersion, Kid, Timestamp},
    store::Db,
    trace,
};

/// Versions whose mark is remembered; a forgotten one costs one write.
const REMEMBERED: usize = 10_000;
const MINUTE: i64 = 60 * 1_000_000;

/// What this replica knows of marks: never more than the database has.
pub struct Marks {
    known: Cache<Kid, Arc<Mark>>,
}

struct Mark {
    /// In microseconds.
    known: AtomicI64,
    /// One raise at a time; who waited finds it done.
    raising: Mutex<()>,
}

/// May a token be signed?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cover {
    /// The version is published until the token has expired.
    Covered,
    /// The version is not ACTIVE any more: what is cached about its key is old.
    NotActive,
}

impl Marks {
    pub fn new() -> Self {
        Self {
            known: Cache::new(REMEMBERED),
        }
    }

    /// Sees to it that the stored mark of the version is not before `exp`. Errors: DATABASE_UNAVAILABLE; nothing may be
    /// signed then.
    pub async fn cover(&self, db: &Db, version: &KeyVersion, exp: Timestamp) -> Result<Cover> {
        let mark = self.mark(version);
        if mark.covers(exp) {
            return Ok(Cover::Covered);
        }
        let _one = mark.raising.lock().await;
        if mark.covers(exp) {
            return Ok(Cover::Covered);
        }
        metrics::counter!("claviger_token_marks_total").increment(1);
        let (db, kid) = (db.clone(), version.kid.clone());
        // In a task of its own: a caller who leaves must not leave a transaction half begun.
        let raised = tokio::spawn(trace::carry(
            async move { raise(&db, &kid, beyond(exp)).await },
        ));
        match raised.await.map_err(Error::internal)?? {
            Some(stored) => {
                mark.known.fetch_max(stored.micros(), Ordering::SeqCst);
                Ok(Cover::Covered)
            }
            None => Ok(Cover::NotActive),
        }
    }

    /// One for all callers, also for those who come first at the same time: they share one write.
    fn mark(&self, version: &KeyVersion) -> Arc<Mark> {
        let known = version.last_token_exp.map_or(i64::MIN, Timestamp::micros);
        let fresh = || {
            let (known, raising) = (AtomicI64::new(known), Mutex::new(()));
            Ok::<_, Infallible>(Arc::new(Mark { known, raising }))
        };
        let Ok(mark) = self.known.get_or_insert_with(&version.kid, fresh);
        mark
    }
}

impl Mark {
    fn covers(&self, exp: Timestamp) -> bool {
        exp.micros() <= self.known.load(Ordering::SeqCst)
    }
}

/// The next full minute, and one more.
fn beyond(exp: Timestamp) -> Timestamp {
    let minute = exp.micros().div_euclid(MINUTE).saturating_add(1);
    Timestamp::from_micros(minute.saturating_mul(MINUTE)).plus(Duration::from_secs(60))
}

/// The mark that the database has now, `to` or later; None when the version is not ACTIVE.
async fn raise(db: &Db, kid: &Kid, to: Timestamp) -> Result<Option<Timestamp>> {
    let mut tx = db.begin().await?;
    if tx.raise_last_token_exp(kid, to).await? {
        tx.commit().await?;
        return Ok(Some(to));
    }
    // Another replica went further, or the version is not ACTIVE any more.
    Ok(tx.active_mark(kid).await?.flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_a_full_minute_and_less_than_two_minutes_beyond() {
        for micros in [0, 1, MINUTE - 1, MINUTE, 1_700_000_000_123_456] {
            let (exp, mark) = (
                Timestamp::from_micros(micros),
                beyond(Timestamp::from_micros(micros)),
            );
            assert_eq!(mark.micros() % MINUTE, 0);
            let ahead = mark.since(exp).as_secs_f64();
            assert!((60.0..=120.0).contains(&ahead), "{ahead}");
        }
    }
}
