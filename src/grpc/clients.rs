//! ClientService: OAuth clients.

use tonic::{Request, Response, Status};

use super::{
    call::Parts,
    proto::{self, client_service_server::ClientService},
};
use crate::model::Action;

/// ClientService over these parts.
pub struct ClientApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ClientService for ClientApi {
    async fn create_client(
        &self,
        r: Request<proto::CreateClientRequest>,
    ) -> Answer<proto::CreateClientResponse> {
        self.0.unfinished(r, Action::CreateClient).await
    }

    async fn get_client(
        &self,
        r: Request<proto::GetClientRequest>,
    ) -> Answer<proto::GetClientResponse> {
        self.0.unfinished(r, Action::GetClient).await
    }

    async fn list_clients(
        &self,
        r: Request<proto::ListClientsRequest>,
    ) -> Answer<proto::ListClientsResponse> {
        self.0.unfinished(r, Action::ListClients).await
    }

    async fn update_client(
        &self,
        r: Request<proto::UpdateClientRequest>,
    ) -> Answer<proto::UpdateClientResponse> {
        self.0.unfinished(r, Action::UpdateClient).await
    }
}
