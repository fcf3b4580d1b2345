//! What must still hold when an answer leaves (R-EMER-3).
//!
//! Between the look at a cached key and the end of a call lie a device and the audit log: time enough for a version to
//! be frozen. Whoever acts under a permit names the condition; the gate asks again, as the last thing before it lets
//! the answer go.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;

use crate::error::Result;

/// One condition; an error keeps the answer back.
type Condition = Arc<dyn Fn() -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// The conditions of one call. Cloning shares them.
#[derive(Clone, Default)]
pub struct Conditions(Arc<Mutex<Vec<Condition>>>);

impl Conditions {
    /// Adds one.
    pub fn add(&self, condition: Condition) {
        self.lock().push(condition);
    }

    /// Errors: of the first condition that does not hold.
    pub async fn hold(&self) -> Result<()> {
        let conditions = self.lock().clone();
        for condition in conditions {
            condition().await?;
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Condition>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
