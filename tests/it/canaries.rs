//! Known secrets go through the product, on the ways that work and on those that fail, and are then looked for in all that
//! it keeps and says. R-OAUTH-3, R-ENV-3, R-OPS-3, finding R1 of the ESCROW audit.

pub mod forms;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use claviger::grpc::proto::*;
use tonic::{Request, Response, Status};

use self::forms::{Canaries, holds};
use crate::{
    daemon::{Actor, Daemon, Engine, Setup},
    jwt_attacks::forge::Signer,
    oauth::realm::{ASSERTION_TYPE, INTROSPECT, REVOKE, Realm, Reply, TOKEN, assertion},
    traces::collector::{Collector, Manner},
};

const IMPORTED: &[u8] = b"whsec canary 5b0e41a9c7 of a payment provider";
const PLAINTEXT: &[u8] = b"broker key canary 77f3d0a1be, never to be seen again";

#[tokio::test]
async fn no_secret_is_kept_or_told_on_sqlite() {
    nothing_is_told(Engine::Sqlite).await;
}

#[tokio::test]
async fn no_secret_is_kept_or_told_on_postgres() {
    nothing_is_told(Engine::Postgres).await;
}

/// What must not be found, and all that was said.
#[derive(Default)]
struct Seen {
    canaries: Canaries,
    said: String,
}

impl Seen {
    fn plant(&mut self, name: &str, secret: impl AsRef<[u8]>) {
        self.canaries.plant(name, secret.as_ref());
    }

    /// An API key; the whole of it, and what only its owner knows.
    fn plant_key(&mut self, name: &str, text: &str) {
        let secret = text.split('_').nth(2).expect("a secret");
        assert_eq!(secret.len(), 43);
        // Its id is no secret, so the half that is looked for is not the one with the id.
        self.plant(name, secret);
        self.plant(name, &text[text.len() - 31..]);
    }

    /// A token; its header and its claims are no secret, what makes it valid is.
    fn plant_token(&mut self, name: &str, token: &str) {
        self.plant(name, token.rsplit_once('.').expect("a JWT").1);
    }

    fn heard(&mut self, status: &Status) {
        self.said += &format!("{status:?} {}\n", String::from_utf8_lossy(status.details()));
    }

    fn refused<T>(&mut self, answer: Result<Response<T>, Status>) {
        let Err(status) = answer else {
            panic!("it was not refused");
        };
        self.heard(&status);
    }

    fn answered(&mut self, reply: &Reply) {
        self.said += &format!("{:?} {}\n", reply.headers, reply.body);
    }

    fn turned_away(&mut self, reply: &Reply) {
        assert!(reply.status >= 400, "{}", reply.status);
        self.answered(reply);
    }

    fn expect_absent(&self, place: &str, bytes: &[u8]) {
        if let Some(name) = self.canaries.find(bytes) {
            panic!("{name} is in {place}");
        }
    }
}

async fn nothing_is_told(engine: Engine) {
    let collector = Collector::start(Manner::Takes).await;
    let setup = Setup::new(engine)
        .append(collector.section(1.0))
        .replace("[grpc]\n", "[grpc]\nclient_certificate = \"optional\"\n")
        .append("[log]\nlevel = \"trace\"")
        .edit(url_in_a_file);
    let mut realm = Realm::with(setup).await;
    let mut seen = Seen::default();
    from_files(&realm.daemon, &mut seen);
    let key = clients(&realm, &mut seen).await;
    calls(&realm, &mut seen, &key).await;
    keys(&realm.daemon, &mut seen).await;
    lists(&realm.daemon, &mut seen).await;

    let metrics = realm.daemon.ops_get("/metrics").await.text();
    assert!(metrics.contains("claviger_authentication_failures_total"));
    seen.expect_absent("/metrics", metrics.as_bytes());
    seen.expect_absent("an answer", seen.said.as_bytes());
    let dump = dump(&realm.daemon).await;
    for known in ["api_key", "ImportKey", "API_KEY_USED", "IssueClientToken"] {
        assert!(dump.contains(known), "{known} is not in what was dumped");
    }
    seen.expect_absent("the database", dump.as_bytes());
    // With what is written at the end: last uses, the rest of the log.
    assert!(realm.daemon.terminate().await.success());
    seen.expect_absent("the database", self::dump(&realm.daemon).await.as_bytes());
    if engine == Engine::Sqlite {
        let files = files(&realm.daemon);
        assert!(holds(&files, b"api_keys"));
        seen.expect_absent("the database's files", &files);
    }
    // The end sends what is left of the traces.
    let spans = collector.spans();
    for known in [
        "POST /oauth/token",
        "claviger.v1.KeyService/ImportKey",
        "claviger.v1.CryptoService/Encrypt",
    ] {
        assert!(spans.iter().any(|span| span.name == known), "{known}");
    }
    seen.expect_absent("a trace", &collector.bytes());
    let log = realm.daemon.log();
    assert!(
        log.contains("TRACE") && log.contains("DEBUG"),
        "{}",
        log.len()
    );
    seen.expect_absent("the log", log.as_bytes());
    realm.daemon.stop().await;
}

/// The database's URL, which may hold a password, comes from a file.
fn url_in_a_file(text: String) -> String {
    let value = |line: &str| -> String {
        let quoted = line.split_once(" = ").expect("a value").1;
        serde_json::from_str(quoted).expect("a string")
    };
    let line = |name: &str| text.lines().find(|l| l.starts_with(name)).expect("a line");
    let (addresses, url) = (value(line("addresses_file")), line("url = "));
    let file = addresses.replace("addresses.json", "secrets/url");
    std::fs::write(&file, value(url)).expect("a file");
    text.replace(url, &format!("url_file = {file:?}"))
}

fn from_files(daemon: &Daemon, seen: &mut Seen) {
    let pin = std::fs::read_to_string(daemon.path("secrets/pin")).expect("the PIN");
    seen.plant("the PIN", pin.trim_end());
    let url = std::fs::read_to_string(daemon.path("secrets/url")).expect("the URL");
    let url = url::Url::parse(&url).expect("a URL");
    match daemon.engine() {
        Engine::Postgres => {
            let password = url.password().expect("a password");
            seen.plant("the password of the database", password);
        }
        Engine::Sqlite => assert_eq!(url.password(), None),
    }
}

/// API keys, client secrets, assertions and tokens at the OAuth endpoints. Returns a key for calls.
async fn clients(realm: &Realm, seen: &mut Seen) -> String {
    let (client, secret) = realm.secret("web").await;
    let secret = secret.as_str();
    seen.plant_key("a client's secret", secret);
    let who = (client.id.as_str(), secret);
    let token = realm.token(who, &[]).await.token();
    seen.plant_token("an access token", &token);
    let introspected = realm.basic(INTROSPECT, who, &[("token", &token)]).await;
    assert_eq!(introspected.status, 200);
    seen.answered(&introspected);

    let signer = Signer::new(Algorithm::Es256);
    let batch = realm.signing("batch", &signer).await;
    let good = assertion(&signer, &batch.id);
    seen.plant_token("an assertion", &good);
    let asserted = realm.asserted(&good).await.token();
    seen.plant_token("another access token", &asserted);
    // Once more, and one that is for another client.
    seen.turned_away(&realm.asserted(&good).await);
    let stray = assertion(&signer, &client.id);
    seen.plant_token("an assertion of nobody", &stray);
    seen.turned_away(&realm.asserted(&stray).await);

    // Wherever somebody in a hurry puts a secret.
    let cut = &secret[..secret.len() - 1];
    let grant = ("grant_type", "client_credentials");
    for reply in [
        realm.token((&client.id, cut), &[]).await,
        realm.token((secret, &client.id), &[]).await,
        realm.token((secret, secret), &[]).await,
        realm.token(who, &[("scope", secret)]).await,
        realm.token(who, &[("audience", secret)]).await,
        realm.post(TOKEN, &[grant, ("client_id", secret)]).await,
        realm.post(TOKEN, &[("grant_type", secret)]).await,
        realm.post(TOKEN, &[grant, (secret, "1")]).await,
        realm
            .post(&format!("{TOKEN}?client_secret={secret}"), &[grant])
            .await,
        realm.post(&format!("/oauth/{secret}"), &[grant]).await,
        realm
            .basic(INTROSPECT, (&client.id, cut), &[("token", &token)])
            .await,
    ] {
        seen.turned_away(&reply);
    }
    for header in ["authorization", "x-api-key", "content-type", "cookie"] {
        let bearer = format!("Bearer {secret}");
        let reply = realm.send(None, TOKEN, &[(header, &bearer)], "a=b").await;
        seen.turned_away(&reply);
    }
    let form = [
        grant,
        ("client_assertion_type", ASSERTION_TYPE),
        ("client_assertion", secret),
    ];
    seen.turned_away(&realm.post(TOKEN, &form).await);
    let revoked = realm.basic(REVOKE, who, &[("token", &token)]).await;
    assert_eq!(revoked.status, 200);
    seen.answered(&revoked);

    let (id, key) = realm.api_key("", &["can.use_users"]).await;
    seen.plant_key("an API key", &key);
    let rotate = RotateApiKeyRequest {
        api_key_id: id.clone(),
        ..Default::default()
    };
    let mut api_keys = realm.daemon.actor("admin").api_keys();
    let mut request = Request::new(rotate);
    let repeatable = "canary".parse().expect("metadata");
    request.metadata_mut().insert("idempotency-key", repeatable);
    let rotated = api_keys.rotate_api_key(request).await;
    let rotated = rotated.expect("RotateApiKey").into_inner().secret;
    seen.plant_key("a rotated API key", &rotated);
    let revoke = RevokeApiKeyRequest {
        api_key_id: id,
        reason: "it was seen".into(),
    };
    api_keys.revoke_api_key(revoke).await.expect("RevokeApiKey");
    let nobody = realm.daemon.actor_with(None);
    seen.refused(encrypt(&nobody, &[("x-api-key", &key)]).await);
    rotated
}

async fn encrypt(
    actor: &Actor,
    headers: &[(&'static str, &str)],
) -> Result<Response<EncryptResponse>, Status> {
    let mut request = Request::new(EncryptRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        plaintext: Bytes::from_static(PLAINTEXT),
        ..Default::default()
    });
    for (name, value) in headers {
        let value = value.parse().expect("a header value");
        request.metadata_mut().append(*name, value);
    }
    actor.crypto().encrypt(request).await
}

/// The same at the gRPC port.
async fn calls(realm: &Realm, seen: &mut Seen, key: &str) {
    let d = &realm.daemon;
    d.key("acme", "vault", KeyPurpose::Encryption, Algorithm::A256gcm)
        .await;
    let issue = IssueTokenRequest {
        tenant: "acme".into(),
        key: "tokens".into(),
        subject: "somebody".into(),
        audience: vec!["api".into()],
        ..Default::default()
    };
    let issued = d.actor("service").tokens().issue_token(issue).await;
    let token = issued.expect("IssueToken").into_inner().token;
    seen.plant_token("an issued token", &token);
    let verify = |token: &str| VerifyTokenRequest {
        tenant: "acme".into(),
        token: token.into(),
        audience: "api".into(),
        ..Default::default()
    };
    let mut tokens = d.actor("service").tokens();
    for token in [&token[..], key, &token[..token.len() - 1]] {
        let answer = tokens.verify_token(verify(token)).await;
        seen.said += &format!("{:?}\n", answer.map(|a| a.into_inner().rejection));
    }
    let nobody = d.actor_with(None);
    let bearer = format!("Bearer {token}");
    let (cut, basic) = (&key[..80], BASE64_STANDARD.encode(key));
    let basic = format!("Basic {basic}");
    for headers in [
        &[("x-api-key", key)][..],
        &[("x-api-key", cut)],
        &[("authorization", bearer.as_str())],
        &[("authorization", basic.as_str())],
        &[("authorization", bearer.as_str()), ("x-api-key", key)],
        &[("x-api-key", key), ("x-api-key", key)],
        &[("idempotency-key", key)],
        &[("x-request-id", key)],
        &[("traceparent", key)],
        &[("tracestate", key)],
    ] {
        seen.refused(encrypt(&nobody, headers).await);
    }
    // Administration takes no API keys.
    let mut request = Request::new(CreateTenantRequest {
        name: "initech".into(),
    });
    let value = key.parse().expect("a header value");
    request.metadata_mut().insert("x-api-key", value);
    let refused = nobody.principals().create_tenant(request).await;
    seen.refused(refused);
}

/// A secret that is imported, a plaintext, and a data key.
async fn keys(d: &Daemon, seen: &mut Seen) {
    seen.plant("an imported secret", IMPORTED);
    let import = |name: &str, algorithm: Algorithm| ImportKeyRequest {
        tenant: "acme".into(),
        name: name.into(),
        algorithm: algorithm.into(),
        secret: Bytes::from_static(IMPORTED),
        owner: "payments".into(),
        ..Default::default()
    };
    let mut issuer = d.actor("issuer").keys();
    let made = issuer.import_key(import("hooks", Algorithm::Hs256)).await;
    made.expect("ImportKey");
    seen.refused(issuer.import_key(import("hooks", Algorithm::Hs256)).await);
    seen.refused(issuer.import_key(import("wrong", Algorithm::Es256)).await);
    let denied = d.actor("service").keys();
    seen.refused(
        { denied }
            .import_key(import("mine", Algorithm::Hs256))
            .await,
    );

    seen.plant("a plaintext", PLAINTEXT);
    let service = d.actor("service");
    let sealed = encrypt(&service, &[]).await.expect("Encrypt").into_inner();
    let decrypt = |ciphertext: Bytes| DecryptRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        ciphertext,
        ..Default::default()
    };
    let opened = service
        .crypto()
        .decrypt(decrypt(sealed.ciphertext.clone()))
        .await;
    assert_eq!(opened.expect("Decrypt").into_inner().plaintext, PLAINTEXT);
    let mut changed = sealed.ciphertext.to_vec();
    *changed.last_mut().expect("a byte") ^= 1;
    seen.refused(service.crypto().decrypt(decrypt(changed.into())).await);

    let generate = GenerateDataKeyRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        length: 32,
        ..Default::default()
    };
    let made = service.data_keys().generate_data_key(generate).await;
    let made = made.expect("GenerateDataKey").into_inner();
    seen.plant("a data key", &made.plaintext);
    let unwrap = |wrapped: Bytes| DecryptDataKeyRequest {
        tenant: "acme".into(),
        key: "vault".into(),
        wrapped,
        ..Default::default()
    };
    let mut data_keys = service.data_keys();
    let again = data_keys
        .decrypt_data_key(unwrap(made.wrapped.clone()))
        .await;
    assert_eq!(
        again.expect("DecryptDataKey").into_inner().plaintext,
        made.plaintext
    );
    let mut changed = made.wrapped.to_vec();
    *changed.last_mut().expect("a byte") ^= 1;
    seen.refused(data_keys.decrypt_data_key(unwrap(changed.into())).await);
}

/// What people read: keys, clients, the audit log.
async fn lists(d: &Daemon, seen: &mut Seen) {
    let mut api_keys = d.actor("admin").api_keys();
    let request = ListApiKeysRequest {
        tenant: "acme".into(),
        ..Default::default()
    };
    let listed = api_keys.list_api_keys(request).await;
    let listed = listed.expect("ListApiKeys").into_inner().api_keys;
    assert_eq!(listed.len(), 3);
    let request = ListClientsRequest {
        tenant: "acme".into(),
        ..Default::default()
    };
    let clients = d.actor("admin").clients().list_clients(request).await;
    let clients = clients.expect("ListClients").into_inner();
    let request = ListAuditEventsRequest {
        tenant: "*".into(),
        page_size: 1000,
        ..Default::default()
    };
    let events = d.actor("auditor").audit().list_audit_events(request).await;
    let events = events.expect("ListAuditEvents").into_inner();
    assert!(events.next_page_token.is_empty() && events.events.len() > 50);
    seen.said += &format!("{listed:?}\n{clients:?}\n{events:?}\n");
}

/// Every column of every row of every table, as text.
pub async fn dump(d: &Daemon) -> String {
    let (tables, row) = match d.engine() {
        Engine::Sqlite => ("SELECT name FROM sqlite_master WHERE type = 'table'", None),
        Engine::Postgres => (
            "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'",
            Some("t::text"),
        ),
    };
    let mut all = String::new();
    let tables: Vec<String> = d.rows(tables).await.concat();
    assert!(
        tables.len() > 15
            && tables
                .iter()
                .any(|t| t == "idempotency_keys" || t == "api_keys")
    );
    for table in tables {
        let row = match row {
            Some(row) => row.to_owned(),
            // Bytes as X'…', as the command-line tool dumps them.
            None => {
                let columns = format!("SELECT name FROM pragma_table_info('{table}')");
                let columns = d.rows(&columns).await.concat();
                let quoted: Vec<_> = columns.iter().map(|c| format!("quote(\"{c}\")")).collect();
                quoted.join(" || ',' || ")
            }
        };
        let rows = d.rows(&format!("SELECT {row} FROM \"{table}\" AS t")).await;
        all += &format!("{table}\n{}\n", rows.concat().join("\n"));
    }
    all
}

/// The files of a SQLite database: also what was deleted from it.
fn files(d: &Daemon) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(d.path("")).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.to_string_lossy().contains("claviger.db") {
            bytes.extend(std::fs::read(path).expect("a file"));
        }
    }
    bytes
}
