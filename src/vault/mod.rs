//! R3: the vault, where users keep the credentials of brokers and LLM providers (R-CRED-1).
//!
//! A secret is a set of named fields, sealed under the tenant's own key before it is stored; what a row holds in the clear
//! is whose it is and its last characters. The sealed bytes are bound to the row's id, credential, tenant, owner, provider
//! and environment, so that they open in no other place. Who may is not decided here: everything that acts takes a permit.

mod catalogue;
mod config;
mod import;
mod key;
mod leases;
mod put;
mod report;
mod reveal;
mod rewrap;
mod rotation;
mod seal;
mod validate;
mod watch;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub use catalogue::{Catalogue, Warnings};
pub use config::{CredentialRotationConfig, ThreeRoles, VaultConfig};
pub use import::{ImportItem, ImportOutcome, ImportRequest, ImportResult, Imported, ItemOwner};
pub use leases::Leased;
pub use put::{Put, PutCredential};
pub use reveal::Revealed;
pub use rotation::{
    Demand, DriverConfig, FoundRotation, Look, OfPending, Reminder, RollBack, SetRotation,
    StageCredential, Staged, Withdrawal, unknown_rotation,
};
pub use validate::Validated;
pub use watch::{Seen, Watch};

pub use crate::store::{
    CredentialFilter, CredentialRotationsOf, CredentialsOf, FullCredential, LeasesOf,
    ListedCredential, ListedValue, OutdatedValues, ProviderCounts,
};

use crate::{
    clock::Clock,
    directory::Directory,
    egress::Egress,
    error::{Error, Reason, Result},
    gate::{AdminPermit, Gate, Permit, Recorded, not_found},
    keys::Keys,
    model::{
        Action, Caller, CredentialId, CredentialKey, Entity, KeyName, Principal, ProviderName,
        Resource, TenantName, Timestamp, credential_rotation::ErrorRule,
    },
    store::Db,
};

/// The vault.
pub struct Vault {
    db: Db,
    keys: Arc<Keys>,
    directory: Arc<Directory>,
    egress: Arc<Egress>,
    clock: Clock,
    key: KeyName,
    is_strict: bool,
    max_lease: Duration,
    news: watch::News,
    rotation: config::Times,
    errors: ErrorRule,
    three_roles: Vec<ThreeRoles>,
    drivers: BTreeMap<ProviderName, rotation::Driver>,
    catalogue: Catalogue,
}

impl Vault {
    /// A vault over these parts. Errors: a sentence that names the setting of `config` that is wrong.
    pub fn new(
        db: Db,
        (keys, directory, egress): (Arc<Keys>, Arc<Directory>, Arc<Egress>),
        clock: Clock,
        config: &VaultConfig,
    ) -> std::result::Result<Self, String> {
        Ok(Self {
            db,
            keys,
            directory,
            egress,
            clock,
            key: config.key()?,
            is_strict: config.strict,
            max_lease: Duration::from_secs(config.max_lease_seconds),
            news: watch::News::default(),
            rotation: config.rotation.times(),
            errors: config.rotation.error_rule(),
            three_roles: config.rotation.three_roles.clone(),
            drivers: config.rotation.drivers()?,
            catalogue: config.catalogue()?,
        })
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The providers that are known.
    pub const fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The credential with this id, and what the gate decides about.
    pub async fn find(&self, id: CredentialId) -> Result<(Resource, Option<FullCredential>)> {
        let found = self.db.credential(id).await?;
        let resource = match &found {
            Some(found) => resource(id, &found.head.key),
            None => Resource {
                tenant: TenantName::system(),
                entity: Entity::UnknownCredential(id),
            },
        };
        Ok((resource, found))
    }

    /// The credential that is about to be stored for `owner`, if it is there already; its id, new if it is not; and what
    /// the gate decides about.
    pub async fn find_place(&self, owner: &Principal, place: Place) -> Result<Found> {
        let key = CredentialKey {
            tenant: owner.tenant.clone(),
            owner: owner.id,
            provider: place.provider,
            environment: place.environment,
            name: place.name,
        };
        let existing = self.db.credential_by_key(&key).await?;
        let id = existing
            .as_ref()
            .map_or_else(CredentialId::random, |found| found.head.id);
        Ok(Found {
            resource: resource(id, &key),
            id,
            key,
            existing,
        })
    }

    /// Up to `limit` credentials after `after`, oldest first.
    pub async fn list(
        &self,
        _permit: &Permit,
        filter: &CredentialFilter,
        after: &str,
        limit: i64,
    ) -> Result<Vec<ListedCredential>> {
        if let CredentialsOf::Tenant(tenant) = &filter.of {
            self.db.expect_unerased(tenant).await?;
        }
        let found = self.db.credentials(filter, after, limit).await?;
        if let Some(one) = found.first() {
            self.db.expect_unerased(&one.head.key.tenant).await?;
        }
        Ok(found)
    }

    /// One credential as it was found, for who may see it. Errors: CREDENTIAL_NOT_FOUND, TENANT_ERASED.
    pub async fn show(
        &self,
        _permit: &Permit,
        found: Option<FullCredential>,
    ) -> Result<FullCredential> {
        let found = found.ok_or_else(no_such_credential)?;
        self.db.expect_unerased(&found.head.key.tenant).await?;
        Ok(found)
    }

    /// What the gate decides about when a credential is to be deleted. A call that is made again finds none any more, and is
    /// to get its first answer: it is decided about on the caller's own account, for who may delete there. To everybody
    /// else an id that nobody has stays what it is.
    pub fn to_delete(&self, gate: &Gate, caller: &Caller, resource: Resource) -> Resource {
        let own = Resource {
            tenant: caller.principal.tenant.clone(),
            entity: Entity::Principal(caller.principal.id),
        };
        let is_gone = matches!(resource.entity, Entity::UnknownCredential(_));
        let may_be_again = is_gone && caller.idempotency.is_some();
        match may_be_again && gate.may(caller, Action::DeleteCredential, &own) {
            true => own,
            false => resource,
        }
    }

    /// Deletes a credential as it was found, with all its values.
    ///
    /// Errors: CREDENTIAL_NOT_FOUND, CONFLICT.
    pub async fn delete(
        &self,
        permit: AdminPermit,
        found: Option<FullCredential>,
    ) -> Result<Recorded<()>> {
        let found = found.ok_or_else(no_such_credential)?;
        let details = details(&found.head.key);
        let mut mutation = permit.begin().await?;
        let (tx, id, now) = (mutation.tx(), found.head.id, self.clock.now());
        if !tx.delete_credential(&found.head).await? {
            return Err(conflict());
        }
        if let Some(open) = tx.open_credential_rotation(id).await? {
            let ended = rotation::ended(open, &found.head, "CREDENTIAL_DELETED", now);
            tx.update_credential_rotation(&ended).await?;
        }
        tx.end_credential_alerts(id, now).await?;
        tx.end_leases_of_credential(id, now).await?;
        mutation.record((), details).await
    }
}

/// Where a credential of an owner belongs.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its provider.
    pub provider: crate::model::ProviderName,
    /// Its environment.
    pub environment: crate::model::CredentialEnvironment,
    /// Its name.
    pub name: String,
}

/// What is there.
pub struct Found {
    /// What the gate decides about.
    pub resource: Resource,
    id: CredentialId,
    key: CredentialKey,
    existing: Option<FullCredential>,
}

fn resource(id: CredentialId, key: &CredentialKey) -> Resource {
    Resource {
        tenant: key.tenant.clone(),
        entity: Entity::Credential {
            id,
            owner: key.owner,
            provider: key.provider.clone(),
        },
    }
}

/// What every audit row about a credential says of it.
fn details(key: &CredentialKey) -> serde_json::Value {
    serde_json::json!({
        "owner": key.owner.to_string(),
        "provider": key.provider.as_str(),
        "environment": key.environment.as_str(),
        "name": key.name,
    })
}

/// The same answer as for one that the caller may not see.
fn no_such_credential() -> Error {
    not_found(&Resource {
        tenant: TenantName::system(),
        entity: Entity::UnknownCredential(CredentialId::random()),
    })
}

fn conflict() -> Error {
    Error::new(
        Reason::Conflict,
        "somebody else changed this credential; read it again and retry",
    )
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Reason::InvalidField, message)
}
