//! Requests about principals and API keys. All are about somebody of tenant acme who is none of the callers: everybody may
//! see and manage what is their own.

use claviger::grpc::proto::{
    CreateApiKeyRequest, CreatePrincipalRequest, GetApiKeyRequest, GetPrincipalRequest,
    ListApiKeysRequest, ListPeppersRequest, PrincipalType, ResumePrincipalRequest,
    RevokeApiKeyRequest, RotateApiKeyRequest, SuspendPrincipalRequest, UpdatePrincipalRequest,
};

use super::{Case, World, case, fresh};

/// An hour from now, or so many hours.
fn hours(hours: i64) -> Option<prost_types::Timestamp> {
    let now = claviger::clock::Clock::System.now().seconds();
    Some(prost_types::Timestamp {
        seconds: now + hours * 3600,
        nanos: 0,
    })
}

impl World {
    /// A new service in acme.
    pub(super) async fn account(&self) -> String {
        let request = CreatePrincipalRequest {
            tenant: "acme".into(),
            name: fresh("account"),
            r#type: PrincipalType::Service.into(),
            ..Default::default()
        };
        let admin = self.daemon.actor("admin");
        let made = admin.principals().create_principal(request).await;
        let made = made.expect("CreatePrincipal").into_inner().principal;
        made.expect("a principal").id
    }

    async fn suspend(&self, id: &str) {
        let request = SuspendPrincipalRequest {
            principal_id: id.into(),
            reason: "it left".into(),
        };
        let admin = self.daemon.actor("admin");
        let suspended = admin.principals().suspend_principal(request).await;
        suspended.expect("SuspendPrincipal");
    }

    /// A new key of a new service.
    pub(super) async fn api_key(&self) -> String {
        let admin = self.daemon.actor("admin");
        let made = admin
            .api_keys()
            .create_api_key(CreateApiKeyRequest {
                owner_id: self.account().await,
                name: "test".into(),
                expire_time: hours(1),
                ..Default::default()
            })
            .await;
        let made = made.expect("CreateApiKey").into_inner().api_key;
        made.expect("a key").id
    }

    async fn ended_api_key(&self) -> String {
        let id = self.api_key().await;
        let admin = self.daemon.actor("admin");
        let request = RevokeApiKeyRequest {
            api_key_id: id.clone(),
            ..Default::default()
        };
        let ended = admin.api_keys().revoke_api_key(request).await;
        ended.expect("RevokeApiKey");
        id
    }

    pub(super) async fn account_case(&self, name: &str) -> Case {
        let id = self.account().await;
        let suspend = |id: &str| SuspendPrincipalRequest {
            principal_id: id.into(),
            reason: "it left".into(),
        };
        let resume = |id: &str| ResumePrincipalRequest {
            principal_id: id.into(),
            reason: "it is back".into(),
        };
        let update = |scopes: &[&str]| UpdatePrincipalRequest {
            principal_id: id.clone(),
            add_scopes: scopes.iter().map(|s| (*s).to_owned()).collect(),
            ..Default::default()
        };
        match name {
            "GetPrincipal" => case(&GetPrincipalRequest { principal_id: id }),
            "UpdatePrincipal" => case(&update(&["can.use_users"])).or(&update(&[])),
            _ => {
                let gone = self.account().await;
                self.suspend(&gone).await;
                match name {
                    "SuspendPrincipal" => case(&suspend(&id)).or(&suspend(&gone)),
                    _ => case(&resume(&gone)).or(&resume(&id)),
                }
            }
        }
    }

    pub(super) async fn api_key_case(&self, name: &str) -> Case {
        match name {
            "CreateApiKey" => {
                let owner_id = self.account().await;
                let create = |end: i64| CreateApiKeyRequest {
                    owner_id: owner_id.clone(),
                    name: "test".into(),
                    expire_time: hours(end),
                    ..Default::default()
                };
                case(&create(1)).or(&create(-1))
            }
            "GetApiKey" => case(&GetApiKeyRequest {
                api_key_id: self.api_key().await,
            }),
            "ListApiKeys" => case(&ListApiKeysRequest {
                tenant: "acme".into(),
                ..Default::default()
            }),
            "RotateApiKey" => {
                let rotate = |id: String| RotateApiKeyRequest {
                    api_key_id: id,
                    ..Default::default()
                };
                let ended = rotate(self.ended_api_key().await);
                case(&rotate(self.api_key().await)).or(&ended)
            }
            "RevokeApiKey" => {
                let revoke = |id: String| RevokeApiKeyRequest {
                    api_key_id: id,
                    reason: "it was in a log".into(),
                };
                let ended = revoke(self.ended_api_key().await);
                case(&revoke(self.api_key().await)).or(&ended)
            }
            _ => case(&ListPeppersRequest {}),
        }
    }
}
