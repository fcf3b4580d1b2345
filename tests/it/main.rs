//! Every test that needs more than one module, in one binary.
//! The one test binary: what the daemon promises, shown through its public API.

mod access_option;
mod authz;
mod conformance;
mod envelope;
mod pkcs11;
mod ranks;
mod softhsm;
