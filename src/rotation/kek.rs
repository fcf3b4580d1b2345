//! Rotating the key-encryption key: requested with a KEK that exists and was proved, approved over the digest of the
//! plan, deployed; then every data key is rewrapped, and the old KEK is RETIRED when none needs it.
//!
//! Who may take which step is decided by `model::KekRotation` (separation of duties) after the gate (roles). A deployment
//! is one transaction: the new KEK ACTIVE, the old one DEACTIVATED. It goes forward only: back is a rotation to a third
//! KEK. A replica that has not heard of it may wrap under the old KEK for a moment; the job finds what it wrapped. One of a
//! release that knows nothing of this must not live then, or it would write old wrapped forms beside the new KEK.
//!
//! What is proved: each data key that was moved unwrapped under the new KEK, to what it was, before it was recorded. When
//! none is left, and before the old KEK is RETIRED, the job unwraps every data key whose row names the new KEK once more,
//! as the row is by then; only those that were added while it went through them are not among them. So a COMPLETED
//! rotation whose old KEK is RETIRED has left nothing behind. One that a person has ended for the sake of data keys that
//! do not unwrap leaves the old KEK DEACTIVATED, and promises nothing.
//!
//! The daemon never destroys a KEK: an operator may, once it is RETIRED.

mod rewrap;

use std::sync::Arc;

use serde_json::{Value, json};

use super::RotationConfig;
use crate::{
    clock::Clock,
    error::{Error, Reason, Result},
    gate::{AdminPermit, Mutation, Permit, Recorded, not_found},
    keys::Keys,
    model::{
        AlertId, Entity, KekRotation, KekRotationId, KekRow, KekState, Resource, RotationState,
        TenantName, Timestamp,
        kek::{KekPlan, Progress},
        rotation::ApprovalsNeeded,
    },
    store::{Alert, Db, ListedKek, StoreError, Term, Tx},
};

/// Most approvals that a rotation can need.
const MAX_APPROVALS: u32 = 8;

/// What RotateKek is asked for.
#[derive(Debug)]
pub struct RotateKek {
    /// Backend that holds the new KEK.
    pub backend: String,
    /// RFC 7512 URI or ARN of the new KEK.
    pub uri: String,
    /// Why.
    pub justification: String,
    /// Approvals that it needs; 0 means 1.
    pub approvals_needed: u32,
}

/// Rotations of the KEK.
pub struct KekRotations {
    db: Db,
    keys: Arc<Keys>,
    clock: Clock,
    config: RotationConfig,
}

impl KekRotations {
    /// Rotations over these parts.
    pub const fn new(db: Db, keys: Arc<Keys>, clock: Clock, config: RotationConfig) -> Self {
        Self {
            db,
            keys,
            clock,
            config,
        }
    }

    /// The rotation, and the resource that the gate decides about.
    pub async fn find(&self, id: KekRotationId) -> Result<(Resource, Option<KekRotation>)> {
        let found = self.db.kek_rotation(id).await?;
        let entity = match found {
            Some(_) => Entity::KekRotation(id),
            None => Entity::UnknownKekRotation(id),
        };
        Ok((platform(entity), found))
    }

    /// Every KEK, newest first, with the number of data keys under it.
    pub async fn keks(&self, _permit: &Permit) -> Result<Vec<ListedKek>> {
        let counts = self.db.data_keys_by_kek().await?;
        let keks = self.db.keks().await?.into_iter().map(|kek| {
            let mine = counts.iter().find(|(of, _)| *of == kek.reference);
            let data_keys = mine.map_or(0, |(_, count)| *count);
            ListedKek { kek, data_keys }
        });
        Ok(keks.collect())
    }

    /// Up to `limit` rotations before `before`, newest first.
    pub async fn list(
        &self,
        _permit: &Permit,
        before: &str,
        limit: i64,
    ) -> Result<Vec<KekRotation>> {
        Ok(self.db.kek_rotations(before, limit).await?)
    }

    /// The rotation that has not ended.
    pub async fn unfinished(&self) -> Result<Option<KekRotation>> {
        Ok(self.db.unfinished_kek_rotation().await?)
    }

    /// Opens the rotation to a KEK that exists, once it has wrapped and unwrapped.
    ///
    /// Errors: INVALID_FIELD, KEY_NOT_ADOPTABLE for what is no KEK, the present KEK or one that was retired;
    /// ROTATION_OPEN, and the backend's.
    pub async fn request(
        &self,
        permit: AdminPermit,
        request: RotateKek,
    ) -> Result<Recorded<KekRotation>> {
        let approvals_needed = approvals(request.approvals_needed)?;
        self.refuse_open().await?;
        let proven = self
            .keys
            .keks()
            .prove(&request.backend, &request.uri)
            .await?;
        let now = self.clock.now();
        let new = proven.row(KekState::PreActive, now);
        let rows = self.db.keks().await?;
        let old = active(&rows)?;
        let known = rows.iter().find(|row| row.reference == new.reference);
        expect_new(known, &new)?;
        if self.keys.keks().is_copy(&proven.kek, old).await? {
            return Err(Error::new(
                Reason::KeyNotAdoptable,
                "this is the present key-encryption key under another name; create a new one",
            ));
        }
        let id = KekRotationId::random();
        let plan = KekPlan {
            rotation: id,
            old_kek: &old.reference,
            old_backend: &old.backend,
            new_kek: &new.reference,
            new_backend: &new.backend,
            approvals_needed,
        };
        let rotation = KekRotation {
            id,
            state: RotationState::Requested,
            old_kek: old.reference.clone(),
            new_kek: new.reference.clone(),
            new_backend: new.backend.clone(),
            justification: request.justification,
            plan: plan.canonical(),
            requester: permit.caller().principal.id,
            approvals: Vec::new(),
            approvals_needed,
            deployer: None,
            requested_at: now,
            approved_at: None,
            deployed_at: None,
            expires_at: now.plus(self.config.request_ttl()),
            ended_at: None,
            ended_by: None,
            end_reason: String::new(),
            progress: Progress::default(),
        };
        let mut mutation = permit.begin().await?;
        mutation.on("kek_rotation", id);
        insert(mutation.tx(), &rotation, &new, known.is_some()).await?;
        record(mutation, rotation).await
    }

    /// Approves the plan with this digest.
    ///
    /// Errors: KEK_ROTATION_NOT_FOUND, ROTATION_STATE, ROTATION_EXPIRED, SEPARATION_OF_DUTIES, PLAN_CHANGED, CONFLICT,
    /// CLOCK_BACKWARDS.
    pub async fn approve(
        &self,
        permit: AdminPermit,
        rotation: Option<KekRotation>,
        digest: &str,
    ) -> Result<Recorded<KekRotation>> {
        let rotation = found(rotation, permit.permit())?;
        let approver = permit.caller().principal.id;
        let approved = rotation.approve(approver, digest, self.clock.now())?;
        let mut mutation = permit.begin().await?;
        let tx = mutation.tx();
        if let Some(approval) = approved.approvals.last() {
            let inserted = tx.insert_kek_approval(approved.id, approval).await;
            inserted.map_err(|e| conflict(Some(e)))?;
        }
        moved(tx, &approved, RotationState::Requested).await?;
        // The row is ours now. Two approvers at the same time must not each believe that one more is needed.
        if tx.count_kek_approvals(approved.id).await? != approved.approvals.len() as i64 {
            return Err(conflict(None));
        }
        record(mutation, approved).await
    }

    /// Makes the new KEK the one that wraps. It is proved again before: days may have passed since the request.
    ///
    /// Errors: KEK_ROTATION_NOT_FOUND, ROTATION_STATE also while a replica of an earlier release lives, ROTATION_EXPIRED,
    /// SEPARATION_OF_DUTIES, KEY_NOT_ADOPTABLE when the new KEK is not what was proved, CONFLICT, CLOCK_BACKWARDS, and
    /// the backend's.
    pub async fn deploy(
        &self,
        permit: AdminPermit,
        rotation: Option<KekRotation>,
    ) -> Result<Recorded<KekRotation>> {
        let rotation = found(rotation, permit.permit())?;
        let mut deployed = rotation.deploy(permit.caller().principal.id, self.clock.now())?;
        let rows = self.db.keks().await?;
        let new = rows.iter().find(|row| row.reference == deployed.new_kek);
        let new = new.ok_or_else(|| conflict(None))?;
        self.keys.keks().expect_unchanged(new).await?;
        let now = deployed.last_step();
        let mut mutation = permit.begin().await?;
        let tx = mutation.tx();
        refuse_older_replica(tx).await?;
        let (old, next) = (deployed.old_kek.clone(), deployed.new_kek.clone());
        // The old one first: the database allows one ACTIVE KEK at every moment. From here on nobody adds a data key
        // under it before this transaction ends, so the count is exact.
        step(tx.move_kek(&old, KekState::Active, KekState::Deactivated, now)).await?;
        step(tx.move_kek(&next, KekState::PreActive, KekState::Active, now)).await?;
        deployed.progress.total = tx.count_data_keys_under(&old).await?;
        deployed.progress.remaining = deployed.progress.total;
        moved(tx, &deployed, RotationState::Approved).await?;
        let (keks, backend) = (Arc::clone(self.keys.keks()), new.backend.clone());
        mutation.then(move || keks.activate(&next, &backend));
        record(mutation, deployed).await
    }

    /// Turns an open rotation down.
    ///
    /// Errors: KEK_ROTATION_NOT_FOUND, ROTATION_STATE, SEPARATION_OF_DUTIES for the requester, CONFLICT.
    pub async fn reject(
        &self,
        permit: AdminPermit,
        rotation: Option<KekRotation>,
        reason: String,
    ) -> Result<Recorded<KekRotation>> {
        let open = found(rotation, permit.permit())?;
        let (was, by) = (open.state, permit.caller().principal.id);
        let rejected = open.reject(by, reason, self.clock.now())?;
        withdraw(permit.begin().await?, was, rejected).await
    }

    /// Takes an open rotation back, or ends a deployed one that only data keys are left of that do not unwrap.
    ///
    /// Errors: KEK_ROTATION_NOT_FOUND, ROTATION_STATE, CONFLICT; for a deployed one the backend's.
    pub async fn cancel(
        &self,
        permit: AdminPermit,
        rotation: Option<KekRotation>,
        reason: String,
    ) -> Result<Recorded<KekRotation>> {
        let open = found(rotation, permit.permit())?;
        if open.state == RotationState::Deployed {
            return self.give_up(permit, open, reason).await;
        }
        let (was, by) = (open.state, permit.caller().principal.id);
        let cancelled = open.cancel(by, reason, self.clock.now())?;
        withdraw(permit.begin().await?, was, cancelled).await
    }

    /// Ends an open rotation whose time is over. Errors: ROTATION_STATE, CONFLICT, LEASE_LOST.
    pub async fn expire(
        &self,
        permit: AdminPermit,
        term: Term,
        rotation: KekRotation,
    ) -> Result<Recorded<KekRotation>> {
        let was = rotation.state;
        let expired = rotation.expire(self.clock.now())?;
        withdraw(permit.begin_in(&term).await?, was, expired).await
    }

    /// Ends a deployed rotation whose data keys the job has proved: none needs the old KEK, which is RETIRED. Counted while
    /// its row is held, so that nobody adds one meanwhile.
    ///
    /// Errors: ROTATION_STATE while data keys are left, CONFLICT, LEASE_LOST.
    pub async fn complete(
        &self,
        permit: AdminPermit,
        term: Term,
        rotation: KekRotation,
    ) -> Result<Recorded<KekRotation>> {
        let mut completed = rotation.complete(self.clock.now())?;
        let mut mutation = permit.begin_in(&term).await?;
        let (tx, old) = (mutation.tx(), completed.old_kek.clone());
        let now = completed.last_step();
        step(tx.move_kek(&old, KekState::Deactivated, KekState::Retired, now)).await?;
        let left = tx.count_data_keys_under(&old).await?;
        if left > 0 {
            return Err(Error::new(
                Reason::RotationState,
                format!("{left} data keys are still under the old KEK"),
            ));
        }
        retire_unused(tx, now).await?;
        step(tx.set_undecryptable(completed.id, 0)).await?;
        moved(tx, &completed, RotationState::Deployed).await?;
        completed.progress.remaining = 0;
        completed.progress.failed = 0;
        // Pictures of keys that still show the old wrapped form must not outlive the old KEK.
        self.keys.forget_all_after(&mut mutation);
        record(mutation, completed).await
    }

    async fn refuse_open(&self) -> Result<()> {
        match self.db.unfinished_kek_rotation().await? {
            None => Ok(()),
            Some(open) => Err(Error::new(
                Reason::RotationOpen,
                format!(
                    "rotation {} of the key-encryption key is {}; it must end first",
                    open.id,
                    open.state.as_str()
                ),
            )),
        }
    }
}

impl KekRotations {
    /// Tells people that a KEK is not what it was or not there, once per KEK and hour.
    pub async fn alert_lost(&self, kek: &KekRow, why: &str) -> Result<()> {
        let text = format!(
            "the {} key-encryption key {} in backend {} does not unwrap: {why}; data keys that are not in memory cannot be \
             used, and the daemon would not start again; see \"When the KEK is lost\" in docs/runbook.md",
            kek.state.as_str(),
            kek.reference,
            kek.backend
        );
        self.raise("KEK_LOST", "kek", &kek.reference.0, text, HOUR)
            .await
    }

    /// Tells people that data keys do not unwrap, once a day.
    pub async fn alert_undecryptable(&self, kids: &[crate::model::Kid]) -> Result<()> {
        let Some(first) = kids.first() else {
            return Ok(());
        };
        let named: Vec<_> = kids.iter().take(5).map(|kid| kid.as_str()).collect();
        let text = format!(
            "{} data keys do not unwrap under the key-encryption key that their rows name, {} among them; what is \
             encrypted under them cannot be read; restore those rows of key_versions from a backup",
            kids.len(),
            named.join(", ")
        );
        let (kind, of) = ("DATA_KEY_UNDECRYPTABLE", first.as_str());
        self.raise(kind, "data_keys", of, text, DAY).await
    }

    async fn raise(
        &self,
        kind: &str,
        entity: &str,
        id: &str,
        text: String,
        window: i64,
    ) -> Result<()> {
        let now = self.clock.now();
        let alert = Alert {
            id: AlertId::random(),
            tenant: TenantName::system(),
            kind: kind.to_owned(),
            entity: entity.to_owned(),
            entity_id: id.to_owned(),
            text,
            raised_at: now,
            window_key: format!("{kind}/{id}/{}", now.micros().div_euclid(window)),
        };
        let mut tx = self.db.begin().await?;
        if tx.raise_alert(&alert).await? {
            tracing::error!(kind, entity_id = id, "{}", alert.text);
        }
        Ok(tx.commit().await?)
    }
}

const HOUR: i64 = 60 * 60 * 1_000_000;
const DAY: i64 = 24 * HOUR;

/// The KEK serves the whole installation.
pub fn platform(entity: Entity) -> Resource {
    Resource {
        tenant: TenantName::system(),
        entity,
    }
}

fn approvals(asked: u32) -> Result<ApprovalsNeeded> {
    let needed = asked.max(1);
    ApprovalsNeeded::new(needed)
        .filter(|needed| needed.get() <= MAX_APPROVALS)
        .ok_or_else(|| {
            Error::new(
                Reason::InvalidField,
                format!("approvals_needed must be at most {MAX_APPROVALS}"),
            )
        })
}

/// A release without table `keks` writes the wrapped data key that it has read beside the KEK of the rewrapping.
async fn refuse_older_replica(tx: &mut Tx) -> Result<()> {
    match tx.older_replica().await? {
        None => Ok(()),
        Some(name) => Err(Error::new(
            Reason::RotationState,
            format!(
                "replica {name} is of an earlier release, which would write data keys as they were before the rotation; \
                 upgrade or stop it, wait a minute, and deploy again"
            ),
        )),
    }
}

fn active(rows: &[KekRow]) -> Result<&KekRow> {
    rows.iter()
        .find(|row| row.state == KekState::Active)
        .ok_or_else(|| Error::internal("no KEK is ACTIVE"))
}

/// Errors: KEY_NOT_ADOPTABLE for a KEK that wraps, or has wrapped and was retired. One whose rotation came to nothing
/// may be asked for again.
fn expect_new(known: Option<&KekRow>, new: &KekRow) -> Result<()> {
    let why = match known {
        None => return Ok(()),
        Some(row) if row.state == KekState::Retired && row.activated_at.is_none() => {
            return Ok(());
        }
        Some(row) if row.state == KekState::Active => "it is the present key-encryption key",
        Some(_) => "it was the key-encryption key before and is not taken again; create a new one",
    };
    Err(Error::new(
        Reason::KeyNotAdoptable,
        format!("{}: {why}", new.reference),
    ))
}

async fn insert(tx: &mut Tx, rotation: &KekRotation, new: &KekRow, again: bool) -> Result<()> {
    let open = || {
        Error::new(
            Reason::RotationOpen,
            "somebody else opened a rotation of the key-encryption key just now",
        )
    };
    let inserted = match again {
        true => match tx.readmit_kek(new).await {
            Ok(false) => return Err(open()),
            other => other.map(|_| ()),
        },
        false => tx.insert_kek(new).await,
    };
    let inserted = match inserted {
        Ok(()) => tx.insert_kek_rotation(rotation).await,
        failed => failed,
    };
    inserted.map_err(|error| match error {
        StoreError::Exists(_) => open(),
        other => other.into(),
    })
}

/// KEKs that earlier rotations left for data keys that did not unwrap, and that wrap none any more.
async fn retire_unused(tx: &mut Tx, now: Timestamp) -> Result<()> {
    let keks = tx.keks().await?;
    let left = keks.iter().filter(|k| k.state == KekState::Deactivated);
    for kek in left.map(|kek| &kek.reference) {
        tx.hold_kek(&kek.0).await?;
        if tx.count_data_keys_under(kek).await? == 0 {
            step(tx.move_kek(kek, KekState::Deactivated, KekState::Retired, now)).await?;
        }
    }
    Ok(())
}

/// A rotation that came to nothing takes its KEK with it; data keys were never under it.
async fn withdraw(
    mut mutation: Mutation,
    was: RotationState,
    ended: KekRotation,
) -> Result<Recorded<KekRotation>> {
    let tx = mutation.tx();
    moved(tx, &ended, was).await?;
    let (kek, now) = (ended.new_kek.clone(), ended.last_step());
    step(tx.move_kek(&kek, KekState::PreActive, KekState::Retired, now)).await?;
    record(mutation, ended).await
}

/// Writes the rotation if it is still in state `from`. Errors: CONFLICT.
async fn moved(tx: &mut Tx, rotation: &KekRotation, from: RotationState) -> Result<()> {
    step(tx.update_kek_rotation(rotation, from)).await
}

/// Errors: CONFLICT when a row was not as expected.
async fn step(change: impl Future<Output = crate::store::Result<bool>>) -> Result<()> {
    match change.await? {
        true => Ok(()),
        false => Err(conflict(None)),
    }
}

async fn record(mutation: Mutation, rotation: KekRotation) -> Result<Recorded<KekRotation>> {
    let details = details(&rotation);
    mutation.record(rotation, details).await
}

/// What the audit row says of a rotation.
fn details(rotation: &KekRotation) -> Value {
    json!({
        "state": rotation.state.as_str(),
        "old_kek": rotation.old_kek.0,
        "new_kek": rotation.new_kek.0,
        "new_backend": rotation.new_backend,
        "plan_digest": rotation.plan_digest(),
        "why": rotation.end_reason,
        "rewrapped": rotation.progress.rewrapped,
    })
}

fn found(rotation: Option<KekRotation>, permit: &Permit) -> Result<KekRotation> {
    rotation.ok_or_else(|| not_found(permit.resource()))
}

fn conflict(error: Option<StoreError>) -> Error {
    match error {
        Some(StoreError::Exists(_)) | None => Error::new(
            Reason::Conflict,
            "somebody else changed this rotation; read it again and retry",
        ),
        Some(other) => other.into(),
    }
}
