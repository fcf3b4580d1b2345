//! Table `idempotency_keys`: the answers to mutating calls, for callers who ask again.

use super::{
    Db, Result, StoreError, Tx,
    engine::{execute, fetch_optional},
};
use crate::model::{Idempotency, PrincipalId, Timestamp};

const INSERT: &str = "INSERT INTO idempotency_keys (principal_id, idempotency_key, action, request_hash, answer, \
     receipt_seq, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)";
const FIND: &str = "SELECT request_hash, answer, receipt_seq FROM idempotency_keys \
     WHERE principal_id = $1 AND idempotency_key = $2";
const PRUNE: &str = "DELETE FROM idempotency_keys WHERE created_at < $1";

/// An answer that was given.
#[derive(Debug)]
pub struct StoredAnswer {
    /// SHA-256 of the request it answered.
    pub request_hash: [u8; 32],
    /// The encoded answer.
    pub answer: Vec<u8>,
    /// seq of the audit row of the change.
    pub receipt_seq: i64,
}

impl Tx {
    /// Keeps an answer, in the transaction of the change. Errors: `Exists` when the key has one already.
    pub async fn remember_answer(
        &mut self,
        principal: PrincipalId,
        idempotency: &Idempotency,
        action: &str,
        answer: &[u8],
        receipt_seq: i64,
        now: Timestamp,
    ) -> Result<()> {
        execute!(
            self,
            INSERT,
            principal.to_string(),
            &*idempotency.key,
            action,
            idempotency.request_hash.as_slice(),
            answer,
            receipt_seq,
            now.micros(),
        )
        .map(|_| ())
    }

    /// Forgets answers that were given before `before`; how many.
    pub async fn prune_answers(&mut self, before: Timestamp) -> Result<u64> {
        execute!(self, PRUNE, before.micros())
    }
}

impl Db {
    /// The answer that this principal got under this key.
    pub async fn stored_answer(
        &self,
        principal: PrincipalId,
        key: &str,
    ) -> Result<Option<StoredAnswer>> {
        let row = fetch_optional!(
            self,
            (Vec<u8>, Vec<u8>, i64),
            FIND,
            principal.to_string(),
            key
        )?;
        row.map(|(hash, answer, receipt_seq)| {
            Ok(StoredAnswer {
                request_hash: hash
                    .try_into()
                    .map_err(|_| StoreError::Corrupt("request_hash is not 32 bytes".into()))?,
                answer,
                receipt_seq,
            })
        })
        .transpose()
    }
}
