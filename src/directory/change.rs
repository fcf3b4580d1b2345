//! Changing the directory: new tenants, new principals, roles given and taken.

use serde_json::json;

use super::{Directory, update::refuse_job};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Recorded},
    model::{
        Grant, Identity, KeyName, Principal, PrincipalId, PrincipalKind, PrincipalState, Role,
        Scope, Scopes, TenantName, Timestamp,
    },
    store::StoreError,
};

/// What CreatePrincipal is asked for.
#[derive(Debug)]
pub struct CreatePrincipal {
    /// Home tenant.
    pub tenant: TenantName,
    /// Name.
    pub name: KeyName,
    /// User or service.
    pub kind: PrincipalKind,
    /// Who answers for it.
    pub owner: String,
    /// Identities that authenticate as it.
    pub identities: Vec<Identity>,
    /// Entitlements.
    pub scopes: Scopes,
}

/// Whether a role is given or taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleChange {
    /// Given.
    Grant,
    /// Taken.
    Revoke,
}

impl Directory {
    /// Adds a tenant. Errors: ALREADY_EXISTS.
    pub async fn create_tenant(
        &self,
        permit: AdminPermit,
        name: TenantName,
    ) -> Result<Recorded<(TenantName, Timestamp)>> {
        let now = self.clock.now();
        let mut mutation = permit.begin().await?;
        mutation.on("tenant", &name);
        let inserted = mutation.tx().insert_tenant(&name, now).await;
        inserted.map_err(|e| exists(e, "there is a tenant with this name already"))?;
        let details = json!({ "tenant": name.as_str() });
        mutation.record((name, now), details).await
    }

    /// Adds a principal without roles. Errors: PERMISSION_DENIED when it has identities and the caller is not
    /// principal-admin in all tenants, because an identity authenticates everywhere; ALREADY_EXISTS for its name or an identity, TENANT_NOT_FOUND.
    pub async fn create_principal(
        &self,
        permit: AdminPermit,
        request: CreatePrincipal,
    ) -> Result<Recorded<Principal>> {
        if !request.identities.is_empty()
            && !permit
                .caller()
                .principal
                .holds(Role::PrincipalAdmin, &Scope::All)
        {
            // Otherwise one tenant could claim the names that another tenant's certificates carry.
            return Err(Error::new(
                Reason::PermissionDenied,
                "identities hold for all tenants, so only a principal-admin of all tenants binds them",
            ));
        }
        if !self.db.tenant_exists(&request.tenant).await? {
            return Err(Error::new(
                Reason::TenantNotFound,
                "no such tenant, or none that you may see",
            ));
        }
        let principal = Principal {
            id: PrincipalId::random(),
            tenant: request.tenant,
            name: request.name,
            kind: request.kind,
            owner: request.owner,
            state: PrincipalState::Active,
            scopes: request.scopes,
            identities: request.identities,
            grants: Vec::new(),
            created_at: self.clock.now(),
        };
        let identities: Vec<_> = principal.identities.iter().map(Identity::as_str).collect();
        let details = json!({
            "tenant": principal.tenant.as_str(),
            "name": principal.name.as_str(),
            "type": principal.kind.as_str(),
            "identities": identities,
            "owner": principal.owner,
            "scopes": principal.scopes.to_string(),
        });
        let mut mutation = permit.begin().await?;
        mutation.on("principal", principal.id);
        let inserted = mutation.tx().insert_principal(&principal).await;
        inserted.map_err(|e| {
            exists(
                e,
                "the name is taken in this tenant, or an identity belongs to somebody already",
            )
        })?;
        self.forget_after(&mut mutation);
        mutation.record(principal, details).await
    }

    /// Gives or takes a role.
    ///
    /// Errors: SEPARATION_OF_DUTIES for one's own roles; PERMISSION_DENIED where the caller is not principal-admin;
    /// INVALID_FIELD for a job, and for a role outside the home tenant of a principal that is not the platform's;
    /// ALREADY_EXISTS or PRINCIPAL_NOT_FOUND when there is nothing to change.
    pub async fn change_role(
        &self,
        permit: AdminPermit,
        mut principal: Principal,
        grant: Grant,
        change: RoleChange,
    ) -> Result<Recorded<Principal>> {
        refuse_job(&principal)?;
        if permit.caller().principal.id == principal.id {
            return Err(Error::new(
                Reason::SeparationOfDuties,
                "nobody changes their own roles; another principal-admin must do it",
            ));
        }
        // The gate has decided about the principal's home tenant; the role reaches into the grant's.
        if !permit
            .caller()
            .principal
            .holds(Role::PrincipalAdmin, &grant.scope)
        {
            return Err(Error::new(
                Reason::PermissionDenied,
                "nobody changes roles in tenants where they are not principal-admin themselves",
            ));
        }
        self.check_scope(&principal, &grant.scope).await?;
        let mut mutation = permit.begin().await?;
        match change {
            RoleChange::Grant => {
                let inserted = mutation.tx().insert_grant(principal.id, &grant).await;
                inserted.map_err(|e| exists(e, "the principal holds this role already"))?;
                principal.grants.push(grant.clone());
                principal.grants.sort();
            }
            RoleChange::Revoke => {
                if !mutation.tx().delete_grant(principal.id, &grant).await? {
                    return Err(Error::new(
                        Reason::InvalidField,
                        "the principal does not hold this role in this tenant",
                    ));
                }
                principal.grants.retain(|held| *held != grant);
            }
        }
        let details = json!({ "role": grant.role.as_str(), "tenant": grant.scope.as_str() });
        self.forget_after(&mut mutation);
        mutation.record(principal, details).await
    }

    async fn check_scope(&self, principal: &Principal, scope: &Scope) -> Result<()> {
        let outside = Err(Error::new(
            Reason::InvalidField,
            "a principal holds roles in its own tenant only, unless its home is the system tenant",
        ));
        match scope {
            Scope::Tenant(tenant) if *tenant == principal.tenant => Ok(()),
            _ if !principal.tenant.is_system() => outside,
            Scope::All => Ok(()),
            Scope::Tenant(tenant) if self.db.tenant_exists(tenant).await? => Ok(()),
            Scope::Tenant(_) => Err(Error::new(
                Reason::TenantNotFound,
                "no such tenant, or none that you may see",
            )),
        }
    }
}

pub(super) fn exists(error: StoreError, message: &'static str) -> Error {
    match error {
        StoreError::Exists(_) => Error::new(Reason::AlreadyExists, message).because(error),
        other => other.into(),
    }
}
