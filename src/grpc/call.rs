//! What every service needs: the parts behind the listener, and the beginning of a call.

use std::sync::Arc;

use aws_lc_rs::digest;
use prost::Message;
use serde::Deserialize;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
};

use super::{layers::RequestId, status::status};
use crate::{
    audit::Reader,
    authn::{Authn, ConnectedPeer},
    destruction::Destructions,
    directory::Directory,
    error::{Error, Reason, Result},
    gate::Gate,
    incidents::Incidents,
    keys::Keys,
    model::{AccessKind, Action, Caller, Idempotency},
    rotation::{KekRotations, Rotations},
    tokens::Tokens,
};

/// Section `[limits]`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Longest message, plaintext or ciphertext body, in bytes. Default 4 MiB.
    pub max_payload_bytes: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_payload_bytes: 4 << 20,
        }
    }
}

/// Everything that services call. Cloning is cheap.
#[derive(Clone)]
pub struct Parts {
    /// The one door.
    pub gate: Arc<Gate>,
    /// Who is calling.
    pub authn: Arc<Authn>,
    /// Keys.
    pub keys: Arc<Keys>,
    /// Rotations.
    pub rotations: Arc<Rotations>,
    /// Rotations of the KEK.
    pub kek_rotations: Arc<KekRotations>,
    /// Destructions of key versions.
    pub destructions: Arc<Destructions>,
    /// Incidents.
    pub incidents: Arc<Incidents>,
    /// Tokens.
    pub tokens: Arc<Tokens>,
    /// Tenants and principals.
    pub directory: Arc<Directory>,
    /// The audit log.
    pub audit: Arc<Reader>,
    /// Bounds of payloads.
    pub limits: LimitsConfig,
}

impl Parts {
    /// Authenticates the caller, then runs the call; whatever fails becomes a typed status.
    pub async fn call<M, T, F, Fut>(
        &self,
        request: Request<M>,
        action: Action,
        act: F,
    ) -> Result<tonic::Response<T>, Status>
    where
        M: Message,
        F: FnOnce(Caller, M) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let extensions = request.extensions();
        let request_id = extensions
            .get::<RequestId>()
            .map_or_else(|| Arc::from(""), |id| Arc::clone(&id.0));
        let peer = extensions.get::<ConnectedPeer>().cloned();
        let given = request.metadata().get_all(IDEMPOTENCY_KEY).iter();
        let key: Vec<_> = given.cloned().collect();
        let answer = async {
            let peer = peer.as_ref().map(|peer| &*peer.0);
            let mut caller = self
                .authn
                .caller(peer, Arc::clone(&request_id), action)
                .await?;
            let message = request.into_inner();
            let answer = async {
                if action.kind() == AccessKind::Admin && !key.is_empty() {
                    caller.idempotency = Some(idempotency(&key, action, &message)?);
                }
                act(caller.clone(), message).await
            };
            let answer = answer.await;
            self.recorded(&caller, action, answer).await
        };
        match answer.await {
            Ok(answer) => Ok(tonic::Response::new(answer)),
            Err(error) => Err(status(&error, &request_id)),
        }
    }

    /// Every call of a known caller leaves a row, also one that failed before the gate.
    pub async fn recorded<T>(
        &self,
        caller: &Caller,
        action: Action,
        answer: Result<T>,
    ) -> Result<T> {
        if let Err(error) = &answer
            && !error.is_recorded()
        {
            self.gate.record_stumble(caller, action, error).await;
        }
        answer
    }
}

/// Metadata of a mutating call (R-OPS-2).
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The caller's key with the hash of what it is used for. Errors: INVALID_FIELD.
fn idempotency(
    given: &[MetadataValue<Ascii>],
    action: Action,
    message: &impl Message,
) -> Result<Idempotency> {
    // Two of them would leave it to chance which one counts.
    let text = match given {
        [key] => key.to_str().unwrap_or_default(),
        _ => "",
    };
    if !(1..=128).contains(&text.len()) || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(super::convert::invalid(
            "idempotency-key must be given once: 1 to 128 visible ASCII characters without blanks",
        ));
    }
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(action.name().as_bytes());
    hash.update(b"\0");
    // Maps are sorted (build.rs), so equal messages have equal encodings.
    hash.update(&message.encode_to_vec());
    let mut request_hash = [0; 32];
    request_hash.copy_from_slice(hash.finish().as_ref());
    Ok(Idempotency {
        key: text.into(),
        request_hash,
    })
}

/// An RPC that is declared and not there yet.
pub async fn unfinished<M, T>(_caller: Caller, _message: M) -> Result<T> {
    Err(Error::new(Reason::UnknownMethod, "not implemented yet"))
}
