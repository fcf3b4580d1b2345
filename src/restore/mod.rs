//! R3: a database that was set back. A restore from a backup, or a failover to a copy that lagged, takes away what was
//! written since: freezes, revocations, suspensions. The last checkpoint is outside the database and remembers where the log
//! had been, so a daemon that starts over such a copy can tell, and refuses to serve.
//!
//! Somebody has to stand for the copy: `acknowledge` records who and why, and declares every version compromised again that
//! was so when the checkpoint was written (R-EMER-1), in one transaction. It needs the database and nothing else: no daemon
//! runs then, so it is a command of the operator's, who owns the database anyway.

use std::{fmt, path::Path};

use serde_json::json;

use crate::{
    audit::{
        ACKNOWLEDGE_RESTORE, Checkpoint, CheckpointConfig, Mismatch, Outcome, Receipt, Record,
        admin, checkpoint_file, verify,
    },
    error::Error,
    incidents::declare_again,
    model::{Action, AlertId, Incident, Job, KeyRef, Kid, PublicKey, TenantName, Timestamp},
    store::{Alert, Db, StoreError},
};

/// A history that the database does not have, although a checkpoint says that it had it.
#[derive(Debug)]
pub struct Lost {
    /// The last checkpoint.
    pub checkpoint: Checkpoint,
    /// SHA-256 of its text, in hex.
    pub digest: String,
    /// What it says and the database does not.
    pub mismatches: Vec<Mismatch>,
    /// When the last row of the admin stream was written that the database has.
    pub kept_until: Timestamp,
}

/// Why it could not be told, or not be acknowledged.
#[derive(Debug)]
pub enum RestoreError {
    /// The checkpoints cannot be read.
    File(String),
    /// The database.
    Store(StoreError),
    /// A version cannot be declared compromised again.
    Incident(Error),
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(why) => f.write_str(why),
            Self::Store(error) => error.fmt(f),
            Self::Incident(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RestoreError {}

impl From<StoreError> for RestoreError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Error> for RestoreError {
    fn from(error: Error) -> Self {
        Self::Incident(error)
    }
}

type Result<T> = std::result::Result<T, RestoreError>;

/// What an acknowledgement has done.
#[derive(Debug)]
pub struct Acknowledged {
    /// Its row.
    pub receipt: Receipt,
    /// Incidents that were opened: versions that the copy had not known to be compromised.
    pub declared: Vec<Incident>,
    /// Compromised versions that the copy does not have at all.
    pub unknown: Vec<Kid>,
}

/// What the last checkpoint knows and the database does not. None when they agree, when somebody has acknowledged it, and
/// when there is no checkpoint to compare with.
///
/// Errors: the file cannot be read; those of the database.
pub async fn lost(db: &Db, config: &CheckpointConfig, issuer: &str) -> Result<Option<Lost>> {
    let keys = keys(db, config).await?;
    let Some(checkpoint) = last(&config.file, issuer, keys).await? else {
        tracing::info!(
            file = %config.file.display(),
            "there is no checkpoint that the database could be compared with"
        );
        return Ok(None);
    };
    let mismatches = verify::mismatches(db, checkpoint.heads.clone()).await?;
    if mismatches.is_empty() {
        return Ok(None);
    }
    let digest = checkpoint.digest();
    if db.restore_is_acknowledged(&digest).await? {
        return Ok(None);
    }
    Ok(Some(Lost {
        checkpoint,
        digest,
        mismatches,
        kept_until: db.last_admin_row_at().await?,
    }))
}

/// Every public key that the database knows the checkpoint key by.
async fn keys(db: &Db, config: &CheckpointConfig) -> Result<Vec<PublicKey>> {
    let reference: KeyRef = config.key.parse()?;
    let Some(key) = db.key(&TenantName::system(), &reference).await? else {
        return Ok(Vec::new());
    };
    let versions = db.versions(key.id).await?;
    let public = versions.iter().filter_map(|version| version.public_key());
    Ok(public.cloned().collect())
}

async fn last(file: &Path, issuer: &str, keys: Vec<PublicKey>) -> Result<Option<Checkpoint>> {
    let (path, issuer) = (file.to_owned(), issuer.to_owned());
    let read =
        tokio::task::spawn_blocking(move || checkpoint_file::last(&path, &issuer, &keys)).await;
    let named = |error: &dyn fmt::Display| {
        RestoreError::File(format!("audit.checkpoint.file {}: {error}", file.display()))
    };
    read.map_err(|e| named(&e))?.map_err(|e| named(&e))
}

/// Lets the copy count, in the name of `by`, because of `why`. All of it happens, or nothing.
///
/// Errors: a version whose state or clock does not allow it; those of the database.
pub async fn acknowledge(db: &Db, lost: &Lost, by: &str, why: &str) -> Result<Acknowledged> {
    let mut tx = db.begin().await?;
    let now = tx.now().await?;
    let (mut declared, mut unknown) = (Vec::new(), Vec::new());
    for kid in &lost.checkpoint.frozen {
        let reason = format!(
            "it was compromised when the checkpoint of {} was written; the database was restored from a copy that did not \
             know ({why})",
            lost.checkpoint.at
        );
        let Some(version) = tx.version(kid).await? else {
            unknown.push(kid.clone());
            continue;
        };
        if let Some((incident, details)) = declare_again(&mut tx, &version, reason, now).await? {
            let entity = ("incident", incident.id.to_string());
            let tenant = incident.tenant.as_str();
            let action = Action::DeclareCompromise.name();
            admin::append(&mut tx, record(tenant, action, entity, details.to_string())).await?;
            declared.push(incident);
        }
    }
    let details = json!({
        "checkpoint": lost.digest,
        "checkpoint_at": lost.checkpoint.at.to_string(),
        "kept_until": lost.kept_until.micros(),
        "by": by,
        "reason": why,
        "declared": declared.iter().map(|incident| incident.kid.as_str()).collect::<Vec<_>>(),
        "unknown": unknown.iter().map(Kid::as_str).collect::<Vec<_>>(),
    });
    let entity = ("audit", lost.digest.clone());
    let record = record(
        TenantName::SYSTEM,
        ACKNOWLEDGE_RESTORE,
        entity,
        details.to_string(),
    );
    tx.raise_alert(&alert(lost, by, now)).await?;
    let receipt = admin::append(&mut tx, record).await?;
    tx.insert_restore(&lost.digest, now, lost.kept_until, receipt.seq)
        .await?;
    tx.commit().await?;
    Ok(Acknowledged {
        receipt,
        declared,
        unknown,
    })
}

/// Nobody is authenticated here, so the row says that a job did it, and its data in whose name.
fn record(
    tenant: &str,
    action: &'static str,
    entity: (&'static str, String),
    data: String,
) -> Record {
    let job = Job::Scheduler.principal();
    Record {
        tenant: tenant.to_owned(),
        actor: job.id.to_string(),
        actor_type: job.kind.as_str(),
        action,
        entity: entity.0,
        entity_id: entity.1,
        outcome: Outcome::Success,
        request_id: format!("restore-{}", uuid::Uuid::now_v7()),
        data,
        credential: None,
    }
}

fn alert(lost: &Lost, by: &str, now: Timestamp) -> Alert {
    Alert {
        id: AlertId::random(),
        tenant: TenantName::system(),
        kind: "DATABASE_RESTORED".to_owned(),
        entity: "audit".to_owned(),
        entity_id: lost.digest.clone(),
        text: format!(
            "the database was restored to {}, and {by} stands for it; what was revoked, suspended or deleted until {} counts \
             again, except for compromised versions",
            lost.kept_until, lost.checkpoint.at
        ),
        raised_at: now,
        window_key: format!("DATABASE_RESTORED/{}", lost.digest),
    }
}

impl Lost {
    /// What a person needs to know before anything is done about it.
    pub fn sentence(&self) -> String {
        let first = self.mismatches.first();
        let example = first.map_or_else(String::new, |m| {
            format!(" (row {} of stream {}: {})", m.seq, m.stream, m.problem)
        });
        format!(
            "the database was set back: it ends at {}, and the audit checkpoint of {} says that it had more{example}",
            self.kept_until, self.checkpoint.at
        )
    }

    /// The same, and what to do, for a start that is refused.
    pub fn advice(&self) -> String {
        format!(
            "{}. Freezes, revocations and suspensions since then would count for nothing. Restore a newer copy, or stand for \
             this one: `claviger restore acknowledge` declares the compromised versions again",
            self.sentence()
        )
    }
}
