//! KekService.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    call::Parts,
    convert,
    proto::{self, kek_service_server::KekService},
};
use crate::{
    audit::Receipt,
    error::Result,
    gate::not_found,
    model::{Action, Caller, Entity, KekRotation, KekRotationId},
    rotation::{RotateKek, kek::platform},
};

/// KekService over these parts.
pub struct KekApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

const LISTING: &str = "kek_rotations";

impl KekApi {
    async fn keks(
        &self,
        caller: Caller,
        _: proto::ListKeksRequest,
    ) -> Result<proto::ListKeksResponse> {
        let rotations = &self.0.kek_rotations;
        let act = async |permit| {
            let keks = rotations.keks(&permit).await?;
            let keks = keks.iter().map(|k| convert::kek(&k.kek, k.data_keys));
            let keks = keks.collect();
            Ok((proto::ListKeksResponse { keks }, String::new()))
        };
        let (gate, resource) = (&self.0.gate, platform(Entity::Tenant));
        gate.access(&caller, Action::ListKeks, resource, act).await
    }

    async fn request(
        &self,
        caller: Caller,
        r: proto::RotateKekRequest,
    ) -> Result<proto::RotateKekResponse> {
        let request = RotateKek {
            backend: convert::text("backend", r.backend, 64)?,
            uri: convert::text("uri", r.uri, 2048)?,
            justification: convert::text("justification", r.justification, 512)?,
            approvals_needed: r.approvals_needed,
        };
        let rotations = Arc::clone(&self.0.kek_rotations);
        let answer = |rotation: &KekRotation, receipt: &Receipt| proto::RotateKekResponse {
            rotation: Some(convert::kek_rotation(rotation)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| rotations.request(permit, request).await;
        let (gate, resource) = (&self.0.gate, platform(Entity::Tenant));
        gate.mutate(&caller, Action::RotateKek, resource, answer, act)
            .await
    }

    async fn approve(
        &self,
        caller: Caller,
        r: proto::ApproveKekRotationRequest,
    ) -> Result<proto::ApproveKekRotationResponse> {
        let id: KekRotationId = r.rotation_id.parse()?;
        let digest = convert::plan_digest(r.plan_digest)?;
        let (resource, found) = self.0.kek_rotations.find(id).await?;
        let rotations = Arc::clone(&self.0.kek_rotations);
        let answer =
            |rotation: &KekRotation, receipt: &Receipt| proto::ApproveKekRotationResponse {
                rotation: Some(convert::kek_rotation(rotation)),
                receipt: convert::receipt(receipt),
            };
        let act = async move |permit| rotations.approve(permit, found, &digest).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::ApproveKekRotation, resource, answer, act)
            .await
    }

    async fn deploy(
        &self,
        caller: Caller,
        r: proto::DeployKekRotationRequest,
    ) -> Result<proto::DeployKekRotationResponse> {
        let id: KekRotationId = r.rotation_id.parse()?;
        let (resource, found) = self.0.kek_rotations.find(id).await?;
        let rotations = Arc::clone(&self.0.kek_rotations);
        let answer = |rotation: &KekRotation, receipt: &Receipt| proto::DeployKekRotationResponse {
            rotation: Some(convert::kek_rotation(rotation)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| rotations.deploy(permit, found).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::DeployKekRotation, resource, answer, act)
            .await
    }

    async fn reject(
        &self,
        caller: Caller,
        r: proto::RejectKekRotationRequest,
    ) -> Result<proto::RejectKekRotationResponse> {
        let id: KekRotationId = r.rotation_id.parse()?;
        let reason = convert::text("reason", r.reason, 512)?;
        let (resource, found) = self.0.kek_rotations.find(id).await?;
        let rotations = Arc::clone(&self.0.kek_rotations);
        let answer = |rotation: &KekRotation, receipt: &Receipt| proto::RejectKekRotationResponse {
            rotation: Some(convert::kek_rotation(rotation)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| rotations.reject(permit, found, reason).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::RejectKekRotation, resource, answer, act)
            .await
    }

    async fn cancel(
        &self,
        caller: Caller,
        r: proto::CancelKekRotationRequest,
    ) -> Result<proto::CancelKekRotationResponse> {
        let id: KekRotationId = r.rotation_id.parse()?;
        let reason = convert::text("reason", r.reason, 512)?;
        let (resource, found) = self.0.kek_rotations.find(id).await?;
        let rotations = Arc::clone(&self.0.kek_rotations);
        let answer = |rotation: &KekRotation, receipt: &Receipt| proto::CancelKekRotationResponse {
            rotation: Some(convert::kek_rotation(rotation)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| rotations.cancel(permit, found, reason).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::CancelKekRotation, resource, answer, act)
            .await
    }

    async fn get(
        &self,
        caller: Caller,
        r: proto::GetKekRotationRequest,
    ) -> Result<proto::GetKekRotationResponse> {
        let id: KekRotationId = r.rotation_id.parse()?;
        let (resource, found) = self.0.kek_rotations.find(id).await?;
        let missing = not_found(&resource);
        let act = async |_permit| {
            let rotation = found.as_ref().map(convert::kek_rotation).ok_or(missing)?;
            let rotation = Some(rotation);
            Ok((proto::GetKekRotationResponse { rotation }, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::GetKekRotation, resource, act)
            .await
    }

    async fn list(
        &self,
        caller: Caller,
        r: proto::ListKekRotationsRequest,
    ) -> Result<proto::ListKekRotationsResponse> {
        let size = convert::page_size(r.page_size)?;
        let before = convert::page_token(LISTING, &r.page_token)?;
        let rotations = &self.0.kek_rotations;
        let act = async |permit| {
            let page = rotations.list(&permit, &before, size).await?;
            let answer = proto::ListKekRotationsResponse {
                rotations: page.iter().map(convert::kek_rotation).collect(),
                next_page_token: convert::next_page(LISTING, &page, size, |r| r.id.to_string()),
            };
            Ok((answer, String::new()))
        };
        let (gate, resource) = (&self.0.gate, platform(Entity::Tenant));
        gate.access(&caller, Action::ListKekRotations, resource, act)
            .await
    }
}

#[tonic::async_trait]
impl KekService for KekApi {
    async fn list_keks(
        &self,
        r: Request<proto::ListKeksRequest>,
    ) -> Answer<proto::ListKeksResponse> {
        let act = async |caller, m| self.keks(caller, m).await;
        self.0.call(r, Action::ListKeks, act).await
    }

    async fn rotate_kek(
        &self,
        r: Request<proto::RotateKekRequest>,
    ) -> Answer<proto::RotateKekResponse> {
        let act = async |caller, m| self.request(caller, m).await;
        self.0.call(r, Action::RotateKek, act).await
    }

    async fn approve_kek_rotation(
        &self,
        r: Request<proto::ApproveKekRotationRequest>,
    ) -> Answer<proto::ApproveKekRotationResponse> {
        let act = async |caller, m| self.approve(caller, m).await;
        self.0.call(r, Action::ApproveKekRotation, act).await
    }

    async fn deploy_kek_rotation(
        &self,
        r: Request<proto::DeployKekRotationRequest>,
    ) -> Answer<proto::DeployKekRotationResponse> {
        let act = async |caller, m| self.deploy(caller, m).await;
        self.0.call(r, Action::DeployKekRotation, act).await
    }

    async fn reject_kek_rotation(
        &self,
        r: Request<proto::RejectKekRotationRequest>,
    ) -> Answer<proto::RejectKekRotationResponse> {
        let act = async |caller, m| self.reject(caller, m).await;
        self.0.call(r, Action::RejectKekRotation, act).await
    }

    async fn cancel_kek_rotation(
        &self,
        r: Request<proto::CancelKekRotationRequest>,
    ) -> Answer<proto::CancelKekRotationResponse> {
        let act = async |caller, m| self.cancel(caller, m).await;
        self.0.call(r, Action::CancelKekRotation, act).await
    }

    async fn get_kek_rotation(
        &self,
        r: Request<proto::GetKekRotationRequest>,
    ) -> Answer<proto::GetKekRotationResponse> {
        let act = async |caller, m| self.get(caller, m).await;
        self.0.call(r, Action::GetKekRotation, act).await
    }

    async fn list_kek_rotations(
        &self,
        r: Request<proto::ListKekRotationsRequest>,
    ) -> Answer<proto::ListKekRotationsResponse> {
        let act = async |caller, m| self.list(caller, m).await;
        self.0.call(r, Action::ListKekRotations, act).await
    }
}
