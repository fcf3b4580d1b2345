//! KekService.

use tonic::{Request, Response, Status};

use super::{
    call::{Parts, unfinished},
    proto::{self, kek_service_server::KekService},
};
use crate::model::Action;

/// KekService over these parts.
pub struct KekApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl KekService for KekApi {
    async fn list_keks(
        &self,
        r: Request<proto::ListKeksRequest>,
    ) -> Answer<proto::ListKeksResponse> {
        self.0.call(r, Action::ListKeks, unfinished).await
    }

    async fn rotate_kek(
        &self,
        r: Request<proto::RotateKekRequest>,
    ) -> Answer<proto::RotateKekResponse> {
        self.0.call(r, Action::RotateKek, unfinished).await
    }

    async fn approve_kek_rotation(
        &self,
        r: Request<proto::ApproveKekRotationRequest>,
    ) -> Answer<proto::ApproveKekRotationResponse> {
        self.0.call(r, Action::ApproveKekRotation, unfinished).await
    }

    async fn deploy_kek_rotation(
        &self,
        r: Request<proto::DeployKekRotationRequest>,
    ) -> Answer<proto::DeployKekRotationResponse> {
        self.0.call(r, Action::DeployKekRotation, unfinished).await
    }

    async fn reject_kek_rotation(
        &self,
        r: Request<proto::RejectKekRotationRequest>,
    ) -> Answer<proto::RejectKekRotationResponse> {
        self.0.call(r, Action::RejectKekRotation, unfinished).await
    }

    async fn cancel_kek_rotation(
        &self,
        r: Request<proto::CancelKekRotationRequest>,
    ) -> Answer<proto::CancelKekRotationResponse> {
        self.0.call(r, Action::CancelKekRotation, unfinished).await
    }

    async fn get_kek_rotation(
        &self,
        r: Request<proto::GetKekRotationRequest>,
    ) -> Answer<proto::GetKekRotationResponse> {
        self.0.call(r, Action::GetKekRotation, unfinished).await
    }

    async fn list_kek_rotations(
        &self,
        r: Request<proto::ListKekRotationsRequest>,
    ) -> Answer<proto::ListKekRotationsResponse> {
        self.0.call(r, Action::ListKekRotations, unfinished).await
    }
}
