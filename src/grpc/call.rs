//! What every service needs: the parts behind the listener, and the beginning of a call.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use serde::Deserialize;
use tonic::{Request, Status};
use zeroize::Zeroize;

use super::{layers::RequestId, status::status};
use crate::{
    alerts::Alerts,
    audit::Reader,
    authn::{Authn, ConnectedPeer, Credentials},
    clients::{ApiKeys, Clients},
    destruction::Destructions,
    directory::Directory,
    erasure::Erasures,
    error::{Error, Reason, Result},
    gate::{Gate, MostStreams},
    incidents::Incidents,
    keys::{Keys, Target},
    model::{AccessKind, Action, Caller, Idempotency, KeyRef, Kid, Secret},
    rotation::{KekRotations, Rotations},
    tokens::Tokens,
    usage::Usage,
    vault::Vault,
};

/// Section `[limits]`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Longest message, plaintext or ciphertext body, in bytes. Default 4 MiB.
    pub max_payload_bytes: usize,
    /// Longest plaintext of EncryptStream and DecryptStream, in bytes. Default 64 GiB.
    pub max_stream_bytes: u64,
    /// How long a stream waits for its client to send or to read, in seconds. Default 30.
    pub stream_idle_seconds: u64,
    /// Streams that one principal may have open at the same time. Default 16.
    pub max_streams_per_principal: usize,
    /// Streams that all principals of one tenant may have open at the same time. Default 128.
    pub max_streams_per_tenant: usize,
    /// Streams that may be open at the same time. Default 512.
    pub max_streams: usize,
}

impl LimitsConfig {
    /// Errors: PAYLOAD_EMPTY; PAYLOAD_TOO_LARGE for more than the limit.
    pub fn check(&self, what: &str, bytes: &[u8]) -> Result<()> {
        check_length(what, bytes, self.max_payload_bytes)
    }

    /// As `check`, for the ciphertext of a payload, which is longer than the payload.
    pub fn check_ciphertext(&self, what: &str, bytes: &[u8]) -> Result<()> {
        let overhead = self.max_payload_bytes / 1024 + MAX_OVERHEAD;
        check_length(what, bytes, self.max_payload_bytes + overhead)
    }
}

/// What any ciphertext is longer than its plaintext, besides a tag of 16 bytes per 16 KiB: header, salt, commitment.
const MAX_OVERHEAD: usize = 512;

fn check_length(what: &str, bytes: &[u8], limit: usize) -> Result<()> {
    match bytes.len() {
        0 => Err(Error::new(
            Reason::PayloadEmpty,
            format!("{what} is empty; at least one byte is required"),
        )),
        n if n > limit => Err(Error::new(
            Reason::PayloadTooLarge,
            format!("{what} has {n} bytes; at most {limit} are allowed"),
        )),
        _ => Ok(()),
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_payload_bytes: 4 << 20,
            max_stream_bytes: 64 << 30,
            stream_idle_seconds: 30,
            max_streams_per_principal: 16,
            max_streams_per_tenant: 128,
            max_streams: 512,
        }
    }
}

impl LimitsConfig {
    /// Errors: a sentence that names the setting of streams that is wrong.
    pub fn check_streams(&self) -> std::result::Result<(), String> {
        if !(1..=1 << 50).contains(&self.max_stream_bytes) {
            return Err("limits.max_stream_bytes must be 1 to 1 PiB".into());
        }
        if !(1..=3600).contains(&self.stream_idle_seconds) {
            return Err("limits.stream_idle_seconds must be 1 to 3600".into());
        }
        if !(1..=1024).contains(&self.max_streams_per_principal) {
            return Err("limits.max_streams_per_principal must be 1 to 1024".into());
        }
        if !(1..=65_536).contains(&self.max_streams_per_tenant) {
            return Err("limits.max_streams_per_tenant must be 1 to 65536".into());
        }
        if !(1..=65_536).contains(&self.max_streams) {
            return Err("limits.max_streams must be 1 to 65536".into());
        }
        Ok(())
    }

    /// The bounds on open streams.
    pub const fn most_streams(&self) -> MostStreams {
        MostStreams {
            per_principal: self.max_streams_per_principal,
            per_tenant: self.max_streams_per_tenant,
            in_all: self.max_streams,
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
    /// Destructions of the keys of tenants.
    pub erasures: Arc<Erasures>,
    /// Incidents.
    pub incidents: Arc<Incidents>,
    /// Tokens.
    pub tokens: Arc<Tokens>,
    /// OAuth clients.
    pub clients: Arc<Clients>,
    /// Tenants and principals.
    pub directory: Arc<Directory>,
    /// API keys.
    pub api_keys: Arc<ApiKeys>,
    /// The audit log.
    pub audit: Arc<Reader>,
    /// Bounds of payloads.
    pub limits: LimitsConfig,
    /// The vault.
    pub vault: Arc<Vault>,
    /// Usage and limits.
    pub usage: Arc<Usage>,
    /// Alerts.
    pub alerts: Arc<Alerts>,
}

impl Parts {
    /// The key that a request names, whether there is one or not.
    pub async fn target(&self, caller: &Caller, tenant: &str, key: &str) -> Result<Target> {
        let tenant = super::convert::tenant(tenant, caller)?;
        let key: KeyRef = key.parse()?;
        self.keys.find(&tenant, &key).await
    }

    /// Authenticates the caller, then runs the call; whatever fails becomes a typed status.
    pub async fn call<M, T, F, Fut>(
        &self,
        request: Request<M>,
        action: Action,
        act: F,
    ) -> Result<tonic::Response<T>, Status>
    where
        M: Message + Clone,
        F: FnOnce(Caller, M) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        self.call_hiding(request, action, |_| {}, act).await
    }

    /// As `call`, for a request with a secret, which `hide` takes out before the request is hashed for its idempotency
    /// key: whoever reads the database could try secrets against a stored hash of them. So a call that is repeated under
    /// the same key with another secret gets the first answer, and the first secret stays, unless the call looks for itself
    /// (`Vault::expect_same`).
    pub async fn call_hiding<M, T, F, Fut>(
        &self,
        request: Request<M>,
        action: Action,
        hide: fn(&mut M),
        act: F,
    ) -> Result<tonic::Response<T>, Status>
    where
        M: Message + Clone,
        F: FnOnce(Caller, M) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let extensions = request.extensions();
        let request_id = extensions
            .get::<RequestId>()
            .map_or_else(|| Arc::from(""), |id| Arc::clone(&id.0));
        let peer = extensions.get::<ConnectedPeer>().cloned();
        let credentials = Credentials::of(peer, request.metadata().as_ref());
        let given = request.metadata().get_all(IDEMPOTENCY_KEY).iter();
        let given: Vec<_> = given.cloned().collect();
        let answer = async {
            let mut caller = self
                .authn
                .caller(&credentials, Arc::clone(&request_id), action)
                .await?;
            let message = request.into_inner();
            let answer = async {
                if action.kind() == AccessKind::Admin && !given.is_empty() {
                    let mut shown = message.clone();
                    hide(&mut shown);
                    let given = given.iter().map(|key| key.as_bytes());
                    // Maps are sorted (build.rs), so equal messages have equal encodings.
                    caller.idempotency = Idempotency::of(given, action, &shown.encode_to_vec())?;
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

/// A secret of a request, in a buffer that is wiped. The request's own buffer is wiped too where nobody else holds a part
/// of it; what the connection (HTTP/2, TLS) has copied is out of reach.
pub fn secret(given: Bytes) -> Secret<Vec<u8>> {
    let secret = Secret::new(given.to_vec());
    if let Ok(mut buffer) = given.try_into_mut() {
        buffer.zeroize();
    }
    secret
}

/// A secret of an answer: wiped as soon as the answer has been encoded. What the connection copies is out of reach.
pub fn wiped(secret: Secret<Vec<u8>>) -> Bytes {
    secret.into_bytes()
}

/// Which version did it, for the audit row. A kid needs no escaping.
pub fn by(kid: &Kid) -> String {
    format!(r#"{{"kid":"{kid}"}}"#)
}
