//! Changing a principal: who answers for it, what it may, how it is recognised, and whether it is let in.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Directory, change::exists};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Mutation, Recorded, not_found},
    model::{
        Identity, Principal, PrincipalKind, PrincipalState, Role, Scope, Scopes,
        principal::MAX_IDENTITIES, scopes::MAX_SCOPES,
    },
};

/// What UpdatePrincipal is asked for. What is empty stays as it is.
#[derive(Debug, Default)]
pub struct UpdatePrincipal {
    /// New owner.
    pub owner: Option<String>,
    /// Entitlements to add.
    pub add_scopes: Scopes,
    /// Entitlements to take away.
    pub remove_scopes: Scopes,
    /// Identities to add.
    pub add_identities: Vec<Identity>,
    /// Identities to take away.
    pub remove_identities: Vec<Identity>,
}

impl UpdatePrincipal {
    fn changes_scopes(&self) -> bool {
        !self.add_scopes.is_empty() || !self.remove_scopes.is_empty()
    }

    fn changes_identities(&self) -> bool {
        !self.add_identities.is_empty() || !self.remove_identities.is_empty()
    }

    /// Errors: INVALID_FIELD when nothing is to change, or one thing in two ways.
    fn check(&self) -> Result<()> {
        if self.owner.is_none() && !self.changes_scopes() && !self.changes_identities() {
            return Err(invalid("there is nothing to change; give at least one"));
        }
        let scopes = self.add_scopes.intersection(&self.remove_scopes);
        let mut identities = self.add_identities.iter();
        if !scopes.is_empty() || identities.any(|i| self.remove_identities.contains(i)) {
            return Err(invalid(
                "the same scope or identity is to be added and taken away; give it once",
            ));
        }
        Ok(())
    }
}

/// Whether a principal is turned away or let in again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateChange {
    /// Turned away.
    Suspend,
    /// Let in again.
    Resume,
}

impl StateChange {
    const fn state(self) -> PrincipalState {
        match self {
            Self::Suspend => PrincipalState::Suspended,
            Self::Resume => PrincipalState::Active,
        }
    }
}

impl Directory {
    /// Changes owner, entitlements and identities.
    ///
    /// Errors: PRINCIPAL_NOT_FOUND; SEPARATION_OF_DUTIES for one's own entitlements; PERMISSION_DENIED for identities unless
    /// the caller is principal-admin in all tenants; INVALID_FIELD for a job, for nothing to change and for too much of
    /// anything; ALREADY_EXISTS for an identity of somebody else.
    pub async fn update_principal(
        &self,
        permit: AdminPermit,
        principal: Option<Principal>,
        update: UpdatePrincipal,
    ) -> Result<Recorded<Principal>> {
        let found = principal.ok_or_else(|| not_found(permit.permit().resource()))?;
        refuse_job(&found)?;
        update.check()?;
        let caller = &permit.caller().principal;
        if update.changes_scopes() && caller.id == found.id {
            return Err(Error::new(
                Reason::SeparationOfDuties,
                "nobody changes their own scopes; another principal-admin must do it",
            ));
        }
        // As in `create_principal`.
        if update.changes_identities() && !caller.holds(Role::PrincipalAdmin, &Scope::All) {
            return Err(Error::new(
                Reason::PermissionDenied,
                "identities hold for all tenants, so only a principal-admin of all tenants binds them",
            ));
        }
        let mut mutation = permit.begin().await?;
        let before = lock(&mut mutation, &found).await?;
        check_size(&before, &update)?;
        self.apply(&mut mutation, &found, &update).await?;
        let changed = lock(&mut mutation, &found).await?;
        self.forget_after(&mut mutation);
        mutation.record(changed, details(&update)).await
    }

    async fn apply(
        &self,
        mutation: &mut Mutation,
        principal: &Principal,
        update: &UpdatePrincipal,
    ) -> Result<()> {
        let (tx, id) = (mutation.tx(), principal.id);
        if let Some(owner) = &update.owner {
            tx.set_principal_owner(id, owner).await?;
        }
        tx.delete_scopes(id, &update.remove_scopes).await?;
        tx.insert_scopes(id, &update.add_scopes).await?;
        for identity in &update.remove_identities {
            tx.delete_identity(id, identity).await?;
        }
        for identity in &update.add_identities {
            let inserted = tx.insert_identity(id, identity).await;
            inserted.map_err(|e| exists(e, "an identity belongs to somebody already"))?;
        }
        Ok(())
    }

    /// Turns a principal away, or lets it in again.
    ///
    /// Errors: PRINCIPAL_NOT_FOUND; SEPARATION_OF_DUTIES for oneself; INVALID_FIELD for a job, and where nothing would
    /// change.
    pub async fn change_state(
        &self,
        permit: AdminPermit,
        principal: Option<Principal>,
        change: StateChange,
        reason: String,
    ) -> Result<Recorded<Principal>> {
        let found = principal.ok_or_else(|| not_found(permit.permit().resource()))?;
        refuse_job(&found)?;
        if permit.caller().principal.id == found.id {
            return Err(Error::new(
                Reason::SeparationOfDuties,
                "nobody suspends or resumes themselves; another principal-admin must do it",
            ));
        }
        let mut mutation = permit.begin().await?;
        let state = change.state();
        if !mutation.tx().set_principal_state(found.id, state).await? {
            return Err(invalid(match change {
                StateChange::Suspend => "the principal is suspended already",
                StateChange::Resume => "the principal is not suspended",
            }));
        }
        let changed = lock(&mut mutation, &found).await?;
        self.forget_after(&mut mutation);
        let details = json!({ "state": state.as_str(), "reason": reason });
        mutation.record(changed, details).await
    }
}

/// The principal as it is now, and nobody else changes it.
async fn lock(mutation: &mut Mutation, principal: &Principal) -> Result<Principal> {
    let found = mutation.tx().lock_principal(principal.id).await?;
    found.ok_or_else(|| Error::internal("a principal is gone, and nothing deletes one"))
}

pub(super) fn refuse_job(principal: &Principal) -> Result<()> {
    match principal.kind {
        PrincipalKind::Job => Err(invalid(
            "the principal is a part of the daemon, which nobody changes or suspends",
        )),
        PrincipalKind::User | PrincipalKind::Service => Ok(()),
    }
}

/// Errors: INVALID_FIELD when the principal would have too much of anything.
fn check_size(principal: &Principal, update: &UpdatePrincipal) -> Result<()> {
    let kept = principal.identities.iter();
    let kept = kept.filter(|i| !update.remove_identities.contains(i));
    let identities: BTreeSet<_> = kept.chain(&update.add_identities).collect();
    if identities.len() > MAX_IDENTITIES {
        return Err(invalid("a principal has at most 8 identities"));
    }
    let kept = principal.scopes.difference(&update.remove_scopes);
    if kept.union(&update.add_scopes).iter().count() > MAX_SCOPES {
        return Err(invalid("a principal has at most 64 scopes"));
    }
    Ok(())
}

/// What was asked to change, and nothing else.
fn details(update: &UpdatePrincipal) -> Value {
    let texts =
        |identities: &[Identity]| -> Value { identities.iter().map(Identity::as_str).collect() };
    let mut details = json!({});
    if let Some(owner) = &update.owner {
        details["owner"] = owner.as_str().into();
    }
    for (name, scopes) in [
        ("add_scopes", &update.add_scopes),
        ("remove_scopes", &update.remove_scopes),
    ] {
        if !scopes.is_empty() {
            details[name] = scopes.to_string().into();
        }
    }
    for (name, identities) in [
        ("add_identities", &update.add_identities),
        ("remove_identities", &update.remove_identities),
    ] {
        if !identities.is_empty() {
            details[name] = texts(identities);
        }
    }
    details
}

fn invalid(message: &'static str) -> Error {
    Error::new(Reason::InvalidField, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_changes_something_and_nothing_in_two_ways() {
        let scopes = |text: &str| -> Scopes { text.parse().expect("scopes") };
        let identity = |text: &str| -> Identity { text.parse().expect("an identity") };
        assert!(UpdatePrincipal::default().check().is_err());
        let both = UpdatePrincipal {
            add_scopes: scopes("a b"),
            remove_scopes: scopes("b c"),
            ..Default::default()
        };
        assert!(both.check().is_err());
        let both = UpdatePrincipal {
            add_identities: vec![identity("cn:one")],
            remove_identities: vec![identity("cn:one")],
            ..Default::default()
        };
        assert!(both.check().is_err());
        let fine = UpdatePrincipal {
            owner: Some("team".to_owned()),
            add_scopes: scopes("a"),
            remove_scopes: scopes("c"),
            ..Default::default()
        };
        assert!(fine.check().is_ok());
        assert_eq!(
            details(&fine),
            json!({ "owner": "team", "add_scopes": "a", "remove_scopes": "c" })
        );
    }
}
