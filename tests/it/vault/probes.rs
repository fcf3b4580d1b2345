//! Validation against a provider that stands in for the real one on this machine.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tonic::Code;

use super::*;
use crate::{
    daemon::{Engine, Setup, reason},
    traces::collector::{Collector, Manner, attribute, hex},
};

const SECRET: &str = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEYzY";

/// Takes one secret and refuses every other, or says whatever it is told to. Keeps what it was asked.
struct Provider {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    says: Arc<Mutex<Option<&'static str>>>,
}

impl Provider {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (asked, says) = (Arc::default(), Arc::default());
        let provider = Self {
            port,
            asked: Arc::clone(&asked),
            says: Arc::clone(&says),
        };
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    match socket.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => break,
                    }
                }
                let request = String::from_utf8_lossy(&request).into_owned();
                let is_right = request.contains(&format!("apca-api-secret-key: {SECRET}\r\n"));
                asked.lock().expect("no panic").push(request);
                let told = *says.lock().expect("no panic");
                let status = told.unwrap_or(match is_right {
                    true => "200 OK",
                    false => "401 Unauthorized",
                });
                // What it says besides could quote the key.
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nlocation: /\r\n\r\n{SECRET}",
                    SECRET.len()
                );
                let _ = socket.write_all(answer.as_bytes()).await;
                let _ = socket.shutdown().await;
            }
        });
        provider
    }

    fn config(&self) -> String {
        format!(
            "[egress]\nallow_http = true\nallow_networks = [\"127.0.0.0/8\"]\n[vault.base_urls]\nalpaca = \"http://127.0.0.1:{}\"",
            self.port
        )
    }

    fn says(&self, status: &'static str) {
        *self.says.lock().expect("no panic") = Some(status);
    }
}

fn alpaca(secret: &str) -> Value {
    json!({
        "provider": "alpaca",
        "environment": "testing",
        "fields": { "api_key": "PKZQ7YJX2WVB4MNCRT6H", "api_secret": secret },
    })
}

/// As its owner, who has a certificate: validation is no call of the public listener.
async fn validate(d: &Daemon, id: &str) -> ValidateCredentialResponse {
    let request = ValidateCredentialRequest {
        credential_id: id.into(),
    };
    let manager = d.actor("service");
    let answer = manager.credentials().validate_credential(request).await;
    answer.expect("ValidateCredential").into_inner()
}

async fn manages(d: &Daemon) {
    let request = GrantRoleRequest {
        principal_id: d.id_of("service").await,
        role: "credential-manager".into(),
        tenant: "acme".into(),
    };
    let admin = d.actor("admin");
    let granted = admin.principals().grant_role(request).await;
    granted.expect("GrantRole");
}

// R-CRED-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_provider_says_whether_it_takes_a_value() {
    let provider = Provider::new().await;
    let setup = Setup::new(Engine::Sqlite).append(provider.config());
    let d = setup.start().await;
    manages(&d).await;
    let alice = person(&d, "acme", "alice", &["can.use_users"]).await;
    let id = alice.stores(&d, &alpaca(SECRET)).await;

    let answer = validate(&d, &id).await;
    let probe = answer.probe.expect("a probe");
    assert_eq!(
        (probe.result(), probe.detail.as_str()),
        (ProbeResult::Valid, "HTTP_200")
    );
    let kept = answer.credential.expect("a credential").last_probe;
    assert_eq!(kept.expect("a probe").result(), ProbeResult::Valid);
    let asked = provider.asked.lock().expect("no panic").clone();
    assert!(
        asked[0].starts_with("GET /v2/account HTTP/1.1\r\n"),
        "{asked:?}"
    );
    assert!(asked[0].contains("apca-api-key-id: PKZQ7YJX2WVB4MNCRT6H\r\n"));

    let mut wrong = alpaca("xJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEYzY");
    wrong["replace"] = true.into();
    assert_eq!(alice.post(&d, MINE, &wrong).await.status, 200);
    let shown = alice.get(&d, &format!("{MINE}/{id}")).await.json();
    assert_eq!(
        shown["credential"]["last_probe"],
        Value::Null,
        "it was about another value"
    );
    let probe = validate(&d, &id).await.probe.expect("a probe");
    assert_eq!(
        (probe.result(), probe.detail.as_str()),
        (ProbeResult::Invalid, "HTTP_401")
    );

    for (status, result, detail) in [
        ("503 Busy", ProbeResult::Unexpected, "HTTP_503"),
        ("302 Found", ProbeResult::Unreachable, "REDIRECT"),
    ] {
        provider.says(status);
        let probe = validate(&d, &id).await.probe.expect("a probe");
        assert_eq!((probe.result(), probe.detail.as_str()), (result, detail));
    }
    let shown = alice.get(&d, &format!("{MINE}/{id}")).await.json();
    assert_eq!(shown["credential"]["last_probe"]["detail"], "REDIRECT");

    // Who manages may validate, and still not reveal.
    let reveal = RevealCredentialRequest {
        credential_id: id.clone(),
        reason: "a test".into(),
        ..Default::default()
    };
    let service = d.actor("service");
    let refused = service.credentials().reveal_credential(reveal).await;
    assert_eq!(refused.expect_err("refused").code(), Code::PermissionDenied);
    let everything = crate::canaries::dump(&d).await + &d.log();
    assert!(!everything.contains(SECRET));
    d.stop().await;
}

// R-CRED-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_may_not_be_reached_is_told_by_why() {
    let provider = Provider::new().await;
    let config = provider
        .config()
        .replace("allow_networks = [\"127.0.0.0/8\"]\n", "");
    let d = Setup::new(Engine::Sqlite).append(config).start().await;
    manages(&d).await;
    let alice = person(&d, "acme", "alice", &["can.use_users"]).await;
    let id = alice.stores(&d, &alpaca(SECRET)).await;
    let probe = validate(&d, &id).await.probe.expect("a probe");
    assert_eq!(
        (probe.result(), probe.detail.as_str()),
        (ProbeResult::Unreachable, "REFUSED_ADDRESS")
    );
    assert!(provider.asked.lock().expect("no panic").is_empty());

    let id = alice
        .stores(&d, &binance("a secret that nobody asks about"))
        .await;
    let probe = validate(&d, &id).await.probe.expect("a probe");
    assert_eq!(probe.result(), ProbeResult::NoProbe);

    let request = ValidateCredentialRequest {
        credential_id: uuid::Uuid::now_v7().to_string(),
    };
    let service = d.actor("service");
    let unknown = service.credentials().validate_credential(request).await;
    assert_eq!(
        reason(&unknown.expect_err("unknown")),
        "CREDENTIAL_NOT_FOUND"
    );

    let request = GetCredentialReportRequest {
        tenant: "acme".into(),
        ..Default::default()
    };
    let report = service.credentials().get_credential_report(request).await;
    let report = report.expect("GetCredentialReport").into_inner().providers;
    let of = |name: &str| {
        let row = report.iter().find(|row| row.provider == name);
        row.cloned()
            .unwrap_or_else(|| panic!("{name} is not in {report:?}"))
    };
    let row = of("alpaca");
    assert_eq!(
        (row.configured, row.format_ok, row.probe_unknown),
        (1, 1, 1)
    );
    assert_eq!(of("openai").configured, 0);
    assert!(!format!("{report:?}").contains("a secret that"));
    d.stop().await;
}

// R-OPS-3: what is sent to others is a step of the call, which says nothing of them, and they hear nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_is_a_step_of_a_trace_that_is_not_passed_on() {
    let (provider, collector) = (Provider::new().await, Collector::start(Manner::Takes).await);
    let setup = Setup::new(Engine::Sqlite).append(provider.config());
    let d = setup.append(collector.section(1.0)).start().await;
    manages(&d).await;
    let alice = person(&d, "acme", "alice", &["can.use_users"]).await;
    let id = alice.stores(&d, &alpaca(SECRET)).await;
    validate(&d, &id).await;
    provider.says("302 Found");
    validate(&d, &id).await;

    let name = "claviger.v1.CredentialService/ValidateCredential";
    let trace = hex(&collector.root(name).await.trace_id);
    let spans = collector.trace(&trace).await;
    let sent = spans.iter().find(|span| span.name == "egress");
    let sent = sent.expect("a step");
    for (name, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(attribute(sent, name).as_deref(), Some(value), "{name}");
    }
    let asked = provider.asked.lock().expect("no panic").join("\n");
    assert!(asked.contains("/v2/account"));
    assert!(!asked.contains("traceparent") && !asked.contains(&trace));
    let bytes = collector.bytes();
    let told = String::from_utf8_lossy(&bytes);
    let port = provider.port.to_string();
    for untold in [
        SECRET,
        "/v2/account",
        "127.0.0.1",
        &port,
        "PKZQ7YJX2WVB4MNCRT6H",
    ] {
        assert!(!told.contains(untold), "{untold}");
    }
    d.stop().await;
}
