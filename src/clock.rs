//! The clock is a parameter: production reads the system's, tests hold it still and move it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use crate::model::Timestamp;

/// Tells the time. Cloning is cheap.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The operating system's clock.
    System,
    /// A clock that moves only when told to.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// A clock that stands at `now`.
    pub fn manual(now: Timestamp) -> Self {
        Self::Manual(Arc::new(AtomicI64::new(now.micros())))
    }

    /// The current time.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => {
                // The one place that reads the system's clock.
                #[allow(clippy::disallowed_methods)]
                let now = std::time::SystemTime::now();
                let since = now
                    .duration_since(std::time::UNIX_EPOCH)
                    .unwrap_or_default();
                Timestamp::from_micros(crate::model::time::micros(since))
            }
            Self::Manual(micros) => Timestamp::from_micros(micros.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock forward; the system's clock is left alone.
    pub fn advance(&self, by: Duration) {
        match self {
            Self::System => {}
            Self::Manual(micros) => {
                micros.fetch_add(crate::model::time::micros(by), Ordering::SeqCst);
            }
        }
    }
}
