//! R5: what the daemon does without being asked. Each job is `run(…, shutdown)` and safe to run twice.

mod feed;
mod probe;

pub use feed::{Feed, FeedConfig};
pub use probe::probe_backends;
