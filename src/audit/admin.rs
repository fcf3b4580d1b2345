//! Stream `admin`: the row is part of the transaction of what it records.

use tracing::Instrument;

use super::{ADMIN_STREAM, Receipt, Record, chain};
use crate::{
    store::{StoreError, Tx},
    trace,
};

/// Chains one record inside `tx`. Call it last: from here to the commit no other mutation can commit.
pub async fn append(tx: &mut Tx, record: Record) -> Result<Receipt, StoreError> {
    chained(tx, record).instrument(trace::step!("audit")).await
}

async fn chained(tx: &mut Tx, record: Record) -> Result<Receipt, StoreError> {
    tx.lock_admin_stream().await?;
    let head = tx
        .audit_head(ADMIN_STREAM)
        .await?
        .unwrap_or_else(chain::empty_head);
    let at = tx.now().await?.micros();
    let mut rows = chain::link(ADMIN_STREAM, &head, at, vec![record]);
    if !tx.append_audit(&rows, head.seq).await? {
        return Err(StoreError::Corrupt(
            "the admin audit stream moved under its lock".into(),
        ));
    }
    rows.pop()
        .map(|row| Receipt {
            seq: row.seq,
            hash: row.hash,
        })
        .ok_or_else(|| StoreError::Corrupt("no audit row was made".into()))
}
