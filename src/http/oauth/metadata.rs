//! What the endpoints are and take: RFC 8414, and the same for those who look for OpenID Connect's document.
//!
//! Only what is enabled is listed. There are no ID tokens and no users to send anywhere, so what OpenID Connect would list
//! of them is empty.

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{StatusCode, header};
use serde_json::{Map, Value, json};

use crate::{
    clients::{ClientMethod, OauthConfig, assertion_algorithms},
    tokens::Tokens,
};

/// A document, ready to send.
#[derive(Clone, Debug)]
pub struct Metadata {
    body: Bytes,
    cache_control: String,
}

impl Metadata {
    /// The document for this configuration. `certificates` says whether the listener asks clients for theirs.
    pub fn new(tokens: &Tokens, config: &OauthConfig, certificates: bool) -> Self {
        let methods: Vec<_> = ClientMethod::ALL
            .into_iter()
            .filter(|method| config.takes(*method))
            .filter(|method| certificates || *method != ClientMethod::TlsClientAuth)
            .collect();
        let max_age = tokens.jwks_max_age().as_secs();
        Self {
            body: document(|path| tokens.endpoint(path), tokens.issuer(), &methods)
                .to_string()
                .into(),
            cache_control: format!("public, max-age={max_age}"),
        }
    }

    /// The answer to a GET.
    pub fn answer(&self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, "application/json"),
            (header::CACHE_CONTROL, self.cache_control.as_str()),
        ];
        (StatusCode::OK, headers, self.body.clone()).into_response()
    }
}

fn document(url: impl Fn(&str) -> String, issuer: &str, methods: &[ClientMethod]) -> Value {
    let mut document = Map::new();
    let mut add = |name: &str, value: Value| {
        document.insert(name.to_owned(), value);
    };
    add("issuer", issuer.into());
    add("jwks_uri", url("/.well-known/jwks.json").into());
    // Required by both documents; there is no authorization endpoint.
    add("response_types_supported", json!([]));
    add("subject_types_supported", json!(["public"]));
    add("id_token_signing_alg_values_supported", json!([]));
    if methods.is_empty() {
        return document.into();
    }
    add("grant_types_supported", json!(["client_credentials"]));
    let names: Vec<_> = methods.iter().map(|method| method.as_str()).collect();
    let signs = methods.contains(&ClientMethod::PrivateKeyJwt);
    for (endpoint, path) in [
        ("token", "/oauth/token"),
        ("introspection", "/oauth/introspect"),
        ("revocation", "/oauth/revoke"),
    ] {
        add(&format!("{endpoint}_endpoint"), url(path).into());
        add(
            &format!("{endpoint}_endpoint_auth_methods_supported"),
            json!(names),
        );
        if signs {
            add(
                &format!("{endpoint}_endpoint_auth_signing_alg_values_supported"),
                assertion_algorithms().collect(),
            );
        }
    }
    if methods.contains(&ClientMethod::TlsClientAuth) {
        add("tls_client_certificate_bound_access_tokens", true.into());
    }
    document.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(methods: &[ClientMethod]) -> Value {
        let url = |path: &str| format!("https://issuer.test{path}");
        document(url, "https://issuer.test", methods)
    }

    #[test]
    fn only_what_is_enabled_is_listed() {
        let all = with(&ClientMethod::ALL);
        assert_eq!(all["token_endpoint"], "https://issuer.test/oauth/token");
        assert_eq!(all["tls_client_certificate_bound_access_tokens"], true);
        let listed = &all["token_endpoint_auth_methods_supported"];
        assert_eq!(listed.as_array().map(Vec::len), Some(4));

        let basic = with(&[ClientMethod::ClientSecretBasic]);
        let listed = &basic["revocation_endpoint_auth_methods_supported"];
        assert_eq!(*listed, json!(["client_secret_basic"]));
        assert!(
            basic
                .get("token_endpoint_auth_signing_alg_values_supported")
                .is_none()
        );
        assert!(
            basic
                .get("tls_client_certificate_bound_access_tokens")
                .is_none()
        );

        let none = with(&[]);
        assert!(none.get("token_endpoint").is_none());
        assert_eq!(
            none["jwks_uri"],
            "https://issuer.test/.well-known/jwks.json"
        );
    }
}
