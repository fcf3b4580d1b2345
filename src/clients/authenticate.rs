//! Which client makes a request: by a secret, an assertion or a certificate.
//!
//! A client comes as its owner, limited to the scopes that the client, the API key and the owner hold all three at this
//! moment. Whoever is none hears one and the same answer; why is for the log.

use std::sync::Arc;

use super::{Admitted, Clients, Rejection, assertion::Unverified, registry::Registered};
use crate::{
    error::Result,
    model::{
        ApiKeyId, ApiKeyText, Client, ClientId, ClientProof, ClientState, Credential, Identity,
        Principal, PrincipalId, PrincipalState, Scopes, Secret, Timestamp,
    },
    tokens::Claims,
};

/// What a request shows to prove which client makes it.
pub enum Proof<'a> {
    /// A client_id and a client_secret.
    Secret {
        /// The client_id.
        client_id: &'a str,
        /// The text of an API key.
        secret: Secret<String>,
    },
    /// A client assertion, perhaps with a client_id beside it.
    Assertion {
        /// The client_id.
        client_id: Option<&'a str>,
        /// The JWT.
        assertion: &'a str,
    },
    /// A client_id and the certificate of the connection.
    Certificate {
        /// The client_id.
        client_id: &'a str,
        /// The certificate.
        certificate: ShownCertificate<'a>,
    },
}

/// A certificate whose chain was verified and whose key the other end has.
#[derive(Clone, Debug)]
pub struct ShownCertificate<'a> {
    /// The names in it.
    pub identities: &'a [Identity],
    /// Its SHA-256 in base64url.
    pub thumbprint: String,
    /// When it expires.
    pub not_after: Timestamp,
}

/// The client that makes a request.
#[derive(Debug)]
pub struct Authenticated {
    /// The id of the client, or of an API key without a client.
    pub client_id: String,
    /// Its owner, with no more roles and scopes than it brings along.
    pub principal: Arc<Principal>,
    /// What proved it.
    pub credential: Credential,
    /// Everything it may ask for.
    pub scopes: Scopes,
    /// The client; None for an API key without one.
    pub(super) client: Option<Arc<Registered>>,
    /// The API key.
    pub(super) api_key: Option<ApiKeyId>,
    /// When the API key ends.
    pub(super) expires_at: Option<Timestamp>,
    /// The certificate that its tokens are bound to.
    pub(super) bound_to: Option<String>,
}

/// Why a request comes from nobody. For the log only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no client with this id.
    UnknownClient,
    /// The client proves itself in another way.
    WrongMethod,
    /// The client is suspended.
    ClientSuspended,
    /// The owner is suspended.
    OwnerSuspended,
    /// The owner is gone.
    OwnerGone,
    /// The API key does not count.
    ApiKey(Rejection),
    /// The API key counts, and is the secret of another client.
    ForeignSecret,
    /// No API key, or no JWT.
    Malformed,
    /// The header of the assertion holds more than `alg`, `kid` and `typ`, or another `typ`.
    ForbiddenHeader,
    /// The client has no key with this kid.
    UnknownKid,
    /// The key is not for this algorithm.
    WrongAlgorithm,
    /// The signature of the assertion does not verify.
    BadSignature,
    /// A claim of the assertion is missing or malformed.
    BadClaims,
    /// `iss`, `sub` and client_id are not one and the same.
    WrongIssuer,
    /// `aud` is not us, or not us alone.
    WrongAudience,
    /// The assertion has expired.
    Expired,
    /// The assertion would last too long.
    TooLong,
    /// `iat` or `nbf` is in the future.
    NotYetValid,
    /// The assertion was taken before.
    Replayed,
    /// The connection has no certificate.
    NoCertificate,
    /// The certificate has another name.
    WrongCertificate,
    /// The certificate has expired.
    CertificateExpired,
}

impl Refusal {
    /// The text in audit rows.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownClient => "UNKNOWN_CLIENT",
            Self::WrongMethod => "WRONG_METHOD",
            Self::ClientSuspended => "CLIENT_SUSPENDED",
            Self::OwnerSuspended => "OWNER_SUSPENDED",
            Self::OwnerGone => "OWNER_GONE",
            Self::ApiKey(rejection) => rejection.as_str(),
            Self::ForeignSecret => "FOREIGN_SECRET",
            Self::Malformed => "MALFORMED",
            Self::ForbiddenHeader => "FORBIDDEN_HEADER",
            Self::UnknownKid => "UNKNOWN_KID",
            Self::WrongAlgorithm => "WRONG_ALGORITHM",
            Self::BadSignature => "BAD_SIGNATURE",
            Self::BadClaims => "BAD_CLAIMS",
            Self::WrongIssuer => "WRONG_ISSUER",
            Self::WrongAudience => "WRONG_AUDIENCE",
            Self::Expired => "EXPIRED",
            Self::TooLong => "TOO_LONG",
            Self::NotYetValid => "NOT_YET_VALID",
            Self::Replayed => "REPLAYED",
            Self::NoCertificate => "NO_CERTIFICATE",
            Self::WrongCertificate => "WRONG_CERTIFICATE",
            Self::CertificateExpired => "CERTIFICATE_EXPIRED",
        }
    }
}

type Verdict = std::result::Result<Authenticated, Refusal>;

impl Clients {
    /// The client that `proof` proves. `may_look` says whether the database may be asked about one that is not known in
    /// memory.
    ///
    /// Errors only when nobody can tell: DATABASE_UNAVAILABLE, BACKEND_UNAVAILABLE.
    pub async fn authenticate(&self, proof: Proof<'_>, may_look: bool) -> Result<Verdict> {
        match proof {
            Proof::Secret { client_id, secret } => {
                self.by_secret(client_id, secret, may_look).await
            }
            Proof::Assertion {
                client_id,
                assertion,
            } => self.by_assertion(client_id, assertion, may_look).await,
            Proof::Certificate {
                client_id,
                certificate,
            } => self.by_certificate(client_id, certificate, may_look).await,
        }
    }

    async fn by_secret(
        &self,
        client_id: &str,
        secret: Secret<String>,
        may_look: bool,
    ) -> Result<Verdict> {
        let Ok(text) = ApiKeyText::parse(secret) else {
            return Ok(Err(Refusal::Malformed));
        };
        let admitted = match self.api_keys.admit(&text, may_look).await? {
            Ok(admitted) => admitted,
            Err(rejection) => return Ok(Err(Refusal::ApiKey(rejection))),
        };
        let Admitted {
            key,
            principal,
            scopes,
        } = admitted;
        let credential = Credential::ApiKey(key.id);
        let Some(id) = key.client else {
            return Ok(match client_id == key.id.to_string() {
                true => Ok(Authenticated {
                    client_id: client_id.to_owned(),
                    principal,
                    credential,
                    scopes,
                    client: None,
                    api_key: Some(key.id),
                    expires_at: Some(key.expires_at),
                    bound_to: None,
                }),
                false => Err(Refusal::ForeignSecret),
            });
        };
        if client_id != id.to_string() {
            return Ok(Err(Refusal::ForeignSecret));
        }
        // Whoever shows the right secret may be looked up, wherever the request comes from.
        let Some(client) = self.registered(id, true).await? else {
            return Ok(Err(Refusal::UnknownClient));
        };
        if client.client.proof != ClientProof::Secret {
            return Ok(Err(Refusal::WrongMethod));
        }
        // A key that was made for a client cannot outlive its bond to the client's owner.
        if client.client.owner != key.owner {
            return Ok(Err(Refusal::ForeignSecret));
        }
        Ok(
            acts_as(&client, &principal, &scopes, credential).map(|client| Authenticated {
                api_key: Some(key.id),
                expires_at: Some(key.expires_at),
                ..client
            }),
        )
    }

    async fn by_assertion(
        &self,
        client_id: Option<&str>,
        assertion: &str,
        may_look: bool,
    ) -> Result<Verdict> {
        let assertion = match Unverified::parse(assertion) {
            Ok(assertion) => assertion,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if client_id.is_some_and(|id| id != assertion.issuer()) {
            return Ok(Err(Refusal::WrongIssuer));
        }
        let client = match self.of_id(assertion.issuer(), may_look).await? {
            Ok(client) => client,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if !matches!(client.client.proof, ClientProof::Assertion { .. }) {
            return Ok(Err(Refusal::WrongMethod));
        }
        if let Err(refusal) = self.take(&client, &assertion).await? {
            return Ok(Err(refusal));
        }
        let credential = Credential::Token {
            issuer: client.client.id.to_string().into(),
            jti: assertion.jti().into(),
        };
        self.as_owner(&client, credential).await
    }

    async fn by_certificate(
        &self,
        client_id: &str,
        certificate: ShownCertificate<'_>,
        may_look: bool,
    ) -> Result<Verdict> {
        let client = match self.of_id(client_id, may_look).await? {
            Ok(client) => client,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let ClientProof::Certificate { identity } = &client.client.proof else {
            return Ok(Err(Refusal::WrongMethod));
        };
        if certificate.thumbprint.is_empty() {
            return Ok(Err(Refusal::NoCertificate));
        }
        if self.clock.now() >= certificate.not_after {
            return Ok(Err(Refusal::CertificateExpired));
        }
        if !certificate.identities.contains(identity) {
            return Ok(Err(Refusal::WrongCertificate));
        }
        let authenticated = self.as_owner(&client, Credential::Certificate).await?;
        Ok(authenticated.map(|client| Authenticated {
            bound_to: Some(certificate.thumbprint),
            ..client
        }))
    }

    /// Does the credential behind verified claims still count: is the subject, if it is a principal, not suspended, and the
    /// client, if it is one of ours, neither suspended nor revoked? Tokens that are out end with those, on every replica
    /// within `max_staleness`.
    pub async fn still_counts(&self, claims: &Claims) -> Result<bool> {
        if let Ok(subject) = claims.sub.parse::<PrincipalId>()
            && let Some(principal) = self.directory.principal(subject).await?
            && principal.state == PrincipalState::Suspended
        {
            return Ok(false);
        }
        if let Ok(id) = claims.client_id.parse::<ClientId>()
            && claims.gty.is_some()
        {
            return match self.registered(id, true).await? {
                Some(registered) => Ok(registered.client.state == ClientState::Active),
                None => self.api_keys.is_unrevoked(ApiKeyId::of(id)).await,
            };
        }
        Ok(true)
    }

    async fn of_id(
        &self,
        client_id: &str,
        may_look: bool,
    ) -> Result<std::result::Result<Arc<Registered>, Refusal>> {
        let Ok(id) = client_id.parse::<ClientId>() else {
            return Ok(Err(Refusal::UnknownClient));
        };
        let found = self.registered(id, may_look).await?;
        Ok(found.ok_or(Refusal::UnknownClient))
    }

    /// For a client that has proved itself without an API key.
    async fn as_owner(&self, client: &Arc<Registered>, credential: Credential) -> Result<Verdict> {
        let Some(owner) = self.directory.principal(client.client.owner).await? else {
            return Ok(Err(Refusal::OwnerGone));
        };
        let held = owner.held();
        Ok(acts_as(client, &owner, &held, credential))
    }
}

/// The client as its owner, as far as the client reaches.
fn acts_as(
    registered: &Arc<Registered>,
    owner: &Principal,
    held: &Scopes,
    credential: Credential,
) -> Verdict {
    let client: &Client = &registered.client;
    if client.state == ClientState::Suspended {
        return Err(Refusal::ClientSuspended);
    }
    if owner.state == PrincipalState::Suspended {
        return Err(Refusal::OwnerSuspended);
    }
    let scopes = client.scopes.intersection(held);
    Ok(Authenticated {
        client_id: client.id.to_string(),
        principal: Arc::new(owner.limited_to(&scopes)),
        credential,
        scopes,
        client: Some(Arc::clone(registered)),
        api_key: None,
        expires_at: None,
        bound_to: None,
    })
}
