//! What bad input gets: a typed status with a reason and a sentence; nothing written, nothing leaked.

mod lifecycle;
mod requests;
mod rotations;
mod start;
mod tokens;
mod transport;

use std::fmt::Debug;

use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;

use crate::daemon::{Daemon, reason};

/// Everything that an administrative call can change, row by row.
async fn state(daemon: &Daemon) -> Vec<Vec<Vec<String>>> {
    let mut tables = Vec::new();
    for query in [
        "SELECT id, name, owner, rotation_period, next_rotation_at, revision FROM keys ORDER BY id",
        "SELECT kid, state FROM key_versions ORDER BY kid",
        "SELECT id, state FROM rotations ORDER BY id",
        "SELECT rotation_id, approver FROM rotation_approvals ORDER BY rotation_id, approver",
        "SELECT name FROM tenants ORDER BY name",
        "SELECT id, name FROM principals ORDER BY id",
        "SELECT identity FROM principal_identities ORDER BY identity",
        "SELECT principal_id, role, scope FROM role_grants ORDER BY principal_id, role, scope",
        "SELECT id FROM backend_intents ORDER BY id",
        "SELECT seq FROM audit_events WHERE stream = 'admin' AND outcome = 'success' ORDER BY seq",
    ] {
        tables.push(daemon.rows(query).await);
    }
    tables
}

/// The call was refused with this code and reason, and with a sentence for people. Returns what it said.
#[track_caller]
fn refused<T: Debug>(answer: Result<Response<T>, Status>, code: Code, why: &str) -> String {
    let status = answer.expect_err(why);
    let found = (status.code(), reason(&status));
    assert_eq!(found, (code, why.to_owned()), "{}", status.message());
    let details = status.get_error_details();
    let info = details.error_info().expect("ErrorInfo");
    assert_eq!(info.domain, "claviger");
    let request = details.request_info().expect("RequestInfo");
    assert!(!request.request_id.is_empty());
    assert_sentence(status.message());
    status.message().to_owned()
}

/// Words for a person, and nothing of our insides.
#[track_caller]
fn assert_sentence(text: &str) {
    assert!(text.split(' ').count() >= 3, "{text:?}");
    assert!(text.len() <= 500, "{text:?}");
    assert!(!text.chars().any(char::is_control), "{text:?}");
    for inside in [
        "sqlx", "SQL", "sqlite", "postgres", "panicked", "src/", "/tmp", "CKR_", "Some(", "Error {",
    ] {
        assert!(!text.contains(inside), "{text:?} tells {inside}");
    }
}

#[track_caller]
fn invalid<T: Debug>(answer: Result<Response<T>, Status>) -> String {
    refused(answer, Code::InvalidArgument, "INVALID_FIELD")
}

/// A request whose id is always the same, so that whole answers can be compared.
fn numbered<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let id = "bad-input-1".parse().expect("metadata");
    request.metadata_mut().insert("x-request-id", id);
    request
}

/// Every byte of a refusal but the date.
#[track_caller]
fn bytes<T: Debug>(answer: Result<Response<T>, Status>) -> (Code, String, Vec<u8>, String) {
    let status = answer.expect_err("a refusal");
    let mut metadata = status.metadata().clone().into_headers();
    metadata.remove("date");
    let details = status.details().to_vec();
    let headers = format!("{metadata:?}");
    (status.code(), status.message().to_owned(), details, headers)
}

/// Texts that are no id, no name and no identity of anything.
fn hostile() -> Vec<String> {
    let texts = [
        "\0",
        "a\0b",
        "\n",
        "key\r\nx-evil: 1",
        "\u{1b}[31mred\u{1b}[0m",
        "\u{7f}",
        "\u{202e}gnp.exe",
        "ключ",
        "🔑",
        "../../etc/passwd",
        "a/b",
        "%2e%2e%2f",
        "' OR '1'='1",
        "x'; DROP TABLE keys; --",
        " ",
        "-",
        ".",
        "UPPER",
        "${jndi:ldap://x}",
        "{{7*7}}",
    ];
    let long = ["a".repeat(64), "a".repeat(10_000), "🔑".repeat(2_500)];
    texts.into_iter().map(str::to_owned).chain(long).collect()
}

/// The answer to a hostile text: refused as a field, and not repeated.
#[track_caller]
fn hostile_refused<T: Debug>(answer: Result<Response<T>, Status>, text: &str) {
    let status = answer.expect_err("a hostile text");
    let found = (status.code(), reason(&status));
    assert_eq!(
        found,
        (Code::InvalidArgument, "INVALID_FIELD".to_owned()),
        "{text:?}: {}",
        status.message()
    );
    assert_sentence(status.message());
    let harmless = text.len() < 3;
    assert!(harmless || !status.message().contains(text), "{text:?}");
    let details = status.details();
    let echoed = details.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(harmless || !echoed, "{text:?} in the details");
}
