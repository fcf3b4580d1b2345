//! Declaring: one transaction that freezes the version, stops its rotation, switches if a successor exists, opens the
//! incident, raises the alert and leaves the audit row (R-EMER-1, R-EMER-2).
//!
//! Rows are read inside the transaction and changed by compare-and-set; when somebody else was faster, they are read
//! again: an emergency does not lose a race. The rotation comes first and the version second, as in a deployment, so the
//! two cannot wait for each other.

use std::sync::Arc;

use serde_json::json;

use super::{ATTEMPTS, Incidents, conflict, promote};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Recorded, not_found},
    keys::KeySnapshot,
    model::{
        AlertId, Incident, IncidentId, IncidentState, Key, KeyId, KeyVersion, Kid, PrincipalId,
        Rotation, RotationState, Timestamp, VersionState, key::VersionEvent,
    },
    store::{Alert, Db, StoreError, Tx},
};

impl Incidents {
    /// Declares a version compromised; None means the ACTIVE one.
    ///
    /// Errors: KEY_NOT_FOUND when the key has no such version, INCIDENT_STATE when it was declared already, VERSION_STATE
    /// when it is destroyed, KEY_COMPROMISED or NO_USABLE_VERSION when none is ACTIVE.
    pub async fn declare(
        &self,
        permit: AdminPermit,
        key: Arc<KeySnapshot>,
        kid: Option<Kid>,
        reason: String,
    ) -> Result<Recorded<Incident>> {
        let key = self.keys.fresh(&key.key.tenant, key.key.id).await?;
        let kid = match kid {
            Some(kid) => kid,
            None => self.active_kid(&key).await?,
        };
        match key.version(&kid).map(|v| v.state()) {
            None => return Err(not_found(permit.permit().resource())),
            Some(VersionState::Compromised) => return Err(declared_already(&self.db, &kid).await),
            Some(_) => {}
        }
        let declaration = Declaration {
            id: IncidentId::random(),
            by: permit.caller().principal.id,
            key: key.key.id,
            kid,
            now: self.clock.now(),
        };
        let kid = declaration.kid.clone();
        let mut mutation = permit.begin_on(key.key.id).await?;
        mutation.on("incident", declaration.id);
        let (incident, details) = match declaration.make(mutation.tx(), &key.key, reason).await {
            Ok(made) => made,
            Err(Frozen::Already) => {
                drop(mutation);
                return Err(declared_already(&self.db, &kid).await);
            }
            Err(Frozen::Failed(error)) => return Err(error),
        };
        self.keys.forget_after(&mut mutation, incident.key_id);
        mutation.record(incident, details).await
    }

    /// The version that is meant when none is named. Whoever repeats a declaration means the version that it was about,
    /// and not the healthy one that has taken its place.
    async fn active_kid(&self, key: &KeySnapshot) -> Result<Kid> {
        let kid = key.active()?.version.kid.clone();
        match self.db.open_incident_with_successor(&kid).await? {
            None => Ok(kid),
            Some(incident) => Err(Error::new(
                Reason::IncidentState,
                format!(
                    "incident {} about version {} is {}, and the ACTIVE version {kid} is its successor; name the kid to \
                     declare that one compromised too",
                    incident.id,
                    incident.kid,
                    incident.state.as_str()
                ),
            )),
        }
    }
}

/// What one declaration is about.
pub(super) struct Declaration {
    pub(super) id: IncidentId,
    pub(super) by: PrincipalId,
    pub(super) key: KeyId,
    pub(super) kid: Kid,
    pub(super) now: Timestamp,
}

/// Why a version was not frozen.
pub(super) enum Frozen {
    /// Somebody else has done it.
    Already,
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Frozen {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Declaration {
    /// All of it, in `tx`, for a version of `key`. Answers the incident, and what its audit row says.
    pub(super) async fn make(
        mut self,
        tx: &mut Tx,
        key: &Key,
        reason: String,
    ) -> Result<(Incident, serde_json::Value), Frozen> {
        let stopped = self.stop_rotation(tx).await?;
        let (version, before) = self.freeze(tx).await?;
        self.now = version.compromised_at.unwrap_or(self.now);
        let mut incident = Incident {
            id: self.id,
            tenant: key.tenant.clone(),
            key_id: key.id,
            key_name: key.name.clone(),
            kid: version.kid.clone(),
            state: IncidentState::Open,
            reason,
            declared_by: self.by,
            declared_at: self.now,
            needs_successor: before.makes(),
            successor_kid: None,
            switched_at: None,
            postmortem: String::new(),
            close_requested_by: None,
            close_requested_at: None,
            closed_by: None,
            closed_at: None,
        };
        if incident.needs_successor
            && let Some(kid) = self.succeed(tx, stopped.as_ref()).await?
        {
            incident = incident.switch(kid, self.now);
        }
        let ended = self.complete_rotation(tx).await?;
        if let Some((rotation, _)) = &stopped
            && incident.successor_kid.as_ref() != Some(&rotation.new_kid)
        {
            self.withdraw(tx, &rotation.new_kid).await?;
        }
        tx.insert_incident(&incident).await?;
        tx.raise_alert(&alert(&incident)).await?;
        let overtaken = stopped
            .as_ref()
            .map(|(rotation, _)| rotation)
            .or(ended.as_ref());
        let details = json!({
            "key_id": incident.key_id.to_string(),
            "key": incident.key_name.as_str(),
            "kid": incident.kid.as_str(),
            "was": before.as_str(),
            "reason": incident.reason,
            "needs_successor": incident.needs_successor,
            "successor_kid": incident.successor_kid.as_ref().map(Kid::as_str),
            "rotation": overtaken.map(|r| json!({ "id": r.id.to_string(), "state": r.state.as_str() })),
        });
        Ok((incident, details))
    }

    /// Cancels the key's open rotation if the version is one of its two. A rotation between two healthy versions goes on.
    /// Answers it with the state it was in.
    async fn stop_rotation(&self, tx: &mut Tx) -> Result<Option<(Rotation, RotationState)>> {
        for _ in 0..ATTEMPTS {
            let open = tx.open_rotation(self.key).await?;
            let Some(rotation) = open.filter(|r| r.old_kid == self.kid || r.new_kid == self.kid)
            else {
                return Ok(None);
            };
            let before = rotation.state;
            let why = format!("overtaken by incident {}", self.id);
            let ended = rotation.cancel(self.by, why, self.now)?;
            if tx.update_rotation(&ended, before).await? {
                return Ok(Some((ended, before)));
            }
        }
        Err(conflict())
    }

    /// Marks the version COMPROMISED, whatever it is by now. Answers it with the state it was in.
    async fn freeze(&self, tx: &mut Tx) -> Result<(KeyVersion, VersionState), Frozen> {
        for _ in 0..ATTEMPTS {
            let mut version = tx.version(&self.kid).await?.ok_or_else(lost)?;
            if version.state == VersionState::Compromised {
                return Err(Frozen::Already);
            }
            let before = version.advance(VersionEvent::Compromise, self.now)?;
            if tx.update_version(&version, before).await? {
                return Ok((version, before));
            }
        }
        Err(conflict().into())
    }

    /// Makes the standby version ACTIVE, else the announced successor of the rotation that was stopped; None when the
    /// key has neither. Verifiers know both already, so there is nothing to wait for.
    async fn succeed(
        &self,
        tx: &mut Tx,
        stopped: Option<&(Rotation, RotationState)>,
    ) -> Result<Option<Kid>> {
        for _ in 0..ATTEMPTS {
            let Some(mut standby) = tx.standby(self.key).await? else {
                break;
            };
            if promote(tx, &mut standby, self.now).await? {
                return Ok(Some(standby.kid));
            }
        }
        let Some((rotation, RotationState::Approved)) = stopped else {
            return Ok(None);
        };
        let mut next = tx.version(&rotation.new_kid).await?.ok_or_else(lost)?;
        if next.state != VersionState::PreActive {
            return Ok(None);
        }
        Ok(promote(tx, &mut next, self.now).await?.then_some(next.kid))
    }

    /// Takes a successor back that nobody will deploy.
    async fn withdraw(&self, tx: &mut Tx, kid: &Kid) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let mut version = tx.version(kid).await?.ok_or_else(lost)?;
            if version.state != VersionState::PreActive {
                return Ok(());
            }
            let before = version.advance(VersionEvent::Withdraw, self.now)?;
            if tx.update_version(&version, before).await? {
                return Ok(());
            }
        }
        Err(conflict())
    }

    /// There is no grace left to wait for: a rotation away from the version is over.
    async fn complete_rotation(&self, tx: &mut Tx) -> Result<Option<Rotation>> {
        let Some(rotation) = tx.deployed_rotation_from(&self.kid).await? else {
            return Ok(None);
        };
        let before = rotation.state;
        let completed = rotation.complete(self.now)?;
        // Somebody else may have completed it meanwhile, which is as good.
        tx.update_rotation(&completed, before).await?;
        Ok(Some(completed))
    }
}

fn alert(incident: &Incident) -> Alert {
    let switched = match (&incident.successor_kid, incident.needs_successor) {
        (Some(kid), _) => format!("The key was switched to version {kid}."),
        (None, true) => "A successor is being generated; until then the key is not usable.".into(),
        (None, false) => "The version was not in use.".into(),
    };
    Alert {
        id: AlertId::random(),
        tenant: incident.tenant.clone(),
        kind: "KEY_COMPROMISED".into(),
        entity: "incident".into(),
        entity_id: incident.id.to_string(),
        text: format!(
            "Version {} of key {} in tenant {} was declared compromised. {switched}",
            incident.kid, incident.key_name, incident.tenant
        ),
        raised_at: incident.declared_at,
        window_key: format!("KEY_COMPROMISED/{}", incident.kid),
    }
}

async fn declared_already(db: &Db, kid: &Kid) -> Error {
    match db.incident_about(kid).await {
        Ok(Some(incident)) => Error::new(
            Reason::IncidentState,
            format!(
                "version {kid} is COMPROMISED already; incident {} about it is {}",
                incident.id,
                incident.state.as_str()
            ),
        ),
        Ok(None) => StoreError::Corrupt(format!("{kid} is COMPROMISED without incident")).into(),
        Err(error) => error.into(),
    }
}

fn lost() -> Error {
    Error::internal("a key lost one of its versions")
}
