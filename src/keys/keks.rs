//! The key-encryption keys that this replica works with: the ACTIVE one wraps, every other that is not RETIRED unwraps.
//!
//! Which they are is said by the table `keks`, which a start without one fills from the configuration; afterwards the
//! configuration must name one that is known, and the database says which is ACTIVE. A KEK is proved by wrapping and
//! unwrapping (R-ENV-2) when it is first seen, and by its probe whenever it is met again: another key under the same
//! label, or in another account, unwraps no probe. The daemon never creates a KEK here and never destroys one.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest, rand};
use tokio::time::Instant;

use super::{Backends, data_keys::binding};
use crate::{
    backends::{Backend, BackendError, RETRY_AFTER},
    error::{Error, Reason, Result},
    model::{KekRow, KekState, KeySpec, Secret, Timestamp, key::BackendRef},
    store::{Db, StoreError, WrappedKey},
};

/// A key that wraps data keys.
#[derive(Clone)]
pub struct Kek {
    /// The backend that holds it.
    pub backend: Arc<dyn Backend>,
    /// Where it is.
    pub reference: BackendRef,
}

/// A KEK that has just wrapped and unwrapped.
pub struct Proven {
    /// The KEK.
    pub kek: Kek,
    probe: Vec<u8>,
    probe_digest: Vec<u8>,
}

/// Why the daemon does not start.
#[derive(Debug)]
pub enum KekError {
    /// The KEK is missing, wrong, or another one than wraps the data keys. The text says what to do.
    Misconfigured(String),
    /// The database does not answer.
    Store(StoreError),
}

impl fmt::Display for KekError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // These very words are R-ENV-2.
            Self::Misconfigured(why) => {
                write!(f, "broker credentials encryption key misconfigured: {why}")
            }
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for KekError {}

impl From<StoreError> for KekError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Rows that are tried where an older release has wrapped data keys and left no probe.
const OLD_ROWS: i64 = 5;

/// The KEKs of the installation, as this replica knows them.
pub struct Keks {
    db: Db,
    backends: Backends,
    patience: Duration,
    set: RwLock<Arc<Set>>,
}

/// One state of affairs.
#[derive(Default)]
struct Set {
    /// Counts changes: rows that were read before one must not be taken after it.
    generation: u64,
    active: Option<BackendRef>,
    unwrapping: HashMap<BackendRef, Kek>,
}

/// How a KEK that was looked at again does.
pub struct Seen {
    /// The KEK.
    pub row: KekRow,
    /// None when it still is what it was.
    pub trouble: Option<BackendError>,
}

impl Keks {
    /// Opens the KEKs at the start: `name` and `uri` are the configured backend and key. `patience` bounds each call.
    pub async fn open(
        db: Db,
        backends: Backends,
        (name, uri): (&str, &str),
        now: Timestamp,
        patience: Duration,
    ) -> std::result::Result<Self, KekError> {
        let named = find(&backends, name, uri, patience).await?;
        let keks = Self::unopened(db, backends, patience);
        let mut rows = keks.db.keks().await?;
        if rows.is_empty() {
            keks.record_first(&named, now).await?;
            rows = keks.db.keks().await?;
        }
        let state = keks.expect_known(&rows, &named.kek).await?;
        if state != KekState::Active {
            tracing::warn!(
                kek = %named.kek.reference,
                state = state.as_str(),
                active = active_of(&rows),
                "kek.uri does not name the ACTIVE KEK; update it before this one is removed from its device"
            );
        }
        for row in rows.iter().filter(|row| row.state != KekState::Retired) {
            keks.expect_same(row).await?;
        }
        keks.replace(&rows, 0);
        Ok(keks)
    }

    /// KEKs that can be looked at and wrap nothing, for `claviger doctor`.
    pub fn unopened(db: Db, backends: Backends, patience: Duration) -> Self {
        Self {
            set: RwLock::default(),
            db,
            backends,
            patience,
        }
    }

    /// What a start would make of the configured KEK, without changing anything: its state; None where the first start is
    /// still to come.
    ///
    /// Errors: why the daemon would not start.
    pub async fn judge(&self, named: &Kek) -> std::result::Result<Option<KekState>, KekError> {
        let rows = self.db.keks().await?;
        match rows.is_empty() {
            true => self.expect_first(named).await.map(|()| None),
            false => self.expect_known(&rows, named).await.map(Some),
        }
    }

    /// The KEK that wraps. Errors: BACKEND_UNAVAILABLE when its backend is not configured on this replica.
    pub fn active(&self) -> Result<Kek> {
        let set = self.set();
        let active = set.active.as_ref().and_then(|kek| set.unwrapping.get(kek));
        active.cloned().ok_or_else(|| {
            Error::new(
                Reason::BackendUnavailable,
                "the backend of the key-encryption key is not configured on this replica",
            )
            .retry_after(RETRY_AFTER)
        })
    }

    /// The KEK with this reference, if data keys may be under it.
    pub fn unwrapping(&self, reference: &BackendRef) -> Option<Kek> {
        self.set().unwrapping.get(reference).cloned()
    }

    /// A KEK of this backend that must be there, if there is one.
    pub fn in_backend(&self, name: &str) -> Option<Kek> {
        let set = self.set();
        let held = |kek: &&Kek| kek.backend.capabilities().name == name;
        set.unwrapping.values().find(held).cloned()
    }

    /// Learns from the database which KEKs there are. Reads nothing else, so that the change feed can wait for it.
    pub async fn reload(&self) -> Result<()> {
        loop {
            let generation = self.generation();
            let rows = self.db.keks().await?;
            if self.replace(&rows, generation) {
                return Ok(());
            }
        }
    }

    /// Wraps with this KEK from now on: the deployment is committed.
    pub fn activate(&self, reference: &BackendRef, backend: &str) {
        let Some(backend) = self.backends.get(backend) else {
            return;
        };
        let mut set = self.set.write().unwrap_or_else(PoisonError::into_inner);
        let mut unwrapping = set.unwrapping.clone();
        let kek = Kek {
            backend: Arc::clone(backend),
            reference: reference.clone(),
        };
        unwrapping.insert(reference.clone(), kek);
        *set = Arc::new(Set {
            generation: set.generation + 1,
            active: Some(reference.clone()),
            unwrapping,
        });
    }

    /// Finds a key and proves that it wraps and unwraps. Nothing on the device or in the database changes.
    ///
    /// Errors: INVALID_FIELD for a backend that is not configured; KEY_NOT_ADOPTABLE for a key that is missing, not the
    /// only one or no KEK; the backend's.
    pub async fn prove(&self, name: &str, uri: &str) -> Result<Proven> {
        let Some(backend) = self.backends.get(name) else {
            let known: Vec<_> = self.backends.keys().map(String::as_str).collect();
            return Err(Error::new(
                Reason::InvalidField,
                format!(
                    "no backend of this name is configured; there is {}",
                    known.join(", ")
                ),
            ));
        };
        prove(backend, uri, self.patience)
            .await
            .map_err(not_adoptable)
    }

    /// Is this the very key that was recorded as `row`? Errors: as `prove`.
    pub async fn expect_unchanged(&self, row: &KekRow) -> Result<()> {
        self.recognise(row).await.map_err(not_adoptable)
    }

    /// Do these two references name one key? A copy under another name protects nothing.
    ///
    /// Errors: the backend's; who does not answer has not said no.
    pub async fn is_copy(
        &self,
        new: &Kek,
        old: &KekRow,
    ) -> std::result::Result<bool, BackendError> {
        match opens_probe(new, old, self.patience).await {
            Ok(()) => Ok(true),
            Err(BackendError::Rejected(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Looks at every KEK that is not RETIRED. Errors: the database does not answer.
    pub async fn look(&self) -> Result<Vec<Seen>> {
        let mut seen = Vec::new();
        for row in self.db.keks().await? {
            if row.state != KekState::Retired {
                let trouble = self.recognise(&row).await.err();
                seen.push(Seen { row, trouble });
            }
        }
        Ok(seen)
    }

    /// Is the KEK well? For a data key that did not unwrap: a device in trouble says the same of every ciphertext as a good
    /// one says of a damaged one (CKR_GENERAL_ERROR).
    ///
    /// Errors: the database's; BACKEND_UNAVAILABLE when its probe does not unwrap either, which says nothing about data
    /// keys.
    pub async fn expect_opens_probe(&self, reference: &BackendRef) -> Result<()> {
        let rows = self.db.keks().await?;
        let Some(row) = rows.iter().find(|row| row.reference == *reference) else {
            return Ok(());
        };
        self.recognise(row).await.map_err(|error| {
            let text = "the key-encryption key does not unwrap its own probe; retry when its backend is well";
            Error::new(Reason::BackendUnavailable, text)
                .because(error)
                .retry_after(RETRY_AFTER)
        })
    }

    async fn recognise(&self, row: &KekRow) -> std::result::Result<(), BackendError> {
        let Some(backend) = self.backends.get(&row.backend) else {
            return Err(BackendError::Misconfigured(format!(
                "backend {} is not configured",
                row.backend
            )));
        };
        let kek = Kek {
            backend: Arc::clone(backend),
            reference: row.reference.clone(),
        };
        opens_probe(&kek, row, self.patience).await
    }

    async fn expect_known(
        &self,
        rows: &[KekRow],
        named: &Kek,
    ) -> std::result::Result<KekState, KekError> {
        let (reference, active) = (&named.reference, active_of(rows));
        let row = self.row_of(rows, named).await.map_err(|error| {
            KekError::Misconfigured(format!(
                "whether {reference} is one of the known KEKs under another name was not found out: {error}"
            ))
        })?;
        match row {
            Some(row) => Ok(row.state),
            None => Err(KekError::Misconfigured(format!(
                "kek.uri names {reference}, which has wrapped nothing here; the ACTIVE one is {active}. Let kek.uri name \
                 that one and rotate with `claviger kek rotate`; if its token was initialised again, restore the token"
            ))),
        }
    }

    /// The row of a key, also when its device spells the reference in another way than it did before.
    async fn row_of<'a>(
        &self,
        rows: &'a [KekRow],
        kek: &Kek,
    ) -> std::result::Result<Option<&'a KekRow>, BackendError> {
        let same = rows.iter().find(|row| row.reference == kek.reference);
        if same.is_some() {
            return Ok(same);
        }
        for row in rows {
            if self.is_copy(kek, row).await? {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    async fn expect_same(&self, row: &KekRow) -> std::result::Result<(), KekError> {
        let (reference, state) = (&row.reference, row.state.as_str());
        match self.recognise(row).await {
            Ok(()) => Ok(()),
            // Nothing is under it yet; its deployment looks again.
            Err(error) if row.state == KekState::PreActive => {
                tracing::warn!(kek = %reference, %error, "the KEK of the open rotation does not answer here");
                Ok(())
            }
            Err(BackendError::Rejected(_)) => Err(KekError::Misconfigured(format!(
                "the key at {reference} (backend {}) is not the {state} one that wrapped the data keys: it does not unwrap \
                 what that one wrapped. The token was initialised again or another account is configured; bring the \
                 original key back",
                row.backend
            ))),
            Err(error) => Err(KekError::Misconfigured(format!(
                "the {state} key {reference} (backend {}) is needed to unwrap data keys: {error}",
                row.backend
            ))),
        }
    }

    /// The first start with this table: the configured KEK is the one, unless data keys say otherwise.
    async fn record_first(
        &self,
        named: &Proven,
        now: Timestamp,
    ) -> std::result::Result<(), KekError> {
        self.expect_first(&named.kek).await?;
        let mut row = named.row(KekState::Active, now);
        row.activated_at = Some(now);
        let mut tx = self.db.begin().await?;
        match tx.insert_kek(&row).await {
            Ok(()) => Ok(tx.commit().await?),
            // Another replica was first; what it recorded holds for this one too.
            Err(StoreError::Exists(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Can this be the KEK of a database that has recorded none yet?
    async fn expect_first(&self, named: &Kek) -> std::result::Result<(), KekError> {
        for (kek, count) in self.db.data_keys_by_kek().await? {
            if kek != named.reference {
                return Err(KekError::Misconfigured(format!(
                    "kek.uri names {}, but {count} data keys are wrapped by {kek}; let kek.uri name that one, and rotate \
                     with `claviger kek rotate`",
                    named.reference
                )));
            }
        }
        self.expect_old_rows_to_open(named).await
    }

    /// An older release left no probe, but data keys. One damaged row must not stop the start, so a few are tried.
    async fn expect_old_rows_to_open(&self, kek: &Kek) -> std::result::Result<(), KekError> {
        let rows = self
            .db
            .data_keys_under(&kek.reference, "", OLD_ROWS)
            .await?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in &rows {
            match unwrap(kek, row, self.patience).await {
                Ok(_) => return Ok(()),
                Err(BackendError::Rejected(_)) => {}
                Err(error) => return Err(KekError::Misconfigured(error.to_string())),
            }
        }
        Err(KekError::Misconfigured(format!(
            "the key at {} does not unwrap the data keys in the database; it is another one than wrapped them. Bring the \
             original key back",
            kek.reference
        )))
    }

    /// Takes what these rows say; false when something has changed since `generation`, after which they were read.
    pub(super) fn replace(&self, rows: &[KekRow], generation: u64) -> bool {
        let mut next = Set {
            generation: generation + 1,
            ..Set::default()
        };
        for row in rows.iter().filter(|row| row.state.unwraps()) {
            let Some(backend) = self.backends.get(&row.backend) else {
                tracing::error!(kek = %row.reference, backend = row.backend, "the backend of a KEK is not configured here");
                continue;
            };
            if row.state == KekState::Active {
                next.active = Some(row.reference.clone());
            }
            let kek = Kek {
                backend: Arc::clone(backend),
                reference: row.reference.clone(),
            };
            next.unwrapping.insert(row.reference.clone(), kek);
        }
        let mut set = self.set.write().unwrap_or_else(PoisonError::into_inner);
        let is_current = set.generation == generation;
        if is_current {
            *set = Arc::new(next);
        }
        is_current
    }

    pub(super) fn generation(&self) -> u64 {
        self.set().generation
    }

    fn set(&self) -> Arc<Set> {
        Arc::clone(&self.set.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Proven {
    /// What is recorded of it.
    pub fn row(&self, state: KekState, now: Timestamp) -> KekRow {
        KekRow {
            reference: self.kek.reference.clone(),
            backend: self.kek.backend.capabilities().name.clone(),
            state,
            probe: self.probe.clone(),
            probe_digest: self.probe_digest.clone(),
            created_at: now,
            activated_at: None,
            deactivated_at: None,
            retired_at: None,
        }
    }
}

fn active_of(rows: &[KekRow]) -> String {
    let active = rows.iter().find(|row| row.state == KekState::Active);
    active.map_or_else(String::new, |row| {
        format!("{} in backend {}", row.reference, row.backend)
    })
}

/// The configured KEK, proved. For the start and for `claviger doctor`.
pub async fn find(
    backends: &Backends,
    name: &str,
    uri: &str,
    patience: Duration,
) -> std::result::Result<Proven, KekError> {
    let backend = backends.get(name).ok_or_else(|| {
        KekError::Misconfigured(format!("kek.backend {name:?} is not configured"))
    })?;
    prove(backend, uri, patience).await.map_err(|error| {
        let hint = match &error {
            BackendError::Missing(_) => {
                "; if there never was one, create it with `claviger kek create`; if the KEK was rotated, let kek.uri name \
                 the ACTIVE one of `claviger kek list`"
            }
            _ => "",
        };
        KekError::Misconfigured(format!("kek.uri {uri}: {error}{hint}"))
    })
}

async fn prove(
    backend: &Arc<dyn Backend>,
    uri: &str,
    patience: Duration,
) -> std::result::Result<Proven, BackendError> {
    let deadline = || Instant::now() + patience;
    let found = backend.adopt(uri, KeySpec::Kek, deadline()).await?;
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(|_| BackendError::Unavailable("no randomness".into()))?;
    let (plain, aad) = (Secret::new(bytes), probe_binding(&found.reference));
    let probe = backend
        .wrap(&found.reference, &plain, &aad, deadline())
        .await?;
    let proven = Proven {
        kek: Kek {
            backend: Arc::clone(backend),
            reference: found.reference,
        },
        probe,
        probe_digest: sha256(plain.expose_secret()),
    };
    let row = proven.row(KekState::PreActive, Timestamp::from_micros(0));
    match opens_probe(&proven.kek, &row, patience).await {
        Err(BackendError::Rejected(_)) => Err(BackendError::Unfit(
            "it does not unwrap what it has wrapped".into(),
        )),
        Err(error) => Err(error),
        Ok(()) => Ok(proven),
    }
}

/// Errors: `Rejected` when this is not the key that wrapped the probe.
async fn opens_probe(
    kek: &Kek,
    row: &KekRow,
    patience: Duration,
) -> std::result::Result<(), BackendError> {
    let (aad, deadline) = (probe_binding(&row.reference), Instant::now() + patience);
    let unwrap = kek
        .backend
        .unwrap(&kek.reference, &row.probe, &aad, deadline);
    let plain = unwrap.await?;
    verify_slices_are_equal(&sha256(plain.expose_secret()), &row.probe_digest).map_err(|_| {
        BackendError::Rejected("the probe unwraps to something else than was wrapped".into())
    })
}

/// The plain data key of a row.
pub(super) async fn unwrap(
    kek: &Kek,
    row: &WrappedKey,
    patience: Duration,
) -> std::result::Result<crate::model::secret::DataKey, BackendError> {
    let aad = binding(&row.tenant, row.key, &row.kid);
    let deadline = Instant::now() + patience;
    let call = kek
        .backend
        .unwrap(&kek.reference, &row.wrapped, &aad, deadline);
    call.await
}

fn not_adoptable(error: BackendError) -> Error {
    let why = match &error {
        BackendError::Missing(_) => {
            "the URI names no key-encryption key in this backend, or more than one; create it first, for example with \
             `claviger kek create`"
                .to_owned()
        }
        BackendError::Rejected(why) => format!("not the key that was proved before: {why}"),
        BackendError::Unfit(why) => format!("key unfit for use as a key-encryption key: {why}"),
        _ => return error.into(),
    };
    Error::new(Reason::KeyNotAdoptable, why)
}

/// What a probe is bound to: domain and reference, each preceded by its length.
fn probe_binding(reference: &BackendRef) -> Vec<u8> {
    let mut aad = Vec::with_capacity(128);
    for part in ["claviger.kek-probe.v1", &reference.0] {
        aad.extend((part.len() as u32).to_be_bytes());
        aad.extend(part.as_bytes());
    }
    aad
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}
