//! What a client learns about tokens (RFC 7662), and which it ends (RFC 7009).

use claviger::grpc::proto::*;

use super::realm::{INTROSPECT, REVOKE, Realm, partner};

#[tokio::test]
async fn a_client_learns_about_its_own_tokens_and_no_others() {
    let realm = Realm::new().await;
    let (client, secret) = realm.secret("web").await;
    let (other, foreign) = realm.secret("other").await;
    let who = (client.id.as_str(), secret.as_str());
    let token = realm.token(who, &[("scope", "orders.read")]).await.token();

    let seen = realm.basic(INTROSPECT, who, &[("token", &token)]).await;
    assert_eq!(seen.header("cache-control"), "no-store");
    let seen = seen.json();
    assert_eq!(seen["active"], true);
    assert_eq!(seen["token_type"], "Bearer");
    assert_eq!(seen["scope"], "orders.read");
    assert_eq!(seen["client_id"], client.id.as_str());
    assert_eq!(seen["sub"], realm.partner.as_str());
    assert_eq!(seen["iss"], "https://issuer.test");
    assert_eq!(seen["aud"], "api");
    for member in ["exp", "iat", "nbf"] {
        assert!(seen[member].is_i64(), "{member}: {seen}");
    }
    assert!(seen["jti"].is_string() && seen.get("cnf").is_none());

    // Nothing tells a foreign token from garbage (RFC 7662 section 2.2).
    let changed = format!("{}{}", &token[..token.len() - 6], "AAAAAA");
    let foreigner = (other.id.as_str(), foreign.as_str());
    for (who, token) in [
        (foreigner, token.as_str()),
        (who, changed.as_str()),
        (who, "garbage"),
        (who, secret.as_str()),
    ] {
        let reply = realm.basic(INTROSPECT, who, &[("token", token)]).await;
        assert_eq!(
            (reply.status, reply.body.as_str()),
            (200, "{\"active\":false}")
        );
    }
    assert_eq!(realm.rows("IntrospectToken", "success", "FOREIGN").await, 1);
    realm.daemon.stop().await;
}

// R-ACL-3
#[tokio::test]
async fn whoever_may_verify_tokens_sees_all_of_the_tenant_and_none_of_another() {
    let realm = Realm::new().await;
    let (client, secret) = realm.secret("web").await;
    let token = realm.token((&client.id, &secret), &[]).await.token();
    let admin = realm.daemon.actor("admin");

    let (tenant, role) = ("acme".to_owned(), "crypto-user".to_owned());
    let gateway = partner(&realm.daemon, "acme", "gateway").await;
    let grant = GrantRoleRequest {
        principal_id: gateway.clone(),
        role,
        tenant,
    };
    admin
        .principals()
        .grant_role(grant)
        .await
        .expect("GrantRole");
    let mut request = realm.request("gateway", ClientAuthMethod::ClientSecret);
    request.owner_id = gateway.clone();
    request.scopes = vec!["claviger:crypto-user".into()];
    let gate = realm.client(request).await;
    let of = |partner: String, daemon| Realm { partner, daemon };
    let mine = realm.partner.clone();
    let realm = of(gateway, realm.daemon);
    let (_, key) = realm.api_key(&gate.id, &["claviger:crypto-user"]).await;
    let seen = realm
        .basic(INTROSPECT, (&gate.id, &key), &[("token", &token)])
        .await
        .json();
    assert_eq!(
        (seen["active"].as_bool(), seen["sub"].as_str()),
        (Some(true), Some(mine.as_str()))
    );
    // The role comes along only by its scope (R-OAUTH-2).
    let (_, weak) = realm.api_key(&gate.id, &[]).await;
    let seen = realm
        .basic(INTROSPECT, (&gate.id, &weak), &[("token", &token)])
        .await;
    assert_eq!(seen.body, "{\"active\":false}");

    let elsewhere = partner(&realm.daemon, "globex", "gateway").await;
    let grant = GrantRoleRequest {
        principal_id: elsewhere.clone(),
        role: "crypto-user".into(),
        tenant: "globex".into(),
    };
    admin
        .principals()
        .grant_role(grant)
        .await
        .expect("GrantRole");
    let mut request = realm.request("gateway", ClientAuthMethod::ClientSecret);
    request.owner_id = elsewhere.clone();
    request.scopes = vec!["claviger:crypto-user".into()];
    let gate = realm.client(request).await;
    let realm = of(elsewhere, realm.daemon);
    let (_, key) = realm.api_key(&gate.id, &["claviger:crypto-user"]).await;
    let seen = realm
        .basic(INTROSPECT, (&gate.id, &key), &[("token", &token)])
        .await;
    assert_eq!(
        (seen.status, seen.body.as_str()),
        (200, "{\"active\":false}")
    );
    let done = realm
        .basic(REVOKE, (&gate.id, &key), &[("token", &token)])
        .await;
    assert_eq!(done.status, 200);
    realm.verified(&token, "api").await;
    realm.daemon.stop().await;
}

#[tokio::test]
async fn a_client_ends_its_own_tokens_and_no_others() {
    let realm = Realm::new().await;
    let (client, secret) = realm.secret("web").await;
    let (other, foreign) = realm.secret("other").await;
    let who = (client.id.as_str(), secret.as_str());
    let token = realm.token(who, &[]).await.token();
    let kept = realm.token(who, &[]).await.token();

    for (who, token) in [
        ((other.id.as_str(), foreign.as_str()), token.as_str()),
        (who, "garbage"),
    ] {
        let reply = realm.basic(REVOKE, who, &[("token", token)]).await;
        assert_eq!((reply.status, reply.body.as_str()), (200, ""));
    }
    realm.verified(&token, "api").await;
    assert_eq!(
        realm
            .daemon
            .rows("SELECT jti FROM token_revocations")
            .await
            .len(),
        0
    );

    let form = [
        ("token", token.as_str()),
        ("token_type_hint", "refresh_token"),
    ];
    let reply = realm.basic(REVOKE, who, &form).await;
    assert_eq!((reply.status, reply.body.as_str()), (200, ""));
    assert_eq!(reply.header("cache-control"), "no-store");
    let seen = realm.basic(INTROSPECT, who, &[("token", &token)]).await;
    assert_eq!(seen.body, "{\"active\":false}");
    let request = VerifyTokenRequest {
        tenant: "acme".into(),
        token: token.clone(),
        audience: "api".into(),
        required_scopes: Vec::new(),
        ..Default::default()
    };
    let answer = realm
        .daemon
        .actor("service")
        .tokens()
        .verify_token(request)
        .await;
    assert_eq!(
        answer.expect("VerifyToken").into_inner().rejection(),
        TokenRejection::Revoked
    );
    realm.verified(&kept, "api").await;
    // Again is as good as once.
    assert_eq!(realm.basic(REVOKE, who, &form).await.status, 200);
    assert_eq!(realm.rows("RevokeOwnToken", "success", "revoked").await, 4);
    realm.daemon.stop().await;
}
