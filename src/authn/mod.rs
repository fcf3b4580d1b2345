//! R4: who is calling.
//!
//! `tls` terminates TLS and hands out connections; `peer` says what the client's certificate proves; `credentials` reads
//! what a request shows besides; `authn` finds the principal that all of it belongs to, `bearer` and `issuers` for tokens.
//! `accepts` says which credentials a call takes, `throttle` bounds failures. The gRPC and HTTP listeners call these.
//! Nothing here decides what a caller may do.

mod accepts;
mod bearer;
mod credentials;
mod issuers;
pub mod peer;
mod throttle;
pub mod tls;
mod who;

pub use accepts::{AcceptConfig, CredentialKind};
pub use credentials::{Credentials, Shown};
pub use issuers::{IssuerConfig, Issuers};
pub use peer::{ConnectedPeer, Peer};
pub use throttle::{RETRY_AFTER as THROTTLED_FOR, Throttle};
pub use tls::renewal::keep_current;
pub use tls::{
    AcceptLimits, ClientCertificate, Manner, ReloadableTls, TlsConfig, TlsConn, accept,
    first_expiry,
};
pub use who::{Authn, AuthnConfig, Refusal};
