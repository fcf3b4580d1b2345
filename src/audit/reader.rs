//! Reading the log: filtered pages, and verification on demand.

use super::{Mismatch, Range, StreamHead, StreamReport, verify};
pub use crate::store::{AuditFilter, AuditRow, Head};
use crate::{error::Result, store::Db};

/// Reads the log.
pub struct Reader {
    db: Db,
}

impl Reader {
    /// A reader of this database's log.
    pub const fn new(db: Db) -> Self {
        Self { db }
    }

    /// Rows that match, newest first.
    pub async fn list(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>> {
        Ok(self.db.audit_events(filter).await?)
    }

    /// Recomputes the chain of one stream, or of all when `stream` is empty.
    pub async fn verify(&self, stream: &str, range: Range) -> Result<Vec<StreamReport>> {
        Ok(verify::verify_part(&self.db, stream, range).await?)
    }

    /// The rows that are not what checkpoints say.
    pub async fn mismatches(&self, expected: Vec<StreamHead>) -> Result<Vec<Mismatch>> {
        Ok(verify::mismatches(&self.db, expected).await?)
    }
}
