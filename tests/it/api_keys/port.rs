//! Management of principals and API keys, as actors through the port.

use std::{collections::BTreeMap, time::Duration};

use claviger::grpc::proto::{
    Algorithm, ApiKey, ApiKeyState, ComputeMacRequest, CreateApiKeyRequest, CreateApiKeyResponse,
    CreatePrincipalRequest, GetApiKeyRequest, GetPrincipalRequest, GrantRoleRequest, KeyPurpose,
    ListApiKeysRequest, ListPeppersRequest, Principal, PrincipalState, PrincipalType,
    ResumePrincipalRequest, RevokeApiKeyRequest, RotateApiKeyRequest, SuspendPrincipalRequest,
    UpdatePrincipalRequest, VerifyMacRequest,
};
use tokio::time::{Instant, sleep};
use tonic::{Request, Status};

use crate::daemon::{Actor, Daemon, Engine, PATIENCE, Setup, reason};

/// So many seconds from now.
pub fn soon(seconds: i64) -> Option<prost_types::Timestamp> {
    let now = claviger::clock::Clock::System.now().seconds();
    Some(prost_types::Timestamp {
        seconds: now + seconds,
        nanos: 0,
    })
}

/// A request for a key of somebody, for an hour.
fn wanted(owner: &str, scopes: &[&str]) -> CreateApiKeyRequest {
    CreateApiKeyRequest {
        owner_id: owner.into(),
        name: "nightly export".into(),
        scopes: scopes.iter().map(|s| (*s).to_owned()).collect(),
        expire_time: soon(3600),
        ..Default::default()
    }
}

async fn create(by: &Actor, request: CreateApiKeyRequest) -> Result<CreateApiKeyResponse, Status> {
    let made = by.api_keys().create_api_key(request).await;
    made.map(tonic::Response::into_inner)
}

async fn get(by: &Actor, id: &str) -> Result<ApiKey, Status> {
    let request = GetApiKeyRequest {
        api_key_id: id.into(),
    };
    let found = by.api_keys().get_api_key(request).await?;
    Ok(found.into_inner().api_key.expect("a key"))
}

/// Somebody new in acme, made by the admin.
async fn person(d: &Daemon, name: &str, scopes: &[&str]) -> Principal {
    let request = CreatePrincipalRequest {
        tenant: "acme".into(),
        name: name.into(),
        r#type: PrincipalType::User.into(),
        scopes: scopes.iter().map(|s| (*s).to_owned()).collect(),
        ..Default::default()
    };
    let made = d
        .actor("admin")
        .principals()
        .create_principal(request)
        .await;
    let made = made.expect("CreatePrincipal").into_inner();
    made.principal.expect("a principal")
}

// R-OAUTH-2, R-OAUTH-3, R-OAUTH-4
#[tokio::test]
async fn a_user_manages_the_keys_of_its_own_and_of_nobody_else() {
    let d = Daemon::start(Engine::Sqlite).await;
    let (service, admin, other) = (d.actor("service"), d.actor("admin"), d.actor("other"));
    let own = d.id_of("service").await;
    let made = create(&service, wanted("", &["claviger:crypto-user"])).await;
    let made = made.expect("its own key");
    let key = made.api_key.expect("a key");
    assert_eq!(
        (key.owner_id.as_str(), key.tenant.as_str()),
        (own.as_str(), "acme")
    );
    assert_eq!(key.state(), ApiKeyState::Active);
    assert_eq!(key.scopes, ["claviger:crypto-user"]);
    assert!(made.secret.starts_with(&key.prefix), "{}", key.prefix);
    assert!(made.secret.contains(&format!("{}_", key.last_four)));
    assert!(made.receipt.is_some());

    assert_eq!(get(&service, &key.id).await.expect("its own"), key);
    assert_eq!(get(&admin, &key.id).await.expect("the admin's"), key);
    let hidden = get(&other, &key.id).await.expect_err("another tenant's");
    let nobodys = get(&other, &d.id_of("other").await)
        .await
        .expect_err("no such key");
    assert_eq!(hidden.message(), nobodys.message());
    assert_eq!(reason(&hidden), "API_KEY_NOT_FOUND");

    let list = async |by: &Actor, owner: &str, tenant: &str| {
        let request = ListApiKeysRequest {
            owner_id: owner.into(),
            tenant: tenant.into(),
            ..Default::default()
        };
        let listed = by.api_keys().list_api_keys(request).await;
        listed.map(|listed| listed.into_inner().api_keys)
    };
    assert_eq!(
        list(&service, &own, "").await.expect("its own"),
        std::slice::from_ref(&key)
    );
    assert_eq!(
        list(&admin, "", "acme").await.expect("all"),
        std::slice::from_ref(&key)
    );
    let all = list(&service, "", "acme").await.expect_err("everybody's");
    assert_eq!(reason(&all), "PERMISSION_DENIED");
    let both = list(&admin, &own, "acme").await.expect_err("two ways");
    assert_eq!(reason(&both), "INVALID_FIELD");

    // Somebody else's, in the same tenant and in another.
    let ann = person(&d, "ann", &["can.use_users"]).await;
    let refused = create(&service, wanted(&ann.id, &[]))
        .await
        .expect_err("ann's");
    assert_eq!(reason(&refused), "PERMISSION_DENIED");
    let refused = create(&other, wanted(&ann.id, &[]))
        .await
        .expect_err("ann's");
    assert_eq!(reason(&refused), "PRINCIPAL_NOT_FOUND");
    let hers = create(&admin, wanted(&ann.id, &["can.use_users"])).await;
    let hers = hers.expect("made by the admin").api_key.expect("a key");
    let revoke = RevokeApiKeyRequest {
        api_key_id: hers.id.clone(),
        reason: "it was in a log".into(),
    };
    let refused = service.api_keys().revoke_api_key(revoke.clone()).await;
    assert_eq!(reason(&refused.expect_err("ann's")), "PERMISSION_DENIED");
    // An officer ends keys and makes none.
    let officer = d.actor("officer");
    let ended = officer.api_keys().revoke_api_key(revoke).await;
    let ended = ended.expect("ended").into_inner().api_key.expect("a key");
    assert_eq!(ended.state(), ApiKeyState::Revoked);
    assert_eq!(ended.end_reason, "it was in a log");
    let refused = create(&officer, wanted(&ann.id, &[]))
        .await
        .expect_err("made");
    assert_eq!(reason(&refused), "PERMISSION_DENIED");
    d.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_key_to_be_is_said() {
    let d = Daemon::start(Engine::Sqlite).await;
    let service = d.actor("service");
    let year = 366 * 24 * 3600;
    let job = "00000000-0000-7000-8000-000000000001";
    let base = || wanted("", &[]);
    let wrong = [
        (
            CreateApiKeyRequest {
                name: String::new(),
                ..base()
            },
            "INVALID_FIELD",
        ),
        (
            CreateApiKeyRequest {
                name: "x".repeat(101),
                ..base()
            },
            "INVALID_FIELD",
        ),
        (
            CreateApiKeyRequest {
                expire_time: None,
                ..base()
            },
            "INVALID_FIELD",
        ),
        (
            CreateApiKeyRequest {
                expire_time: soon(-1),
                ..base()
            },
            "INVALID_FIELD",
        ),
        (
            CreateApiKeyRequest {
                expire_time: soon(year),
                ..base()
            },
            "INVALID_FIELD",
        ),
        (
            CreateApiKeyRequest {
                owner_id: "me".into(),
                ..base()
            },
            "INVALID_FIELD",
        ),
        (
            CreateApiKeyRequest {
                client_id: "it".into(),
                ..base()
            },
            "INVALID_FIELD",
        ),
        (
            CreateApiKeyRequest {
                client_id: job.into(),
                ..base()
            },
            "CLIENT_NOT_FOUND",
        ),
        (
            CreateApiKeyRequest {
                scopes: vec!["a b".into()],
                ..base()
            },
            "INVALID_FIELD",
        ),
        (
            CreateApiKeyRequest {
                scopes: vec!["can.manage_users".into()],
                ..base()
            },
            "SCOPE_EXCEEDED",
        ),
        (
            CreateApiKeyRequest {
                scopes: vec!["claviger:auditor".into()],
                ..base()
            },
            "SCOPE_EXCEEDED",
        ),
    ];
    for (request, expected) in wrong {
        let refused = create(&service, request.clone())
            .await
            .expect_err("refused");
        assert_eq!(reason(&refused), expected, "{request:?}");
    }
    let refused = create(&d.actor("admin"), wanted(job, &[])).await;
    assert_eq!(reason(&refused.expect_err("a job's")), "INVALID_FIELD");
    assert_eq!(
        d.rows("SELECT id FROM api_keys").await,
        Vec::<Vec<String>>::new()
    );
    d.stop().await;
}

// R-OPS-2, R-OAUTH-3
#[tokio::test]
async fn a_repeated_call_makes_one_key_and_shows_no_secret() {
    let d = Daemon::start(Engine::Sqlite).await;
    let service = d.actor("service");
    let again = |request: CreateApiKeyRequest| {
        let mut request = Request::new(request);
        let key = "the-same".parse().expect("metadata");
        request.metadata_mut().insert("idempotency-key", key);
        request
    };
    let request = wanted("", &[]);
    let first = service
        .api_keys()
        .create_api_key(again(request.clone()))
        .await;
    let first = first.expect("made").into_inner();
    assert_eq!(first.secret.len(), 87);
    let second = service.api_keys().create_api_key(again(request)).await;
    let second = second.expect("repeated").into_inner();
    assert_eq!(second.secret, "");
    assert_eq!(second.api_key, first.api_key);
    assert_eq!(second.receipt, first.receipt);

    let id = first.api_key.expect("a key").id;
    let rotate = || {
        let mut request = Request::new(RotateApiKeyRequest {
            api_key_id: id.clone(),
            ..Default::default()
        });
        let key = "another".parse().expect("metadata");
        request.metadata_mut().insert("idempotency-key", key);
        request
    };
    let first = service.api_keys().rotate_api_key(rotate()).await;
    let first = first.expect("rotated").into_inner();
    let second = service.api_keys().rotate_api_key(rotate()).await;
    let second = second.expect("repeated").into_inner();
    assert_eq!((first.secret.len(), second.secret.len()), (87, 0));
    assert_eq!(second.api_key, first.api_key);
    assert_eq!(d.rows("SELECT id FROM api_keys").await.len(), 2);
    d.stop().await;
}

/// The forms in which somebody could find a secret.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    use base64::{Engine as _, prelude::*};
    let hex = secret
        .bytes()
        .map(|b| format!("{b:02x}"))
        .collect::<String>();
    let base64 = BASE64_STANDARD.encode(secret);
    let texts = [secret.to_owned(), hex.to_uppercase(), hex];
    let mut forms: Vec<_> = texts.into_iter().map(String::into_bytes).collect();
    forms.push(base64.trim_end_matches('=').as_bytes().to_vec());
    forms
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

// R-OAUTH-3, R-ENV-3
#[tokio::test]
async fn nothing_that_is_kept_tells_a_key() {
    let mut d = Daemon::start(Engine::Sqlite).await;
    let service = d.actor("service");
    let mut secrets = Vec::new();
    let made = service
        .api_keys()
        .create_api_key({
            let mut request = Request::new(wanted("", &[]));
            let key = "kept".parse().expect("metadata");
            request.metadata_mut().insert("idempotency-key", key);
            request
        })
        .await;
    let made = made.expect("made").into_inner();
    let id = made.api_key.expect("a key").id;
    secrets.push(made.secret);
    let rotated = service
        .api_keys()
        .rotate_api_key(RotateApiKeyRequest {
            api_key_id: id,
            ..Default::default()
        })
        .await;
    secrets.push(rotated.expect("rotated").into_inner().secret);
    let metrics = d.ops_get("/metrics").await.text();
    drop(service);
    assert!(d.terminate().await.success());
    let mut kept = d.log().into_bytes();
    kept.extend(metrics.into_bytes());
    let mut files = 0;
    for entry in std::fs::read_dir(d.path("")).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.to_string_lossy().contains("claviger.db") {
            kept.extend(std::fs::read(path).expect("a file"));
            files += 1;
        }
    }
    assert!(files > 0, "no database file was read");
    for secret in &secrets {
        let id = secret.split('_').nth(1).expect("an id");
        let part = secret.split('_').nth(2).expect("a secret");
        assert_eq!(part.len(), 43);
        for form in forms(part).iter().chain(&forms(secret)) {
            assert!(!holds(&kept, form), "{}", String::from_utf8_lossy(form));
        }
        // What may be known is there, so what is read is the right thing.
        let id = uuid::Uuid::parse_str(id).expect("an id").to_string();
        assert!(holds(&kept, id.as_bytes()));
    }
    d.up().await.expect("it starts again");
    d.stop().await;
}

// R-OAUTH-4, R-OAUTH-5, R-OPS-1
#[tokio::test]
async fn the_scheduler_expires_what_is_over_and_one_bad_row_stops_nobody() {
    let d = Setup::new(Engine::Sqlite)
        .append("[scheduler]\ninterval_ms = 50")
        .start()
        .await;
    let service = d.actor("service");
    let mut ids = Vec::new();
    for _ in 0..3 {
        let request = CreateApiKeyRequest {
            expire_time: soon(3),
            ..wanted("", &[])
        };
        let made = create(&service, request).await.expect("made");
        ids.push(made.api_key.expect("a key").id);
    }
    let lasting = create(&service, wanted("", &[])).await.expect("made");
    let lasting = lasting.api_key.expect("a key").id;
    d.execute(&format!(
        "UPDATE api_keys SET scopes = '\"' WHERE id = '{}'",
        ids[0]
    ))
    .await;
    let expired = "SELECT id FROM api_keys WHERE state = 'EXPIRED' ORDER BY id";
    let until = Instant::now() + PATIENCE;
    while d.rows(expired).await.len() < 2 {
        assert!(Instant::now() < until, "{:?}", d.rows(expired).await);
        sleep(Duration::from_millis(50)).await;
    }
    let found: Vec<_> = d.rows(expired).await.into_iter().flatten().collect();
    assert_eq!(found, ids[1..], "the other one is not to be read");
    let key = get(&service, &ids[1]).await.expect("a key");
    assert_eq!(key.state(), ApiKeyState::Expired);
    assert!(key.end_time.is_some());
    let lasting = get(&service, &lasting).await.expect("a key");
    assert_eq!(lasting.state(), ApiKeyState::Active);
    let rows = d
        .rows("SELECT entity_id, actor FROM audit_events WHERE action = 'ExpireApiKey' AND outcome = 'success'")
        .await;
    let job = "00000000-0000-7000-8000-000000000001";
    let audited: BTreeMap<_, _> = rows
        .into_iter()
        .map(|mut r| (r.remove(0), r.remove(0)))
        .collect();
    assert_eq!(audited.len(), 2);
    assert!(audited.values().all(|actor| actor == job), "{audited:?}");
    d.execute(&format!(
        "UPDATE api_keys SET scopes = '' WHERE id = '{}'",
        ids[0]
    ))
    .await;
    d.stop().await;
}

// R-OPS-1: two replicas that start on one database make one pepper, and hash under it.
#[tokio::test]
async fn the_pepper_is_made_once_and_its_progress_is_a_call() {
    let d = Setup::new(Engine::Postgres).for_two().start().await;
    let second = d.second(None).await;
    let made = "SELECT actor, outcome FROM audit_events WHERE action = 'CreatePepper'";
    let job = "00000000-0000-7000-8000-000000000001".to_owned();
    // Nobody needs it before.
    assert!(d.rows(made).await.is_empty());
    let (one, two) = (d.actor("service"), second.actor("service"));
    let both = tokio::join!(create(&one, wanted("", &[])), create(&two, wanted("", &[])));
    both.0.expect("made");
    both.1.expect("made");
    let rows = d.rows(made).await;
    let successes: Vec<_> = rows.iter().filter(|row| row[1] == "success").collect();
    assert_eq!(successes, [&vec![job, "success".to_owned()]]);
    let listed = d
        .actor("admin")
        .api_keys()
        .list_peppers(ListPeppersRequest {})
        .await;
    let peppers = listed.expect("listed").into_inner().peppers;
    let [pepper] = &peppers[..] else {
        panic!("{peppers:?}");
    };
    assert_eq!((pepper.state.as_str(), pepper.api_keys), ("ACTIVE", 2));
    second.stop().await;
    d.stop().await;
}

#[tokio::test]
async fn nobody_computes_anything_with_the_pepper() {
    let d = Daemon::start(Engine::Sqlite).await;
    let admin = d.actor("admin");
    // The first API key makes the pepper.
    let first = create(&d.actor("service"), wanted("", &[])).await;
    first.expect("made");
    let made = admin
        .principals()
        .create_principal(CreatePrincipalRequest {
            tenant: "system".into(),
            name: "curious".into(),
            r#type: PrincipalType::User.into(),
            identities: vec!["spiffe://claviger.test/stranger".into()],
            ..Default::default()
        })
        .await;
    let made = made.expect("made").into_inner().principal;
    let grant = claviger::grpc::proto::GrantRoleRequest {
        principal_id: made.expect("a principal").id,
        role: "crypto-user".into(),
        tenant: "*".into(),
    };
    admin.principals().grant_role(grant).await.expect("granted");
    let curious = d.actor("stranger");
    let computed = curious
        .macs()
        .compute_mac(ComputeMacRequest {
            tenant: "system".into(),
            key: "api-key-pepper".into(),
            message: "anything".into(),
        })
        .await;
    assert_eq!(reason(&computed.expect_err("refused")), "KEY_RESERVED");
    let verified = curious
        .macs()
        .verify_mac(VerifyMacRequest {
            tenant: "system".into(),
            key: "api-key-pepper".into(),
            message: "anything".into(),
            mac: vec![0; 32].into(),
            ..Default::default()
        })
        .await;
    assert_eq!(reason(&verified.expect_err("refused")), "KEY_RESERVED");
    // A key of the same name in another tenant is none of ours.
    let (purpose, algorithm) = (KeyPurpose::Mac, Algorithm::Hs256);
    d.key("acme", "api-key-pepper", purpose, algorithm).await;
    let computed = d
        .actor("service")
        .macs()
        .compute_mac(ComputeMacRequest {
            tenant: "acme".into(),
            key: "api-key-pepper".into(),
            message: "anything".into(),
        })
        .await;
    computed.expect("computed");
    d.stop().await;
}

// R-ACL-2
#[tokio::test]
async fn a_principal_is_changed_suspended_and_resumed() {
    let d = Daemon::start(Engine::Sqlite).await;
    let admin = d.actor("admin");
    let ann = person(&d, "ann", &["can.a", "can.b"]).await;
    assert_eq!(
        (ann.owner.as_str(), ann.state()),
        ("ann", PrincipalState::Active)
    );
    let update = UpdatePrincipalRequest {
        principal_id: ann.id.clone(),
        owner: Some("team-a".into()),
        add_scopes: vec!["can.c".into(), "can.a".into()],
        remove_scopes: vec!["can.b".into(), "can.z".into()],
        add_identities: vec!["cn:ann".into(), "oidc:cluster/ann".into()],
        ..Default::default()
    };
    let changed = admin.principals().update_principal(update).await;
    let changed = changed.expect("changed").into_inner().principal;
    let changed = changed.expect("a principal");
    assert_eq!(changed.owner, "team-a");
    assert_eq!(changed.scopes, ["can.a", "can.c"]);
    assert_eq!(changed.identities, ["cn:ann", "oidc:cluster/ann"]);
    let get = async |by: &str, id: &str| {
        let request = GetPrincipalRequest {
            principal_id: id.into(),
        };
        let found = d.actor(by).principals().get_principal(request).await;
        found.map(|found| found.into_inner().principal.expect("a principal"))
    };
    assert_eq!(get("auditor", &ann.id).await.expect("read"), changed);
    // One's own account, and nobody else's.
    let own = d.id_of("service").await;
    assert_eq!(get("service", &own).await.expect("its own").name, "service");
    let refused = get("service", &ann.id).await.expect_err("ann's");
    assert_eq!(reason(&refused), "PERMISSION_DENIED");

    let suspend = |id: &str| SuspendPrincipalRequest {
        principal_id: id.into(),
        reason: "she left".into(),
    };
    let officer = d.actor("officer");
    let gone = officer
        .principals()
        .suspend_principal(suspend(&ann.id))
        .await;
    let gone = gone.expect("suspended").into_inner().principal;
    assert_eq!(
        gone.expect("a principal").state(),
        PrincipalState::Suspended
    );
    let twice = officer
        .principals()
        .suspend_principal(suspend(&ann.id))
        .await;
    assert_eq!(reason(&twice.expect_err("twice")), "INVALID_FIELD");
    let resume = ResumePrincipalRequest {
        principal_id: ann.id.clone(),
        ..Default::default()
    };
    let refused = officer.principals().resume_principal(resume.clone()).await;
    assert_eq!(
        reason(&refused.expect_err("an officer")),
        "PERMISSION_DENIED"
    );
    let back = admin.principals().resume_principal(resume).await;
    let back = back.expect("resumed").into_inner().principal;
    assert_eq!(back.expect("a principal").state(), PrincipalState::Active);
    d.stop().await;
}

#[tokio::test]
async fn nobody_raises_or_suspends_themselves_and_nobody_changes_a_job() {
    let d = Daemon::start(Engine::Sqlite).await;
    let admin = d.actor("admin");
    let (me, service) = (d.id_of("admin").await, d.id_of("service").await);
    let job = "00000000-0000-7000-8000-000000000001";
    let scopes = |id: &str| UpdatePrincipalRequest {
        principal_id: id.into(),
        add_scopes: vec!["can.all".into()],
        ..Default::default()
    };
    let update = async |request: UpdatePrincipalRequest| {
        let refused = admin.principals().update_principal(request).await;
        reason(&refused.expect_err("refused"))
    };
    assert_eq!(update(scopes(&me)).await, "SEPARATION_OF_DUTIES");
    assert_eq!(update(scopes(job)).await, "INVALID_FIELD");
    assert_eq!(update(scopes("nobody")).await, "INVALID_FIELD");
    let unknown = uuid::Uuid::now_v7().to_string();
    assert_eq!(update(scopes(&unknown)).await, "PRINCIPAL_NOT_FOUND");
    let of = |change: fn(&mut UpdatePrincipalRequest)| {
        let mut request = UpdatePrincipalRequest {
            principal_id: service.clone(),
            ..Default::default()
        };
        change(&mut request);
        request
    };
    let many = |what: &str, n: usize| (0..n).map(|i| format!("{what}{i}")).collect::<Vec<_>>();
    let wrong = [
        (of(|_| {}), "INVALID_FIELD"),
        (
            of(|r| r.add_scopes = vec!["claviger:auditor".into()]),
            "INVALID_FIELD",
        ),
        (of(|r| r.owner = Some(String::new())), "INVALID_FIELD"),
        (
            of(|r| r.add_identities = vec!["ann".into()]),
            "INVALID_FIELD",
        ),
        (
            of(|r| r.add_identities = vec!["spiffe://claviger.test/other".into()]),
            "ALREADY_EXISTS",
        ),
        (
            UpdatePrincipalRequest {
                add_identities: many("cn:i", 8),
                ..of(|_| {})
            },
            "INVALID_FIELD",
        ),
        (
            UpdatePrincipalRequest {
                add_scopes: many("can.", 65),
                ..of(|_| {})
            },
            "INVALID_FIELD",
        ),
    ];
    for (request, expected) in wrong {
        assert_eq!(update(request.clone()).await, expected, "{request:?}");
    }
    let suspend = async |id: &str| {
        let request = SuspendPrincipalRequest {
            principal_id: id.into(),
            reason: "test".into(),
        };
        let refused = admin.principals().suspend_principal(request).await;
        reason(&refused.expect_err("refused"))
    };
    assert_eq!(suspend(&me).await, "SEPARATION_OF_DUTIES");
    assert_eq!(suspend(job).await, "INVALID_FIELD");
    let rows = d.rows("SELECT COUNT(*) FROM principal_scopes").await;
    assert_eq!(rows[0][0], "0");
    d.stop().await;
}

// R-ACL-3
#[tokio::test]
async fn an_admin_of_one_tenant_binds_no_identities() {
    let d = Setup::new(Engine::Sqlite)
        .append(
            "[[bootstrap.principals]]\nname = \"boss\"\ntenant = \"acme\"\ntype = \"user\"\n\
             identities = [\"spiffe://claviger.test/stranger\"]\n\
             roles = [{ role = \"principal-admin\", tenant = \"acme\" }]",
        )
        .start()
        .await;
    let boss = d.actor("stranger");
    let ann = person(&d, "ann", &[]).await;
    let update = |id: &str| UpdatePrincipalRequest {
        principal_id: id.into(),
        add_scopes: vec!["can.a".into()],
        ..Default::default()
    };
    boss.principals()
        .update_principal(update(&ann.id))
        .await
        .expect("her own tenant");
    let refused = boss
        .principals()
        .update_principal(UpdatePrincipalRequest {
            add_identities: vec!["cn:ann".into()],
            ..update(&ann.id)
        })
        .await;
    assert_eq!(
        reason(&refused.expect_err("identities")),
        "PERMISSION_DENIED"
    );
    let refused = boss
        .principals()
        .update_principal(update(&d.id_of("other").await))
        .await;
    assert_eq!(reason(&refused.expect_err("globex")), "PRINCIPAL_NOT_FOUND");
    d.stop().await;
}

// R-LIFE-7: a principal-admin gets no second role by making credentials in somebody's name.
#[tokio::test]
async fn nobody_else_makes_a_key_that_brings_a_persons_roles_along() {
    let d = Daemon::start(Engine::Sqlite).await;
    let (admin, approver) = (d.actor("admin"), d.actor("approver"));
    let owner = d.id_of("approver").await;
    let role = ["claviger:key-approver"];
    let refused = create(&admin, wanted(&owner, &role)).await;
    let refused = refused.expect_err("the approver's role");
    assert_eq!(reason(&refused), "SEPARATION_OF_DUTIES");
    let own = create(&approver, wanted("", &role)).await;
    let own = own.expect("its own key").api_key.expect("a key");
    // Nor by following one that the person has made.
    let request = RotateApiKeyRequest {
        api_key_id: own.id,
        ..Default::default()
    };
    let refused = admin.api_keys().rotate_api_key(request).await;
    let refused = refused.expect_err("the approver's role");
    assert_eq!(reason(&refused), "SEPARATION_OF_DUTIES");
    // Without the role it may, and a service's roles it may pass on.
    create(&admin, wanted(&owner, &[])).await.expect("a key");
    let service = d.id_of("service").await;
    let made = create(&admin, wanted(&service, &["claviger:crypto-user"])).await;
    made.expect("the service's key");
    d.stop().await;
}

// R-ACL-3: who is principal-admin in tenant system alone gets no role in another tenant through a service that has one.
#[tokio::test]
async fn an_admin_of_one_tenant_passes_on_no_role_in_another() {
    let d = Daemon::start(Engine::Sqlite).await;
    let admin = d.actor("admin");
    let principal = async |name: &str, identities: &[&str], role: &str, tenant: &str| {
        let request = CreatePrincipalRequest {
            tenant: "system".into(),
            name: name.into(),
            r#type: PrincipalType::Service.into(),
            identities: identities.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let made = admin.principals().create_principal(request).await;
        let made = made.expect("CreatePrincipal").into_inner();
        let id = made.principal.expect("a principal").id;
        let grant = GrantRoleRequest {
            principal_id: id.clone(),
            role: role.into(),
            tenant: tenant.into(),
        };
        let granted = admin.principals().grant_role(grant).await;
        granted.expect("GrantRole");
        id
    };
    let stranger = "spiffe://claviger.test/stranger";
    principal("local", &[stranger], "principal-admin", "system").await;
    let reacher = principal("reacher", &[], "crypto-user", "acme").await;
    let wanted_key = || wanted(&reacher, &["claviger:crypto-user"]);
    let refused = create(&d.actor("stranger"), wanted_key()).await;
    assert_eq!(reason(&refused.expect_err("acme's")), "PERMISSION_DENIED");
    create(&admin, wanted_key()).await.expect("of all tenants");
    d.stop().await;
}
