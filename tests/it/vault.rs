//! The vault, from outside: over REST as platform users see it, over gRPC, and from behind the daemon's back. R-CRED-1,
//! R-CRED-2, R-CRED-4, R-CRED-6, R-CRED-8.

mod approval;
mod bad_input;
mod broker;
mod calls;
mod care;
mod commands;
mod drivers;
mod key;
mod killed;
mod llm_day;
mod people;
mod probes;
mod rotation;
mod rows;

use claviger::grpc::proto::*;
use http::{Method, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::{
    daemon::Daemon,
    oauth::realm::{Reply, connect},
};

/// A user of a tenant, with an API key that brings all entitlements along.
pub struct Person {
    id: String,
    pub key: String,
}

pub async fn person(daemon: &Daemon, tenant: &str, name: &str, scopes: &[&str]) -> Person {
    let scopes: Vec<String> = scopes.iter().map(ToString::to_string).collect();
    let request = CreatePrincipalRequest {
        tenant: tenant.into(),
        name: name.into(),
        r#type: PrincipalType::User.into(),
        scopes: scopes.clone(),
        ..Default::default()
    };
    let admin = daemon.actor("admin");
    let made = admin.principals().create_principal(request).await;
    let made = made.expect("CreatePrincipal").into_inner().principal;
    let id = made.expect("a principal").id;
    let key = api_key(daemon, &id, &scopes).await;
    Person { id, key }
}

async fn api_key(daemon: &Daemon, owner: &str, scopes: &[String]) -> String {
    let request = CreateApiKeyRequest {
        owner_id: owner.into(),
        name: "a key".into(),
        scopes: scopes.to_vec(),
        expire_time: Some(prost_types::Timestamp {
            seconds: claviger::clock::Clock::System.now().seconds() + 3600,
            nanos: 0,
        }),
        ..Default::default()
    };
    let admin = daemon.actor("admin");
    let made = admin.api_keys().create_api_key(request).await;
    made.expect("CreateApiKey").into_inner().secret
}

/// A request to the public listener with these headers.
pub async fn send(
    daemon: &Daemon,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let config = daemon.ca.client_config(None);
    let tls = connect(&daemon.addresses().public, config).await;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await.expect("HTTP");
    tokio::spawn(connection);
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = Full::new(bytes::Bytes::from(body.to_owned()));
    let request = request.body(body).expect("a request");
    let answer = sender.send_request(request).await.expect("a reply");
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    Reply {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: String::from_utf8(body.to_vec()).expect("UTF-8"),
    }
}

impl Person {
    async fn ask(&self, daemon: &Daemon, method: Method, path: &str, body: &Value) -> Reply {
        let bearer = format!("Bearer {}", self.key);
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
        ];
        let (headers, body) = match body {
            Value::Null => (&headers[..1], String::new()),
            body => (&headers[..], body.to_string()),
        };
        send(daemon, method, path, headers, &body).await
    }

    async fn get(&self, daemon: &Daemon, path: &str) -> Reply {
        self.ask(daemon, Method::GET, path, &Value::Null).await
    }

    async fn post(&self, daemon: &Daemon, path: &str, body: &Value) -> Reply {
        self.ask(daemon, Method::POST, path, body).await
    }

    async fn delete(&self, daemon: &Daemon, path: &str) -> Reply {
        self.ask(daemon, Method::DELETE, path, &Value::Null).await
    }

    /// Stores a credential, and returns its id.
    pub async fn stores(&self, daemon: &Daemon, body: &Value) -> String {
        let reply = self.post(daemon, MINE, body).await;
        assert_eq!(reply.status, 201, "{reply:?}");
        let id = reply.json()["credential"]["id"].as_str().map(str::to_owned);
        id.expect("an id")
    }

    pub async fn reveals(&self, daemon: &Daemon, id: &str) -> Reply {
        let why = json!({ "reason": "a test" });
        self.post(daemon, &format!("{MINE}/{id}/reveal"), &why)
            .await
    }
}

const MINE: &str = "/users/me/broker-credentials";

/// A credential of a broker that nobody asks, with a secret of its own.
pub fn binance(secret: &str) -> Value {
    let key = format!(
        "{:0<64}",
        secret.replace(|c: char| !c.is_ascii_alphanumeric(), "x")
    );
    json!({
        "provider": "binance",
        "environment": "testing",
        "fields": { "api_key": key, "api_secret": secret },
    })
}

/// Is this the problem document that says so?
#[track_caller]
fn problem(reply: &Reply, status: u16, reason: &str) {
    let json = reply.json();
    assert_eq!(
        (reply.status, json["reason"].as_str()),
        (status, Some(reason)),
        "{reply:?}"
    );
    assert_eq!(reply.header("content-type"), "application/problem+json");
    assert_eq!(reply.header("cache-control"), "no-store");
}
