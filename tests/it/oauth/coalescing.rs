//! The same token for the same question, for clients that ask for it.

use claviger::grpc::proto::*;

use tokio::time::Instant;

use super::realm::{REVOKE, Realm, Reply};
use crate::daemon::PATIENCE;

async fn coalescing(realm: &Realm) -> (String, String) {
    let mut request = realm.request("web", ClientAuthMethod::ClientSecret);
    request.coalesce = true;
    let client = realm.client(request).await;
    let (_, secret) = realm
        .api_key(&client.id, &["orders.read", "orders.write"])
        .await;
    (client.id, secret)
}

/// The one token that all of these requests get, made at the same time. Whatever the daemon does beside may make it forget
/// once more, not for ever.
async fn shared(realm: &Realm, who: (&str, &str), forms: &[&[(&str, &str)]]) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        let all = forms.iter().map(|form| realm.token(who, form));
        let all = futures_util::future::join_all(all).await;
        let mut tokens: std::collections::BTreeSet<_> = all.iter().map(Reply::token).collect();
        match (tokens.pop_first(), tokens.is_empty()) {
            (Some(token), true) => return token,
            _ => assert!(Instant::now() < until, "no token is shared"),
        }
    }
}

#[tokio::test]
async fn equal_requests_share_a_token_and_others_do_not() {
    let realm = Realm::new().await;
    let (id, secret) = coalescing(&realm).await;
    let who = (id.as_str(), secret.as_str());
    realm.settled().await;
    let question: &[(&str, &str)] = &[];
    let other_words = [("scope", "orders.write orders.read")];
    let token = shared(&realm, who, &[question, question, &other_words]).await;
    for other in [
        ("scope", "orders.read"),
        ("audience", "https://orders.test"),
    ] {
        let different = shared(&realm, who, &[&[other], &[other]]).await;
        assert_ne!(different, token, "{other:?}");
    }
    let rows = realm.rows("IssueClientToken", "success", "\"shared\":true");
    assert!(rows.await >= 4);

    // All at once: one signature.
    let form = [("scope", "orders.write")];
    shared(&realm, who, &[&form[..]; 8]).await;

    // Who did not ask for it gets a token of its own each time.
    let (plain, key) = realm.secret("plain").await;
    let who = (plain.id.as_str(), key.as_str());
    assert_ne!(
        realm.token(who, &[]).await.token(),
        realm.token(who, &[]).await.token()
    );
    realm.daemon.stop().await;
}

#[tokio::test]
async fn a_shared_token_goes_with_a_change_of_client_key_or_owner_and_when_it_is_revoked() {
    let realm = Realm::new().await;
    let (id, secret) = coalescing(&realm).await;
    let who = (id.as_str(), secret.as_str());
    realm.settled().await;
    let mut last = realm.token(who, &[]).await.token();
    let mut differs = async |what: &str, who: (&str, &str)| {
        realm.settled().await;
        let mut token = realm.token(who, &[]).await.token();
        assert_ne!(token, last, "{what}");
        // Whatever the daemon does beside may make it forget once more, not for ever.
        let until = Instant::now() + PATIENCE;
        loop {
            let again = realm.token(who, &[]).await.token();
            assert_ne!(again, last, "{what}");
            if again == token {
                break;
            }
            assert!(
                Instant::now() < until,
                "{what}: no token is shared any more"
            );
            token = again;
        }
        last = token;
    };

    let token = realm.token(who, &[]).await.token();
    assert_eq!(
        realm.basic(REVOKE, who, &[("token", &token)]).await.status,
        200
    );
    differs("revoked", who).await;

    let update = UpdateClientRequest {
        client_id: id.clone(),
        audiences: vec!["api".into()],
        ..Default::default()
    };
    let done = realm
        .daemon
        .actor("admin")
        .clients()
        .update_client(update)
        .await;
    done.expect("UpdateClient");
    differs("client changed", who).await;

    let (_, another) = realm.api_key(&id, &["orders.read", "orders.write"]).await;
    differs("another key", (&id, &another)).await;

    let update = UpdatePrincipalRequest {
        principal_id: realm.partner.clone(),
        remove_scopes: vec!["orders.write".into()],
        ..Default::default()
    };
    let done = realm
        .daemon
        .actor("admin")
        .principals()
        .update_principal(update)
        .await;
    done.expect("UpdatePrincipal");
    differs("owner changed", who).await;
    realm.daemon.stop().await;
}

// R-EMER-1: no token under a compromised kid is handed out again.
#[tokio::test]
async fn a_shared_token_goes_with_its_kid() {
    let realm = Realm::new().await;
    let (id, secret) = coalescing(&realm).await;
    let who = (id.as_str(), secret.as_str());
    let token = realm.token(who, &[]).await.token();
    let request = DeclareCompromiseRequest {
        tenant: "acme".into(),
        key: "tokens".into(),
        reason: "a test".into(),
        ..Default::default()
    };
    let officer = realm.daemon.actor("officer");
    officer
        .incidents()
        .declare_compromise(request)
        .await
        .expect("DeclareCompromise");
    let reply = realm.token(who, &[]).await;
    match reply.status {
        // There is a successor already.
        200 => assert_ne!(reply.token(), token),
        _ => assert_eq!(
            (reply.status, reply.error()),
            (503, "temporarily_unavailable".into())
        ),
    }
    realm.daemon.stop().await;
}
