//! Who is let in, by what they show: tokens of other issuers, certificates or none, and what must not count. R-ACL-1,
//! R-OAUTH-2.

use claviger::grpc::proto::*;
use serde_json::{Value, json};
use tonic::{Code, Request, Response, Status};

use crate::{
    daemon::{Actor, Daemon, Engine, Setup, reason},
    jwt_attacks::forge::{B64, Signer, hmac, input, now},
};
use base64::Engine as _;

const CLUSTER: &str = "https://kubernetes.default.svc.cluster.local";
const POD: &str = "system:serviceaccount:shop:orders";

/// A daemon that takes the tokens of a cluster, and who signs them.
struct Cluster {
    daemon: Daemon,
    signer: Signer,
}

fn jwks(signers: &[&Signer]) -> String {
    let algorithm = |signer: &Signer| signer.alg.parse().expect("an algorithm");
    let keys = signers.iter().map(|signer| {
        let kid = signer.kid.parse().expect("a kid");
        signer.public.jwk(&kid, algorithm(signer))
    });
    json!({ "keys": keys.collect::<Vec<_>>() }).to_string()
}

fn issuer(source: &str) -> String {
    format!(
        "[[authn.issuers]]\nname = \"cluster\"\nissuer = \"{CLUSTER}\"\naudience = \"claviger\"\n{source}\n"
    )
}

impl Cluster {
    async fn new() -> Self {
        let signer = Signer::new(Algorithm::Rs256);
        let daemon = Setup::new(Engine::Sqlite)
            .replace("[grpc]\n", "[grpc]\nclient_certificate = \"optional\"\n")
            .provision()
            .await;
        std::fs::write(daemon.path("jwks.json"), jwks(&[&signer])).expect("a JWK Set");
        let file = format!("jwks_file = {:?}", daemon.path("jwks.json"));
        let mut cluster = Self { daemon, signer };
        cluster.configure(&issuer(&file)).await;
        cluster
            .daemon
            .key("acme", "data", KeyPurpose::Encryption, Algorithm::A256gcm)
            .await;
        cluster.bind(POD).await;
        cluster
    }

    async fn configure(&mut self, sections: &str) {
        let path = self.daemon.config_path();
        let text = std::fs::read_to_string(&path).expect("claviger.toml");
        std::fs::write(&path, format!("{text}\n{sections}")).expect("claviger.toml");
        self.daemon.up().await.expect("up");
    }

    /// Makes a subject of the cluster a principal that may encrypt.
    async fn bind(&self, subject: &str) {
        let mut admin = self.daemon.actor("admin").principals();
        let request = CreatePrincipalRequest {
            tenant: "acme".into(),
            name: "orders".into(),
            r#type: PrincipalType::Service.into(),
            identities: vec![format!("oidc:cluster/{subject}")],
            ..Default::default()
        };
        let made = admin
            .create_principal(request)
            .await
            .expect("CreatePrincipal");
        let grant = GrantRoleRequest {
            principal_id: made.into_inner().principal.expect("a principal").id,
            role: "crypto-user".into(),
            tenant: String::new(),
        };
        admin.grant_role(grant).await.expect("GrantRole");
    }

    fn nobody(&self) -> Actor {
        self.daemon.actor_with(None)
    }

    fn token(&self, claims: &Value) -> String {
        let header = json!({ "alg": self.signer.alg, "kid": self.signer.kid });
        self.signer.compose(header.to_string(), claims.to_string())
    }

    /// Reasons of the rows about those who were not let in, oldest first.
    async fn refusals(&self) -> Vec<String> {
        let sql = "SELECT data FROM audit_events WHERE actor_type = 'unknown' ORDER BY seq";
        let rows = self.daemon.rows(sql).await;
        let reason = |row: &Vec<String>| {
            let data: Value = serde_json::from_str(&row[0]).expect("JSON");
            data["reason"].as_str().expect("a reason").to_owned()
        };
        rows.iter().map(reason).collect()
    }
}

fn claims() -> Value {
    json!({ "iss": CLUSTER, "sub": POD, "aud": ["claviger"], "iat": now(), "nbf": now(), "exp": now() + 600 })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn encrypt() -> EncryptRequest {
    EncryptRequest {
        tenant: "acme".into(),
        key: "data".into(),
        plaintext: "order".into(),
        ..Default::default()
    }
}

/// A request that shows something.
fn showing<M>(message: M, headers: &[(&'static str, &str)]) -> Request<M> {
    let mut request = Request::new(message);
    for (name, value) in headers {
        let value = value.parse().expect("a header value");
        request.metadata_mut().append(*name, value);
    }
    request
}

async fn encrypted(
    actor: &Actor,
    headers: &[(&'static str, &str)],
) -> Result<Response<EncryptResponse>, Status> {
    actor.crypto().encrypt(showing(encrypt(), headers)).await
}

#[tokio::test]
async fn a_pod_encrypts_with_its_service_account_token_and_without_a_certificate() {
    let cluster = Cluster::new().await;
    let bearer = format!("Bearer {}", cluster.token(&claims()));
    let answer = encrypted(&cluster.nobody(), &[("authorization", &bearer)]).await;
    assert!(!answer.expect("Encrypt").into_inner().ciphertext.is_empty());
    // It is the principal that the row names.
    let orders = cluster.daemon.id_of("orders").await;
    let rows = cluster
        .daemon
        .rows("SELECT actor FROM audit_events WHERE action = 'Encrypt' AND outcome = 'success'")
        .await;
    assert_eq!(rows, [[orders]]);
    cluster.daemon.stop().await;
}

#[tokio::test]
async fn what_does_not_count_is_refused_alike_and_the_log_says_why() {
    let cluster = Cluster::new().await;
    let other = Signer::new(Algorithm::Rs256);
    let claims_text = claims().to_string();
    let header = |value: Value| value.to_string();
    let kid = &cluster.signer.kid;
    let own = |h: Value| cluster.signer.compose(header(h), &claims_text);
    let unsigned = format!(
        "{}.",
        input(header(json!({"alg": "none", "kid": kid})), &claims_text)
    );
    let symmetric = {
        let input = input(header(json!({"alg": "HS256", "kid": kid})), &claims_text);
        let mac = hmac("HS256", cluster.signer.public.spki_pem().as_bytes(), &input);
        format!("{input}.{}", B64.encode(mac))
    };
    let cases = [
        ("EXPIRED", cluster.token(&with("exp", json!(now() - 31)))),
        (
            "NOT_YET_VALID",
            cluster.token(&with("nbf", json!(now() + 90))),
        ),
        (
            "NOT_YET_VALID",
            cluster.token(&with("iat", json!(now() + 90))),
        ),
        (
            "LIVES_TOO_LONG",
            cluster.token(&with("exp", json!(now() + 100_000))),
        ),
        (
            "WRONG_AUDIENCE",
            cluster.token(&with("aud", json!("vault"))),
        ),
        ("BAD_CLAIM", cluster.token(&with("aud", Value::Null))),
        ("BAD_CLAIM", cluster.token(&with("sub", json!("two words")))),
        (
            "UNKNOWN_SUBJECT",
            cluster.token(&with("sub", json!("system:serviceaccount:shop:cart"))),
        ),
        (
            "UNKNOWN_ISSUER",
            cluster.token(&with("iss", json!("https://elsewhere.test"))),
        ),
        ("BAD_SIGNATURE", {
            let h = json!({"alg": "RS256", "kid": kid});
            other.compose(header(h), &claims_text)
        }),
        (
            "UNKNOWN_KEY",
            other.compose(
                header(json!({"alg": "RS256", "kid": other.kid})),
                &claims_text,
            ),
        ),
        (
            "BAD_HEADER",
            own(json!({"alg": "RS256", "kid": kid, "jku": "https://elsewhere.test"})),
        ),
        (
            "BAD_HEADER",
            own(json!({"alg": "RS256", "kid": kid, "crit": ["b64"], "b64": false})),
        ),
        ("BAD_HEADER", own(json!({"alg": "RS256"}))),
        ("BAD_HEADER", own(json!({"alg": "PS256", "kid": kid}))),
        ("BAD_HEADER", unsigned),
        ("BAD_HEADER", symmetric),
        ("MALFORMED", "not-a-token".to_owned()),
        ("MALFORMED", "a.b.c".to_owned()),
    ];
    let nobody = cluster.nobody();
    let mut said = Vec::new();
    for (why, token) in &cases {
        let bearer = format!("Bearer {token}");
        let answer = encrypted(&nobody, &[("authorization", &bearer)]).await;
        let status = answer.expect_err(why);
        said.push((status.code(), reason(&status), status.message().to_owned()));
    }
    let first = &said[0];
    assert_eq!(
        (first.0, first.1.as_str()),
        (Code::Unauthenticated, "CREDENTIAL_INVALID")
    );
    assert!(said.iter().all(|one| one == first), "{said:?}");
    let expected: Vec<_> = cases.iter().map(|(why, _)| *why).collect();
    assert_eq!(cluster.refusals().await, expected);
    cluster.daemon.stop().await;
}

#[tokio::test]
async fn two_credentials_are_none_and_a_bad_one_is_not_made_good_by_a_certificate() {
    let cluster = Cluster::new().await;
    let bearer = format!("Bearer {}", cluster.token(&claims()));
    let nobody = cluster.nobody();
    let two = [
        ("authorization", bearer.as_str()),
        ("authorization", &bearer),
    ];
    let both = [("authorization", bearer.as_str()), ("x-api-key", "cvk_1")];
    let basic = [("authorization", "Basic YTpi")];
    for headers in [&two[..], &both, &basic] {
        let status = encrypted(&nobody, headers).await.expect_err("refused");
        assert_eq!(reason(&status), "CREDENTIAL_INVALID");
    }
    // The certificate alone would do.
    let service = cluster.daemon.actor("service");
    encrypted(&service, &[]).await.expect("Encrypt");
    let status = encrypted(&service, &[("authorization", "Bearer x")]).await;
    assert_eq!(reason(&status.expect_err("refused")), "CREDENTIAL_INVALID");
    cluster.daemon.stop().await;
}

// R-ACL-1: administration takes certificates only, unless the configuration says otherwise.
#[tokio::test]
async fn administration_takes_no_token() {
    let cluster = Cluster::new().await;
    let bearer = format!("Bearer {}", cluster.token(&claims()));
    let request = showing(
        CreateTenantRequest {
            name: "globex2".into(),
        },
        &[("authorization", &bearer)],
    );
    let status = cluster.nobody().principals().create_tenant(request).await;
    let status = status.expect_err("refused");
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(reason(&status), "CREDENTIAL_NOT_ACCEPTED");
    cluster.daemon.stop().await;
}

#[tokio::test]
async fn without_anything_nobody_is_let_in() {
    let cluster = Cluster::new().await;
    let status = encrypted(&cluster.nobody(), &[])
        .await
        .expect_err("refused");
    assert_eq!(reason(&status), "UNKNOWN_PRINCIPAL");
    cluster.daemon.stop().await;
}

#[tokio::test]
async fn by_default_a_connection_needs_a_certificate() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let status = encrypted(&daemon.actor_with(None), &[]).await;
    let code = status.expect_err("no connection").code();
    // As tonic calls a connection that ends in its handshake.
    assert!(
        matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled),
        "{code:?}"
    );
    // Nobody got as far as to be recorded.
    let sql = "SELECT seq FROM audit_events WHERE actor_type = 'unknown'";
    assert!(daemon.rows(sql).await.is_empty());
    daemon.stop().await;
}

// An attacker who fails in somebody's name, or beside them, does not lock them out.
#[tokio::test]
async fn failures_are_throttled_and_successes_are_not() {
    let cluster = Cluster::new().await;
    let nobody = cluster.nobody();
    let forged = format!("Bearer {}", cluster.token(&with("aud", json!("vault"))));
    let mut throttled = 0;
    for _ in 0..60 {
        let status = encrypted(&nobody, &[("authorization", &forged)]).await;
        let status = status.expect_err("refused");
        match reason(&status).as_str() {
            "CREDENTIAL_INVALID" => assert_eq!(throttled, 0, "it does not end by itself at once"),
            "TOO_MANY_FAILURES" => {
                assert_eq!(status.code(), Code::ResourceExhausted);
                throttled += 1;
            }
            other => panic!("{other}"),
        }
        // The same address, at the same time.
        let good = format!("Bearer {}", cluster.token(&claims()));
        encrypted(&nobody, &[("authorization", &good)])
            .await
            .expect("Encrypt");
    }
    // 30 a minute, and a little more for the time that the test takes.
    assert!(throttled > 0);
    assert_eq!(cluster.refusals().await.len(), 60 - throttled);
    cluster.daemon.stop().await;
}

#[tokio::test]
async fn keys_that_an_issuer_adds_are_found_and_those_it_takes_away_end() {
    let cluster = Cluster::new().await;
    let next = Signer::new(Algorithm::Es256);
    std::fs::write(cluster.daemon.path("jwks.json"), jwks(&[&next])).expect("a JWK Set");
    let header = json!({ "alg": next.alg, "kid": next.kid });
    let bearer = format!(
        "Bearer {}",
        next.compose(header.to_string(), claims().to_string())
    );
    let nobody = cluster.nobody();
    // The unknown kid makes the daemon look again.
    encrypted(&nobody, &[("authorization", &bearer)])
        .await
        .expect("Encrypt");
    let old = format!("Bearer {}", cluster.token(&claims()));
    let status = encrypted(&nobody, &[("authorization", &old)])
        .await
        .expect_err("refused");
    assert_eq!(reason(&status), "CREDENTIAL_INVALID");
    cluster.daemon.stop().await;
}

/// One daemon believes the tokens of another, whose JWK Set it gets over HTTPS.
#[tokio::test]
async fn the_keys_of_an_issuer_come_from_its_url() {
    let other = Setup::new(Engine::Sqlite).for_two().start().await;
    other
        .key("acme", "tokens", KeyPurpose::TokenSigning, Algorithm::Es256)
        .await;
    let request = IssueTokenRequest {
        tenant: "acme".into(),
        key: "tokens".into(),
        subject: POD.into(),
        audience: vec!["claviger-two".into()],
        ..Default::default()
    };
    let issued = other.actor("service").tokens().issue_token(request).await;
    let token = issued.expect("IssueToken").into_inner().token;
    let public = other.addresses().public.rsplit_once(':').expect("a port").1;
    let url = format!("https://localhost:{public}/.well-known/jwks.json");
    let ca = other.path("certs/ca.crt");
    let source = format!("jwks_url = {url:?}\nca_file = {ca:?}");
    let section = issuer(&source)
        .replace(CLUSTER, "https://issuer.test")
        .replace("\"claviger\"", "\"claviger-two\"");
    let daemon = Setup::new(Engine::Sqlite)
        .replace("https://issuer.test", "https://two.test")
        .replace("[grpc]\n", "[grpc]\nclient_certificate = \"optional\"\n")
        .append(section)
        .start_beside(&other)
        .await;
    let cluster = Cluster {
        daemon,
        signer: Signer::new(Algorithm::Es256),
    };
    cluster
        .daemon
        .key("acme", "data", KeyPurpose::Encryption, Algorithm::A256gcm)
        .await;
    cluster.bind(POD).await;
    let bearer = format!("Bearer {token}");
    let answer = encrypted(&cluster.nobody(), &[("authorization", &bearer)]).await;
    answer.expect("Encrypt");
    cluster.daemon.stop().await;
    other.stop().await;
}

// R-JWT-2: whoever may issue tokens for others makes none that is somebody else here.
#[tokio::test]
async fn issue_token_makes_no_token_for_the_daemon_itself() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    daemon
        .key("acme", "tokens", KeyPurpose::TokenSigning, Algorithm::Es256)
        .await;
    let request = IssueTokenRequest {
        tenant: "acme".into(),
        key: "tokens".into(),
        subject: daemon.id_of("admin").await,
        audience: vec!["api".into(), "claviger".into()],
        ..Default::default()
    };
    let status = daemon.actor("service").tokens().issue_token(request).await;
    assert_eq!(reason(&status.expect_err("refused")), "INVALID_FIELD");
    daemon.stop().await;
}
