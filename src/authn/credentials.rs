//! What a request shows besides its connection's certificate: an API key or a token, in its headers.
//!
//! `authorization: Bearer …` (RFC 6750 section 2.1) or `x-api-key: …`, once, and one of them. Anything ambiguous is refused:
//! two readers that take two different credentials from one request is how one of them gets fooled. Nothing here looks
//! into a credential.

use http::{HeaderMap, HeaderName, header};

use super::{ConnectedPeer, Refusal};
use crate::model::{API_KEY_PREFIX, ApiKeyText, Secret};

/// The header for those whose tools cannot set `authorization`.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Longest credential that is looked at, in bytes.
const MAX_LENGTH: usize = 16 * 1024;

/// All that a request shows.
pub struct Credentials {
    peer: Option<ConnectedPeer>,
    shown: Result<Option<Shown>, Refusal>,
}

impl Credentials {
    /// Of a request with these headers, on a connection with this peer.
    pub fn of(peer: Option<ConnectedPeer>, headers: &HeaderMap) -> Self {
        Self {
            peer,
            shown: shown(headers),
        }
    }

    /// The other end of the connection.
    pub const fn peer(&self) -> Option<&ConnectedPeer> {
        self.peer.as_ref()
    }

    /// What the headers show. Errors: why that cannot be taken.
    pub fn shown(&self) -> Result<Option<&Shown>, Refusal> {
        self.shown.as_ref().map(Option::as_ref).map_err(|why| *why)
    }
}

/// What the headers of a request show.
pub enum Shown {
    /// An API key, well formed.
    ApiKey(ApiKeyText),
    /// Something else: a token, perhaps.
    Token(Secret<String>),
}

/// Reads the headers. None when they show nothing. Errors: why what they show cannot be taken.
fn shown(headers: &HeaderMap) -> Result<Option<Shown>, Refusal> {
    let bearer = once(headers, &header::AUTHORIZATION)?;
    let api_key = once(headers, &API_KEY)?;
    match (bearer, api_key) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(Refusal::Ambiguous),
        (None, Some(key)) => parsed_key(key).map(Some),
        (Some(value), None) => {
            let credential = bearer_of(value).ok_or(Refusal::Malformed)?;
            match credential.starts_with(API_KEY_PREFIX) {
                true => parsed_key(credential).map(Some),
                false => Ok(Some(Shown::Token(Secret::new(credential.to_owned())))),
            }
        }
    }
}

fn once<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(Refusal::Ambiguous),
        (Some(value), None) => match value.to_str() {
            Ok(text) if text.len() <= MAX_LENGTH => Ok(Some(text)),
            Ok(_) | Err(_) => Err(Refusal::Malformed),
        },
    }
}

/// The credential of `Bearer <credential>`: the scheme in any case, then one blank or more (RFC 9110 section 11.4).
fn bearer_of(value: &str) -> Option<&str> {
    let (scheme, rest) = value.split_once(' ')?;
    let credential = rest.trim_start_matches(' ');
    let ok = scheme.eq_ignore_ascii_case("bearer")
        && !credential.is_empty()
        && credential.bytes().all(|b| b.is_ascii_graphic());
    ok.then_some(credential)
}

fn parsed_key(text: &str) -> Result<Shown, Refusal> {
    ApiKeyText::parse(Secret::new(text.to_owned()))
        .map(Shown::ApiKey)
        .map_err(|_| Refusal::Malformed)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::model::ApiKeyId;

    fn read(pairs: &[(&'static str, &str)]) -> Result<Option<&'static str>, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        Ok(shown(&headers)?.map(|shown| match shown {
            Shown::ApiKey(_) => "key",
            Shown::Token(_) => "token",
        }))
    }

    #[test]
    fn a_key_or_a_token_is_taken_from_either_header() {
        let key = ApiKeyText::generate(ApiKeyId::random()).expect("a key");
        let key = key.expose_secret();
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("x-api-key", key)]), Ok(Some("key")));
        let bearer = format!("Bearer {key}");
        assert_eq!(read(&[("authorization", &bearer)]), Ok(Some("key")));
        assert_eq!(
            read(&[("authorization", "bEARER a.b.c")]),
            Ok(Some("token"))
        );
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        let key = ApiKeyText::generate(ApiKeyId::random()).expect("a key");
        let key = key.expose_secret();
        let twice = [("x-api-key", key.as_str()), ("x-api-key", key)];
        assert_eq!(read(&twice), Err(Refusal::Ambiguous));
        let both = [
            ("x-api-key", key.as_str()),
            ("authorization", "Bearer a.b.c"),
        ];
        assert_eq!(read(&both), Err(Refusal::Ambiguous));
        let two = [
            ("authorization", "Bearer a.b.c"),
            ("authorization", "Bearer a.b.c"),
        ];
        assert_eq!(read(&two), Err(Refusal::Ambiguous));
    }

    #[test]
    fn what_is_no_credential_is_malformed() {
        for bad in [
            "Basic YTpi",
            "Bearer",
            "Bearer ",
            "Bearer a b",
            "a.b.c",
            "Bearer cvk_x_y_z",
        ] {
            assert_eq!(
                read(&[("authorization", bad)]),
                Err(Refusal::Malformed),
                "{bad}"
            );
        }
        assert_eq!(read(&[("x-api-key", "a.b.c")]), Err(Refusal::Malformed));
        let long = format!("Bearer {}", "a".repeat(MAX_LENGTH));
        assert_eq!(read(&[("authorization", &long)]), Err(Refusal::Malformed));
    }
}
