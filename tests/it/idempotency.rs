//! R-OPS-2: a mutating call that is made again with its idempotency key gets its first answer, byte for byte, and
//! changes nothing; the key with another request is refused.

use bytes::Bytes;
use claviger::{
    grpc::proto::*,
    model::{AccessKind, METHODS},
};
use futures_util::future::join_all;
use prost::Message;
use tokio::time::{Duration, Instant, sleep};
use tonic::{Code, Request, Status, metadata::MetadataValue};

use crate::{
    audit_walk::people,
    daemon::{Actor, Daemon, Engine, PATIENCE, Setup, reason},
    rpcs::{World, send, send_with},
};

const CREATE_KEY: &str = "/claviger.v1.KeyService/CreateKey";
const ROTATE_KEY: &str = "/claviger.v1.RotationService/RotateKey";
const CREATE_TENANT: &str = "/claviger.v1.PrincipalService/CreateTenant";

/// A second person with the role of the issuer.
const JUDGE: &str = r#"
[[bootstrap.principals]]
name = "judge"
tenant = "system"
type = "user"
identities = ["spiffe://claviger.test/judge"]
roles = [{ role = "key-issuer", tenant = "*" }]
"#;

/// Everything that an administrative call can change.
async fn state(daemon: &Daemon) -> Vec<Vec<Vec<String>>> {
    let mut tables = Vec::new();
    for query in [
        "SELECT id, revision, owner, next_rotation_at FROM keys ORDER BY id",
        "SELECT kid, state FROM key_versions ORDER BY kid",
        "SELECT id, state FROM rotations ORDER BY id",
        "SELECT rotation_id, approver FROM rotation_approvals ORDER BY rotation_id, approver",
        "SELECT id, state FROM key_destructions ORDER BY id",
        "SELECT id, state FROM incidents ORDER BY id",
        "SELECT id FROM incident_notes ORDER BY id",
        "SELECT tenant, jti FROM token_revocations ORDER BY tenant, jti",
        "SELECT name FROM tenants ORDER BY name",
        "SELECT id FROM principals ORDER BY id",
        "SELECT principal_id, role, scope FROM role_grants ORDER BY principal_id, role, scope",
        "SELECT id FROM backend_intents ORDER BY id",
    ] {
        tables.push(daemon.rows(query).await);
    }
    tables
}

/// How often the action changed something, and how often it was repeated.
async fn rows(daemon: &Daemon, action: &str) -> (usize, usize) {
    let sql = format!(
        "SELECT data FROM audit_events WHERE stream = 'admin' AND outcome = 'success' AND action = '{action}'"
    );
    let rows = daemon.rows(&sql).await;
    let repeats = rows.iter().filter(|row| row[0].contains(r#""repeats":"#));
    let repeats = repeats.count();
    (rows.len() - repeats, repeats)
}

fn key() -> String {
    format!("retry-{}", uuid::Uuid::now_v7())
}

fn create(name: &str) -> Bytes {
    let request = CreateKeyRequest {
        tenant: "acme".into(),
        name: name.into(),
        purpose: KeyPurpose::Signing.into(),
        algorithm: Algorithm::Es256.into(),
        owner: "team-e2e".into(),
        ..Default::default()
    };
    request.encode_to_vec().into()
}

fn rotate(name: &str) -> Bytes {
    let request = RotateKeyRequest {
        tenant: "acme".into(),
        key: name.into(),
        justification: "it is time".into(),
        ..RotateKeyRequest::default()
    };
    request.encode_to_vec().into()
}

fn tenant(name: &str) -> Bytes {
    let name = name.to_owned();
    CreateTenantRequest { name }.encode_to_vec().into()
}

#[track_caller]
fn refused(result: Result<Bytes, Status>, code: Code, why: &str) {
    let status = result.expect_err(why);
    assert_eq!((status.code(), reason(&status).as_str()), (code, why));
    assert!(status.message().contains(' '), "{status}");
}

/// Every mutating RPC of the table.
/// The answer without the one field that is measured anew each time: whether the freeze holds everywhere now.
fn timeless(path: &str, answer: Bytes) -> Bytes {
    if !path.ends_with("/DeclareCompromise") {
        return answer;
    }
    let mut answer = DeclareCompromiseResponse::decode(answer).expect("an answer");
    answer.freeze_duration = None;
    answer.encode_to_vec().into()
}

async fn every_mutation_can_be_repeated(engine: Engine) {
    let world = World::new(engine).await;
    let daemon = &world.daemon;
    let admin = METHODS
        .iter()
        .filter(|m| m.action.kind() == AccessKind::Admin);
    for method in admin {
        let (path, action) = (method.path, method.action.name());
        // Its answer is never kept, so each call is a lease of its own: tests/it/leases.rs shows it.
        if action == "LeaseCredential" {
            continue;
        }
        let case = world.case(path).await;
        let actor = daemon.actor(people(method).0);
        let key = key();
        let (changes, repeats) = rows(daemon, action).await;
        let first = send_with(&actor, path, &case.valid, &[&key]).await;
        let first = first.unwrap_or_else(|e| panic!("{path}: {e}"));
        let first = without_secret(path, first);
        let changed = state(daemon).await;
        for times in 1..=2 {
            let again = send_with(&actor, path, &case.valid, &[&key]).await;
            let again = again.unwrap_or_else(|e| panic!("{path}: {e}"));
            assert_eq!(timeless(path, again), timeless(path, first.clone()));
            assert_eq!(
                rows(daemon, action).await,
                (changes + 1, repeats + times),
                "{path}"
            );
        }
        assert_eq!(state(daemon).await, changed, "{path}");
        let other = match world.case(path).await.valid {
            another if another != case.valid => another,
            _ => case.failing.expect("another request"),
        };
        let changed = state(daemon).await;
        let reused = send_with(&actor, path, &other, &[&key]).await;
        refused(reused, Code::FailedPrecondition, "IDEMPOTENCY_KEY_REUSED");
        assert_eq!(state(daemon).await, changed, "{path}");
    }
    world.daemon.stop().await;
}

/// What a first answer alone shows is not kept, so that it cannot be shown again (R-OAUTH-3).
fn without_secret(path: &str, answer: Bytes) -> Bytes {
    let blank = |secret: &mut String| {
        assert!(secret.starts_with("cvk_"), "{path}: no secret");
        secret.clear();
    };
    match path.rsplit('/').next() {
        Some("CreateApiKey") => {
            let mut answer = CreateApiKeyResponse::decode(answer).expect("an answer");
            blank(&mut answer.secret);
            answer.encode_to_vec().into()
        }
        Some("RotateApiKey") => {
            let mut answer = RotateApiKeyResponse::decode(answer).expect("an answer");
            blank(&mut answer.secret);
            answer.encode_to_vec().into()
        }
        Some("RevealCredential") => {
            let mut answer = RevealCredentialResponse::decode(answer).expect("an answer");
            assert!(!answer.fields.is_empty(), "{path}: no secret");
            answer.fields.clear();
            answer.encode_to_vec().into()
        }
        _ => answer,
    }
}

#[tokio::test]
async fn every_mutation_can_be_repeated_on_sqlite() {
    every_mutation_can_be_repeated(Engine::Sqlite).await;
}

#[tokio::test]
async fn every_mutation_can_be_repeated_on_postgres() {
    every_mutation_can_be_repeated(Engine::Postgres).await;
}

#[tokio::test]
async fn malformed_keys_are_refused() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let issuer = daemon.actor("issuer");
    let before = state(&daemon).await;
    let long = "k".repeat(129);
    for keys in [
        &[""][..],
        &["a b"],
        &[&long],
        &["one", "two"],
        &["one", "one"],
    ] {
        let result = send_with(&issuer, CREATE_KEY, &create("orders"), keys).await;
        refused(result, Code::InvalidArgument, "INVALID_FIELD");
    }
    for bytes in [&b"\xc3\xa9"[..], b"\xff", b"a\tb"] {
        let mut request = Request::new(CreateTenantRequest { name: "t".into() });
        let value = MetadataValue::try_from(bytes).expect("metadata");
        request.metadata_mut().insert("idempotency-key", value);
        let mut admin = daemon.actor("admin").principals();
        let status = admin.create_tenant(request).await.expect_err("refused");
        assert_eq!(reason(&status), "INVALID_FIELD", "{bytes:?}");
    }
    assert_eq!(state(&daemon).await, before);
    // The longest one, with every kind of character.
    let longest: String = ('!'..='~').chain('!'..='~').take(128).collect();
    let made = send_with(&issuer, CREATE_KEY, &create("orders"), &[&longest]).await;
    made.expect("a good key");
    daemon.stop().await;
}

#[tokio::test]
async fn keys_belong_to_their_principal() {
    let daemon = Setup::new(Engine::Sqlite).append(JUDGE).start().await;
    let judge = daemon.ca.client("spiffe://claviger.test/judge");
    let judge = daemon.actor_with(Some(&judge));
    let (issuer, key) = (daemon.actor("issuer"), key());
    let first = send_with(&issuer, CREATE_KEY, &create("orders"), &[&key]).await;
    let first = first.expect("created");
    // Neither the answer of somebody else, nor their key taken.
    let theirs = send_with(&judge, CREATE_KEY, &create("orders"), &[&key]).await;
    refused(theirs, Code::AlreadyExists, "ALREADY_EXISTS");
    let own = send_with(&judge, CREATE_KEY, &create("payments"), &[&key]).await;
    assert_ne!(own.expect("created"), first);
    let again = send_with(&issuer, CREATE_KEY, &create("orders"), &[&key]).await;
    assert_eq!(again.expect("repeated"), first);
    assert_eq!(rows(&daemon, "CreateKey").await, (2, 1));
    daemon.stop().await;
}

#[tokio::test]
async fn a_failed_call_is_not_remembered() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let (issuer, key) = (daemon.actor("issuer"), key());
    let refusal = send_with(&issuer, ROTATE_KEY, &rotate("orders"), &[&key]).await;
    refused(refusal, Code::NotFound, "KEY_NOT_FOUND");
    send(&issuer, CREATE_KEY, &create("orders"))
        .await
        .expect("created");
    let first = send_with(&issuer, ROTATE_KEY, &rotate("orders"), &[&key]).await;
    let first = first.expect("the same call succeeds now");
    let again = send_with(&issuer, ROTATE_KEY, &rotate("orders"), &[&key]).await;
    assert_eq!(again.expect("repeated"), first);
    assert_eq!(rows(&daemon, "RotateKey").await, (1, 1));
    daemon.stop().await;
}

#[tokio::test]
async fn answers_survive_a_restart_and_end_with_their_retention() {
    let mut daemon = Daemon::start(Engine::Sqlite).await;
    let key = key();
    let path = CREATE_TENANT;
    let first = send_with(&daemon.actor("admin"), path, &tenant("new"), &[&key]).await;
    let first = first.expect("created");
    daemon.restart().await;
    let again = send_with(&daemon.actor("admin"), path, &tenant("new"), &[&key]).await;
    assert_eq!(again.expect("repeated"), first);
    // The retention is 24 hours.
    let day = 24 * 3_600_000_000_i64;
    let now = claviger::clock::Clock::System.now().micros();
    let kept = "SELECT created_at FROM idempotency_keys";
    daemon
        .execute(&format!(
            "UPDATE idempotency_keys SET created_at = {}",
            now - day + 600_000_000
        ))
        .await;
    daemon.restart().await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(daemon.rows(kept).await.len(), 1, "not yet");
    daemon
        .execute(&format!(
            "UPDATE idempotency_keys SET created_at = {}",
            now - day
        ))
        .await;
    daemon.restart().await;
    let until = Instant::now() + PATIENCE;
    while !daemon.rows(kept).await.is_empty() {
        assert!(Instant::now() < until, "it is kept for ever");
        sleep(Duration::from_millis(50)).await;
    }
    let late = send_with(&daemon.actor("admin"), path, &tenant("new"), &[&key]).await;
    refused(late, Code::AlreadyExists, "ALREADY_EXISTS");
    daemon.stop().await;
}

#[tokio::test]
async fn who_lost_the_role_gets_no_answer_again() {
    let daemon = Setup::new(Engine::Sqlite).append(JUDGE).start().await;
    let leaf = daemon.ca.client("spiffe://claviger.test/judge");
    let (judge, key) = (daemon.actor_with(Some(&leaf)), key());
    let first = send_with(&judge, CREATE_KEY, &create("orders"), &[&key]).await;
    let first = first.expect("created");
    let id = daemon.id_of("judge").await;
    let revoke = RevokeRoleRequest {
        principal_id: id.clone(),
        role: "key-issuer".into(),
        tenant: "*".into(),
    };
    let mut admin = daemon.actor("admin").principals();
    admin.revoke_role(revoke).await.expect("revoked");
    let again = send_with(&judge, CREATE_KEY, &create("orders"), &[&key]).await;
    // Nobody without a role can tell what is there.
    let status = again.expect_err("refused");
    assert!(
        matches!(status.code(), Code::PermissionDenied | Code::NotFound),
        "{status}"
    );
    let grant = GrantRoleRequest {
        principal_id: id,
        role: "key-issuer".into(),
        tenant: "*".into(),
    };
    admin.grant_role(grant).await.expect("granted");
    let again = send_with(&judge, CREATE_KEY, &create("orders"), &[&key]).await;
    assert_eq!(again.expect("repeated"), first);
    daemon.stop().await;
}

/// All of them make the same call at once: one change, one answer.
async fn at_once(actors: &[Actor], path: &'static str, request: &Bytes) -> Bytes {
    let key = key();
    let keys = [key.as_str()];
    let calls = actors.iter().map(|a| send_with(a, path, request, &keys));
    let answers = join_all(calls).await;
    let answers: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.unwrap_or_else(|e| panic!("{path}: {e}")))
        .collect();
    assert!(answers.iter().all(|a| *a == answers[0]), "{path}");
    answers[0].clone()
}

async fn one_of_many(daemon: &Daemon, issuers: &[Actor], admins: &[Actor]) {
    // The tenants of the bootstrap are recorded too.
    let (tenants, _) = rows(daemon, "CreateTenant").await;
    for round in 0..5 {
        let name = format!("orders-{round}");
        at_once(issuers, CREATE_KEY, &create(&name)).await;
        at_once(issuers, ROTATE_KEY, &rotate(&name)).await;
        at_once(admins, CREATE_TENANT, &tenant(&format!("tenant-{round}"))).await;
    }
    let many = issuers.len() - 1;
    for (action, before) in [
        ("CreateKey", 0),
        ("RotateKey", 0),
        ("CreateTenant", tenants),
    ] {
        let expected = (before + 5, 5 * many);
        assert_eq!(rows(daemon, action).await, expected, "{action}");
    }
    let count = "SELECT COUNT(*) FROM key_versions";
    assert_eq!(daemon.rows(count).await, [["10"]]);
}

#[tokio::test]
async fn calls_at_once_make_one_change_on_sqlite() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let of = |name: &str| vec![daemon.actor(name); 4];
    one_of_many(&daemon, &of("issuer"), &of("admin")).await;
    daemon.stop().await;
}

/// Two daemons on one database, asked at the same time.
#[tokio::test]
async fn calls_at_once_make_one_change_on_two_daemons() {
    let daemon = Daemon::start(Engine::Postgres).await;
    let twin = daemon.twin().await;
    let of = |name: &str| vec![daemon.actor(name), daemon.actor_of(name, &twin)];
    one_of_many(&daemon, &of("issuer"), &of("admin")).await;
    drop(twin);
    daemon.stop().await;
}
