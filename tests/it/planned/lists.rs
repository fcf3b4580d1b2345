//! What is due, and what waits for whom; and who is told.

use super::*;

async fn keys(daemon: &Daemon, request: ListKeysRequest) -> Vec<Key> {
    let request = ListKeysRequest {
        tenant: "acme".into(),
        ..request
    };
    let answer = daemon.actor("auditor").keys().list_keys(request).await;
    answer.expect("ListKeys").into_inner().keys
}

async fn names(daemon: &Daemon, request: ListKeysRequest) -> Vec<String> {
    let listed = keys(daemon, request).await.into_iter();
    let mut names: Vec<_> = listed.map(|key| key.name).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_inventory_shows_what_is_due_on_sqlite() {
    the_inventory_shows_what_is_due(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_inventory_shows_what_is_due_on_postgres() {
    the_inventory_shows_what_is_due(Engine::Postgres).await;
}

// R-LIFE-2, R-LIFE-3
async fn the_inventory_shows_what_is_due(engine: Engine) {
    let daemon = unscheduled(engine).start().await;
    for (name, days) in [("overdue", -1), ("soon", 5), ("later", 60), ("frozen", 80)] {
        token_key(&daemon, name).await;
        let due = format!(
            "UPDATE keys SET next_rotation_at = {} WHERE name = '{name}'",
            now() + days * DAY
        );
        daemon.execute(&due).await;
    }
    daemon
        .execute("UPDATE keys SET owner = 'payments' WHERE name IN ('soon', 'frozen')")
        .await;
    let frozen = get_key(&daemon, "frozen").await;
    let freeze = format!(
        "UPDATE key_versions SET state = 'COMPROMISED' WHERE kid = '{}'",
        frozen.active_kid
    );
    daemon.execute(&freeze).await;
    let within = |days: i64| ListKeysRequest {
        due_within: Some(seconds(days * 86_400)),
        ..Default::default()
    };
    let all = ["frozen", "later", "overdue", "soon"];
    assert_eq!(names(&daemon, ListKeysRequest::default()).await, all);
    assert_eq!(names(&daemon, within(0)).await, ["overdue"]);
    assert_eq!(names(&daemon, within(7)).await, ["overdue", "soon"]);
    assert_eq!(
        names(&daemon, within(70)).await,
        ["later", "overdue", "soon"]
    );
    let overdue = ListKeysRequest {
        overdue_only: true,
        ..within(7)
    };
    assert_eq!(names(&daemon, overdue).await, ["overdue"]);
    let owner = ListKeysRequest {
        owner: "payments".into(),
        ..Default::default()
    };
    assert_eq!(names(&daemon, owner.clone()).await, ["frozen", "soon"]);
    let both = ListKeysRequest {
        compromised_only: true,
        ..owner
    };
    assert_eq!(names(&daemon, both).await, ["frozen"]);
    let nobodys = ListKeysRequest {
        owner: "' OR '1'='1".into(),
        ..Default::default()
    };
    assert!(names(&daemon, nobodys).await.is_empty());
    for key in keys(&daemon, ListKeysRequest::default()).await {
        let is_frozen = key.name == "frozen";
        assert_eq!(key.compromised, is_frozen, "{}", key.name);
        assert_eq!(key.active_kid.is_empty(), is_frozen, "{}", key.name);
        assert_eq!(key.overdue, key.name == "overdue");
        assert!(!key.owner.is_empty() && key.create_time.is_some());
        assert!(key.next_rotation_time.is_some());
    }
    // Filters hold on every page.
    let mut request = ListKeysRequest {
        page_size: 1,
        tenant: "acme".into(),
        ..within(70)
    };
    let mut found = Vec::new();
    loop {
        let auditor = daemon.actor("auditor");
        let page = auditor.keys().list_keys(request.clone()).await;
        let page = page.expect("ListKeys").into_inner();
        found.extend(page.keys.into_iter().map(|key| key.name));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(found, ["overdue", "soon", "later"]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_sees_what_waits_for_them_on_sqlite() {
    everybody_sees_what_waits_for_them(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_sees_what_waits_for_them_on_postgres() {
    everybody_sees_what_waits_for_them(Engine::Postgres).await;
}

// R-CARD-6, R-LIFE-7
async fn everybody_sees_what_waits_for_them(engine: Engine) {
    let daemon = unscheduled(engine).start().await;
    for name in [
        "asked", "agreed", "half", "judged", "over", "expired", "done",
    ] {
        token_key(&daemon, name).await;
    }
    let judge = person(&daemon, "judge");
    let asked = opened(&daemon, "asked").await;
    let agreed = approved(&daemon, "agreed").await;
    let update = UpdateKeyRequest {
        tenant: "acme".into(),
        key: "half".into(),
        approvals_needed: Some(2),
        ..Default::default()
    };
    let issuer = daemon.actor("issuer");
    issuer.keys().update_key(update).await.expect("UpdateKey");
    let half = approved(&daemon, "half").await;
    let own = judge.rotations().rotate_key(rotate("judged")).await;
    let own = own.expect("RotateKey").into_inner().rotation;
    let judged = own.expect("a rotation");
    let over = opened(&daemon, "over").await;
    let answer = issuer.rotations().cancel_rotation(cancel(&over)).await;
    answer.expect("CancelRotation");
    let expired = opened(&daemon, "expired").await;
    let past = format!(
        "UPDATE rotations SET expires_at = {} WHERE id = '{}'",
        now(),
        expired.id
    );
    daemon.execute(&past).await;
    deployed(&daemon, "done").await;

    let waiting = async |who: &Actor, state: RotationState| {
        let request = ListRotationsRequest {
            tenant: "acme".into(),
            waiting_for_me: true,
            state: state.into(),
            ..Default::default()
        };
        let answer = who.rotations().list_rotations(request).await;
        let listed = answer.expect("ListRotations").into_inner().rotations;
        listed.into_iter().map(|r| r.id).collect::<Vec<_>>()
    };
    let any = RotationState::Unspecified;
    // Newest first.
    let [asked, agreed, half, judged] = [asked, agreed, half, judged].map(|r| r.id);
    let expected = [
        (daemon.actor("approver"), vec![&judged, &asked]),
        (person(&daemon, "second"), vec![&judged, &half, &asked]),
        (daemon.actor("deployer"), vec![&agreed]),
        (judge, vec![&half, &agreed, &asked]),
        (issuer, vec![]),
        (daemon.actor("officer"), vec![]),
        (daemon.actor("auditor"), vec![]),
    ];
    for (i, (who, ids)) in expected.iter().enumerate() {
        let found = waiting(who, any).await;
        assert_eq!(found.iter().collect::<Vec<_>>(), *ids, "person {i}");
    }
    let (judge, deployer) = (&expected[3].0, &expected[2].0);
    assert_eq!(waiting(judge, RotationState::Approved).await, [agreed]);
    let none = waiting(deployer, RotationState::Requested).await;
    assert!(none.is_empty());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_are_told_once_on_sqlite() {
    people_are_told_once(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_are_told_once_on_postgres() {
    people_are_told_once(Engine::Postgres).await;
}

// R-LIFE-3, R-USE-3
async fn people_are_told_once(engine: Engine) {
    let daemon = setup(engine).start().await;
    token_key(&daemon, "late").await;
    token_key(&daemon, "patient").await;
    let waiting = opened(&daemon, "patient").await;
    let alerts = async || {
        let query = "SELECT kind, entity_id FROM alerts ORDER BY kind, window_key";
        daemon.rows(query).await
    };
    looked(&daemon).await;
    assert!(alerts().await.is_empty());
    let key = get_key(&daemon, "late").await.id;
    let past = format!(
        "UPDATE keys SET next_rotation_at = {} WHERE id = '{key}'",
        now() - DAY
    );
    daemon.execute(&past).await;
    let asked = format!(
        "UPDATE rotations SET requested_at = {} WHERE id = '{}'",
        now() - 25 * HOUR,
        waiting.id
    );
    daemon.execute(&asked).await;
    until(&daemon, "SELECT COUNT(*) FROM alerts", "2").await;
    looked(&daemon).await;
    let expected = [
        vec!["KEY_OVERDUE".to_owned(), key.clone()],
        vec!["ROTATION_WAITING".to_owned(), waiting.id.clone()],
    ];
    assert_eq!(alerts().await, expected);
    let gauge = daemon.ops_get("/metrics").await.text();
    assert!(gauge.contains("claviger_keys_overdue 1"), "{gauge}");

    // Another date and another state are something new to say.
    let later = past.replace(" WHERE", " - 1 WHERE");
    daemon.execute(&later).await;
    let approver = daemon.actor("approver");
    let answer = approver
        .rotations()
        .approve_rotation(approve(&waiting))
        .await;
    answer.expect("ApproveRotation");
    let announced = format!(
        "UPDATE rotations SET announced_at = {} WHERE id = '{}'",
        now() - 25 * HOUR,
        waiting.id
    );
    daemon.execute(&announced).await;
    until(&daemon, "SELECT COUNT(*) FROM alerts", "4").await;
    looked(&daemon).await;
    assert_eq!(alerts().await.len(), 4);
    daemon.stop().await;
}
