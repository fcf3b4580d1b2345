//! Carrying a destruction out, once it is due.
//!
//! For a key pair: the intent is recorded, the device destroys it, one transaction records that it is gone. A crash
//! between any two leaves a pending intent, which the next run finds and finishes. A data key is one transaction.

use std::sync::Arc;

use serde_json::json;

use super::{Destructions, call_off, conflict, needs::Need, version};
use crate::{
    error::Result,
    fault,
    gate::{AdminPermit, Recorded},
    keys::Gone,
    model::{
        AlertId, DestructionState, Entity, IntentId, KeyDestruction, KeyVersion, Resource,
        key::{Material, VersionEvent},
    },
    store::{Alert, Term},
};

/// A destruction whose time has come, and what is to be done about it.
pub struct Due {
    destruction: KeyDestruction,
    step: Step,
}

enum Step {
    /// Something needs the version again.
    CallOff(Need),
    /// The material is gone, or is one row.
    Record {
        version: Box<KeyVersion>,
        begun: Option<(IntentId, Gone)>,
    },
}

impl Due {
    /// What the gate decides about.
    pub fn resource(&self) -> Resource {
        Resource {
            tenant: self.destruction.tenant.clone(),
            entity: Entity::Destruction(self.destruction.id),
        }
    }
}

impl Destructions {
    /// Up to `limit` destructions whose waiting period is over.
    pub async fn due(&self, limit: i64) -> Result<Vec<KeyDestruction>> {
        let now = self.db.now().await?;
        Ok(self.db.due_destructions(now, limit).await?)
    }

    /// Everything slow about one that is due: looks whether the version is needed again and, if not, has the device
    /// destroy it. `conclude` records what came of it. None when it is not SCHEDULED any more.
    ///
    /// Errors: LEASE_LOST, and the backend's; the intent stays and a later run goes on from there.
    pub async fn prepare(&self, due: KeyDestruction, term: &Term) -> Result<Option<Due>> {
        // What this replica has only in memory counts too.
        self.keys.flush_uses().await?;
        let key = self.fresh(&due.tenant, due.key_id).await?;
        let version = version(&key, &due.kid)?.clone();
        let Material::KeyPair {
            backend, reference, ..
        } = &version.material
        else {
            let step = match self.need_since_approval(&due, &version).await? {
                Some(need) => Step::CallOff(need),
                None => Step::Record {
                    version: Box::new(version),
                    begun: None,
                },
            };
            return Ok(Some(Due {
                destruction: due,
                step,
            }));
        };
        let mut tx = self.db.begin().await?;
        let is_begun = tx.begun_destroy(&due.kid).await?.is_some();
        drop(tx);
        // Once the device may have been told, there is no way back.
        if !is_begun && let Some(need) = self.need_since_approval(&due, &version).await? {
            return Ok(Some(Due {
                destruction: due,
                step: Step::CallOff(need),
            }));
        }
        let mut tx = self.db.begin().await?;
        tx.hold(term).await?;
        let begun = tx
            .begin_destroy(due.id, &due.kid, backend, &due.tenant)
            .await?;
        let Some(intent) = begun else { return Ok(None) };
        tx.commit().await?;
        fault::point("destroy.intended");
        let gone = self.keys.destroy_pair(&key, backend, reference).await?;
        fault::point("destroy.destroyed");
        Ok(Some(Due {
            destruction: due,
            step: Step::Record {
                version: Box::new(version),
                begun: Some((intent, gone)),
            },
        }))
    }

    /// Records that the material is gone, or that the destruction was called off because something needs it.
    ///
    /// Errors: CONFLICT when somebody else was first; a later run looks again.
    pub async fn conclude(
        self: Arc<Self>,
        permit: AdminPermit,
        due: Due,
        term: Term,
    ) -> Result<Recorded<KeyDestruction>> {
        match due.step {
            Step::CallOff(need) => self.give_up(permit, due.destruction, need, &term).await,
            Step::Record { version, begun } => {
                self.complete(permit, due.destruction, *version, begun, &term)
                    .await
            }
        }
    }

    async fn need_since_approval(
        &self,
        due: &KeyDestruction,
        version: &KeyVersion,
    ) -> Result<Option<Need>> {
        self.need(version, due.approved_at.unwrap_or(due.requested_at))
            .await
    }

    async fn give_up(
        &self,
        permit: AdminPermit,
        destruction: KeyDestruction,
        need: Need,
        term: &Term,
    ) -> Result<Recorded<KeyDestruction>> {
        let now = self.db.now().await?;
        let by = permit.caller().principal.id;
        let key = destruction.key_id;
        let cancelled = destruction.cancel(by, need.to_string(), now)?;
        let mut mutation = permit.begin_on_in(key, term).await?;
        call_off(&mut mutation, &cancelled, DestructionState::Scheduled).await?;
        let alert = Alert {
            id: AlertId::random(),
            tenant: cancelled.tenant.clone(),
            kind: "DESTRUCTION_CANCELLED".into(),
            entity: "destruction".into(),
            entity_id: cancelled.id.to_string(),
            text: format!(
                "version {} of key {} was not destroyed: {need}",
                cancelled.kid, cancelled.key_name
            ),
            raised_at: now,
            window_key: format!("DESTRUCTION_CANCELLED/{}", cancelled.id),
        };
        mutation.tx().raise_alert(&alert).await?;
        self.record(mutation, cancelled).await
    }

    async fn complete(
        &self,
        permit: AdminPermit,
        destruction: KeyDestruction,
        mut version: KeyVersion,
        begun: Option<(IntentId, Gone)>,
        term: &Term,
    ) -> Result<Recorded<KeyDestruction>> {
        let now = self.clock.now();
        let key = destruction.key_id;
        let destroyed = destruction.complete(self.db.now().await?)?;
        let before = version.advance(VersionEvent::Destroy, now)?;
        let mut mutation = permit.begin_on_in(key, term).await?;
        let tx = mutation.tx();
        let from = DestructionState::Scheduled;
        let moved = tx.update_destruction(&destroyed, from).await?
            && tx.update_version(&version, before).await?;
        if !moved {
            return Err(conflict());
        }
        if let Some((intent, gone)) = &begun {
            tx.settle_destroy(*intent, &gone.fate()).await?;
        }
        let gone = begun.map(|(_, gone)| gone);
        let details = json!({
            "key_id": destroyed.key_id.to_string(),
            "key": destroyed.key_name.as_str(),
            "kid": destroyed.kid.as_str(),
            "state": destroyed.state.as_str(),
            "was_gone": gone.as_ref().is_some_and(Gone::was_gone),
            "fate": gone.as_ref().map(Gone::fate),
        });
        self.keys.forget_after(&mut mutation, destroyed.key_id);
        self.keys
            .forget_data_key_after(&mut mutation, &destroyed.kid);
        mutation.record(destroyed, details).await
    }
}
