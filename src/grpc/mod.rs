//! R5: the gRPC listener.
pub mod layers;
pub mod listener;
pub mod proto;
