//! ApiKeyService: keys that are shown once.

use tonic::{Request, Response, Status};

use super::{
    call::Parts,
    proto::{self, api_key_service_server::ApiKeyService},
};
use crate::model::Action;

/// ApiKeyService over these parts.
pub struct ApiKeyApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ApiKeyService for ApiKeyApi {
    async fn create_api_key(
        &self,
        r: Request<proto::CreateApiKeyRequest>,
    ) -> Answer<proto::CreateApiKeyResponse> {
        self.0.unfinished(r, Action::CreateApiKey).await
    }

    async fn get_api_key(
        &self,
        r: Request<proto::GetApiKeyRequest>,
    ) -> Answer<proto::GetApiKeyResponse> {
        self.0.unfinished(r, Action::GetApiKey).await
    }

    async fn list_api_keys(
        &self,
        r: Request<proto::ListApiKeysRequest>,
    ) -> Answer<proto::ListApiKeysResponse> {
        self.0.unfinished(r, Action::ListApiKeys).await
    }

    async fn rotate_api_key(
        &self,
        r: Request<proto::RotateApiKeyRequest>,
    ) -> Answer<proto::RotateApiKeyResponse> {
        self.0.unfinished(r, Action::RotateApiKey).await
    }

    async fn revoke_api_key(
        &self,
        r: Request<proto::RevokeApiKeyRequest>,
    ) -> Answer<proto::RevokeApiKeyResponse> {
        self.0.unfinished(r, Action::RevokeApiKey).await
    }

    async fn list_peppers(
        &self,
        r: Request<proto::ListPeppersRequest>,
    ) -> Answer<proto::ListPeppersResponse> {
        self.0.unfinished(r, Action::ListPeppers).await
    }
}
