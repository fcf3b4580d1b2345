//! Requests about credentials of the service of tenant acme, which holds the entitlements for its own and everybody's.

use claviger::grpc::proto::{
    CredentialEnvironment, CredentialField, DeleteCredentialRequest, GetCredentialReportRequest,
    GetCredentialRequest, ImportCredential, ImportCredentialsRequest, ListCredentialsRequest,
    ListProvidersRequest, PutCredentialRequest, RevealCredentialRequest, UpdatePrincipalRequest,
    ValidateCredentialRequest,
};

use super::{Case, World, case, fresh};

impl World {
    pub(super) async fn entitle(&self) {
        let request = UpdatePrincipalRequest {
            principal_id: self.daemon.id_of("service").await,
            add_scopes: vec!["can.use_users".into(), "can.manage_users".into()],
            ..Default::default()
        };
        let admin = self.daemon.actor("admin");
        let updated = admin.principals().update_principal(request).await;
        updated.expect("UpdatePrincipal");
    }

    /// A new credential of a provider that nobody is asked about.
    pub(super) async fn credential(&self) -> String {
        let request = put(&self.daemon.id_of("service").await);
        let service = self.daemon.actor("service");
        let stored = service.credentials().put_credential(request).await;
        let stored = stored.expect("PutCredential").into_inner().credential;
        stored.expect("a credential").id
    }

    pub(super) async fn credential_case(&self, name: &str) -> Case {
        let owner = self.daemon.id_of("service").await;
        match name {
            "PutCredential" => {
                let good = put(&owner);
                let mut bad = put(&owner);
                bad.fields.clear();
                case(&good).or(&bad)
            }
            "GetCredential" => case(&GetCredentialRequest {
                credential_id: self.credential().await,
            }),
            "RevealCredential" => {
                let credential_id = self.credential().await;
                let reveal = |reason: &str| RevealCredentialRequest {
                    credential_id: credential_id.clone(),
                    reason: reason.into(),
                    ..Default::default()
                };
                case(&reveal("a test")).or(&reveal(""))
            }
            "DeleteCredential" => {
                let delete = |credential_id| DeleteCredentialRequest { credential_id };
                case(&delete(self.credential().await)).or(&delete("none".into()))
            }
            "ValidateCredential" => {
                let validate = |credential_id| ValidateCredentialRequest { credential_id };
                case(&validate(self.credential().await)).or(&validate("none".into()))
            }
            "ImportCredentials" => {
                let PutCredentialRequest {
                    owner_id,
                    provider,
                    environment,
                    name,
                    fields,
                    ..
                } = put(&owner);
                let item = ImportCredential {
                    owner_id,
                    provider,
                    environment,
                    name,
                    fields,
                    ..Default::default()
                };
                let import = |items| ImportCredentialsRequest {
                    tenant: "acme".into(),
                    items,
                    ..Default::default()
                };
                case(&import(vec![item])).or(&import(Vec::new()))
            }
            "ListCredentials" => case(&ListCredentialsRequest {
                owner_id: owner,
                ..Default::default()
            }),
            "GetCredentialReport" => case(&GetCredentialReportRequest {
                tenant: "acme".into(),
                ..Default::default()
            }),
            _ => case(&ListProvidersRequest {}),
        }
    }
}

fn put(owner: &str) -> PutCredentialRequest {
    let field = |name: &str| CredentialField {
        name: name.into(),
        value: "0123456789abcdef".repeat(4).into(),
    };
    PutCredentialRequest {
        owner_id: owner.into(),
        provider: "binance".into(),
        environment: CredentialEnvironment::Testing.into(),
        name: fresh("credential"),
        fields: vec![field("api_key"), field("api_secret")],
        ..Default::default()
    }
}
