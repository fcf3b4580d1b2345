//! Calls with a key in the place of a certificate.

use claviger::grpc::proto::{
    Algorithm, CreateApiKeyRequest, CreateTenantRequest, EncryptRequest, KeyPurpose,
    ResumePrincipalRequest, RevokeApiKeyRequest, RotateApiKeyRequest, SuspendPrincipalRequest,
    UpdatePrincipalRequest,
};
use tokio::time::{Duration, Instant, sleep};
use tonic::{Code, Request, Status};

use super::port::soon;
use crate::daemon::{Actor, Daemon, Engine, PATIENCE, Setup, reason};

/// A daemon that lets callers in without a certificate, with a key to encrypt with.
async fn open(engine: Engine) -> Daemon {
    with_section(engine, "").await
}

/// As `open`, and takes keys for changes too, which is not the default.
async fn wide_open() -> Daemon {
    let section = "[authn.accept]\nadmin = [\"certificate\", \"api_key\"]";
    with_section(Engine::Sqlite, section).await
}

async fn with_section(engine: Engine, section: &str) -> Daemon {
    let setup = match engine {
        Engine::Sqlite => Setup::new(engine),
        Engine::Postgres => Setup::new(engine).for_two(),
    };
    let d = setup
        .replace("[grpc]\n", "[grpc]\nclient_certificate = \"optional\"\n")
        .append(section)
        .start()
        .await;
    let (purpose, algorithm) = (KeyPurpose::Encryption, Algorithm::A256gcm);
    d.key("acme", "data", purpose, algorithm).await;
    d
}

/// Id and text of a key of `service`, for so many seconds.
async fn key_for(d: &Daemon, scopes: &[&str], seconds: i64) -> (String, String) {
    let request = CreateApiKeyRequest {
        name: "test".into(),
        scopes: scopes.iter().map(|s| (*s).to_owned()).collect(),
        expire_time: soon(seconds),
        ..Default::default()
    };
    let made = d.actor("service").api_keys().create_api_key(request).await;
    let made = made.expect("CreateApiKey").into_inner();
    (made.api_key.expect("a key").id, made.secret)
}

fn with<M>(message: M, key: &str) -> Request<M> {
    let mut request = Request::new(message);
    let value = format!("Bearer {key}").parse().expect("a header");
    request.metadata_mut().insert("authorization", value);
    request
}

fn encrypt() -> EncryptRequest {
    EncryptRequest {
        tenant: "acme".into(),
        key: "data".into(),
        plaintext: "order".into(),
        ..Default::default()
    }
}

async fn call(by: &Actor, key: &str) -> Result<(), Status> {
    let answer = by.crypto().encrypt(with(encrypt(), key)).await;
    answer.map(|_| ())
}

const CRYPTO: [&str; 1] = ["claviger:crypto-user"];

// R-OAUTH-2, R-OAUTH-5
#[tokio::test]
async fn a_key_calls_as_its_owner_with_what_it_brings_along_and_the_log_says_so() {
    let d = open(Engine::Sqlite).await;
    let nobody = d.actor_with(None);
    let (id, key) = key_for(&d, &CRYPTO, 3600).await;
    let (_, weak) = key_for(&d, &[], 3600).await;
    call(&nobody, &key).await.expect("by bearer");
    let mut request = Request::new(encrypt());
    let value = key.parse().expect("a header");
    request.metadata_mut().insert("x-api-key", value);
    let answer = nobody.crypto().encrypt(request).await;
    answer.expect("by header");
    let refused = call(&nobody, &weak).await.expect_err("no role");
    assert_eq!(reason(&refused), "PERMISSION_DENIED");
    let owner = d.id_of("service").await;
    let rows = d
        .rows(&format!(
            "SELECT actor, entity_id, data FROM audit_events WHERE action = 'API_KEY_USED' AND entity_id = '{id}'"
        ))
        .await;
    let used = vec![owner, id, r#"{"action":"Encrypt"}"#.to_owned()];
    assert_eq!(rows, [used.clone(), used]);
    // Changes take certificates only: whoever finds a key must not be able to make a second one of it.
    let another = CreateApiKeyRequest {
        name: "another".into(),
        expire_time: soon(60),
        ..Default::default()
    };
    let refused = nobody.api_keys().create_api_key(with(another, &key)).await;
    assert_eq!(
        reason(&refused.expect_err("a change")),
        "CREDENTIAL_NOT_ACCEPTED"
    );
    let tenant = CreateTenantRequest { name: "new".into() };
    let refused = nobody.principals().create_tenant(with(tenant, &key)).await;
    let refused = refused.expect_err("an admin call");
    assert_eq!(reason(&refused), "CREDENTIAL_NOT_ACCEPTED");
    d.stop().await;
}

// R-OAUTH-4
#[tokio::test]
async fn a_rotation_fails_no_call_and_a_revocation_ends_them() {
    let d = wide_open().await;
    let nobody = d.actor_with(None);
    let (id, old) = key_for(&d, &CRYPTO, 3600).await;
    call(&nobody, &old).await.expect("valid");
    // The key itself may ask for its successor.
    let rotate = RotateApiKeyRequest {
        api_key_id: id.clone(),
        ..Default::default()
    };
    let rotated = nobody.api_keys().rotate_api_key(with(rotate, &old)).await;
    let new = rotated.expect("rotated").into_inner();
    for key in [&old, &new.secret, &old] {
        call(&nobody, key).await.expect("in the overlap");
    }
    let revoke = RevokeApiKeyRequest {
        api_key_id: id,
        reason: "all have moved".into(),
    };
    let service = d.actor("service");
    let revoked = service.api_keys().revoke_api_key(revoke).await;
    revoked.expect("revoked");
    let refused = call(&nobody, &old).await.expect_err("revoked");
    assert_eq!(reason(&refused), "CREDENTIAL_INVALID");
    call(&nobody, &new.secret).await.expect("the successor");
    d.stop().await;
}

// R-OAUTH-4, R-OAUTH-5
#[tokio::test]
async fn whatever_is_wrong_with_a_key_the_caller_hears_the_same_and_the_log_the_truth() {
    let d = open(Engine::Sqlite).await;
    let nobody = d.actor_with(None);
    let (revoked_id, revoked) = key_for(&d, &CRYPTO, 3600).await;
    let revoke = RevokeApiKeyRequest {
        api_key_id: revoked_id,
        ..Default::default()
    };
    let ended = d.actor("service").api_keys().revoke_api_key(revoke).await;
    ended.expect("revoked");
    let (_, expired) = key_for(&d, &CRYPTO, 2).await;
    let (_, good) = key_for(&d, &CRYPTO, 3600).await;
    // Well-formed, of an id that somebody has and of one that nobody has.
    let forged = |text: &str| {
        let id = text.split('_').nth(1).expect("an id");
        let id = claviger::model::ApiKeyId::from_simple(id).expect("an id");
        let forged = claviger::model::ApiKeyText::generate(id).expect("a key");
        forged.expose_secret().clone()
    };
    let unknown = claviger::model::ApiKeyText::generate(claviger::model::ApiKeyId::random());
    let unknown = unknown.expect("a key").expose_secret().clone();
    let until = Instant::now() + PATIENCE;
    while call(&nobody, &expired).await.is_ok() {
        assert!(Instant::now() < until, "it does not expire");
        sleep(Duration::from_millis(50)).await;
    }
    let cases = [
        ("API_KEY_REVOKED", revoked.as_str()),
        ("API_KEY_EXPIRED", &expired),
        ("API_KEY_WRONG_SECRET", &forged(&good)),
        ("API_KEY_UNKNOWN", &unknown),
        ("MALFORMED", &good[..86]),
        ("MALFORMED", &format!("{good}0")),
    ];
    let before = refusals(&d).await.len();
    let mut said = Vec::new();
    for (why, key) in &cases {
        let status = call(&nobody, key).await.expect_err(why);
        said.push((status.code(), reason(&status), status.message().to_owned()));
    }
    assert_eq!(said[0].0, Code::Unauthenticated);
    assert_eq!(said[0].1, "CREDENTIAL_INVALID");
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
    let why = refusals(&d).await.split_off(before);
    for ((expected, _), row) in cases.iter().zip(&why) {
        assert!(row.contains(expected), "{expected}: {row}");
    }
    assert_eq!(why.len(), cases.len());
    call(&nobody, &good)
        .await
        .expect("the owner is not locked out");
    d.stop().await;
}

async fn refusals(d: &Daemon) -> Vec<String> {
    let sql = "SELECT data FROM audit_events WHERE outcome = 'refused' AND action = 'Encrypt' ORDER BY seq";
    d.rows(sql).await.into_iter().flatten().collect()
}

// R-OAUTH-2
#[tokio::test]
async fn nobody_climbs_with_a_key_of_somebody() {
    let d = wide_open().await;
    let nobody = d.actor_with(None);
    let (_, weak) = key_for(&d, &[], 3600).await;
    let (strong_id, _) = key_for(&d, &CRYPTO, 3600).await;
    let wanted = |scopes: &[&str]| CreateApiKeyRequest {
        name: "more".into(),
        scopes: scopes.iter().map(|s| (*s).to_owned()).collect(),
        expire_time: soon(60),
        ..Default::default()
    };
    let more = nobody
        .api_keys()
        .create_api_key(with(wanted(&CRYPTO), &weak))
        .await;
    assert_eq!(reason(&more.expect_err("more")), "SCOPE_EXCEEDED");
    let rotate = RotateApiKeyRequest {
        api_key_id: strong_id,
        ..Default::default()
    };
    let other = nobody.api_keys().rotate_api_key(with(rotate, &weak)).await;
    assert_eq!(reason(&other.expect_err("the other")), "SCOPE_EXCEEDED");
    let same = nobody
        .api_keys()
        .create_api_key(with(wanted(&[]), &weak))
        .await;
    assert_eq!(
        same.expect("no more than it has").into_inner().secret.len(),
        87
    );
    d.stop().await;
}

// R-OAUTH-4: on another replica within feed.max_staleness_seconds.
#[tokio::test]
async fn what_ends_a_key_here_ends_it_on_every_replica() {
    let d = open(Engine::Postgres).await;
    let second = d.second(None).await;
    let (here, there) = (d.actor_with(None), second.actor_with(None));
    let (admin, owner) = (d.actor("admin"), d.id_of("service").await);
    let (id, key) = key_for(&d, &CRYPTO, 3600).await;
    let (_, other) = key_for(&d, &CRYPTO, 3600).await;
    for key in [&key, &other] {
        call(&here, key).await.expect("here");
        call(&there, key).await.expect("there, and in memory");
    }
    let until_there = async |key: &str, is_valid: bool| {
        let until = Instant::now() + PATIENCE;
        while call(&there, key).await.is_ok() != is_valid {
            assert!(Instant::now() < until, "the other replica does not hear");
            sleep(Duration::from_millis(50)).await;
        }
    };
    let revoke = RevokeApiKeyRequest {
        api_key_id: id,
        ..Default::default()
    };
    admin
        .api_keys()
        .revoke_api_key(revoke)
        .await
        .expect("revoked");
    assert!(call(&here, &key).await.is_err(), "at once");
    until_there(&key, false).await;
    call(&there, &other).await.expect("the other key");

    let suspend = SuspendPrincipalRequest {
        principal_id: owner.clone(),
        reason: "test".into(),
    };
    admin
        .principals()
        .suspend_principal(suspend)
        .await
        .expect("suspended");
    assert!(call(&here, &other).await.is_err(), "at once");
    until_there(&other, false).await;
    // The certificate too.
    let refused = d.actor("service").crypto().encrypt(encrypt()).await;
    assert_eq!(
        reason(&refused.expect_err("suspended")),
        "PRINCIPAL_SUSPENDED"
    );
    let resume = ResumePrincipalRequest {
        principal_id: owner.clone(),
        ..Default::default()
    };
    admin
        .principals()
        .resume_principal(resume)
        .await
        .expect("resumed");
    call(&here, &other).await.expect("at once");
    until_there(&other, true).await;
    second.stop().await;
    d.stop().await;
}

// R-OAUTH-2
#[tokio::test]
async fn what_the_owner_loses_its_keys_lose() {
    let d = wide_open().await;
    let nobody = d.actor_with(None);
    let admin = d.actor("admin");
    let owner = d.id_of("service").await;
    let update = |add: &[&str], remove: &[&str]| UpdatePrincipalRequest {
        principal_id: owner.clone(),
        add_scopes: add.iter().map(|s| (*s).to_owned()).collect(),
        remove_scopes: remove.iter().map(|s| (*s).to_owned()).collect(),
        ..Default::default()
    };
    let given = admin
        .principals()
        .update_principal(update(&["can.a"], &[]))
        .await;
    given.expect("given");
    let (_, key) = key_for(&d, &["can.a", CRYPTO[0]], 3600).await;
    call(&nobody, &key).await.expect("with the role");
    // As much as the key brings along, it may pass on; and no more.
    let wanted = || CreateApiKeyRequest {
        name: "next".into(),
        scopes: vec!["can.a".into()],
        expire_time: soon(60),
        ..Default::default()
    };
    let made = nobody.api_keys().create_api_key(with(wanted(), &key)).await;
    made.expect("held");
    let taken = admin
        .principals()
        .update_principal(update(&[], &["can.a"]))
        .await;
    taken.expect("taken");
    let refused = nobody.api_keys().create_api_key(with(wanted(), &key)).await;
    assert_eq!(reason(&refused.expect_err("lost")), "SCOPE_EXCEEDED");
    let revoke = claviger::grpc::proto::RevokeRoleRequest {
        principal_id: owner.clone(),
        role: "crypto-user".into(),
        tenant: "acme".into(),
    };
    admin
        .principals()
        .revoke_role(revoke)
        .await
        .expect("revoked");
    let refused = call(&nobody, &key).await.expect_err("without the role");
    assert_eq!(reason(&refused), "PERMISSION_DENIED");
    d.stop().await;
}

// An attacker beside the owner, in the same network, locks nobody out: not even a key that was never seen here.
#[tokio::test]
async fn a_source_of_many_failures_still_has_its_valid_keys() {
    let d = open(Engine::Sqlite).await;
    let nobody = d.actor_with(None);
    let (_, fresh) = key_for(&d, &CRYPTO, 3600).await;
    let mut throttled = 0;
    for _ in 0..60 {
        let id = claviger::model::ApiKeyId::random();
        let bad = claviger::model::ApiKeyText::generate(id).expect("a key");
        let status = call(&nobody, bad.expose_secret())
            .await
            .expect_err("nobody's");
        throttled += usize::from(reason(&status) == "TOO_MANY_FAILURES");
    }
    assert!(throttled > 0);
    call(&nobody, &fresh).await.expect("a valid key");
    d.stop().await;
}
