//! The pepper: made once, rotated like any key, and kept as long as a hash is under it.

use std::time::Duration;

use claviger::{
    clients::{ApiKeysConfig, Rejection},
    model::{ApiKeyText, Role, VersionState},
};

use super::room::{HOUR, Room, caller, why};

fn counts(of: &[(&str, u64)]) -> Vec<(String, u64)> {
    of.iter()
        .map(|(state, n)| ((*state).to_owned(), *n))
        .collect()
}

// R-OAUTH-3
#[tokio::test]
async fn a_key_moves_to_the_new_pepper_when_it_is_used_and_the_old_one_ends_with_the_last() {
    let room = Room::new().await;
    let owner = room.person("ann", &[], "can.a").await;
    let me = caller(owner.clone());
    let used = room.make(&me, owner.id, "can.a").await.expect("made");
    let idle = room.make(&me, owner.id, "can.a").await.expect("made");
    assert_eq!(room.peppers().await, counts(&[("ACTIVE", 2)]));

    let rotation = room.rotate_pepper().await;
    let old = rotation.old_kid.clone();
    let both = |new, old| counts(&[("ACTIVE", new), ("VERIFY_ONLY", old)]);
    assert_eq!(room.peppers().await, both(0, 2));
    let before = room.row(used.id()).await.hash;
    for _ in 0..2 {
        assert!(room.worth(&used).await.is_ok());
    }
    // In nobody's way: the row changes with the next flush, which the listing makes too.
    assert_eq!(room.row(used.id()).await.hash.pepper, old);
    assert_eq!(room.peppers().await, both(1, 1));
    let after = room.row(used.id()).await.hash;
    assert_eq!(after.pepper, rotation.new_kid);
    assert_ne!(after.value, before.value);
    assert!(room.worth(&used).await.is_ok());
    let wrong = ApiKeyText::generate(used.id()).expect("a key");
    assert_eq!(room.worth(&wrong).await, Err(Rejection::WrongSecret));
    let new = room.make(&me, owner.id, "can.a").await.expect("made");
    assert_eq!(room.row(new.id()).await.hash.pepper, rotation.new_kid);

    // The old version waits for the last key under it, however long its grace window is over.
    room.clock.advance(8 * 24 * HOUR);
    assert!(room.rotations.past_grace().await.expect("read").is_empty());
    room.revoke(&me, idle.id()).await.expect("revoked");
    assert_eq!(
        room.rotations.past_grace().await.expect("read"),
        [rotation.id]
    );
    assert_eq!(room.peppers().await, both(2, 0));
}

// R-OAUTH-3
#[tokio::test]
async fn a_pepper_that_keys_are_hashed_under_is_neither_revoked_nor_destroyed() {
    let room = Room::new().await;
    let owner = room.person("ann", &[], "").await;
    let me = caller(owner.clone());
    let key = room.make(&me, owner.id, "").await.expect("made");
    let old = room.rotate_pepper().await.old_kid;
    let officer = room.person("officer", &[Role::SecurityOfficer], "").await;
    let revoke = async || {
        let pepper = room.pepper().await;
        let resource = claviger::model::Resource {
            tenant: pepper.key.tenant.clone(),
            entity: claviger::model::Entity::Key {
                id: pepper.key.id,
                purpose: pepper.key.purpose,
            },
        };
        let (keys, kid) = (room.keys.clone(), old.clone());
        let act = async move |permit| keys.revoke(permit, pepper, kid, "test".into()).await;
        let answer = |_: &_, _: &_| claviger::grpc::proto::ListApiKeysResponse::default();
        let action = claviger::model::Action::RevokeKeyVersion;
        let by = caller(officer.clone());
        let revoked = room.gate.mutate(&by, action, resource, answer, act);
        revoked.await
    };
    assert_eq!(why(revoke().await), "VERSION_IN_USE");
    let state = async || {
        let pepper = room.pepper().await;
        pepper.version(&old).expect("a version").state()
    };
    assert_eq!(state().await, VersionState::VerifyOnly);
    assert!(room.worth(&key).await.is_ok());
    // It has moved by then.
    room.api_keys.flush_uses().await.expect("written");
    assert_eq!(why(revoke().await), "none");
    assert_eq!(state().await, VersionState::Retired);
    assert!(room.worth(&key).await.is_ok());
}

// R-OPS-1
#[tokio::test]
async fn a_key_that_another_replica_has_moved_is_known_again() {
    let room = Room::new().await;
    let owner = room.person("ann", &[], "").await;
    let key = room.make(&caller(owner.clone()), owner.id, "").await;
    let key = key.expect("made");
    // Two replicas of one daemon: each has memory of its own.
    let twin = claviger::clients::ApiKeys::new(
        room.db.clone(),
        room.keys.clone(),
        room.directory.clone(),
        room.clock.clone(),
        ApiKeysConfig::default(),
    );
    let twin = twin.expect("API keys");
    assert!(twin.admit(&key, true).await.expect("an answer").is_ok());
    let rotation = room.rotate_pepper().await;
    assert!(room.worth(&key).await.is_ok());
    room.api_keys.flush_uses().await.expect("written");
    let mut tx = room.db.begin().await.expect("a transaction");
    let pepper = room.pepper().await;
    let mut old = pepper
        .version(&rotation.old_kid)
        .expect("a version")
        .version
        .clone();
    let event = claviger::model::key::VersionEvent::GraceOver;
    let before = old.advance(event, room.clock.now()).expect("allowed");
    assert!(tx.update_version(&old, before).await.expect("written"));
    tx.commit().await.expect("committed");
    room.keys.forget(pepper.key.id);
    let admitted = twin.admit(&key, true).await.expect("an answer");
    assert!(
        admitted.is_ok(),
        "it still has the old hash in memory: {admitted:?}"
    );
}

#[tokio::test]
async fn two_replicas_that_start_together_make_one_pepper() {
    let room = Room::new().await;
    let config = ApiKeysConfig {
        pepper_key: "another-pepper".to_owned(),
        ..Default::default()
    };
    let replica = || {
        let (keys, people) = (room.keys.clone(), room.directory.clone());
        let made = claviger::clients::ApiKeys::new(
            room.db.clone(),
            keys,
            people,
            room.clock.clone(),
            config.clone(),
        );
        made.expect("API keys")
    };
    let (one, two) = (replica(), replica());
    let made = tokio::join!(one.make_pepper(&room.gate), two.make_pepper(&room.gate));
    made.0.expect("a pepper");
    made.1.expect("a pepper");
    assert_eq!(room.pepper().await.versions().len(), 1);
    room.clock.advance(Duration::from_secs(1));
    one.make_pepper(&room.gate).await.expect("it is there");
}
