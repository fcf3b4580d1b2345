//! The OAuth endpoints of the public listener, beside an empty request to it and the raw token.
//!
//! Works in a directory of `claviger dev`, whose admin registers what is needed: two clients of the user `partner`, one of
//! which shares tokens, with a secret each that is revoked at the end. HTTP/2, as many connections and requests in flight
//! as for the gRPC calls of the same run.

use std::{path::Path, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::load::{Load, Measured};
use crate::{
    cli::{
        client::{self, Connection, Target},
        dev::certs,
        exit::{Failure, Result},
        options::Addresses,
        tls,
    },
    clock::Clock,
    grpc::proto::{
        Algorithm, ClientAuthMethod, CreateApiKeyRequest, CreateClientRequest, CreateKeyRequest,
        KeyPurpose, ListPrincipalsRequest, RevokeApiKeyRequest, UpdatePrincipalRequest,
    },
};

/// Tenant, user, entitlement and token key of `claviger dev`.
const TENANT: &str = "acme";
const PARTNER: &str = "partner";
const SCOPE: &str = "orders.read";
const KEY: &str = "tokens";
/// How long a secret of the run lasts if it is not revoked.
const SECRET_LIFE: i64 = 3600;

/// What was seen.
pub struct Rates {
    /// GET of the discovery document: nobody is authenticated, nothing is read or recorded.
    pub empty: Measured,
    /// A new token per request.
    pub tokens: Measured,
    /// The same, for a client that shares tokens.
    pub shared: Measured,
    /// Introspection of one token.
    pub introspection: Measured,
}

/// Measures with so many connections, requests in flight on each, and for so long, all of `load`.
///
/// Errors: `dir` is none of a running `claviger dev`; a request that is refused.
pub async fn measure(dir: &Path, load: &Load<Connection>) -> Result<Rates> {
    let addresses = Addresses::read(dir)?;
    let [admin, issuer] = [
        connect(dir, &addresses, "admin").await?,
        connect(dir, &addresses, "issuer").await?,
    ];
    make_key(&issuer).await?;
    let partner = find_partner(&admin).await?;
    let fresh = Login::make(&admin, &partner, false).await?;
    let sharing = Login::make(&admin, &partner, true).await?;
    let rates = rates(dir, &addresses, load, &fresh, &sharing).await;
    for login in [&fresh, &sharing] {
        login.revoke(&admin).await?;
    }
    rates
}

async fn rates(
    dir: &Path,
    addresses: &Addresses,
    load: &Load<Connection>,
    fresh: &Login,
    sharing: &Login,
) -> Result<Rates> {
    let mut connections = Vec::with_capacity(load.connections.len());
    for _ in &load.connections {
        connections.push(Http::open(&dir.join("certs/ca.crt"), &addresses.public).await?);
    }
    let load = Load {
        connections,
        in_flight: load.in_flight,
        duration: load.duration,
    };
    let token = load.connections[0].token(fresh).await?;
    let introspected = Call::post("/oauth/introspect", fresh, &[("token", &token)]);
    let run = async |call: Call| {
        let call = Arc::new(call);
        load.run(move |http: Http| {
            let call = Arc::clone(&call);
            async move { http.send(&call).await.map(drop) }
        })
        .await
    };
    Ok(Rates {
        empty: run(Call::discovery()).await?,
        tokens: run(Call::token(fresh)).await?,
        shared: run(Call::token(sharing)).await?,
        introspection: run(introspected).await?,
    })
}

async fn connect(dir: &Path, addresses: &Addresses, name: &str) -> Result<Connection> {
    client::connect(&Target {
        address: format!("https://{}", addresses.grpc),
        ca: dir.join("certs/ca.crt"),
        identity: Some(certs::pair(dir, name)),
        server_name: None,
        timeout: Duration::from_secs(30),
    })
    .await
}

/// The key that signs the tokens of clients, unless there is one.
async fn make_key(issuer: &Connection) -> Result<()> {
    let request = CreateKeyRequest {
        tenant: TENANT.to_owned(),
        name: KEY.to_owned(),
        purpose: KeyPurpose::TokenSigning.into(),
        algorithm: Algorithm::Es256.into(),
        owner: "bench".to_owned(),
        ..CreateKeyRequest::default()
    };
    match issuer.keys().create_key(request).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == tonic::Code::AlreadyExists => Ok(()),
        Err(status) => Err(status.into()),
    }
}

/// The partner's id. It holds the entitlement afterwards.
async fn find_partner(admin: &Connection) -> Result<String> {
    let request = ListPrincipalsRequest {
        tenant: TENANT.to_owned(),
        page_size: 1000,
        ..ListPrincipalsRequest::default()
    };
    let listed = admin.principals().list_principals(request).await?;
    let mut listed = listed.into_inner().principals.into_iter();
    let partner = listed.find(|principal| principal.name == PARTNER);
    let partner = partner.ok_or_else(|| {
        Failure::usage(
            "tenant acme has no user `partner`: run `claviger dev` of this release there",
        )
    })?;
    if !partner.scopes.iter().any(|scope| scope == SCOPE) {
        let request = UpdatePrincipalRequest {
            principal_id: partner.id.clone(),
            add_scopes: vec![SCOPE.to_owned()],
            ..UpdatePrincipalRequest::default()
        };
        admin.principals().update_principal(request).await?;
    }
    Ok(partner.id)
}

/// A client and its secret.
struct Login {
    key_id: String,
    authorization: HeaderValue,
}

impl Login {
    async fn make(admin: &Connection, partner: &str, shares: bool) -> Result<Self> {
        let request = CreateClientRequest {
            owner_id: partner.to_owned(),
            name: "bench".to_owned(),
            auth_method: ClientAuthMethod::ClientSecret.into(),
            scopes: vec![SCOPE.to_owned()],
            audiences: vec!["bench".to_owned()],
            coalesce: shares,
            ..CreateClientRequest::default()
        };
        let made = admin.clients().create_client(request).await?.into_inner();
        let client_id = made.client.unwrap_or_default().id;
        let request = CreateApiKeyRequest {
            owner_id: partner.to_owned(),
            name: "bench".to_owned(),
            scopes: vec![SCOPE.to_owned()],
            expire_time: Some(prost_types::Timestamp {
                seconds: Clock::System.now().seconds() + SECRET_LIFE,
                nanos: 0,
            }),
            client_id: client_id.clone(),
        };
        let made = admin.api_keys().create_api_key(request).await?.into_inner();
        // Neither has a character that would have to be encoded.
        let login = BASE64_STANDARD.encode(format!("{client_id}:{}", made.secret));
        let authorization = HeaderValue::from_str(&format!("Basic {login}"));
        let mut authorization = authorization.map_err(Failure::other)?;
        authorization.set_sensitive(true);
        Ok(Self {
            key_id: made.api_key.unwrap_or_default().id,
            authorization,
        })
    }

    async fn revoke(&self, admin: &Connection) -> Result<()> {
        let request = RevokeApiKeyRequest {
            api_key_id: self.key_id.clone(),
            reason: "the measurement is over".to_owned(),
        };
        admin.api_keys().revoke_api_key(request).await?;
        Ok(())
    }
}

/// A request that is made over and over.
struct Call {
    method: Method,
    path: &'static str,
    authorization: Option<HeaderValue>,
    body: Bytes,
}

impl Call {
    fn discovery() -> Self {
        Self {
            method: Method::GET,
            path: "/.well-known/oauth-authorization-server",
            authorization: None,
            body: Bytes::new(),
        }
    }

    fn token(login: &Login) -> Self {
        Self::post(
            "/oauth/token",
            login,
            &[("grant_type", "client_credentials")],
        )
    }

    fn post(path: &'static str, login: &Login, form: &[(&str, &str)]) -> Self {
        let mut body = url::form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(form);
        Self {
            method: Method::POST,
            path,
            authorization: Some(login.authorization.clone()),
            body: body.finish().into(),
        }
    }
}

/// A connection to the public listener. Cloning is cheap.
#[derive(Clone)]
struct Http {
    sender: http2::SendRequest<Full<Bytes>>,
    address: Arc<str>,
}

impl Http {
    async fn open(ca: &Path, address: &str) -> Result<Self> {
        let config = tls::config(ca, None, b"h2")?;
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let stream = tls::connect(config, address, host).await?;
        let made = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = made.map_err(Failure::other)?;
        // What it fails with, the requests fail with.
        drop(tokio::spawn(connection));
        Ok(Self {
            sender,
            address: address.into(),
        })
    }

    async fn token(&self, login: &Login) -> Result<String> {
        let answer = self.send(&Call::token(login)).await?;
        let answer: serde_json::Value = serde_json::from_slice(&answer).map_err(Failure::other)?;
        let token = answer["access_token"].as_str();
        token
            .map(str::to_owned)
            .ok_or_else(|| Failure::other("an answer of the token endpoint without a token"))
    }

    async fn send(&self, call: &Call) -> Result<Bytes> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(format!("https://{}{}", self.address, call.path));
        if let Some(authorization) = &call.authorization {
            request = request
                .header(header::AUTHORIZATION, authorization.clone())
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let request = request.body(Full::new(call.body.clone()));
        let request = request.map_err(Failure::other)?;
        let answer = self.sender.clone().send_request(request).await;
        let (parts, body) = answer.map_err(Failure::other)?.into_parts();
        let body = body.collect().await.map_err(Failure::other)?.to_bytes();
        match parts.status {
            StatusCode::OK => Ok(body),
            // An OAuth error holds nothing of the request.
            status => Err(Failure::other(format!(
                "{}: {status} {}",
                call.path,
                String::from_utf8_lossy(&body)
            ))),
        }
    }
}
