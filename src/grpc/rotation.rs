//! RotationService.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    call::{self, Parts},
    convert,
    proto::{self, rotation_service_server::RotationService},
};
use crate::{
    audit::Receipt,
    error::Result,
    gate::not_found,
    keys::ImportedSecret,
    model::{Action, Caller, Entity, KeyRef, Resource, Rotation, RotationId},
};

/// RotationService over these parts.
pub struct RotationApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

const LISTING: &str = "rotations";

impl RotationApi {
    async fn request(
        &self,
        caller: Caller,
        r: proto::RotateKeyRequest,
    ) -> Result<proto::RotateKeyResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let key: KeyRef = r.key.parse()?;
        let justification = convert::text("justification", r.justification, 512)?;
        let secret = match r.secret.is_empty() {
            true => None,
            false => Some(ImportedSecret::new(call::secret(r.secret))?),
        };
        let target = self.0.keys.find(&tenant, &key).await?;
        let resource = target.resource();
        let rotations = Arc::clone(&self.0.rotations);
        let answer = |rotation: &Rotation, receipt: &Receipt| proto::RotateKeyResponse {
            rotation: Some(convert::rotation(rotation)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| {
            let key = Arc::clone(target.snapshot()?);
            rotations.request(permit, key, justification, secret).await
        };
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::RotateKey, resource, answer, act)
            .await
    }

    async fn approve(
        &self,
        caller: Caller,
        r: proto::ApproveRotationRequest,
    ) -> Result<proto::ApproveRotationResponse> {
        let id: RotationId = r.rotation_id.parse()?;
        let digest = convert::plan_digest(r.plan_digest)?;
        let (resource, found) = self.0.rotations.find(id).await?;
        let rotations = Arc::clone(&self.0.rotations);
        let answer = |rotation: &Rotation, receipt: &Receipt| proto::ApproveRotationResponse {
            rotation: Some(convert::rotation(rotation)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| rotations.approve(permit, found, &digest).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::ApproveRotation, resource, answer, act)
            .await
    }

    async fn deploy(
        &self,
        caller: Caller,
        r: proto::DeployRotationRequest,
    ) -> Result<proto::DeployRotationResponse> {
        let id: RotationId = r.rotation_id.parse()?;
        let (resource, found) = self.0.rotations.find(id).await?;
        let rotations = Arc::clone(&self.0.rotations);
        let answer = |rotation: &Rotation, receipt: &Receipt| proto::DeployRotationResponse {
            rotation: Some(convert::rotation(rotation)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| rotations.deploy(permit, found).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::DeployRotation, resource, answer, act)
            .await
    }

    async fn reject(
        &self,
        caller: Caller,
        r: proto::RejectRotationRequest,
    ) -> Result<proto::RejectRotationResponse> {
        let id: RotationId = r.rotation_id.parse()?;
        let reason = convert::text("reason", r.reason, 512)?;
        let (resource, found) = self.0.rotations.find(id).await?;
        let rotations = Arc::clone(&self.0.rotations);
        let answer = |rotation: &Rotation, receipt: &Receipt| proto::RejectRotationResponse {
            rotation: Some(convert::rotation(rotation)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| rotations.reject(permit, found, reason).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::RejectRotation, resource, answer, act)
            .await
    }

    async fn cancel(
        &self,
        caller: Caller,
        r: proto::CancelRotationRequest,
    ) -> Result<proto::CancelRotationResponse> {
        let id: RotationId = r.rotation_id.parse()?;
        let reason = convert::text("reason", r.reason, 512)?;
        let (resource, found) = self.0.rotations.find(id).await?;
        let rotations = Arc::clone(&self.0.rotations);
        let answer = |rotation: &Rotation, receipt: &Receipt| proto::CancelRotationResponse {
            rotation: Some(convert::rotation(rotation)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| rotations.cancel(permit, found, reason).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::CancelRotation, resource, answer, act)
            .await
    }

    async fn get(
        &self,
        caller: Caller,
        r: proto::GetRotationRequest,
    ) -> Result<proto::GetRotationResponse> {
        let id: RotationId = r.rotation_id.parse()?;
        let (resource, found) = self.0.rotations.find(id).await?;
        let missing = not_found(&resource);
        let act = async |_permit| {
            let rotation = found.as_ref().map(convert::rotation).ok_or(missing)?;
            let rotation = Some(rotation);
            Ok((proto::GetRotationResponse { rotation }, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::GetRotation, resource, act)
            .await
    }

    async fn list(
        &self,
        caller: Caller,
        r: proto::ListRotationsRequest,
    ) -> Result<proto::ListRotationsResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let state = convert::rotation_state(r.state)?;
        let size = convert::page_size(r.page_size)?;
        let before = convert::page_token(LISTING, &r.page_token)?;
        let target = match r.key.as_str() {
            "" => None,
            key => Some(self.0.keys.find(&tenant, &key.parse()?).await?),
        };
        let resource = target
            .as_ref()
            .map_or_else(|| Resource::tenant(tenant.clone()), |t| t.resource());
        let key = match &resource.entity {
            Entity::Key { id, .. } => Some(*id),
            _ => None,
        };
        let rotations = &self.0.rotations;
        let act = async |permit| {
            if let Some(target) = &target {
                target.snapshot()?;
            }
            let page = match r.waiting_for_me {
                true => {
                    let waiting = rotations.waiting(&permit, &tenant, key, state, &before, size);
                    waiting.await?
                }
                false => {
                    let all = rotations.list(&permit, &tenant, key, state, &before, size);
                    all.await?
                }
            };
            let mine =
                |rotation: &&Rotation| !r.waiting_for_me || self.waits_for(&caller, rotation);
            let answer = proto::ListRotationsResponse {
                rotations: page.iter().filter(mine).map(convert::rotation).collect(),
                next_page_token: convert::next_page(LISTING, &page, size, |r| r.id.to_string()),
            };
            Ok((answer, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::ListRotations, resource, act)
            .await
    }

    /// May the caller take the next step, by the policies and by the separation of duties (R-LIFE-7)?
    fn waits_for(&self, caller: &Caller, rotation: &Rotation) -> bool {
        let Some(action) = rotation.next_step() else {
            return false;
        };
        let resource = Resource {
            tenant: rotation.tenant.clone(),
            entity: Entity::Rotation(rotation.id),
        };
        !rotation.has_part(caller.principal.id) && self.0.gate.may(caller, action, &resource)
    }
}

#[tonic::async_trait]
impl RotationService for RotationApi {
    async fn rotate_key(
        &self,
        r: Request<proto::RotateKeyRequest>,
    ) -> Answer<proto::RotateKeyResponse> {
        let act = async |caller, m| self.request(caller, m).await;
        let hide = |m: &mut proto::RotateKeyRequest| m.secret.clear();
        self.0.call_hiding(r, Action::RotateKey, hide, act).await
    }

    async fn approve_rotation(
        &self,
        r: Request<proto::ApproveRotationRequest>,
    ) -> Answer<proto::ApproveRotationResponse> {
        let act = async |caller, m| self.approve(caller, m).await;
        self.0.call(r, Action::ApproveRotation, act).await
    }

    async fn deploy_rotation(
        &self,
        r: Request<proto::DeployRotationRequest>,
    ) -> Answer<proto::DeployRotationResponse> {
        let act = async |caller, m| self.deploy(caller, m).await;
        self.0.call(r, Action::DeployRotation, act).await
    }

    async fn get_rotation(
        &self,
        r: Request<proto::GetRotationRequest>,
    ) -> Answer<proto::GetRotationResponse> {
        let act = async |caller, m| self.get(caller, m).await;
        self.0.call(r, Action::GetRotation, act).await
    }

    async fn reject_rotation(
        &self,
        r: Request<proto::RejectRotationRequest>,
    ) -> Answer<proto::RejectRotationResponse> {
        let act = async |caller, m| self.reject(caller, m).await;
        self.0.call(r, Action::RejectRotation, act).await
    }

    async fn cancel_rotation(
        &self,
        r: Request<proto::CancelRotationRequest>,
    ) -> Answer<proto::CancelRotationResponse> {
        let act = async |caller, m| self.cancel(caller, m).await;
        self.0.call(r, Action::CancelRotation, act).await
    }

    async fn list_rotations(
        &self,
        r: Request<proto::ListRotationsRequest>,
    ) -> Answer<proto::ListRotationsResponse> {
        let act = async |caller, m| self.list(caller, m).await;
        self.0.call(r, Action::ListRotations, act).await
    }
}
