//! R5: the HTTP listeners, public and ops.
//!
//! `public` is TLS for verifiers and OAuth clients; `ops` is plain HTTP for the kubelet and Prometheus, on loopback
//! or inside the pod. Both are routers that `serve` runs under the same limits. Errors are problem documents
//! (RFC 9457), at the OAuth endpoints those of RFC 6749. Nothing here touches the database or a key.

pub mod credentials;
pub mod jwks;
mod metrics;
pub mod oauth;
pub mod ops;
pub mod problem;
pub mod public;
pub mod serve;

pub use credentials::BrokerCredentials;
pub use jwks::JwksSource;
pub use oauth::{Metadata, Oauth};
pub use ops::OpsConfig;
pub use public::PublicConfig;
