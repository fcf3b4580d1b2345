//! ErasureService.

use tonic::{Request, Response, Status};

use super::{
    call::{Parts, unfinished},
    proto::{self, erasure_service_server::ErasureService},
};
use crate::model::Action;

/// ErasureService over these parts.
pub struct ErasureApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ErasureService for ErasureApi {
    async fn destroy_tenant_keys(
        &self,
        r: Request<proto::DestroyTenantKeysRequest>,
    ) -> Answer<proto::DestroyTenantKeysResponse> {
        self.0.call(r, Action::DestroyTenantKeys, unfinished).await
    }

    async fn approve_tenant_destruction(
        &self,
        r: Request<proto::ApproveTenantDestructionRequest>,
    ) -> Answer<proto::ApproveTenantDestructionResponse> {
        self.0
            .call(r, Action::ApproveTenantDestruction, unfinished)
            .await
    }

    async fn cancel_tenant_destruction(
        &self,
        r: Request<proto::CancelTenantDestructionRequest>,
    ) -> Answer<proto::CancelTenantDestructionResponse> {
        self.0
            .call(r, Action::CancelTenantDestruction, unfinished)
            .await
    }

    async fn get_tenant_destruction(
        &self,
        r: Request<proto::GetTenantDestructionRequest>,
    ) -> Answer<proto::GetTenantDestructionResponse> {
        self.0
            .call(r, Action::GetTenantDestruction, unfinished)
            .await
    }

    async fn list_tenant_destructions(
        &self,
        r: Request<proto::ListTenantDestructionsRequest>,
    ) -> Answer<proto::ListTenantDestructionsResponse> {
        self.0
            .call(r, Action::ListTenantDestructions, unfinished)
            .await
    }
}
