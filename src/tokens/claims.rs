//! The claims of a token (RFC 9068 section 2.2), in the types that both issuing and verifying insist on.

use serde::{Deserialize, Serialize};

/// Claims. Every one is required; unknown ones are ignored (RFC 7519 section 4).
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Claims {
    /// Issuer.
    pub iss: String,
    /// Subject.
    pub sub: String,
    /// Audience: a string when there is one value.
    pub aud: Audience,
    /// Expiry, NumericDate.
    pub exp: i64,
    /// Issued at, NumericDate.
    pub iat: i64,
    /// Not before, NumericDate.
    pub nbf: i64,
    /// Unique id.
    pub jti: String,
    /// Client that asked for the token.
    pub client_id: String,
    /// Scope-tokens, separated by one space (RFC 6749 section 3.3).
    pub scope: String,
    /// `user` or `service`.
    pub principal_type: String,
    /// Tenant of the signing key.
    pub tenant: String,
    /// `client_credentials` for a token of the token endpoint, whose subject is who asked for it. IssueToken's have none: its
    /// caller chooses the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gty: Option<String>,
    /// What the bearer must prove to hold; none for a plain bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cnf: Option<Confirmation>,
}

/// A bound token: it counts only from whoever holds the certificate's key (RFC 8705 section 3.1).
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Confirmation {
    /// SHA-256 of the certificate's DER, base64url.
    #[serde(rename = "x5t#S256")]
    pub certificate: String,
}

/// `aud`: one value or several.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Audience {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Audience {
    /// The values.
    pub fn values(&self) -> &[String] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

impl From<Vec<String>> for Audience {
    fn from(mut values: Vec<String>) -> Self {
        match values.len() {
            1 => Self::One(values.remove(0)),
            _ => Self::Many(values),
        }
    }
}
