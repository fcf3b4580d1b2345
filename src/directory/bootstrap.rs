//! The first tenants and people, from the configuration: without them nobody could grant anybody anything.
//!
//! Read at every start: who is missing is added, with roles; who exists is left alone. What is added is audited as the
//! work of a job. Afterwards the directory is managed over gRPC.

use serde::Deserialize;
use serde_json::json;

use super::Directory;
use crate::{
    audit::{Outcome, Record, admin},
    error::{Error, Reason, Result},
    model::{
        Action, Grant, Identity, Job, KeyName, Principal, PrincipalId, PrincipalKind,
        PrincipalState, Scope, Scopes, TenantName, Timestamp,
    },
    store::{StoreError, Tx},
};

/// Section `[bootstrap]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootstrapConfig {
    /// Tenants to create. `system` always exists.
    pub tenants: Vec<String>,
    /// Principals to create.
    pub principals: Vec<BootstrapPrincipal>,
}

/// A principal to create.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootstrapPrincipal {
    /// Name, unique in the tenant.
    pub name: String,
    /// Home tenant.
    pub tenant: String,
    /// `user` or `service`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `spiffe://…`, `dns:…` or `cn:…`.
    pub identities: Vec<String>,
    /// Roles to hold.
    #[serde(default)]
    pub roles: Vec<BootstrapRole>,
    /// Who answers for it; the name when left out.
    #[serde(default)]
    pub owner: Option<String>,
    /// Entitlements (RFC 6749 scope-tokens).
    #[serde(default)]
    pub scopes: Vec<String>,
}

/// A role to hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootstrapRole {
    /// Role.
    pub role: String,
    /// Tenant, or `*`.
    pub tenant: String,
}

impl BootstrapConfig {
    /// Parses everything. Errors: INVALID_FIELD that names the entry.
    pub fn check(&self) -> Result<()> {
        self.tenants()?;
        self.parsed().map(|_| ())
    }

    fn tenants(&self) -> Result<Vec<TenantName>> {
        self.tenants
            .iter()
            .map(|name| name.parse().map_err(|e| named("tenants", name, &e)))
            .collect()
    }

    fn parsed(&self) -> Result<Vec<(Principal, Vec<Grant>)>> {
        self.principals
            .iter()
            .map(|entry| {
                entry
                    .parsed()
                    .map_err(|e| named("principals", &entry.name, &e))
            })
            .collect()
    }
}

impl BootstrapPrincipal {
    fn parsed(&self) -> Result<(Principal, Vec<Grant>)> {
        let tenant: TenantName = self.tenant.parse()?;
        let grants = self
            .roles
            .iter()
            .map(|entry| {
                let scope: Scope = entry.tenant.parse()?;
                if !tenant.is_system() && scope != Scope::Tenant(tenant.clone()) {
                    return Err(Error::new(
                        Reason::InvalidField,
                        "roles outside the home tenant are for principals of tenant system only",
                    ));
                }
                let role = entry.role.parse()?;
                Ok(Grant { role, scope })
            })
            .collect::<Result<_>>()?;
        let identities = self
            .identities
            .iter()
            .map(|identity| identity.parse::<Identity>())
            .collect::<Result<_>>()?;
        let kind: PrincipalKind = self.kind.parse()?;
        if kind == PrincipalKind::Job {
            return Err(Error::new(
                Reason::InvalidField,
                "type must be user or service",
            ));
        }
        let principal = Principal {
            id: PrincipalId::random(),
            name: self.name.parse::<KeyName>()?,
            tenant,
            kind,
            owner: self.owner.clone().unwrap_or_else(|| self.name.clone()),
            state: PrincipalState::Active,
            scopes: Scopes::entitlements(&self.scopes)?,
            identities,
            grants: Vec::new(),
            created_at: Timestamp::default(),
        };
        Ok((principal, grants))
    }
}

fn named(list: &str, name: &str, error: &Error) -> Error {
    Error::new(
        Reason::InvalidField,
        format!("bootstrap.{list} {name:?}: {}", error.message()),
    )
}

impl Directory {
    /// Adds what the configuration names and the database lacks. Each addition is one audited transaction.
    pub async fn bootstrap(&self, config: &BootstrapConfig) -> Result<()> {
        let mut tenants = config.tenants()?;
        tenants.insert(0, TenantName::system());
        for tenant in tenants {
            if !self.db.tenant_exists(&tenant).await? {
                let mut tx = self.db.begin().await?;
                match tx.insert_tenant(&tenant, self.clock.now()).await {
                    // Another replica, starting at the same time, was first.
                    Err(StoreError::Exists(_)) => continue,
                    inserted => inserted?,
                }
                let details = json!({ "tenant": tenant.as_str() });
                let id = tenant.to_string();
                self.record(tx, Action::CreateTenant, &tenant, ("tenant", id), details)
                    .await?;
            }
        }
        for job in Job::ALL {
            self.bootstrap_principal(job.principal(), Vec::new())
                .await?;
        }
        for (principal, grants) in config.parsed()? {
            self.bootstrap_principal(principal, grants).await?;
        }
        self.forget();
        Ok(())
    }

    /// A principal and its roles, in one transaction. One that exists keeps the roles it has: what was revoked over
    /// gRPC must not come back with the next start.
    async fn bootstrap_principal(&self, mut wanted: Principal, grants: Vec<Grant>) -> Result<()> {
        let (tenant, name) = (wanted.tenant.clone(), wanted.name.clone());
        let known = self.db.principal_by_name(&tenant, name.as_str()).await?;
        if known.is_some() {
            return Ok(());
        }
        wanted.created_at = self.clock.now();
        let mut tx = self.db.begin().await?;
        match tx.insert_principal(&wanted).await {
            Ok(()) => {}
            // Another replica, starting at the same time, was first; or the identity belongs to somebody else.
            Err(StoreError::Exists(_)) => {
                drop(tx);
                return match self.db.principal_by_name(&tenant, name.as_str()).await? {
                    Some(_) => Ok(()),
                    None => Err(Error::new(
                        Reason::AlreadyExists,
                        format!("principal {name}: an identity belongs to somebody already"),
                    )),
                };
            }
            // Its people are named in the configuration of a daemon that has outlived the tenant.
            Err(StoreError::TenantErased) => {
                tracing::warn!(%tenant, %name, "principal not created: the keys of its tenant were destroyed");
                return Ok(());
            }
            Err(other) => return Err(other.into()),
        }
        let mut roles = Vec::with_capacity(grants.len());
        for grant in &grants {
            tx.insert_grant(wanted.id, grant).await?;
            roles.push(json!({ "role": grant.role.as_str(), "tenant": grant.scope.as_str() }));
        }
        let details =
            json!({ "name": name.as_str(), "type": wanted.kind.as_str(), "roles": roles });
        let entity = ("principal", wanted.id.to_string());
        self.record(tx, Action::CreatePrincipal, &tenant, entity, details)
            .await
    }

    /// The configuration is the authority here, so there is no caller for the gate to decide about; the row says so.
    async fn record(
        &self,
        mut tx: Tx,
        action: Action,
        tenant: &TenantName,
        (entity, entity_id): (&'static str, String),
        details: serde_json::Value,
    ) -> Result<()> {
        let record = Record {
            tenant: tenant.to_string(),
            actor: "bootstrap".to_owned(),
            actor_type: PrincipalKind::Job.as_str(),
            action: action.name(),
            entity,
            entity_id,
            outcome: Outcome::Success,
            request_id: "start-up".to_owned(),
            data: details.to_string(),
            credential: None,
        };
        admin::append(&mut tx, record).await?;
        Ok(tx.commit().await?)
    }
}
