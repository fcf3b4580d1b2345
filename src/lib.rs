//! Claviger: a key-management daemon.
pub mod authn;
pub mod backends;
pub mod clock;
pub mod error;
pub mod grpc;
pub mod health;
pub mod http;
pub mod model;
pub mod telemetry;
