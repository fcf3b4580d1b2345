//! Claviger: a key-management daemon.
pub mod audit;
pub mod backends;
pub mod clock;
pub mod error;
pub mod grpc;
pub mod model;
pub mod store;
