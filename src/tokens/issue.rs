//! Issuing: the signing input is composed here; only the signature comes from the backend.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use uuid::Uuid;

use super::{Claims, Confirmation, Tokens, marks::Cover};
use crate::{
    error::{Error, Reason, Result},
    gate::Permit,
    keys::KeySnapshot,
    model::{Kid, PrincipalKind, Timestamp},
};

/// What IssueToken is asked for, after defaults.
#[derive(Debug)]
pub struct IssueToken {
    /// `sub`.
    pub subject: String,
    /// `principal_type`.
    pub principal_type: PrincipalKind,
    /// `aud`, at least one.
    pub audience: Vec<String>,
    /// Scope-tokens.
    pub scope: Vec<String>,
    /// Lifetime; None for the default.
    pub ttl: Option<Duration>,
    /// `client_id`.
    pub client_id: String,
    /// True for the token endpoint: the subject is who asked.
    pub is_own: bool,
    /// `x5t#S256` of the certificate that the token is bound to.
    pub bound_to: Option<String>,
}

/// A token.
#[derive(Debug)]
pub struct Issued {
    /// JWS compact serialization.
    pub token: String,
    /// Version that signed.
    pub kid: Kid,
    /// `jti`.
    pub jti: String,
    /// `exp`.
    pub expires_at: Timestamp,
}

/// `gty` of tokens whose subject is who asked for them.
pub(super) const OWN_GRANT: &str = "client_credentials";

/// Scheme of a signature appended to a signing input of typical length, to allocate once.
const SIGNATURE_ROOM: usize = 700;

impl Tokens {
    /// Issues a token under the ACTIVE version of a TOKEN_SIGNING key.
    ///
    /// Errors: INVALID_FIELD for a lifetime out of bounds, KEY_PURPOSE_MISMATCH, NO_USABLE_VERSION, DATABASE_UNAVAILABLE
    /// when the high-water mark has to be raised and cannot, the backend's.
    pub async fn issue(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        request: IssueToken,
    ) -> Result<Issued> {
        key.expect(crate::model::Purpose::TokenSigning, "IssueToken")?;
        let ttl = self.ttl(request.ttl)?;
        let issued_at = self.clock.now().seconds();
        let exp = issued_at + i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let renewed = self.covered(key, Timestamp::from_seconds(exp)).await?;
        let key = renewed.as_deref().unwrap_or(key);
        let version = key.active()?;
        let kid = version.version.kid.clone();
        let claims = Claims {
            iss: self.config.issuer.clone(),
            sub: request.subject,
            aud: request.audience.into(),
            exp,
            iat: issued_at,
            nbf: issued_at,
            jti: Uuid::now_v7().to_string(),
            client_id: request.client_id,
            scope: request.scope.join(" "),
            principal_type: request.principal_type.as_str().to_owned(),
            tenant: key.key.tenant.to_string(),
            gty: request.is_own.then(|| OWN_GRANT.to_owned()),
            cnf: request
                .bound_to
                .map(|certificate| Confirmation { certificate }),
        };
        // kid and alg are ours and need no escaping.
        let header = format!(
            r#"{{"alg":"{}","kid":"{kid}","typ":"at+jwt"}}"#,
            key.key.algorithm
        );
        let body = serde_json::to_vec(&claims).map_err(Error::internal)?;
        let mut token = String::with_capacity((header.len() + body.len()) * 4 / 3 + SIGNATURE_ROOM);
        BASE64_URL_SAFE_NO_PAD.encode_string(header, &mut token);
        token.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(body, &mut token);
        let signature = self
            .keys
            .sign_token(permit, key, version, token.as_bytes())
            .await?;
        token.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(Issued {
            token,
            kid,
            jti: claims.jti,
            expires_at: Timestamp::from_seconds(exp),
        })
    }

    /// Sees to it that the ACTIVE version is published until `exp`. A key that was rotated meanwhile comes back as it is
    /// now; None when the caller's picture of it is right.
    async fn covered(&self, key: &KeySnapshot, exp: Timestamp) -> Result<Option<Arc<KeySnapshot>>> {
        let cover = |version| self.marks.cover(&self.db, version, exp);
        match cover(&key.active()?.version).await? {
            Cover::Covered => return Ok(None),
            Cover::NotActive => {}
        }
        let now = self.keys.fresh(&key.key.tenant, key.key.id).await?;
        match cover(&now.active()?.version).await? {
            Cover::Covered => Ok(Some(now)),
            Cover::NotActive => Err(Error::new(
                Reason::NoUsableVersion,
                format!("key {} is being changed; retry", key.key.name),
            )),
        }
    }

    fn ttl(&self, asked: Option<Duration>) -> Result<Duration> {
        let longest = Duration::from_secs(self.config.max_ttl_seconds);
        match asked {
            None => Ok(Duration::from_secs(self.config.default_ttl_seconds)),
            Some(ttl) if (Duration::from_secs(1)..=longest).contains(&ttl) => Ok(ttl),
            Some(_) => Err(Error::new(
                Reason::InvalidField,
                format!("ttl must be from 1 to {} seconds", longest.as_secs()),
            )),
        }
    }
}
