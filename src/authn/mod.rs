//! R4: who is calling.
//!
//! `tls` terminates mutual TLS and hands out connections; `peer` says what the client's certificate proves; `mtls`
//! finds the principal it belongs to.
//! The gRPC and HTTP listeners call both. Nothing here decides what a caller may do.

mod mtls;
pub mod peer;
pub mod tls;

pub use mtls::Authn;
pub use peer::{ConnectedPeer, Peer};
pub use tls::{AcceptLimits, ReloadableTls, TlsConfig, TlsConn, accept, first_expiry};
