//! How keys end: by rotation, by revocation, by time.

use std::time::Duration;

use claviger::{
    clients::Rejection,
    model::{Action, ApiKeyState, Job, Timestamp},
};

use super::room::{BEGIN, HOUR, Room, caller, why};

// R-OAUTH-4
#[tokio::test]
async fn a_rotated_key_is_valid_until_the_overlap_is_over() {
    let room = Room::new().await;
    let owner = room.person("ann", &[], "can.a").await;
    let me = caller(owner.clone());
    let old = room.make(&me, owner.id, "can.a").await.expect("made");
    let new = room.rotate(&me, old.id(), Some(HOUR)).await;
    let new = new.expect("rotated");
    assert!(room.worth(&old).await.is_ok());
    assert!(room.worth(&new).await.is_ok());
    let (old_row, new_row) = (room.row(old.id()).await, room.row(new.id()).await);
    assert_eq!(old_row.replaced_by, Some(new.id()));
    assert_eq!(new_row.replaces, Some(old.id()));
    let begin = Timestamp::from_seconds(BEGIN);
    assert_eq!(old_row.expires_at, begin.plus(HOUR));
    assert_eq!(new_row.expires_at, begin.plus(10 * HOUR));
    assert_eq!(new_row.term, 10 * HOUR);
    room.clock.advance(HOUR - Duration::from_micros(1));
    assert!(room.worth(&old).await.is_ok());
    room.clock.advance(Duration::from_micros(1));
    assert_eq!(room.worth(&old).await, Err(Rejection::Expired));
    assert!(room.worth(&new).await.is_ok());
}

// R-OAUTH-4
#[tokio::test]
async fn an_overlap_makes_no_key_last_longer() {
    let room = Room::new().await;
    let owner = room.person("ann", &[], "").await;
    let me = caller(owner.clone());
    let old = room.make(&me, owner.id, "").await.expect("made");
    let ends = room.row(old.id()).await.expires_at;
    room.clock.advance(9 * HOUR);
    // The default is a day, and there is an hour left.
    room.rotate(&me, old.id(), None).await.expect("rotated");
    assert_eq!(room.row(old.id()).await.expires_at, ends);
    let none = room.make(&me, owner.id, "").await.expect("made");
    let next = room.rotate(&me, none.id(), Some(Duration::ZERO)).await;
    assert_eq!(room.worth(&none).await, Err(Rejection::Expired));
    assert!(room.worth(&next.expect("rotated")).await.is_ok());
}

// R-OAUTH-4
#[tokio::test]
async fn only_a_valid_key_without_a_successor_is_rotated() {
    let room = Room::new().await;
    let owner = room.person("ann", &[], "").await;
    let me = caller(owner.clone());
    let rotated = room.make(&me, owner.id, "").await.expect("made");
    room.rotate(&me, rotated.id(), None).await.expect("rotated");
    let revoked = room.make(&me, owner.id, "").await.expect("made");
    room.revoke(&me, revoked.id()).await.expect("revoked");
    let expired = room.make(&me, owner.id, "").await.expect("made");
    let long = room.make(&me, owner.id, "").await.expect("made");
    let over = Some(Duration::from_secs(7 * 24 * 3600 + 1));
    let refused = room.rotate(&me, long.id(), over).await;
    assert_eq!(why(refused), "INVALID_FIELD");
    room.clock.advance(10 * HOUR);
    for key in [&rotated, &revoked, &expired] {
        let refused = room.rotate(&me, key.id(), None).await;
        assert_eq!(why(refused), "API_KEY_STATE");
    }
}

// R-OAUTH-4
#[tokio::test]
async fn a_revoked_key_is_over_at_once_and_for_ever() {
    let room = Room::new().await;
    let owner = room.person("ann", &[], "").await;
    let me = caller(owner.clone());
    let key = room.make(&me, owner.id, "").await.expect("made");
    assert!(room.worth(&key).await.is_ok(), "it is in memory now");
    room.revoke(&room.admin, key.id()).await.expect("revoked");
    assert_eq!(room.worth(&key).await, Err(Rejection::Revoked));
    assert_eq!(why(room.revoke(&me, key.id()).await), "API_KEY_STATE");
    let row = room.row(key.id()).await;
    assert_eq!(row.state, ApiKeyState::Revoked);
    assert_eq!(row.ended_by, Some(room.admin.principal.id));
    assert_eq!(row.end_reason, "test");
}

// R-OAUTH-4
#[tokio::test]
async fn a_key_expires_by_the_clock_whether_a_job_has_looked_or_not() {
    let room = Room::new().await;
    let owner = room.person("ann", &[], "").await;
    let key = room.make(&caller(owner.clone()), owner.id, "").await;
    let key = key.expect("made");
    room.clock.advance(10 * HOUR - Duration::from_micros(1));
    assert!(room.worth(&key).await.is_ok());
    let (due, next) = room
        .api_keys
        .overdue(&Default::default(), 10)
        .await
        .expect("a page");
    assert!(due.is_empty() && next.is_none());
    room.clock.advance(Duration::from_micros(1));
    assert_eq!(room.worth(&key).await, Err(Rejection::Expired));
    assert_eq!(room.row(key.id()).await.state, ApiKeyState::Active);
    let (due, _) = room
        .api_keys
        .overdue(&Default::default(), 10)
        .await
        .expect("a page");
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].as_ref().expect("read").id, key.id());
}

// R-OAUTH-4
#[tokio::test]
async fn the_last_use_is_kept_without_a_write_per_call() {
    let room = Room::new().await;
    let owner = room.person("ann", &[], "").await;
    let key = room.make(&caller(owner.clone()), owner.id, "").await;
    let key = key.expect("made");
    assert_eq!(room.row(key.id()).await.last_used_at, None);
    room.clock.advance(HOUR);
    room.worth(&key).await.expect("admitted");
    assert_eq!(room.row(key.id()).await.last_used_at, None, "no write yet");
    let used = Some(room.clock.now());
    let (_, found) = room.api_keys.find(key.id()).await.expect("found");
    assert_eq!(
        found.expect("a key").last_used_at,
        used,
        "and known all the same"
    );
    room.api_keys.flush_uses().await.expect("written");
    assert_eq!(room.row(key.id()).await.last_used_at, used);
    // A refused use is none.
    room.clock.advance(10 * HOUR);
    room.worth(&key).await.expect_err("expired");
    room.api_keys.flush_uses().await.expect("written");
    assert_eq!(room.row(key.id()).await.last_used_at, used);
}

// R-OAUTH-4, R-USE-3
#[tokio::test]
async fn the_end_of_a_key_is_announced_once() {
    let room = Room::new().await;
    let owner = room.person("ann", &[], "").await;
    let me = caller(owner.clone());
    let key = room.make(&me, owner.id, "").await.expect("made");
    let rotated = room.make(&me, owner.id, "").await.expect("made");
    let term = room.db.take_lease("scheduler", "test", HOUR * 24).await;
    let term = term.expect("an answer").expect("a term");
    room.clock.advance(5 * HOUR - Duration::from_micros(1));
    let expiring = async || room.api_keys.expiring(10).await.expect("read");
    assert!(
        expiring().await.is_empty(),
        "it lives ten hours: not in the first half"
    );
    room.rotate(&me, rotated.id(), None).await.expect("rotated");
    room.clock.advance(Duration::from_micros(1));
    let due = expiring().await;
    assert_eq!(due.len(), 1, "a rotated key ends on purpose: {due:?}");
    assert_eq!(due[0].id, key.id());
    for _ in 0..2 {
        room.api_keys.warn(&term, &due[0]).await.expect("told");
    }
    assert!(expiring().await.is_empty());
    let alerts = room
        .db
        .alerts_about(&key.id().to_string())
        .await
        .expect("read");
    assert_eq!(alerts.len(), 1);
    assert_eq!(alerts[0].kind, "API_KEY_EXPIRING");
    assert_eq!(alerts[0].tenant, owner.tenant);
    assert!(alerts[0].text.contains("ann"), "{}", alerts[0].text);
}

// R-OAUTH-5, R-OPS-1
#[tokio::test]
async fn the_job_writes_the_end_of_a_key_under_its_term() {
    let room = Room::new().await;
    let owner = room.person("ann", &[], "").await;
    let key = room.make(&caller(owner.clone()), owner.id, "").await;
    let key = key.expect("made");
    let term = room.db.take_lease("scheduler", "test", HOUR * 24).await;
    let term = term.expect("an answer").expect("a term");
    let expire = async || {
        let (resource, _) = room.api_keys.find(key.id()).await.expect("found");
        let (api_keys, term, id) = (room.api_keys.clone(), term.clone(), key.id());
        let act = async move |permit| api_keys.expire(permit, term, id).await;
        let work = room
            .gate
            .work(Job::Scheduler, Action::ExpireApiKey, resource, act);
        work.await
    };
    assert_eq!(why(expire().await), "CONFLICT", "its time is not over");
    room.clock.advance(10 * HOUR);
    let (_, receipt) = expire().await.expect("expired");
    let row = room.row(key.id()).await;
    assert_eq!(row.state, ApiKeyState::Expired);
    assert_eq!(row.ended_at, Some(room.clock.now()));
    assert_eq!(why(expire().await), "CONFLICT", "once");
    let rows = room
        .db
        .audit_chain("admin", receipt.seq, 1)
        .await
        .expect("rows");
    assert_eq!(rows[0].action, "ExpireApiKey");
    assert_eq!(rows[0].entity_id, key.id().to_string());
    assert_eq!(rows[0].actor, Job::Scheduler.principal().id.to_string());
    assert_eq!(
        why(room.revoke(&room.admin, key.id()).await),
        "API_KEY_STATE"
    );
}
