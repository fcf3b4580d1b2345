//! The one test binary: what the daemon promises, shown through its public API.

mod access_option;
mod authz;
mod envelope;
mod ranks;
