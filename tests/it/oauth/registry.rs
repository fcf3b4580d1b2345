//! Clients are registered, changed, listed and forgotten; over gRPC and by command.

use claviger::grpc::proto::*;
use serde_json::{Value, json};
use tonic::Code;

use super::realm::{Realm, assertion, jwk, jwks};
use crate::{
    daemon::{Engine, PATIENCE, Setup, reason},
    jwt_attacks::forge::Signer,
};

#[tokio::test]
async fn what_is_no_client_is_not_registered() {
    let realm = Realm::new().await;
    let signer = Signer::new(Algorithm::Es256);
    let base = |method| realm.request("c", method);
    let (secret, assertion, certificate) = (
        ClientAuthMethod::ClientSecret,
        ClientAuthMethod::PrivateKeyJwt,
        ClientAuthMethod::TlsClientAuth,
    );
    let mut private = jwk(&signer);
    private["d"] = json!("AAAA");
    let with_private = json!({ "keys": [private] }).to_string();
    type Change = Box<dyn Fn(&mut CreateClientRequest)>;
    let cases: Vec<(&str, ClientAuthMethod, Change, &str)> = vec![
        (
            "no method",
            ClientAuthMethod::Unspecified,
            Box::new(|_| ()),
            "INVALID_FIELD",
        ),
        ("no keys", assertion, Box::new(|_| ()), "INVALID_FIELD"),
        (
            "a URL",
            assertion,
            Box::new(|r| r.jwks = "https://evil.test/jwks".into()),
            "INVALID_FIELD",
        ),
        (
            "a private key",
            assertion,
            Box::new(move |r| r.jwks = with_private.clone()),
            "INVALID_FIELD",
        ),
        (
            "keys and a secret",
            secret,
            Box::new(move |r| r.jwks = jwks(&signer)),
            "INVALID_FIELD",
        ),
        (
            "no identity",
            certificate,
            Box::new(|_| ()),
            "INVALID_FIELD",
        ),
        (
            "a common name",
            certificate,
            Box::new(|r| r.certificate_identity = "cn:a".into()),
            "INVALID_FIELD",
        ),
        (
            "no name",
            secret,
            Box::new(|r| r.name = String::new()),
            "INVALID_FIELD",
        ),
        (
            "no audience",
            secret,
            Box::new(|r| r.audiences.clear()),
            "INVALID_FIELD",
        ),
        (
            "a blank",
            secret,
            Box::new(|r| r.audiences = vec!["a b".into()]),
            "INVALID_FIELD",
        ),
        (
            "17 audiences",
            secret,
            Box::new(|r| r.audiences = vec!["a".into(); 17]),
            "INVALID_FIELD",
        ),
        (
            "a bad scope",
            secret,
            Box::new(|r| r.scopes = vec!["a b".into()]),
            "INVALID_FIELD",
        ),
        (
            "no time",
            secret,
            Box::new(|r| r.token_ttl = Some(Default::default())),
            "INVALID_FIELD",
        ),
        (
            "a day",
            secret,
            Box::new(|r| {
                r.token_ttl = Some(prost_types::Duration {
                    seconds: 86_400,
                    nanos: 0,
                })
            }),
            "INVALID_FIELD",
        ),
        (
            "more than the owner",
            secret,
            Box::new(|r| r.scopes = vec!["orders.delete".into()]),
            "SCOPE_EXCEEDED",
        ),
        (
            "a role",
            secret,
            Box::new(|r| r.scopes = vec!["claviger:key-issuer".into()]),
            "SCOPE_EXCEEDED",
        ),
        (
            "nobody's",
            secret,
            Box::new(|r| r.owner_id = uuid::Uuid::now_v7().to_string()),
            "PRINCIPAL_NOT_FOUND",
        ),
    ];
    for (what, method, change, expected) in cases {
        let mut request = base(method);
        change(&mut request);
        let made = realm
            .daemon
            .actor("admin")
            .clients()
            .create_client(request)
            .await;
        let status = made.expect_err(what);
        assert_eq!(reason(&status), expected, "{what}: {status}");
    }
    assert_eq!(realm.daemon.rows("SELECT id FROM clients").await.len(), 0);
    realm.daemon.stop().await;
}

#[tokio::test]
async fn a_change_holds_at_once_and_a_key_that_is_taken_out_proves_nothing() {
    let realm = Realm::new().await;
    let (old, new) = (Signer::new(Algorithm::Es256), Signer::new(Algorithm::Es256));
    let client = realm.signing("batch", &old).await;
    assert_eq!(
        realm.asserted(&assertion(&old, &client.id)).await.status,
        200
    );
    let update = async |change: UpdateClientRequest| {
        let request = UpdateClientRequest {
            client_id: client.id.clone(),
            ..change
        };
        realm
            .daemon
            .actor("admin")
            .clients()
            .update_client(request)
            .await
    };
    let both = json!({ "keys": [jwk(&old), jwk(&new)] }).to_string();
    for (set, old_works) in [(both, true), (jwks(&new), false)] {
        let change = UpdateClientRequest {
            jwks: Some(set),
            ..Default::default()
        };
        update(change).await.expect("UpdateClient");
        let status = realm.asserted(&assertion(&old, &client.id)).await.status;
        assert_eq!(status == 200, old_works);
        assert_eq!(
            realm.asserted(&assertion(&new, &client.id)).await.status,
            200
        );
    }
    for (what, change) in [
        ("nothing", UpdateClientRequest::default()),
        (
            "another method",
            UpdateClientRequest {
                certificate_identity: Some("dns:a.test".into()),
                ..Default::default()
            },
        ),
        (
            "scopes by accident",
            UpdateClientRequest {
                scopes: vec!["orders.read".into()],
                ..Default::default()
            },
        ),
        (
            "a wrong set",
            UpdateClientRequest {
                jwks: Some("{}".into()),
                ..Default::default()
            },
        ),
    ] {
        let status = update(change).await.expect_err(what);
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
    }
    let read = GetClientRequest {
        client_id: client.id.clone(),
    };
    let read = realm
        .daemon
        .actor("auditor")
        .clients()
        .get_client(read)
        .await;
    let read = read
        .expect("GetClient")
        .into_inner()
        .client
        .expect("a client");
    assert_eq!(read.jwks, jwks(&new));
    assert_eq!(read.scopes, ["orders.read", "orders.write"]);
    realm.daemon.stop().await;
}

#[tokio::test]
async fn a_suspension_holds_on_another_replica_within_its_staleness() {
    let mut realm = Realm::with(Setup::new(Engine::Postgres).for_two()).await;
    let signer = Signer::new(Algorithm::Es256);
    let client = realm.signing("batch", &signer).await;
    let second = realm.daemon.second(None).await;
    let first = std::mem::replace(&mut realm.daemon, second);
    assert_eq!(
        realm.asserted(&assertion(&signer, &client.id)).await.status,
        200
    );
    let suspend = UpdateClientRequest {
        client_id: client.id.clone(),
        state: ClientState::Suspended.into(),
        ..Default::default()
    };
    first
        .actor("admin")
        .clients()
        .update_client(suspend)
        .await
        .expect("UpdateClient");
    let until = tokio::time::Instant::now() + PATIENCE;
    while realm.asserted(&assertion(&signer, &client.id)).await.status != 401 {
        assert!(tokio::time::Instant::now() < until, "it still gets tokens");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(
        realm
            .rows("IssueClientToken", "refused", "CLIENT_SUSPENDED")
            .await
            >= 1
    );
    realm.daemon.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn clients_are_managed_by_command() {
    let realm = Realm::new().await;
    let signer = Signer::new(Algorithm::Es256);
    let file = realm.daemon.path("jwks.json");
    std::fs::write(&file, jwks(&signer)).expect("a file");
    let file = file.to_str().expect("UTF-8");
    let admin = ["--as", "admin", "--output", "json"];
    let run = async |args: &[&str]| -> Value {
        let printed = realm
            .daemon
            .cli_ok(&[&admin[..], &["client"], args].concat())
            .await;
        serde_json::from_str(&printed).expect("JSON")
    };
    let made = run(&[
        "create",
        "batch",
        "--owner",
        &realm.partner,
        "--method",
        "private-key-jwt",
        "--jwks",
        file,
        "--scope",
        "orders.read",
        "--audience",
        "api",
        "--token-ttl",
        "5min",
    ])
    .await;
    let id = made["client"]["id"].as_str().expect("an id").to_owned();
    let reply = realm.asserted(&assertion(&signer, &id)).await;
    assert!(
        reply.json()["expires_in"]
            .as_u64()
            .is_some_and(|seconds| seconds <= 300),
        "{reply:?}"
    );
    let changed = run(&["update", &id, "--no-scopes", "--coalesce", "--suspend"]).await;
    assert_eq!(changed["client"]["state"], "CLIENT_STATE_SUSPENDED");
    assert_eq!(changed["client"]["coalesce"], true);
    let listed = run(&["list", "--tenant", "acme"]).await;
    assert_eq!(listed["clients"][0]["id"], id.as_str());
    let shown = realm
        .daemon
        .cli_ok(&["--as", "admin", "client", "show", &id])
        .await;
    assert!(
        shown.contains("PRIVATE_KEY_JWT") && shown.contains("SUSPENDED"),
        "{shown}"
    );
    realm.daemon.stop().await;
}

#[tokio::test]
async fn taken_assertions_are_forgotten_when_they_could_not_be_taken_again() {
    let realm = Realm::with(Setup::new(Engine::Sqlite)).await;
    let signer = Signer::new(Algorithm::Es256);
    let client = realm.signing("batch", &signer).await;
    assert_eq!(
        realm.asserted(&assertion(&signer, &client.id)).await.status,
        200
    );
    let insert =
        "INSERT INTO client_assertions (client_id, jti, keep_until) VALUES ('old', 'old', 1)";
    realm.daemon.execute(insert).await;
    let until = tokio::time::Instant::now() + PATIENCE;
    let old = "SELECT jti FROM client_assertions WHERE client_id = 'old'";
    while !realm.daemon.rows(old).await.is_empty() {
        assert!(tokio::time::Instant::now() < until, "it is still there");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let kept = realm.daemon.rows("SELECT jti FROM client_assertions").await;
    assert_eq!(kept.len(), 1);
    realm.daemon.stop().await;
}
