//! R5: what the daemon does without being asked: `run(…, shutdown)` on every replica, and scheduled work on one of them.

mod feed;
mod leader;
mod probe;
mod scheduler;
mod switch_key;

pub use feed::{Feed, FeedConfig};
pub use probe::probe_backends;
pub use scheduler::{SchedulerConfig, Work, run_scheduler};
