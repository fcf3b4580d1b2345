//! Claviger: a key-management daemon.
pub mod backends;
pub mod cli;
pub mod clock;
pub mod error;
pub mod grpc;
pub mod model;
