//! The destructions of KeyService.

use std::sync::Arc;

use super::{call::Parts, convert, proto};
use crate::{
    audit::Receipt,
    error::Result,
    model::{Action, Caller, DestructionId, KeyDestruction, KeyRef, Kid, Resource},
};

const LISTING: &str = "destructions";

pub async fn destroy(
    parts: &Parts,
    caller: Caller,
    r: proto::DestroyKeyVersionRequest,
) -> Result<proto::DestroyKeyVersionResponse> {
    let tenant = convert::tenant(&r.tenant, &caller)?;
    let key: KeyRef = r.key.parse()?;
    let kid: Kid = r.kid.parse()?;
    let reason = convert::text("reason", r.reason, 512)?;
    let target = parts.keys.find(&tenant, &key).await?;
    let resource = target.resource();
    let destructions = Arc::clone(&parts.destructions);
    let answer = |d: &KeyDestruction, receipt: &Receipt| proto::DestroyKeyVersionResponse {
        destruction: Some(convert::destruction(d)),
        receipt: convert::receipt(receipt),
    };
    let act = async move |permit| {
        let key = Arc::clone(target.snapshot()?);
        destructions.request(permit, key, kid, reason).await
    };
    let gate = &parts.gate;
    gate.mutate(&caller, Action::DestroyKeyVersion, resource, answer, act)
        .await
}

pub async fn approve_destruction(
    parts: &Parts,
    caller: Caller,
    r: proto::ApproveKeyDestructionRequest,
) -> Result<proto::ApproveKeyDestructionResponse> {
    let id: DestructionId = r.destruction_id.parse()?;
    let kid: Kid = r.kid.parse()?;
    let (resource, found) = parts.destructions.find(id).await?;
    let destructions = Arc::clone(&parts.destructions);
    let answer = |d: &KeyDestruction, receipt: &Receipt| proto::ApproveKeyDestructionResponse {
        destruction: Some(convert::destruction(d)),
        receipt: convert::receipt(receipt),
    };
    let act = async move |permit| destructions.approve(permit, found, kid).await;
    let gate = &parts.gate;
    let action = Action::ApproveKeyDestruction;
    gate.mutate(&caller, action, resource, answer, act).await
}

pub async fn cancel_destruction(
    parts: &Parts,
    caller: Caller,
    r: proto::CancelKeyDestructionRequest,
) -> Result<proto::CancelKeyDestructionResponse> {
    let id: DestructionId = r.destruction_id.parse()?;
    let reason = convert::text("reason", r.reason, 512)?;
    let (resource, found) = parts.destructions.find(id).await?;
    let destructions = Arc::clone(&parts.destructions);
    let answer = |d: &KeyDestruction, receipt: &Receipt| proto::CancelKeyDestructionResponse {
        destruction: Some(convert::destruction(d)),
        receipt: convert::receipt(receipt),
    };
    let act = async move |permit| destructions.cancel(permit, found, reason).await;
    let gate = &parts.gate;
    let action = Action::CancelKeyDestruction;
    gate.mutate(&caller, action, resource, answer, act).await
}

pub async fn list_destructions(
    parts: &Parts,
    caller: Caller,
    r: proto::ListKeyDestructionsRequest,
) -> Result<proto::ListKeyDestructionsResponse> {
    let tenant = convert::tenant(&r.tenant, &caller)?;
    let state = convert::destruction_state(r.state)?;
    let size = convert::page_size(r.page_size)?;
    let before = convert::page_token(LISTING, &r.page_token)?;
    let destructions = &parts.destructions;
    let act = async |permit| {
        let page = destructions.list(&permit, &tenant, state, &before, size);
        let page = page.await?;
        let next = convert::next_page(LISTING, &page, size, |d| d.id.to_string());
        let answer = proto::ListKeyDestructionsResponse {
            destructions: page.iter().map(convert::destruction).collect(),
            next_page_token: next,
        };
        Ok((answer, String::new()))
    };
    let gate = &parts.gate;
    let resource = Resource::tenant(tenant.clone());
    gate.access(&caller, Action::ListKeyDestructions, resource, act)
        .await
}
