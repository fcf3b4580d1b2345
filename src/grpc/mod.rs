//! R5: the gRPC listener.
pub mod proto;
