//! What an action is on: the thing itself and the tenant it belongs to.

use super::{
    ApiKeyId, ClientId, CredentialId, DestructionId, IncidentId, KekRotationId, KeyId, PrincipalId,
    ProviderName, Purpose, RotationId, TenantDestructionId, TenantName,
};

/// The object of an action.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Resource {
    /// Tenant it belongs to, or would belong to.
    pub tenant: TenantName,
    /// The thing.
    pub entity: Entity,
}

/// A thing that can be acted on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Entity {
    /// An existing key.
    Key {
        /// Its id.
        id: KeyId,
        /// Its purpose.
        purpose: Purpose,
    },
    /// A key that does not exist, or does not exist yet, by the reference the caller gave.
    UnknownKey(String),
    /// An existing rotation.
    Rotation(RotationId),
    /// A rotation that does not exist, by the id the caller gave.
    UnknownRotation(RotationId),
    /// An existing incident.
    Incident(IncidentId),
    /// An incident that does not exist, by the id the caller gave.
    UnknownIncident(IncidentId),
    /// An existing destruction of a key version.
    Destruction(DestructionId),
    /// A destruction that does not exist, by the id the caller gave.
    UnknownDestruction(DestructionId),
    /// An existing rotation of the key-encryption key.
    KekRotation(KekRotationId),
    /// A rotation of the key-encryption key that does not exist, by the id the caller gave.
    UnknownKekRotation(KekRotationId),
    /// An existing destruction of a tenant's keys.
    TenantDestruction(TenantDestructionId),
    /// A destruction of a tenant's keys that does not exist, by the id the caller gave.
    UnknownTenantDestruction(TenantDestructionId),
    /// An existing principal.
    Principal(PrincipalId),
    /// A principal that does not exist, by the id the caller gave.
    UnknownPrincipal(PrincipalId),
    /// An existing API key.
    ApiKey {
        /// Its id.
        id: ApiKeyId,
        /// Who it acts as.
        owner: PrincipalId,
    },
    /// An API key that does not exist, by the id the caller gave.
    UnknownApiKey(ApiKeyId),
    /// An existing OAuth client.
    Client {
        /// Its id.
        id: ClientId,
        /// Who it acts as.
        owner: PrincipalId,
    },
    /// An OAuth client that does not exist, by the id the caller gave.
    UnknownClient(ClientId),
    /// A credential of another system, existing or about to.
    Credential {
        /// Its id.
        id: CredentialId,
        /// Who it belongs to.
        owner: PrincipalId,
        /// Whose system it is for.
        provider: ProviderName,
    },
    /// A credential that does not exist, by the id the caller gave.
    UnknownCredential(CredentialId),
    /// The tenant itself, for what concerns all of it: listing, creating in it, its audit log.
    Tenant,
}

impl Resource {
    /// The tenant itself.
    pub const fn tenant(tenant: TenantName) -> Self {
        Self {
            tenant,
            entity: Entity::Tenant,
        }
    }

    /// Kind of the entity, in the audit log: `key`, `rotation`, `incident`, `destruction`, `kek_rotation`,
    /// `tenant_destruction`, `principal`, `api_key`, `client`, `credential` or `tenant`.
    pub const fn kind(&self) -> &'static str {
        match self.entity {
            Entity::Key { .. } | Entity::UnknownKey(_) => "key",
            Entity::Rotation(_) | Entity::UnknownRotation(_) => "rotation",
            Entity::Incident(_) | Entity::UnknownIncident(_) => "incident",
            Entity::Destruction(_) | Entity::UnknownDestruction(_) => "destruction",
            Entity::KekRotation(_) | Entity::UnknownKekRotation(_) => "kek_rotation",
            Entity::TenantDestruction(_) | Entity::UnknownTenantDestruction(_) => {
                "tenant_destruction"
            }
            Entity::Principal(_) | Entity::UnknownPrincipal(_) => "principal",
            Entity::ApiKey { .. } | Entity::UnknownApiKey(_) => "api_key",
            Entity::Client { .. } | Entity::UnknownClient(_) => "client",
            Entity::Credential { .. } | Entity::UnknownCredential(_) => "credential",
            Entity::Tenant => "tenant",
        }
    }

    /// Id of an entity that exists, and is not the tenant: no text of a caller's choice.
    pub fn known_id(&self) -> Option<String> {
        match &self.entity {
            Entity::UnknownKey(_)
            | Entity::UnknownRotation(_)
            | Entity::UnknownIncident(_)
            | Entity::UnknownDestruction(_)
            | Entity::UnknownKekRotation(_)
            | Entity::UnknownTenantDestruction(_)
            | Entity::UnknownPrincipal(_)
            | Entity::UnknownApiKey(_)
            | Entity::UnknownClient(_)
            | Entity::UnknownCredential(_)
            | Entity::Tenant => None,
            Entity::Key { .. }
            | Entity::Rotation(_)
            | Entity::Incident(_)
            | Entity::Destruction(_)
            | Entity::KekRotation(_)
            | Entity::TenantDestruction(_)
            | Entity::Principal(_)
            | Entity::ApiKey { .. }
            | Entity::Client { .. }
            | Entity::Credential { .. } => Some(self.id()),
        }
    }

    /// Id of the entity, in the audit log.
    pub fn id(&self) -> String {
        match &self.entity {
            Entity::Key { id, .. } => id.to_string(),
            Entity::UnknownKey(reference) => reference.clone(),
            Entity::Rotation(id) | Entity::UnknownRotation(id) => id.to_string(),
            Entity::Incident(id) | Entity::UnknownIncident(id) => id.to_string(),
            Entity::Destruction(id) | Entity::UnknownDestruction(id) => id.to_string(),
            Entity::KekRotation(id) | Entity::UnknownKekRotation(id) => id.to_string(),
            Entity::TenantDestruction(id) | Entity::UnknownTenantDestruction(id) => id.to_string(),
            Entity::Principal(id) | Entity::UnknownPrincipal(id) => id.to_string(),
            Entity::ApiKey { id, .. } | Entity::UnknownApiKey(id) => id.to_string(),
            Entity::Client { id, .. } | Entity::UnknownClient(id) => id.to_string(),
            Entity::Credential { id, .. } | Entity::UnknownCredential(id) => id.to_string(),
            Entity::Tenant => self.tenant.to_string(),
        }
    }
}
