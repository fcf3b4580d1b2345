//! Switching after the declaration: for a key that had no successor ready, one is generated and made ACTIVE without soak.
//!
//! The daemon that was asked to declare tries at once; a job tries again as long as the device does not answer. Both may
//! try: one row decides, and what the other one generated is left as a PENDING intent for the reconciler.

use serde_json::json;

use super::{Incidents, conflict, promote, reschedule};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Gate, Recorded},
    keys::KeySnapshot,
    model::{
        Action, Entity, Incident, IncidentId, IntentId, Job, KeyVersion, Kid, Resource, Timestamp,
        VersionState, key::VersionEvent,
    },
    store::{IntentState, StoreError, Term, Tx},
};

/// What becomes the ACTIVE version.
enum Next {
    /// It is already: somebody else has seen to it, and only the incident does not say so.
    There(Kid),
    /// A standby version that was made since the declaration.
    Standby(KeyVersion),
    /// A new one, and the intent that it was generated under.
    New(KeyVersion, Option<IntentId>),
}

impl Incidents {
    /// Switches the key of an incident to a successor, if it needs one and has none. `term`, if given, must still be on
    /// when the switch is committed. Answers the incident as it is then.
    ///
    /// Errors: the backend's, while it does not answer; then nothing has changed. LEASE_LOST.
    pub async fn switch(
        &self,
        gate: &Gate,
        id: IncidentId,
        term: Option<&Term>,
    ) -> Result<Incident> {
        let incident = self.current(id).await?;
        if !incident.needs_successor || incident.successor_kid.is_some() {
            return Ok(incident);
        }
        let resource = Resource {
            tenant: incident.tenant.clone(),
            entity: Entity::Incident(id),
        };
        // Asked before anything is generated: what a device generated stays.
        if !gate.may(&Job::Scheduler.caller(), Action::SwitchKey, &resource) {
            return Err(Error::new(
                Reason::PermissionDenied,
                "the policies deny SwitchKey to the daemon's own jobs",
            ));
        }
        let key = self.keys.fresh(&incident.tenant, incident.key_id).await?;
        let next = self.next(&key).await?;
        let (keys, now, term) = (self.keys.clone(), self.clock.now(), term.cloned());
        let act = async move |permit: AdminPermit| -> Result<Recorded<Incident>> {
            let mut mutation = match &term {
                Some(term) => permit.begin_on_in(incident.key_id, term).await?,
                None => permit.begin_on(incident.key_id).await?,
            };
            let tx = mutation.tx();
            let kid = install(tx, next, now).await?;
            let switched = incident.switch(kid, now);
            if !tx.switch_incident(&switched).await? {
                return Err(conflict());
            }
            let details = json!({
                "key_id": switched.key_id.to_string(),
                "key": switched.key_name.as_str(),
                "kid": switched.kid.as_str(),
                "successor_kid": switched.successor_kid.as_ref().map(Kid::as_str),
            });
            keys.forget_after(&mut mutation, switched.key_id);
            mutation.record(switched, details).await
        };
        let done = gate.work(Job::Scheduler, Action::SwitchKey, resource, act);
        match done.await {
            Ok((switched, _)) => Ok(switched),
            Err(error) => {
                // Somebody else was faster: that is what was wanted.
                let incident = self.current(id).await?;
                match incident.successor_kid {
                    Some(_) => Ok(incident),
                    None => Err(error),
                }
            }
        }
    }

    /// Incidents declared before `before` whose key has no successor yet, oldest first.
    pub async fn without_successor(&self, before: Timestamp) -> Result<Vec<Incident>> {
        Ok(self.db.incidents_without_successor(before).await?)
    }

    async fn next(&self, key: &KeySnapshot) -> Result<Next> {
        if let Ok(active) = key.active() {
            return Ok(Next::There(active.version.kid.clone()));
        }
        let standby = key
            .versions()
            .iter()
            .rev()
            .find(|v| v.version.is_standby && v.state() == VersionState::PreActive);
        if let Some(standby) = standby {
            return Ok(Next::Standby(standby.version.clone()));
        }
        // Asked first: every attempt to generate leaves an intent.
        self.keys.ready(&key.key).await?;
        let number = key.versions().last().map_or(1, |v| v.version.number + 1);
        let generated = self.keys.generate_replacement(key).await?;
        let (kid, material) = (generated.kid, generated.material);
        let version = KeyVersion::pre_active(key.key.id, number, kid, material, self.clock.now());
        Ok(Next::New(version, generated.intent))
    }
}

async fn install(tx: &mut Tx, next: Next, now: Timestamp) -> Result<Kid> {
    match next {
        Next::There(kid) => Ok(kid),
        Next::Standby(mut version) => match promote(tx, &mut version, now).await? {
            true => Ok(version.kid),
            false => Err(conflict()),
        },
        Next::New(mut version, intent) => {
            version.announced_at = Some(now);
            version.advance(VersionEvent::Deploy, now)?;
            tx.insert_version(&version).await.map_err(|e| match e {
                StoreError::Exists(_) => conflict(),
                other => other.into(),
            })?;
            if let Some(intent) = intent {
                tx.settle_intent(intent, IntentState::Done).await?;
            }
            reschedule(tx, version.key_id, now).await?;
            Ok(version.kid)
        }
    }
}
