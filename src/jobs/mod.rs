//! R5: what the daemon does without being asked: `run(…, shutdown)` on every replica, and scheduled work on one of them.

mod destroy_due;
mod feed;
mod leader;
mod probe;
mod prune;
mod reconcile;
mod scheduler;
mod uses;

pub use feed::{Feed, FeedConfig};
pub use probe::probe_backends;
pub use prune::IdempotencyConfig;
pub use scheduler::{SchedulerConfig, Work, run_scheduler};
pub use uses::flush_uses;
