//! R3: what credentials and principals use: recorded once, summed exactly, limited across replicas (R-USE-1, R-USE-2).
//!
//! Whoever calls a provider asks first (`acquire`) and tells afterwards (`record`). Every decision and every sum is made in
//! a transaction of the database, so it does not matter how many daemons take part. The daemon's own data-plane calls are
//! counted by the gate and written now and then (`flush`).

mod acquire;
mod config;
mod limits;
mod meter;
mod record;
mod report;

pub use acquire::{Acquire, Acquired, Warning};
pub use config::UsageConfig;
pub use record::Recorded;

/// Events of one call of RecordUsage.
pub const MOST_EVENTS: usize = 1000;

use crate::{clock::Clock, model::Timestamp, store::Db};

// The edges see the store's rows under this roof.
pub use crate::store::{UsageQuery as Report, UsageRow as ReportRow};

/// Usage and limits.
pub struct Usage {
    db: Db,
    clock: Clock,
    config: UsageConfig,
}

impl Usage {
    /// Usage over these parts.
    pub const fn new(db: Db, clock: Clock, config: UsageConfig) -> Self {
        Self { db, clock, config }
    }

    /// The time, for events and reports that name none.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The configuration.
    pub const fn config(&self) -> &UsageConfig {
        &self.config
    }
}
