//! The first tenants and people, from the configuration: without them nobody could grant anybody anything.
//!
//! Applied at every start, adding what is missing and taking nothing away; what it adds is audited as the work of a
//! job. Afterwards the directory is managed over gRPC.

use serde::Deserialize;
use serde_json::json;

use super::Directory;
use crate::{
    audit::{Outcome, Record, admin},
    error::{Error, Reason, Result},
    model::{
        Action, Grant, Identity, KeyName, Principal, PrincipalId, PrincipalKind, Scope, TenantName,
    },
    store::Tx,
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
            identities,
            grants: Vec::new(),
            created_at: crate::model::Timestamp::default(),
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
                tx.insert_tenant(&tenant, self.clock.now()).await?;
                let details = json!({ "tenant": tenant.as_str() });
                let id = tenant.to_string();
                self.record(tx, Action::CreateTenant, &tenant, ("tenant", id), details)
                    .await?;
            }
        }
        for (principal, grants) in config.parsed()? {
            self.bootstrap_principal(principal, grants).await?;
        }
        self.forget();
        Ok(())
    }

    async fn bootstrap_principal(&self, mut wanted: Principal, grants: Vec<Grant>) -> Result<()> {
        let known = self
            .db
            .principal_by_name(&wanted.tenant, wanted.name.as_str())
            .await?;
        let principal = match known {
            Some(known) => known,
            None => {
                wanted.created_at = self.clock.now();
                let mut tx = self.db.begin().await?;
                tx.insert_principal(&wanted).await?;
                let details = json!({ "name": wanted.name.as_str(), "type": wanted.kind.as_str() });
                let entity = ("principal", wanted.id.to_string());
                self.record(tx, Action::CreatePrincipal, &wanted.tenant, entity, details)
                    .await?;
                wanted
            }
        };
        for grant in grants {
            if !principal.grants.contains(&grant) {
                let mut tx = self.db.begin().await?;
                tx.insert_grant(principal.id, &grant).await?;
                let details =
                    json!({ "role": grant.role.as_str(), "tenant": grant.scope.as_str() });
                let entity = ("principal", principal.id.to_string());
                self.record(tx, Action::GrantRole, &principal.tenant, entity, details)
                    .await?;
            }
        }
        Ok(())
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
        };
        admin::append(&mut tx, record).await?;
        Ok(tx.commit().await?)
    }
}
