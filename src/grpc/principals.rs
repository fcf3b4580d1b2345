//! PrincipalService.

use std::sync::Arc;

use prost::Message;
use tonic::{Request, Response, Status};

use super::{
    call::Parts,
    convert,
    proto::{self, principal_service_server::PrincipalService},
};
use crate::{
    audit::Receipt,
    directory::{CreatePrincipal, RoleChange, StateChange, UpdatePrincipal},
    error::Result,
    gate::not_found,
    model::{
        Action, Caller, Grant, Identity, Principal, PrincipalId, Resource, Scope, Scopes,
        TenantName, Timestamp, principal::MAX_IDENTITIES,
    },
};

/// PrincipalService over these parts.
pub struct PrincipalApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

const TENANTS: &str = "tenants";
const PRINCIPALS: &str = "principals";
/// Characters of Principal.owner.
const MAX_OWNER: usize = 255;
/// Characters of the reason of a suspension.
const MAX_REASON: usize = 500;

impl PrincipalApi {
    async fn new_tenant(
        &self,
        caller: Caller,
        r: proto::CreateTenantRequest,
    ) -> Result<proto::CreateTenantResponse> {
        let name: TenantName = r.name.parse()?;
        let directory = Arc::clone(&self.0.directory);
        let resource = Resource::tenant(TenantName::system());
        let answer = |(name, created_at): &(TenantName, Timestamp), receipt: &Receipt| {
            proto::CreateTenantResponse {
                tenant: Some(proto::Tenant {
                    name: name.to_string(),
                    create_time: convert::time(*created_at),
                }),
                receipt: convert::receipt(receipt),
            }
        };
        let act = async move |permit| directory.create_tenant(permit, name).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::CreateTenant, resource, answer, act)
            .await
    }

    async fn tenants(
        &self,
        caller: Caller,
        r: proto::ListTenantsRequest,
    ) -> Result<proto::ListTenantsResponse> {
        let size = convert::page_size(r.page_size)?;
        let after = convert::page_token(TENANTS, &r.page_token)?;
        let act = async |permit| {
            let page = self.0.directory.tenants(&permit, &after, size).await?;
            let next = convert::next_page(TENANTS, &page, size, |(name, _)| name.to_string());
            let answer = proto::ListTenantsResponse {
                tenants: page
                    .into_iter()
                    .map(|(name, at)| proto::Tenant {
                        name: name.to_string(),
                        create_time: convert::time(at),
                    })
                    .collect(),
                next_page_token: next,
            };
            Ok((answer, String::new()))
        };
        let resource = Resource::tenant(TenantName::system());
        let gate = &self.0.gate;
        gate.access(&caller, Action::ListTenants, resource, act)
            .await
    }

    async fn new_principal(
        &self,
        caller: Caller,
        r: proto::CreatePrincipalRequest,
    ) -> Result<proto::CreatePrincipalResponse> {
        let owner = match r.owner.as_str() {
            "" => r.name.clone(),
            _ => convert::text("owner", r.owner, MAX_OWNER)?,
        };
        let request = CreatePrincipal {
            tenant: convert::tenant(&r.tenant, &caller)?,
            name: r.name.parse()?,
            kind: convert::principal_kind(r.r#type)?
                .ok_or_else(|| convert::invalid("type must be user or service"))?,
            owner,
            identities: identities(&r.identities)?,
            scopes: Scopes::entitlements(&r.scopes)?,
        };
        let resource = Resource::tenant(request.tenant.clone());
        let directory = Arc::clone(&self.0.directory);
        let answer = |principal: &Principal, receipt: &Receipt| proto::CreatePrincipalResponse {
            principal: Some(convert::principal(principal)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| directory.create_principal(permit, request).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::CreatePrincipal, resource, answer, act)
            .await
    }

    async fn change_role<M: Message + Default + 'static>(
        &self,
        caller: Caller,
        (id, role, tenant): (String, String, String),
        change: RoleChange,
        answer: impl FnOnce(&Principal, &Receipt) -> M + Send + 'static,
    ) -> Result<M> {
        let id: PrincipalId = id.parse()?;
        let role = role.parse()?;
        let named = match tenant.as_str() {
            "" => None,
            tenant => Some(tenant.parse::<Scope>()?),
        };
        let action = match change {
            RoleChange::Grant => Action::GrantRole,
            RoleChange::Revoke => Action::RevokeRole,
        };
        let (resource, found) = self.0.directory.find(id).await?;
        let missing = not_found(&resource);
        let directory = Arc::clone(&self.0.directory);
        self.0
            .gate
            .mutate(&caller, action, resource, answer, async move |permit| {
                let principal = found.ok_or(missing)?;
                let home = Scope::Tenant(principal.tenant.clone());
                let scope = named.unwrap_or(home);
                let grant = Grant { role, scope };
                directory
                    .change_role(permit, principal, grant, change)
                    .await
            })
            .await
    }

    async fn get(
        &self,
        caller: Caller,
        r: proto::GetPrincipalRequest,
    ) -> Result<proto::GetPrincipalResponse> {
        let (resource, found) = self.0.directory.find(r.principal_id.parse()?).await?;
        let missing = not_found(&resource);
        let act = async |_| {
            let answer = proto::GetPrincipalResponse {
                principal: Some(convert::principal(&found.ok_or(missing)?)),
            };
            Ok((answer, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::GetPrincipal, resource, act)
            .await
    }

    async fn update(
        &self,
        caller: Caller,
        r: proto::UpdatePrincipalRequest,
    ) -> Result<proto::UpdatePrincipalResponse> {
        let owner = r
            .owner
            .map(|owner| convert::text("owner", owner, MAX_OWNER));
        let update = UpdatePrincipal {
            owner: owner.transpose()?,
            add_scopes: Scopes::entitlements(&r.add_scopes)?,
            remove_scopes: Scopes::entitlements(&r.remove_scopes)?,
            add_identities: identities(&r.add_identities)?,
            remove_identities: identities(&r.remove_identities)?,
        };
        let (resource, found) = self.0.directory.find(r.principal_id.parse()?).await?;
        let directory = Arc::clone(&self.0.directory);
        let answer = |principal: &Principal, receipt: &Receipt| proto::UpdatePrincipalResponse {
            principal: Some(convert::principal(principal)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| directory.update_principal(permit, found, update).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::UpdatePrincipal, resource, answer, act)
            .await
    }

    async fn change_state<M: Message + Default + 'static>(
        &self,
        caller: Caller,
        id: String,
        (change, reason): (StateChange, String),
        answer: impl FnOnce(&Principal, &Receipt) -> M + Send + 'static,
    ) -> Result<M> {
        let action = match change {
            StateChange::Suspend => Action::SuspendPrincipal,
            StateChange::Resume => Action::ResumePrincipal,
        };
        let (resource, found) = self.0.directory.find(id.parse()?).await?;
        let directory = Arc::clone(&self.0.directory);
        let act = async move |permit| directory.change_state(permit, found, change, reason).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, action, resource, answer, act).await
    }

    async fn principals(
        &self,
        caller: Caller,
        r: proto::ListPrincipalsRequest,
    ) -> Result<proto::ListPrincipalsResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let size = convert::page_size(r.page_size)?;
        let after = convert::page_token(PRINCIPALS, &r.page_token)?;
        let directory = &self.0.directory;
        let act = async |permit| {
            let page = directory.principals(&permit, &tenant, &after, size).await?;
            let answer = proto::ListPrincipalsResponse {
                principals: page.iter().map(convert::principal).collect(),
                next_page_token: convert::next_page(PRINCIPALS, &page, size, |p| p.id.to_string()),
            };
            Ok((answer, String::new()))
        };
        let resource = Resource::tenant(tenant.clone());
        let gate = &self.0.gate;
        gate.access(&caller, Action::ListPrincipals, resource, act)
            .await
    }
}

/// Errors: INVALID_FIELD.
fn identities(texts: &[String]) -> Result<Vec<Identity>> {
    if texts.len() > MAX_IDENTITIES {
        return Err(convert::invalid("identities must be at most 8"));
    }
    texts.iter().map(|identity| identity.parse()).collect()
}

#[tonic::async_trait]
impl PrincipalService for PrincipalApi {
    async fn create_tenant(
        &self,
        r: Request<proto::CreateTenantRequest>,
    ) -> Answer<proto::CreateTenantResponse> {
        let act = async |caller, m| self.new_tenant(caller, m).await;
        self.0.call(r, Action::CreateTenant, act).await
    }

    async fn list_tenants(
        &self,
        r: Request<proto::ListTenantsRequest>,
    ) -> Answer<proto::ListTenantsResponse> {
        let act = async |caller, m| self.tenants(caller, m).await;
        self.0.call(r, Action::ListTenants, act).await
    }

    async fn create_principal(
        &self,
        r: Request<proto::CreatePrincipalRequest>,
    ) -> Answer<proto::CreatePrincipalResponse> {
        let act = async |caller, m| self.new_principal(caller, m).await;
        self.0.call(r, Action::CreatePrincipal, act).await
    }

    async fn grant_role(
        &self,
        r: Request<proto::GrantRoleRequest>,
    ) -> Answer<proto::GrantRoleResponse> {
        let act = async |caller, m: proto::GrantRoleRequest| {
            let role = (m.principal_id, m.role, m.tenant);
            let answer = |principal: &Principal, receipt: &Receipt| proto::GrantRoleResponse {
                principal: Some(convert::principal(principal)),
                receipt: convert::receipt(receipt),
            };
            self.change_role(caller, role, RoleChange::Grant, answer)
                .await
        };
        self.0.call(r, Action::GrantRole, act).await
    }

    async fn revoke_role(
        &self,
        r: Request<proto::RevokeRoleRequest>,
    ) -> Answer<proto::RevokeRoleResponse> {
        let act = async |caller, m: proto::RevokeRoleRequest| {
            let role = (m.principal_id, m.role, m.tenant);
            let answer = |principal: &Principal, receipt: &Receipt| proto::RevokeRoleResponse {
                principal: Some(convert::principal(principal)),
                receipt: convert::receipt(receipt),
            };
            self.change_role(caller, role, RoleChange::Revoke, answer)
                .await
        };
        self.0.call(r, Action::RevokeRole, act).await
    }

    async fn get_principal(
        &self,
        r: Request<proto::GetPrincipalRequest>,
    ) -> Answer<proto::GetPrincipalResponse> {
        let act = async |caller, m| self.get(caller, m).await;
        self.0.call(r, Action::GetPrincipal, act).await
    }

    async fn update_principal(
        &self,
        r: Request<proto::UpdatePrincipalRequest>,
    ) -> Answer<proto::UpdatePrincipalResponse> {
        let act = async |caller, m| self.update(caller, m).await;
        self.0.call(r, Action::UpdatePrincipal, act).await
    }

    async fn suspend_principal(
        &self,
        r: Request<proto::SuspendPrincipalRequest>,
    ) -> Answer<proto::SuspendPrincipalResponse> {
        let act = async |caller, m: proto::SuspendPrincipalRequest| {
            let reason = convert::text("reason", m.reason, MAX_REASON)?;
            let answer =
                |principal: &Principal, receipt: &Receipt| proto::SuspendPrincipalResponse {
                    principal: Some(convert::principal(principal)),
                    receipt: convert::receipt(receipt),
                };
            let change = (StateChange::Suspend, reason);
            self.change_state(caller, m.principal_id, change, answer)
                .await
        };
        self.0.call(r, Action::SuspendPrincipal, act).await
    }

    async fn resume_principal(
        &self,
        r: Request<proto::ResumePrincipalRequest>,
    ) -> Answer<proto::ResumePrincipalResponse> {
        let act = async |caller, m: proto::ResumePrincipalRequest| {
            let reason = match m.reason.as_str() {
                "" => String::new(),
                _ => convert::text("reason", m.reason, MAX_REASON)?,
            };
            let answer =
                |principal: &Principal, receipt: &Receipt| proto::ResumePrincipalResponse {
                    principal: Some(convert::principal(principal)),
                    receipt: convert::receipt(receipt),
                };
            let change = (StateChange::Resume, reason);
            self.change_state(caller, m.principal_id, change, answer)
                .await
        };
        self.0.call(r, Action::ResumePrincipal, act).await
    }

    async fn list_principals(
        &self,
        r: Request<proto::ListPrincipalsRequest>,
    ) -> Answer<proto::ListPrincipalsResponse> {
        let act = async |caller, m| self.principals(caller, m).await;
        self.0.call(r, Action::ListPrincipals, act).await
    }
}
