//! Every test that needs more than one module, in one binary.
//! The one test binary: what the daemon promises, shown through its public API.
//! Tests through the public API, on real sockets.
//! Tests through the public API and the binary.

mod access_option;
mod authz;
mod cli;
mod conformance;
mod envelope;
mod http;
mod listener;
mod pkcs11;
mod pki;
mod ranks;
mod softhsm;
mod tls;
