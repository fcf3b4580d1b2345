//! What is used, what it costs, and how much it may come to. Plain sums and pure rules; `store` keeps the rows.

mod cost;
mod limits;
mod sums;
mod window;

pub use cost::Cost;
pub use limits::{Budget, Limit, Period, Subject, SubjectKind};
pub use sums::{Span, UsageEvent, UsageKey, Used, aligned};
pub use window::Window;

/// Providers whose names begin so are the daemon's own: nobody else records anything for them.
pub const OWN_PREFIX: &str = "claviger";
/// The provider of the daemon's own data-plane calls.
pub const OWN_CALLS: &str = "claviger";
/// The provider under which failed authentications are counted, by the address that they came from.
pub const FAILED_LOGINS: &str = "claviger-authn";
/// In the place of an address: those that were too many to be counted apart.
pub const OTHERS: &str = "others";
