//! What every service needs: the parts behind the listener, and the beginning of a call.

use std::sync::Arc;

use serde::Deserialize;
use tonic::{Request, Status};

use super::{layers::RequestId, status::status};
use crate::{
    audit::Reader,
    authn::{Authn, ConnectedPeer},
    directory::Directory,
    error::Result,
    gate::Gate,
    keys::Keys,
    model::{Action, Caller},
    rotation::Rotations,
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
        F: FnOnce(Caller, M) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let extensions = request.extensions();
        let request_id = extensions
            .get::<RequestId>()
            .map_or_else(|| Arc::from(""), |id| Arc::clone(&id.0));
        let peer = extensions.get::<ConnectedPeer>().cloned();
        let answer = async {
            let peer = peer.as_ref().map(|peer| &*peer.0);
            let caller = self
                .authn
                .caller(peer, Arc::clone(&request_id), action)
                .await?;
            let answer = act(caller.clone(), request.into_inner()).await;
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
