//! Leases: a service fetches a credential for a time, so that it is known who holds what.
//!
//! One order of locks: the credential, then the lease. A lease that is over stays over; who needs the credential again
//! leases it again, and so gets the value that is CURRENT then.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Vault, conflict, details, invalid};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Permit, Recorded, not_found},
    model::{
        CredentialId, CredentialValue, Entity, Lease, LeaseEnd, LeaseId, LeaseState, PrincipalId,
        Resource, SecretFields, TenantName, ValueLabel,
    },
    store::{FullCredential, LeasesOf, Tx},
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// What was handed out.
pub struct Leased {
    /// The lease.
    pub lease: Lease,
    /// The secret.
    pub fields: SecretFields,
}

impl Vault {
    /// The secret of the CURRENT value, once the row that says who holds it is written.
    ///
    /// Errors: CREDENTIAL_NOT_FOUND, also for a credential without a CURRENT value; INVALID_FIELD; CREDENTIAL_UNREADABLE,
    /// CREDENTIAL_KEY_UNAVAILABLE, NO_USABLE_VERSION; TENANT_ERASED; CONFLICT when it was deleted meanwhile.
    pub async fn lease(
        &self,
        permit: AdminPermit,
        found: Option<FullCredential>,
        holder: PrincipalId,
        ttl: Option<Duration>,
    ) -> Result<Recorded<Leased>> {
        let found = found.ok_or_else(|| not_found(permit.permit().resource()))?;
        let ttl = self.lease_ttl(ttl)?;
        let value = current(&found)?.id;
        let mut fields = self.open(&found.head, current(&found)?).await?;
        let mut mutation = permit.begin().await?;
        let tx = mutation.tx();
        tx.hold_tenant(&found.head.key.tenant).await?;
        let locked = tx.lock_credential(found.head.id).await?;
        let locked = locked.ok_or_else(conflict)?;
        let value_now = current(&locked)?;
        // A promotion was faster, and nobody is to notice it. Its key was opened a moment ago, so no device is asked now.
        if value_now.id != value {
            fields = self.open_held(&locked.head, value_now).await?;
        }
        let now = tx.now().await?;
        let lease = Lease {
            id: LeaseId::random(),
            credential: found.head.id,
            value: value_now.id,
            tenant: found.head.key.tenant.clone(),
            holder,
            created_at: now,
            expires_at: now.plus(ttl),
            max_expires_at: now.plus(self.max_lease),
            ended: None,
        };
        mutation.tx().insert_lease(&lease).await?;
        let mut details = details(&found.head.key);
        add(&mut details, &lease);
        mutation.record(Leased { lease, fields }, details).await
    }

    /// A lease, and what the gate decides about: its credential.
    pub async fn find_lease(&self, id: LeaseId) -> Result<(Resource, Option<Lease>)> {
        let unknown = || Resource {
            tenant: TenantName::system(),
            entity: Entity::UnknownCredential(CredentialId::random()),
        };
        let Some(lease) = self.db.lease(id).await? else {
            return Ok((unknown(), None));
        };
        let (resource, found) = self.find(lease.credential).await?;
        match found {
            Some(_) => Ok((resource, Some(lease))),
            // With the credential went whatever there was to hold.
            None => Ok((unknown(), None)),
        }
    }

    /// More time for one's own lease.
    ///
    /// Errors: LEASE_NOT_FOUND, also for somebody else's; LEASE_STATE when it is over, or its value is not CURRENT any more;
    /// INVALID_FIELD, TENANT_ERASED.
    pub async fn renew_lease(
        &self,
        permit: AdminPermit,
        lease: Option<Lease>,
        holder: PrincipalId,
        ttl: Option<Duration>,
    ) -> Result<Recorded<Lease>> {
        let lease = own(lease, holder)?;
        let ttl = self.lease_ttl(ttl)?;
        let mut mutation = permit.begin().await?;
        mutation.tx().hold_tenant(&lease.tenant).await?;
        let credential = mutation.tx().lock_credential(lease.credential).await?;
        let mut lease = held(mutation.tx(), &lease).await?;
        let current = credential
            .as_ref()
            .and_then(|found| found.value(ValueLabel::Current));
        if current.is_none_or(|value| value.id != lease.value) {
            return Err(over(
                "the credential has another value now; lease it again to get that one",
            ));
        }
        let now = mutation.tx().now().await?;
        lease.expires_at = now.plus(ttl).min(lease.max_expires_at);
        mutation.tx().update_lease(&lease).await?;
        let details = lease_details(&lease);
        mutation.record(lease, details).await
    }

    /// Gives one's own lease back.
    ///
    /// Errors: LEASE_NOT_FOUND, also for somebody else's; LEASE_STATE when it is over.
    pub async fn return_lease(
        &self,
        permit: AdminPermit,
        lease: Option<Lease>,
        holder: PrincipalId,
    ) -> Result<Recorded<Lease>> {
        let lease = own(lease, holder)?;
        end(permit, &lease, LeaseEnd::Returned, None).await
    }

    /// Ends anybody's lease.
    ///
    /// Errors: LEASE_NOT_FOUND; LEASE_STATE when it is over.
    pub async fn revoke_lease(
        &self,
        permit: AdminPermit,
        lease: Option<Lease>,
        reason: String,
    ) -> Result<Recorded<Lease>> {
        let lease = lease.ok_or_else(unknown)?;
        end(permit, &lease, LeaseEnd::Revoked, Some(reason)).await
    }

    /// Up to `limit` leases after `after` that are held now, oldest first.
    pub async fn leases(
        &self,
        _permit: &Permit,
        of: &LeasesOf,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Lease>> {
        let now = self.clock.now();
        Ok(self.db.leases(of, after, now, limit).await?)
    }

    fn lease_ttl(&self, ttl: Option<Duration>) -> Result<Duration> {
        let ttl = ttl.unwrap_or_else(|| HOUR.min(self.max_lease));
        match (MINUTE..=self.max_lease).contains(&ttl) {
            true => Ok(ttl),
            false => Err(invalid(format!(
                "ttl must be 60 to {} seconds",
                self.max_lease.as_secs()
            ))),
        }
    }
}

fn current(found: &FullCredential) -> Result<&CredentialValue> {
    found.value(ValueLabel::Current).ok_or_else(|| {
        Error::new(
            Reason::CredentialNotFound,
            "the credential has no CURRENT value",
        )
    })
}

async fn end(
    permit: AdminPermit,
    lease: &Lease,
    how: LeaseEnd,
    reason: Option<String>,
) -> Result<Recorded<Lease>> {
    let mut mutation = permit.begin().await?;
    mutation.tx().lock_credential(lease.credential).await?;
    let mut lease = held(mutation.tx(), lease).await?;
    lease.ended = Some((mutation.tx().now().await?, how));
    mutation.tx().update_lease(&lease).await?;
    let mut details = lease_details(&lease);
    if let Some(reason) = reason {
        details["reason"] = reason.into();
    }
    mutation.record(lease, details).await
}

/// Somebody else's is as if it did not exist: its id is nobody else's business.
fn own(lease: Option<Lease>, holder: PrincipalId) -> Result<Lease> {
    lease
        .filter(|lease| lease.holder == holder)
        .ok_or_else(unknown)
}

/// Locks the lease. Errors: it is over.
async fn held(tx: &mut Tx, lease: &Lease) -> Result<Lease> {
    let lease = tx.lock_lease(lease.id).await?.ok_or_else(unknown)?;
    match lease.state(tx.now().await?) {
        LeaseState::Active => Ok(lease),
        LeaseState::Expired => Err(over("the lease has expired; lease the credential again")),
        LeaseState::Ended(LeaseEnd::Returned) => Err(over("the lease was returned")),
        LeaseState::Ended(LeaseEnd::Revoked) => Err(over("the lease was revoked")),
    }
}

fn lease_details(lease: &Lease) -> Value {
    let mut details = json!({ "holder": lease.holder.to_string() });
    add(&mut details, lease);
    details
}

fn add(details: &mut Value, lease: &Lease) {
    details["lease_id"] = lease.id.to_string().into();
    details["value_id"] = lease.value.to_string().into();
    details["expires_at"] = lease.expires_at.micros().into();
}

fn unknown() -> Error {
    Error::new(
        Reason::LeaseNotFound,
        "no such lease, or none that is yours",
    )
}

fn over(message: &'static str) -> Error {
    Error::new(Reason::LeaseState, message)
}
