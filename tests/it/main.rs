//! The one test binary: what the daemon promises, shown through its public API and the binary itself.

mod access_option;
mod authz;
mod bad_input;
mod cli;
mod conformance;
mod daemon;
mod envelope;
mod gate;
mod http;
mod listener;
mod pkcs11;
mod pki;
mod postgres;
mod ranks;
mod smoke;
mod softhsm;
mod store;
mod tls;
