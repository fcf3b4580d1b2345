//! What the gate hands out. No `Clone`, no public constructor.

use std::sync::Arc;

use futures_util::FutureExt;
use serde_json::Value;

use super::{
    crowd::{Changes, Turn},
    release::Conditions,
};
use crate::{
    audit::{Receipt, Record, admin},
    error::{Error, Reason, Result},
    model::{Action, Caller, Entity, KeyId, Resource, TenantDestructionId, TenantName},
    store::{StoreError, Term, Tx},
};

/// Proof that one action on one resource was permitted.
pub struct Permit {
    action: Action,
    resource: Resource,
    conditions: Conditions,
}

impl Permit {
    pub(super) const fn new(action: Action, resource: Resource, conditions: Conditions) -> Self {
        Self {
            action,
            resource,
            conditions,
        }
    }

    /// Lets the answer leave only if `condition` holds then too. It is asked twice: before the call is recorded, so that
    /// the record is right, and after, because recording takes time.
    pub fn release_if<F, Fut>(&self, condition: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.conditions.add(Arc::new(move || condition().boxed()));
    }

    /// What must hold when an answer leaves, for answers that leave in pieces.
    pub(super) fn conditions(&self) -> Conditions {
        self.conditions.clone()
    }

    /// The permitted resource.
    pub const fn resource(&self) -> &Resource {
        &self.resource
    }

    /// Errors: INTERNAL unless this permit is for `action` on the tenant itself. A guard against our own mistakes.
    pub fn covers_tenant(&self, action: Action, tenant: &TenantName) -> Result<()> {
        let same = self.resource.entity == Entity::Tenant && self.resource.tenant == *tenant;
        (same && self.action == action)
            .then_some(())
            .ok_or_else(|| Error::internal("a permit was used for something else"))
    }

    /// Errors: INTERNAL unless this permit is for `action` on this destruction of a tenant's keys. A guard against our
    /// own mistakes.
    pub fn covers_tenant_destruction(
        &self,
        action: Action,
        destruction: TenantDestructionId,
    ) -> Result<()> {
        let same = self.resource.entity == Entity::TenantDestruction(destruction);
        (same && self.action == action)
            .then_some(())
            .ok_or_else(|| Error::internal("a permit was used for something else"))
    }

    /// Errors: INTERNAL unless this permit is for `action` on this key. A guard against our own mistakes.
    pub fn covers_key(&self, action: Action, key: KeyId) -> Result<()> {
        let same = matches!(&self.resource.entity, Entity::Key { id, .. } if *id == key);
        (same && self.action == action)
            .then_some(())
            .ok_or_else(|| Error::internal("a permit was used for something else"))
    }
}

/// Proof that one administrative action was permitted, and the way to record it.
pub struct AdminPermit {
    permit: Permit,
    caller: Caller,
    changes: Changes,
    record: Record,
}

impl AdminPermit {
    pub(super) const fn new(
        permit: Permit,
        caller: Caller,
        changes: Changes,
        record: Record,
    ) -> Self {
        Self {
            permit,
            caller,
            changes,
            record,
        }
    }

    /// Who was permitted.
    pub const fn caller(&self) -> &Caller {
        &self.caller
    }

    /// What was permitted.
    pub const fn permit(&self) -> &Permit {
        &self.permit
    }

    /// Opens the transaction of the change. Do everything slow (devices, networks) before.
    pub async fn begin(self) -> Result<Mutation> {
        let (tx, turn) = self.changes.begin().await?;
        Ok(Mutation {
            tx,
            _turn: turn,
            record: self.record,
            then: Vec::new(),
        })
    }

    /// As `begin`, for a change of a key's life. Each of them locks the key's row before anything else, so two of one
    /// key come one after the other and cannot wait for each other.
    pub async fn begin_on(self, key: KeyId) -> Result<Mutation> {
        let mut mutation = self.begin().await?;
        mutation.tx.lock_key(key).await?;
        Ok(mutation)
    }

    /// As `begin_on`, for scheduled work.
    pub async fn begin_on_in(self, key: KeyId, term: &Term) -> Result<Mutation> {
        let mut mutation = self.begin_in(term).await?;
        mutation.tx.lock_key(key).await?;
        Ok(mutation)
    }

    /// As `begin`, for scheduled work: the transaction holds the term, so that a replica that lost it cannot commit.
    ///
    /// Errors: LEASE_LOST.
    pub async fn begin_in(self, term: &Term) -> Result<Mutation> {
        let mut mutation = self.begin().await?;
        mutation.tx.hold(term).await?;
        Ok(mutation)
    }
}

/// Done once the change is committed: forgetting what is cached about it.
type Then = Box<dyn FnOnce() + Send>;

/// An open change. Dropped without `record`, nothing happened.
pub struct Mutation {
    tx: Tx,
    _turn: Turn,
    record: Record,
    then: Vec<Then>,
}

impl Mutation {
    /// The transaction, for store calls.
    pub const fn tx(&mut self) -> &mut Tx {
        &mut self.tx
    }

    /// Says which entity the change was about, where it had no id before.
    pub fn on(&mut self, entity: &'static str, id: impl ToString) {
        self.record.entity = entity;
        self.record.entity_id = id.to_string();
    }

    /// Has this done as soon as the change is committed, and not otherwise.
    pub fn then(&mut self, act: impl FnOnce() + Send + 'static) {
        self.then.push(Box::new(act));
    }

    /// Writes the audit row with `details` (a JSON object without secrets). The gate commits both, and nothing else can.
    pub async fn record<T>(mut self, value: T, details: Value) -> Result<Recorded<T>> {
        self.record.data = details.to_string();
        let receipt = admin::append(&mut self.tx, self.record).await?;
        Ok(Recorded {
            tx: self.tx,
            _turn: self._turn,
            then: self.then,
            value,
            receipt,
        })
    }
}

/// A change with its audit row, about to be committed.
pub struct Recorded<T> {
    tx: Tx,
    _turn: Turn,
    then: Vec<Then>,
    pub(super) value: T,
    pub(super) receipt: Receipt,
}

impl<T> Recorded<T> {
    pub(super) const fn tx(&mut self) -> &mut Tx {
        &mut self.tx
    }

    pub(super) async fn commit(self) -> Result<(T, Receipt)> {
        self.tx.commit().await.map_err(|error| match error {
            StoreError::Unavailable(cause) => Error::new(
                Reason::DatabaseUnavailable,
                "the database did not confirm the change; it may or may not have happened: look before you retry",
            )
            .because(cause),
            other => other.into(),
        })?;
        self.then.into_iter().for_each(|act| act());
        Ok((self.value, self.receipt))
    }
}
