//! Rows that somebody changed behind the daemon's back.

use super::*;
use crate::daemon::Engine;

// R-CRED-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ciphertext_opens_in_its_own_row_and_nowhere_else() {
    let d = Daemon::start(Engine::Sqlite).await;
    let scopes = ["can.use_users"];
    let alice = person(&d, "acme", "alice", &scopes).await;
    let bob = person(&d, "acme", "bob", &scopes).await;
    let eve = person(&d, "globex", "eve", &scopes).await;
    let first = alice.stores(&d, &binance("alices first secret")).await;
    let mut other = binance("alices second secret");
    other["environment"] = "production".into();
    let second = alice.stores(&d, &other).await;
    let mut bobs = binance("bobs secret");
    bobs["name"] = "bobs".into();
    let bobs = bob.stores(&d, &bobs).await;
    let eves = eve.stores(&d, &binance("eves secret")).await;

    d.execute(
        "CREATE TABLE kept AS SELECT credential_id, ciphertext, kid FROM user_broker_credentials",
    )
    .await;
    let give = |to: &str, of: &str, column: &str| {
        format!(
            "UPDATE user_broker_credentials SET {column} = (SELECT {column} FROM kept WHERE credential_id = '{of}') \
             WHERE credential_id = '{to}'"
        )
    };
    // Of another row, another user, another tenant; and back.
    for of in [&second, &bobs, &eves] {
        d.execute(&give(&first, of, "ciphertext")).await;
        problem(
            &alice.reveals(&d, &first).await,
            409,
            "CREDENTIAL_UNREADABLE",
        );
        // The kid that the row names is of no help.
        d.execute(&give(&first, of, "kid")).await;
        problem(
            &alice.reveals(&d, &first).await,
            409,
            "CREDENTIAL_UNREADABLE",
        );
    }
    d.execute(&format!(
        "{}; {}",
        give(&first, &first, "ciphertext"),
        give(&first, &first, "kid")
    ))
    .await;
    assert_eq!(alice.reveals(&d, &first).await.status, 200);

    // The head of a credential is bound too: it cannot become another user's, provider's or environment's.
    for change in [
        format!("owner = '{}'", bob.id),
        "provider = 'alpaca'".to_owned(),
        "environment = 'development'".to_owned(),
    ] {
        d.execute(&format!(
            "CREATE TABLE head AS SELECT * FROM credentials WHERE id = '{first}'"
        ))
        .await;
        d.execute(&format!(
            "UPDATE credentials SET {change} WHERE id = '{first}'"
        ))
        .await;
        let who = match change.starts_with("owner") {
            true => &bob,
            false => &alice,
        };
        problem(&who.reveals(&d, &first).await, 409, "CREDENTIAL_UNREADABLE");
        let restore = format!(
            "UPDATE credentials SET owner = (SELECT owner FROM head), provider = (SELECT provider FROM head), \
             environment = (SELECT environment FROM head) WHERE id = '{first}'; DROP TABLE head"
        );
        d.execute(&restore).await;
    }
    assert_eq!(alice.reveals(&d, &first).await.status, 200);
    for (who, id) in [(&alice, &second), (&bob, &bobs), (&eve, &eves)] {
        assert_eq!(who.reveals(&d, id).await.status, 200);
    }
    d.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_has_one_value_of_each_label() {
    let d = Daemon::start(Engine::Sqlite).await;
    let alice = person(&d, "acme", "alice", &["can.use_users"]).await;
    let id = alice.stores(&d, &binance("a secret")).await;
    let copy = |label: &str, value: &str| {
        format!(
            "INSERT INTO user_broker_credentials SELECT '{value}', credential_id, tenant, owner, provider, environment, \
             '{label}', kid, ciphertext, last_four, created_at, promoted_at, hold_until FROM user_broker_credentials \
             WHERE credential_id = '{id}' AND label = 'CURRENT'"
        )
    };
    let next = uuid::Uuid::now_v7().to_string();
    d.execute(&copy("PENDING", &next)).await;
    let twice = copy("PENDING", &uuid::Uuid::now_v7().to_string());
    let refused = tokio::spawn({
        let url = d.path("claviger.db");
        async move {
            use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};
            let options = SqliteConnectOptions::new().filename(url);
            let mut connection = options.connect().await.expect("a connection");
            sqlx::raw_sql(sqlx::AssertSqlSafe(twice))
                .execute(&mut connection)
                .await
        }
    });
    let refused = refused.await.expect("no panic").expect_err("a second one");
    let refused = refused.as_database_error().expect("the database says so");
    assert!(refused.is_unique_violation(), "{refused}");
    assert!(
        refused.message().contains("user_broker_credentials.label"),
        "{refused}"
    );
    // A copy of a value is no value: it was sealed for another row.
    let body = json!({ "reason": "a test", "label": "PENDING" });
    let revealed = alice.post(&d, &format!("{MINE}/{id}/reveal"), &body).await;
    problem(&revealed, 409, "CREDENTIAL_UNREADABLE");
    let body = json!({ "reason": "a test", "label": "PREVIOUS" });
    let revealed = alice.post(&d, &format!("{MINE}/{id}/reveal"), &body).await;
    problem(&revealed, 404, "CREDENTIAL_NOT_FOUND");
    d.stop().await;
}
