//! Data keys and their KEKs over a device that is away for some keys and not for others. The proof on real parts is in
//! `tests/it`.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use super::*;
use crate::{
    backends::{BackendError, Call, Capabilities, Created, Destroyed, VerifyAfterSign},
    model::{
        Algorithm, IntentId, KekRow, KekState, Key, KeyId, KeySpec, KeyVersion, PublicKey, Purpose,
        RotationPolicy, Secret, SignInput, Timestamp, VersionState, key::BackendRef,
        secret::DataKey,
    },
    store::{DatabaseConfig, Rewrapped, WrappedKey},
};

/// Wraps by writing down under which KEK and for what.
struct Fake {
    capabilities: Capabilities,
    away: Mutex<BTreeSet<String>>,
}

impl Fake {
    fn expect_here(&self, kek: &BackendRef) -> std::result::Result<(), BackendError> {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        match away.contains(&kek.0) {
            true => Err(BackendError::DeadlineExceeded),
            false => Ok(()),
        }
    }

    fn send_away(&self, kek: &str) {
        self.away.lock().unwrap().insert(kek.to_owned());
    }
}

fn unsupported<'a, T: Send + 'a>() -> Call<'a, T> {
    Box::pin(async { Err(BackendError::Unsupported("not by this one".into())) })
}

impl Backend for Fake {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn create<'a>(&'a self, _: KeySpec, _: IntentId, _: &'a str, _: Instant) -> Call<'a, Created> {
        unsupported()
    }
    fn adopt<'a>(&'a self, uri: &'a str, _: KeySpec, _: Instant) -> Call<'a, Created> {
        let created = Created {
            reference: BackendRef(uri.into()),
            public_key: None,
            tag: None,
        };
        Box::pin(async { Ok(created) })
    }
    fn public_key<'a>(&'a self, _: &'a BackendRef, _: Instant) -> Call<'a, PublicKey> {
        unsupported()
    }
    fn sign<'a>(
        &'a self,
        _: &'a BackendRef,
        _: Algorithm,
        _: SignInput<'a>,
        _: Instant,
    ) -> Call<'a, Vec<u8>> {
        unsupported()
    }
    fn wrap<'a>(
        &'a self,
        kek: &'a BackendRef,
        key: &'a DataKey,
        aad: &'a [u8],
        _: Instant,
    ) -> Call<'a, Vec<u8>> {
        Box::pin(async move {
            self.expect_here(kek)?;
            Ok([kek.0.as_bytes(), aad, key.expose_secret()].concat())
        })
    }
    fn unwrap<'a>(
        &'a self,
        kek: &'a BackendRef,
        wrapped: &'a [u8],
        aad: &'a [u8],
        _: Instant,
    ) -> Call<'a, DataKey> {
        Box::pin(async move {
            self.expect_here(kek)?;
            let rest = wrapped.strip_prefix(kek.0.as_bytes());
            let key = rest.and_then(|rest| rest.strip_prefix(aad));
            let key = key.and_then(|key| key.try_into().ok());
            key.map(Secret::new)
                .ok_or_else(|| BackendError::Rejected("another one".into()))
        })
    }
    fn destroy<'a>(&'a self, _: &'a BackendRef, _: Instant) -> Call<'a, Destroyed> {
        unsupported()
    }
    fn find(&self, _: IntentId, _: Instant) -> Call<'_, Vec<String>> {
        unsupported()
    }
    fn ready(&self, _: Instant) -> Call<'_, ()> {
        unsupported()
    }
}

const OLD: &str = "fake:old";
const NEW: &str = "fake:new";

/// Keys over an empty database whose KEK is `OLD`.
struct Stage {
    dir: std::path::PathBuf,
    fake: Arc<Fake>,
    keys: Keys,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Stage {
    async fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("claviger-keys-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&dir).unwrap();
        let url = format!("sqlite://{}", dir.join("claviger.db").display());
        let config = DatabaseConfig::of(Secret::new(url));
        let db = Db::open(&config).await.unwrap();
        db.migrate().await.unwrap();
        let fake = Arc::new(Fake {
            capabilities: Capabilities {
                name: "fake".into(),
                device: "fake".into(),
                specs: Vec::new(),
                algorithms: Vec::new(),
                verify_after_sign: VerifyAfterSign::Off,
                longest_message: None,
                one_at_a_time: false,
            },
            away: Mutex::default(),
        });
        let backends: Backends = [("fake".to_owned(), Arc::clone(&fake) as _)].into();
        let (now, patience) = (Timestamp::from_seconds(1), Duration::from_secs(1));
        let keks = Keks::open(db.clone(), backends.clone(), ("fake", OLD), now, patience).await;
        let keys = Keys::new(
            db,
            backends,
            "fake".into(),
            Reserved::default(),
            Arc::new(keks.unwrap()),
            Clock::manual(now),
            KeysConfig::default(),
        );
        Self { dir, fake, keys }
    }

    /// Makes `NEW` the ACTIVE one, as another replica would: nothing is said to this one.
    async fn rotate(&self) {
        let proven = self.keys.keks().prove("fake", NEW).await.unwrap();
        let (now, mut tx) = (
            Timestamp::from_seconds(2),
            self.keys.db.begin().await.unwrap(),
        );
        let (active, deactivated) = (KekState::Active, KekState::Deactivated);
        let old = BackendRef(OLD.into());
        let moved = tx.move_kek(&old, active, deactivated, now);
        assert!(moved.await.unwrap());
        let row = proven.row(KekState::Active, now);
        tx.insert_kek(&row).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// A key with a version under the ACTIVE KEK, as it is in memory.
    async fn vault(&self) -> (Key, KeyVersion) {
        let tenant: TenantName = "acme".parse().unwrap();
        let now = Timestamp::from_seconds(1);
        let key = Key {
            id: KeyId::random(),
            tenant: tenant.clone(),
            name: "vault".parse().unwrap(),
            purpose: Purpose::Encryption,
            algorithm: Algorithm::A256Gcm,
            rsa_bits: 0,
            backend: "fake".into(),
            owner: "payments".into(),
            created_at: now,
            rotation_period: Duration::from_secs(86_400),
            next_rotation_at: now,
            policy: RotationPolicy::of(Purpose::Encryption),
            revision: 1,
        };
        let kid = Kid::random();
        let material = self.keys.new_data_key(&tenant, key.id, &kid).await.unwrap();
        let made = KeyVersion::pre_active(key.id, 1, kid, material, now);
        let version = KeyVersion {
            state: VersionState::Active,
            ..made
        };
        let mut tx = self.keys.db.begin().await.unwrap();
        tx.insert_tenant(&tenant, now).await.unwrap();
        tx.insert_key(&key).await.unwrap();
        tx.insert_version(&version).await.unwrap();
        tx.commit().await.unwrap();
        (key, version)
    }

    async fn row(&self, kid: &Kid) -> WrappedKey {
        self.keys.db.wrapped_key(kid).await.unwrap().unwrap()
    }

    async fn record(&self, moved: &Rewrapped) {
        let mut tx = self.keys.db.begin().await.unwrap();
        assert!(tx.rewrap(moved, &BackendRef(NEW.into())).await.unwrap());
        tx.commit().await.unwrap();
    }
}

async fn opens(stage: &Stage, key: &Key, version: &KeyVersion) -> Result<[u8; 32]> {
    let (kid, material) = (&version.kid, &version.material);
    let held = stage.keys.data_key(&key.tenant, key.id, kid, material);
    Ok(*held.await?.key().expose_secret())
}

/// R-ENV-2: whoever holds a picture from before the rewrapping need not have the old KEK.
#[tokio::test]
async fn a_data_key_that_was_rewrapped_opens_while_the_old_kek_does_not_answer() {
    let stage = Stage::new().await;
    let (key, version) = stage.vault().await;
    let before = opens(&stage, &key, &version).await.unwrap();
    stage.keys.data_keys.forget(&version.kid);
    stage.fake.send_away(OLD);
    let failed = opens(&stage, &key, &version).await.err();
    assert!(failed.is_some(), "it is nowhere else yet");
    stage.fake.away.lock().unwrap().clear();

    stage.rotate().await;
    let rows = vec![stage.row(&version.kid).await];
    let new = BackendRef(NEW.into());
    let batch = stage.keys.rewrap_data_keys(rows, &new);
    let batch = batch.await.unwrap();
    assert!(batch.undecryptable.is_empty());
    stage.record(&batch.moved[0]).await;
    stage.fake.send_away(OLD);
    assert_eq!(opens(&stage, &key, &version).await.unwrap(), before);
}

#[tokio::test]
async fn an_old_wrapped_form_beside_the_new_kek_is_found_and_wrapped_anew() {
    let stage = Stage::new().await;
    let (key, version) = stage.vault().await;
    let plain = opens(&stage, &key, &version).await.unwrap();
    stage.rotate().await;
    let (old, new) = (BackendRef(OLD.into()), BackendRef(NEW.into()));
    let first = stage.row(&version.kid).await;
    let batch = stage.keys.rewrap_data_keys(vec![first.clone()], &new).await;
    stage.record(&batch.unwrap().moved[0]).await;
    let good = stage.row(&version.kid).await;
    let proved = stage.keys.prove_data_keys(vec![good.clone()], &old, &new);
    let proved = proved.await.unwrap();
    assert!(proved.moved.is_empty() && proved.undecryptable.is_empty());

    let spoilt = |wrapped: &[u8]| WrappedKey {
        wrapped: wrapped.to_vec(),
        ..good.clone()
    };
    let found = stage
        .keys
        .prove_data_keys(vec![spoilt(&first.wrapped)], &old, &new);
    let found = found.await.unwrap();
    assert!(found.undecryptable.is_empty());
    let [moved] = found.moved.as_slice() else {
        panic!("{:?}", found.moved);
    };
    assert_eq!((&moved.old.kek, &moved.old.wrapped), (&new, &first.wrapped));
    let mended = spoilt(&moved.wrapped);
    let kek = stage.keys.known(&new).await.unwrap();
    let opened = keks::unwrap(&kek, &mended, Duration::from_secs(1)).await;
    assert_eq!(*opened.unwrap().expose_secret(), plain);

    let neither = stage
        .keys
        .prove_data_keys(vec![spoilt(b"neither")], &old, &new);
    let neither = neither.await.unwrap();
    assert!(neither.moved.is_empty());
    assert_eq!(neither.undecryptable, [version.kid]);
    // Who does not answer has said nothing of the row.
    stage.fake.send_away(NEW);
    let unknown = stage.keys.prove_data_keys(vec![good], &old, &new).await;
    assert!(unknown.is_err());
}

#[tokio::test]
async fn a_kek_that_does_not_answer_is_not_called_another_one() {
    let stage = Stage::new().await;
    let keks = stage.keys.keks();
    let rows = stage.keys.db.keks().await.unwrap();
    let kek = |reference: &str| keks::Kek {
        backend: Arc::clone(&stage.fake) as _,
        reference: BackendRef(reference.into()),
    };
    let old: &KekRow = &rows[0];
    assert!(matches!(keks.is_copy(&kek(OLD), old).await, Ok(true)));
    assert!(matches!(keks.is_copy(&kek(NEW), old).await, Ok(false)));
    stage.fake.send_away(NEW);
    let unknown = keks.is_copy(&kek(NEW), old).await;
    assert!(matches!(unknown, Err(BackendError::DeadlineExceeded)));
}

/// What was read before a deployment on this replica must not be taken after it: it would wrap under the old KEK again.
#[tokio::test]
async fn a_reload_that_began_before_a_deployment_does_not_undo_it() {
    let stage = Stage::new().await;
    let keks = stage.keys.keks();
    let active = || keks.active().unwrap().reference.0;
    let (before, read_at) = (stage.keys.db.keks().await.unwrap(), keks.generation());
    stage.rotate().await;
    keks.activate(&BackendRef(NEW.into()), "fake");
    assert!(!keks.replace(&before, read_at));
    assert_eq!(active(), NEW);
    keks.reload().await.unwrap();
    assert_eq!(active(), NEW);
    assert!(keks.unwrapping(&BackendRef(OLD.into())).is_some());
    let read_at = keks.generation();
    keks.reload().await.unwrap();
    assert!(
        !keks.replace(&before, read_at),
        "nor what an older reload read"
    );
}
