//! Which credentials a call takes, by the exposure of what is called. Section `[authn.accept]`.

use serde::Deserialize;

use crate::model::{AccessKind, Action, Exposure, METHODS, ROUTES};

/// Kinds of credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    /// A client certificate.
    Certificate,
    /// A token: one of ours, or of a configured issuer.
    Token,
    /// An API key.
    ApiKey,
}

/// What is accepted where.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AcceptConfig {
    /// For calls that are labelled public.
    pub public: Vec<CredentialKind>,
    /// For calls that are labelled internal.
    pub internal: Vec<CredentialKind>,
    /// For calls that are labelled admin, and for all that change administrative state. Certificates only unless you say otherwise: keys and tokens are copied more
    /// easily than private keys.
    pub admin: Vec<CredentialKind>,
    /// For calls that are labelled debug.
    pub debug: Vec<CredentialKind>,
}

impl Default for AcceptConfig {
    fn default() -> Self {
        use CredentialKind::{ApiKey, Certificate, Token};
        Self {
            public: vec![Certificate, Token, ApiKey],
            internal: vec![Certificate, Token, ApiKey],
            admin: vec![Certificate],
            debug: vec![Certificate],
        }
    }
}

impl CredentialKind {
    /// The text in the configuration and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Token => "token",
            Self::ApiKey => "api_key",
        }
    }
}

impl AcceptConfig {
    /// May `kind` come with a call of `action`? An action that is declared with several exposures takes what each of them
    /// takes. One that changes administrative state takes what admin calls take, too: whoever finds a key must not be able
    /// to make a second one of it. What users do for themselves on the public listener is not administration in that
    /// sense, though it is recorded like it.
    pub fn accepts(&self, action: Action, kind: CredentialKind) -> bool {
        let is_users_own = ROUTES
            .iter()
            .any(|r| r.action == action && r.exposure == Exposure::Public);
        if action.kind() == AccessKind::Admin && !is_users_own && !self.admin.contains(&kind) {
            return false;
        }
        let methods = METHODS.iter().map(|m| (m.action, m.exposure));
        let routes = ROUTES.iter().map(|r| (r.action, r.exposure));
        let mut declared = methods
            .chain(routes)
            .filter(|(declared, _)| *declared == action)
            .map(|(_, exposure)| exposure);
        declared.all(|exposure| self.list(exposure).contains(&kind))
    }

    fn list(&self, exposure: Exposure) -> &[CredentialKind] {
        match exposure {
            Exposure::Public => &self.public,
            Exposure::Internal => &self.internal,
            Exposure::Admin => &self.admin,
            Exposure::Debug => &self.debug,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_default_administration_takes_certificates_only() {
        let config = AcceptConfig::default();
        for kind in [CredentialKind::Token, CredentialKind::ApiKey] {
            assert!(config.accepts(Action::Encrypt, kind));
            assert!(!config.accepts(Action::RotateKey, kind));
            assert!(!config.accepts(Action::CreateApiKey, kind));
            assert!(config.accepts(Action::GetApiKey, kind));
            assert!(!config.accepts(Action::GrantRole, kind));
            // What only jobs do.
            assert!(!config.accepts(Action::CompleteRotation, kind));
            // R-CRED-2: users of the platform have tokens, and no certificates.
            assert!(config.accepts(Action::PutCredential, kind));
            assert!(config.accepts(Action::RevealCredential, kind));
            assert!(!config.accepts(Action::ImportCredentials, kind));
            assert!(!config.accepts(Action::ValidateCredential, kind));
        }
        assert!(config.accepts(Action::RotateKey, CredentialKind::Certificate));
    }
}
