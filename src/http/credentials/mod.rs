//! `/users/{user}/broker-credentials` of the public listener (R-CRED-2): the vault for platform users and their back offices.
//!
//! `{user}` is a principal's id, or `me`. Callers authenticate as on the gRPC listener, by bearer token, API key or
//! certificate; who may is decided by the same policies; bodies are JSON as docs/vault.md has it, errors problem documents.
//! Nothing here touches the database or a key.

mod body;
mod shape;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use serde_json::{Value, json};
use uuid::Uuid;

use self::body::{PutBody, RevealBody};
use super::problem::Problem;
use crate::{
    audit::Receipt,
    authn::{Authn, ConnectedPeer, Credentials},
    directory::Directory,
    error::{Error, Kind, Reason, Result},
    gate::{Gate, not_found},
    model::{Action, Caller, CredentialId, Idempotency, PrincipalId, Resource, ValueLabel},
    trace,
    vault::{CredentialFilter, CredentialsOf, FullCredential, Put, Revealed, Vault},
};

/// The parts that the routes need.
pub struct BrokerCredentials {
    /// Who is calling.
    pub authn: Arc<Authn>,
    /// The one door.
    pub gate: Arc<Gate>,
    /// Principals.
    pub directory: Arc<Directory>,
    /// The vault.
    pub vault: Arc<Vault>,
    /// How long one request may take.
    pub patience: Duration,
}

type Parted = State<Arc<BrokerCredentials>>;

/// What the gate keeps for a call that is made again: the status and the JSON of its answer, without any secret.
#[derive(Clone, PartialEq, prost::Message)]
struct Reply {
    #[prost(uint32, tag = "1")]
    status: u32,
    #[prost(string, tag = "2")]
    json: String,
    /// The audit row of the call that was answered like this.
    #[prost(int64, tag = "3")]
    seq: i64,
    /// The credential and the value that were stored, where a secret was.
    #[prost(string, tag = "4")]
    credential: String,
    #[prost(string, tag = "5")]
    value: String,
}

/// GET: the credentials of a user, masked.
pub async fn list(State(parts): Parted, Path(user): Path<String>, request: Request) -> Response {
    let act = async |caller: Caller, head: Parts, _| parts.list(caller, &user, &head).await;
    parts.run(request, Action::ListCredentials, act).await
}

/// POST: stores one, or replaces its value.
pub async fn put(State(parts): Parted, Path(user): Path<String>, request: Request) -> Response {
    let act = async |caller: Caller, head: Parts, body| parts.put(caller, &user, &head, body).await;
    parts.run(request, Action::PutCredential, act).await
}

/// GET of one: masked.
pub async fn show(
    State(parts): Parted,
    Path((user, id)): Path<(String, String)>,
    request: Request,
) -> Response {
    let act = async |caller: Caller, _, _| parts.show(caller, &user, &id).await;
    parts.run(request, Action::GetCredential, act).await
}

/// DELETE: with all its values.
pub async fn delete(
    State(parts): Parted,
    Path((user, id)): Path<(String, String)>,
    request: Request,
) -> Response {
    let act = async |caller: Caller, head: Parts, _| parts.delete(caller, &user, &id, &head).await;
    parts.run(request, Action::DeleteCredential, act).await
}

/// POST …/reveal: the secret, for a reason.
pub async fn reveal(
    State(parts): Parted,
    Path((user, id)): Path<(String, String)>,
    request: Request,
) -> Response {
    let act = async |caller: Caller, head: Parts, body| {
        parts.reveal(caller, (&user, &id), &head, body).await
    };
    parts.run(request, Action::RevealCredential, act).await
}

impl BrokerCredentials {
    /// Authenticates, runs the call, and says what came of it.
    async fn run<F>(&self, request: Request, action: Action, act: F) -> Response
    where
        F: AsyncFnOnce(Caller, Parts, Body) -> Result<Response>,
    {
        let request_id: Arc<str> = Uuid::now_v7().to_string().into();
        trace::root_is_request(&request_id);
        let answer = async {
            let (head, body) = request.into_parts();
            let peer = head.extensions.get::<ConnectedPeer>().cloned();
            let credentials = Credentials::of(peer, &head.headers);
            let caller = self
                .authn
                .caller(&credentials, Arc::clone(&request_id), action)
                .await?;
            let answer = act(caller.clone(), head, body).await;
            if let Err(error) = &answer
                && !error.is_recorded()
            {
                self.gate.record_stumble(&caller, action, error).await;
            }
            answer
        };
        let answer = tokio::time::timeout(self.patience, answer).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(Error::new(
                Reason::DeadlineExceeded,
                "the request's time is over; look before you repeat it",
            ))
        });
        answer.unwrap_or_else(|error| problem(&error, &request_id))
    }

    async fn list(&self, caller: Caller, user: &str, head: &Parts) -> Result<Response> {
        let owner = owner(user, &caller)?;
        let query = body::query(head.uri.query().unwrap_or_default())?;
        let filter = CredentialFilter {
            of: CredentialsOf::Owner(owner),
            provider: query.provider,
            environment: query.environment,
        };
        let (resource, found) = self.directory.find(owner).await?;
        let unknown = not_found(&resource);
        let act = async |permit| {
            if found.is_none() {
                return Err(unknown);
            }
            let page = self.vault.list(&permit, &filter, &query.after, query.size);
            let page = page.await?;
            Ok((shape::page(&page, query.size), String::new()))
        };
        let gate = &self.gate;
        let page = gate
            .access(&caller, Action::ListCredentials, resource, act)
            .await?;
        Ok(answered(StatusCode::OK, &page))
    }

    async fn show(&self, caller: Caller, user: &str, id: &str) -> Result<Response> {
        let owner = owner(user, &caller)?;
        let (resource, found) = self.vault.find(credential_id(id)?).await?;
        let unknown = not_found(&resource);
        let act = async |permit| {
            let found = of_owner(found, owner).ok_or(unknown)?;
            let found = self.vault.show(&permit, Some(found)).await?;
            let answer = json!({ "credential": shape::credential(&found) });
            Ok((answer, String::new()))
        };
        let gate = &self.gate;
        let answer = gate
            .access(&caller, Action::GetCredential, resource, act)
            .await?;
        Ok(answered(StatusCode::OK, &answer))
    }

    async fn put(
        &self,
        mut caller: Caller,
        user: &str,
        head: &Parts,
        body: Body,
    ) -> Result<Response> {
        let owner = owner(user, &caller)?;
        let body = PutBody::read(&head.headers, body).await?;
        caller.idempotency =
            idempotency(&head.headers, Action::PutCredential, user, &body.shown())?;
        let (place, request) = body.into_request()?;
        let (resource, owner) = self.directory.find(owner).await?;
        let found = match &owner {
            Some(owner) => Some(self.vault.find_place(owner, place).await?),
            None => None,
        };
        let unknown = not_found(&resource);
        // To somebody of another tenant an owner with such a credential, one without and nobody are the same.
        let sees = caller.principal.sees(&resource.tenant);
        let found_resource = found.as_ref().filter(|_| sees).map(|f| f.resource.clone());
        let resource = found_resource.unwrap_or(resource);
        let (vault, gate) = (Arc::clone(&self.vault), Arc::clone(&self.gate));
        let tenant = resource.tenant.clone();
        let request = Arc::new(request);
        let (asked, is_first) = (Arc::clone(&request), Arc::new(AtomicBool::new(false)));
        let act = async move |permit| {
            let found = found.ok_or(unknown)?;
            vault.make_key(&gate, &tenant).await?;
            vault.put(permit, found, &asked).await
        };
        let answered = Arc::clone(&is_first);
        let answer = move |put: &Put, receipt: &Receipt| {
            answered.store(true, Ordering::Relaxed);
            let status = match put.is_new {
                true => StatusCode::CREATED,
                false => StatusCode::OK,
            };
            let credential = shape::credential(&put.credential);
            let value = put.credential.value(ValueLabel::Current);
            let json = json!({ "credential": credential, "warnings": put.warnings });
            Reply {
                credential: put.credential.head.id.to_string(),
                value: value.map_or_else(String::new, |value| value.id.to_string()),
                ..reply(status, &json, receipt)
            }
        };
        let gate = &self.gate;
        let reply = gate.mutate(&caller, Action::PutCredential, resource, answer, act);
        let reply = reply.await?;
        if !is_first.load(Ordering::Relaxed)
            && let (Ok(credential), Ok(value)) = (reply.credential.parse(), reply.value.parse())
        {
            let vault = &self.vault;
            vault
                .expect_same(credential, value, &request.fields)
                .await?;
        }
        Ok(replied(reply))
    }

    async fn delete(
        &self,
        mut caller: Caller,
        user: &str,
        id: &str,
        head: &Parts,
    ) -> Result<Response> {
        const ACTION: Action = Action::DeleteCredential;
        let owner = owner(user, &caller)?;
        caller.idempotency = idempotency(&head.headers, ACTION, user, &json!(id))?;
        let (resource, found) = self.vault.find(credential_id(id)?).await?;
        let resource = self.vault.to_delete(&self.gate, &caller, resource);
        let found = of_owner(found, owner);
        let vault = Arc::clone(&self.vault);
        let act = async move |permit| vault.delete(permit, found).await;
        let nothing =
            |(): &(), receipt: &Receipt| reply(StatusCode::NO_CONTENT, &Value::Null, receipt);
        let reply = self.gate.mutate(&caller, ACTION, resource, nothing, act);
        Ok(replied(reply.await?))
    }

    async fn reveal(
        &self,
        mut caller: Caller,
        (user, id): (&str, &str),
        head: &Parts,
        body: Body,
    ) -> Result<Response> {
        const ACTION: Action = Action::RevealCredential;
        let owner = owner(user, &caller)?;
        let RevealBody { reason, label } = RevealBody::read(&head.headers, body).await?;
        let shown = json!([id, reason, label.as_str()]);
        caller.idempotency = idempotency(&head.headers, ACTION, user, &shown)?;
        let (resource, found) = self.vault.find(credential_id(id)?).await?;
        let found = of_owner(found, owner);
        let vault = Arc::clone(&self.vault);
        let act = async move |permit| vault.reveal(permit, found, label, reason).await;
        // What the gate keeps for a call that is made again has no secret.
        let handed_over = Arc::new(Mutex::new(None));
        let hand_over = Arc::clone(&handed_over);
        let answer = move |revealed: &Revealed, receipt: &Receipt| {
            let mut slot = hand_over.lock().unwrap_or_else(PoisonError::into_inner);
            // None when it cannot be written, and then nothing is revealed.
            *slot = shape::revealed(revealed)
                .ok()
                .map(|json| (receipt.seq, json));
            reply(StatusCode::OK, &shape::unrevealed(revealed), receipt)
        };
        let reply = self.gate.mutate(&caller, ACTION, resource, answer, act);
        let reply = reply.await?;
        let mut slot = handed_over.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.take() {
            Some((seq, revealed)) if seq == reply.seq => {
                Ok(json_response(StatusCode::OK, revealed.into_bytes()))
            }
            _ => Ok(replied(reply)),
        }
    }
}

/// The principal that a path names. Errors: INVALID_FIELD.
fn owner(user: &str, caller: &Caller) -> Result<PrincipalId> {
    match user {
        "me" => Ok(caller.principal.id),
        id => id.parse(),
    }
}

/// An id that is none is that of nothing.
fn credential_id(id: &str) -> Result<CredentialId> {
    id.parse().map_err(|_| {
        let resource = Resource {
            tenant: crate::model::TenantName::system(),
            entity: crate::model::Entity::UnknownCredential(CredentialId::random()),
        };
        not_found(&resource)
    })
}

/// Under another user's path there is no such credential.
fn of_owner(found: Option<FullCredential>, owner: PrincipalId) -> Option<FullCredential> {
    found.filter(|found| found.head.key.owner == owner)
}

/// The caller's key with the hash of what it is used for, without the secret (R-OPS-2). Errors: INVALID_FIELD.
fn idempotency(
    headers: &HeaderMap,
    action: Action,
    user: &str,
    shown: &Value,
) -> Result<Option<Idempotency>> {
    let given = headers.get_all("idempotency-key").iter();
    // Never the encoding of a gRPC message, of which no field has the number of `[`.
    let asked = json!(["http", user, shown]).to_string();
    Idempotency::of(given.map(HeaderValue::as_bytes), action, asked.as_bytes())
}

fn reply(status: StatusCode, json: &Value, receipt: &Receipt) -> Reply {
    Reply {
        status: status.as_u16().into(),
        json: match json {
            Value::Null => String::new(),
            json => json.to_string(),
        },
        seq: receipt.seq,
        ..Reply::default()
    }
}

fn replied(reply: Reply) -> Response {
    let status = u16::try_from(reply.status).ok();
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    json_response(status.unwrap_or(StatusCode::OK), reply.json)
}

fn answered(status: StatusCode, json: &Value) -> Response {
    json_response(status, json.to_string())
}

fn json_response(status: StatusCode, json: impl Into<Bytes>) -> Response {
    let json = json.into();
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    match json.is_empty() {
        true => (
            status,
            [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))],
        )
            .into_response(),
        false => (status, headers, Body::from(json)).into_response(),
    }
}

fn problem(error: &Error, request_id: &str) -> Response {
    if matches!(error.kind(), Kind::Internal | Kind::Unavailable) {
        tracing::warn!(?error, request_id, "request about credentials failed");
    }
    let is_nobody = error.kind() == Kind::Unauthenticated;
    let problem = match error.reason() {
        // The request itself is in order.
        Reason::PayloadTooLarge => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            error.reason(),
            error.message().to_owned(),
        ),
        _ => Problem::from(error),
    };
    let mut response = problem.into_response();
    if is_nobody {
        // RFC 6750 section 3.
        let challenge = HeaderValue::from_static("Bearer");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}
