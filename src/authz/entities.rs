//! A question in the words of the schema: who, in which roles, on what, in which tenant.
//!
//! Names of types are parsed once, into `Words`; a question only puts ids behind them.

use std::{
    collections::{HashMap, HashSet},
    str::FromStr,
};

use cedar_policy::{
    Context, Entities, Entity as CedarEntity, EntityAttrEvaluationError, EntityId, EntityTypeName,
    EntityUid, ParseErrors, Request, RequestValidationError, RestrictedExpression, Schema,
    entities_errors::EntitiesError,
};

use crate::model::{Action, Entity, Principal, PrincipalKind, Resource, Role, Scopes, TenantName};

/// May this principal do this on that?
pub(super) struct Question<'a> {
    pub(super) principal: &'a Principal,
    pub(super) action: Action,
    pub(super) resource: &'a Resource,
}

impl<'a> Question<'a> {
    pub(super) const fn new(
        principal: &'a Principal,
        action: Action,
        resource: &'a Resource,
    ) -> Self {
        Self {
            principal,
            action,
            resource,
        }
    }

    fn roles(&self) -> impl Iterator<Item = Role> {
        self.principal.roles_in(&self.resource.tenant)
    }

    /// The roles held in the resource's tenant, one bit each.
    pub(super) fn role_bits(&self) -> u16 {
        self.roles().fold(0, |bits, role| bits | 1 << role as u16)
    }

    /// The entitlements that count: those of one's home. None elsewhere, and none where there are none, so that most
    /// questions are alike.
    pub(super) fn scopes(&self) -> Option<&'a Scopes> {
        let at_home = self.principal.tenant == self.resource.tenant;
        (at_home && !self.principal.scopes.is_empty()).then_some(&self.principal.scopes)
    }

    /// The question itself. Errors: no such action on such a resource.
    pub(super) fn request(&self, words: &Words, schema: &Schema) -> Result<Request, Unanswerable> {
        let request = Request::new(
            self.principal_uid(words),
            words.action(self.action)?.uid(),
            self.resource_uid(words),
            Context::empty(),
            Some(schema),
        );
        Ok(request.map_err(Box::new)?)
    }

    /// The principal under its roles, the resource under its tenant, the action under its kind. Nothing else
    /// exists for a policy, so nothing else can be reached from it.
    pub(super) fn entities(&self, words: &Words) -> Result<Entities, Unanswerable> {
        let all = [
            self.principal(words)?,
            self.resource(words)?,
            words.action(self.action)?.clone(),
        ];
        // Not checked against the schema each time; a test checks every kind.
        Ok(Entities::from_entities(all, None).map_err(Box::new)?)
    }

    fn principal_uid(&self, words: &Words) -> EntityUid {
        let kind = match self.principal.kind {
            PrincipalKind::User => &words.user,
            PrincipalKind::Service => &words.service,
            PrincipalKind::Job => &words.job,
        };
        uid(kind, &self.principal.id.to_string())
    }

    fn principal(&self, words: &Words) -> Result<CedarEntity, Unanswerable> {
        let roles = self.roles().map(|role| uid(&words.role, role.as_str()));
        let name = RestrictedExpression::new_string(self.principal.name.to_string());
        let home = words.tenant(&self.principal.tenant);
        let id = RestrictedExpression::new_string(self.principal.id.to_string());
        let scopes = self.scopes().into_iter().flat_map(Scopes::iter);
        let scopes = scopes.map(|scope| RestrictedExpression::new_string(scope.to_owned()));
        let attributes = HashMap::from([
            ("id".to_owned(), id),
            ("scopes".to_owned(), RestrictedExpression::new_set(scopes)),
            ("name".to_owned(), name),
            (
                "tenant".to_owned(),
                RestrictedExpression::new_entity_uid(home),
            ),
        ]);
        let uid = self.principal_uid(words);
        Ok(CedarEntity::new(uid, attributes, roles.collect()).map_err(Box::new)?)
    }

    fn resource_uid(&self, words: &Words) -> EntityUid {
        let kind = match self.resource.entity {
            Entity::Key { .. } | Entity::UnknownKey(_) => &words.key,
            Entity::Rotation(_) | Entity::UnknownRotation(_) => &words.rotation,
            Entity::Incident(_) | Entity::UnknownIncident(_) => &words.incident,
            Entity::Destruction(_) | Entity::UnknownDestruction(_) => &words.destruction,
            Entity::KekRotation(_) | Entity::UnknownKekRotation(_) => &words.kek_rotation,
            Entity::TenantDestruction(_) | Entity::UnknownTenantDestruction(_) => {
                &words.tenant_destruction
            }
            Entity::Principal(_) | Entity::UnknownPrincipal(_) => &words.account,
            Entity::ApiKey { .. } | Entity::UnknownApiKey(_) => &words.api_key,
            Entity::Client { .. } | Entity::UnknownClient(_) => &words.client,
            Entity::Credential { .. } | Entity::UnknownCredential(_) => &words.credential,
            Entity::Tenant => &words.tenant,
        };
        uid(kind, &self.resource.id())
    }

    fn resource(&self, words: &Words) -> Result<CedarEntity, Unanswerable> {
        let parents = match self.resource.entity {
            Entity::Tenant => HashSet::new(),
            Entity::Key { .. }
            | Entity::UnknownKey(_)
            | Entity::Rotation(_)
            | Entity::UnknownRotation(_)
            | Entity::Incident(_)
            | Entity::UnknownIncident(_)
            | Entity::Destruction(_)
            | Entity::UnknownDestruction(_)
            | Entity::KekRotation(_)
            | Entity::UnknownKekRotation(_)
            | Entity::TenantDestruction(_)
            | Entity::UnknownTenantDestruction(_)
            | Entity::Principal(_)
            | Entity::UnknownPrincipal(_)
            | Entity::ApiKey { .. }
            | Entity::UnknownApiKey(_)
            | Entity::Client { .. }
            | Entity::UnknownClient(_)
            | Entity::Credential { .. }
            | Entity::UnknownCredential(_) => HashSet::from([words.tenant(&self.resource.tenant)]),
        };
        let attributes = attributes(&self.resource.entity)
            .into_iter()
            .map(|(name, value)| (name.to_owned(), RestrictedExpression::new_string(value)));
        let uid = self.resource_uid(words);
        Ok(CedarEntity::new(uid, attributes.collect(), parents).map_err(Box::new)?)
    }
}

/// The schema's names, ready for use.
pub(super) struct Words {
    user: EntityTypeName,
    service: EntityTypeName,
    job: EntityTypeName,
    role: EntityTypeName,
    tenant: EntityTypeName,
    key: EntityTypeName,
    rotation: EntityTypeName,
    incident: EntityTypeName,
    destruction: EntityTypeName,
    kek_rotation: EntityTypeName,
    tenant_destruction: EntityTypeName,
    account: EntityTypeName,
    api_key: EntityTypeName,
    client: EntityTypeName,
    credential: EntityTypeName,
    /// Every action with the kind it belongs to, in the order of `Action::ALL`.
    actions: Vec<CedarEntity>,
}

impl Words {
    /// Errors: the schema lacks an action.
    pub(super) fn new(schema: &Schema) -> Result<Self, Unanswerable> {
        let name = |name| EntityTypeName::from_str(name).map_err(Box::new);
        let kind = name("Action")?;
        let all = schema.action_entities().map_err(Box::new)?;
        let actions = Action::ALL.iter().map(|action| {
            let found = all.get(&uid(&kind, action.name()));
            found.cloned().ok_or(Unanswerable::UnknownAction(*action))
        });
        Ok(Self {
            user: name("User")?,
            service: name("Service")?,
            job: name("Job")?,
            role: name("Role")?,
            tenant: name("Tenant")?,
            key: name("Key")?,
            rotation: name("Rotation")?,
            incident: name("Incident")?,
            destruction: name("Destruction")?,
            kek_rotation: name("KekRotation")?,
            tenant_destruction: name("TenantDestruction")?,
            account: name("Account")?,
            api_key: name("ApiKey")?,
            client: name("Client")?,
            credential: name("Credential")?,
            actions: actions.collect::<Result<_, _>>()?,
        })
    }

    fn action(&self, action: Action) -> Result<&CedarEntity, Unanswerable> {
        let found = self.actions.get(action as usize);
        found.ok_or(Unanswerable::UnknownAction(action))
    }

    fn tenant(&self, name: &TenantName) -> EntityUid {
        uid(&self.tenant, name.as_str())
    }
}

/// Why a question cannot even be asked. Denies.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswerable {
    #[error("the schema has no action {}", .0.name())]
    UnknownAction(Action),
    #[error("the question does not fit the schema: {0}")]
    Request(#[from] Box<RequestValidationError>),
    #[error("entity does not fit the schema: {0}")]
    Entity(#[from] Box<EntityAttrEvaluationError>),
    #[error("entities do not fit the schema: {0}")]
    Entities(#[from] Box<EntitiesError>),
    #[error("not a name: {0}")]
    Name(#[from] Box<ParseErrors>),
}

/// What a policy may know of a thing besides its tenant: the purpose of a key, whose an account, API key, client or
/// credential is, and for which provider that is.
fn attributes(entity: &Entity) -> Vec<(&'static str, String)> {
    match entity {
        Entity::Key { purpose, .. } => vec![("purpose", purpose.as_str().to_owned())],
        Entity::Principal(owner) | Entity::ApiKey { owner, .. } | Entity::Client { owner, .. } => {
            vec![("owner", owner.to_string())]
        }
        Entity::Credential {
            owner, provider, ..
        } => vec![
            ("owner", owner.to_string()),
            ("provider", provider.to_string()),
        ],
        Entity::UnknownKey(_)
        | Entity::Rotation(_)
        | Entity::UnknownRotation(_)
        | Entity::Incident(_)
        | Entity::UnknownIncident(_)
        | Entity::Destruction(_)
        | Entity::UnknownDestruction(_)
        | Entity::KekRotation(_)
        | Entity::UnknownKekRotation(_)
        | Entity::TenantDestruction(_)
        | Entity::UnknownTenantDestruction(_)
        | Entity::UnknownPrincipal(_)
        | Entity::UnknownApiKey(_)
        | Entity::UnknownClient(_)
        | Entity::UnknownCredential(_)
        | Entity::Tenant => Vec::new(),
    }
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        ApiKeyId, ClientId, CredentialId, Grant, KekRotationId, KeyId, PrincipalId, PrincipalState,
        Purpose, RotationId, Scope, TenantDestructionId, Timestamp,
    };

    // The hot path skips this check.
    #[test]
    fn every_entity_fits_the_schema() -> Result<(), Unanswerable> {
        let text = include_str!("../../policies/claviger.cedarschema");
        let (schema, _) = Schema::from_cedarschema_str(text).expect("schema");
        let words = Words::new(&schema)?;
        for action in Action::ALL {
            let entity = words.action(*action)?;
            assert_eq!(entity.uid().id().unescaped(), action.name());
        }
        let keys = Purpose::ALL.map(|purpose| Entity::Key {
            id: KeyId::random(),
            purpose,
        });
        let others = [
            Entity::UnknownKey("jwt".into()),
            Entity::Rotation(RotationId::random()),
            Entity::KekRotation(KekRotationId::random()),
            Entity::TenantDestruction(TenantDestructionId::random()),
            Entity::Principal(PrincipalId::random()),
            Entity::ApiKey {
                id: ApiKeyId::random(),
                owner: PrincipalId::random(),
            },
            Entity::UnknownApiKey(ApiKeyId::random()),
            Entity::Client {
                id: ClientId::random(),
                owner: PrincipalId::random(),
            },
            Entity::UnknownClient(ClientId::random()),
            Entity::Tenant,
            Entity::Credential {
                id: CredentialId::random(),
                owner: PrincipalId::random(),
                provider: "openai".parse().expect("a provider"),
            },
            Entity::UnknownCredential(CredentialId::random()),
        ];
        for kind in [
            PrincipalKind::User,
            PrincipalKind::Service,
            PrincipalKind::Job,
        ] {
            let grants = Role::ALL.map(|role| Grant {
                role,
                scope: Scope::All,
            });
            let principal = Principal {
                id: PrincipalId::random(),
                tenant: TenantName::system(),
                name: "somebody".parse().expect("name"),
                kind,
                owner: String::new(),
                state: PrincipalState::Active,
                scopes: "can.use_users can.manage_users".parse().expect("scopes"),
                identities: Vec::new(),
                grants: grants.into(),
                created_at: Timestamp::default(),
            };
            for entity in keys.iter().chain(&others) {
                let resource = Resource {
                    tenant: TenantName::system(),
                    entity: entity.clone(),
                };
                let question = Question::new(&principal, Action::ALL[0], &resource);
                let all = [question.principal(&words)?, question.resource(&words)?];
                Entities::from_entities(all, Some(&schema)).map_err(Box::new)?;
            }
        }
        Ok(())
    }
}
