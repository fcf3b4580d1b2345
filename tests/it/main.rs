//! Tests through the public API, on real sockets.

mod pki;
mod tls;
