//! Table `leases`: who does scheduled work, by database time.
//!
//! A lease is a row with a holder, an end and a fence that grows with every new holder. A holder that was held up may
//! believe in its term for too long, so each of its transactions checks the fence first, and keeps the row locked until
//! it commits: two holders cannot both commit.

use std::time::Duration;

use super::{
    Db, Result, StoreError, Tx,
    engine::{execute, fetch_in},
};
use crate::model::Timestamp;

const ADD: &str = "INSERT INTO leases (name, holder, fence, expires_at) VALUES ($1, '', 0, 0) \
     ON CONFLICT (name) DO NOTHING";
const TAKE: &str = "UPDATE leases SET fence = CASE WHEN holder = $2 AND expires_at > $3 THEN fence ELSE fence + 1 END, \
     holder = $2, expires_at = $4 WHERE name = $1 AND (expires_at <= $3 OR holder = $2)";
const FENCE: &str = "SELECT fence FROM leases WHERE name = $1";
const HOLD: &str = "UPDATE leases SET fence = fence WHERE name = $1 AND holder = $2 AND fence = $3 AND expires_at > $4";
const RELEASE: &str =
    "UPDATE leases SET expires_at = 0 WHERE name = $1 AND holder = $2 AND fence = $3";

/// The right to do one kind of scheduled work, until it expires or somebody else has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// Name of the lease.
    name: &'static str,
    /// Who holds it: unique for every start of a daemon.
    holder: String,
    /// Grows with every new holder.
    fence: i64,
    /// Database time at which it was taken or renewed.
    pub taken_at: Timestamp,
}

impl Term {
    /// Grows with every new holder: two terms that have the same are one.
    pub const fn fence(&self) -> i64 {
        self.fence
    }
}

impl Db {
    /// Takes or renews a lease for `ttl`; None while somebody else has it.
    pub async fn take_lease(
        &self,
        name: &'static str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<Term>> {
        let mut tx = self.begin().await?;
        execute!(&mut tx, ADD, name)?;
        let now = tx.now().await?;
        let until = now.plus(ttl);
        let taken = execute!(&mut tx, TAKE, name, holder, now.micros(), until.micros())?;
        if taken == 0 {
            return Ok(None);
        }
        let (fence,) = fetch_in!(&mut tx, (i64,), FENCE, name)?
            .ok_or_else(|| StoreError::Corrupt(format!("lease {name} vanished")))?;
        tx.commit().await?;
        Ok(Some(Term {
            name,
            holder: holder.to_owned(),
            fence,
            taken_at: now,
        }))
    }

    /// Lets go of a lease, so that the next one need not wait for its end.
    pub async fn release_lease(&self, term: &Term) -> Result<()> {
        let mut tx = self.begin().await?;
        execute!(&mut tx, RELEASE, term.name, &term.holder, term.fence)?;
        tx.commit().await
    }
}

impl Tx {
    /// Makes sure that the term is still on; then it cannot end for anybody else before this transaction does.
    ///
    /// Errors: `LeaseLost`.
    pub async fn hold(&mut self, term: &Term) -> Result<()> {
        let now = self.now().await?;
        let rows = execute!(
            self,
            HOLD,
            term.name,
            &term.holder,
            term.fence,
            now.micros()
        )?;
        match rows {
            1 => Ok(()),
            _ => Err(StoreError::LeaseLost),
        }
    }
}
