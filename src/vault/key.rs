//! The key of a tenant that its credentials are sealed by: an ENCRYPTION key like any other, made with the first credential
//! and reserved for the vault. Its versions rotate by the key's own policy; `rewrap` moves the values.

use std::sync::Arc;

use super::Vault;
use crate::{
    error::{Error, Kind, Reason, Result},
    gate::Gate,
    keys::{CreateKey, KeySnapshot},
    model::{Action, Algorithm, Job, Purpose, Resource, TenantName},
};

impl Vault {
    /// Makes the tenant's key when there is none. Of two calls that come together the second takes what the first has made.
    ///
    /// Errors: CREDENTIAL_KEY_UNAVAILABLE, TENANT_ERASED, KEY_PURPOSE_MISMATCH when a key of another kind has the name.
    pub async fn make_key(&self, gate: &Gate, tenant: &TenantName) -> Result<()> {
        if self.keys.credential_key(tenant, &self.key).await?.is_some() {
            return Ok(());
        }
        let (keys, request) = (Arc::clone(&self.keys), self.request(tenant));
        let act = async move |permit| keys.create(permit, request).await;
        let resource = Resource::tenant(tenant.clone());
        let made = gate.work(Job::Scheduler, Action::CreateCredentialKey, resource, act);
        match made.await {
            Ok(_) => {
                tracing::info!(%tenant, key = %self.key, "made the key that credentials are sealed by")
            }
            Err(error) if error.reason() == Reason::AlreadyExists => {}
            // The row of the failed making is there; the call that needed the key gets one of its own.
            Err(error) => return Err(unavailable(error)),
        }
        Ok(())
    }

    fn request(&self, tenant: &TenantName) -> CreateKey {
        CreateKey {
            tenant: tenant.clone(),
            name: self.key.clone(),
            purpose: Purpose::Encryption,
            algorithm: Algorithm::A256Gcm,
            rsa_bits: 0,
            owner: "claviger".to_owned(),
            rotation_period: None,
            rotation_mode: None,
            approvals_needed: None,
            standby: false,
            grace: None,
            backend: None,
            standby_backend: None,
        }
    }

    /// The tenant's key. Errors: NO_USABLE_VERSION when there is none.
    pub(super) async fn tenant_key(&self, tenant: &TenantName) -> Result<Arc<KeySnapshot>> {
        let found = self.keys.credential_key(tenant, &self.key).await?;
        found.ok_or_else(|| {
            Error::new(
                Reason::NoUsableVersion,
                "the tenant has no key for credentials yet: the daemon makes it with the first one",
            )
        })
    }
}

/// What a caller hears when the key cannot be opened (R-ENV-2). Everything that is not the key's fault stays as it is.
pub(super) fn unavailable(error: Error) -> Error {
    let is_ours = match error.reason() {
        Reason::BackendUnavailable | Reason::KeySuspended | Reason::BackendDenied => true,
        reason => reason.kind() == Kind::Internal,
    };
    if !is_ours {
        return error;
    }
    let why = match error.reason().kind() {
        Kind::Internal => "it does not open; the daemon's log says why",
        _ => {
            "its device is away or does not show it; an operator must look at the key-encryption key"
        }
    };
    let text = format!("broker credentials encryption key misconfigured: {why}");
    let delay = error.retry_delay();
    let unavailable = Error::new(Reason::CredentialKeyUnavailable, text).because(error);
    match delay {
        Some(delay) => unavailable.retry_after(delay),
        None => unavailable,
    }
}
