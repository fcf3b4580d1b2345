//! Making, rotating and revoking keys.
//!
//! One order of locks: the key's row, the version of the pepper, the tenant, the owner. Each insert holds the last three, so
//! that nothing is made under a version that may be retired, in an erased tenant or for a suspended owner.

use std::time::Duration;

use serde_json::{Value, json};

use super::{super::expect_own_roles, ApiKeys, MAX_OVERLAP, conflict};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Recorded, not_found},
    model::{
        ApiKey, ApiKeyHash, ApiKeyId, ApiKeyState, ApiKeyText, Caller, ClientId, Credential,
        Principal, PrincipalKind, Scopes, Timestamp,
    },
    store::Tx,
};

/// What CreateApiKey is asked for, besides the owner.
#[derive(Clone, Debug)]
pub struct CreateApiKey {
    /// What people call it.
    pub name: String,
    /// What it may use.
    pub scopes: Scopes,
    /// When it ends.
    pub expires_at: Timestamp,
    /// The client whose secret it is.
    pub client: Option<ClientId>,
}

/// What RotateApiKey is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct RotateApiKey {
    /// How long the old key stays valid; None for the configured default.
    pub overlap: Option<Duration>,
    /// When the new key ends; None for as long from now as the old one was made to last.
    pub expires_at: Option<Timestamp>,
}

/// A key and its successor.
#[derive(Clone, Debug)]
pub struct Rotated {
    /// The successor.
    pub new: ApiKey,
    /// The key, which ends after the overlap.
    pub old: ApiKey,
}

impl ApiKeys {
    /// Records a key with this text for `owner`. Nothing stored tells the text.
    ///
    /// Errors: PRINCIPAL_NOT_FOUND; INVALID_FIELD for the end or for a job; SCOPE_EXCEEDED; SEPARATION_OF_DUTIES for the roles of
    /// a person who is not the caller; CLIENT_NOT_FOUND;
    /// API_KEY_STATE for a suspended owner, or one with too many keys; TENANT_ERASED; CONFLICT, and the KEK backend's.
    pub async fn create(
        &self,
        permit: AdminPermit,
        owner: Option<Principal>,
        request: CreateApiKey,
        text: &ApiKeyText,
    ) -> Result<Recorded<ApiKey>> {
        let owner = owner.ok_or_else(|| not_found(permit.permit().resource()))?;
        if owner.kind == PrincipalKind::Job {
            return Err(invalid(
                "parts of the daemon have no API keys; name a user or a service",
            ));
        }
        let now = self.clock.now();
        self.check_end(request.expires_at, now)?;
        check_held(&owner, &request.scopes)?;
        expect_own_roles(permit.caller(), &owner, &request.scopes)?;
        check_brought(permit.caller(), &request.scopes, None)?;
        let key = ApiKey {
            id: text.id(),
            tenant: owner.tenant.clone(),
            owner: owner.id,
            client: request.client,
            name: request.name,
            scopes: request.scopes,
            state: ApiKeyState::Active,
            hash: self.pepper.hash(text).await?,
            last_four: text.last_four(),
            created_at: now,
            expires_at: request.expires_at,
            term: request.expires_at.since(now),
            last_used_at: None,
            ended_at: None,
            ended_by: None,
            end_reason: String::new(),
            replaces: None,
            replaced_by: None,
        };
        let details = details(&key, permit.caller());
        let mut mutation = permit.begin().await?;
        mutation.on("api_key", key.id);
        let tx = mutation.tx();
        self.insert(tx, &key).await?;
        if tx.count_api_keys(key.owner).await? > i64::from(self.config.max_per_owner) {
            return Err(Error::new(
                Reason::ApiKeyState,
                format!(
                    "the owner has {} ACTIVE API keys, and may have no more; revoke one first",
                    self.config.max_per_owner
                ),
            ));
        }
        mutation.record(key, details).await
    }

    /// Records a successor with this text. The old key ends after the overlap, or by itself if that is earlier.
    ///
    /// Errors: API_KEY_NOT_FOUND; API_KEY_STATE for a key that is not valid any more, has a successor, or has a suspended
    /// owner; INVALID_FIELD; SCOPE_EXCEEDED when the caller's credential brings less along than the key; TENANT_ERASED;
    /// CONFLICT, and the KEK backend's.
    pub async fn rotate(
        &self,
        permit: AdminPermit,
        key: Option<ApiKey>,
        request: RotateApiKey,
        text: &ApiKeyText,
    ) -> Result<Recorded<Rotated>> {
        let key = key.ok_or_else(|| not_found(permit.permit().resource()))?;
        let now = self.clock.now();
        let overlap = request.overlap.unwrap_or(self.config.rotation_overlap());
        if overlap > MAX_OVERLAP {
            return Err(invalid("overlap must be at most 7 days"));
        }
        check_rotatable(&key, now)?;
        check_brought(permit.caller(), &key.scopes, Some(key.id))?;
        if let Some(owner) = self.directory.principal(key.owner).await? {
            expect_own_roles(permit.caller(), &owner, &key.scopes)?;
        }
        let expires_at = match request.expires_at {
            Some(at) => at,
            None => now.plus(key.term.min(self.config.max_ttl())),
        };
        self.check_end(expires_at, now)?;
        let new = successor(&key, self.pepper.hash(text).await?, text, expires_at, now);
        let mut details = details(&new, permit.caller());
        let mut mutation = permit.begin().await?;
        let tx = mutation.tx();
        let mut old = tx.lock_api_key(key.id).await?.ok_or_else(conflict)?;
        check_rotatable(&old, now)?;
        self.insert(tx, &new).await?;
        old.expires_at = old.expires_at.min(now.plus(overlap));
        old.replaced_by = Some(new.id);
        if !tx.supersede_api_key(old.id, new.id, old.expires_at).await? {
            return Err(conflict());
        }
        details["replaces"] = old.id.to_string().into();
        details["old_expires_at"] = old.expires_at.to_string().into();
        self.forget_after(&mut mutation, old.id);
        mutation.record(Rotated { new, old }, details).await
    }

    /// Ends a key at once.
    ///
    /// Errors: API_KEY_NOT_FOUND, API_KEY_STATE when it has ended already.
    pub async fn revoke(
        &self,
        permit: AdminPermit,
        key: Option<ApiKey>,
        reason: String,
    ) -> Result<Recorded<ApiKey>> {
        let key = key.ok_or_else(|| not_found(permit.permit().resource()))?;
        let by = permit.caller().principal.id;
        let mut mutation = permit.begin().await?;
        let tx = mutation.tx();
        let mut key = tx.lock_api_key(key.id).await?.ok_or_else(conflict)?;
        if key.state != ApiKeyState::Active {
            return Err(state(format!(
                "the API key is {} already",
                key.state.as_str()
            )));
        }
        key.state = ApiKeyState::Revoked;
        key.ended_at = Some(self.clock.now());
        key.ended_by = Some(by);
        key.end_reason = reason;
        if !tx.end_api_key(&key).await? {
            return Err(conflict());
        }
        let details = json!({
            "owner": key.owner.to_string(),
            "name": key.name,
            "reason": key.end_reason,
        });
        self.forget_after(&mut mutation, key.id);
        let key = self.with_last_use(key);
        mutation.record(key, details).await
    }

    async fn insert(&self, tx: &mut Tx, key: &ApiKey) -> Result<()> {
        if !tx.hold_active(&key.hash.pepper).await? {
            return Err(Error::new(
                Reason::Conflict,
                "the key that API keys are hashed under was rotated at this very moment; nothing was changed; retry",
            )
            .retry_after(Duration::from_secs(1)));
        }
        tx.hold_tenant(&key.tenant).await?;
        if !tx.hold_principal(key.owner).await? {
            return Err(state(
                "the owner is suspended; resume it before it gets another API key",
            ));
        }
        if let Some(client) = key.client {
            // Whoever may make a key for the owner may know the owner's clients, and nobody else's.
            let owner = tx.owner_of_secret_client(client).await?;
            if owner != Some(key.owner) {
                return Err(Error::new(
                    Reason::ClientNotFound,
                    "the owner has no client with this id that authenticates by secret",
                ));
            }
        }
        Ok(tx.insert_api_key(key).await?)
    }

    /// Errors: INVALID_FIELD unless the end is ahead and near enough.
    fn check_end(&self, expires_at: Timestamp, now: Timestamp) -> Result<()> {
        if now < expires_at && expires_at <= now.plus(self.config.max_ttl()) {
            return Ok(());
        }
        Err(invalid(format!(
            "expire_time must be in the future and at most {} seconds from now",
            self.config.max_ttl_seconds
        )))
    }
}

fn successor(
    old: &ApiKey,
    hash: ApiKeyHash,
    text: &ApiKeyText,
    expires_at: Timestamp,
    now: Timestamp,
) -> ApiKey {
    ApiKey {
        id: text.id(),
        hash,
        last_four: text.last_four(),
        created_at: now,
        expires_at,
        term: expires_at.since(now),
        last_used_at: None,
        replaces: Some(old.id),
        ..old.clone()
    }
}

/// Errors: SCOPE_EXCEEDED for what the owner does not hold.
fn check_held(owner: &Principal, scopes: &Scopes) -> Result<()> {
    let missing = scopes.difference(&owner.held());
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Error::new(
            Reason::ScopeExceeded,
            format!("the owner does not hold: {missing}"),
        )),
    }
}

/// A credential makes no other that may do more than it may itself. A key may always have itself rotated: its successor
/// is what it is.
///
/// Errors: SCOPE_EXCEEDED.
fn check_brought(caller: &Caller, scopes: &Scopes, rotated: Option<ApiKeyId>) -> Result<()> {
    match &caller.credential {
        Credential::Job | Credential::Certificate => return Ok(()),
        Credential::ApiKey(id) if rotated == Some(*id) => return Ok(()),
        Credential::ApiKey(_) | Credential::Token { .. } => {}
    }
    let missing = scopes.difference(&caller.principal.held());
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Error::new(
            Reason::ScopeExceeded,
            format!("the credential that you called with does not bring along: {missing}"),
        )),
    }
}

/// Errors: API_KEY_STATE.
fn check_rotatable(key: &ApiKey, now: Timestamp) -> Result<()> {
    if let Some(by) = key.replaced_by {
        return Err(state(format!(
            "the API key was rotated already; {by} replaces it"
        )));
    }
    if !key.is_valid(now) {
        return Err(state(
            "the API key has ended; only a valid one is rotated, so make a new one",
        ));
    }
    Ok(())
}

fn details(key: &ApiKey, caller: &Caller) -> Value {
    let mut details = json!({
        "api_key": key.id.to_string(),
        "owner": key.owner.to_string(),
        "name": key.name,
        "scopes": key.scopes.to_string(),
        "expires_at": key.expires_at.to_string(),
        "prefix": key.prefix(),
        "last_four": key.last_four,
    });
    if let Some(client) = key.client {
        details["client_id"] = client.to_string().into();
    }
    if let Credential::ApiKey(id) = &caller.credential {
        details["by_api_key"] = id.to_string().into();
    }
    details
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Reason::InvalidField, message)
}

fn state(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Reason::ApiKeyState, message)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::Job;

    fn caller(scopes: &str, credential: Credential) -> Caller {
        let mut caller = Job::Scheduler.caller();
        let mut principal = Job::Scheduler.principal();
        principal.scopes = scopes.parse().expect("scopes");
        caller.principal = Arc::new(principal);
        caller.credential = credential;
        caller
    }

    // R-OAUTH-2
    #[test]
    fn a_credential_makes_no_other_that_may_do_more() {
        let shown = ApiKeyId::random();
        let scopes: Scopes = "can.manage_users can.use_users".parse().expect("scopes");
        let by = |credential| caller("can.use_users", credential);
        let token = Credential::Token {
            issuer: "claviger".into(),
            jti: "one".into(),
        };
        for limited in [Credential::ApiKey(shown), token] {
            let refused = check_brought(&by(limited.clone()), &scopes, Some(ApiKeyId::random()));
            let error = refused.expect_err("more than the credential may");
            assert_eq!(error.reason(), Reason::ScopeExceeded);
            assert!(error.message().ends_with(": can.manage_users"));
            let same: Scopes = "can.use_users".parse().expect("scopes");
            assert!(check_brought(&by(limited), &same, None).is_ok());
        }
        let itself = check_brought(&by(Credential::ApiKey(shown)), &scopes, Some(shown));
        assert!(itself.is_ok());
        assert!(check_brought(&by(Credential::Certificate), &scopes, None).is_ok());
    }
}
