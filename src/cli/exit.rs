//! How every command ends: the exit codes that scripts rely on, and the one error of the command line.
//!
//! A `Failure` is one line for a person. It is made from a gRPC status, from the boundary error, or in place.
//! It never carries a secret: commands put names and paths into it, not contents.

use std::{error::Error as StdError, fmt, process::ExitCode};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::error::{Error, Kind, Reason};

/// The table of exit codes, shown by `--help`.
pub const HELP: &str = "\
Exit codes:
  0  done
  1  the answer is no: the signature, token, ciphertext or audit chain is not valid
  2  wrong usage, or an argument the daemon refuses
  3  not authenticated, or not permitted
  4  not found
  5  the state of the system does not allow it: precondition, conflict, exists already
  6  unavailable, overloaded or out of time: retry
  7  any other error";

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The answer is no.
    No = 1,
    /// Wrong usage.
    Usage = 2,
    /// Not authenticated, or not permitted.
    Denied = 3,
    /// Not found.
    NotFound = 4,
    /// The state of the system does not allow it.
    Conflict = 5,
    /// Retry later.
    Unavailable = 6,
    /// Anything else.
    Other = 7,
}

/// Result of a command or of a part of one.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
}

impl Exit {
    /// The exit code for a gRPC status code, and for the code of one item of a batch.
    pub fn of(code: Code) -> Self {
        match code {
            Code::Ok => Self::Ok,
            Code::InvalidArgument | Code::OutOfRange => Self::Usage,
            Code::Unauthenticated | Code::PermissionDenied => Self::Denied,
            Code::NotFound => Self::NotFound,
            Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => Self::Conflict,
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Cancelled => Self::Unavailable,
            Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => Self::Other,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Failure {
    /// A failure with this exit code.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self {
            exit,
            message: one_line(&message.to_string()),
        }
    }

    /// The caller has to call differently.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Something is not there yet, or not any more; retrying may help.
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self::new(Exit::Unavailable, message)
    }

    /// Anything else.
    pub fn other(message: impl fmt::Display) -> Self {
        Self::new(Exit::Other, message)
    }

    /// The reader of our output went away. Not an error, and nobody is left to tell.
    pub fn broken_pipe() -> Self {
        Self::new(Exit::Ok, "")
    }

    /// The same, with something to do about it.
    #[must_use]
    pub fn and(mut self, advice: &str) -> Self {
        self.message = format!("{}; {}", self.message, one_line(advice));
        self
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Failure {}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if let Some(failure) = transport_failure(&status) {
            return failure;
        }
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.as_str());
        let exit = match reason {
            Some(reason) if reason == Reason::CiphertextInvalid.as_str() => Exit::No,
            Some(_) | None => Exit::of(status.code()),
        };
        let message = match status.message() {
            "" => status.code().description(),
            text => text,
        };
        Self::new(exit, format!("{message}{}", remarks(&status, &details)))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match error.kind() {
            Kind::InvalidArgument => Exit::Usage,
            Kind::Unauthenticated | Kind::PermissionDenied => Exit::Denied,
            Kind::NotFound => Exit::NotFound,
            Kind::AlreadyExists | Kind::FailedPrecondition | Kind::Aborted => Exit::Conflict,
            Kind::ResourceExhausted | Kind::Unavailable | Kind::DeadlineExceeded => {
                Exit::Unavailable
            }
            Kind::Unimplemented | Kind::Internal => Exit::Other,
        };
        // Who runs a local command is its operator and may read the cause, which `Debug` adds.
        Self::new(exit, format!("{error:?}"))
    }
}

/// ` (REASON; request ID; retry in N s)`, as far as the daemon said so.
fn remarks(status: &Status, details: &ErrorDetails) -> String {
    let mut remarks = Vec::new();
    if let Some(info) = details.error_info() {
        remarks.push(info.reason.clone());
    }
    let named = |key: &str| details.error_info().and_then(|i| i.metadata.get(key));
    let request = details
        .request_info()
        .map(|info| info.request_id.clone())
        .or_else(|| named("request_id").cloned())
        .or_else(|| {
            let value = status.metadata().get("x-request-id")?;
            value.to_str().ok().map(str::to_owned)
        });
    remarks.extend(request.map(|id| format!("request {id}")));
    let delay = details.retry_info().and_then(|info| info.retry_delay);
    remarks.extend(delay.map(|delay| format!("retry in {:.1} s", delay.as_secs_f64())));
    match remarks.is_empty() {
        true => String::new(),
        false => format!(" ({})", remarks.join("; ")),
    }
}

/// What our connector found out, or the server's refusal of our certificate.
fn transport_failure(status: &Status) -> Option<Failure> {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(failure) = error.downcast_ref::<Failure>() {
            return Some(Failure::new(failure.exit, &failure.message));
        }
        // With TLS 1.3 a server refuses a client certificate after the handshake, so the alert arrives
        // in the middle of HTTP/2, and h2 keeps only its text.
        let text = error.to_string();
        if let Some((_, alert)) = text.split_once("received fatal alert: ") {
            return Some(refused_certificate(alert));
        }
        cause = error.source();
    }
    None
}

/// The server ended the connection with this TLS alert.
pub fn refused_certificate(alert: impl fmt::Display) -> Failure {
    Failure::new(
        Exit::Denied,
        format!(
            "the server refused the client certificate ({alert}): it needs one that its client CA signed and that has not expired"
        ),
    )
}

/// Terminals must not be steered by what a server says, and one error is one line.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use super::*;

    #[test]
    fn a_status_becomes_one_line_with_everything_a_person_needs() {
        let mut details =
            ErrorDetails::with_error_info("ROTATION_SOAKING", "claviger", HashMap::new());
        details.set_retry_info(Some(Duration::from_millis(1500)));
        details.set_request_info("req-1", "");
        let status = Status::with_error_details(Code::FailedPrecondition, "wait\na bit", details);
        let failure = Failure::from(status);
        assert_eq!(failure.exit(), Exit::Conflict);
        assert_eq!(
            failure.to_string(),
            "wait a bit (ROTATION_SOAKING; request req-1; retry in 1.5 s)"
        );
    }

    #[test]
    fn a_ciphertext_that_does_not_open_is_an_answer() {
        let details =
            ErrorDetails::with_error_info("CIPHERTEXT_INVALID", "claviger", HashMap::new());
        let status = Status::with_error_details(Code::InvalidArgument, "no", details);
        assert_eq!(Failure::from(status).exit(), Exit::No);
    }

    #[test]
    fn a_bare_status_still_says_something() {
        let failure = Failure::from(Status::new(Code::Unavailable, ""));
        assert_eq!(failure.exit(), Exit::Unavailable);
        assert!(!failure.to_string().is_empty());
    }
}
