//! DataKeyService.

use tonic::{Request, Response, Status};

use super::{
    call::{Parts, unfinished},
    proto::{self, data_key_service_server::DataKeyService},
};
use crate::model::Action;

/// DataKeyService over these parts.
pub struct DataKeyApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl DataKeyService for DataKeyApi {
    async fn generate_data_key(
        &self,
        r: Request<proto::GenerateDataKeyRequest>,
    ) -> Answer<proto::GenerateDataKeyResponse> {
        self.0.call(r, Action::GenerateDataKey, unfinished).await
    }

    async fn generate_data_key_without_plaintext(
        &self,
        r: Request<proto::GenerateDataKeyWithoutPlaintextRequest>,
    ) -> Answer<proto::GenerateDataKeyWithoutPlaintextResponse> {
        self.0
            .call(r, Action::GenerateDataKeyWithoutPlaintext, unfinished)
            .await
    }

    async fn decrypt_data_key(
        &self,
        r: Request<proto::DecryptDataKeyRequest>,
    ) -> Answer<proto::DecryptDataKeyResponse> {
        self.0.call(r, Action::DecryptDataKey, unfinished).await
    }

    async fn generate_random(
        &self,
        r: Request<proto::GenerateRandomRequest>,
    ) -> Answer<proto::GenerateRandomResponse> {
        self.0.call(r, Action::GenerateRandom, unfinished).await
    }
}
