//! Decisions already made, bounded.
//!
//! A decision is a function of the policies and of the key here, which holds the roles and scopes it was made with. So a
//! request that still carries a principal from before a revocation cannot leave its answer to those after.

use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::{Equivalent, sync};

use super::{Decision, entities::Question};
use crate::model::{Action, Entity, PrincipalId, PrincipalKind, Resource, Scopes};

/// Decisions that are kept; about 200 bytes each.
const CAPACITY: usize = 16_384;

pub(super) struct Cache {
    /// Raised by `forget`; a decision counts only in the generation in which it was begun.
    generation: AtomicU64,
    decisions: sync::Cache<Key, (u64, Decision)>,
}

/// The parts of a question that its answer depends on. Name and home tenant of a principal never change.
#[derive(Hash, PartialEq, Eq)]
struct Key {
    principal: PrincipalId,
    kind: PrincipalKind,
    roles: u16,
    /// Those that count: none elsewhere than at home.
    scopes: Option<Scopes>,
    action: Action,
    resource: Resource,
}

/// A key that borrows, to look one up without building one. Hashes as `Key` does: same fields, same order.
#[derive(Hash)]
struct Lookup<'a> {
    principal: PrincipalId,
    kind: PrincipalKind,
    roles: u16,
    scopes: Option<&'a Scopes>,
    action: Action,
    resource: &'a Resource,
}

impl Equivalent<Key> for Lookup<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.principal == key.principal
            && self.kind == key.kind
            && self.roles == key.roles
            && self.scopes == key.scopes.as_ref()
            && self.action == key.action
            && *self.resource == key.resource
    }
}

impl Cache {
    pub(super) fn new() -> Self {
        Self {
            generation: AtomicU64::new(0),
            decisions: sync::Cache::new(CAPACITY),
        }
    }

    pub(super) fn decision(
        &self,
        question: &Question<'_>,
        decide: impl FnOnce() -> Decision,
    ) -> Decision {
        // Names that do not exist are the caller's to invent, and a credential that is not there yet has another id each time;
        // they must not push out the others.
        let is_new = matches!(question.action, Action::PutCredential);
        if is_new
            || matches!(
                question.resource.entity,
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
            )
        {
            return decide();
        }
        let generation = self.generation.load(Ordering::Acquire);
        let lookup = Lookup {
            principal: question.principal.id,
            kind: question.principal.kind,
            roles: question.role_bits(),
            scopes: question.scopes(),
            action: question.action,
            resource: question.resource,
        };
        match self.decisions.get(&lookup) {
            Some((made_in, decision)) if made_in == generation => decision,
            Some(_) | None => {
                let decision = decide();
                let key = Key {
                    principal: lookup.principal,
                    kind: lookup.kind,
                    roles: lookup.roles,
                    scopes: lookup.scopes.cloned(),
                    action: lookup.action,
                    resource: lookup.resource.clone(),
                };
                self.decisions.insert(key, (generation, decision));
                decision
            }
        }
    }

    pub(super) fn forget(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.decisions.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.decisions.len()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::model::{Principal, PrincipalState, TenantName, Timestamp};

    fn with_question(test: impl FnOnce(&Question<'_>)) {
        let principal = Principal {
            id: PrincipalId::random(),
            tenant: TenantName::system(),
            name: "somebody".parse().expect("name"),
            kind: PrincipalKind::User,
            owner: String::new(),
            state: PrincipalState::Active,
            scopes: Scopes::default(),
            identities: Vec::new(),
            grants: Vec::new(),
            created_at: Timestamp::default(),
        };
        let resource = Resource::tenant(TenantName::system());
        test(&Question::new(&principal, Action::ALL[0], &resource));
    }

    // R-ACL-1: the change comes between the evaluation and the insertion of what it made stale.
    #[test]
    fn a_decision_begun_before_a_change_is_not_kept_after_it() {
        with_question(|question| {
            let cache = Cache::new();
            let decision = cache.decision(question, || {
                cache.forget();
                Decision::Allow
            });
            assert_eq!(decision, Decision::Allow);
            assert_eq!(cache.decision(question, || Decision::Deny), Decision::Deny);
        });
    }

    #[test]
    fn a_decision_is_made_once() {
        with_question(|question| {
            let cache = Cache::new();
            let made = Cell::new(0);
            for _ in 0..3 {
                cache.decision(question, || {
                    made.set(made.get() + 1);
                    Decision::Allow
                });
            }
            assert_eq!(made.get(), 1);
        });
    }

    // A credential that is put for the first time has a new id each time.
    #[test]
    fn what_is_asked_once_pushes_nothing_out() {
        with_question(|question| {
            let cache = Cache::new();
            for resource in [
                Entity::UnknownCredential(crate::model::CredentialId::random()),
                question.resource.entity.clone(),
            ] {
                let resource = Resource {
                    tenant: TenantName::system(),
                    entity: resource,
                };
                let put = Question::new(question.principal, Action::PutCredential, &resource);
                cache.decision(&put, || Decision::Allow);
            }
            assert_eq!(cache.len(), 0);
        });
    }

    // R-OAUTH-2: a credential with fewer scopes than another of the same principal gets a decision of its own.
    #[test]
    fn a_decision_holds_for_the_scopes_it_was_made_with() {
        with_question(|question| {
            let cache = Cache::new();
            let with = |scopes: &str| Principal {
                scopes: scopes.parse().expect("scopes"),
                ..question.principal.clone()
            };
            let (rich, poor) = (with("can.use_users"), with(""));
            let rich = Question::new(&rich, question.action, question.resource);
            let poor = Question::new(&poor, question.action, question.resource);
            assert_eq!(cache.decision(&rich, || Decision::Allow), Decision::Allow);
            assert_eq!(cache.decision(&poor, || Decision::Deny), Decision::Deny);
            assert_eq!(cache.decision(&rich, || Decision::Deny), Decision::Allow);
        });
    }

    #[test]
    fn the_cache_is_bounded() {
        with_question(|question| {
            let cache = Cache::new();
            for _ in 0..2 * CAPACITY {
                let principal = Principal {
                    id: PrincipalId::random(),
                    ..question.principal.clone()
                };
                let other = Question::new(&principal, question.action, question.resource);
                cache.decision(&other, || Decision::Allow);
            }
            assert!(cache.len() > CAPACITY / 2 && cache.len() <= CAPACITY);
        });
    }
}
