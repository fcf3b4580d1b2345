//! `GET /.well-known/jwks.json`: the public keys that verify our tokens (R-JWT-4).
//!
//! The document is made elsewhere and arrives ready to send, with its ETag, so that a million verifiers cost one
//! pointer copy each and neither the database nor the token. `max-age` is part of the rotation protocol: a new
//! key signs only after every cache that obeys it has seen the key.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::problem::Problem;
use crate::{error::Result, tokens::JwksDocument};

/// Gives the current document; called once per request.
pub type JwksSource = Arc<dyn Fn() -> BoxFuture<'static, Result<Arc<JwksDocument>>> + Send + Sync>;

/// Answers with the document.
pub async fn answer(State(source): State<JwksSource>, request: HeaderMap) -> Response {
    let document = match source().await {
        Ok(document) => document,
        Err(error) => return Problem::from(&error).into_response(),
    };
    let max_age = document.max_age.as_secs();
    let headers: [(HeaderName, Option<HeaderValue>); 2] = [
        (header::ETAG, HeaderValue::from_str(&document.etag).ok()),
        (
            header::CACHE_CONTROL,
            HeaderValue::from_str(&format!("public, max-age={max_age}, must-revalidate")).ok(),
        ),
    ];
    let mut response = if is_known(&request, &document.etag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let json = HeaderValue::from_static("application/jwk-set+json");
        ([(header::CONTENT_TYPE, json)], document.body.clone()).into_response()
    };
    for (name, value) in headers {
        if let Some(value) = value {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Does `If-None-Match` name the tag? Compared weakly, as RFC 9110 wants for this header: caches may have
/// weakened our tag when they compressed the body.
fn is_known(request: &HeaderMap, etag: &str) -> bool {
    request
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(values: &[&'static str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::IF_NONE_MATCH, HeaderValue::from_static(value));
        }
        is_known(&headers, "\"abc\"")
    }

    #[test]
    fn if_none_match_takes_lists_weak_tags_and_the_star() {
        assert!(known(&["\"abc\""]));
        assert!(known(&["W/\"abc\""]));
        assert!(known(&["\"x\" , W/\"abc\",\"y\""]));
        assert!(known(&["\"x\"", "\"abc\""]));
        assert!(known(&["*"]));
        assert!(!known(&[]));
        assert!(!known(&["abc", "\"ab\"", "W/abc"]));
    }
}
