//! The one test binary: what the daemon promises, shown through its public API and the binary itself.

mod access_option;
mod api_doc;
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
