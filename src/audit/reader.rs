//! Reading the log: filtered pages, and verification on demand.

use super::{StreamReport, verify};
pub use crate::store::{AuditFilter, AuditRow};
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
    pub async fn verify(&self, stream: &str) -> Result<Vec<StreamReport>> {
        Ok(verify::verify(&self.db, stream).await?)
    }
}
