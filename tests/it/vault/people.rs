//! Who may: one's own with `can.use_users`, everybody's but no secret with `can.manage_users`, nothing without.

use super::*;
use crate::daemon::Engine;

// R-CRED-2, R-ACL-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_anothers_is_managed_by_few_and_revealed_to_nobody() {
    let d = Daemon::start(Engine::Sqlite).await;
    let alice = person(&d, "acme", "alice", &["can.use_users"]).await;
    let bob = person(&d, "acme", "bob", &["can.use_users"]).await;
    let carol = person(&d, "acme", "carol", &["orders.read"]).await;
    let boss = person(&d, "acme", "boss", &["can.manage_users"]).await;
    let eve = person(&d, "globex", "eve", &["can.use_users", "can.manage_users"]).await;
    let id = alice.stores(&d, &binance("alices secret")).await;
    let hers = format!("/users/{}/broker-credentials", alice.id);
    let one = format!("{hers}/{id}");
    let reveal = format!("{one}/reveal");
    let why = json!({ "reason": "curiosity" });

    for who in [&bob, &carol] {
        for reply in [
            who.get(&d, &hers).await,
            who.get(&d, &one).await,
            who.delete(&d, &one).await,
            who.post(&d, &hers, &binance("planted")).await,
            who.post(&d, &reveal, &why).await,
            // The id alone, under their own path.
            who.get(&d, &format!("{MINE}/{id}")).await,
            who.reveals(&d, &id).await,
        ] {
            problem(&reply, 403, "PERMISSION_DENIED");
            assert!(!reply.body.contains("secret"), "{reply:?}");
        }
    }
    // Somebody of another tenant cannot tell it from nothing.
    let nothing = uuid::Uuid::now_v7();
    for path in [
        one.clone(),
        format!("{hers}/{nothing}"),
        format!("{MINE}/{id}"),
    ] {
        problem(&eve.get(&d, &path).await, 404, "CREDENTIAL_NOT_FOUND");
        problem(&eve.delete(&d, &path).await, 404, "CREDENTIAL_NOT_FOUND");
        let reply = eve.post(&d, &format!("{path}/reveal"), &why).await;
        problem(&reply, 404, "CREDENTIAL_NOT_FOUND");
    }
    problem(&eve.get(&d, &hers).await, 404, "PRINCIPAL_NOT_FOUND");
    let planted = eve.post(&d, &hers, &binance("planted")).await;
    problem(&planted, 404, "PRINCIPAL_NOT_FOUND");
    let mut another = binance("planted");
    another["name"] = "another".into();
    let nobody = format!("/users/{nothing}/broker-credentials");
    for (path, body) in [
        (&hers, &another),
        (&nobody, &another),
        (&nobody, &binance("planted")),
    ] {
        let reply = eve.post(&d, path, body).await;
        assert_eq!((reply.status, &reply.body), (404, &planted.body));
    }
    problem(&carol.get(&d, MINE).await, 403, "PERMISSION_DENIED");

    // Who manages sees all of it but the secret.
    let listed = boss.get(&d, &hers).await.json();
    assert_eq!(listed["credentials"][0]["id"], id.as_str());
    problem(
        &boss.post(&d, &reveal, &why).await,
        403,
        "PERMISSION_DENIED",
    );
    let mut other = binance("set by the boss");
    other["environment"] = "production".into();
    let stored = boss.post(&d, &hers, &other).await;
    assert_eq!(stored.status, 201, "{stored:?}");
    let set = stored.json()["credential"]["id"]
        .as_str()
        .map(str::to_owned);
    let set = set.expect("an id");
    assert_eq!(alice.reveals(&d, &set).await.status, 200);
    assert_eq!(boss.delete(&d, &format!("{hers}/{set}")).await.status, 204);
    // Under another user's path there is no such credential, for whoever may manage both.
    let elsewhere = format!("/users/{}/broker-credentials/{id}", bob.id);
    problem(&boss.get(&d, &elsewhere).await, 404, "CREDENTIAL_NOT_FOUND");
    problem(
        &boss.delete(&d, &elsewhere).await,
        404,
        "CREDENTIAL_NOT_FOUND",
    );
    assert_eq!(alice.reveals(&d, &id).await.status, 200);

    // A refusal has a row like everything else.
    let refused = "SELECT DISTINCT actor FROM audit_events WHERE action = 'RevealCredential' AND outcome = 'refused'";
    assert_eq!(d.rows(refused).await.len(), 4, "bob, carol, boss and eve");
    d.stop().await;
}

// R-OAUTH-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_of_the_caller_brings_no_more_than_its_scopes() {
    let d = Daemon::start(Engine::Sqlite).await;
    let alice = person(&d, "acme", "alice", &["can.use_users", "orders.read"]).await;
    let id = alice.stores(&d, &binance("alices secret")).await;
    let narrow = Person {
        id: alice.id.clone(),
        key: api_key(&d, &alice.id, &["orders.read".to_owned()]).await,
    };
    problem(&narrow.get(&d, MINE).await, 403, "PERMISSION_DENIED");
    problem(&narrow.reveals(&d, &id).await, 403, "PERMISSION_DENIED");
    assert_eq!(alice.reveals(&d, &id).await.status, 200);

    // Taken away is taken away from what was handed out before.
    let take = UpdatePrincipalRequest {
        principal_id: alice.id.clone(),
        remove_scopes: vec!["can.use_users".into()],
        ..Default::default()
    };
    let admin = d.actor("admin");
    let taken = admin.principals().update_principal(take).await;
    taken.expect("UpdatePrincipal");
    problem(&alice.reveals(&d, &id).await, 403, "PERMISSION_DENIED");

    // Nobody at all.
    for headers in [&[][..], &[("authorization", "Bearer nothing")]] {
        let reply = send(&d, Method::GET, MINE, headers, "").await;
        assert_eq!(reply.status, 401, "{reply:?}");
        assert_eq!(reply.header("www-authenticate"), "Bearer");
        assert_eq!(reply.header("content-type"), "application/problem+json");
    }
    d.stop().await;
}
