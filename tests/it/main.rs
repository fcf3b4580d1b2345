//! Tests through the public API and the binary.

mod cli;
