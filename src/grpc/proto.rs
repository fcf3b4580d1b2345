//! Code generated from `proto/claviger/v1`, and the descriptor it was generated from.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("claviger.v1");

/// The encoded `FileDescriptorSet`, custom options included.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/claviger.bin"));
