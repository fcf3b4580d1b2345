//! ApiKeyService: keys that are shown once.
//!
//! The answer that the gate keeps for a repeated call never holds the secret: it is put in afterwards, and only into the
//! answer about the very key that this call has made.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    call::Parts,
    convert,
    proto::{self, api_key_service_server::ApiKeyService},
};
use crate::{
    audit::Receipt,
    clients::{CreateApiKey, Progress, RotateApiKey, Rotated},
    error::Result,
    gate::not_found,
    model::{
        Action, ApiKey, ApiKeyId, ApiKeyText, Caller, PrincipalId, Resource, Scopes, TenantName,
    },
};

/// ApiKeyService over these parts.
pub struct ApiKeyApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

const API_KEYS: &str = "api_keys";
/// Characters of ApiKey.name.
const MAX_NAME: usize = 100;
/// Characters of the reason of a revocation.
const MAX_REASON: usize = 500;

impl ApiKeyApi {
    async fn create(
        &self,
        caller: Caller,
        r: proto::CreateApiKeyRequest,
    ) -> Result<proto::CreateApiKeyResponse> {
        let owner: PrincipalId = match r.owner_id.as_str() {
            "" => caller.principal.id,
            id => id.parse()?,
        };
        let expires_at = convert::timestamp("expire_time", r.expire_time)?;
        let request = CreateApiKey {
            name: convert::text("name", r.name, MAX_NAME)?,
            scopes: Scopes::from_list(&r.scopes)?,
            expires_at: expires_at.ok_or_else(|| {
                convert::invalid("expire_time is required: no API key is valid for ever")
            })?,
            client: match r.client_id.as_str() {
                "" => None,
                id => Some(id.parse()?),
            },
        };
        let text = Arc::new(ApiKeyText::generate(ApiKeyId::random())?);
        let (resource, owner) = self.0.directory.find(owner).await?;
        let answer = |key: &ApiKey, receipt: &Receipt| proto::CreateApiKeyResponse {
            api_key: Some(convert::api_key(key)),
            secret: String::new(),
            receipt: convert::receipt(receipt),
        };
        let (api_keys, new) = (Arc::clone(&self.0.api_keys), Arc::clone(&text));
        let gate = &self.0.gate;
        let door = Arc::clone(gate);
        let act = async move |permit| {
            api_keys.make_pepper(&door).await?;
            api_keys.create(permit, owner, request, &new).await
        };
        let made = gate.mutate(&caller, Action::CreateApiKey, resource, answer, act);
        let mut answer = made.await?;
        answer.secret = shown(&text, answer.api_key.as_ref());
        Ok(answer)
    }

    async fn rotate(
        &self,
        caller: Caller,
        r: proto::RotateApiKeyRequest,
    ) -> Result<proto::RotateApiKeyResponse> {
        let request = RotateApiKey {
            overlap: convert::duration("overlap", r.overlap)?,
            expires_at: convert::timestamp("expire_time", r.expire_time)?,
        };
        let text = Arc::new(ApiKeyText::generate(ApiKeyId::random())?);
        let (resource, key) = self.0.api_keys.find(r.api_key_id.parse()?).await?;
        let answer = |rotated: &Rotated, receipt: &Receipt| proto::RotateApiKeyResponse {
            api_key: Some(convert::api_key(&rotated.new)),
            secret: String::new(),
            replaced: Some(convert::api_key(&rotated.old)),
            receipt: convert::receipt(receipt),
        };
        let (api_keys, new) = (Arc::clone(&self.0.api_keys), Arc::clone(&text));
        let act = async move |permit| api_keys.rotate(permit, key, request, &new).await;
        let gate = &self.0.gate;
        let made = gate.mutate(&caller, Action::RotateApiKey, resource, answer, act);
        let mut answer = made.await?;
        answer.secret = shown(&text, answer.api_key.as_ref());
        Ok(answer)
    }

    async fn revoke(
        &self,
        caller: Caller,
        r: proto::RevokeApiKeyRequest,
    ) -> Result<proto::RevokeApiKeyResponse> {
        let reason = match r.reason.as_str() {
            "" => String::new(),
            _ => convert::text("reason", r.reason, MAX_REASON)?,
        };
        let (resource, key) = self.0.api_keys.find(r.api_key_id.parse()?).await?;
        let answer = |key: &ApiKey, receipt: &Receipt| proto::RevokeApiKeyResponse {
            api_key: Some(convert::api_key(key)),
            receipt: convert::receipt(receipt),
        };
        let api_keys = Arc::clone(&self.0.api_keys);
        let act = async move |permit| api_keys.revoke(permit, key, reason).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::RevokeApiKey, resource, answer, act)
            .await
    }

    async fn get(
        &self,
        caller: Caller,
        r: proto::GetApiKeyRequest,
    ) -> Result<proto::GetApiKeyResponse> {
        let (resource, key) = self.0.api_keys.find(r.api_key_id.parse()?).await?;
        let missing = not_found(&resource);
        let act = async |_| {
            let key = key.ok_or(missing)?;
            let answer = proto::GetApiKeyResponse {
                api_key: Some(convert::api_key(&key)),
            };
            Ok((answer, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::GetApiKey, resource, act).await
    }

    async fn list(
        &self,
        caller: Caller,
        r: proto::ListApiKeysRequest,
    ) -> Result<proto::ListApiKeysResponse> {
        let size = convert::page_size(r.page_size)?;
        let after = convert::page_token(API_KEYS, &r.page_token)?;
        let api_keys = &self.0.api_keys;
        let gate = &self.0.gate;
        let page = match (r.owner_id.as_str(), r.tenant.as_str()) {
            ("", tenant) => {
                let tenant = convert::tenant(tenant, &caller)?;
                let resource = Resource::tenant(tenant.clone());
                let act = async |permit| {
                    let page = api_keys.list_in(&permit, &tenant, &after, size).await?;
                    Ok((page, String::new()))
                };
                gate.access(&caller, Action::ListApiKeys, resource, act)
                    .await?
            }
            (owner, "") => {
                let owner: PrincipalId = owner.parse()?;
                let (resource, found) = self.0.directory.find(owner).await?;
                let missing = not_found(&resource);
                let act = async |permit| {
                    found.ok_or(missing)?;
                    let page = api_keys.list_of(&permit, owner, &after, size).await?;
                    Ok((page, String::new()))
                };
                gate.access(&caller, Action::ListApiKeys, resource, act)
                    .await?
            }
            _ => {
                return Err(convert::invalid(
                    "give owner_id or tenant, not both: an owner has one tenant",
                ));
            }
        };
        Ok(proto::ListApiKeysResponse {
            api_keys: page.iter().map(convert::api_key).collect(),
            next_page_token: convert::next_page(API_KEYS, &page, size, |k| k.id.to_string()),
        })
    }

    async fn peppers(
        &self,
        caller: Caller,
        _: proto::ListPeppersRequest,
    ) -> Result<proto::ListPeppersResponse> {
        let resource = Resource::tenant(TenantName::system());
        let act = async |permit| {
            let peppers = self.0.api_keys.peppers(&permit).await?;
            let peppers = peppers.iter().map(pepper).collect();
            Ok((proto::ListPeppersResponse { peppers }, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::ListPeppers, resource, act)
            .await
    }
}

/// The text of the key that this call has made. An answer about another key is that of an earlier call.
fn shown(text: &ApiKeyText, answered: Option<&proto::ApiKey>) -> String {
    let id = text.id().to_string();
    match answered.is_some_and(|key| key.id == id) {
        true => text.expose_secret().clone(),
        false => String::new(),
    }
}

fn pepper(progress: &Progress) -> proto::Pepper {
    proto::Pepper {
        kid: progress.kid.to_string(),
        state: progress.state.as_str().to_owned(),
        api_keys: progress.api_keys,
    }
}

#[tonic::async_trait]
impl ApiKeyService for ApiKeyApi {
    async fn create_api_key(
        &self,
        r: Request<proto::CreateApiKeyRequest>,
    ) -> Answer<proto::CreateApiKeyResponse> {
        let act = async |caller, m| self.create(caller, m).await;
        self.0.call(r, Action::CreateApiKey, act).await
    }

    async fn get_api_key(
        &self,
        r: Request<proto::GetApiKeyRequest>,
    ) -> Answer<proto::GetApiKeyResponse> {
        let act = async |caller, m| self.get(caller, m).await;
        self.0.call(r, Action::GetApiKey, act).await
    }

    async fn list_api_keys(
        &self,
        r: Request<proto::ListApiKeysRequest>,
    ) -> Answer<proto::ListApiKeysResponse> {
        let act = async |caller, m| self.list(caller, m).await;
        self.0.call(r, Action::ListApiKeys, act).await
    }

    async fn rotate_api_key(
        &self,
        r: Request<proto::RotateApiKeyRequest>,
    ) -> Answer<proto::RotateApiKeyResponse> {
        let act = async |caller, m| self.rotate(caller, m).await;
        self.0.call(r, Action::RotateApiKey, act).await
    }

    async fn revoke_api_key(
        &self,
        r: Request<proto::RevokeApiKeyRequest>,
    ) -> Answer<proto::RevokeApiKeyResponse> {
        let act = async |caller, m| self.revoke(caller, m).await;
        self.0.call(r, Action::RevokeApiKey, act).await
    }

    async fn list_peppers(
        &self,
        r: Request<proto::ListPeppersRequest>,
    ) -> Answer<proto::ListPeppersResponse> {
        let act = async |caller, m| self.peppers(caller, m).await;
        self.0.call(r, Action::ListPeppers, act).await
    }
}
