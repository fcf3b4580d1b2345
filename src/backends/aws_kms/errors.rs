//! What an answer of AWS means, judged by its error code here and nowhere else.
//!
//! Only `Trouble` is trouble of KMS itself, and becomes `Unavailable` or `DeadlineExceeded`, which a circuit breaker
//! counts. What is wrong with one key or one permission never is: a disabled key must not stop all keys of the account.
//! Nor is throttling: the governor slows down by itself, and a breaker would turn a slower service into none.
//!
//! Texts of AWS go into private causes only: they name roles and accounts.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

use crate::backends::BackendError;

/// Why one request failed, and what may be done about it.
#[derive(Debug)]
pub(super) enum Fault {
    /// AWS did not do it, because too many asked.
    Throttled,
    /// Nobody knows whether AWS did it: no answer, a broken connection, trouble inside AWS.
    Trouble(String),
    /// The key's state forbids it; DescribeKey says which. Other keys are well.
    State(String),
    /// KMS cannot use this key just now, its custom key store is away for example. Other keys are well.
    KeyTrouble(String),
    /// AWS finds the request malformed.
    Invalid(String),
    /// Asking again gives the same answer.
    Final(BackendError),
}

impl Fault {
    pub(super) fn into_error(self) -> BackendError {
        match self {
            Self::Throttled => BackendError::Overloaded,
            Self::Trouble(why) => BackendError::Unavailable(why),
            Self::State(said) => BackendError::Suspended {
                key: said,
                why: "its state in KMS forbids this".into(),
            },
            Self::KeyTrouble(said) => BackendError::Suspended {
                key: said,
                why: "KMS does not reach its key material now; if it is in a custom key store, look there".into(),
            },
            Self::Invalid(why) => BackendError::Rejected(why),
            Self::Final(error) => error,
        }
    }
}

impl From<BackendError> for Fault {
    fn from(error: BackendError) -> Self {
        Self::Final(error)
    }
}

/// Judges the error of `call`, for example `kms:Sign`.
pub(super) fn judge<E>(call: &str, error: SdkError<E, HttpResponse>) -> Fault
where
    E: Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    match &error {
        SdkError::ServiceError(service) => {
            let status = service.raw().status().as_u16();
            let code = service.err().code().unwrap_or_default();
            let said = service.err().message().unwrap_or_default();
            by_code(call, code, status, said)
        }
        SdkError::ConstructionFailure(_) | SdkError::DispatchFailure(_) => unsent(call, &error),
        // An answer that is no answer, or a newer kind of failure.
        _ => Fault::Trouble(format!("{call}: {}", chain(&error))),
    }
}

fn by_code(call: &str, code: &str, status: u16, said: &str) -> Fault {
    let what = format!("{call} answered {code} ({status}): {said}");
    match code {
        "ThrottlingException"
        | "Throttling"
        | "TooManyRequestsException"
        | "RequestLimitExceeded" => Fault::Throttled,

        "NotFoundException" => Fault::Final(BackendError::Missing(format!(
            "{call}: no such key or alias in this account and region"
        ))),
        "InvalidArnException" => Fault::Final(BackendError::Unfit(
            "AWS finds that its ARN or alias names nothing of this region and account".into(),
        )),
        "DisabledException" | "KMSInvalidStateException" => Fault::State(what),
        "InvalidKeyUsageException" => Fault::Final(BackendError::Unfit(
            "its KeyUsage or KeySpec does not allow this operation".into(),
        )),
        "InvalidCiphertextException" | "IncorrectKeyException" => Fault::Final(
            BackendError::Rejected("the ciphertext, the KEK or the context is another one".into()),
        ),
        "UnsupportedOperationException" => Fault::Final(BackendError::Unsupported(what)),
        "ValidationException" => Fault::Invalid(what),

        // One permission on one key; nothing is wrong with the others.
        "AccessDeniedException" | "AccessDenied" | "NotAuthorized" => {
            Fault::Final(BackendError::Denied {
                needs: call.to_owned(),
                said: said.to_owned(),
            })
        }
        "OptInRequired" => Fault::Final(BackendError::Misconfigured(format!(
            "the AWS account has not enabled this region: {said}"
        ))),
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "ExpiredTokenException"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "MissingAuthenticationToken" => Fault::Final(BackendError::Misconfigured(format!(
            "AWS does not accept the credentials or the clock of this host ({code}): {said}"
        ))),
        "RequestExpired" | "RequestTimeTooSkewed" => Fault::Final(BackendError::Misconfigured(
            "the clock of this host is wrong; AWS accepts five minutes of difference".into(),
        )),
        // A quota of resources, not of requests: waiting does not help.
        "LimitExceededException" => Fault::Final(BackendError::Misconfigured(format!(
            "a resource quota of the AWS account is used up; raise it: {said}"
        ))),

        "KeyUnavailableException" | "CustomKeyStoreInvalidStateException" => {
            Fault::KeyTrouble(what)
        }
        "KMSInternalException"
        | "DependencyTimeoutException"
        | "InternalFailure"
        | "ServiceUnavailable" => Fault::Trouble(what),
        // A wildcard, because AWS adds codes.
        _ if status == 429 => Fault::Throttled,
        _ if status >= 500 => Fault::Trouble(what),
        _ => Fault::Final(BackendError::Rejected(what)),
    }
}

/// No answer: no credentials, no connection, or a connection that broke.
fn unsent(call: &str, error: &(dyn Error + 'static)) -> Fault {
    let mut source = Some(error);
    while let Some(cause) = source {
        if let Some(
            CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_),
        ) = cause.downcast_ref()
        {
            return Fault::Final(BackendError::Misconfigured(
                "no AWS credentials: give the pod or the host a role, or set the variables of the \
                 standard AWS chain"
                    .into(),
            ));
        }
        source = cause.source();
    }
    Fault::Trouble(format!("{call}: {}", chain(error)))
}

/// An error and its causes, without the request and the answer that their `Debug` would show.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
