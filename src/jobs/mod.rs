//! R5: what the daemon does without being asked: `run(…, shutdown)` on every replica, and scheduled work on one of them.

mod complete_grace;
mod expire_requests;
mod feed;
mod keep_standby;
mod leader;
mod overdue;
mod probe;
mod rotate_due;
mod rotation_steps;
mod round;
mod scheduler;

pub use feed::{Feed, FeedConfig};
pub use probe::probe_backends;
pub use round::Patience;
pub use scheduler::{SchedulerConfig, Work, run_scheduler};
