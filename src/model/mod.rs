//! R0: the nouns of the field. Ids, algorithms, keys and their state machine, principals, rotations,
//! incidents.
//!
//! Everything here is plain data and pure functions: no I/O, no async, no clock of its own.
//! Every other module may use it; it uses nothing of ours but `error`.

pub mod action;
pub mod algorithm;
pub mod api_key;
pub mod client;
pub mod destruction;
pub mod duties;
pub mod ids;
pub mod incident;
pub mod kek;
pub mod key;
pub mod principal;
pub mod public_key;
pub mod resource;
pub mod rotation;
pub mod scopes;
pub mod secret;
pub mod tenant_destruction;
pub mod time;
pub mod usage;

pub use action::{AccessKind, Action, Exposure, METHODS, Method, ROUTES, Route};
pub use algorithm::{Algorithm, KeySpec, Purpose};
pub use api_key::{API_KEY_PREFIX, ApiKey, ApiKeyHash, ApiKeyState, ApiKeyText};
pub use client::{Client, ClientProof, ClientState};
pub use destruction::{DestructionState, KeyDestruction};
pub use ids::{
    AlertId, ApiKeyId, ClientId, DeliveryId, DestructionId, IncidentId, IntentId, KekRotationId,
    KeyId, KeyName, KeyRef, Kid, NoteId, PrincipalId, RotationId, TenantDestructionId, TenantName,
    TokenId,
};
pub use incident::{Incident, IncidentNote, IncidentState};
pub use kek::{KekRotation, KekRow, KekState};
pub use key::{Key, KeyVersion, RotationMode, RotationPolicy, VersionState};
pub use principal::{
    Caller, Credential, Grant, Idempotency, Identity, Job, Principal, PrincipalKind,
    PrincipalState, Role, Scope,
};
pub use public_key::{PublicKey, SignInput, Verifier};
pub use resource::{Entity, Resource};
pub use rotation::{Approval, Rotation, RotationState};
pub use scopes::{MAX_SCOPES, Scopes};
pub use secret::Secret;
pub use tenant_destruction::{TenantDestruction, TenantDestructionState};
pub use time::Timestamp;
