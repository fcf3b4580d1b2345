//! CredentialRotationService: another value in the place of one, step by step. No answer holds a secret.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    call::Parts,
    convert,
    credentials::{self, CredentialApi},
    proto::{self, credential_rotation_service_server::CredentialRotationService},
};
use crate::{
    audit::Receipt,
    error::Result,
    gate::not_found,
    model::{
        Action, Caller, CredentialId, CredentialRotation, CredentialRotationState, Resource,
        credential_rotation::{Attention, Proof},
    },
    vault::{
        CredentialRotationsOf, Demand, FullCredential, RollBack, SetRotation, StageCredential,
        Staged, Vault, unknown_rotation,
    },
};

/// CredentialRotationService over these parts.
pub struct CredentialRotationApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

const ROTATIONS: &str = "credential rotations";
const DUE: &str = "due credentials";
/// Characters of a reason.
const MAX_REASON: usize = 500;

impl CredentialRotationApi {
    async fn stage(
        &self,
        caller: Caller,
        r: proto::StageCredentialRequest,
    ) -> Result<proto::StageCredentialResponse> {
        // First, so that its buffers are wiped also when something else is wrong.
        let fields = credentials::fields(r.fields);
        let request = StageCredential {
            fields: fields?,
            hold: convert::duration("hold", r.hold)?,
        };
        let (resource, found) = self.0.vault.find(r.credential_id.parse()?).await?;
        let shown = Arc::clone(&self.0.vault);
        let answer = move |staged: &Staged, receipt: &Receipt| proto::StageCredentialResponse {
            rotation: Some(message(&shown, &staged.rotation)),
            warnings: staged.warnings.clone(),
            receipt: convert::receipt(receipt),
        };
        let vault = Arc::clone(&self.0.vault);
        let act = async move |permit| vault.stage(permit, found, request).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::StageCredential, resource, answer, act)
            .await
    }

    async fn promote(
        &self,
        caller: Caller,
        r: proto::PromoteCredentialRequest,
    ) -> Result<proto::PromoteCredentialResponse> {
        let probe = Demand::unless(r.without_probe);
        let (resource, found) = self.0.vault.find_rotation(r.rotation_id.parse()?).await?;
        let shown = Arc::clone(&self.0.vault);
        let answer =
            move |r: &CredentialRotation, receipt: &Receipt| proto::PromoteCredentialResponse {
                rotation: Some(message(&shown, r)),
                receipt: convert::receipt(receipt),
            };
        let vault = Arc::clone(&self.0.vault);
        let act = async move |permit| vault.promote(permit, found, probe).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::PromoteCredential, resource, answer, act)
            .await
    }

    async fn approve(
        &self,
        caller: Caller,
        r: proto::ApproveCredentialRotationRequest,
    ) -> Result<proto::ApproveCredentialRotationResponse> {
        let (resource, found) = self.0.vault.find_rotation(r.rotation_id.parse()?).await?;
        let shown = Arc::clone(&self.0.vault);
        let answer = move |r: &CredentialRotation, receipt: &Receipt| {
            proto::ApproveCredentialRotationResponse {
                rotation: Some(message(&shown, r)),
                receipt: convert::receipt(receipt),
            }
        };
        let vault = Arc::clone(&self.0.vault);
        let act = async move |permit| vault.approve(permit, found).await;
        let (gate, action) = (&self.0.gate, Action::ApproveCredentialRotation);
        gate.mutate(&caller, action, resource, answer, act).await
    }

    async fn complete(
        &self,
        caller: Caller,
        r: proto::CompleteCredentialRotationRequest,
    ) -> Result<proto::CompleteCredentialRotationResponse> {
        let proof = Demand::unless(r.without_proof);
        let (resource, found) = self.0.vault.find_rotation(r.rotation_id.parse()?).await?;
        let shown = Arc::clone(&self.0.vault);
        let answer = move |r: &CredentialRotation, receipt: &Receipt| {
            proto::CompleteCredentialRotationResponse {
                rotation: Some(message(&shown, r)),
                receipt: convert::receipt(receipt),
            }
        };
        let vault = Arc::clone(&self.0.vault);
        let act = async move |permit| vault.complete(permit, found, proof).await;
        let (gate, action) = (&self.0.gate, Action::CompleteCredentialRotation);
        gate.mutate(&caller, action, resource, answer, act).await
    }

    async fn roll_back(
        &self,
        caller: Caller,
        r: proto::RollBackCredentialRequest,
    ) -> Result<proto::RollBackCredentialResponse> {
        let why = match r.reason.as_str() {
            "" => String::new(),
            _ => convert::text("reason", r.reason, MAX_REASON)?,
        };
        let why = RollBack::Asked(why);
        let (resource, found) = self.0.vault.find_rotation(r.rotation_id.parse()?).await?;
        let shown = Arc::clone(&self.0.vault);
        let answer =
            move |r: &CredentialRotation, receipt: &Receipt| proto::RollBackCredentialResponse {
                rotation: Some(message(&shown, r)),
                receipt: convert::receipt(receipt),
            };
        let vault = Arc::clone(&self.0.vault);
        let act = async move |permit| vault.roll_back(permit, None, found, why).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::RollBackCredential, resource, answer, act)
            .await
    }

    async fn set(
        &self,
        caller: Caller,
        r: proto::SetCredentialRotationRequest,
    ) -> Result<proto::SetCredentialRotationResponse> {
        let request = SetRotation {
            driver: match r.driver.as_str() {
                "" => None,
                name => Some(name.parse()?),
            },
            period: convert::duration("rotation_period", r.rotation_period)?,
        };
        let (resource, found) = self.0.vault.find(r.credential_id.parse()?).await?;
        let answer = |c: &FullCredential, receipt: &Receipt| proto::SetCredentialRotationResponse {
            credential: Some(credentials::message(c)),
            receipt: convert::receipt(receipt),
        };
        let vault = Arc::clone(&self.0.vault);
        let act = async move |permit| vault.set_rotation(permit, found, request).await;
        let (gate, action) = (&self.0.gate, Action::SetCredentialRotation);
        gate.mutate(&caller, action, resource, answer, act).await
    }

    async fn get(
        &self,
        caller: Caller,
        r: proto::GetCredentialRotationRequest,
    ) -> Result<proto::GetCredentialRotationResponse> {
        let (resource, found) = self.0.vault.find_rotation(r.rotation_id.parse()?).await?;
        let vault = &self.0.vault;
        let act = async |_permit| {
            let found = found.ok_or_else(unknown_rotation)?;
            let answer = proto::GetCredentialRotationResponse {
                rotation: Some(message(vault, &found.rotation)),
            };
            Ok((answer, String::new()))
        };
        let (gate, action) = (&self.0.gate, Action::GetCredentialRotation);
        gate.access(&caller, action, resource, act).await
    }

    async fn list(
        &self,
        caller: Caller,
        r: proto::ListCredentialRotationsRequest,
    ) -> Result<proto::ListCredentialRotationsResponse> {
        let (resource, of) = match r.credential_id.as_str() {
            "" => {
                let tenant = convert::tenant(&r.tenant, &caller)?;
                let of = CredentialRotationsOf::Tenant(tenant.clone());
                (Resource::tenant(tenant), Some(of))
            }
            id => {
                let id: CredentialId = id.parse()?;
                let (resource, found) = self.0.vault.find(id).await?;
                let of = found.map(|_| CredentialRotationsOf::Credential(id));
                (resource, of)
            }
        };
        let unknown = not_found(&resource);
        let size = convert::page_size(r.page_size)?;
        let after = convert::page_token(ROTATIONS, &r.page_token)?;
        let vault = &self.0.vault;
        let act = async |permit| {
            let of = of.ok_or(unknown)?;
            let page = vault.rotations(&permit, &of, &after, size).await?;
            let answer = proto::ListCredentialRotationsResponse {
                next_page_token: convert::next_page(ROTATIONS, &page, size, |r| r.id.to_string()),
                rotations: page.iter().map(|r| message(vault, r)).collect(),
            };
            Ok((answer, String::new()))
        };
        let (gate, action) = (&self.0.gate, Action::ListCredentialRotations);
        gate.access(&caller, action, resource, act).await
    }

    async fn due(
        &self,
        caller: Caller,
        r: proto::ListDueCredentialsRequest,
    ) -> Result<proto::ListDueCredentialsResponse> {
        let credentials = CredentialApi(self.0.clone());
        let whose = credentials.whose(&caller, &r.owner_id, &r.tenant).await?;
        let (resource, of, unknown) = whose;
        let within = convert::duration("within", r.within)?;
        let size = convert::page_size(r.page_size)?;
        let after = convert::page_token(DUE, &r.page_token)?;
        let vault = &self.0.vault;
        let act = async |permit| {
            if let Some(unknown) = unknown {
                return Err(unknown);
            }
            let page = vault.due(&permit, &of, within, &after, size).await?;
            let answer = proto::ListDueCredentialsResponse {
                next_page_token: convert::next_page(DUE, &page, size, |c| c.head.id.to_string()),
                credentials: page.iter().map(credentials::listed).collect(),
            };
            Ok((answer, String::new()))
        };
        let (gate, action) = (&self.0.gate, Action::ListDueCredentials);
        gate.access(&caller, action, resource, act).await
    }
}

/// What a request without its secret is hashed as.
fn hide_secret(message: &mut proto::StageCredentialRequest) {
    message.fields.iter_mut().for_each(|f| f.value.clear());
}

fn message(vault: &Vault, r: &CredentialRotation) -> proto::CredentialRotation {
    use proto::{CredentialProof as P, CredentialRotationState as S};
    let state = match r.state {
        CredentialRotationState::Minting => S::Minting,
        CredentialRotationState::Staged => S::Staged,
        CredentialRotationState::Holding => S::Holding,
        CredentialRotationState::Completed => S::Completed,
        CredentialRotationState::RolledBack => S::RolledBack,
    };
    let proof = match r.proof() {
        Proof::Dead => P::Dead,
        Proof::Alive => P::Alive,
        Proof::Unknown => P::Unspecified,
    };
    proto::CredentialRotation {
        id: r.id.to_string(),
        credential_id: r.credential.to_string(),
        tenant: r.tenant.to_string(),
        state: state.into(),
        driver: r.driver.as_str().to_owned(),
        new_value_id: r.new_value.to_string(),
        old_value_id: r.old_value.to_string(),
        new_probe: r.new_probe.as_ref().map(credentials::probe),
        old_probe: r.old_probe.as_ref().map(credentials::probe),
        proof: proof.into(),
        why: r.why.clone(),
        hold_until_time: r.hold_until.and_then(convert::time),
        create_time: convert::time(r.created_at),
        update_time: convert::time(r.updated_at),
        requester_id: r.requester.map_or_else(String::new, |id| id.to_string()),
        needs_approval: r.needs_approval,
        approver_id: r
            .approval
            .as_ref()
            .map_or_else(String::new, |a| a.approver.to_string()),
        approve_time: r.approval.as_ref().and_then(|a| convert::time(a.at)),
        attention: vault.attention(r).map_or("", Attention::as_str).to_owned(),
    }
}

#[tonic::async_trait]
impl CredentialRotationService for CredentialRotationApi {
    async fn stage_credential(
        &self,
        r: Request<proto::StageCredentialRequest>,
    ) -> Answer<proto::StageCredentialResponse> {
        let act = async |caller, m| self.stage(caller, m).await;
        let parts = &self.0;
        parts
            .call_hiding(r, Action::StageCredential, hide_secret, act)
            .await
    }

    async fn promote_credential(
        &self,
        r: Request<proto::PromoteCredentialRequest>,
    ) -> Answer<proto::PromoteCredentialResponse> {
        let act = async |caller, m| self.promote(caller, m).await;
        self.0.call(r, Action::PromoteCredential, act).await
    }

    async fn approve_credential_rotation(
        &self,
        r: Request<proto::ApproveCredentialRotationRequest>,
    ) -> Answer<proto::ApproveCredentialRotationResponse> {
        let act = async |caller, m| self.approve(caller, m).await;
        self.0.call(r, Action::ApproveCredentialRotation, act).await
    }

    async fn complete_credential_rotation(
        &self,
        r: Request<proto::CompleteCredentialRotationRequest>,
    ) -> Answer<proto::CompleteCredentialRotationResponse> {
        let act = async |caller, m| self.complete(caller, m).await;
        self.0
            .call(r, Action::CompleteCredentialRotation, act)
            .await
    }

    async fn roll_back_credential(
        &self,
        r: Request<proto::RollBackCredentialRequest>,
    ) -> Answer<proto::RollBackCredentialResponse> {
        let act = async |caller, m| self.roll_back(caller, m).await;
        self.0.call(r, Action::RollBackCredential, act).await
    }

    async fn set_credential_rotation(
        &self,
        r: Request<proto::SetCredentialRotationRequest>,
    ) -> Answer<proto::SetCredentialRotationResponse> {
        let act = async |caller, m| self.set(caller, m).await;
        self.0.call(r, Action::SetCredentialRotation, act).await
    }

    async fn get_credential_rotation(
        &self,
        r: Request<proto::GetCredentialRotationRequest>,
    ) -> Answer<proto::GetCredentialRotationResponse> {
        let act = async |caller, m| self.get(caller, m).await;
        self.0.call(r, Action::GetCredentialRotation, act).await
    }

    async fn list_credential_rotations(
        &self,
        r: Request<proto::ListCredentialRotationsRequest>,
    ) -> Answer<proto::ListCredentialRotationsResponse> {
        let act = async |caller, m| self.list(caller, m).await;
        self.0.call(r, Action::ListCredentialRotations, act).await
    }

    async fn list_due_credentials(
        &self,
        r: Request<proto::ListDueCredentialsRequest>,
    ) -> Answer<proto::ListDueCredentialsResponse> {
        let act = async |caller, m| self.due(caller, m).await;
        self.0.call(r, Action::ListDueCredentials, act).await
    }
}
