//! One id per call, from the caller if it has one: it is in logs, audit rows and error details.

use std::{fmt, sync::Arc};

use http::HeaderMap;
use uuid::Uuid;

/// The header, in both directions.
pub(super) const HEADER: &str = "x-request-id";

/// Id of a call: 1 to 64 characters of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub Arc<str>);

impl RequestId {
    /// The caller's id if it is well formed, else a new one. A malformed id is not an error: it must not decide
    /// whether a key is frozen in an incident.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(HEADER).and_then(|value| value.to_str().ok());
        match given {
            Some(id) if is_id(id) => Self(id.into()),
            Some(_) | None => {
                let mut buffer = Uuid::encode_buffer();
                let id: &str = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
                Self(id.into())
            }
        }
    }
}

fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(value: &'static str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_static(value));
        RequestId::of(&headers).to_string()
    }

    #[test]
    fn a_callers_id_is_kept_only_when_well_formed() {
        assert_eq!(of("Order-7_a.b"), "Order-7_a.b");
        for bad in ["", "two words", "a/b", "\"quoted\"", "a\tb"] {
            let id = of(bad);
            assert_ne!(id, bad);
            assert!(Uuid::try_parse(&id).is_ok());
        }
        let long = "x".repeat(65);
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_str(&long).expect("ASCII"));
        assert_ne!(RequestId::of(&headers).to_string(), long);
    }

    #[test]
    fn ids_are_fresh() {
        let none = HeaderMap::new();
        assert_ne!(RequestId::of(&none), RequestId::of(&none));
    }
}
