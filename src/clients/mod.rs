//! R3: what programs of the platform show to be let in, and what they get for it: API keys and OAuth clients.
//!
//! Both belong to a principal and act as it, with no more than it holds at the moment of use (R-OAUTH-2).

mod api_keys;

pub use api_keys::{
    Admitted, ApiKeys, ApiKeysConfig, CreateApiKey, Pepper, Progress, Rejection, RotateApiKey,
    Rotated,
};
