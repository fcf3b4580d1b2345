//! R3: credentials that act as somebody else: API keys, and the OAuth clients of the token endpoint.
//!
//! Both belong to a principal and act as it, with no more than it holds at the moment of use (R-OAUTH-2). `registry` keeps
//! the registered clients, `authenticate` says which client makes a request, `exchange` gives it a token, `coalesce` the
//! same one again where the client asked for that. Who may do what is not decided here.

mod api_keys;
mod assertion;
mod authenticate;
mod coalesce;
mod config;
mod exchange;
mod jwks;
mod registry;

pub use api_keys::{
    Admitted, ApiKeys, ApiKeysConfig, CreateApiKey, Pepper, Progress, Rejection, RotateApiKey,
    Rotated,
};
pub use authenticate::{Authenticated, Proof, Refusal, ShownCertificate};
pub use config::{ClientMethod, OauthConfig};
pub use exchange::{Denial, Granted, Wanted};
pub use jwks::assertion_algorithms;
pub use registry::{ClientChange, Clients, CreateClient};
