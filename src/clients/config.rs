//! Section `[oauth]`.

use serde::Deserialize;

use crate::model::KeyName;

/// Section `[oauth]`: the endpoints of OAuth clients on the public listener. Their paths are fixed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OauthConfig {
    /// Name of the TOKEN_SIGNING key that signs the tokens of a tenant's clients; each tenant has its own key of this
    /// name. Default `tokens`.
    pub key: String,
    /// Audiences that API keys without a client may ask for, the default first. Empty, the default: such keys get no
    /// tokens.
    pub audiences: Vec<String>,
    /// How clients may authenticate. Default: every method.
    pub methods: Vec<ClientMethod>,
}

/// How a client authenticates, by its registered name (RFC 7591 section 2, RFC 8705 section 2.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientMethod {
    /// HTTP Basic (RFC 6749 section 2.3.1).
    ClientSecretBasic,
    /// Parameters of the body (RFC 6749 section 2.3.1).
    ClientSecretPost,
    /// A signed assertion (RFC 7523).
    PrivateKeyJwt,
    /// A client certificate (RFC 8705).
    TlsClientAuth,
}

/// Audiences of one client or of the configuration at most.
pub const MAX_AUDIENCES: usize = 16;
/// Characters of an audience at most.
const MAX_AUDIENCE: usize = 255;

impl ClientMethod {
    /// Every method.
    pub const ALL: [Self; 4] = [
        Self::ClientSecretBasic,
        Self::ClientSecretPost,
        Self::PrivateKeyJwt,
        Self::TlsClientAuth,
    ];

    /// The registered name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientSecretBasic => "client_secret_basic",
            Self::ClientSecretPost => "client_secret_post",
            Self::PrivateKeyJwt => "private_key_jwt",
            Self::TlsClientAuth => "tls_client_auth",
        }
    }
}

impl Default for OauthConfig {
    fn default() -> Self {
        Self {
            key: "tokens".to_owned(),
            audiences: Vec::new(),
            methods: ClientMethod::ALL.to_vec(),
        }
    }
}

impl OauthConfig {
    /// Errors: a sentence that names the setting.
    pub fn check(&self) -> Result<(), String> {
        if self.key.parse::<KeyName>().is_err() {
            return Err("oauth.key must be the name of a key".into());
        }
        if self.audiences.len() > MAX_AUDIENCES || !self.audiences.iter().all(|a| is_audience(a)) {
            return Err(
                "oauth.audiences must be at most 16, each of 1 to 255 characters without blanks"
                    .into(),
            );
        }
        Ok(())
    }

    /// May clients authenticate this way?
    pub fn takes(&self, method: ClientMethod) -> bool {
        self.methods.contains(&method)
    }
}

/// Can it be stored and compared as an audience?
pub fn is_audience(text: &str) -> bool {
    (1..=MAX_AUDIENCE).contains(&text.chars().count())
        && !text.chars().any(|c| c.is_control() || c.is_whitespace())
}
