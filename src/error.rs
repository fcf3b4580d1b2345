//! The one error that crosses a module's edge: a stable reason, a sentence for the caller, a private cause.
//!
//! The reason fixes the kind, the kind fixes the gRPC code and HTTP status (`grpc/status.rs`,
//! `http/problem.rs`). The cause goes to the log and never to a caller.

use std::{borrow::Cow, error::Error as StdError, fmt, time::Duration};

/// Classes of failure, in the vocabulary of google.rpc.Code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request is wrong whatever the state of the system.
    InvalidArgument,
    /// Who calls is not known.
    Unauthenticated,
    /// Who calls may not.
    PermissionDenied,
    /// There is no such thing, or none that the caller may see.
    NotFound,
    /// There is one already.
    AlreadyExists,
    /// The system is not in a state for this.
    FailedPrecondition,
    /// Somebody else changed it first; read again and retry.
    Aborted,
    /// A bound was reached.
    ResourceExhausted,
    /// A part that is needed does not answer; retry later.
    Unavailable,
    /// The time the caller gave is over.
    DeadlineExceeded,
    /// No such RPC.
    Unimplemented,
    /// Our fault.
    Internal,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $text:literal: $kind:ident,)*) => {
        /// Stable, machine-readable reasons (`google.rpc.ErrorInfo.reason`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The text on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The class it belongs to.
            pub const fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind,)* }
            }
        }
    };
}

reasons! {
    /// A field is missing, malformed or out of range.
    InvalidField = "INVALID_FIELD": InvalidArgument,
    /// The payload has no bytes.
    PayloadEmpty = "PAYLOAD_EMPTY": InvalidArgument,
    /// The payload is over the limit.
    PayloadTooLarge = "PAYLOAD_TOO_LARGE": InvalidArgument,
    /// The digest's length does not fit the key's algorithm.
    DigestLength = "DIGEST_LENGTH": InvalidArgument,
    /// The algorithm does not fit the purpose or the key.
    AlgorithmMismatch = "ALGORITHM_MISMATCH": InvalidArgument,
    /// The ciphertext is truncated, changed, foreign, or the context does not match.
    CiphertextInvalid = "CIPHERTEXT_INVALID": InvalidArgument,
    /// The page token is not one we gave for this listing.
    PageTokenInvalid = "PAGE_TOKEN_INVALID": InvalidArgument,
    /// The request cannot be decoded, or is larger than any request may be.
    MalformedRequest = "MALFORMED_REQUEST": InvalidArgument,
    /// No certificate, or none of its identities belongs to a principal.
    UnknownPrincipal = "UNKNOWN_PRINCIPAL": Unauthenticated,
    /// The certificate expired while the connection was open.
    CertificateExpired = "CERTIFICATE_EXPIRED": Unauthenticated,
    /// The principal is suspended.
    PrincipalSuspended = "PRINCIPAL_SUSPENDED": Unauthenticated,
    /// The API key, token or assertion that was shown does not count, for whatever reason; the audit log knows which.
    CredentialInvalid = "CREDENTIAL_INVALID": Unauthenticated,
    /// This call does not take credentials of this kind.
    CredentialNotAccepted = "CREDENTIAL_NOT_ACCEPTED": Unauthenticated,
    /// Too many credentials that do not count came from this address.
    TooManyFailures = "TOO_MANY_FAILURES": ResourceExhausted,
    /// No policy permits it.
    PermissionDenied = "PERMISSION_DENIED": PermissionDenied,
    /// The same principal would hold two of requester, approver and deployer (R-LIFE-7).
    SeparationOfDuties = "SEPARATION_OF_DUTIES": PermissionDenied,
    /// The daemon alone uses this key.
    KeyReserved = "KEY_RESERVED": PermissionDenied,
    /// No such key, or none the caller may see.
    KeyNotFound = "KEY_NOT_FOUND": NotFound,
    /// No such rotation, or none the caller may see.
    RotationNotFound = "ROTATION_NOT_FOUND": NotFound,
    /// No such incident, or none the caller may see.
    IncidentNotFound = "INCIDENT_NOT_FOUND": NotFound,
    /// No such rotation of the KEK, or none the caller may see.
    KekRotationNotFound = "KEK_ROTATION_NOT_FOUND": NotFound,
    /// No such destruction, or none the caller may see.
    DestructionNotFound = "DESTRUCTION_NOT_FOUND": NotFound,
    /// No such principal, or none the caller may see.
    PrincipalNotFound = "PRINCIPAL_NOT_FOUND": NotFound,
    /// No such API key, or none the caller may see.
    ApiKeyNotFound = "API_KEY_NOT_FOUND": NotFound,
    /// No such OAuth client, or none the caller may see.
    ClientNotFound = "CLIENT_NOT_FOUND": NotFound,
    /// No such tenant, or none the caller may see.
    TenantNotFound = "TENANT_NOT_FOUND": NotFound,
    /// The subject has no limit of its own.
    LimitNotFound = "LIMIT_NOT_FOUND": NotFound,
    /// No such alert, or none the caller may see.
    AlertNotFound = "ALERT_NOT_FOUND": NotFound,
    /// No such delivery of an alert, or none the caller may see.
    DeliveryNotFound = "DELIVERY_NOT_FOUND": NotFound,
    /// The name or identity is taken.
    AlreadyExists = "ALREADY_EXISTS": AlreadyExists,
    /// The API key is not in the state that this needs.
    ApiKeyState = "API_KEY_STATE": FailedPrecondition,
    /// More scopes than the owner, the client or the caller holds.
    ScopeExceeded = "SCOPE_EXCEEDED": FailedPrecondition,
    /// The key has another purpose.
    KeyPurposeMismatch = "KEY_PURPOSE_MISMATCH": FailedPrecondition,
    /// The key has no version in the state that this needs.
    NoUsableVersion = "NO_USABLE_VERSION": FailedPrecondition,
    /// The key has an open rotation already.
    RotationOpen = "ROTATION_OPEN": FailedPrecondition,
    /// The rotation is not in the state that this needs.
    RotationState = "ROTATION_STATE": FailedPrecondition,
    /// The digest is not that of the current plan.
    PlanChanged = "PLAN_CHANGED": FailedPrecondition,
    /// The new kid has not been announced for long enough.
    RotationSoaking = "ROTATION_SOAKING": FailedPrecondition,
    /// The rotation was not deployed in time.
    RotationExpired = "ROTATION_EXPIRED": FailedPrecondition,
    /// The key's ACTIVE version was declared compromised and nothing has replaced it yet.
    KeyCompromised = "KEY_COMPROMISED": FailedPrecondition,
    /// The version is not in a state that allows this.
    VersionState = "VERSION_STATE": FailedPrecondition,
    /// Unexpired tokens, recent use or an open rotation still need the version.
    VersionInUse = "VERSION_IN_USE": FailedPrecondition,
    /// A destruction of the version is open already.
    DestructionOpen = "DESTRUCTION_OPEN": FailedPrecondition,
    /// The destruction is not in the state that this needs.
    DestructionState = "DESTRUCTION_STATE": FailedPrecondition,
    /// The keys of the tenant were destroyed, or are being destroyed: nothing is created in it any more.
    TenantErased = "TENANT_ERASED": FailedPrecondition,
    /// No key is configured that signs proofs of destruction, or it cannot sign.
    ProofKeyMissing = "PROOF_KEY_MISSING": FailedPrecondition,
    /// The incident is not in the state that this needs.
    IncidentState = "INCIDENT_STATE": FailedPrecondition,
    /// An incident is closed with a postmortem reference, and this call has none.
    PostmortemRequired = "POSTMORTEM_REQUIRED": FailedPrecondition,
    /// The confirmation names another postmortem than the proposal.
    PostmortemMismatch = "POSTMORTEM_MISMATCH": FailedPrecondition,
    /// The policy does not allow this: approvals are never lowered, AUTOMATIC needs exactly one.
    RotationPolicy = "ROTATION_POLICY": FailedPrecondition,
    /// The daemon's clock is behind a step that was recorded already.
    ClockBackwards = "CLOCK_BACKWARDS": FailedPrecondition,
    /// The idempotency key was used for another request.
    IdempotencyKeyReused = "IDEMPOTENCY_KEY_REUSED": FailedPrecondition,
    /// The object on the token cannot be taken over.
    KeyNotAdoptable = "KEY_NOT_ADOPTABLE": FailedPrecondition,
    /// The key is switched off in its backend, until an operator there changes that.
    KeySuspended = "KEY_SUSPENDED": FailedPrecondition,
    /// The backend does not permit this to the daemon.
    BackendDenied = "BACKEND_DENIED": FailedPrecondition,
    /// The backend cannot do this.
    Unsupported = "UNSUPPORTED_BY_BACKEND": FailedPrecondition,
    /// Somebody else changed the row first.
    Conflict = "CONFLICT": Aborted,
    /// The id of a usage event was used for another event.
    EventIdReused = "EVENT_ID_REUSED": FailedPrecondition,
    /// The alert is not in the state that this needs.
    AlertState = "ALERT_STATE": FailedPrecondition,
    /// The delivery is not in the state that this needs.
    DeliveryState = "DELIVERY_STATE": FailedPrecondition,
    /// The requests of this minute are made.
    RateLimited = "RATE_LIMITED": ResourceExhausted,
    /// The budget of this hour, day or month is spent.
    BudgetExhausted = "BUDGET_EXHAUSTED": ResourceExhausted,
    /// A queue is full.
    Overloaded = "OVERLOADED": ResourceExhausted,
    /// The token or KMS does not answer.
    BackendUnavailable = "BACKEND_UNAVAILABLE": Unavailable,
    /// The database does not answer.
    DatabaseUnavailable = "DATABASE_UNAVAILABLE": Unavailable,
    /// The audit record could not be written, so the call did not happen.
    AuditUnavailable = "AUDIT_UNAVAILABLE": Unavailable,
    /// This replica has not seen the change feed for too long to trust its caches.
    ReplicaStale = "REPLICA_STALE": Unavailable,
    /// Another replica took over the scheduled work.
    LeaseLost = "LEASE_LOST": Unavailable,
    /// The daemon is going down; another replica will answer.
    ShuttingDown = "SHUTTING_DOWN": Unavailable,
    /// The caller's time is over.
    DeadlineExceeded = "DEADLINE_EXCEEDED": DeadlineExceeded,
    /// No such RPC or route.
    UnknownMethod = "UNKNOWN_METHOD": Unimplemented,
    /// Our fault; the log has the request id.
    Internal = "INTERNAL": Internal,
}

/// A failure at a module's edge.
pub struct Error {
    reason: Reason,
    message: Cow<'static, str>,
    retry_after: Option<Duration>,
    is_recorded: bool,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

/// Result with the boundary error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure that the caller may read about: `message` says what happened and what to do, and holds
    /// no secret and nothing the caller may not see.
    pub fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            message: message.into(),
            retry_after: None,
            is_recorded: false,
            cause: None,
        }
    }

    /// Our fault. The caller learns nothing but that; the log gets the cause.
    pub fn internal(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(
            Reason::Internal,
            "internal error; the daemon's log has details under this request id",
        )
        .because(cause)
    }

    /// Adds the private cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Adds how long to wait before a retry makes sense.
    #[must_use]
    pub const fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Notes that the audit log has a row for this failure.
    #[must_use]
    pub const fn recorded(mut self) -> Self {
        self.is_recorded = true;
        self
    }

    /// Has the audit log a row for this failure?
    pub const fn is_recorded(&self) -> bool {
        self.is_recorded
    }

    /// The stable reason.
    pub const fn reason(&self) -> Reason {
        self.reason
    }

    /// The class.
    pub const fn kind(&self) -> Kind {
        self.reason.kind()
    }

    /// The sentence for the caller.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// How long to wait before a retry makes sense, if that is known.
    pub const fn retry_delay(&self) -> Option<Duration> {
        self.retry_after
    }

    /// True when the caller asked for something that was refused, not broken.
    pub const fn is_refusal(&self) -> bool {
        matches!(
            self.kind(),
            Kind::PermissionDenied | Kind::Unauthenticated | Kind::NotFound
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.reason.as_str())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut cause = self.source();
        while let Some(c) = cause {
            write!(f, ": {c}")?;
            cause = c.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|c| c as _)
    }
}
