//! Carrying it out. One transaction begins it, and from then on nothing is created in the tenant. Then what is open on its
//! keys is closed, and key after key goes: the intents are recorded, the devices destroy the pairs, one transaction records
//! that all of it is gone. The last transaction stores the proof.
//!
//! A crash between any two leaves rows that say what is left to do, and pending intents for what a device may have been
//! told. The next run goes on from there.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::{Value, json};

use super::{Erasures, Progress, conflict, found, proof, record, update};
use crate::{
    audit::{ADMIN_STREAM, note},
    error::{Error, Reason, Result},
    fault,
    gate::{AdminPermit, Mutation, Recorded},
    keys::{Gone, KeySnapshot},
    model::{
        AlertId, Entity, IntentId, KeyId, KeyVersion, Kid, Resource, RotationId, TenantDestruction,
        TenantDestructionState, TenantName, Timestamp, VersionState,
        key::{Material, VersionEvent},
    },
    store::{Alert, Term, Tx},
};

/// What is gone of a key, and what was in the way of the rest.
pub struct Shredding {
    key: Arc<KeySnapshot>,
    gone: Vec<(Kid, Option<(IntentId, Gone)>)>,
    failure: Option<Error>,
}

impl Shredding {
    /// Nothing is to be recorded: why, if something was in the way.
    pub fn nothing(&mut self) -> Option<Option<Error>> {
        self.gone.is_empty().then(|| self.failure.take())
    }

    /// Why something is left of the key.
    pub fn failure(&mut self) -> Option<Error> {
        self.failure.take()
    }
}

impl Erasures {
    /// Up to `limit` destructions with ids after `after` that have begun or are to begin, in the order of their ids.
    pub async fn due(&self, after: &str, limit: i64) -> Result<Vec<TenantDestruction>> {
        let now = self.db.now().await?;
        Ok(self.db.due_tenant_destructions(now, after, limit).await?)
    }

    /// Up to `limit` destructions that were asked for or approved too long ago.
    pub async fn stale(&self, limit: i64) -> Result<Vec<TenantDestruction>> {
        let before = self.db.now().await?.minus(self.request_ttl);
        let approved = before.minus(self.wait);
        let stale = self.db.stale_tenant_destructions(before, approved, limit);
        Ok(stale.await?)
    }

    /// Ends one of them, as a rotation that nobody deployed ends. Errors: CONFLICT, LEASE_LOST.
    pub async fn expire(
        self: Arc<Self>,
        permit: AdminPermit,
        destruction: TenantDestruction,
        term: Term,
    ) -> Result<Recorded<Progress>> {
        let (by, from) = (permit.caller().principal.id, destruction.state);
        let why = "it expired: it was asked for, or approved, too long ago";
        let expired = destruction.cancel(by, why.into(), self.db.now().await?)?;
        let progress = self.progress(expired).await?;
        let mut mutation = permit.begin_in(&term).await?;
        update(mutation.tx(), &progress.destruction, from).await?;
        record(mutation, progress).await
    }

    /// What the gate decides about.
    pub fn resource(destruction: &TenantDestruction) -> Resource {
        Resource {
            tenant: destruction.tenant.clone(),
            entity: Entity::TenantDestruction(destruction.id),
        }
    }

    /// The point of no return: from the commit on, nothing is created in the tenant.
    ///
    /// Errors: DESTRUCTION_STATE also while a replica of an earlier release lives, which would go on creating; CONFLICT
    /// when it was called off meanwhile, LEASE_LOST.
    pub async fn begin(
        self: Arc<Self>,
        permit: AdminPermit,
        destruction: TenantDestruction,
        term: Term,
    ) -> Result<Recorded<Progress>> {
        let now = self.db.now().await?;
        self.expect_fresh(&destruction, now)?;
        let begun = destruction.begin(now)?;
        let progress = self.progress(begun).await?;
        let mut mutation = permit.begin_in(&term).await?;
        let tx = mutation.tx();
        if let Some(name) = tx.older_replica().await? {
            return Err(Error::new(
                Reason::DestructionState,
                format!(
                    "replica {name} is of an earlier release, which would create keys in the tenant meanwhile; upgrade or \
                     stop it"
                ),
            ));
        }
        if !tx.begin_tenant_destruction(&progress.destruction).await? {
            return Err(conflict());
        }
        record(mutation, progress).await
    }

    /// Keys of the tenant on which something is open that `close` can call off.
    pub async fn unclosed(&self, tenant: &TenantName) -> Result<Vec<KeyId>> {
        Ok(self.db.unclosed_keys(tenant).await?)
    }

    /// Cancels the open rotation of a key, with its successor, and the open destructions of its versions.
    ///
    /// Errors: CONFLICT, CLOCK_BACKWARDS, LEASE_LOST; a later run looks again.
    pub async fn close(
        self: Arc<Self>,
        permit: AdminPermit,
        key: KeyId,
        term: Term,
    ) -> Result<Recorded<()>> {
        let (by, now) = (permit.caller().principal.id, self.clock.now());
        let mut mutation = permit.begin_on_in(key, &term).await?;
        let tx = mutation.tx();
        let mut closed = Vec::new();
        if let Some(rotation) = tx.open_rotation(key).await? {
            let was = rotation.state;
            let cancelled = rotation.cancel(by, WHY.into(), now)?;
            if !tx.update_rotation(&cancelled, was).await? {
                return Err(conflict());
            }
            withdraw(tx, &cancelled.new_kid, now).await?;
            closed.push(cancelled.id.to_string());
        }
        for open in tx.open_destructions(key).await? {
            // One that a device may have been told of is completed with its version.
            if tx.begun_destroy(&open.kid).await?.is_some() {
                continue;
            }
            let was = open.state;
            let cancelled = open.cancel(by, WHY.into(), now)?;
            if !tx.update_destruction(&cancelled, was).await? {
                return Err(conflict());
            }
            closed.push(cancelled.id.to_string());
        }
        self.keys.forget_after(&mut mutation, key);
        let details = json!({ "key_id": key.to_string(), "closed": closed });
        mutation.record((), details).await
    }

    /// Keys of the tenant with a version that is not destroyed.
    pub async fn remaining(&self, tenant: &TenantName) -> Result<Vec<KeyId>> {
        Ok(self.db.remaining_keys(tenant).await?)
    }

    /// Everything slow about one key: has the devices destroy the pairs of its versions. `conclude` records what is gone.
    /// A backend that fails is left alone for this time; the versions in others go all the same.
    ///
    /// Errors: LEASE_LOST, DESTRUCTION_STATE, DATABASE_UNAVAILABLE.
    pub async fn shred(
        &self,
        destruction: &TenantDestruction,
        key: KeyId,
        term: &Term,
    ) -> Result<Shredding> {
        let key = self.keys.fresh(&destruction.tenant, key).await?;
        let versions = key.versions().iter().map(|v| &v.version);
        let left: Vec<_> = versions
            .filter(|v| v.state != VersionState::Destroyed)
            .cloned()
            .collect();
        let intents = self.intend(destruction, &left, term).await?;
        fault::point("erase.intended");
        let (mut gone, mut failure, mut away) = (Vec::new(), None, BTreeSet::new());
        for (version, intent) in left.iter().zip(intents) {
            let (
                Material::KeyPair {
                    backend, reference, ..
                },
                Some(intent),
            ) = (&version.material, intent)
            else {
                gone.push((version.kid.clone(), None));
                continue;
            };
            if away.contains(backend) {
                continue;
            }
            match self.keys.destroy_pair(&key, backend, reference).await {
                Ok(how) => gone.push((version.kid.clone(), Some((intent, how)))),
                Err(error) => {
                    away.insert(backend.clone());
                    failure = Some(error);
                }
            }
            fault::point("erase.destroyed");
        }
        Ok(Shredding { key, gone, failure })
    }

    /// One intent for each key pair, in one transaction.
    async fn intend(
        &self,
        destruction: &TenantDestruction,
        versions: &[KeyVersion],
        term: &Term,
    ) -> Result<Vec<Option<IntentId>>> {
        let mut intents = Vec::with_capacity(versions.len());
        let mut tx = self.db.begin().await?;
        tx.hold(term).await?;
        for version in versions {
            let Material::KeyPair { backend, .. } = &version.material else {
                intents.push(None);
                continue;
            };
            let (id, kid, tenant) = (destruction.id, &version.kid, &destruction.tenant);
            let intent = tx.begin_shred(id, kid, backend, tenant).await?;
            intents.push(Some(intent.ok_or_else(conflict)?));
        }
        tx.commit().await?;
        Ok(intents)
    }

    /// Records what is gone of a key: the versions are DESTROYED, the wrapped data keys are not in the row any more, and
    /// every replica forgets them.
    ///
    /// Errors: CONFLICT, LEASE_LOST; a later run looks again.
    pub async fn conclude(
        self: Arc<Self>,
        permit: AdminPermit,
        shredding: Shredding,
        term: Term,
    ) -> Result<Recorded<()>> {
        let (by, now) = (permit.caller().principal.id, self.clock.now());
        let key = &shredding.key.key;
        let mut mutation = permit.begin_on_in(key.id, &term).await?;
        let mut versions: Vec<Value> = Vec::new();
        for (kid, pair) in &shredding.gone {
            versions.push(shred(&mut mutation, kid, pair.as_ref(), now).await?);
            self.keys.forget_data_key_after(&mut mutation, kid);
        }
        let tx = mutation.tx();
        for open in tx.open_destructions(key.id).await? {
            if !shredding.gone.iter().any(|(kid, _)| *kid == open.kid) {
                continue;
            }
            let (was, is_due) = (open.state, open.is_due(now));
            let done = match is_due {
                true => open.complete(now)?,
                false => open.cancel(by, WHY.into(), now)?,
            };
            if !tx.update_destruction(&done, was).await? {
                return Err(conflict());
            }
        }
        self.keys.forget_after(&mut mutation, key.id);
        let kids: Vec<_> = shredding.gone.iter().map(|(kid, _)| kid.as_str()).collect();
        let details = json!({
            "key_id": key.id.to_string(),
            "key": key.name.as_str(),
            "kids": kids,
            "versions": versions,
        });
        mutation.record((), details).await
    }

    /// Nothing is left: signs the proof and stores it.
    ///
    /// Errors: CONFLICT while something is left; PROOF_KEY_MISSING, the backend's: everything stays destroyed, and a later run signs.
    pub async fn finish(
        self: Arc<Self>,
        permit: AdminPermit,
        destruction: TenantDestruction,
        term: Term,
    ) -> Result<Recorded<Progress>> {
        let found = found(
            self.db.tenant_destruction(destruction.id).await?,
            permit.permit(),
        )?;
        let mut done = found.complete(self.db.now().await?)?;
        let (key, notary) = self.proof_key().await?;
        let text = self.statement(&done, &notary.issuer).await?;
        let signed = self.keys.sign_proof(permit.permit(), done.id, &key, &text);
        let signed = signed.await?;
        let version = key.version(&signed.kid);
        let public = version
            .and_then(|version| version.version.public_key())
            .ok_or_else(|| Error::internal("the version that signed has no public key"))?;
        done.proof = note::signed(&notary.issuer, &text, public, &signed.signature);
        fault::point("erase.signed");
        let progress = self.progress(done).await?;
        let mut mutation = permit.begin_in(&term).await?;
        let from = TenantDestructionState::Destroying;
        update(mutation.tx(), &progress.destruction, from).await?;
        let d = &progress.destruction;
        let details = json!({
            "tenant": d.tenant.as_str(),
            "state": d.state.as_str(),
            "versions": progress.destroyed,
            "proof_digest": note::text_digest(&text),
            "kid": signed.kid.as_str(),
        });
        mutation.record(progress, details).await
    }

    /// The text of the proof. Errors: CONFLICT when something is left after all.
    async fn statement(&self, done: &TenantDestruction, issuer: &str) -> Result<String> {
        let versions = self.db.named_versions(&done.tenant).await?;
        let destroyed = VersionState::Destroyed.as_str();
        if versions.iter().any(|v| v.state != destroyed) {
            return Err(conflict());
        }
        let head = self.db.audit_head(ADMIN_STREAM).await?;
        let head = head.ok_or_else(|| Error::internal("the admin stream is empty"))?;
        let requester = self.db.principal(done.requester).await?;
        let approver = match done.approver {
            Some(id) => self.db.principal(id).await?,
            None => None,
        };
        let people = [&requester, &approver].map(|p| p.as_ref().map(|p| p.name.as_str()));
        let [Some(requester), Some(approver)] = people else {
            return Err(Error::internal("a destruction without two people"));
        };
        let statement = proof::Statement {
            issuer,
            destruction: done,
            requester,
            approver,
            versions: &versions,
            head: &head,
        };
        statement
            .text()
            .ok_or_else(|| Error::internal("a name in it cannot stand in a proof"))
    }

    /// Tells people, once an hour, that a destruction does not get on.
    pub async fn alert(
        &self,
        destruction: &TenantDestruction,
        error: &Error,
        term: &Term,
    ) -> Result<()> {
        let now = self.clock.now();
        let alert = Alert {
            id: AlertId::random(),
            tenant: destruction.tenant.clone(),
            kind: "TENANT_DESTRUCTION_STUCK".into(),
            entity: "tenant_destruction".into(),
            entity_id: destruction.id.to_string(),
            text: format!(
                "the destruction of the keys of tenant {} does not get on ({}: {}); what can be destroyed is, the rest is \
                 tried again",
                destruction.tenant,
                error.reason().as_str(),
                error.message()
            ),
            raised_at: now,
            window_key: format!(
                "TENANT_DESTRUCTION_STUCK/{}/{}",
                destruction.id,
                now.seconds() / 3600
            ),
        };
        let mut tx = self.db.begin().await?;
        tx.hold(term).await?;
        tx.raise_alert(&alert).await?;
        Ok(tx.commit().await?)
    }
}

/// Why rotations and destructions of single versions end with their tenant.
const WHY: &str = "all keys of the tenant are being destroyed";

/// The successor of a cancelled rotation leaves the JWKS with it.
async fn withdraw(tx: &mut Tx, kid: &Kid, now: Timestamp) -> Result<()> {
    let Some(mut version) = tx.version(kid).await? else {
        return Ok(());
    };
    if version.state != VersionState::PreActive {
        return Ok(());
    }
    let before = version.advance(VersionEvent::Withdraw, now)?;
    match tx.update_version(&version, before).await? {
        true => Ok(()),
        false => Err(conflict()),
    }
}

/// One version, from whatever state it is in now: an incident may have changed it since it was read. What the log says.
async fn shred(
    mutation: &mut Mutation,
    kid: &Kid,
    pair: Option<&(IntentId, Gone)>,
    now: Timestamp,
) -> Result<Value> {
    let tx = mutation.tx();
    let mut version = tx.version(kid).await?.ok_or_else(conflict)?;
    let before = version.advance(VersionEvent::Shred, now)?;
    if !tx.update_version(&version, before).await? {
        return Err(conflict());
    }
    if let Some((intent, gone)) = pair {
        tx.settle_destroy(*intent, &gone.fate()).await?;
    }
    let completed = complete_rotation(tx, kid, now).await?;
    let (backend, reference) = match &version.material {
        Material::KeyPair {
            backend, reference, ..
        } => (Some(backend.as_str()), &reference.0),
        Material::DataKey { kek, .. } | Material::Shredded { kek } => (None, &kek.0),
    };
    Ok(json!({
        "kid": kid.as_str(),
        "was": before.as_str(),
        "backend": backend,
        "reference": reference,
        "was_gone": pair.is_some_and(|(_, gone)| gone.was_gone()),
        "fate": pair.map(|(_, gone)| gone.fate()),
        "completed_rotation": completed.map(|id| id.to_string()),
    }))
}

/// The rotation whose grace window the version was in has nothing more to wait for.
async fn complete_rotation(tx: &mut Tx, kid: &Kid, now: Timestamp) -> Result<Option<RotationId>> {
    let Some(rotation) = tx.deployed_rotation_from(kid).await? else {
        return Ok(None);
    };
    let was = rotation.state;
    let completed = rotation.complete(now)?;
    if !tx.update_rotation(&completed, was).await? {
        return Err(conflict());
    }
    Ok(Some(completed.id))
}
