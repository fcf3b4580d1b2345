//! Requests about rotations of credentials of the service of tenant acme, of a provider that nobody is asked about.

use claviger::grpc::proto::{
    ApproveCredentialRotationRequest, CompleteCredentialRotationRequest, CredentialEnvironment,
    CredentialField, GetCredentialRotationRequest, ListCredentialRotationsRequest,
    ListDueCredentialsRequest, PromoteCredentialRequest, PutCredentialRequest,
    RollBackCredentialRequest, SetCredentialRotationRequest, StageCredentialRequest,
};

use super::{Case, World, case};

impl World {
    async fn staging(&self) -> StageCredentialRequest {
        let field = |name: &str| CredentialField {
            name: name.into(),
            value: "fedcba9876543210".repeat(4).into(),
        };
        StageCredentialRequest {
            credential_id: self.credential().await,
            fields: vec![field("api_key"), field("api_secret")],
            hold: None,
        }
    }

    /// A rotation that is STAGED.
    async fn staged(&self) -> String {
        let request = self.staging().await;
        let service = self.daemon.actor("service");
        let mut client = service.credential_rotations();
        let staged = client.stage_credential(request);
        let staged = staged.await.expect("StageCredential").into_inner().rotation;
        staged.expect("a rotation").id
    }

    /// One that is STAGED by the admin and needs three people.
    async fn waiting(&self) -> String {
        let put = PutCredentialRequest {
            owner_id: self.daemon.id_of("service").await,
            provider: "oanda".into(),
            environment: CredentialEnvironment::Testing.into(),
            name: uuid::Uuid::now_v7().to_string(),
            fields: vec![CredentialField {
                name: "api_key".into(),
                value: "0123456789abcdef".repeat(4).into(),
            }],
            ..Default::default()
        };
        let service = self.daemon.actor("service");
        let put = service.credentials().put_credential(put).await;
        let put = put.expect("PutCredential").into_inner().credential;
        let stage = StageCredentialRequest {
            credential_id: put.expect("a credential").id,
            fields: vec![CredentialField {
                name: "api_key".into(),
                value: "fedcba9876543210".repeat(4).into(),
            }],
            hold: None,
        };
        let mut client = service.credential_rotations();
        let staged = client.stage_credential(stage);
        let staged = staged.await.expect("StageCredential").into_inner().rotation;
        let id = staged.expect("a rotation").id;
        // Somebody of whom no row of the tables speaks has staged it: who stages is not who approves.
        let by = self.daemon.id_of("admin").await;
        let sql =
            format!("UPDATE credential_rotations SET requested_by = '{by}' WHERE id = '{id}'");
        self.daemon.execute(&sql).await;
        id
    }

    /// One that is HOLDING.
    async fn promoted(&self) -> String {
        let rotation_id = self.staged().await;
        let request = PromoteCredentialRequest {
            rotation_id: rotation_id.clone(),
            without_probe: true,
        };
        let service = self.daemon.actor("service");
        let mut client = service.credential_rotations();
        let promoted = client.promote_credential(request);
        promoted.await.expect("PromoteCredential");
        rotation_id
    }

    pub(super) async fn credential_rotation_case(&self, name: &str) -> Case {
        match name {
            "StageCredential" => {
                let good = self.staging().await;
                let mut bad = good.clone();
                bad.fields.clear();
                case(&good).or(&bad)
            }
            "ApproveCredentialRotation" => {
                let approve = |rotation_id| ApproveCredentialRotationRequest { rotation_id };
                case(&approve(self.waiting().await)).or(&approve("none".into()))
            }
            "PromoteCredential" => {
                let promote = |rotation_id| PromoteCredentialRequest {
                    rotation_id,
                    without_probe: true,
                };
                case(&promote(self.staged().await)).or(&promote("none".into()))
            }
            "CompleteCredentialRotation" => {
                let complete = |rotation_id| CompleteCredentialRotationRequest {
                    rotation_id,
                    without_proof: false,
                };
                case(&complete(self.promoted().await)).or(&complete("none".into()))
            }
            "RollBackCredential" => {
                let roll_back = |rotation_id| RollBackCredentialRequest {
                    rotation_id,
                    reason: "a test".into(),
                };
                case(&roll_back(self.promoted().await)).or(&roll_back("none".into()))
            }
            "SetCredentialRotation" => {
                let credential_id = self.credential().await;
                let set = |driver: &str| SetCredentialRotationRequest {
                    credential_id: credential_id.clone(),
                    driver: driver.into(),
                    rotation_period: None,
                };
                // Nothing mints values of this provider.
                case(&set("manual")).or(&set("webhook"))
            }
            "GetCredentialRotation" => case(&GetCredentialRotationRequest {
                rotation_id: self.staged().await,
            }),
            "ListCredentialRotations" => case(&ListCredentialRotationsRequest {
                tenant: "acme".into(),
                ..Default::default()
            }),
            _ => case(&ListDueCredentialsRequest {
                tenant: "acme".into(),
                ..Default::default()
            }),
        }
    }
}
