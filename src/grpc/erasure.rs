//! ErasureService.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    call::Parts,
    convert,
    proto::{self, erasure_service_server::ErasureService},
};
use crate::{
    audit::Receipt,
    erasure::Progress,
    error::Result,
    model::{Action, Caller, Resource, TenantDestructionId, TenantName},
};

/// ErasureService over these parts.
pub struct ErasureApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

const LISTING: &str = "tenant_destructions";

#[tonic::async_trait]
impl ErasureService for ErasureApi {
    async fn destroy_tenant_keys(
        &self,
        r: Request<proto::DestroyTenantKeysRequest>,
    ) -> Answer<proto::DestroyTenantKeysResponse> {
        let act = async |caller, r| destroy(&self.0, caller, r).await;
        self.0.call(r, Action::DestroyTenantKeys, act).await
    }

    async fn approve_tenant_destruction(
        &self,
        r: Request<proto::ApproveTenantDestructionRequest>,
    ) -> Answer<proto::ApproveTenantDestructionResponse> {
        let act = async |caller, r| approve(&self.0, caller, r).await;
        self.0.call(r, Action::ApproveTenantDestruction, act).await
    }

    async fn cancel_tenant_destruction(
        &self,
        r: Request<proto::CancelTenantDestructionRequest>,
    ) -> Answer<proto::CancelTenantDestructionResponse> {
        let act = async |caller, r| cancel(&self.0, caller, r).await;
        self.0.call(r, Action::CancelTenantDestruction, act).await
    }

    async fn get_tenant_destruction(
        &self,
        r: Request<proto::GetTenantDestructionRequest>,
    ) -> Answer<proto::GetTenantDestructionResponse> {
        let act = async |caller, r| get(&self.0, caller, r).await;
        self.0.call(r, Action::GetTenantDestruction, act).await
    }

    async fn list_tenant_destructions(
        &self,
        r: Request<proto::ListTenantDestructionsRequest>,
    ) -> Answer<proto::ListTenantDestructionsResponse> {
        let act = async |caller, r| list(&self.0, caller, r).await;
        self.0.call(r, Action::ListTenantDestructions, act).await
    }
}

async fn destroy(
    parts: &Parts,
    caller: Caller,
    r: proto::DestroyTenantKeysRequest,
) -> Result<proto::DestroyTenantKeysResponse> {
    let tenant: TenantName = r.tenant.parse()?;
    let reason = convert::text("reason", r.reason, 512)?;
    let resource = Resource::tenant(tenant.clone());
    let erasures = Arc::clone(&parts.erasures);
    let answer = |progress: &Progress, receipt: &Receipt| proto::DestroyTenantKeysResponse {
        destruction: Some(convert::tenant_destruction(progress)),
        receipt: convert::receipt(receipt),
    };
    let act = async move |permit| erasures.request(permit, tenant, reason).await;
    let gate = &parts.gate;
    let action = Action::DestroyTenantKeys;
    gate.mutate(&caller, action, resource, answer, act).await
}

async fn approve(
    parts: &Parts,
    caller: Caller,
    r: proto::ApproveTenantDestructionRequest,
) -> Result<proto::ApproveTenantDestructionResponse> {
    let id: TenantDestructionId = r.destruction_id.parse()?;
    let tenant: TenantName = r.tenant.parse()?;
    let (resource, found) = parts.erasures.find(id).await?;
    let erasures = Arc::clone(&parts.erasures);
    let answer = |progress: &Progress, receipt: &Receipt| proto::ApproveTenantDestructionResponse {
        destruction: Some(convert::tenant_destruction(progress)),
        receipt: convert::receipt(receipt),
    };
    let act = async move |permit| erasures.approve(permit, found, tenant).await;
    let gate = &parts.gate;
    let action = Action::ApproveTenantDestruction;
    gate.mutate(&caller, action, resource, answer, act).await
}

async fn cancel(
    parts: &Parts,
    caller: Caller,
    r: proto::CancelTenantDestructionRequest,
) -> Result<proto::CancelTenantDestructionResponse> {
    let id: TenantDestructionId = r.destruction_id.parse()?;
    let reason = convert::text("reason", r.reason, 512)?;
    let (resource, found) = parts.erasures.find(id).await?;
    let erasures = Arc::clone(&parts.erasures);
    let answer = |progress: &Progress, receipt: &Receipt| proto::CancelTenantDestructionResponse {
        destruction: Some(convert::tenant_destruction(progress)),
        receipt: convert::receipt(receipt),
    };
    let act = async move |permit| erasures.cancel(permit, found, reason).await;
    let gate = &parts.gate;
    let action = Action::CancelTenantDestruction;
    gate.mutate(&caller, action, resource, answer, act).await
}

async fn get(
    parts: &Parts,
    caller: Caller,
    r: proto::GetTenantDestructionRequest,
) -> Result<proto::GetTenantDestructionResponse> {
    let id: TenantDestructionId = r.destruction_id.parse()?;
    let (resource, found) = parts.erasures.find(id).await?;
    let act = async |permit| {
        let progress = parts.erasures.show(&permit, found).await?;
        let answer = proto::GetTenantDestructionResponse {
            destruction: Some(convert::tenant_destruction(&progress)),
            proof: progress.destruction.proof,
        };
        Ok((answer, String::new()))
    };
    let gate = &parts.gate;
    gate.access(&caller, Action::GetTenantDestruction, resource, act)
        .await
}

async fn list(
    parts: &Parts,
    caller: Caller,
    r: proto::ListTenantDestructionsRequest,
) -> Result<proto::ListTenantDestructionsResponse> {
    let tenant = convert::tenant(&r.tenant, &caller)?;
    let size = convert::page_size(r.page_size)?;
    let before = convert::page_token(LISTING, &r.page_token)?;
    let erasures = &parts.erasures;
    let act = async |permit| {
        let page = erasures.list(&permit, &tenant, &before, size).await?;
        let next = convert::next_page(LISTING, &page, size, |p| p.destruction.id.to_string());
        let answer = proto::ListTenantDestructionsResponse {
            destructions: page.iter().map(convert::tenant_destruction).collect(),
            next_page_token: next,
        };
        Ok((answer, String::new()))
    };
    let gate = &parts.gate;
    let resource = Resource::tenant(tenant.clone());
    gate.access(&caller, Action::ListTenantDestructions, resource, act)
        .await
}
