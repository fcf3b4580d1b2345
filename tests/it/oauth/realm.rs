//! A daemon with a token key, a partner with entitlements, and clients that act as the partner.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use claviger::grpc::proto::*;
use http::{HeaderMap, Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    daemon::{Daemon, Engine, PATIENCE, Setup},
    jwt_attacks::forge::{Signer, now},
    pki::Leaf,
};

pub const TOKEN: &str = "/oauth/token";
pub const INTROSPECT: &str = "/oauth/introspect";
pub const REVOKE: &str = "/oauth/revoke";
pub const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

pub struct Realm {
    pub daemon: Daemon,
    /// Id of a service in acme that holds orders.read, orders.write and can.use_users.
    pub partner: String,
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_default().to_owned()
    }

    pub fn header(&self, name: impl header::AsHeaderName) -> &str {
        let value = self.headers.get(name);
        value.and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// A token that was issued.
    pub fn token(&self) -> String {
        assert_eq!(self.status, 200, "{self:?}");
        let token = self.json()["access_token"].as_str().map(str::to_owned);
        token.unwrap_or_else(|| panic!("no token: {self:?}"))
    }
}

impl Realm {
    pub async fn new() -> Self {
        Self::with(Setup::new(Engine::Sqlite)).await
    }

    pub async fn with(setup: Setup) -> Self {
        let setup = setup
            .replace(
                "[public]\n",
                "[public]\nclient_certificate = \"optional\"\n",
            )
            .append("[oauth]\naudiences = [\"api\", \"https://orders.test\"]\n")
            .append("[authn]\nfailures_per_minute = 10000\n");
        let daemon = setup.start().await;
        let (purpose, algorithm) = (KeyPurpose::TokenSigning, Algorithm::Es256);
        daemon.key("acme", "tokens", purpose, algorithm).await;
        let partner = partner(&daemon, "acme", "partner").await;
        Self { daemon, partner }
    }

    /// A client of the partner that may have everything the partner holds.
    pub fn request(&self, name: &str, method: ClientAuthMethod) -> CreateClientRequest {
        CreateClientRequest {
            owner_id: self.partner.clone(),
            name: name.into(),
            auth_method: method.into(),
            scopes: vec!["orders.read".into(), "orders.write".into()],
            audiences: vec!["api".into(), "https://orders.test".into()],
            ..Default::default()
        }
    }

    pub async fn client(&self, request: CreateClientRequest) -> Client {
        let made = self
            .daemon
            .actor("admin")
            .clients()
            .create_client(request)
            .await;
        made.expect("CreateClient")
            .into_inner()
            .client
            .expect("a client")
    }

    /// A client that signs assertions with `signer`.
    pub async fn signing(&self, name: &str, signer: &Signer) -> Client {
        let mut request = self.request(name, ClientAuthMethod::PrivateKeyJwt);
        request.jwks = jwks(signer);
        self.client(request).await
    }

    /// A client with a secret, and the secret.
    pub async fn secret(&self, name: &str) -> (Client, String) {
        let client = self
            .client(self.request(name, ClientAuthMethod::ClientSecret))
            .await;
        let secret = self
            .api_key(&client.id, &["orders.read", "orders.write"])
            .await;
        (client, secret.1)
    }

    /// An API key of the partner, of a client if that is not empty: its id and its text.
    pub async fn api_key(&self, client: &str, scopes: &[&str]) -> (String, String) {
        let request = CreateApiKeyRequest {
            owner_id: self.partner.clone(),
            name: "a key".into(),
            scopes: scopes.iter().map(ToString::to_string).collect(),
            expire_time: Some(prost_types::Timestamp {
                seconds: now() + 3600,
                nanos: 0,
            }),
            client_id: client.into(),
        };
        let made = self
            .daemon
            .actor("admin")
            .api_keys()
            .create_api_key(request)
            .await;
        let made = made.expect("CreateApiKey").into_inner();
        (made.api_key.expect("a key").id, made.secret)
    }

    pub async fn suspend(&self, client: &str, state: ClientState) {
        let request = UpdateClientRequest {
            client_id: client.into(),
            state: state.into(),
            ..Default::default()
        };
        let done = self
            .daemon
            .actor("admin")
            .clients()
            .update_client(request)
            .await;
        done.expect("UpdateClient");
    }

    /// A POST of a form.
    pub async fn post(&self, path: &str, form: &[(&str, &str)]) -> Reply {
        self.send(None, path, &[], &body(form)).await
    }

    /// The same, with HTTP Basic authentication.
    pub async fn basic(&self, path: &str, who: (&str, &str), form: &[(&str, &str)]) -> Reply {
        let value = format!(
            "Basic {}",
            BASE64_STANDARD.encode(format!("{}:{}", who.0, who.1))
        );
        self.send(None, path, &[("authorization", &value)], &body(form))
            .await
    }

    /// The same, with a client certificate.
    pub async fn certified(&self, leaf: &Leaf, path: &str, form: &[(&str, &str)]) -> Reply {
        self.send(Some(leaf), path, &[], &body(form)).await
    }

    /// A POST of any body, as a form if the headers do not say otherwise.
    pub async fn send(
        &self,
        leaf: Option<&Leaf>,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::HOST, "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let body = Full::new(Bytes::from(body.to_owned()));
        self.exchange(leaf, request.body(body).expect("a request"))
            .await
    }

    pub async fn exchange(&self, leaf: Option<&Leaf>, request: Request<Full<Bytes>>) -> Reply {
        let tls = self.connect(leaf).await;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await.expect("HTTP");
        tokio::spawn(connection);
        let (parts, body) = sender
            .send_request(request)
            .await
            .expect("a reply")
            .into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8(body.to_vec()).expect("UTF-8"),
        }
    }

    pub async fn connect(&self, leaf: Option<&Leaf>) -> TlsStream<TcpStream> {
        let config = self.daemon.ca.client_config(leaf);
        connect(&self.daemon.addresses().public, config).await
    }

    /// A token by HTTP Basic.
    pub async fn token(&self, who: (&str, &str), form: &[(&str, &str)]) -> Reply {
        let grant = [("grant_type", "client_credentials")];
        self.basic(TOKEN, who, &[&grant, form].concat()).await
    }

    /// A token by assertion.
    pub async fn asserted(&self, assertion: &str) -> Reply {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_assertion_type", ASSERTION_TYPE),
            ("client_assertion", assertion),
        ];
        self.post(TOKEN, &form).await
    }

    /// The claims of a token, as VerifyToken sees them.
    pub async fn verified(&self, token: &str, audience: &str) -> TokenClaims {
        let request = VerifyTokenRequest {
            tenant: "acme".into(),
            token: token.into(),
            audience: audience.into(),
            required_scopes: Vec::new(),
            ..Default::default()
        };
        let answer = self
            .daemon
            .actor("service")
            .tokens()
            .verify_token(request)
            .await;
        let answer = answer.expect("VerifyToken").into_inner();
        assert!(answer.valid, "{answer:?}");
        answer.claims.expect("claims")
    }

    /// Waits until the daemon has seen every change in its feed: what comes by it forgets shared tokens once more.
    pub async fn settled(&self) {
        let behind = "SELECT name FROM replicas WHERE seen_seq < (SELECT MAX(seq) FROM audit_events WHERE stream = 'admin')";
        let until = Instant::now() + PATIENCE;
        while !self.daemon.rows(behind).await.is_empty() {
            assert!(Instant::now() < until, "the feed is not followed");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// How many rows of the audit log have this action, outcome and text in their details.
    pub async fn rows(&self, action: &str, outcome: &str, text: &str) -> usize {
        let query = format!(
            "SELECT seq FROM audit_events WHERE action = '{action}' AND outcome = '{outcome}' AND data LIKE '%{text}%'"
        );
        self.daemon.rows(&query).await.len()
    }
}

pub async fn connect(address: &str, mut config: ClientConfig) -> TlsStream<TcpStream> {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = TcpStream::connect(address).await.expect("a connection");
    let name = ServerName::try_from("localhost").expect("a name");
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, tcp).await.expect("TLS")
}

/// A service with entitlements and no roles.
pub async fn partner(daemon: &Daemon, tenant: &str, name: &str) -> String {
    let request = CreatePrincipalRequest {
        tenant: tenant.into(),
        name: name.into(),
        r#type: PrincipalType::Service.into(),
        scopes: ["orders.read", "orders.write", "can.use_users"]
            .map(str::to_owned)
            .into(),
        ..Default::default()
    };
    let made = daemon
        .actor("admin")
        .principals()
        .create_principal(request)
        .await;
    let made = made.expect("CreatePrincipal").into_inner();
    made.principal.expect("a principal").id
}

pub fn body(form: &[(&str, &str)]) -> String {
    let mut body = url::form_urlencoded::Serializer::new(String::new());
    body.extend_pairs(form);
    body.finish()
}

pub fn jwks(signer: &Signer) -> String {
    json!({ "keys": [jwk(signer)] }).to_string()
}

pub fn jwk(signer: &Signer) -> Value {
    let mut jwk: Value = serde_json::from_str(&signer.public.canonical_jwk()).expect("a JWK");
    jwk["kid"] = signer.kid.as_str().into();
    jwk
}

/// The claims of a good assertion.
pub fn claims(client: &str) -> Value {
    json!({
        "iss": client, "sub": client, "aud": "https://issuer.test/oauth/token",
        "exp": now() + 60, "iat": now(), "jti": uuid::Uuid::now_v7().to_string(),
    })
}

/// A good assertion.
pub fn assertion(signer: &Signer, client: &str) -> String {
    sign(signer, &claims(client))
}

/// An assertion of these claims.
pub fn sign(signer: &Signer, claims: &Value) -> String {
    let header = json!({ "alg": signer.alg, "kid": signer.kid, "typ": "JWT" });
    signer.compose(header.to_string(), claims.to_string())
}
