//! Bearer tokens: ours, and those of configured issuers.
//!
//! Which of them a token is, it says itself, and is then held to: it must verify under that issuer's keys. One of ours
//! counts when it is meant for this daemon; it brings along no more than its subject holds now (R-OAUTH-2). One that is
//! bound to a certificate counts only on a connection with that certificate (RFC 8705 section 3).

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::{
    Authn, Peer, Refusal,
    who::{Known, Unknown},
};
use crate::{
    model::{Credential, PrincipalId, Scopes, Secret},
    tokens::Rejection,
};

/// What the log calls us as an issuer.
const OURS: &str = "claviger";

#[derive(Deserialize)]
struct Issuer {
    iss: String,
}

impl Authn {
    pub(super) async fn by_token(
        &self,
        text: &Secret<String>,
        peer: Option<&Peer>,
        may_look: bool,
    ) -> Result<Known, Unknown> {
        let text = text.expose_secret();
        match unverified_issuer(text) {
            None => Err(Refusal::Malformed.into()),
            Some(iss) if iss == self.tokens.issuer() => {
                // A made-up kid costs a look into the database.
                let _turn = self.api_keys.turn(may_look).await;
                self.by_own_token(text, peer).await
            }
            Some(iss) => self.by_foreign_token(&iss, text).await,
        }
    }

    async fn by_own_token(&self, text: &str, peer: Option<&Peer>) -> Result<Known, Unknown> {
        // A certificate that has expired holds nothing any more.
        let held = peer.filter(|peer| !self.has_expired(peer));
        let verified = self
            .tokens
            .authenticate(text, &self.config.audience, held.and_then(Peer::thumbprint))
            .await?;
        let claims = verified.map_err(Refusal::Token)?;
        if !self.clients.still_counts(&claims).await? {
            return Err(Refusal::Token(Rejection::Revoked).into());
        }
        let subject: PrincipalId = claims.sub.parse().map_err(|_| Refusal::UnknownSubject)?;
        let principal = self.directory.principal(subject).await?;
        let is_meant = |p: &Arc<crate::model::Principal>| {
            p.tenant.as_str() == claims.tenant && p.kind.as_str() == claims.principal_type
        };
        let principal = principal.filter(is_meant).ok_or(Refusal::UnknownSubject)?;
        let scopes: Scopes = claims
            .scope
            .parse()
            .map_err(|_| Refusal::Token(Rejection::BadClaim))?;
        let credential = Credential::Token {
            issuer: OURS.into(),
            jti: claims.jti.into(),
        };
        Ok((Arc::new(principal.limited_to(&scopes)), credential))
    }

    async fn by_foreign_token(&self, iss: &str, text: &str) -> Result<Known, Unknown> {
        let now = self.now();
        let proven = self.issuers.prove(iss, text, now).await?;
        let proven = proven.map_err(Refusal::Foreign)?;
        let principal = self.directory.authenticate(&proven.identity).await?;
        let credential = Credential::Token {
            issuer: proven.issuer,
            jti: proven.jti.into(),
        };
        Ok((principal.ok_or(Refusal::UnknownSubject)?, credential))
    }
}

/// `iss` of a token that nobody has verified: good for choosing who verifies it, and for nothing else.
fn unverified_issuer(text: &str) -> Option<String> {
    let mut parts = text.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    let json = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
    let issuer: Issuer = serde_json::from_slice(&json).ok()?;
    parts.next().is_none().then_some(issuer.iss)
}
