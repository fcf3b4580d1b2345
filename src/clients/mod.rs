//! R3: API keys and OAuth clients.

mod api_keys;

pub use api_keys::{Admitted, ApiKeys, Rejection};
