//! The database: one suite, run on SQLite and on PostgreSQL. Each test has a database of its own.
//!
//! `make_row` computes the hash of an audit row from the documented encoding, apart from the code under test.

use std::{num::NonZeroU32, path::PathBuf, sync::Arc, time::Duration};

use aws_lc_rs::digest::{Context, SHA256};
use claviger::{
    audit::{
        ADMIN_STREAM, AccessConfig, AccessLog, AccessMode, AuditFilter, AuditRow, Outcome, Record,
        admin, verify,
    },
    error::Reason,
    model::{
        Algorithm, Approval, Grant, IntentId, KekRow, KekState, Key, KeyId, KeyRef, KeyVersion,
        Kid, Principal, PrincipalId, PrincipalKind, PrincipalState, PublicKey, Purpose, Role,
        Rotation, RotationId, RotationPolicy, RotationState, Scope, Scopes, Secret,
        TenantDestruction, TenantDestructionState, TenantName, Timestamp, VersionState,
        key::{BackendRef, Material},
        public_key::Curve,
    },
    store::{DatabaseConfig, Db, Head, IntentState, KeyFilter, ListedKey, Rewrapped, StoreError},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use sqlx::AssertSqlSafe;

macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let place = super::Scratch::new();
                let db = place.open().await;
                db.migrate().await.expect("migrated");
                super::$name(db.clone()).await;
                db.close().await;
            })*
        }

        mod postgres {
            use super::{DatabaseConfig, Db, Secret};

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let url = Secret::new(crate::postgres::database().await);
                let db = Db::open(&DatabaseConfig::of(url)).await.expect("the database opens");
                db.migrate().await.expect("migrated");
                super::$name(db.clone()).await;
                db.close().await;
            })*
        }
    };
}

suite!(
    tenants_are_unique_and_listed_by_name,
    principals_come_back_as_they_were,
    names_and_identities_of_principals_are_unique,
    roles_are_given_and_taken_once,
    principals_are_listed_oldest_first,
    keys_come_back_as_they_were,
    a_key_is_found_in_its_own_tenant_only,
    key_names_are_unique_in_a_tenant,
    keys_are_written_only_from_the_revision_that_was_read,
    keys_are_listed_oldest_first_and_by_due_date,
    versions_of_both_materials_come_back_as_they_were,
    data_keys_are_added_only_under_keks_that_unwrap,
    a_transition_keeps_what_was_rewrapped_meanwhile,
    a_second_active_version_is_refused,
    versions_are_unique_and_change_only_from_the_state_that_was_read,
    published_keys_are_those_that_verifiers_need,
    rotations_come_back_with_their_approvals,
    a_second_open_rotation_is_refused,
    rotations_change_only_from_the_state_that_was_read,
    rotations_are_listed_newest_first,
    intents_are_durable_and_settled_once,
    rows_without_their_parents_are_refused,
    a_dropped_transaction_changes_nothing,
    nothing_is_created_in_a_tenant_that_is_erased_meanwhile,
    a_destruction_begins_and_another_is_asked_for_without_waiting_for_each_other,
    rows_that_cannot_be_are_corrupt,
    an_audit_row_goes_behind_the_head_only,
    long_audit_batches_are_whole,
    concurrent_changes_leave_one_gapless_chain,
    concurrent_accesses_leave_one_gapless_chain,
    a_second_writer_of_a_stream_is_noticed,
    an_access_that_cannot_be_recorded_fails,
    weaker_access_modes_record_what_they_say,
    an_intact_stream_verifies,
    a_changed_row_is_found,
    a_removed_row_is_found,
    an_inserted_row_is_found,
    swapped_rows_are_found,
    a_cut_tail_is_found,
    a_changed_head_is_found,
    a_rewritten_tail_is_found,
    audit_events_are_filtered,
    audit_events_are_paged_without_loss,
    any_record_survives_storage_and_hashing,
    any_key_survives_storage,
    migrations_run_twice,
    a_schema_ahead_is_refused,
    a_schema_behind_is_refused,
    the_database_answers_and_tells_the_time,
);

/// A directory that goes away with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(KeyId::random().to_string());
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn config(&self) -> DatabaseConfig {
        let path = self.0.join("claviger.db");
        DatabaseConfig::of(Secret::new(format!("sqlite://{}", path.display())))
    }

    async fn open(&self) -> Db {
        Db::open(&self.config()).await.expect("the database opens")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs SQL behind the daemon's back; the number of rows it changed.
async fn sql(db: &Db, text: impl Into<String>) -> u64 {
    let text = text.into();
    let done = match db {
        Db::Sqlite { write, .. } => sqlx::query(AssertSqlSafe(text.clone()))
            .execute(write)
            .await
            .map(|done| done.rows_affected()),
        Db::Postgres(pool) => sqlx::query(AssertSqlSafe(text.clone()))
            .execute(pool)
            .await
            .map(|done| done.rows_affected()),
    };
    done.unwrap_or_else(|e| panic!("{text}: {e}"))
}

async fn number(db: &Db, text: &str) -> i64 {
    let text = text.to_owned();
    match db {
        Db::Sqlite { write, .. } => {
            sqlx::query_scalar(AssertSqlSafe(text))
                .fetch_one(write)
                .await
        }
        Db::Postgres(pool) => {
            sqlx::query_scalar(AssertSqlSafe(text))
                .fetch_one(pool)
                .await
        }
    }
    .expect("one number")
}

/// Runs `$act` on a transaction `$tx` and commits.
macro_rules! commit {
    ($db:expr, |$tx:ident| $act:expr) => {{
        let mut $tx = $db.begin().await.expect("a transaction");
        let value = $act.await.expect("the statement succeeds");
        $tx.commit().await.expect("committed");
        value
    }};
}

/// Runs `$act` on a transaction `$tx` and gives up: the database has to refuse it as a duplicate.
macro_rules! exists {
    ($db:expr, |$tx:ident| $act:expr) => {{
        let mut $tx = $db.begin().await.expect("a transaction");
        let error = $act.await.expect_err("there is one already");
        assert!(matches!(error, StoreError::Exists(_)), "{error:?}");
    }};
}

macro_rules! corrupt {
    ($call:expr) => {{
        let error = $call.await.map(|_| ()).expect_err("a corrupt row");
        assert!(matches!(error, StoreError::Corrupt(_)), "{error:?}");
    }};
}

fn tenant(name: &str) -> TenantName {
    name.parse().expect("a tenant name")
}

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

fn debug(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}")
}

async fn with_tenants(db: &Db) -> (TenantName, TenantName) {
    let (acme, globex) = (tenant("acme"), tenant("globex"));
    for name in [&acme, &globex] {
        commit!(db, |tx| tx.insert_tenant(name, at(1)));
    }
    (acme, globex)
}

fn a_principal(tenant: &TenantName, name: &str) -> Principal {
    Principal {
        id: PrincipalId::random(),
        tenant: tenant.clone(),
        name: name.parse().expect("a name"),
        kind: PrincipalKind::Service,
        owner: String::new(),
        state: PrincipalState::Active,
        scopes: Scopes::default(),
        identities: vec![format!("dns:{name}.{tenant}").parse().expect("an identity")],
        grants: Vec::new(),
        created_at: at(1_700_000_000_000_001),
    }
}

async fn principal(db: &Db, tenant: &TenantName, name: &str) -> Principal {
    let principal = a_principal(tenant, name);
    commit!(db, |tx| tx.insert_principal(&principal));
    principal
}

fn a_key(tenant: &TenantName, name: &str) -> Key {
    Key {
        id: KeyId::random(),
        tenant: tenant.clone(),
        name: name.parse().expect("a name"),
        purpose: Purpose::TokenSigning,
        algorithm: Algorithm::Es256,
        rsa_bits: 0,
        backend: "hsm".into(),
        owner: "payments".into(),
        created_at: at(1_700_000_000_000_001),
        rotation_period: Duration::from_secs(90 * 86_400),
        next_rotation_at: at(1_707_776_000_000_001),
        policy: RotationPolicy::of(Purpose::TokenSigning),
        revision: 1,
    }
}

async fn key(db: &Db, tenant: &TenantName, name: &str) -> Key {
    let key = a_key(tenant, name);
    commit!(db, |tx| tx.insert_key(&key));
    key
}

fn a_version(key: &Key, number: u32, state: VersionState) -> KeyVersion {
    let material = Material::KeyPair {
        backend: "hsm".into(),
        reference: BackendRef(format!("pkcs11:token=t;id=%{number:02}")),
        public_key: PublicKey::Ec {
            curve: Curve::P256,
            x: vec![7; 32],
            y: vec![9; 32],
        },
    };
    let made = at(10 + i64::from(number));
    let version = KeyVersion::pre_active(key.id, number, Kid::random(), material, made);
    KeyVersion { state, ..version }
}

async fn version(db: &Db, key: &Key, number: u32, state: VersionState) -> KeyVersion {
    let version = a_version(key, number, state);
    commit!(db, |tx| tx.insert_version(&version));
    version
}

async fn find(db: &Db, key: &Key) -> Key {
    let found = db.key(&key.tenant, &KeyRef::Id(key.id)).await;
    found.expect("read").expect("the key is there")
}

/// A key with an ACTIVE and a PRE_ACTIVE version, and the people of a rotation.
struct Scene {
    key: Key,
    old: KeyVersion,
    new: KeyVersion,
    people: [Principal; 3],
}

async fn scene(db: &Db) -> Scene {
    let (acme, _) = with_tenants(db).await;
    let key = key(db, &acme, "signer").await;
    Scene {
        old: version(db, &key, 1, VersionState::Active).await,
        new: version(db, &key, 2, VersionState::PreActive).await,
        people: [
            principal(db, &acme, "issuer").await,
            principal(db, &acme, "approver").await,
            principal(db, &acme, "deployer").await,
        ],
        key,
    }
}

impl Scene {
    fn rotation(&self) -> Rotation {
        Rotation {
            id: RotationId::random(),
            tenant: self.key.tenant.clone(),
            key_id: self.key.id,
            key_name: self.key.name.clone(),
            state: RotationState::Requested,
            old_kid: self.old.kid.clone(),
            new_kid: self.new.kid.clone(),
            justification: "quarterly; Bobby');DROP TABLE keys;-- 鍵🔑".into(),
            plan: r#"{"key":"x"}"#.into(),
            soak: Duration::from_micros(360_000_001),
            requester: self.people[0].id,
            approvals: Vec::new(),
            approvals_needed: NonZeroU32::MIN,
            deployer: None,
            requested_at: at(1_700_000_000_000_003),
            announced_at: None,
            deployed_at: None,
            grace: Duration::from_micros(7),
            scheduled: true,
            expires_at: at(1_700_000_500_000_003),
            grace_ends_at: None,
            ended_at: None,
            ended_by: None,
            end_reason: String::new(),
        }
    }
}

fn record(actor: &str) -> Record {
    Record {
        tenant: "acme".into(),
        actor: actor.into(),
        actor_type: "service",
        action: "Sign",
        entity: "key",
        entity_id: "signer".into(),
        outcome: Outcome::Success,
        request_id: "r".into(),
        data: "{}".into(),
        credential: None,
    }
}

/// The encoding that audit/chain.rs documents, written a second time.
fn hash_of(row: &AuditRow) -> Vec<u8> {
    let mut encoded = b"claviger.audit.v1\0".to_vec();
    let mut field = |bytes: &[u8]| {
        encoded.extend((bytes.len() as u32).to_be_bytes());
        encoded.extend(bytes);
    };
    field(row.stream.as_bytes());
    field(&row.seq.to_be_bytes());
    field(&row.at.to_be_bytes());
    field(row.tenant.as_bytes());
    field(row.actor.as_bytes());
    field(row.actor_type.as_bytes());
    field(row.action.as_bytes());
    field(row.entity.as_bytes());
    field(row.entity_id.as_bytes());
    field(row.outcome.as_bytes());
    field(row.request_id.as_bytes());
    field(row.data.as_bytes());
    field(&row.prev_hash);
    let mut context = Context::new(&SHA256);
    context.update(&encoded);
    context.finish().as_ref().to_vec()
}

fn make_row(stream: &str, seq: i64, prev_hash: Vec<u8>) -> AuditRow {
    let mut row = AuditRow {
        stream: stream.into(),
        seq,
        at: 1_700_000_000_000_000 + seq,
        tenant: "acme".into(),
        actor: format!("actor {seq}"),
        actor_type: "user".into(),
        action: "Sign".into(),
        entity: "key".into(),
        entity_id: format!("key {seq}"),
        outcome: "success".into(),
        request_id: format!("request {seq}"),
        data: format!(r#"{{"n":{seq}}}"#),
        prev_hash,
        hash: Vec::new(),
    };
    row.hash = hash_of(&row);
    row
}

fn make_rows(stream: &str, after: &Head, count: i64) -> Vec<AuditRow> {
    let mut prev = after.hash.clone();
    (after.seq + 1..=after.seq + count)
        .map(|seq| {
            let row = make_row(stream, seq, prev.clone());
            prev.clone_from(&row.hash);
            row
        })
        .collect()
}

fn no_head() -> Head {
    Head {
        seq: 0,
        hash: vec![0; 32],
    }
}

const ROWS: i64 = 12;

/// A stream of twelve rows.
async fn stream(db: &Db, name: &str) -> Vec<AuditRow> {
    let rows = make_rows(name, &no_head(), ROWS);
    assert!(commit!(db, |tx| tx.append_audit(&rows, 0)));
    assert_eq!(problem(db, name).await, None, "{name} before");
    rows
}

/// Where verification stops, if it does.
async fn problem(db: &Db, stream: &str) -> Option<i64> {
    let reports = verify::verify(db, stream).await.expect("verified");
    assert_eq!(reports.len(), 1);
    reports[0].problem.as_ref().map(|(seq, _)| *seq)
}

async fn tenants_are_unique_and_listed_by_name(db: Db) {
    let names = ["delta", "acme", "carol-1", "bob"].map(tenant);
    for (i, name) in names.iter().enumerate() {
        assert!(!db.tenant_exists(name).await.expect("read"));
        commit!(db, |tx| tx.insert_tenant(name, at(i as i64)));
        assert!(db.tenant_exists(name).await.expect("read"));
        exists!(db, |tx| tx.insert_tenant(name, at(9)));
    }
    let all = db.tenants("", 10).await.expect("read");
    let listed: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(listed, ["acme", "bob", "carol-1", "delta"]);
    assert_eq!(all[0].1, at(1));
    let mut paged = Vec::new();
    loop {
        let after = paged.last().map_or(String::new(), ToString::to_string);
        let page = db.tenants(&after, 3).await.expect("read");
        paged.extend(page.iter().map(|(name, _)| name.clone()));
        if page.len() < 3 {
            break;
        }
    }
    assert_eq!(paged, all.into_iter().map(|(n, _)| n).collect::<Vec<_>>());
}

async fn principals_come_back_as_they_were(db: Db) {
    let (acme, globex) = with_tenants(&db).await;
    let mut wanted = a_principal(&acme, "worker");
    wanted.identities = [
        "cn:Ünï-Wörker",
        "dns:a.example",
        "spiffe://acme/ns/x/sa/'y'",
    ]
    .map(|text| text.parse().expect("an identity"))
    .to_vec();
    commit!(db, |tx| tx.insert_principal(&wanted));
    let by_id = db.principal(wanted.id).await.expect("read");
    assert_eq!(debug(&by_id), debug(&Some(&wanted)));
    let by_name = db.principal_by_name(&acme, "worker").await.expect("read");
    assert_eq!(debug(&by_name), debug(&Some(&wanted)));
    for identity in &wanted.identities {
        let found = db.principal_by_identity(identity).await.expect("read");
        assert_eq!(debug(&found), debug(&Some(&wanted)));
    }
    let nobody = "dns:nobody".parse().expect("an identity");
    assert!(
        db.principal_by_identity(&nobody)
            .await
            .expect("read")
            .is_none()
    );
    assert!(
        db.principal(PrincipalId::random())
            .await
            .expect("read")
            .is_none()
    );
    let elsewhere = db.principal_by_name(&globex, "worker").await;
    assert!(elsewhere.expect("read").is_none());
}

async fn names_and_identities_of_principals_are_unique(db: Db) {
    let (acme, globex) = with_tenants(&db).await;
    let first = principal(&db, &acme, "worker").await;
    let mut same_name = a_principal(&acme, "worker");
    same_name.identities = vec!["dns:other".parse().expect("an identity")];
    exists!(db, |tx| tx.insert_principal(&same_name));
    let mut same_identity = a_principal(&globex, "thief");
    same_identity.identities.extend(first.identities.clone());
    exists!(db, |tx| tx.insert_principal(&same_identity));
    // The refused ones left nothing, not even the identities before the one that was taken.
    assert_eq!(number(&db, "SELECT COUNT(*) FROM principals").await, 1);
    assert_eq!(
        number(&db, "SELECT COUNT(*) FROM principal_identities").await,
        1
    );
    principal(&db, &globex, "worker").await;
}

async fn roles_are_given_and_taken_once(db: Db) {
    let (acme, _) = with_tenants(&db).await;
    let worker = principal(&db, &acme, "worker").await;
    let all: Vec<_> = Role::ALL
        .into_iter()
        .flat_map(|role| {
            [Scope::All, Scope::Tenant(acme.clone())].map(|scope| Grant { role, scope })
        })
        .collect();
    for grant in &all {
        commit!(db, |tx| tx.insert_grant(worker.id, grant));
        exists!(db, |tx| tx.insert_grant(worker.id, grant));
    }
    let held = db.principal(worker.id).await.expect("read").expect("there");
    assert_eq!(held.grants.len(), all.len());
    assert!(all.iter().all(|grant| held.grants.contains(grant)));
    for grant in &all {
        assert!(commit!(db, |tx| tx.delete_grant(worker.id, grant)));
        assert!(!commit!(db, |tx| tx.delete_grant(worker.id, grant)));
    }
    let held = db.principal(worker.id).await.expect("read").expect("there");
    assert!(held.grants.is_empty());
}

async fn principals_are_listed_oldest_first(db: Db) {
    let (acme, globex) = with_tenants(&db).await;
    let mut made = Vec::new();
    for i in 0..7 {
        made.push(principal(&db, &acme, &format!("p{i}")).await.id);
        principal(&db, &globex, &format!("p{i}")).await;
    }
    made.sort();
    let mut listed: Vec<PrincipalId> = Vec::new();
    loop {
        let after = listed.last().map_or(String::new(), ToString::to_string);
        let page = db.principals(&acme, &after, 3).await.expect("read");
        listed.extend(page.iter().map(|p| p.id));
        if page.len() < 3 {
            break;
        }
    }
    assert_eq!(listed, made);
}

async fn keys_come_back_as_they_were(db: Db) {
    let (acme, _) = with_tenants(&db).await;
    for (i, algorithm) in Algorithm::ALL.into_iter().enumerate() {
        let mut key = a_key(&acme, &format!("k{i}"));
        key.algorithm = algorithm;
        key.purpose = [Purpose::Signing, Purpose::TokenSigning, Purpose::Encryption][i % 3];
        key.rsa_bits = 1024 * i as u32;
        key.owner = "O'Brien \"security\" 鍵🔑 \\ %s".into();
        commit!(db, |tx| tx.insert_key(&key));
        for reference in [KeyRef::Id(key.id), KeyRef::Name(key.name.clone())] {
            let found = db.key(&acme, &reference).await.expect("read");
            assert_eq!(debug(&found), debug(&Some(&key)));
        }
    }
}

async fn a_key_is_found_in_its_own_tenant_only(db: Db) {
    let (acme, globex) = with_tenants(&db).await;
    let key = key(&db, &acme, "signer").await;
    for reference in [
        KeyRef::Id(key.id),
        KeyRef::Name(key.name.clone()),
        KeyRef::Id(KeyId::random()),
        KeyRef::Name("nothing".parse().expect("a name")),
    ] {
        assert!(db.key(&globex, &reference).await.expect("read").is_none());
    }
    assert!(db.versions(KeyId::random()).await.expect("read").is_empty());
    assert!(db.active_kid(key.id).await.expect("read").is_none());
    assert!(db.key_of_kid(&Kid::random()).await.expect("read").is_none());
}

async fn key_names_are_unique_in_a_tenant(db: Db) {
    let (acme, globex) = with_tenants(&db).await;
    let first = key(&db, &acme, "signer").await;
    exists!(db, |tx| tx.insert_key(&a_key(&acme, "signer")));
    let mut same_id = a_key(&globex, "other");
    same_id.id = first.id;
    exists!(db, |tx| tx.insert_key(&same_id));
    key(&db, &globex, "signer").await;
    assert_eq!(debug(&find(&db, &first).await), debug(&first));
}

async fn keys_are_written_only_from_the_revision_that_was_read(db: Db) {
    let (acme, _) = with_tenants(&db).await;
    let read = key(&db, &acme, "signer").await;
    let mut mine = read.clone();
    mine.owner = "mine".into();
    mine.rotation_period = Duration::from_secs(3600);
    mine.next_rotation_at = at(77);
    assert!(commit!(db, |tx| tx.update_key(&mine)));
    let mut theirs = read.clone();
    theirs.owner = "theirs".into();
    assert!(!commit!(db, |tx| tx.update_key(&theirs)));
    mine.revision = 2;
    assert_eq!(debug(&find(&db, &read).await), debug(&mine));
    theirs.revision = 2;
    theirs.id = KeyId::random();
    assert!(!commit!(db, |tx| tx.update_key(&theirs)));
    // Name, purpose and algorithm are for life: an update does not write them.
    let mut other = mine.clone();
    other.purpose = Purpose::Signing;
    other.algorithm = Algorithm::EdDsa;
    other.name = "renamed".parse().expect("a name");
    assert!(commit!(db, |tx| tx.update_key(&other)));
    mine.revision = 3;
    assert_eq!(debug(&find(&db, &read).await), debug(&mine));
}

async fn keys_are_listed_oldest_first_and_by_due_date(db: Db) {
    let (acme, globex) = with_tenants(&db).await;
    let mut made = Vec::new();
    for i in 0..7 {
        let mut key = a_key(&acme, &format!("k{i}"));
        key.next_rotation_at = at(100 * i);
        commit!(db, |tx| tx.insert_key(&key));
        made.push(key.id);
        self::key(&db, &globex, &format!("k{i}")).await;
    }
    made.sort();
    let all = KeyFilter::default();
    let mut listed: Vec<KeyId> = Vec::new();
    loop {
        let after = listed.last().map_or(String::new(), ToString::to_string);
        let page = db.keys(&acme, &after, &all, 2).await.expect("read");
        listed.extend(page.iter().map(|listed| listed.key.id));
        if page.len() < 2 {
            break;
        }
    }
    assert_eq!(listed, made);
    let before = KeyFilter {
        due_before: Some(at(300)),
        ..Default::default()
    };
    let due = db.keys(&acme, "", &before, 10).await.expect("read");
    assert_eq!(due.len(), 3);
    let is_due = |listed: &ListedKey| listed.key.next_rotation_at < at(300);
    assert!(due.iter().all(is_due));
    let none = db.keys(&tenant("nobody"), "", &all, 10).await;
    assert!(none.expect("read").is_empty());
}

async fn versions_of_both_materials_come_back_as_they_were(db: Db) {
    let (acme, _) = with_tenants(&db).await;
    let key = key(&db, &acme, "signer").await;
    let publics = [
        PublicKey::Ec {
            curve: Curve::P521,
            x: vec![1; 66],
            y: vec![2; 66],
        },
        PublicKey::Ec {
            curve: Curve::P384,
            x: vec![0; 48],
            y: vec![255; 48],
        },
        PublicKey::Ed25519([3; 32]),
        PublicKey::Rsa {
            n: vec![0xff; 256],
            e: vec![1, 0, 1],
        },
    ];
    let reference = || BackendRef("pkcs11:token=it's;id=%00%ff".into());
    let pairs = publics.into_iter().map(|public_key| Material::KeyPair {
        backend: "hsm".into(),
        reference: reference(),
        public_key,
    });
    let data = [vec![], vec![0], (0..=255).collect()].map(|wrapped| Material::DataKey {
        sealed_secret: None,
        kek: reference(),
        wrapped,
    });
    let mut made = Vec::new();
    for (i, material) in pairs.chain(data).enumerate() {
        let number = 1 + i as u32;
        let mut version = a_version(&key, number, VersionState::ALL[i % 6]);
        version.material = material;
        version.announced_at = (i % 2 == 0).then_some(at(i64::MAX));
        version.activated_at = (i % 3 == 0).then_some(at(-1));
        version.deactivated_at = (i % 4 == 0).then_some(at(0));
        if version.state == VersionState::Active && i > 1 {
            version.state = VersionState::Retired;
        }
        made.push(version);
    }
    with_kek(&db, &reference().0).await;
    // Written in the opposite order: the number orders them, not the time of writing.
    for version in made.iter().rev() {
        commit!(db, |tx| tx.insert_version(version));
    }
    let read = db.versions(key.id).await.expect("read");
    assert_eq!(debug(&read), debug(&made));
    for version in &made {
        let owner = db.key_of_kid(&version.kid).await.expect("read");
        assert_eq!(owner, Some(key.id));
    }
    let active = db.active_kid(key.id).await.expect("read");
    assert_eq!(active, Some(made[1].kid.clone()));
}

/// A KEK that data keys may be under; one that is there already stays.
async fn with_kek(db: &Db, reference: &str) {
    let mut tx = db.begin().await.expect("begun");
    let kek = KekRow {
        reference: BackendRef(reference.to_owned()),
        backend: "hsm".into(),
        state: KekState::Deactivated,
        probe: vec![1],
        probe_digest: vec![2],
        created_at: at(1),
        activated_at: Some(at(1)),
        deactivated_at: None,
        retired_at: None,
    };
    match tx.insert_kek(&kek).await {
        Ok(()) => tx.commit().await.expect("committed"),
        Err(error) => assert!(matches!(error, StoreError::Exists(_)), "{error}"),
    }
}

/// What holds a row of a KEK until it commits, and who would retire the KEK meanwhile.
async fn data_keys_are_added_only_under_keks_that_unwrap(db: Db) {
    let (acme, _) = with_tenants(&db).await;
    let key = key(&db, &acme, "vault").await;
    let mut version = a_version(&key, 1, VersionState::Active);
    version.material = Material::DataKey {
        sealed_secret: None,
        kek: BackendRef("kek".into()),
        wrapped: vec![1],
    };
    let unknown = async |version: &KeyVersion| {
        let mut tx = db.begin().await.expect("begun");
        let error = tx.insert_version(version).await.expect_err("no such KEK");
        assert!(matches!(error, StoreError::KekGone), "{error}");
    };
    unknown(&version).await;
    with_kek(&db, "kek").await;
    commit!(db, |tx| tx.insert_version(&version));
    let (kek, now) = (BackendRef("kek".into()), at(5));
    commit!(db, |tx| tx.move_kek(
        &kek,
        KekState::Deactivated,
        KekState::Retired,
        now
    ));
    let mut next = a_version(&key, 2, VersionState::PreActive);
    next.material = version.material.clone();
    unknown(&next).await;
}

/// A transition written from an old picture of the version must not bring the old wrapped form back: it would be
/// recorded under a KEK that does not unwrap it.
async fn a_transition_keeps_what_was_rewrapped_meanwhile(db: Db) {
    let (acme, _) = with_tenants(&db).await;
    let key = key(&db, &acme, "vault").await;
    with_kek(&db, "old").await;
    let mut version = a_version(&key, 1, VersionState::Active);
    version.material = Material::DataKey {
        sealed_secret: Some(vec![9]),
        kek: BackendRef("old".into()),
        wrapped: vec![1],
    };
    commit!(db, |tx| tx.insert_version(&version));
    let row = db.wrapped_key(&version.kid).await.expect("read");
    let moved = Rewrapped {
        old: row.expect("a data key"),
        wrapped: vec![2],
    };
    let new = BackendRef("new".into());
    let mut tx = db.begin().await.expect("begun");
    assert!(tx.rewrap(&moved, &new).await.expect("written"));
    // R-OPS-1: compare-and-set, so nothing is moved twice.
    assert!(!tx.rewrap(&moved, &new).await.expect("written"));
    version.state = VersionState::VerifyOnly;
    let written = tx.update_version(&version, VersionState::Active).await;
    assert!(written.expect("written"));
    tx.commit().await.expect("committed");
    let read = db.versions(key.id).await.expect("read");
    let Material::DataKey {
        kek,
        wrapped,
        sealed_secret,
    } = &read[0].material
    else {
        panic!("{:?}", read[0].material);
    };
    assert_eq!((kek, wrapped.as_slice()), (&new, &[2][..]));
    assert_eq!(sealed_secret.as_deref(), Some(&[9][..]));
    assert_eq!(read[0].state, VersionState::VerifyOnly);
}

async fn a_second_active_version_is_refused(db: Db) {
    let (acme, globex) = with_tenants(&db).await;
    let signer = key(&db, &acme, "signer").await;
    let active = version(&db, &signer, 1, VersionState::Active).await;
    let second = a_version(&signer, 2, VersionState::Active);
    exists!(db, |tx| tx.insert_version(&second));
    let mut waiting = version(&db, &signer, 2, VersionState::PreActive).await;
    waiting.state = VersionState::Active;
    exists!(db, |tx| tx
        .update_version(&waiting, VersionState::PreActive));
    assert_eq!(
        db.active_kid(signer.id).await.expect("read"),
        Some(active.kid.clone())
    );
    // Another key has its own, and the old one makes room within one transaction.
    let other = key(&db, &globex, "signer").await;
    version(&db, &other, 1, VersionState::Active).await;
    let mut old = active;
    old.state = VersionState::VerifyOnly;
    let mut tx = db.begin().await.expect("a transaction");
    assert!(
        tx.update_version(&old, VersionState::Active)
            .await
            .expect("moved")
    );
    let moved = tx.update_version(&waiting, VersionState::PreActive).await;
    assert!(moved.expect("moved"));
    tx.commit().await.expect("committed");
    let now = db.active_kid(signer.id).await.expect("read");
    assert_eq!(now, Some(waiting.kid));
}

async fn versions_are_unique_and_change_only_from_the_state_that_was_read(db: Db) {
    let (acme, _) = with_tenants(&db).await;
    let signer = key(&db, &acme, "signer").await;
    let other = key(&db, &acme, "other").await;
    let first = version(&db, &signer, 1, VersionState::PreActive).await;
    let mut same_kid = a_version(&other, 1, VersionState::PreActive);
    same_kid.kid = first.kid.clone();
    exists!(db, |tx| tx.insert_version(&same_kid));
    exists!(db, |tx| tx.insert_version(&a_version(
        &signer,
        1,
        VersionState::Retired
    )));
    let mut changed = first.clone();
    changed.announced_at = Some(at(5));
    changed.activated_at = Some(at(6));
    changed.deactivated_at = Some(at(7));
    changed.state = VersionState::Compromised;
    for from in VersionState::ALL {
        let is = from == VersionState::PreActive;
        let mut tx = db.begin().await.expect("a transaction");
        let moved = tx.update_version(&changed, from).await.expect("written");
        assert_eq!(moved, is, "{from}");
    }
    assert!(commit!(db, |tx| tx
        .update_version(&changed, VersionState::PreActive)));
    assert!(!commit!(db, |tx| tx
        .update_version(&changed, VersionState::PreActive)));
    let read = db.versions(signer.id).await.expect("read");
    assert_eq!(debug(&read), debug(&vec![changed]));
}

async fn published_keys_are_those_that_verifiers_need(db: Db) {
    let (acme, _) = with_tenants(&db).await;
    let mut expected = Vec::new();
    for (i, state) in VersionState::ALL.into_iter().enumerate() {
        for announced in [None, Some(at(3))] {
            for purpose in [Purpose::TokenSigning, Purpose::Signing] {
                let name = format!(
                    "{}-{}-{i}",
                    purpose.as_str().to_lowercase(),
                    announced.is_some()
                );
                let mut key = a_key(&acme, &name);
                key.purpose = purpose;
                commit!(db, |tx| tx.insert_key(&key));
                let mut version = a_version(&key, 1, state);
                version.announced_at = announced;
                commit!(db, |tx| tx.insert_version(&version));
                if purpose == Purpose::TokenSigning && version.is_published() {
                    expected.push(version.kid);
                }
            }
        }
    }
    let published = db.published_keys().await.expect("read");
    let mut kids: Vec<_> = published.into_iter().map(|(kid, ..)| kid).collect();
    kids.sort();
    expected.sort();
    assert_eq!(kids, expected);
    assert_eq!(kids.len(), 5);
}

async fn rotations_come_back_with_their_approvals(db: Db) {
    let scene = scene(&db).await;
    let mut rotation = scene.rotation();
    rotation.approvals_needed = NonZeroU32::MAX;
    commit!(db, |tx| tx.insert_rotation(&rotation));
    let read = db.rotation(rotation.id).await.expect("read");
    assert_eq!(debug(&read), debug(&Some(&rotation)));
    // In order of time, whatever the order of writing.
    for (person, time) in [(1, 9), (2, 4)] {
        let approval = Approval {
            approver: scene.people[person].id,
            at: at(time),
        };
        commit!(db, |tx| tx.insert_approval(rotation.id, &approval));
        exists!(db, |tx| tx.insert_approval(rotation.id, &approval));
        rotation.approvals.insert(0, approval);
    }
    rotation.state = RotationState::Deployed;
    rotation.deployer = Some(scene.people[2].id);
    rotation.announced_at = Some(at(1_700_000_000_000_005));
    rotation.deployed_at = Some(at(1_700_000_000_000_007));
    assert!(commit!(db, |tx| tx
        .update_rotation(&rotation, RotationState::Requested)));
    let read = db.rotation(rotation.id).await.expect("read");
    assert_eq!(debug(&read), debug(&Some(&rotation)));
    assert!(
        db.rotation(RotationId::random())
            .await
            .expect("read")
            .is_none()
    );
}

async fn a_second_open_rotation_is_refused(db: Db) {
    let scene = scene(&db).await;
    let mut first = scene.rotation();
    commit!(db, |tx| tx.insert_rotation(&first));
    exists!(db, |tx| tx.insert_rotation(&scene.rotation()));
    first.state = RotationState::Approved;
    assert!(commit!(db, |tx| tx
        .update_rotation(&first, RotationState::Requested)));
    exists!(db, |tx| tx.insert_rotation(&scene.rotation()));
    first.state = RotationState::Deployed;
    assert!(commit!(db, |tx| tx.update_rotation(&first, RotationState::Approved)));
    commit!(db, |tx| tx.insert_rotation(&scene.rotation()));
    exists!(db, |tx| tx.insert_rotation(&scene.rotation()));
}

async fn rotations_change_only_from_the_state_that_was_read(db: Db) {
    let scene = scene(&db).await;
    let mut rotation = scene.rotation();
    commit!(db, |tx| tx.insert_rotation(&rotation));
    rotation.state = RotationState::Approved;
    for from in [RotationState::Approved, RotationState::Deployed] {
        assert!(!commit!(db, |tx| tx.update_rotation(&rotation, from)));
    }
    let read = db
        .rotation(rotation.id)
        .await
        .expect("read")
        .expect("there");
    assert_eq!(read.state, RotationState::Requested);
    assert!(commit!(db, |tx| tx
        .update_rotation(&rotation, RotationState::Requested)));
    assert!(!commit!(db, |tx| tx
        .update_rotation(&rotation, RotationState::Requested)));
}

async fn rotations_are_listed_newest_first(db: Db) {
    let scene = scene(&db).await;
    let mut made = Vec::new();
    for i in 0..7 {
        let mut rotation = scene.rotation();
        commit!(db, |tx| tx.insert_rotation(&rotation));
        made.push(rotation.id);
        if i < 6 {
            rotation.state = RotationState::Deployed;
            assert!(commit!(db, |tx| tx
                .update_rotation(&rotation, RotationState::Requested)));
        }
    }
    made.sort();
    made.reverse();
    let acme = &scene.key.tenant;
    let mut listed: Vec<RotationId> = Vec::new();
    loop {
        let before = listed.last().map_or(String::new(), ToString::to_string);
        let page = db.rotations(acme, None, None, &before, 2).await;
        let page = page.expect("read");
        listed.extend(page.iter().map(|r| r.id));
        if page.len() < 2 {
            break;
        }
    }
    assert_eq!(listed, made);
    let count = async |tenant: &TenantName, key, state| {
        let page = db.rotations(tenant, key, state, "", 100).await;
        page.expect("read").len()
    };
    assert_eq!(count(acme, Some(scene.key.id), None).await, 7);
    assert_eq!(count(acme, Some(KeyId::random()), None).await, 0);
    assert_eq!(count(acme, None, Some(RotationState::Requested)).await, 1);
    assert_eq!(count(acme, None, Some(RotationState::Deployed)).await, 6);
    assert_eq!(count(acme, None, Some(RotationState::Approved)).await, 0);
    assert_eq!(count(&tenant("globex"), None, None).await, 0);
}

async fn intents_are_durable_and_settled_once(db: Db) {
    let (acme, _) = with_tenants(&db).await;
    let count = async |state: &str| {
        let text = format!("SELECT COUNT(*) FROM backend_intents WHERE state = '{state}'");
        number(&db, &text).await
    };
    let ids = [IntentId::random(), IntentId::random(), IntentId::random()];
    for id in ids {
        let label = "acme/it's/1";
        db.record_intent(id, "hsm", &acme, label, at(1))
            .await
            .expect("recorded");
        let again = db.record_intent(id, "hsm", &acme, label, at(1)).await;
        assert!(matches!(again, Err(StoreError::Exists(_))), "{again:?}");
    }
    assert_eq!(count("PENDING").await, 3);
    commit!(db, |tx| tx.settle_intent(ids[0], IntentState::Done));
    commit!(db, |tx| tx.settle_intent(ids[1], IntentState::Failed));
    // What has ended does not change its end.
    commit!(db, |tx| tx.settle_intent(ids[0], IntentState::Failed));
    assert_eq!(
        (
            count("PENDING").await,
            count("DONE").await,
            count("FAILED").await
        ),
        (1, 1, 1)
    );
}

async fn rows_without_their_parents_are_refused(db: Db) {
    let scene = scene(&db).await;
    let nowhere = tenant("nowhere");
    macro_rules! refused {
        (|$tx:ident| $act:expr) => {{
            let mut $tx = db.begin().await.expect("a transaction");
            assert!($act.await.is_err());
        }};
    }
    refused!(|tx| tx.insert_key(&a_key(&nowhere, "orphan")));
    refused!(|tx| tx.insert_principal(&a_principal(&nowhere, "orphan")));
    let orphan = a_version(&a_key(&nowhere, "orphan"), 1, VersionState::PreActive);
    refused!(|tx| tx.insert_version(&orphan));
    let grant = Grant {
        role: Role::Auditor,
        scope: Scope::All,
    };
    refused!(|tx| tx.insert_grant(PrincipalId::random(), &grant));
    let mut rotation = scene.rotation();
    rotation.new_kid = Kid::random();
    refused!(|tx| tx.insert_rotation(&rotation));
    rotation = scene.rotation();
    rotation.requester = PrincipalId::random();
    refused!(|tx| tx.insert_rotation(&rotation));
}

async fn a_dropped_transaction_changes_nothing(db: Db) {
    let scene = scene(&db).await;
    let mut tx = db.begin().await.expect("a transaction");
    tx.insert_tenant(&tenant("ghost"), at(1))
        .await
        .expect("written");
    tx.insert_key(&a_key(&scene.key.tenant, "ghost"))
        .await
        .expect("written");
    let ghost = a_version(&scene.key, 3, VersionState::PreActive);
    tx.insert_version(&ghost).await.expect("written");
    tx.insert_rotation(&scene.rotation())
        .await
        .expect("written");
    let mut changed = scene.key.clone();
    changed.owner = "ghost".into();
    assert!(tx.update_key(&changed).await.expect("written"));
    admin::append(&mut tx, record("ghost"))
        .await
        .expect("written");
    drop(tx);
    assert!(!db.tenant_exists(&tenant("ghost")).await.expect("read"));
    assert_eq!(debug(&find(&db, &scene.key).await), debug(&scene.key));
    assert_eq!(db.versions(scene.key.id).await.expect("read").len(), 2);
    assert_eq!(number(&db, "SELECT COUNT(*) FROM keys").await, 1);
    assert_eq!(number(&db, "SELECT COUNT(*) FROM rotations").await, 0);
    assert!(db.audit_head(ADMIN_STREAM).await.expect("read").is_none());
    assert!(db.audit_streams().await.expect("read").is_empty());
}

// R-OPS-5: a creation that was under way when the tenant was erased waits for that and is refused.
async fn nothing_is_created_in_a_tenant_that_is_erased_meanwhile(db: Db) {
    let (erased, other) = with_tenants(&db).await;
    let old = key(&db, &erased, "old").await;
    let mut tx = db.begin().await.expect("begun");
    assert!(tx.erase_tenant(&erased, at(9)).await.expect("erased"));
    let (late, draft) = (db.clone(), a_key(&erased, "late"));
    let creating = tokio::spawn(async move {
        let mut tx = late.begin().await.expect("begun");
        tx.insert_key(&draft).await
    });
    tx.commit().await.expect("committed");
    let refused = creating.await.expect("no panic");
    assert!(
        matches!(refused, Err(StoreError::TenantErased)),
        "{refused:?}"
    );
    let mut tx = db.begin().await.expect("begun");
    let version = a_version(&old, 1, VersionState::PreActive);
    let refused = tx.insert_version(&version).await;
    assert!(
        matches!(refused, Err(StoreError::TenantErased)),
        "{refused:?}"
    );
    let refused = tx.insert_principal(&a_principal(&erased, "late")).await;
    assert!(
        matches!(refused, Err(StoreError::TenantErased)),
        "{refused:?}"
    );
    assert!(!tx.erase_tenant(&erased, at(10)).await.expect("asked again"));
    drop(tx);
    let refused = claviger::error::Error::from(StoreError::TenantErased);
    assert_eq!(refused.reason(), Reason::TenantErased);
    key(&db, &other, "fine").await;
}

/// Both take the tenant's row first. In another order each would wait for what the other holds.
async fn a_destruction_begins_and_another_is_asked_for_without_waiting_for_each_other(db: Db) {
    let (acme, _) = with_tenants(&db).await;
    let [asks, agrees] = ["asks", "agrees"].map(|name| a_principal(&acme, name));
    for person in [&asks, &agrees] {
        commit!(db, |tx| tx.insert_principal(person));
    }
    let ask = || TenantDestruction::request(acme.clone(), "gone".into(), asks.id, at(1));
    let asked = ask().expect("asked");
    commit!(db, |tx| tx.insert_tenant_destruction(&asked));
    let approved = asked.approve(agrees.id, &acme, Duration::ZERO, at(2));
    let approved = approved.expect("approved");
    let requested = TenantDestructionState::Requested;
    commit!(db, |tx| tx.update_tenant_destruction(&approved, requested));
    let begun = approved.begin(at(3)).expect("due");

    let mut asking = db.begin().await.expect("begun");
    asking.hold_tenant(&acme).await.expect("not erased yet");
    let beginning = tokio::spawn({
        let db = db.clone();
        async move {
            let mut tx = db.begin().await?;
            let done = tx.begin_tenant_destruction(&begun).await?;
            tx.commit().await.map(|()| done)
        }
    });
    if let Db::Postgres(_) = &db {
        waits_for_a_lock(&db).await;
    }
    let second = ask().expect("asked");
    let refused = asking.insert_tenant_destruction(&second).await;
    assert!(matches!(refused, Err(StoreError::Exists(_))), "{refused:?}");
    drop(asking);
    let done = beginning.await.expect("no panic");
    assert!(done.expect("no deadlock"), "it was SCHEDULED");
    let erased = db.expect_unerased(&acme).await;
    assert!(
        matches!(erased, Err(StoreError::TenantErased)),
        "{erased:?}"
    );
}

/// Until somebody in this database waits for a row.
async fn waits_for_a_lock(db: &Db) {
    let waiting = "SELECT COUNT(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while number(db, waiting).await == 0 {
        assert!(std::time::Instant::now() < until, "nobody waits");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn rows_that_cannot_be_are_corrupt(db: Db) {
    let scene = scene(&db).await;
    let acme = &scene.key.tenant;
    let rotation = scene.rotation();
    commit!(db, |tx| tx.insert_rotation(&rotation));
    let by_id = KeyRef::Id(scene.key.id);
    // Each change is taken back, so that each is found on its own.
    let set = async |table: &str, column: &str, value: &str| {
        sql(&db, format!("CREATE TABLE saved AS SELECT * FROM {table}")).await;
        sql(&db, format!("UPDATE {table} SET {column} = {value}")).await;
    };
    let restore = async |table: &str, column: &str, id: &str| {
        sql(
            &db,
            format!("UPDATE {table} SET {column} = (SELECT s.{column} FROM saved s WHERE s.{id} = {table}.{id})"),
        )
        .await;
        sql(&db, "DROP TABLE saved").await;
    };
    for (column, value) in [
        ("name", "'UPPER'"),
        ("purpose", "'EXPORT'"),
        ("algorithm", "'none'"),
        ("rsa_bits", "-1"),
        ("rsa_bits", "4294967296"),
        ("rotation_period", "-1"),
    ] {
        set("keys", column, value).await;
        corrupt!(db.key(acme, &by_id));
        corrupt!(db.keys(acme, "", &KeyFilter::default(), 10));
        restore("keys", column, "id").await;
    }
    for (column, value) in [
        ("number", "-number"),
        ("state", "state || 'X'"),
        ("backend_ref", "NULL"),
        ("public_jwk", "NULL"),
        ("public_jwk", "'{}'"),
        (
            "public_jwk",
            "'{\"crv\":\"P-256\",\"kty\":\"EC\",\"x\":\"\",\"y\":\"\"}'",
        ),
        ("kek_ref", "'kek'"),
    ] {
        set("key_versions", column, value).await;
        corrupt!(db.versions(scene.key.id));
        restore("key_versions", column, "kid").await;
    }
    for (column, value) in [
        ("state", "'DONE'"),
        ("justification", "justification"),
        ("soak", "-1"),
        ("approvals_needed", "4294967296"),
    ] {
        set("rotations", column, value).await;
        if column != "justification" {
            corrupt!(db.rotation(rotation.id));
        }
        restore("rotations", column, "id").await;
    }
    set("principals", "kind", "'root'").await;
    corrupt!(db.principal(scene.people[0].id));
    corrupt!(db.principals(acme, "", 10));
    restore("principals", "kind", "id").await;
    set("principal_identities", "identity", "'http:' || identity").await;
    corrupt!(db.principal(scene.people[0].id));
    sql(&db, "DROP TABLE saved").await;
    sql(&db, "DELETE FROM principal_identities").await;
    for (role, scope) in [("root", "acme"), ("auditor", "ACME")] {
        let id = scene.people[0].id;
        sql(
            &db,
            format!("INSERT INTO role_grants VALUES ('{id}', '{role}', '{scope}')"),
        )
        .await;
        corrupt!(db.principal(id));
        sql(&db, "DELETE FROM role_grants").await;
    }
    sql(
        &db,
        "INSERT INTO tenants (name, created_at) VALUES ('Not A Tenant', 0)",
    )
    .await;
    corrupt!(db.tenants("", 10));
    // Everything was put back.
    db.key(acme, &by_id).await.expect("read").expect("there");
    db.versions(scene.key.id).await.expect("read");
    db.rotation(rotation.id).await.expect("read");
    db.principal(scene.people[0].id).await.expect("read");
}

async fn an_audit_row_goes_behind_the_head_only(db: Db) {
    let name = "access/a";
    let rows = stream(&db, name).await;
    let head = Head {
        seq: ROWS,
        hash: rows[11].hash.clone(),
    };
    let refused = async |rows: &[AuditRow], from: i64| {
        let mut tx = db.begin().await.expect("a transaction");
        match tx.append_audit(rows, from).await {
            Ok(appended) => assert!(!appended, "from {from}"),
            Err(error) => assert!(matches!(error, StoreError::Exists(_)), "{error:?}"),
        }
    };
    // Twice the same rows, a head that has moved on, one that was never reached, a stream that is not new.
    refused(&rows, 0).await;
    refused(&rows[11..], 11).await;
    refused(
        &make_rows(
            name,
            &Head {
                seq: 20,
                ..head.clone()
            },
            2,
        ),
        20,
    )
    .await;
    refused(&make_rows(name, &head, 2), 0).await;
    refused(&make_rows(name, &head, 2), 11).await;
    assert_eq!(db.audit_head(name).await.expect("read"), Some(head.clone()));
    assert_eq!(problem(&db, name).await, None);
    assert!(commit!(db, |tx| tx.append_audit(&[], 99)));
    let more = make_rows(name, &head, 2);
    assert!(commit!(db, |tx| tx.append_audit(&more, ROWS)));
    assert_eq!(problem(&db, name).await, None);
    let in_tx = commit!(db, |tx| tx.audit_head(name)).expect("a head");
    assert_eq!(in_tx.seq, ROWS + 2);
}

async fn long_audit_batches_are_whole(db: Db) {
    let mut head = no_head();
    for count in [1, 2, 3, 511, 512, 513, 1025] {
        let rows = make_rows("access/long", &head, count);
        assert!(commit!(db, |tx| tx.append_audit(&rows, head.seq)));
        let last = rows.last().expect("rows");
        head = Head {
            seq: last.seq,
            hash: last.hash.clone(),
        };
    }
    let report = verify::verify(&db, "access/long").await.expect("verified");
    assert_eq!((report[0].rows, &report[0].problem), (head.seq, &None));
    assert_eq!(report[0].head, head);
    let read = db.audit_chain("access/long", 0, 5000).await.expect("read");
    assert_eq!(read, make_rows("access/long", &no_head(), head.seq));
}

async fn concurrent_changes_leave_one_gapless_chain(db: Db) {
    const TASKS: i64 = 16;
    const EACH: i64 = 50;
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let db = db.clone();
            tokio::spawn(async move {
                let mut receipts = Vec::new();
                for i in 0..EACH {
                    let mut tx = db.begin().await.expect("a transaction");
                    let record = record(&format!("{task}/{i}"));
                    let receipt = admin::append(&mut tx, record).await.expect("appended");
                    tx.commit().await.expect("committed");
                    receipts.push(receipt.seq);
                }
                receipts
            })
        })
        .collect();
    let mut receipts = Vec::new();
    for task in tasks {
        receipts.extend(task.await.expect("the task ends well"));
    }
    receipts.sort_unstable();
    assert_eq!(receipts, (1..=TASKS * EACH).collect::<Vec<_>>());
    assert_gapless(&db, ADMIN_STREAM, TASKS * EACH).await;
}

async fn assert_gapless(db: &Db, stream: &str, count: i64) {
    let rows = db.audit_chain(stream, 0, count + 10).await.expect("read");
    let seqs: Vec<_> = rows.iter().map(|row| row.seq).collect();
    assert_eq!(seqs, (1..=count).collect::<Vec<_>>());
    assert!(rows.iter().all(|row| row.hash == hash_of(row)));
    let mut actors: Vec<_> = rows.iter().map(|row| &row.actor).collect();
    actors.sort_unstable();
    actors.dedup();
    assert_eq!(actors.len(), rows.len(), "every record once");
    assert_eq!(problem(db, stream).await, None);
}

fn access(replica: &str, access: AccessMode) -> AccessConfig {
    AccessConfig {
        access,
        replica: replica.into(),
        checkpoint: None,
        retention: Default::default(),
    }
}

async fn concurrent_accesses_leave_one_gapless_chain(db: Db) {
    const CALLERS: i64 = 64;
    const EACH: i64 = 25;
    let (log, writer) = AccessLog::new(db.clone(), &access("r1", AccessMode::Required));
    let writer = tokio::spawn(writer.run());
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (log, db) = (log.clone(), db.clone());
            tokio::spawn(async move {
                for i in 0..EACH {
                    let actor = format!("{caller}/{i}");
                    log.append(record(&actor)).await.expect("recorded");
                    // The answer may leave only when the row is there.
                    let filter = filter(|f| f.actor = actor);
                    assert_eq!(db.audit_events(&filter).await.expect("read").len(), 1);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("the caller ends well");
    }
    drop(log);
    writer.await.expect("the writer ends with its last handle");
    assert_gapless(&db, "access/r1", CALLERS * EACH).await;
}

async fn a_second_writer_of_a_stream_is_noticed(db: Db) {
    let config = access("same", AccessMode::Required);
    let (one, first) = AccessLog::new(db.clone(), &config);
    let (two, second) = AccessLog::new(db.clone(), &config);
    let writers = [tokio::spawn(first.run()), tokio::spawn(second.run())];
    one.append(record("one/1")).await.expect("recorded");
    two.append(record("two/1")).await.expect("recorded");
    let clash = one.append(record("one/2")).await.expect_err("two writers");
    assert_eq!(clash.reason(), Reason::AuditUnavailable);
    // Nothing of it was written, and the stream goes on without a gap.
    one.append(record("one/3")).await.expect("recorded");
    drop((one, two));
    for writer in writers {
        writer.await.expect("the writer ends");
    }
    assert_gapless(&db, "access/same", 3).await;
    let filter = filter(|f| f.actor = "one/2".into());
    assert!(db.audit_events(&filter).await.expect("read").is_empty());
}

async fn an_access_that_cannot_be_recorded_fails(db: Db) {
    let (log, writer) = AccessLog::new(db.clone(), &access("r1", AccessMode::Required));
    let writer = tokio::spawn(writer.run());
    log.append(record("before")).await.expect("recorded");
    sql(&db, "ALTER TABLE audit_events RENAME TO hidden").await;
    let refused = log.append(record("meanwhile")).await.expect_err("no table");
    assert_eq!(refused.reason(), Reason::AuditUnavailable);
    assert!(refused.retry_delay().is_some());
    sql(&db, "ALTER TABLE hidden RENAME TO audit_events").await;
    log.append(record("after")).await.expect("recorded");
    drop(log);
    writer.await.expect("the writer ends");
    assert_gapless(&db, "access/r1", 2).await;
    // A writer that is gone is no reason to hang or to succeed.
    let (log, writer) = AccessLog::new(db, &access("r2", AccessMode::Required));
    drop(writer);
    let refused = log.append(record("nobody")).await.expect_err("no writer");
    assert_eq!(refused.reason(), Reason::AuditUnavailable);
}

async fn weaker_access_modes_record_what_they_say(db: Db) {
    for (mode, replica, rows) in [(AccessMode::BestEffort, "b", 3), (AccessMode::Off, "o", 1)] {
        let (log, writer) = AccessLog::new(db.clone(), &access(replica, mode));
        let writer = tokio::spawn(writer.run());
        for outcome in Outcome::ALL {
            let mut record = record(outcome.as_str());
            record.outcome = outcome;
            log.append(record).await.expect("accepted");
        }
        assert_eq!(log.records_success(), mode == AccessMode::BestEffort);
        drop(log);
        writer.await.expect("the writer ends when all is written");
        let stream = format!("access/{replica}");
        let read = db.audit_chain(&stream, 0, 10).await.expect("read");
        assert_eq!(read.len(), rows);
        assert!(read.iter().any(|row| row.outcome == "refused"));
    }
}

async fn an_intact_stream_verifies(db: Db) {
    assert!(verify::verify(&db, "").await.expect("verified").is_empty());
    let a = stream(&db, "access/a").await;
    let b = stream(&db, "access/b").await;
    let reports = verify::verify(&db, "").await.expect("verified");
    let names: Vec<_> = reports.iter().map(|r| r.stream.as_str()).collect();
    assert_eq!(names, ["access/a", "access/b"]);
    for (report, rows) in reports.iter().zip([a, b]) {
        assert_eq!((report.rows, &report.problem), (ROWS, &None));
        assert_eq!(report.head.hash, rows[11].hash);
    }
    assert_eq!(
        db.audit_streams().await.expect("read"),
        ["access/a", "access/b"]
    );
}

async fn a_changed_row_is_found(db: Db) {
    for (i, change) in [
        "at = at + 1",
        "tenant = 'globex'",
        "actor = 'nobody'",
        "actor_type = 'job'",
        "action = 'Verify'",
        "entity = 'tenant'",
        "entity_id = 'other'",
        "outcome = 'refused'",
        "request_id = ''",
        "data = '{}'",
        "prev_hash = hash",
        "hash = prev_hash",
        // The same letters, moved across the border of two fields.
        "actor = 'actor', actor_type = ' 5user'",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("access/{i}");
        stream(&db, &name).await;
        let text = format!("UPDATE audit_events SET {change} WHERE stream = '{name}' AND seq = 5");
        assert_eq!(sql(&db, text).await, 1);
        assert_eq!(problem(&db, &name).await, Some(5), "{change}");
    }
}

async fn a_removed_row_is_found(db: Db) {
    for (seq, found) in [(1, 2), (5, 6), (11, 12)] {
        let name = format!("access/{seq}");
        stream(&db, &name).await;
        let text = format!("DELETE FROM audit_events WHERE stream = '{name}' AND seq = {seq}");
        assert_eq!(sql(&db, text).await, 1);
        assert_eq!(problem(&db, &name).await, Some(found));
    }
    // Removed and the rest moved up to close the gap.
    stream(&db, "access/closed").await;
    sql(
        &db,
        "DELETE FROM audit_events WHERE stream = 'access/closed' AND seq = 5",
    )
    .await;
    for seq in 6..=ROWS {
        let text = format!(
            "UPDATE audit_events SET seq = {} WHERE stream = 'access/closed' AND seq = {seq}",
            seq - 1
        );
        assert_eq!(sql(&db, text).await, 1);
    }
    assert_eq!(problem(&db, "access/closed").await, Some(5));
}

async fn an_inserted_row_is_found(db: Db) {
    // A copy of row 5 under a free number, before, behind and far behind the others.
    for (i, seq) in [0, -1, i64::MIN, 13, 1_000_000].into_iter().enumerate() {
        let name = format!("access/{i}");
        stream(&db, &name).await;
        let text = format!(
            "INSERT INTO audit_events SELECT stream, {seq}, at, tenant, actor, actor_type, action, entity, \
             entity_id, outcome, request_id, data, prev_hash, hash FROM audit_events \
             WHERE stream = '{name}' AND seq = 5"
        );
        assert_eq!(sql(&db, text).await, 1);
        assert_eq!(problem(&db, &name).await, Some(seq), "row {seq}");
    }
    // A row that is chained as it should be, but that no head knows.
    let rows = stream(&db, "access/forged").await;
    let head = Head {
        seq: ROWS,
        hash: rows[11].hash.clone(),
    };
    let forged = make_rows("access/forged", &head, 1);
    assert!(commit!(db, |tx| tx.append_audit(&forged, ROWS)));
    assert_eq!(problem(&db, "access/forged").await, None);
    set_head(&db, "access/forged", ROWS).await;
    assert_eq!(problem(&db, "access/forged").await, Some(13));
    // Rows of a stream that has no head at all.
    stream(&db, "access/headless").await;
    sql(
        &db,
        "DELETE FROM audit_heads WHERE stream = 'access/headless'",
    )
    .await;
    assert_eq!(problem(&db, "access/headless").await, Some(1));
}

/// Points a head to a row, with the hash of that row.
async fn set_head(db: &Db, stream: &str, seq: i64) {
    let text = format!(
        "UPDATE audit_heads SET seq = {seq}, hash = (SELECT e.hash FROM audit_events e \
         WHERE e.stream = '{stream}' AND e.seq = {seq}) WHERE stream = '{stream}'"
    );
    assert_eq!(sql(db, text).await, 1);
}

async fn swapped_rows_are_found(db: Db) {
    for (a, b) in [(1, 2), (4, 5), (3, 9)] {
        let name = format!("access/{a}-{b}");
        stream(&db, &name).await;
        for (from, to) in [(a, 99), (b, a), (99, b)] {
            let text = format!(
                "UPDATE audit_events SET seq = {to} WHERE stream = '{name}' AND seq = {from}"
            );
            assert_eq!(sql(&db, text).await, 1);
        }
        assert_eq!(problem(&db, &name).await, Some(a));
    }
    // Rows of one stream in the place of another's.
    stream(&db, "access/x").await;
    stream(&db, "access/y").await;
    for (from, to) in [("x", "z"), ("y", "x"), ("z", "y")] {
        let text = format!(
            "UPDATE audit_events SET stream = 'access/{to}' WHERE stream = 'access/{from}' AND seq = 5"
        );
        assert_eq!(sql(&db, text).await, 1);
    }
    assert_eq!(problem(&db, "access/x").await, Some(5));
    assert_eq!(problem(&db, "access/y").await, Some(5));
}

async fn a_cut_tail_is_found(db: Db) {
    for keep in [0, 1, 11] {
        let name = format!("access/{keep}");
        stream(&db, &name).await;
        sql(
            &db,
            format!("DELETE FROM audit_events WHERE stream = '{name}' AND seq > {keep}"),
        )
        .await;
        assert_eq!(problem(&db, &name).await, Some(keep + 1));
    }
    // A stream of which only the head is left is still a stream.
    let reports = verify::verify(&db, "").await.expect("verified");
    assert!(
        reports
            .iter()
            .any(|r| r.stream == "access/0" && r.problem.is_some())
    );
}

async fn a_changed_head_is_found(db: Db) {
    for (i, change) in [
        "hash = (SELECT e.hash FROM audit_events e WHERE e.seq = 3 AND e.stream = audit_heads.stream)",
        "seq = 11",
        "seq = 13",
        "seq = 0",
        "seq = -1",
        "seq = 1000000",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("access/{i}");
        stream(&db, &name).await;
        let text = format!("UPDATE audit_heads SET {change} WHERE stream = '{name}'");
        assert_eq!(sql(&db, text).await, 1);
        assert!(problem(&db, &name).await.is_some(), "{change}");
    }
    // Back to an earlier row, with that row's hash: what follows it belongs to no head.
    stream(&db, "access/back").await;
    set_head(&db, "access/back", 7).await;
    assert_eq!(problem(&db, "access/back").await, Some(8));
}

async fn a_rewritten_tail_is_found(db: Db) {
    let rows = stream(&db, "access/r").await;
    // Rows 9 to 12 made anew, all hashes right; only the head does not know.
    sql(
        &db,
        "DELETE FROM audit_events WHERE stream = 'access/r' AND seq >= 9",
    )
    .await;
    set_head(&db, "access/r", 8).await;
    let mut forged = rows[8..].to_vec();
    forged[0].actor = "somebody else".into();
    let mut prev = rows[7].hash.clone();
    for row in &mut forged {
        row.prev_hash.clone_from(&prev);
        row.hash = hash_of(row);
        prev.clone_from(&row.hash);
    }
    assert!(commit!(db, |tx| tx.append_audit(&forged, 8)));
    match &db {
        Db::Sqlite { write, .. } => sqlx::query("UPDATE audit_heads SET hash = $1")
            .bind(rows[11].hash.clone())
            .execute(write)
            .await
            .map(|_| ()),
        Db::Postgres(pool) => sqlx::query("UPDATE audit_heads SET hash = $1")
            .bind(rows[11].hash.clone())
            .execute(pool)
            .await
            .map(|_| ()),
    }
    .expect("the old head");
    assert_eq!(problem(&db, "access/r").await, Some(12));
}

fn filter(change: impl FnOnce(&mut AuditFilter)) -> AuditFilter {
    let mut filter = AuditFilter {
        tenant: "*".into(),
        stream: String::new(),
        actor: String::new(),
        action: String::new(),
        entity_id: String::new(),
        outcome: String::new(),
        since: i64::MIN,
        until: i64::MAX,
        after: None,
        limit: 1000,
    };
    change(&mut filter);
    filter
}

async fn audit_events_are_filtered(db: Db) {
    let mut rows = make_rows("access/a", &no_head(), 6);
    rows[0].tenant = "globex".into();
    rows[1].actor = "it's \"me\"".into();
    rows[2].action = "Encrypt".into();
    rows[3].outcome = "refused".into();
    assert!(commit!(db, |tx| tx.append_audit(&rows, 0)));
    stream(&db, "access/b").await;
    let found = async |f: AuditFilter| {
        let events = db.audit_events(&f).await.expect("read");
        events
            .into_iter()
            .map(|row| (row.stream, row.seq))
            .collect::<Vec<_>>()
    };
    let a = |seq: i64| vec![("access/a".to_owned(), seq)];
    assert_eq!(found(filter(|_| {})).await.len(), 18);
    assert_eq!(found(filter(|f| f.tenant = "globex".into())).await, a(1));
    assert_eq!(
        found(filter(|f| f.actor = "it's \"me\"".into())).await,
        a(2)
    );
    assert_eq!(found(filter(|f| f.action = "Encrypt".into())).await, a(3));
    assert_eq!(found(filter(|f| f.outcome = "refused".into())).await, a(4));
    assert_eq!(
        found(filter(|f| f.stream = "access/a".into())).await.len(),
        6
    );
    assert_eq!(
        found(filter(|f| f.entity_id = "key 5".into())).await.len(),
        2
    );
    let time = 1_700_000_000_000_000;
    let window = filter(|f| (f.since, f.until) = (time + 3, time + 5));
    assert_eq!(found(window).await.len(), 4);
    // Newest first; of the same time by stream, then newest first.
    let newest = found(filter(|f| f.limit = 8)).await;
    assert_eq!(newest[0], ("access/b".to_owned(), 12));
    assert_eq!(
        &newest[6..],
        [("access/a".to_owned(), 6), ("access/b".to_owned(), 6)]
    );
    // Text that looks like SQL is text.
    for hostile in ["' OR '1'='1", "*", "%", "\\", "a' --", "\u{202e}"] {
        assert!(found(filter(|f| f.actor = hostile.into())).await.is_empty());
        assert!(
            found(filter(|f| f.entity_id = hostile.into()))
                .await
                .is_empty()
        );
    }
}

async fn audit_events_are_paged_without_loss(db: Db) {
    // Every row at the same time, in three streams: only stream and seq order them.
    for name in ["access/a", "access/b", "admin"] {
        let mut rows = make_rows(name, &no_head(), 10);
        rows.iter_mut().for_each(|row| row.at = 5);
        assert!(commit!(db, |tx| tx.append_audit(&rows, 0)));
    }
    for size in [1, 3, 7, 30] {
        let mut listed = Vec::new();
        let mut after = None;
        loop {
            let page = filter(|f| (f.after, f.limit) = (after.clone(), size));
            let page = db.audit_events(&page).await.expect("read");
            let Some(last) = page.last() else { break };
            after = Some((last.at, last.stream.clone(), last.seq));
            listed.extend(page.iter().map(|row| (row.stream.clone(), row.seq)));
        }
        let expected: Vec<_> = ["access/a", "access/b", "admin"]
            .into_iter()
            .flat_map(|s| (1..=10).rev().map(move |seq| (s.to_owned(), seq)))
            .collect();
        assert_eq!(listed, expected, "pages of {size}");
    }
}

/// Text as callers may choose it: everything but NUL, which no parser lets through.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>().prop_map(|s| s.replace('\0', "")),
        "['\"\\\\;%_$1-]{0,20}",
        Just("🔑\u{202e}\u{fffd}é\u{301}\r\n\t\u{7f}".to_owned()),
    ]
}

fn cases(count: u32) -> TestRunner {
    TestRunner::new(Config {
        failure_persistence: None,
        ..Config::with_cases(count)
    })
}

/// Waits for a future inside a property, which is not async.
fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}

async fn any_record_survives_storage_and_hashing(db: Db) {
    let times = prop_oneof![
        any::<i64>(),
        Just(i64::MIN),
        Just(i64::MAX),
        Just(0),
        Just(-1)
    ];
    let rows = (prop::array::uniform9(text()), times);
    cases(64)
        .run(&rows, |(texts, time)| {
            let stream = format!("access/{}", KeyId::random());
            let mut row = make_row(&stream, 1, no_head().hash);
            row.at = time;
            let [
                tenant,
                actor,
                kind,
                action,
                entity,
                id,
                outcome,
                request,
                data,
            ] = texts;
            (row.tenant, row.actor, row.actor_type) = (tenant, actor, kind);
            (row.action, row.entity, row.entity_id) = (action, entity, id);
            (row.outcome, row.request_id, row.data) = (outcome, request, data);
            row.hash = hash_of(&row);
            let (read, problem) = wait(async {
                let rows = std::slice::from_ref(&row);
                assert!(commit!(db, |tx| tx.append_audit(rows, 0)));
                let read = db.audit_chain(&stream, 1, 2).await.expect("read");
                (read, problem(&db, &stream).await)
            });
            prop_assert_eq!(&read, &vec![row]);
            prop_assert_eq!(problem, None);
            Ok(())
        })
        .expect("every record survives");
    // And through the front door, where the hash is the daemon's.
    cases(32)
        .run(&(text(), text(), text()), |(actor, id, data)| {
            let mut record = record(&actor);
            (record.entity_id, record.data) = (id, data);
            let expected = record.clone();
            let (receipt, row) = wait(async {
                let receipt = commit!(db, |tx| admin::append(&mut tx, record));
                let rows = db.audit_chain(ADMIN_STREAM, receipt.seq, 2).await;
                (receipt, rows.expect("read").pop().expect("a row"))
            });
            prop_assert_eq!(&row.hash, &receipt.hash);
            prop_assert_eq!(&row.hash, &hash_of(&row));
            prop_assert_eq!(&row.actor, &expected.actor);
            prop_assert_eq!(&row.entity_id, &expected.entity_id);
            prop_assert_eq!(&row.data, &expected.data);
            Ok(())
        })
        .expect("every record survives");
    assert_eq!(problem(&db, ADMIN_STREAM).await, None);
}

async fn any_key_survives_storage(db: Db) {
    let (acme, _) = with_tenants(&db).await;
    let keys = (
        text(),
        text(),
        any::<i64>(),
        any::<i64>(),
        0..=i64::MAX,
        any::<u32>(),
        prop::collection::vec(any::<u8>(), 0..200),
    );
    cases(48)
        .run(
            &keys,
            |(owner, backend, created, next, period, bits, wrapped)| {
                let mut key = a_key(&acme, &KeyId::random().to_string().replace('-', "."));
                (key.owner, key.backend, key.rsa_bits) = (owner, backend, bits);
                (key.created_at, key.next_rotation_at) = (at(created), at(next));
                key.rotation_period = Duration::from_micros(period.unsigned_abs());
                let mut version = a_version(&key, bits, VersionState::Active);
                version.activated_at = Some(at(next));
                version.material = Material::DataKey {
                    sealed_secret: None,
                    kek: BackendRef(key.owner.clone()),
                    wrapped,
                };
                let (read, versions) = wait(async {
                    with_kek(&db, &key.owner).await;
                    commit!(db, |tx| tx.insert_key(&key));
                    commit!(db, |tx| tx.insert_version(&version));
                    (
                        find(&db, &key).await,
                        db.versions(key.id).await.expect("read"),
                    )
                });
                prop_assert_eq!(debug(&read), debug(&key));
                prop_assert_eq!(debug(&versions), debug(&vec![version]));
                Ok(())
            },
        )
        .expect("every key survives");
}

async fn migrations_run_twice(db: Db) {
    let version = db.schema_version().await.expect("read");
    assert!(version > 0);
    with_tenants(&db).await;
    for _ in 0..2 {
        db.migrate().await.expect("migrated again");
    }
    db.check_schema().await.expect("the schema fits");
    assert_eq!(db.schema_version().await.expect("read"), version);
    assert_eq!(number(&db, "SELECT COUNT(*) FROM tenants").await, 2);
}

fn setup(result: Result<(), StoreError>) -> String {
    match result {
        Err(StoreError::Setup(text)) => text,
        other => panic!("expected what to do, got {other:?}"),
    }
}

async fn a_schema_ahead_is_refused(db: Db) {
    let version = db.schema_version().await.expect("read");
    sql(
        &db,
        format!(
            "UPDATE _sqlx_migrations SET version = {} WHERE version = {version}",
            version + 1
        ),
    )
    .await;
    for refused in [db.check_schema().await, db.migrate().await] {
        let text = setup(refused);
        assert!(text.contains("ahead of this binary"), "{text}");
        assert!(text.contains(&(version + 1).to_string()), "{text}");
    }
    assert_eq!(db.schema_version().await.expect("read"), version + 1);
}

async fn a_schema_behind_is_refused(db: Db) {
    sql(&db, "DELETE FROM _sqlx_migrations").await;
    let text = setup(db.check_schema().await);
    assert!(text.contains("run `claviger migrate`"), "{text}");
    sql(&db, "DROP TABLE _sqlx_migrations").await;
    assert_eq!(db.schema_version().await.expect("read"), 0);
    let text = setup(db.check_schema().await);
    assert!(text.contains("run `claviger migrate`"), "{text}");
}

async fn the_database_answers_and_tells_the_time(db: Db) {
    db.ping().await.expect("an answer");
    let first = commit!(db, |tx| tx.now());
    let second = commit!(db, |tx| tx.now());
    assert!(first <= second);
    // Later than this test was written, and in microseconds.
    assert!(first > at(1_760_000_000_000_000) && first < at(4_000_000_000_000_000));
    let place = Scratch::new();
    let copy = place.0.join("copy.db");
    let copied = db.copy_to(&copy).await;
    match db.engine() {
        "sqlite" => {
            copied.expect("copied");
            // Never over a file that is there.
            assert!(db.copy_to(&copy).await.is_err());
        }
        engine => {
            assert_eq!(engine, "postgres");
            assert!(setup(copied).contains("pg_dump"));
        }
    }
}

/// What the release before migration 0003 has written, and goes on writing beside this one.
const EARLIER: [&str; 6] = [
    "INSERT INTO tenants (name, created_at) VALUES ('acme', 1)",
    "INSERT INTO keys (id, tenant, name, purpose, algorithm, rsa_bits, backend, owner, created_at, rotation_period, \
     next_rotation_at, revision, rotation_mode, approvals_needed, standby, grace) VALUES \
     ('0190a0f0-0000-7000-8000-000000000001', 'acme', 'signer', 'SIGNING', 'ES256', 0, 'hsm', 'payments', 5, 86400000000, \
     6, 1, 'MANUAL', 1, 0, 0)",
    "INSERT INTO keys (id, tenant, name, purpose, algorithm, rsa_bits, backend, owner, created_at, rotation_period, \
     next_rotation_at, revision, rotation_mode, approvals_needed, standby, grace) VALUES \
     ('0190a0f0-0000-7000-8000-000000000002', 'acme', 'vault', 'ENCRYPTION', 'A256GCM', 0, 'hsm', 'payments', 5, \
     86400000000, 6, 1, 'MANUAL', 1, 0, 0)",
    "INSERT INTO key_versions (kid, key_id, number, state, backend_ref, public_jwk, created_at, announced_at, \
     activated_at, is_standby) VALUES ('pair-1', '0190a0f0-0000-7000-8000-000000000001', 1, 'ACTIVE', 'pkcs11:id=%01', \
     '$JWK', 7, 8, 9, 0)",
    "INSERT INTO key_versions (kid, key_id, number, state, kek_ref, wrapped_key, created_at, announced_at, activated_at, \
     is_standby) VALUES ('data-1', '0190a0f0-0000-7000-8000-000000000002', 1, 'ACTIVE', 'pkcs11:id=%02', $BYTES, 7, 8, \
     9, 0)",
    "INSERT INTO replicas (name, seen_seq, seen_at, max_staleness) VALUES ('before/1', 3, 4, 5000000)",
];

/// Runs the migrations up to 0002, as the release before did.
async fn migrated_to_lifecycle(db: &Db) {
    let place = Scratch::new();
    let engine = db.engine();
    let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("migrations");
    for file in ["0001_initial.sql", "0002_lifecycle.sql"] {
        let from = from.join(engine).join(file);
        std::fs::copy(from, place.0.join(file)).expect("copied");
    }
    let migrator = sqlx::migrate::Migrator::new(place.0.as_path()).await;
    let migrator = migrator.expect("two migrations");
    match db {
        Db::Sqlite { write, .. } => migrator.run(write).await,
        Db::Postgres(pool) => migrator.run(pool).await,
    }
    .expect("migrated");
    assert_eq!(db.schema_version().await.expect("read"), 2);
}

/// R-OPS-4: rows of the release before are there after the migration, and mean what they meant.
async fn earlier_rows_read_well(db: Db) {
    migrated_to_lifecycle(&db).await;
    let jwk = "{\"crv\":\"P-256\",\"kty\":\"EC\",\"x\":\"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU\",\
               \"y\":\"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0\"}";
    let bytes = match db.engine() {
        "sqlite" => "x'010203'",
        _ => "'\\x010203'",
    };
    for text in EARLIER {
        let text = text.replace("$JWK", jwk).replace("$BYTES", bytes);
        assert_eq!(sql(&db, text).await, 1);
    }
    db.migrate().await.expect("migrated");
    db.check_schema().await.expect("the schema fits");

    let acme = tenant("acme");
    let named = async |name: &str| {
        let reference: KeyRef = name.parse().expect("a name");
        let key = db.key(&acme, &reference).await.expect("read");
        let key = key.unwrap_or_else(|| panic!("{name} is gone"));
        let versions = db.versions(key.id).await.expect("read");
        assert_eq!(versions.len(), 1);
        (key, versions[0].clone())
    };
    let (signer, pair) = named("signer").await;
    assert_eq!(
        (signer.backend.as_str(), signer.purpose),
        ("hsm", Purpose::Signing)
    );
    assert_eq!(signer.policy.standby_backend, None);
    assert_eq!(
        (pair.kid.as_str(), pair.state),
        ("pair-1", VersionState::Active)
    );
    assert_eq!(pair.activated_at, Some(at(9)));
    let Material::KeyPair {
        backend, reference, ..
    } = &pair.material
    else {
        panic!("{:?}", pair.material);
    };
    assert_eq!(
        (backend.as_str(), reference.0.as_str()),
        ("hsm", "pkcs11:id=%01")
    );
    let filled = "SELECT COUNT(*) FROM key_versions WHERE backend = 'hsm' AND kid = 'pair-1'";
    assert_eq!(number(&db, filled).await, 1);
    let (vault, data) = named("vault").await;
    assert_eq!(vault.purpose, Purpose::Encryption);
    let Material::DataKey {
        kek,
        wrapped,
        sealed_secret,
    } = &data.material
    else {
        panic!("{:?}", data.material);
    };
    assert_eq!(
        (kek.0.as_str(), wrapped.as_slice()),
        ("pkcs11:id=%02", &[1, 2, 3][..])
    );
    assert_eq!(*sealed_secret, None);
    let empty = "SELECT COUNT(*) FROM key_versions WHERE backend IS NULL AND kid = 'data-1' AND made = 0 AND opened = 0";
    assert_eq!(number(&db, empty).await, 1);
    assert!(db.keks().await.expect("read").is_empty());
    let counts = db.data_keys_by_kek().await.expect("read");
    assert_eq!(counts, [(BackendRef("pkcs11:id=%02".into()), 1)]);
    db.expect_unerased(&acme).await.expect("not erased");
    let unknown = "SELECT COUNT(*) FROM replicas WHERE level IS NULL";
    assert_eq!(number(&db, unknown).await, 1);

    // It goes on writing while the replicas are replaced.
    let late = EARLIER[3].replace("$JWK", jwk).replace("pair-1", "pair-2");
    let late = late.replace("1, 'ACTIVE'", "2, 'PRE_ACTIVE'");
    assert_eq!(sql(&db, late).await, 1);
    let versions = db.versions(signer.id).await.expect("read");
    let Material::KeyPair { backend, .. } = &versions[1].material else {
        panic!("{:?}", versions[1].material);
    };
    assert_eq!(backend, "hsm");
    db.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_the_release_before_read_well_after_the_migration_on_sqlite() {
    let place = Scratch::new();
    earlier_rows_read_well(place.open().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_the_release_before_read_well_after_the_migration_on_postgres() {
    let url = Secret::new(crate::postgres::database().await);
    let db = Db::open(&DatabaseConfig::of(url)).await;
    earlier_rows_read_well(db.expect("the database opens")).await;
}

#[tokio::test]
async fn sqlite_serves_one_daemon_and_many_onlookers() {
    let place = Scratch::new();
    let onlooker = Db::open_beside(&place.config()).await;
    assert!(onlooker.is_err(), "an onlooker creates no database");
    let db = place.open().await;
    db.migrate().await.expect("migrated");
    let refused = |opened: Result<Db, StoreError>| {
        let text = setup(opened.map(|_| ()));
        assert!(text.contains("another claviger is running"), "{text}");
        assert!(text.contains("PostgreSQL"), "{text}");
    };
    refused(Db::open(&place.config()).await);
    // The same file by another name is the same file.
    let link = place.0.join("link.sqlite");
    std::os::unix::fs::symlink(place.0.join("claviger.db"), &link).expect("a link");
    let by_link = DatabaseConfig::of(Secret::new(format!("sqlite://{}", link.display())));
    refused(Db::open(&by_link).await);
    let beside = Db::open_beside(&place.config()).await.expect("an onlooker");
    beside.check_schema().await.expect("read beside");
    // Another file is another database, also when only the suffix differs.
    let other = place.0.join("claviger.other");
    let other = DatabaseConfig::of(Secret::new(format!("sqlite://{}", other.display())));
    Db::open(&other).await.expect("opened").close().await;
    db.close().await;
    drop(db);
    place.open().await.close().await;
}

#[tokio::test]
async fn a_wrong_database_setting_says_what_to_do_and_no_secret() {
    let place = Scratch::new();
    let file = |text: &str| {
        let path = place.0.join("url");
        std::fs::write(&path, text).expect("written");
        Some(path)
    };
    let config = |url: &str, url_file| DatabaseConfig {
        url: Secret::new(url.into()),
        url_file,
        max_connections: 1,
    };
    for (config, says) in [
        (
            config("", None),
            "database.url or database.url_file is required",
        ),
        (
            config("sqlite:///x", file("sqlite:///x")),
            "exclude each other",
        ),
        (
            config("", Some(place.0.join("missing"))),
            "database.url_file",
        ),
        (config("mysql://root:hunter2@h/d", None), "must begin with"),
        (
            config("", file("mysql://root:hunter2@h/d\n")),
            "must begin with",
        ),
        (
            config("postgres://u:hunter2@h:notaport/d", None),
            "not a valid",
        ),
    ] {
        let opened = Db::open(&config).await.map(|_| ());
        let text = setup(opened);
        assert!(text.contains(says), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

/// The last handle gone, the lock is gone too: not before.
#[tokio::test]
async fn the_sqlite_lock_goes_with_the_last_handle() {
    let place = Scratch::new();
    let db = place.open().await;
    let clone = Arc::new(db.clone());
    drop(db);
    assert!(Db::open(&place.config()).await.is_err());
    drop(clone);
    place.open().await.close().await;
}
