//! Claviger: a key-management daemon.
pub mod authz;
pub mod backends;
pub mod clock;
pub mod envelope;
pub mod error;
pub mod grpc;
pub mod model;
