//! 100,000 data keys, wrapped by the daemon's own KEK from outside, are rewrapped by a daemon that is killed three times.

use std::{collections::HashMap, fs};

use claviger::{
    backends::{
        Backend,
        pkcs11::{Pkcs11Backend, Pkcs11Config},
    },
    keys::data_key_binding,
    model::{
        self, Key, KeyId, KeySpec, KeyVersion, Kid, Purpose, RotationPolicy, Secret, TenantName,
        Timestamp,
        key::{BackendRef, Material, VersionEvent},
    },
    store::{DatabaseConfig, Db, StoreError},
};
use futures_util::{StreamExt, stream};

use super::*;
use crate::softhsm::{SoftHsm, alone, soon};

const MANY: usize = 100_000;
/// Of the whole; a debug build on a busy machine takes a minute or two.
const LONG: Duration = Duration::from_secs(1200);
/// Calls to the token at the same time.
const AT_ONCE: usize = 16;

/// The daemon's token, opened by the test too.
struct Outside {
    backend: Pkcs11Backend,
    db: Db,
    plain: HashMap<Kid, [u8; 32]>,
}

impl Outside {
    /// SoftHSM reads its configuration when it is loaded, so nothing may have loaded it in this process.
    async fn of(daemon: &Daemon, softhsm: &SoftHsm) -> Self {
        let conf = fs::read_to_string(daemon.path("softhsm2.conf")).expect("softhsm2.conf");
        fs::write(softhsm.path("softhsm2.conf"), conf).expect("softhsm2.conf");
        let pin = fs::read_to_string(daemon.path("secrets/pin")).expect("the PIN");
        let config = Pkcs11Config {
            pin: Some(Secret::new(pin)),
            ..softhsm.config(TOKEN)
        };
        let backend = Pkcs11Backend::open("outside", &config, &softhsm.modules);
        let url = Secret::new(daemon.database_url().to_owned());
        Self {
            backend: backend.expect("the token opens"),
            db: Db::open_beside(&DatabaseConfig::of(url))
                .await
                .expect("opened"),
            plain: HashMap::new(),
        }
    }

    async fn kek(&self, label: &str) -> BackendRef {
        let found = self.backend.adopt(&uri(label), KeySpec::Kek, soon()).await;
        found.expect("the KEK").reference
    }

    /// Adds keys with one ACTIVE data key each, under this KEK.
    async fn seed(&mut self, count: usize, kek: &BackendRef) {
        let tenant: TenantName = "acme".parse().expect("a tenant");
        let (backend, tenant) = (&self.backend, &tenant);
        let made: Vec<_> = stream::iter(0..count)
            .map(|_| async move {
                let key = a_key(tenant);
                let (kid, mut bytes) = (Kid::random(), [0; 32]);
                aws_lc_rs::rand::fill(&mut bytes).expect("random");
                let plain = Secret::new(bytes);
                let aad = data_key_binding(tenant, key.id, &kid);
                let wrapped = backend.wrap(kek, &plain, &aad, soon()).await;
                let material = Material::DataKey {
                    kek: kek.clone(),
                    wrapped: wrapped.expect("wrapped"),
                    sealed_secret: None,
                };
                let now = key.created_at;
                let mut version = KeyVersion::pre_active(key.id, 1, kid, material, now);
                version.announced_at = Some(now);
                version.advance(VersionEvent::Deploy, now).expect("ACTIVE");
                (key, version, bytes)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut tx = self.db.begin().await.expect("begun");
        for (key, version, bytes) in made {
            tx.insert_key(&key).await.expect("a key");
            tx.insert_version(&version).await.expect("a version");
            self.plain.insert(version.kid, bytes);
        }
        tx.commit().await.expect("committed");
    }

    /// How many of what was seeded unwrap under this KEK to what they were.
    async fn unwrap_all(&self, kek: &BackendRef) -> usize {
        let (mut after, mut good) = (String::new(), 0);
        loop {
            let rows = self.db.data_keys_under(kek, &after, 10_000).await;
            let rows = rows.expect("read");
            let Some(last) = rows.last() else {
                return good;
            };
            after = last.kid.as_str().to_owned();
            good += stream::iter(rows)
                .map(|row| async move {
                    let aad = data_key_binding(&row.tenant, row.key, &row.kid);
                    let plain = self.backend.unwrap(kek, &row.wrapped, &aad, soon()).await;
                    let plain = plain.unwrap_or_else(|e| panic!("{}: {e}", row.kid));
                    assert_eq!(self.plain.get(&row.kid), Some(plain.expose_secret()));
                })
                .buffer_unordered(AT_ONCE)
                .count()
                .await;
        }
    }
}

fn a_key(tenant: &TenantName) -> Key {
    let (id, now) = (
        KeyId::random(),
        Timestamp::from_micros(1_700_000_000_000_000),
    );
    Key {
        id,
        tenant: tenant.clone(),
        name: format!("k{id}").parse().expect("a name"),
        purpose: Purpose::Encryption,
        algorithm: model::Algorithm::A256Gcm,
        rsa_bits: 0,
        backend: "hsm".into(),
        owner: "team-bulk".into(),
        created_at: now,
        rotation_period: Duration::from_secs(180 * 86_400),
        // Far away: nothing here is about rotating them.
        next_rotation_at: now.plus(Duration::from_secs(20 * 365 * 86_400)),
        policy: RotationPolicy::of(Purpose::Encryption),
        revision: 1,
    }
}

/// A daemon that has recorded its KEK and is down, with so many data keys under it.
async fn seeded(count: usize, softhsm: &SoftHsm) -> (Daemon, Outside, String) {
    let mut daemon = Setup::new(Engine::Sqlite).append(QUICK).start().await;
    let next = create(&daemon, "kek-2").await;
    daemon.terminate().await;
    let mut outside = Outside::of(&daemon, softhsm).await;
    let first = outside.kek(FIRST).await;
    outside.seed(count, &first).await;
    (daemon, outside, next)
}

async fn recorded(daemon: &Daemon) -> i64 {
    let query =
        "SELECT data FROM audit_events WHERE action = 'RewrapDataKeys' AND outcome = 'success'";
    let rows = daemon.rows(query).await;
    rows.iter()
        .map(|row| {
            let data: serde_json::Value = serde_json::from_str(&row[0]).expect("JSON");
            data["rewrapped"].as_i64().expect("a number")
        })
        .sum()
}

#[test]
fn a_hundred_thousand_data_keys_are_rewrapped_once_each_by_a_daemon_that_is_killed_three_times() {
    alone(async |softhsm| {
        let many = MANY as i64;
        let began = Instant::now();
        let (mut daemon, outside, next) = seeded(MANY, &softhsm).await;
        eprintln!("seeded after {:?}", began.elapsed());
        daemon.restart().await;
        let rotation = deployed(&daemon, &next).await;
        assert_eq!(rotation.total, many);
        for percent in [10, 40, 70] {
            let passed = |r: &KekRotation| r.rewrapped * 100 >= many * percent;
            let at = until_within(&daemon, &rotation.id, LONG, passed).await;
            daemon.kill().await;
            eprintln!("killed at {} after {:?}", at.rewrapped, began.elapsed());
            assert_eq!(at.state(), RotationState::Deployed, "killed too late");
            assert_eq!(at.rewrapped + at.remaining, many);
            daemon.restart().await;
            // What was counted was there, and nothing is counted twice.
            let now = get(&daemon, &rotation.id).await;
            assert_eq!(now.rewrapped + now.remaining, many);
            assert!(now.rewrapped >= at.rewrapped);
        }
        let done = until_within(&daemon, &rotation.id, LONG, completed).await;
        eprintln!("completed after {:?}", began.elapsed());
        assert_eq!((done.total, done.rewrapped), (many, many), "none twice");
        assert_eq!((done.remaining, done.undecryptable), (0, 0));
        assert_eq!(recorded(&daemon).await, many);
        let second = outside.kek("kek-2").await;
        assert_eq!(outside.unwrap_all(&second).await, MANY);
        eprintln!("verified after {:?}", began.elapsed());
        outside.db.close().await;
        daemon.stop().await;
    });
}

/// A replica that has not heard of the deployment wraps under the old KEK for a moment; after the end nobody can.
#[test]
fn what_a_replica_that_is_behind_wraps_is_rewrapped_too() {
    alone(async |softhsm| {
        let (mut daemon, mut outside, next) = seeded(3, &softhsm).await;
        let first = outside.kek(FIRST).await;
        // The first look of the scheduler is at the start, and the second far away.
        let idle = "interval_ms = 60000\nlease_seconds = 120";
        let quick = "interval_ms = 100\nlease_seconds = 2";
        daemon.edit_config(|text| text.replace(quick, idle));
        daemon.restart().await;
        let rotation = deployed(&daemon, &next).await;
        daemon.kill().await;
        let state = format!("SELECT state FROM keks WHERE reference = '{}'", first.0);
        assert_eq!(daemon.rows(&state).await, [["DEACTIVATED"]]);
        outside.seed(2, &first).await;
        daemon.execute("DELETE FROM leases").await;
        daemon.edit_config(|text| text.replace(idle, quick));
        daemon.restart().await;
        let done = until(&daemon, &rotation.id, completed).await;
        assert_eq!((done.total, done.rewrapped, done.remaining), (3, 5, 0));
        let second = outside.kek("kek-2").await;
        assert_eq!(outside.unwrap_all(&second).await, 5);

        // R-LIFE-4: no data key is recorded under a KEK that may be gone.
        let tenant: TenantName = "acme".parse().expect("a tenant");
        let key = a_key(&tenant);
        let material = Material::DataKey {
            kek: first,
            wrapped: vec![1],
            sealed_secret: None,
        };
        let now = key.created_at;
        let version = KeyVersion::pre_active(key.id, 1, Kid::random(), material, now);
        let mut tx = outside.db.begin().await.expect("begun");
        tx.insert_key(&key).await.expect("a key");
        let refused = tx.insert_version(&version).await;
        assert!(matches!(refused, Err(StoreError::KekGone)), "{refused:?}");
        drop(tx);
        outside.db.close().await;
        daemon.stop().await;
    });
}
