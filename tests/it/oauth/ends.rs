//! Tokens end with what they were given for: with their API key, their client and their owner. And a key that has ended
//! itself hears what an unknown one hears. R-OAUTH-2, R-OAUTH-4.

use claviger::grpc::proto::*;
use tokio::time::{Instant, sleep};

use super::realm::{INTROSPECT, Realm, partner};
use crate::{
    daemon::{Engine, PATIENCE, Setup},
    jwt_attacks::forge::now,
};

/// Is the token valid, as VerifyToken sees it, and active, as introspection does? They agree.
async fn counts(realm: &Realm, watcher: (&str, &str), token: &str) -> bool {
    let request = VerifyTokenRequest {
        tenant: "acme".into(),
        token: token.into(),
        audience: "api".into(),
        ..Default::default()
    };
    let service = realm.daemon.actor("service");
    let verified = service.tokens().verify_token(request).await;
    let verified = verified.expect("VerifyToken").into_inner();
    if !verified.valid {
        assert_eq!(verified.rejection(), TokenRejection::Revoked);
    }
    let seen = realm.basic(INTROSPECT, watcher, &[("token", token)]).await;
    let is_active = seen.json()["active"] == true;
    assert_eq!(verified.valid, is_active, "{seen:?}");
    is_active
}

/// A client of a service that may verify tokens, so that it learns about all of them.
async fn watcher(realm: &Realm) -> (String, String) {
    let gateway = partner(&realm.daemon, "acme", "gateway").await;
    let admin = realm.daemon.actor("admin");
    let grant = GrantRoleRequest {
        principal_id: gateway.clone(),
        role: "crypto-user".into(),
        tenant: "acme".into(),
    };
    let granted = admin.principals().grant_role(grant).await;
    granted.expect("GrantRole");
    let request = CreateApiKeyRequest {
        owner_id: gateway,
        name: "watcher".into(),
        scopes: vec!["claviger:crypto-user".into()],
        expire_time: Some(prost_types::Timestamp {
            seconds: now() + 3600,
            nanos: 0,
        }),
        client_id: String::new(),
    };
    let made = admin.api_keys().create_api_key(request).await;
    let made = made.expect("CreateApiKey").into_inner();
    (made.api_key.expect("a key").id, made.secret)
}

#[tokio::test]
async fn a_token_ends_with_its_key_its_client_and_its_owner() {
    let realm = Realm::new().await;
    let (id, secret) = watcher(&realm).await;
    let watcher = (id.as_str(), secret.as_str());
    let (client, secret) = realm.secret("web").await;
    let (key, text) = realm.api_key("", &["orders.read"]).await;
    let of_client = realm.token((&client.id, &secret), &[]).await.token();
    let of_key = realm.token((&key, &text), &[]).await.token();
    for token in [&of_client, &of_key] {
        assert!(counts(&realm, watcher, token).await);
    }
    let admin = realm.daemon.actor("admin");
    let revoke = RevokeApiKeyRequest {
        api_key_id: key.clone(),
        reason: "leaked".into(),
    };
    let revoked = admin.api_keys().revoke_api_key(revoke).await;
    revoked.expect("RevokeApiKey");
    assert!(!counts(&realm, watcher, &of_key).await);
    assert!(counts(&realm, watcher, &of_client).await);

    realm.suspend(&client.id, ClientState::Suspended).await;
    assert!(!counts(&realm, watcher, &of_client).await);
    realm.suspend(&client.id, ClientState::Active).await;
    assert!(counts(&realm, watcher, &of_client).await);

    let suspend = SuspendPrincipalRequest {
        principal_id: realm.partner.clone(),
        reason: "gone".into(),
    };
    let suspended = admin.principals().suspend_principal(suspend).await;
    suspended.expect("SuspendPrincipal");
    assert!(!counts(&realm, watcher, &of_client).await);
    realm.daemon.stop().await;
}

#[tokio::test]
async fn a_key_that_has_ended_or_is_another_tenants_hears_what_an_unknown_one_hears() {
    let realm = Realm::new().await;
    let admin = realm.daemon.actor("admin");
    let (key, text) = realm.api_key("", &["orders.read"]).await;
    assert_eq!(realm.token((&key, &text), &[]).await.status, 200);
    let unknown = uuid::Uuid::now_v7().to_string();
    let expected = realm.token((&unknown, &text), &[]).await;
    assert_eq!(expected.status, 401);

    // Another tenant's secret, with this tenant's client_id.
    let stranger = partner(&realm.daemon, "globex", "stranger").await;
    let short = |owner: &str, seconds| CreateApiKeyRequest {
        owner_id: owner.into(),
        name: "short".into(),
        expire_time: Some(prost_types::Timestamp {
            seconds: now() + seconds,
            nanos: 0,
        }),
        ..Default::default()
    };
    let theirs = admin
        .api_keys()
        .create_api_key(short(&stranger, 3600))
        .await;
    let theirs = theirs.expect("CreateApiKey").into_inner().secret;
    let reply = realm.token((&key, &theirs), &[]).await;
    assert_eq!((reply.status, &reply.body), (401, &expected.body));

    let made = admin
        .api_keys()
        .create_api_key(short(&realm.partner, 3))
        .await;
    let made = made.expect("CreateApiKey").into_inner();
    let ending = made.api_key.expect("a key").id;
    let until = Instant::now() + PATIENCE;
    let reply = loop {
        let reply = realm.token((&ending, &made.secret), &[]).await;
        if reply.status != 200 {
            break reply;
        }
        // No token outlives the key that it was given for.
        assert!(reply.json()["expires_in"].as_i64() <= Some(3), "{reply:?}");
        assert!(Instant::now() < until, "it never ends");
        sleep(std::time::Duration::from_millis(100)).await;
    };
    assert_eq!((reply.status, &reply.body), (401, &expected.body));

    let revoke = RevokeApiKeyRequest {
        api_key_id: key.clone(),
        reason: "leaked".into(),
    };
    let revoked = admin.api_keys().revoke_api_key(revoke).await;
    revoked.expect("RevokeApiKey");
    let reply = realm.token((&key, &text), &[]).await;
    assert_eq!((reply.status, &reply.body), (401, &expected.body));
    for why in ["API_KEY_EXPIRED", "API_KEY_REVOKED", "FOREIGN_SECRET"] {
        assert!(
            realm.rows("IssueClientToken", "refused", why).await >= 1,
            "{why}"
        );
    }
    realm.daemon.stop().await;
}

// R-JWT-2: a token whose subject somebody chose says nothing about who calls, whatever its audience is.
#[tokio::test]
async fn only_tokens_of_the_token_endpoint_are_taken_for_their_subject() {
    let setup = Setup::new(Engine::Sqlite)
        .replace("[grpc]\n", "[grpc]\nclient_certificate = \"optional\"\n");
    let mut realm = Realm::with(setup).await;
    let request = IssueTokenRequest {
        tenant: "acme".into(),
        key: "tokens".into(),
        subject: realm.daemon.id_of("service").await,
        audience: vec!["later".into()],
        scope: vec!["claviger:crypto-user".into()],
        ..Default::default()
    };
    let service = realm.daemon.actor("service");
    let issued = service.tokens().issue_token(request).await;
    let token = issued.expect("IssueToken").into_inner().token;
    // As if it had been issued before this was the daemon's own audience.
    realm
        .daemon
        .edit_config(|text| text.replace("[authn]\n", "[authn]\naudience = \"later\"\n"));
    realm.daemon.restart().await;
    let mut request = tonic::Request::new(GenerateRandomRequest { length: 16 });
    let bearer = format!("Bearer {token}").parse().expect("a header");
    request.metadata_mut().insert("authorization", bearer);
    let nobody = realm.daemon.actor_with(None);
    let refused = nobody.data_keys().generate_random(request).await;
    let refused = refused.expect_err("not its subject");
    assert_eq!(crate::daemon::reason(&refused), "CREDENTIAL_INVALID");
    realm.daemon.stop().await;
}
