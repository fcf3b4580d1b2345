//! From what a request shows to a principal.
//!
//! A credential in the headers says who calls, before the certificate of the connection does: it was chosen for this
//! request. One that does not count is refused and the certificate is not asked instead, so nobody acts as somebody else
//! than they meant. A certificate's identities are looked up in the order of `peer`, and one that expires while its
//! connection is open stops counting at once. Whoever is nobody is turned away with one and the same answer, and the log
//! says why.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use serde::Deserialize;
use tracing::{Instrument, field};

use super::{
    AcceptConfig, CredentialKind, Credentials, IssuerConfig, Issuers, Peer, Shown, Throttle,
    issuers::NotFromIssuer, throttle::RETRY_AFTER,
};
use crate::{
    clients::{self, ApiKeys, Clients},
    clock::Clock,
    directory::Directory,
    error::{Error, Reason, Result},
    gate::{Gate, Stranger},
    model::{
        Action, ApiKeyText, Caller, Credential, Principal, PrincipalId, PrincipalState, Timestamp,
    },
    tokens::{Rejection, Tokens},
    trace,
};

/// Section `[authn]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthnConfig {
    /// Which credentials calls take, by their exposure.
    pub accept: AcceptConfig,
    /// `aud` of tokens that are meant for this daemon. IssueToken issues none for it: only the token endpoint does, whose
    /// subject is who asked.
    pub audience: String,
    /// Issuers of OpenID Connect tokens that are taken, such as a Kubernetes cluster.
    pub issuers: Vec<IssuerConfig>,
    /// Failed authentications per minute, of one source and of one id, that are answered and recorded one by one.
    /// Default 30.
    pub failures_per_minute: u32,
}

impl Default for AuthnConfig {
    fn default() -> Self {
        Self {
            accept: AcceptConfig::default(),
            audience: "claviger".to_owned(),
            issuers: Vec::new(),
            failures_per_minute: 30,
        }
    }
}

impl AuthnConfig {
    /// Errors: a sentence that names the setting.
    pub fn check(&self, own_issuer: &str) -> std::result::Result<(), String> {
        if self.audience.is_empty() || self.audience.len() > 255 {
            return Err("authn.audience must be 1 to 255 characters".into());
        }
        if !(1..=10_000).contains(&self.failures_per_minute) {
            return Err("authn.failures_per_minute must be 1 to 10000".into());
        }
        super::issuers::check(&self.issuers, own_issuer)
    }
}

/// Why somebody is nobody. For the log: the caller hears CREDENTIAL_INVALID and no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No certificate, and nothing else.
    Nothing,
    /// The certificate is valid and nobody's.
    NobodysCertificate,
    /// The certificate expired while the connection was open.
    CertificateExpired,
    /// More than one credential.
    Ambiguous,
    /// No API key and no bearer token.
    Malformed,
    /// A call like this does not take such a credential.
    NotAccepted,
    /// An API key that does not count.
    ApiKey(clients::Rejection),
    /// A token of ours that does not count.
    Token(Rejection),
    /// A token of another issuer that does not count.
    Foreign(NotFromIssuer),
    /// The token's subject is no principal, or not the one that it says.
    UnknownSubject,
    /// The principal is suspended.
    Suspended,
}

impl Refusal {
    /// The text in audit rows and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing | Self::NobodysCertificate => Reason::UnknownPrincipal.as_str(),
            Self::CertificateExpired => Reason::CertificateExpired.as_str(),
            Self::Ambiguous => "AMBIGUOUS",
            Self::Malformed => "MALFORMED",
            Self::NotAccepted => "NOT_ACCEPTED",
            Self::ApiKey(rejection) => rejection.as_str(),
            Self::Token(rejection) => rejection.as_str(),
            Self::Foreign(why) => why.as_str(),
            Self::UnknownSubject => "UNKNOWN_SUBJECT",
            Self::Suspended => "SUSPENDED",
        }
    }

    /// Was it an attempt that costs whoever makes it nothing? A certificate's holder has proved a private key,
    /// and somebody who is known and may not come like this was no failure to authenticate.
    const fn is_cheap(self) -> bool {
        match self {
            Self::NobodysCertificate
            | Self::CertificateExpired
            | Self::NotAccepted
            | Self::Suspended => false,
            Self::Nothing
            | Self::Ambiguous
            | Self::Malformed
            | Self::ApiKey(_)
            | Self::Token(_)
            | Self::Foreign(_)
            | Self::UnknownSubject => true,
        }
    }
}

/// The parts that authentication needs.
pub struct Authn {
    pub(super) directory: Arc<Directory>,
    pub(super) api_keys: Arc<ApiKeys>,
    pub(super) clients: Arc<Clients>,
    pub(super) tokens: Arc<Tokens>,
    pub(super) issuers: Arc<Issuers>,
    gate: Arc<Gate>,
    clock: Clock,
    pub(super) config: AuthnConfig,
    throttle: Arc<Throttle>,
}

/// Who somebody is, and what proved it.
pub(super) type Known = (Arc<Principal>, Credential);

/// A failure to say who somebody is.
pub(super) enum Unknown {
    /// They are nobody; or the one with this id, who may not come now, or not like this.
    Refused(Refusal, Option<PrincipalId>),
    /// Nobody can tell: a part that is needed does not answer.
    Error(Error),
}

impl From<Error> for Unknown {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Refusal> for Unknown {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal, None)
    }
}

impl Authn {
    /// Authentication by these parts.
    pub fn new(
        (directory, tokens, gate): (Arc<Directory>, Arc<Tokens>, Arc<Gate>),
        (api_keys, clients): (Arc<ApiKeys>, Arc<Clients>),
        issuers: Arc<Issuers>,
        clock: Clock,
        config: AuthnConfig,
    ) -> Self {
        let throttle = Arc::new(Throttle::new(config.failures_per_minute));
        Self {
            directory,
            api_keys,
            clients,
            tokens,
            issuers,
            gate,
            clock,
            config,
            throttle,
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// `aud` of tokens that are meant for this daemon.
    pub fn audience(&self) -> &str {
        &self.config.audience
    }

    /// The bounds of failures, for those who authenticate clients by other means.
    pub fn throttle(&self) -> &Arc<Throttle> {
        &self.throttle
    }

    /// Who makes a request, about to do `action`. A warm call costs one cache lookup, and for a token one verification.
    /// The use of an API key is recorded with the call.
    ///
    /// Errors: UNKNOWN_PRINCIPAL and CERTIFICATE_EXPIRED for certificates, PRINCIPAL_SUSPENDED, CREDENTIAL_NOT_ACCEPTED,
    /// CREDENTIAL_INVALID for whatever else is wrong, TOO_MANY_FAILURES; all of them recorded. And when nobody can tell:
    /// DATABASE_UNAVAILABLE, BACKEND_UNAVAILABLE.
    pub async fn caller(
        &self,
        credentials: &Credentials,
        request_id: Arc<str>,
        action: Action,
    ) -> Result<Caller> {
        let step = trace::step!("authenticate", claviger.credential = field::Empty);
        let known = self.known(credentials, action).instrument(step.clone());
        let (principal, credential) = match known.await {
            Ok(known) => known,
            Err(Unknown::Error(error)) => return Err(error),
            Err(Unknown::Refused(refusal, who)) => {
                return Err(self
                    .refused(credentials, &request_id, action, (refusal, who))
                    .instrument(step)
                    .await);
            }
        };
        if !step.is_disabled() {
            step.record("claviger.credential", credential.kind());
            trace::root_is_of(&principal.id, &principal.tenant);
        }
        let caller = Caller {
            principal,
            credential,
            request_id,
            idempotency: None,
        };
        self.gate.note_api_key(&caller, action);
        Ok(caller)
    }

    /// As `caller`, for one that was let in and is still at it. Leaves no row when the answer is the same.
    pub async fn again(
        &self,
        credentials: &Credentials,
        request_id: Arc<str>,
        action: Action,
    ) -> Result<Caller> {
        match self.known(credentials, action).await {
            Ok((principal, credential)) => Ok(Caller {
                principal,
                credential,
                request_id,
                idempotency: None,
            }),
            Err(Unknown::Error(error)) => Err(error),
            Err(Unknown::Refused(refusal, who)) => Err(self
                .refused(credentials, &request_id, action, (refusal, who))
                .await),
        }
    }

    async fn known(
        &self,
        credentials: &Credentials,
        action: Action,
    ) -> std::result::Result<Known, Unknown> {
        let peer = credentials.peer().map(|peer| &*peer.0);
        let (kind, known) = match credentials.shown()? {
            None => (CredentialKind::Certificate, self.by_certificate(peer).await),
            Some(Shown::ApiKey(text)) => {
                let may_look = self.throttle.may_look(source(peer));
                (
                    CredentialKind::ApiKey,
                    self.by_api_key(text, may_look).await,
                )
            }
            Some(Shown::Token(text)) => (
                CredentialKind::Token,
                self.by_token(text, peer, self.throttle.may_look(source(peer)))
                    .await,
            ),
        };
        let (principal, credential) = known?;
        // Asked last: whoever shows something that does not count learns nothing about what would.
        if !self.config.accept.accepts(action, kind) {
            return Err(Unknown::Refused(Refusal::NotAccepted, Some(principal.id)));
        }
        match principal.state {
            PrincipalState::Active => Ok((principal, credential)),
            PrincipalState::Suspended => {
                Err(Unknown::Refused(Refusal::Suspended, Some(principal.id)))
            }
        }
    }

    async fn by_certificate(&self, peer: Option<&Peer>) -> std::result::Result<Known, Unknown> {
        let Some(peer) = peer else {
            return Err(Error::internal("a connection without a peer").into());
        };
        if peer.fingerprint.is_empty() {
            return Err(Refusal::Nothing.into());
        }
        if self.has_expired(peer) {
            return Err(Refusal::CertificateExpired.into());
        }
        for identity in &peer.identities {
            if let Some(principal) = self.directory.authenticate(identity).await? {
                return Ok((principal, Credential::Certificate));
            }
        }
        Err(Refusal::NobodysCertificate.into())
    }

    /// Of a certificate, not of its absence.
    pub(super) fn has_expired(&self, peer: &Peer) -> bool {
        !peer.fingerprint.is_empty() && self.clock.now() >= peer.not_after
    }

    async fn by_api_key(
        &self,
        text: &ApiKeyText,
        may_look: bool,
    ) -> std::result::Result<Known, Unknown> {
        match self.api_keys.admit(text, may_look).await? {
            // It knows no scopes but its own, and not those of its client.
            Ok(admitted) if admitted.key.client.is_some() => {
                Err(Refusal::ApiKey(clients::Rejection::OfClient).into())
            }
            Ok(admitted) => {
                let credential = Credential::ApiKey(admitted.key.id);
                Ok((admitted.principal, credential))
            }
            Err(rejection) => Err(Refusal::ApiKey(rejection).into()),
        }
    }

    /// Records a refusal, and says what the caller hears.
    async fn refused(
        &self,
        credentials: &Credentials,
        request_id: &str,
        action: Action,
        (refusal, who): (Refusal, Option<PrincipalId>),
    ) -> Error {
        let peer = credentials.peer().map(|peer| &*peer.0);
        let id = match credentials.shown() {
            Ok(Some(Shown::ApiKey(text))) => Some(text.id()),
            Ok(_) | Err(_) => None,
        };
        metrics::counter!("claviger_authentication_failures_total", "reason" => refusal.as_str())
            .increment(1);
        let bytes = id.map(|id| *id.as_bytes());
        if refusal.is_cheap() && !self.throttle.failed(source(peer), bytes) {
            return Error::new(
                Reason::TooManyFailures,
                "too many credentials that do not count came from here; wait, and check the credential",
            )
            .retry_after(RETRY_AFTER);
        }
        let stranger = Stranger {
            named: match (who, id) {
                (Some(who), _) => who.to_string(),
                (None, Some(id)) => format!("api_key:{id}"),
                (None, None) => named(peer),
            },
            source: source(peer),
            reason: refusal.as_str(),
        };
        self.gate
            .refuse_stranger(stranger, action, request_id)
            .await;
        match refusal {
            Refusal::Nothing => Error::new(
                Reason::UnknownPrincipal,
                "this call needs a client certificate, a bearer token or an API key",
            ),
            Refusal::NobodysCertificate => Error::new(
                Reason::UnknownPrincipal,
                "the client certificate is valid, but none of its identities belongs to a principal; \
                 a principal-admin can create one",
            ),
            Refusal::CertificateExpired => Error::new(
                Reason::CertificateExpired,
                "the client certificate has expired; connect again with a new one",
            ),
            Refusal::NotAccepted => Error::new(
                Reason::CredentialNotAccepted,
                "this call does not take a credential of this kind; see authn.accept in the configuration",
            ),
            Refusal::Suspended => Error::new(
                Reason::PrincipalSuspended,
                "this principal is suspended; a principal-admin can resume it",
            ),
            Refusal::Ambiguous
            | Refusal::Malformed
            | Refusal::ApiKey(_)
            | Refusal::Token(_)
            | Refusal::Foreign(_)
            | Refusal::UnknownSubject => {
                Error::new(Reason::CredentialInvalid, "the credential is not valid")
            }
        }
    }
}

/// Where a request comes from. Without a peer nothing is known, and all such share one bucket.
fn source(peer: Option<&Peer>) -> IpAddr {
    peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.addr.ip())
}

/// What a row calls somebody who is nobody: the best name of the certificate, else its fingerprint, else nothing.
fn named(peer: Option<&Peer>) -> String {
    let Some(peer) = peer else {
        return "anonymous".to_owned();
    };
    match peer.identities.first() {
        Some(identity) => identity.to_string(),
        None if peer.fingerprint.is_empty() => "anonymous".to_owned(),
        None => peer.fingerprint.clone(),
    }
}
