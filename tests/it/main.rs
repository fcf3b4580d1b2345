//! The one test binary: what the daemon promises, shown through its public API and the binary itself.

mod access_option;
mod api_doc;
mod audit_walk;
mod authz;
mod bad_input;
mod cli;
mod conformance;
mod daemon;
mod envelope;
mod foreign;
mod gate;
mod http;
mod listener;
mod main_job;
mod pkcs11;
mod pki;
mod postgres;
mod ranks;
mod roles;
mod rpcs;
mod smoke;
mod softhsm;
mod store;
mod stumbles;
mod tls;
mod warm_path;
