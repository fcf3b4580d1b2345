//! KeyService.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use tonic::{Request, Response, Status};

use super::{
    call::{self, Parts},
    convert, destructions,
    proto::{self, key_service_server::KeyService},
};
use crate::{
    audit::Receipt,
    clock::Clock,
    error::Result,
    keys::{AdoptKey, CreateKey, ImportKey, ImportedSecret, KeyFilter, KeySnapshot, UpdateKey},
    model::{Action, Algorithm, Caller, Entity, KeyName, KeyRef, Kid, Purpose, Resource},
};

/// KeyService over these parts.
pub struct KeyApi {
    /// The parts.
    pub parts: Parts,
    /// For `overdue`.
    pub clock: Clock,
}

type Answer<T> = Result<Response<T>, Status>;

const LISTING: &str = "keys";
/// Longest URI, in bytes.
const MAX_URI: usize = 1024;

impl KeyApi {
    async fn create(
        &self,
        caller: Caller,
        r: proto::CreateKeyRequest,
    ) -> Result<proto::CreateKeyResponse> {
        let request = CreateKey {
            tenant: convert::tenant(&r.tenant, &caller)?,
            name: r.name.parse()?,
            purpose: convert::purpose(r.purpose)?,
            algorithm: convert::algorithm(r.algorithm)?,
            rsa_bits: r.rsa_bits,
            owner: convert::text("owner", r.owner, 128)?,
            rotation_period: convert::duration("rotation_period", r.rotation_period)?,
            rotation_mode: convert::rotation_mode(r.rotation_mode)?,
            approvals_needed: NonZeroU32::new(r.approvals_needed),
            standby: r.standby,
            grace: convert::duration("grace", r.grace)?,
            backend: named(r.backend),
            standby_backend: named(r.standby_backend),
        };
        let resource = to_be(&request.tenant, &request.name);
        let keys = Arc::clone(&self.parts.keys);
        let now = self.clock.now();
        let answer = move |key: &Arc<KeySnapshot>, receipt: &Receipt| proto::CreateKeyResponse {
            key: Some(convert::key(key, now)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| keys.create(permit, request).await;
        let gate = &self.parts.gate;
        gate.mutate(&caller, Action::CreateKey, resource, answer, act)
            .await
    }

    async fn adopt(
        &self,
        caller: Caller,
        r: proto::AdoptKeyRequest,
    ) -> Result<proto::AdoptKeyResponse> {
        let purpose = convert::purpose(r.purpose)?;
        let algorithm: Algorithm = convert::algorithm(r.algorithm)?;
        if !purpose.has_pairs() {
            return Err(convert::invalid(
                "purpose must be SIGNING or TOKEN_SIGNING; data keys are made here, not adopted",
            ));
        }
        if r.uri.len() > MAX_URI {
            return Err(convert::invalid("uri must be at most 1024 bytes"));
        }
        let request = AdoptKey {
            key: CreateKey {
                tenant: convert::tenant(&r.tenant, &caller)?,
                name: r.name.parse()?,
                purpose,
                algorithm,
                rsa_bits: 0,
                owner: convert::text("owner", r.owner, 128)?,
                rotation_period: convert::duration("rotation_period", r.rotation_period)?,
                rotation_mode: None,
                approvals_needed: NonZeroU32::new(r.approvals_needed),
                standby: r.standby,
                grace: convert::duration("grace", r.grace)?,
                backend: named(r.backend),
                standby_backend: named(r.standby_backend),
            },
            uri: r.uri,
        };
        let resource = to_be(&request.key.tenant, &request.key.name);
        let keys = Arc::clone(&self.parts.keys);
        let now = self.clock.now();
        let answer = move |key: &Arc<KeySnapshot>, receipt: &Receipt| proto::AdoptKeyResponse {
            key: Some(convert::key(key, now)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| keys.adopt(permit, request).await;
        let gate = &self.parts.gate;
        gate.mutate(&caller, Action::AdoptKey, resource, answer, act)
            .await
    }

    async fn import(
        &self,
        caller: Caller,
        r: proto::ImportKeyRequest,
    ) -> Result<proto::ImportKeyResponse> {
        let secret = ImportedSecret::new(call::secret(r.secret))?;
        let request = ImportKey {
            key: CreateKey {
                tenant: convert::tenant(&r.tenant, &caller)?,
                name: r.name.parse()?,
                purpose: Purpose::Mac,
                algorithm: convert::algorithm(r.algorithm)?,
                rsa_bits: 0,
                owner: convert::text("owner", r.owner, 128)?,
                rotation_period: convert::duration("rotation_period", r.rotation_period)?,
                rotation_mode: None,
                approvals_needed: NonZeroU32::new(r.approvals_needed),
                standby: false,
                grace: convert::duration("grace", r.grace)?,
                backend: None,
                standby_backend: None,
            },
            secret,
        };
        let resource = to_be(&request.key.tenant, &request.key.name);
        let keys = Arc::clone(&self.parts.keys);
        let now = self.clock.now();
        let answer = move |key: &Arc<KeySnapshot>, receipt: &Receipt| proto::ImportKeyResponse {
            key: Some(convert::key(key, now)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| keys.import(permit, request).await;
        let gate = &self.parts.gate;
        gate.mutate(&caller, Action::ImportKey, resource, answer, act)
            .await
    }

    async fn get(&self, caller: Caller, r: proto::GetKeyRequest) -> Result<proto::GetKeyResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let key: KeyRef = r.key.parse()?;
        let target = self.parts.keys.find(&tenant, &key).await?;
        let now = self.clock.now();
        let act = async |_permit| {
            let key = Some(convert::key(target.snapshot()?, now));
            Ok((proto::GetKeyResponse { key }, String::new()))
        };
        let gate = &self.parts.gate;
        gate.access(&caller, Action::GetKey, target.resource(), act)
            .await
    }

    async fn list(
        &self,
        caller: Caller,
        r: proto::ListKeysRequest,
    ) -> Result<proto::ListKeysResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let size = convert::page_size(r.page_size)?;
        let after = convert::page_token(LISTING, &r.page_token)?;
        let now = self.clock.now();
        // Whole microseconds are what is stored, so one more makes "at most" of "before".
        let within = convert::duration("due_within", r.due_within)?;
        let due = within.map(|within| now.plus(within).plus(Duration::from_micros(1)));
        let filter = KeyFilter {
            due_before: if r.overdue_only { Some(now) } else { due },
            compromised_only: r.compromised_only,
            owner: match r.owner.is_empty() {
                true => String::new(),
                false => convert::text("owner", r.owner, 128)?,
            },
        };
        let keys = &self.parts.keys;
        let list = async |permit| {
            let page = keys.list(&permit, &tenant, &after, &filter, size).await?;
            let next = convert::next_page(LISTING, &page, size, |row| row.key.id.to_string());
            let answer = proto::ListKeysResponse {
                keys: page
                    .iter()
                    .map(|row| {
                        let active = row.active_kid.as_ref();
                        convert::key_row(&row.key, active, row.compromised, now)
                    })
                    .collect(),
                next_page_token: next,
            };
            Ok((answer, String::new()))
        };
        let resource = Resource::tenant(tenant.clone());
        let gate = &self.parts.gate;
        gate.access(&caller, Action::ListKeys, resource, list).await
    }

    async fn usage(
        &self,
        caller: Caller,
        r: proto::GetKeyVersionUsageRequest,
    ) -> Result<proto::GetKeyVersionUsageResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let key: KeyRef = r.key.parse()?;
        let target = self.parts.keys.find(&tenant, &key).await?;
        let resource = target.resource();
        let act = async |permit| {
            let id = target.snapshot()?.key.id;
            let usage = self.parts.keys.usage(&permit, id).await?;
            let versions = usage.iter().map(convert::usage).collect();
            let answer = proto::GetKeyVersionUsageResponse { versions };
            Ok((answer, String::new()))
        };
        let gate = &self.parts.gate;
        gate.access(&caller, Action::GetKeyVersionUsage, resource, act)
            .await
    }

    async fn update(
        &self,
        caller: Caller,
        r: proto::UpdateKeyRequest,
    ) -> Result<proto::UpdateKeyResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let key: KeyRef = r.key.parse()?;
        let owner = r.owner.map(|owner| convert::text("owner", owner, 128));
        let change = UpdateKey {
            owner: owner.transpose()?,
            rotation_period: convert::duration("rotation_period", r.rotation_period)?,
            next_rotation_at: convert::timestamp("next_rotation_time", r.next_rotation_time)?,
            rotation_mode: convert::rotation_mode(r.rotation_mode)?,
            approvals_needed: r.approvals_needed.map(approvals_needed).transpose()?,
            standby: r.standby,
            grace: convert::duration("grace", r.grace)?,
            backend: r.backend,
            standby_backend: r.standby_backend.map(named),
        };
        let target = self.parts.keys.find(&tenant, &key).await?;
        let resource = target.resource();
        let keys = Arc::clone(&self.parts.keys);
        let now = self.clock.now();
        let answer = move |key: &Arc<KeySnapshot>, receipt: &Receipt| proto::UpdateKeyResponse {
            key: Some(convert::key(key, now)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| {
            let current = Arc::clone(target.snapshot()?);
            keys.update(permit, current, change).await
        };
        let gate = &self.parts.gate;
        gate.mutate(&caller, Action::UpdateKey, resource, answer, act)
            .await
    }

    async fn approve_policy(
        &self,
        caller: Caller,
        r: proto::ApproveRotationPolicyRequest,
    ) -> Result<proto::ApproveRotationPolicyResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let key: KeyRef = r.key.parse()?;
        if r.revision < 1 {
            return Err(convert::invalid(
                "revision must be the key's revision that you have read, 1 or more",
            ));
        }
        let target = self.parts.keys.find(&tenant, &key).await?;
        let resource = target.resource();
        let keys = Arc::clone(&self.parts.keys);
        let now = self.clock.now();
        let answer =
            move |key: &Arc<KeySnapshot>, receipt: &Receipt| proto::ApproveRotationPolicyResponse {
                key: Some(convert::key(key, now)),
                receipt: convert::receipt(receipt),
            };
        let act = async move |permit| {
            let current = Arc::clone(target.snapshot()?);
            keys.approve_policy(permit, current, r.revision).await
        };
        let gate = &self.parts.gate;
        gate.mutate(
            &caller,
            Action::ApproveRotationPolicy,
            resource,
            answer,
            act,
        )
        .await
    }

    async fn revoke(
        &self,
        caller: Caller,
        r: proto::RevokeKeyVersionRequest,
    ) -> Result<proto::RevokeKeyVersionResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let key: KeyRef = r.key.parse()?;
        let kid: Kid = r.kid.parse()?;
        let reason = convert::text("reason", r.reason, 512)?;
        let target = self.parts.keys.find(&tenant, &key).await?;
        let resource = target.resource();
        let keys = Arc::clone(&self.parts.keys);
        let now = self.clock.now();
        let answer =
            move |key: &Arc<KeySnapshot>, receipt: &Receipt| proto::RevokeKeyVersionResponse {
                key: Some(convert::key(key, now)),
                receipt: convert::receipt(receipt),
            };
        let act = async move |permit| {
            let current = Arc::clone(target.snapshot()?);
            keys.revoke(permit, current, kid, reason).await
        };
        let gate = &self.parts.gate;
        gate.mutate(&caller, Action::RevokeKeyVersion, resource, answer, act)
            .await
    }
}

fn approvals_needed(number: u32) -> Result<NonZeroU32> {
    NonZeroU32::new(number).ok_or_else(|| convert::invalid("approvals_needed must be 1 to 8"))
}

/// Empty means that none was named.
fn named(backend: String) -> Option<String> {
    Some(backend).filter(|name| !name.is_empty())
}

/// A key that does not exist yet.
fn to_be(tenant: &crate::model::TenantName, name: &KeyName) -> Resource {
    Resource {
        tenant: tenant.clone(),
        entity: Entity::UnknownKey(name.to_string()),
    }
}

#[tonic::async_trait]
impl KeyService for KeyApi {
    async fn create_key(
        &self,
        r: Request<proto::CreateKeyRequest>,
    ) -> Answer<proto::CreateKeyResponse> {
        let act = async |caller, m| self.create(caller, m).await;
        self.parts.call(r, Action::CreateKey, act).await
    }

    async fn adopt_key(
        &self,
        r: Request<proto::AdoptKeyRequest>,
    ) -> Answer<proto::AdoptKeyResponse> {
        let act = async |caller, m| self.adopt(caller, m).await;
        self.parts.call(r, Action::AdoptKey, act).await
    }

    async fn get_key(&self, r: Request<proto::GetKeyRequest>) -> Answer<proto::GetKeyResponse> {
        let act = async |caller, m| self.get(caller, m).await;
        self.parts.call(r, Action::GetKey, act).await
    }

    async fn list_keys(
        &self,
        r: Request<proto::ListKeysRequest>,
    ) -> Answer<proto::ListKeysResponse> {
        let act = async |caller, m| self.list(caller, m).await;
        self.parts.call(r, Action::ListKeys, act).await
    }

    async fn update_key(
        &self,
        r: Request<proto::UpdateKeyRequest>,
    ) -> Answer<proto::UpdateKeyResponse> {
        let act = async |caller, m| self.update(caller, m).await;
        self.parts.call(r, Action::UpdateKey, act).await
    }

    async fn approve_rotation_policy(
        &self,
        r: Request<proto::ApproveRotationPolicyRequest>,
    ) -> Answer<proto::ApproveRotationPolicyResponse> {
        let act = async |caller, m| self.approve_policy(caller, m).await;
        self.parts.call(r, Action::ApproveRotationPolicy, act).await
    }

    async fn revoke_key_version(
        &self,
        r: Request<proto::RevokeKeyVersionRequest>,
    ) -> Answer<proto::RevokeKeyVersionResponse> {
        let act = async |caller, m| self.revoke(caller, m).await;
        self.parts.call(r, Action::RevokeKeyVersion, act).await
    }

    async fn destroy_key_version(
        &self,
        r: Request<proto::DestroyKeyVersionRequest>,
    ) -> Answer<proto::DestroyKeyVersionResponse> {
        let act = async |caller, m| destructions::destroy(&self.parts, caller, m).await;
        self.parts.call(r, Action::DestroyKeyVersion, act).await
    }

    async fn approve_key_destruction(
        &self,
        r: Request<proto::ApproveKeyDestructionRequest>,
    ) -> Answer<proto::ApproveKeyDestructionResponse> {
        let act = async |caller, m| destructions::approve_destruction(&self.parts, caller, m).await;
        self.parts.call(r, Action::ApproveKeyDestruction, act).await
    }

    async fn cancel_key_destruction(
        &self,
        r: Request<proto::CancelKeyDestructionRequest>,
    ) -> Answer<proto::CancelKeyDestructionResponse> {
        let act = async |caller, m| destructions::cancel_destruction(&self.parts, caller, m).await;
        self.parts.call(r, Action::CancelKeyDestruction, act).await
    }

    async fn import_key(
        &self,
        r: Request<proto::ImportKeyRequest>,
    ) -> Answer<proto::ImportKeyResponse> {
        let act = async |caller, m| self.import(caller, m).await;
        let hide = |m: &mut proto::ImportKeyRequest| m.secret.clear();
        let parts = &self.parts;
        parts.call_hiding(r, Action::ImportKey, hide, act).await
    }

    async fn get_key_version_usage(
        &self,
        r: Request<proto::GetKeyVersionUsageRequest>,
    ) -> Answer<proto::GetKeyVersionUsageResponse> {
        let act = async |caller, r| self.usage(caller, r).await;
        self.parts.call(r, Action::GetKeyVersionUsage, act).await
    }

    async fn list_key_destructions(
        &self,
        r: Request<proto::ListKeyDestructionsRequest>,
    ) -> Answer<proto::ListKeyDestructionsResponse> {
        let act = async |caller, m| destructions::list_destructions(&self.parts, caller, m).await;
        self.parts.call(r, Action::ListKeyDestructions, act).await
    }
}
