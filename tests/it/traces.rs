//! Traces leave for a collector, tell where the time of a call goes, hold up nothing and tell no secret. R-OPS-3.

pub mod collector;
mod tree;

use std::{collections::HashSet, fs, path::Path, time::Duration};

use claviger::grpc::proto::{
    Algorithm, EncryptRequest, KeyPurpose, SignRequest, sign_request::Payload,
};
use http::Method;
use opentelemetry_proto::tonic::trace::v1::{Span, status::StatusCode};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Response, Status};

use self::collector::{Collector, Manner, attribute, hex};
use crate::{
    canaries::forms::Canaries,
    daemon::{Actor, Daemon, Engine, PATIENCE, Setup},
    pki::Ca,
    vault,
};

const SIGN: &str = "claviger.v1.CryptoService/Sign";
const PARENT: &str = "00f067aa0ba902b7";

/// A trace of ours that a caller has begun.
fn id(number: u8) -> String {
    format!("4bf92f3577b34da6a3ce929d0e0e47{number:02x}")
}

fn parent(number: u8) -> String {
    format!("00-{}-{PARENT}-01", id(number))
}

async fn sign(
    who: &Actor,
    headers: &[(&'static str, &str)],
) -> Result<Response<claviger::grpc::proto::SignResponse>, Status> {
    let mut request = Request::new(SignRequest {
        tenant: "acme".into(),
        key: "signing".into(),
        payload: Some(Payload::Message("message".into())),
    });
    for (name, value) in headers {
        let value = value.parse().expect("a header value");
        request.metadata_mut().append(*name, value);
    }
    who.crypto().sign(request).await
}

async fn daemon(setup: Setup) -> Daemon {
    let daemon = setup.start().await;
    let (purpose, algorithm) = (KeyPurpose::Signing, Algorithm::Es256);
    daemon.key("acme", "signing", purpose, algorithm).await;
    daemon
}

/// A call that finds all it needs in memory: what the daemon reads in its own feed makes it forget the key once more.
async fn warm(collector: &Collector, who: &Actor) -> Vec<Span> {
    for number in 100.. {
        let sent = parent(number);
        let signed = sign(who, &[("traceparent", &sent)]).await;
        signed.expect("a signature");
        let spans = collector.trace(&id(number)).await;
        if !spans.iter().any(|span| span.name.starts_with("keys.")) {
            return spans;
        }
    }
    unreachable!("u8 ends with a panic");
}

fn one<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut found = spans.iter().filter(|span| span.name == name);
    let span = found.next().unwrap_or_else(|| panic!("no {name}"));
    assert!(found.next().is_none(), "more than one {name}");
    span
}

fn is_below(spans: &[Span], span: &Span, above: &Span) -> bool {
    let parent = spans.iter().find(|one| one.span_id == span.parent_span_id);
    parent.is_some_and(|parent| parent.span_id == above.span_id || is_below(spans, parent, above))
}

#[tokio::test]
async fn a_sign_call_is_one_tree_on_sqlite() {
    one_tree(Engine::Sqlite, "sqlite").await;
}

#[tokio::test]
async fn a_sign_call_is_one_tree_on_postgres() {
    one_tree(Engine::Postgres, "postgresql").await;
}

// R-OPS-3
async fn one_tree(engine: Engine, system: &str) {
    let collector = Collector::start(Manner::Takes).await;
    let setup = Setup::new(engine)
        .append(collector.section(0.0))
        .append("[log]\nlevel = \"debug\"");
    let d = daemon(setup).await;
    let service = d.actor("service");

    // The first call looks up who calls and which key it is; a later one has both in memory.
    let headers = [
        ("traceparent", parent(1)),
        ("tracestate", "mesh=a,edge=b".to_owned()),
        ("x-request-id", "order-7".to_owned()),
    ];
    let headers = headers
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    sign(&service, &headers).await.expect("a signature");
    let cold = collector.trace(&id(1)).await;
    let root = one(&cold, SIGN);
    assert_eq!(hex(&root.parent_span_id), PARENT);
    assert_eq!(root.trace_state, "mesh=a,edge=b");
    for (name, value) in [
        ("rpc.system", "grpc"),
        ("rpc.service", "claviger.v1.CryptoService"),
        ("rpc.method", "Sign"),
        ("rpc.grpc.status_code", "0"),
        ("claviger.request_id", "order-7"),
        ("claviger.tenant", "acme"),
    ] {
        assert_eq!(attribute(root, name).as_deref(), Some(value), "{name}");
    }
    let authenticate = one(&cold, "authenticate");
    assert_eq!(
        attribute(authenticate, "claviger.credential").as_deref(),
        Some("certificate")
    );
    let statements = |above: &Span| {
        let said = |span: &Span| attribute(span, "db.system.name").as_deref() == Some(system);
        let below = cold.iter().filter(|span| is_below(&cold, span, above));
        below.filter(|span| said(span)).count()
    };
    assert!(statements(authenticate) > 0, "who calls is in the database");
    assert!(statements(one(&cold, "audit")) > 0, "so is the record");
    let key = d.rows("SELECT id FROM keys WHERE name = 'signing'").await;
    let authorize = one(&cold, "authorize");
    for (name, value) in [
        ("claviger.action", "Sign"),
        ("claviger.decision", "allow"),
        ("claviger.entity", "key"),
        ("claviger.entity.id", key[0][0].as_str()),
    ] {
        assert_eq!(attribute(authorize, name).as_deref(), Some(value), "{name}");
    }
    let device = one(&cold, "sign");
    assert_eq!(
        attribute(device, "claviger.backend").as_deref(),
        Some("hsm")
    );
    assert!(is_below(&cold, one(&cold, "queue"), device));

    let warm = tree::lines(&warm(&collector, &service).await);
    println!("{}", warm.join("\n"));
    documented(&warm);

    // A change is in its transaction, and that is in the call, although a task of its own makes it.
    let mut request = Request::new(claviger::grpc::proto::CreateTenantRequest {
        name: "initech".into(),
    });
    let value = parent(3).parse().expect("a header value");
    request.metadata_mut().insert("traceparent", value);
    let made = d.actor("admin").principals().create_tenant(request).await;
    made.expect("a tenant");
    let change = collector.trace(&id(3)).await;
    tree::lines(&change);
    let transaction = one(&change, "transaction");
    for name in ["tenants.INSERT", "audit.INSERT", "engine.COMMIT"] {
        let said: Vec<_> = change.iter().map(|span| &span.name).collect();
        let found = change.iter().find(|span| span.name == name);
        let found = found.unwrap_or_else(|| panic!("no {name} in {said:?}"));
        assert!(is_below(&change, found, transaction), "{name}");
    }

    let resources = collector.resources();
    for (name, value) in [
        ("service.name", "claviger"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", "one"),
        ("deployment.environment.name", "dev"),
    ] {
        let is_said = |one: &std::collections::HashMap<_, _>| {
            one.get(name).is_some_and(|v: &String| v == value)
        };
        assert!(resources.iter().all(is_said), "{name}: {resources:?}");
    }
    // Whoever reads the log finds the trace, and the other way round. What SQLite says it says in a thread of its own.
    let log = d.log();
    if engine == Engine::Postgres {
        let line = log.lines().find(|line| line.contains(&id(1)));
        let line: serde_json::Value = serde_json::from_str(line.expect("a line")).expect("JSON");
        assert_eq!(line["span"]["trace_id"], id(1), "{line}");
        assert_eq!(line["span"]["request_id"], "order-7", "{line}");
    }
    assert!(
        !log.contains("claviger_trace"),
        "spans of traces are no log"
    );
    let metrics = d.ops_get("/metrics").await.text();
    assert!(
        metrics.contains("claviger_trace_collector_up 1"),
        "{metrics}"
    );
    assert!(metrics.contains("claviger_trace_spans_exported_total"));
    d.stop().await;
}

/// The tree in the documentation has this shape.
fn documented(lines: &[String]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/telemetry.md");
    let text = fs::read_to_string(path).expect("docs/telemetry.md");
    let start = text.find(&format!("\n{SIGN} ")).expect("a tree") + 1;
    let tree = text[start..].split("```").next().expect("its end");
    let documented: Vec<_> = tree.lines().map(str::to_owned).collect();
    let (said, is) = (tree::shape(&documented), tree::shape(lines));
    assert_eq!(
        said,
        is,
        "docs/telemetry.md has another tree than\n{}",
        lines.join("\n")
    );
}

// R-OPS-3
#[tokio::test]
async fn only_a_caller_who_shows_a_certificate_decides_what_is_sampled() {
    let collector = Collector::start(Manner::Takes).await;
    let setup = Setup::new(Engine::Sqlite)
        .replace("[grpc]\n", "[grpc]\nclient_certificate = \"optional\"\n")
        .append(collector.section(0.0));
    let mut d = daemon(setup).await;
    let (service, nobody) = (d.actor("service"), d.actor_with(None));

    let quiet = parent(10).replace("-01", "-00");
    for unsampled in [
        &[][..],
        &[("traceparent", quiet.as_str())],
        &[("traceparent", "00-zz-zz-01")],
        &[("traceparent", ""), ("tracestate", "a=b")],
        &[("traceparent", &parent(11)), ("traceparent", &parent(12))],
    ] {
        sign(&service, unsampled).await.expect("a signature");
    }
    let refused = sign(&nobody, &[("traceparent", &parent(13))]).await;
    assert_eq!(refused.expect_err("refused").code(), Code::Unauthenticated);
    let reply = vault::send(
        &d,
        Method::GET,
        "/.well-known/jwks.json",
        &[("traceparent", &parent(14))],
        "",
    )
    .await;
    assert_eq!(reply.status, 200);
    sign(&service, &[("traceparent", &parent(15))])
        .await
        .expect("a signature");
    collector.trace(&id(15)).await;
    // The end sends all that is left, so what is not there was not sampled.
    assert!(d.terminate().await.success());
    let traces: HashSet<_> = collector.spans().iter().map(|s| hex(&s.trace_id)).collect();
    assert_eq!(traces, HashSet::from([id(15)]));
    d.stop().await;
}

// R-OPS-3
#[tokio::test]
async fn a_strangers_trace_is_linked_and_not_continued() {
    let collector = Collector::start(Manner::Takes).await;
    let setup = Setup::new(Engine::Sqlite)
        .replace("[grpc]\n", "[grpc]\nclient_certificate = \"optional\"\n")
        .append(collector.section(1.0));
    let d = daemon(setup).await;
    let refused = sign(&d.actor_with(None), &[("traceparent", &parent(20))]).await;
    assert!(refused.is_err());
    let rpc = collector.root(SIGN).await;
    assert_eq!(
        attribute(&rpc, "rpc.grpc.status_code").as_deref(),
        Some("16")
    );
    // It is the caller's fault, and no error of the daemon.
    let is_error = |span: &Span| {
        let status = span.status.as_ref();
        status.is_some_and(|status| status.code() == StatusCode::Error)
    };
    assert!(!is_error(&rpc));
    let path = "/.well-known/jwks.json";
    let headers = [("traceparent", &*parent(21))];
    vault::send(&d, Method::GET, path, &headers, "").await;
    let http = collector.root(&format!("GET {path}")).await;
    for (name, value) in [
        ("http.request.method", "GET"),
        ("http.route", path),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(attribute(&http, name).as_deref(), Some(value), "{name}");
    }
    for (span, theirs) in [(&rpc, id(20)), (&http, id(21))] {
        assert_ne!(hex(&span.trace_id), theirs);
        assert!(span.parent_span_id.is_empty());
        let links: Vec<_> = span.links.iter().map(|link| hex(&link.trace_id)).collect();
        assert_eq!(links, [theirs]);
    }
    // A path that is not ours is not repeated, nor is a method.
    let made_up = Method::from_bytes(b"SECRETS").expect("a method");
    let unknown = vault::send(&d, made_up, "/a/path/of/their/choice", &[], "").await;
    assert!(unknown.status >= 400);
    let unknown = collector.root("_OTHER unknown").await;
    assert_eq!(
        attribute(&unknown, "http.route").as_deref(),
        Some("unknown")
    );
    let bytes = String::from_utf8_lossy(&collector.bytes()).into_owned();
    assert!(!bytes.contains("their/choice") && !bytes.contains("SECRETS"));
    d.stop().await;
}

/// Ten calls of a daemon whose collector is like this; its log after its end in order.
async fn goes_on(section: String, seen: impl AsyncFnOnce(&Daemon)) -> String {
    let mut d = daemon(Setup::new(Engine::Sqlite).append(section)).await;
    let service = d.actor("service");
    for _ in 0..10 {
        sign(&service, &[]).await.expect("a signature");
    }
    seen(&d).await;
    sign(&service, &[]).await.expect("a signature");
    let ended = timeout(PATIENCE, d.terminate()).await;
    assert!(ended.expect("an end").success());
    let log = d.log();
    d.stop().await;
    log
}

fn told(log: &str) -> usize {
    log.matches("traces are not exported").count()
}

async fn metric(d: &Daemon, line: &str) {
    let until = Instant::now() + PATIENCE;
    while !d.ops_get("/metrics").await.text().contains(line) {
        assert!(Instant::now() < until, "never {line}");
        sleep(Duration::from_millis(50)).await;
    }
}

// R-OPS-3
#[tokio::test]
async fn a_collector_that_is_down_holds_up_nothing() {
    // A port that nobody listens on.
    let section = "[telemetry]\notlp_endpoint = \"http://127.0.0.1:1\"\ntrace_sample_ratio = 1.0\n";
    let section = format!("{section}otlp_timeout_seconds = 1\n");
    let log = goes_on(section, async |d: &Daemon| {
        metric(d, "claviger_trace_collector_up 0").await;
    });
    let log = log.await;
    assert_eq!(told(&log), 1, "{log}");
    assert!(log.contains("spans of traces are lost"), "{log}");
}

// R-OPS-3
#[tokio::test]
async fn a_collector_that_hangs_holds_up_nothing() {
    let collector = Collector::start(Manner::Hangs).await;
    let section = collector.section(1.0) + "otlp_timeout_seconds = 1\n";
    let log = goes_on(section, async |_: &Daemon| collector.asked(2).await);
    let log = log.await;
    assert_eq!(told(&log), 1, "{log}");
    assert!(collector.spans().is_empty());
}

// R-OPS-3, R-ENV-3
#[tokio::test]
async fn what_a_collector_refuses_is_dropped_and_counted() {
    let collector = Collector::start(Manner::Refuses(Code::Unauthenticated)).await;
    let token = "collector canary 5f1c09aa27d3 of an operator";
    let file = std::env::temp_dir().join(format!("claviger-otlp-{}", uuid::Uuid::now_v7()));
    fs::write(&file, format!("x-token: {token}\n")).expect("a file");
    let section = format!("{}otlp_headers_file = {file:?}\n", collector.section(1.0));
    let log = goes_on(section, async |d: &Daemon| {
        let dropped = "claviger_trace_spans_dropped_total{reason=\"refused\"}";
        metric(d, dropped).await;
        assert_eq!(told(&d.log()), 1);
        // It is let in again; nobody has to restart anything.
        collector.becomes(Manner::Takes);
        sign(&d.actor("service"), &[("traceparent", &parent(30))])
            .await
            .expect("a signature");
        collector.trace(&id(30)).await;
        metric(d, "claviger_trace_collector_up 1").await;
    });
    let log = log.await;
    fs::remove_file(&file).expect("the file");
    assert_eq!(told(&log), 1, "{log}");
    assert_eq!(log.matches("traces are exported").count(), 1, "{log}");
    assert!(collector.tokens().iter().all(|got| got == token));
    assert!(!collector.tokens().is_empty());
    let mut canaries = Canaries::default();
    canaries.plant("the collector's token", token.as_bytes());
    assert_eq!(canaries.find(log.as_bytes()), None);
}

// R-OPS-3
#[tokio::test]
async fn what_a_collector_does_not_take_now_it_gets_later() {
    let collector = Collector::start(Manner::Refuses(Code::Unavailable)).await;
    let d = daemon(Setup::new(Engine::Sqlite).append(collector.section(0.0))).await;
    sign(&d.actor("service"), &[("traceparent", &parent(40))])
        .await
        .expect("a signature");
    collector.asked(2).await;
    collector.becomes(Manner::Takes);
    tree::lines(&collector.trace(&id(40)).await);
    assert_eq!(told(&d.log()), 1);
    d.stop().await;
}

// R-OPS-3
#[tokio::test]
async fn a_collector_has_to_show_a_certificate_of_the_named_ca() {
    let (ca, other) = (Ca::new("a collector's CA"), Ca::new("another CA"));
    let dir = std::env::temp_dir().join(format!("claviger-otlp-{}", uuid::Uuid::now_v7()));
    fs::create_dir(&dir).expect("a directory");
    for (name, ca) in [("ca.pem", &ca), ("other.pem", &other)] {
        fs::write(dir.join(name), ca.pem()).expect("a certificate");
    }
    let collector = Collector::start_tls(&ca.server()).await;
    let named = |file: &str| {
        let section = collector.section(1.0);
        format!("{section}otlp_ca_file = {:?}\n", dir.join(file))
    };
    let log = goes_on(named("other.pem"), async |d: &Daemon| {
        metric(d, "claviger_trace_collector_up 0").await;
    });
    assert_eq!(told(&log.await), 1);
    assert!(collector.spans().is_empty());
    let log = goes_on(named("ca.pem"), async |_: &Daemon| {
        collector.root(SIGN).await;
    });
    assert_eq!(told(&log.await), 0);
    fs::remove_dir_all(&dir).expect("the directory");
}

// R-OPS-3, R-ENV-1
#[tokio::test]
async fn settings_that_are_wrong_are_named() {
    for (section, named) in [
        ("otlp_endpoint = \"collector\"", "telemetry.otlp_endpoint"),
        (
            "otlp_endpoint = \"https://c.test:4317\"\notlp_ca_file = \"/nowhere/ca.pem\"",
            "telemetry.otlp_ca_file /nowhere/ca.pem",
        ),
        (
            "otlp_endpoint = \"https://c.test:4317\"\notlp_headers_file = \"/nowhere/headers\"",
            "telemetry.otlp_headers_file /nowhere/headers",
        ),
        (
            "otlp_ca_file = \"/nowhere/ca.pem\"",
            "telemetry.otlp_endpoint is missing",
        ),
        ("trace_sample_ratio = 2.0", "telemetry.trace_sample_ratio"),
    ] {
        let section = format!("[telemetry]\n{section}\n");
        let mut d = Setup::new(Engine::Sqlite).append(section).provision().await;
        let why = d.up().await.expect_err("it does not start");
        assert!(why.contains(named), "{named}: {why}");
        d.stop().await;
    }
}

// R-OPS-3, R-ENV-3, R-CRED-1
#[tokio::test]
async fn credentials_and_plaintexts_are_in_no_span() {
    let collector = Collector::start(Manner::Takes).await;
    let mut d = daemon(Setup::new(Engine::Sqlite).append(collector.section(1.0))).await;
    let mut canaries = Canaries::default();
    let mut plant = |name: &str, secret: &str| canaries.plant(name, secret.as_bytes());

    let first = "secret canary 81c7a4e0d2 of a broker";
    let alice = vault::person(&d, "acme", "alice", &["can.use_users"]).await;
    plant("a credential", first);
    plant("an API key", alice.key.split('_').nth(2).expect("a secret"));
    let stored = alice.stores(&d, &vault::binance(first)).await;
    let revealed = alice.reveals(&d, &stored).await;
    assert_eq!(revealed.status, 200);
    assert!(revealed.body.contains(first));
    // Where a secret does not belong.
    let stray = "stray canary 3be9d01f77 in a hurry";
    plant("a stray secret", stray);
    let escaped = stray.replace(' ', "%20");
    for path in [
        format!("/users/{escaped}/broker-credentials"),
        format!("/users/me/broker-credentials/{escaped}"),
        format!("/users/me/broker-credentials?provider={escaped}"),
        format!("/{escaped}"),
    ] {
        let bearer = format!("Bearer {}", alice.key);
        let headers = [
            ("authorization", bearer.as_str()),
            ("tracestate", &*format!("a={escaped}")),
            ("x-request-id", &escaped),
        ];
        let reply = vault::send(&d, Method::GET, &path, &headers, "").await;
        assert!(reply.status >= 400, "{path}");
    }
    let plaintext = "plaintext canary 0a4f2d9e61 of a customer";
    plant("a plaintext", plaintext);
    let (purpose, algorithm) = (KeyPurpose::Encryption, Algorithm::A256gcm);
    d.key("acme", "sealed", purpose, algorithm).await;
    let encrypt = |key: &str| EncryptRequest {
        tenant: "acme".into(),
        key: key.into(),
        plaintext: plaintext.into(),
        ..EncryptRequest::default()
    };
    let mut crypto = d.actor("service").crypto();
    crypto.encrypt(encrypt("sealed")).await.expect("Encrypt");
    for wrong in ["signing", "nobody", stray] {
        crypto.encrypt(encrypt(wrong)).await.expect_err("refused");
    }
    let mut tenant = encrypt("sealed");
    tenant.tenant = stray.into();
    crypto.encrypt(tenant).await.expect_err("refused");

    assert!(d.terminate().await.success());
    let spans = collector.spans();
    for name in [
        "POST /users/{user}/broker-credentials",
        "POST /users/{user}/broker-credentials/{id}/reveal",
        "claviger.v1.CryptoService/Encrypt",
        "claviger.v1.ApiKeyService/CreateApiKey",
    ] {
        assert!(spans.iter().any(|span| span.name == name), "no {name}");
    }
    assert!(spans.iter().all(|span| span.events.is_empty()));
    assert_eq!(canaries.find(&collector.bytes()), None);
    d.stop().await;
}
