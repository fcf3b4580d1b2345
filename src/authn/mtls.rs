//! From a certificate to a principal.
//!
//! The certificate was verified in the handshake; here its identities are looked up in the directory, in the order
//! of `peer`. A certificate that expires while its connection is open stops counting at once. Whoever has no
//! principal is turned away, and that is recorded.

use std::sync::Arc;

use super::Peer;
use crate::{
    clock::Clock,
    directory::Directory,
    error::{Error, Reason, Result},
    gate::{Gate, Stranger},
    model::{Action, Caller, Credential},
};

/// Says who is calling.
pub struct Authn {
    directory: Arc<Directory>,
    gate: Arc<Gate>,
    clock: Clock,
}

impl Authn {
    /// Authentication against this directory.
    pub const fn new(directory: Arc<Directory>, gate: Arc<Gate>, clock: Clock) -> Self {
        Self {
            directory,
            gate,
            clock,
        }
    }

    /// The caller behind a connection, about to do `action`. A warm call costs one cache lookup.
    ///
    /// Errors: UNKNOWN_PRINCIPAL, CERTIFICATE_EXPIRED; both are recorded.
    pub async fn caller(
        &self,
        peer: Option<&Peer>,
        request_id: Arc<str>,
        action: Action,
    ) -> Result<Caller> {
        let Some(peer) = peer else {
            return Err(Error::internal("a connection without a peer"));
        };
        let refusal = if self.clock.now() >= peer.not_after && !peer.identities.is_empty() {
            Error::new(
                Reason::CertificateExpired,
                "the client certificate has expired; connect again with a new one",
            )
        } else {
            for identity in &peer.identities {
                if let Some(principal) = self.directory.authenticate(identity).await? {
                    return Ok(Caller {
                        principal,
                        credential: Credential::Certificate,
                        request_id,
                        idempotency: None,
                    });
                }
            }
            Error::new(
                Reason::UnknownPrincipal,
                "the client certificate is valid, but none of its identities belongs to a principal; \
                 a principal-admin can create one",
            )
        };
        let identity = peer.identities.first();
        let named = identity.map_or(peer.fingerprint.as_str(), |identity| identity.as_str());
        let stranger = Stranger {
            named: named.to_owned(),
            source: peer.addr.ip(),
            reason: refusal.reason().as_str(),
        };
        self.gate
            .refuse_stranger(stranger, action, &request_id)
            .await;
        Err(refusal)
    }
}
