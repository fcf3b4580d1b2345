//! A token for a client (RFC 6749 section 4.4), in the very format of IssueToken.

use std::time::Duration;

use super::{
    Authenticated, Clients,
    coalesce::{Held, Question},
};
use crate::{
    error::{Error, Reason, Result},
    gate::Permit,
    model::{Action, KeyRef, Kid, Scopes, Secret, Timestamp},
    tokens::IssueToken,
};

/// What a client is about to be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Scopes of the token.
    pub scopes: Scopes,
    /// Audience of the token.
    pub audience: String,
}

/// Why a client is not given what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A scope is malformed, or more than the client, its key and its owner hold.
    Scope,
    /// The audience is not one of the client's.
    Audience,
    /// There is no audience that a token could be for.
    NoAudience,
}

/// A token for a client.
pub struct Granted {
    /// JWS compact serialization.
    pub token: Secret<String>,
    /// Version that signed.
    pub kid: Kid,
    /// `jti`.
    pub jti: String,
    /// How long it is still good.
    pub expires_in: Duration,
    /// Whether an earlier request got it too.
    pub is_shared: bool,
}

impl Clients {
    /// What `who` gets for these parameters of a request: everything it may have where it asks for nothing.
    pub fn narrow(
        &self,
        who: &Authenticated,
        scope: Option<&str>,
        audience: Option<&str>,
    ) -> std::result::Result<Wanted, Denial> {
        let scopes = match scope {
            None => who.scopes.clone(),
            Some(text) => {
                let asked: Scopes = text.parse().map_err(|_| Denial::Scope)?;
                let held = asked.is_subset(&who.scopes);
                held.then_some(asked).ok_or(Denial::Scope)?
            }
        };
        let allowed = match &who.client {
            Some(registered) => &registered.client.audiences,
            None => &self.config.audiences,
        };
        let default = allowed.first().ok_or(Denial::NoAudience)?;
        let audience = audience.unwrap_or(default);
        allowed
            .iter()
            .find(|allowed| *allowed == audience)
            .map(|audience| Wanted {
                scopes,
                audience: audience.clone(),
            })
            .ok_or(Denial::Audience)
    }

    /// A token of the owner's tenant for `who`, or the one it got a moment ago.
    ///
    /// Errors: NO_USABLE_VERSION when the tenant has no key that signs tokens for clients; as `Tokens::issue`.
    pub async fn exchange(
        &self,
        permit: &Permit,
        who: &Authenticated,
        wanted: &Wanted,
    ) -> Result<Granted> {
        permit.covers_tenant(Action::IssueClientToken, &who.principal.tenant)?;
        let registered = who.client.as_ref();
        let Some(client) = registered.map(|r| &r.client).filter(|c| c.coalesces) else {
            let held = self.issue(permit, who, wanted).await?;
            return Ok(self.granted(&held, false));
        };
        let question = Question {
            client_id: who.client_id.clone(),
            revision: client.revision,
            api_key: who.api_key,
            owner: client.owner,
            scopes: wanted.scopes.to_string(),
            audience: wanted.audience.clone(),
            bound_to: who.bound_to.clone(),
        };
        let mut slot = self.recent.slot(&question).await;
        if let Some(held) = &*slot
            && held.is_fresh(self.clock.now())
            && self
                .tokens
                .stands(permit, &client.tenant, &held.kid, &held.jti)
                .await?
        {
            return Ok(self.granted(held, true));
        }
        let held = self.issue(permit, who, wanted).await?;
        let granted = self.granted(&held, false);
        *slot = Some(held);
        Ok(granted)
    }

    async fn issue(&self, permit: &Permit, who: &Authenticated, wanted: &Wanted) -> Result<Held> {
        let tenant = &who.principal.tenant;
        let name: KeyRef = self.config.key.parse()?;
        let target = self.keys.find(tenant, &name).await?;
        let key = target.snapshot().map_err(|_| {
            Error::new(
                Reason::NoUsableVersion,
                format!("tenant {tenant} has no TOKEN_SIGNING key {name} (oauth.key)"),
            )
        })?;
        let began = self.clock.now();
        let ttl = who.client.as_ref().and_then(|r| r.client.ttl);
        let ttl = ttl.unwrap_or(self.tokens.default_ttl());
        // No longer than the API key that it was given for.
        let left = who.expires_at.map_or(Duration::MAX, |at| left(at, began));
        let ttl = ttl.min(self.tokens.longest_ttl()).min(left);
        let request = IssueToken {
            subject: who.principal.id.to_string(),
            principal_type: who.principal.kind,
            audience: vec![wanted.audience.clone()],
            scope: wanted.scopes.iter().map(str::to_owned).collect(),
            // The bound may have been lowered since the client was registered.
            ttl: Some(ttl.max(Duration::from_secs(1))),
            is_own: true,
            client_id: who.client_id.clone(),
            bound_to: who.bound_to.clone(),
        };
        let issued = self.tokens.issue(permit, key, request).await?;
        let half = issued.expires_at.since(began) / 2;
        Ok(Held {
            token: Secret::new(issued.token),
            kid: issued.kid,
            jti: issued.jti,
            expires_at: issued.expires_at,
            fresh_until: began.plus(half),
        })
    }

    fn granted(&self, held: &Held, is_shared: bool) -> Granted {
        Granted {
            token: Secret::new(held.token.expose_secret().clone()),
            kid: held.kid.clone(),
            jti: held.jti.clone(),
            expires_in: left(held.expires_at, self.clock.now()),
            is_shared,
        }
    }
}

/// Rounded down: a token must not seem to last longer than it does.
fn left(expires_at: Timestamp, now: Timestamp) -> Duration {
    Duration::from_secs(expires_at.since(now).as_secs())
}
