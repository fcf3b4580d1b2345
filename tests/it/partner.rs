//! System PARTNER, a day of it end to end: a user gets an API key, a program exchanges it for tokens with a stock library,
//! calls, the key is rotated under the calls, then revoked; the audit log tells it all. R-OAUTH-1 to R-OAUTH-5.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use claviger::grpc::proto::*;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tonic::{Code, Request, Status};

use crate::{
    daemon::{Actor, Daemon, Engine, PATIENCE, Setup, reason},
    foreign::script,
    oauth::realm::{Realm, Reply},
};

/// What the partner's own API is called in tokens.
const API: &str = "https://api.partner.test";
/// What the daemon is called in tokens.
const DAEMON: &str = "claviger";
/// Calls of each kind that are waited for in each part of the rotation.
const ENOUGH: usize = 5;

#[tokio::test]
async fn a_partners_day_on_sqlite() {
    day(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_partners_day_on_postgres() {
    day(Engine::Postgres).await;
}

/// A key and its id, which is its client_id too.
#[derive(Clone, Debug)]
struct Key {
    id: String,
    text: String,
}

impl Key {
    fn of(text: &str) -> Self {
        let text = text.trim_end().to_owned();
        assert!(text.starts_with("cvk_") && text.len() == 87, "no API key");
        let id = text.split('_').nth(1).expect("an id");
        let id = uuid::Uuid::parse_str(id).expect("an id").to_string();
        Self { id, text }
    }
}

async fn day(engine: Engine) {
    let (realm, ann) = onboard(engine).await;
    let first = get_a_key(&realm.daemon).await;
    let (jtis, token) = exchange_and_call(&realm, &first, &ann).await;
    let second = rotate_under_calls(&realm, &first).await;
    revoke(&realm, &first, &second, &token).await;
    the_log_tells_it(&realm.daemon, &ann, [&first, &second], &jtis).await;
    realm.daemon.stop().await;
}

/// A daemon, and the user ann of acme with a role, entitlements and a certificate of her own.
async fn onboard(engine: Engine) -> (Realm, String) {
    let daemon = Setup::new(engine)
        .replace("[grpc]\n", "[grpc]\nclient_certificate = \"optional\"\n")
        .append(format!("[oauth]\naudiences = [{API:?}, {DAEMON:?}]\n"))
        .start()
        .await;
    let (token, es256) = (KeyPurpose::TokenSigning, Algorithm::Es256);
    daemon.key("acme", "tokens", token, es256).await;
    let (encryption, gcm) = (KeyPurpose::Encryption, Algorithm::A256gcm);
    daemon.key("acme", "vault", encryption, gcm).await;
    let mut admin = daemon.actor("admin").principals();
    let request = CreatePrincipalRequest {
        tenant: "acme".into(),
        name: "ann".into(),
        r#type: PrincipalType::User.into(),
        identities: vec!["spiffe://claviger.test/ann".into()],
        scopes: vec!["orders.read".into(), "orders.write".into()],
        ..Default::default()
    };
    let made = admin.create_principal(request).await;
    let made = made.expect("CreatePrincipal").into_inner();
    let ann = made.principal.expect("a principal").id;
    let grant = GrantRoleRequest {
        principal_id: ann.clone(),
        role: "crypto-user".into(),
        tenant: "acme".into(),
    };
    admin.grant_role(grant).await.expect("GrantRole");
    let leaf = daemon.ca.client("spiffe://claviger.test/ann");
    let write = |name: &str, text: &str| {
        std::fs::write(daemon.path("certs").join(name), text).expect("a file");
    };
    write("ann.crt", &leaf.pem);
    write("ann.key", &leaf.key.serialize_pem());
    let realm = Realm {
        daemon,
        partner: ann.clone(),
    };
    (realm, ann)
}

async fn get_a_key(daemon: &Daemon) -> Key {
    let create = |scope: &'static str| {
        let create = ["--as", "ann", "api-key", "create", "bank"];
        let scopes = ["--expires", "90d", "--scope", "orders.read", "--scope"];
        [&create[..], &scopes, &[scope]].concat()
    };
    // R-OAUTH-2: she gives away no more than she holds.
    let refused = daemon.cli(&create("orders.delete")).await;
    assert!(!refused.status.success() && refused.stdout.is_empty());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("SCOPE_EXCEEDED"), "{said}");
    Key::of(&daemon.cli_ok(&create("claviger:crypto-user")).await)
}

/// The ids of the tokens that she got, and the one for the daemon.
async fn exchange_and_call(realm: &Realm, key: &Key, ann: &str) -> (Vec<String>, String) {
    let daemon = &realm.daemon;
    let input = json!({
        "url": format!("https://{}", daemon.addresses().public),
        "ca": daemon.path("certs/ca.crt"),
        "issuer": "https://issuer.test",
        "key": { "id": key.id, "secret": key.text },
        "wanted": [
            { "audience": API, "scope": "orders.read" },
            { "audience": DAEMON, "scope": "claviger:crypto-user" },
            { "audience": DAEMON, "scope": "orders.read" },
        ],
    });
    let seen = script("partner/day.py", &[], &input).await;
    let [api, own, poor] = [0, 1, 2].map(|i| &seen[i]);
    for (token, scope) in [
        (api, "orders.read"),
        (own, "claviger:crypto-user"),
        (poor, "orders.read"),
    ] {
        let claims = &token["claims"];
        assert_eq!(token["header"]["typ"], "at+jwt", "{token}");
        assert_eq!(claims["sub"], ann, "{claims}");
        assert_eq!(claims["client_id"], key.id.as_str(), "{claims}");
        assert_eq!(claims["scope"], scope, "{claims}");
        assert_eq!(claims["principal_type"], "user", "{claims}");
        assert_eq!(claims["tenant"], "acme", "{claims}");
    }
    let nobody = daemon.actor_with(None);
    let bearer = |token: &Value| format!("Bearer {}", token["token"].as_str().expect("a token"));
    let call = async |token| encrypt(&nobody, "authorization", &bearer(token)).await;
    call(own).await.expect("Encrypt with the token");
    // One for the partner's own API is none for the daemon, and one without the role's scope brings no role along.
    let refused = call(api).await.expect_err("another audience");
    assert_eq!(reason(&refused), "CREDENTIAL_INVALID");
    let refused = call(poor).await.expect_err("no role");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let jti = |token: &Value| token["claims"]["jti"].as_str().expect("a jti").to_owned();
    (vec![jti(api), jti(own), jti(poor)], bearer(own))
}

async fn encrypt(actor: &Actor, header: &'static str, credential: &str) -> Result<(), Status> {
    let mut request = Request::new(EncryptRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        plaintext: "order 4711".into(),
        ..Default::default()
    });
    let value = credential.parse().expect("a header value");
    request.metadata_mut().insert(header, value);
    actor.crypto().encrypt(request).await.map(drop)
}

async fn token(realm: &Realm, key: &Key) -> Reply {
    realm.token((&key.id, &key.text), &[]).await
}

/// What the partner's programs are told: which part of the rotation it is, and the key to use. None ends them.
type Told = Option<(usize, Key)>;

/// Successes by part: before the rotation, with the old key after it, with the new one.
#[derive(Default)]
struct Counts([AtomicUsize; 3]);

impl Counts {
    fn add(&self, part: usize) {
        self.0[part].fetch_add(1, Ordering::SeqCst);
    }

    async fn enough(&self, part: usize) {
        let until = Instant::now() + PATIENCE;
        while self.0[part].load(Ordering::SeqCst) < ENOUGH {
            assert!(Instant::now() < until, "too few calls in part {part}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

// R-OAUTH-4: old and new valid together, and not one call fails.
async fn rotate_under_calls(realm: &Realm, old: &Key) -> Key {
    let (calls, tokens) = (Counts::default(), Counts::default());
    let (tell, told) = watch::channel(Some((0, old.clone())));
    let current = || -> Told { told.borrow().clone() };
    let calling = async || {
        let nobody = realm.daemon.actor_with(None);
        while let Some((part, key)) = current() {
            let answer = encrypt(&nobody, "x-api-key", &key.text).await;
            answer.unwrap_or_else(|e| panic!("a call of part {part} failed: {e}"));
            calls.add(part);
        }
    };
    let exchanging = async || {
        while let Some((part, key)) = current() {
            let reply = token(realm, &key).await;
            assert_eq!(
                reply.status,
                200,
                "a token of part {part}: {}",
                reply.error()
            );
            tokens.add(part);
        }
    };
    let rotating = async || {
        let enough = async |part| tokio::join!(calls.enough(part), tokens.enough(part));
        enough(0).await;
        let file = realm.daemon.path("new.key");
        let rotate = ["--as", "ann", "api-key", "rotate", &old.id];
        let out = ["--overlap", "1h", "--out", file.to_str().expect("UTF-8")];
        realm.daemon.cli_ok(&[&rotate[..], &out].concat()).await;
        let new = Key::of(&std::fs::read_to_string(&file).expect("the new key"));
        // The partner's programs have not heard of it yet.
        tell.send_replace(Some((1, old.clone())));
        enough(1).await;
        tell.send_replace(Some((2, new.clone())));
        enough(2).await;
        tell.send_replace(None);
        new
    };
    let (_, _, _, new) = tokio::join!(calling(), calling(), exchanging(), rotating());
    assert_ne!(new.text, old.text);
    new
}

async fn revoke(realm: &Realm, old: &Key, new: &Key, bearer: &str) {
    let nobody = realm.daemon.actor_with(None);
    let by_token = encrypt(&nobody, "authorization", bearer).await;
    by_token.expect("a rotation ends no token");
    for key in [old, new] {
        let revoke = ["--as", "ann", "api-key", "revoke", &key.id];
        let why = ["--reason", "the contract has ended"];
        let shown = realm.daemon.cli_ok(&[&revoke[..], &why].concat()).await;
        assert!(shown.contains("REVOKED"), "{shown}");
    }
    // What the key has got ends with it.
    let refused = encrypt(&nobody, "authorization", bearer).await;
    assert_eq!(
        reason(&refused.expect_err("its token")),
        "CREDENTIAL_INVALID"
    );
    for key in [old, new] {
        let refused = encrypt(&nobody, "x-api-key", &key.text).await;
        let refused = refused.expect_err("the key is revoked");
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert_eq!(reason(&refused), "CREDENTIAL_INVALID");
        let reply = token(realm, key).await;
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (401, "invalid_client")
        );
    }
}

// R-OAUTH-5, R-ACL-2
async fn the_log_tells_it(daemon: &Daemon, ann: &str, keys: [&Key; 2], jtis: &[String]) {
    let events = events(daemon).await;
    let admin = daemon.id_of("admin").await;
    let find = |what: &str, is_it: &dyn Fn(&AuditEvent) -> bool| {
        let found = events.iter().find(|event| is_it(event));
        found.unwrap_or_else(|| panic!("the log does not tell of: {what}"))
    };
    let done = |event: &AuditEvent, actor: &str, action: &str| {
        event.outcome() == AuditOutcome::Success && event.actor == actor && event.action == action
    };
    let refused = |event: &AuditEvent, actor: &str, action: &str, why: &str| {
        event.outcome() == AuditOutcome::Refused
            && event.actor == actor
            && event.action == action
            && event.data.contains(why)
    };
    find("her", &|e| {
        done(e, &admin, "CreatePrincipal") && e.entity_id == ann
    });
    find("her role", &|e| done(e, &admin, "GrantRole"));
    let [old, new] = keys;
    let created = find("the key", &|e| {
        done(e, ann, "CreateApiKey") && e.entity_id == old.id
    });
    find("the key that she could not make", &|e| {
        e.outcome() != AuditOutcome::Success && e.actor == ann && e.action == "CreateApiKey"
    });
    for jti in jtis {
        find("a token", &|e| {
            done(e, ann, "IssueClientToken")
                && e.data.contains(jti.as_str())
                && e.data.contains(&old.id)
        });
    }
    for key in keys {
        for action in ["Encrypt", "IssueClientToken"] {
            find("a use", &|e| {
                done(e, ann, "API_KEY_USED") && e.entity_id == key.id && e.data.contains(action)
            });
        }
    }
    let rotated = find("the rotation", &|e| {
        done(e, ann, "RotateApiKey") && e.data.contains(&new.id) | (e.entity_id == new.id)
    });
    let mut ends = Vec::new();
    for key in keys {
        ends.push(find("the revocation", &|e| {
            done(e, ann, "RevokeApiKey") && e.entity_id == key.id
        }));
        let (by_call, by_client) = (format!("api_key:{}", key.id), format!("client:{}", key.id));
        let why = "API_KEY_REVOKED";
        ends.push(find("a call that was refused", &|e| {
            refused(e, &by_call, "Encrypt", why)
        }));
        ends.push(find("a token that was refused", &|e| {
            refused(e, &by_client, "IssueClientToken", why)
        }));
    }
    let at = |event: &AuditEvent| event.time.map(|t| (t.seconds, t.nanos));
    assert!(at(created) < at(rotated));
    assert!(ends.iter().all(|end| at(rotated) < at(end)));
    // Every row names somebody and none names a secret.
    for event in &events {
        for key in keys {
            assert!(
                !format!("{event:?}").contains(&key.text),
                "{}",
                event.action
            );
        }
    }
}

/// Every event, as the auditor reads them.
async fn events(daemon: &Daemon) -> Vec<AuditEvent> {
    let mut auditor = daemon.actor("auditor").audit();
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListAuditEventsRequest {
            tenant: "*".into(),
            page_size: 1000,
            page_token,
            ..Default::default()
        };
        let page = auditor.list_audit_events(request).await;
        let page = page.expect("ListAuditEvents").into_inner();
        all.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}
