//! R5: what the daemon does without being asked: `run(…, shutdown)` on every replica, and scheduled work on one of them.

mod alerts;
mod checkpoint_audit;
mod complete_grace;
mod destroy_due;
mod destroy_tenants;
mod expire_api_keys;
mod expire_requests;
mod feed;
mod keep_standby;
mod leader;
mod overdue;
mod probe;
mod prune;
mod reconcile;
mod rewrap_data_keys;
mod rotate_due;
mod rotation_steps;
mod round;
mod sample_data_keys;
mod scheduler;
mod sweep_data_keys;
mod switch_key;
mod usage;
mod uses;

pub use alerts::deliver_alerts;
pub use checkpoint_audit::Checkpoints;
pub use feed::{Feed, FeedConfig};
pub use probe::watch_backends;
pub use prune::IdempotencyConfig;
pub use rewrap_data_keys::Rewrapping;
pub use round::Patience;
pub use sample_data_keys::{Sampler, sample_data_keys};
pub use scheduler::{SchedulerConfig, Work, run_scheduler};
pub use sweep_data_keys::sweep_data_keys;
pub use usage::flush_usage;
pub use uses::{flush_api_key_uses, flush_uses};
