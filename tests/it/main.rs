//! Tests through the public API, on real sockets.

mod http;
mod listener;
mod pki;
mod tls;
