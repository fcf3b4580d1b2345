//! Requests about OAuth clients of somebody of tenant acme who is none of the callers.

use claviger::grpc::proto::{
    ClientAuthMethod, CreateClientRequest, GetClientRequest, ListClientsRequest,
    UpdateClientRequest,
};

use super::{Case, World, case};

impl World {
    async fn client(&self) -> String {
        let request = create(&self.account().await, &["api"]);
        let made = self
            .daemon
            .actor("admin")
            .clients()
            .create_client(request)
            .await;
        let made = made.expect("CreateClient").into_inner().client;
        made.expect("a client").id
    }

    pub(super) async fn client_case(&self, name: &str) -> Case {
        match name {
            "CreateClient" => {
                let owner = self.account().await;
                case(&create(&owner, &["api"])).or(&create(&owner, &[]))
            }
            "GetClient" => case(&GetClientRequest {
                client_id: self.client().await,
            }),
            "UpdateClient" => {
                let client_id = self.client().await;
                let update = |coalesce| UpdateClientRequest {
                    client_id: client_id.clone(),
                    coalesce,
                    ..Default::default()
                };
                case(&update(Some(true))).or(&update(None))
            }
            _ => case(&ListClientsRequest {
                tenant: "acme".into(),
                ..Default::default()
            }),
        }
    }
}

fn create(owner: &str, audiences: &[&str]) -> CreateClientRequest {
    CreateClientRequest {
        owner_id: owner.into(),
        name: "test".into(),
        auth_method: ClientAuthMethod::ClientSecret.into(),
        audiences: audiences.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}
