//! What a key brings along, and what it does not.

use claviger::{
    clients::Rejection,
    directory::StateChange,
    error::Reason,
    model::{ApiKeyId, ApiKeyText, Caller, Credential, Role},
};

use super::room::{Room, caller, why};

// R-OAUTH-2
#[tokio::test]
async fn a_key_brings_along_what_it_was_made_for_as_far_as_its_owner_holds_it() {
    let room = Room::new().await;
    let roles = [Role::CryptoUser, Role::Auditor];
    let owner = room.person("ann", &roles, "can.a can.b").await;
    let me = caller(owner.clone());
    let key = room.make(&me, owner.id, "can.a claviger:crypto-user").await;
    let key = key.expect("made");
    let worth = room.worth(&key).await.expect("admitted");
    assert_eq!(worth.to_string(), "can.a claviger:crypto-user");
    let nothing = room.make(&me, owner.id, "").await.expect("made");
    assert_eq!(
        room.worth(&nothing).await.expect("admitted").to_string(),
        ""
    );
    let other = room.make(&me, owner.id, "can.b").await.expect("made");
    // At every use, and not only when it is made.
    room.take_scopes(owner.id, "can.a can.b").await;
    let worth = room.worth(&key).await.expect("admitted");
    assert_eq!(worth.to_string(), "claviger:crypto-user");
    assert_eq!(room.worth(&other).await.expect("admitted").to_string(), "");
}

// R-OAUTH-2
#[tokio::test]
async fn a_key_is_not_made_for_more_than_its_owner_holds() {
    let room = Room::new().await;
    let owner = room.person("ann", &[Role::CryptoUser], "can.a").await;
    let me = caller(owner.clone());
    for scopes in ["can.b", "can.a can.b", "claviger:auditor"] {
        for by in [&me, &room.admin] {
            let refused = room.make(by, owner.id, scopes).await;
            assert_eq!(why(refused), "SCOPE_EXCEEDED", "{scopes}");
        }
    }
    let stranger = caller(room.person("bob", &[], "can.a").await);
    assert_eq!(
        why(room.make(&stranger, owner.id, "can.a").await),
        "PERMISSION_DENIED"
    );
}

/// The caller that a key makes of somebody.
async fn by_key(room: &Room, key: &ApiKeyText) -> Caller {
    let admitted = room.api_keys.admit(key, true).await.expect("an answer");
    let admitted = admitted.expect("admitted");
    Caller {
        principal: admitted.principal,
        credential: Credential::ApiKey(key.id()),
        request_id: "by-key".into(),
        idempotency: None,
    }
}

// R-OAUTH-2
#[tokio::test]
async fn nobody_gets_more_with_a_key_than_the_key_may() {
    let room = Room::new().await;
    let roles = [Role::PrincipalAdmin, Role::CryptoUser];
    let owner = room.person("ann", &roles, "can.a can.b").await;
    let me = caller(owner.clone());
    let small = room.make(&me, owner.id, "can.a").await.expect("made");
    let large = room
        .make(&me, owner.id, "can.a can.b claviger:principal-admin")
        .await
        .expect("made");
    let small = by_key(&room, &small).await;
    for scopes in ["can.b", "claviger:principal-admin", "can.a can.b"] {
        let refused = room.make(&small, owner.id, scopes).await;
        assert_eq!(why(refused), "SCOPE_EXCEEDED", "{scopes}");
    }
    // Whose successor it would hold.
    let refused = room.rotate(&small, large.id(), None).await;
    assert_eq!(why(refused), "SCOPE_EXCEEDED");
    assert_eq!(room.row(large.id()).await.replaced_by, None);
    // The role did not come along, so neither did what it permits.
    let other = room.person("bob", &[], "can.a").await;
    let refused = room.make(&small, other.id, "").await;
    assert_eq!(why(refused), "PERMISSION_DENIED");
    // With a key that brings the role, it may; and gives no more than it has itself.
    let large = by_key(&room, &large).await;
    assert_eq!(why(room.make(&large, other.id, "can.a").await), "none");
    let third = room.person("eve", &[], "can.c").await;
    assert_eq!(
        why(room.make(&large, third.id, "can.c").await),
        "SCOPE_EXCEEDED"
    );
}

// R-OAUTH-4
#[tokio::test]
async fn a_key_may_have_itself_rotated_also_when_its_owner_has_lost_something() {
    let room = Room::new().await;
    let owner = room.person("ann", &[], "can.a can.b").await;
    let key = room
        .make(&caller(owner.clone()), owner.id, "can.a can.b")
        .await;
    let key = key.expect("made");
    room.take_scopes(owner.id, "can.b").await;
    let itself = by_key(&room, &key).await;
    let next = room.rotate(&itself, key.id(), None).await.expect("rotated");
    let worth = room.worth(&next).await.expect("admitted");
    assert_eq!(worth.to_string(), "can.a");
    assert_eq!(room.row(next.id()).await.scopes.to_string(), "can.a can.b");
}

#[tokio::test]
async fn a_suspended_owner_takes_every_key_along() {
    let room = Room::new().await;
    let owner = room.person("ann", &[], "can.a").await;
    let me = caller(owner.clone());
    let key = room.make(&me, owner.id, "can.a").await.expect("made");
    assert!(room.worth(&key).await.is_ok());
    room.change_state(owner.id, StateChange::Suspend).await;
    assert_eq!(room.worth(&key).await, Err(Rejection::OwnerSuspended));
    let refused = room.make(&room.admin, owner.id, "can.a").await;
    assert_eq!(why(refused), "API_KEY_STATE");
    let refused = room.rotate(&room.admin, key.id(), None).await;
    assert_eq!(why(refused), "API_KEY_STATE");
    room.change_state(owner.id, StateChange::Resume).await;
    assert!(room.worth(&key).await.is_ok());
}

#[tokio::test]
async fn an_unknown_id_and_a_wrong_secret_get_one_answer() {
    let room = Room::new().await;
    let owner = room.person("ann", &[], "").await;
    let me = caller(owner.clone());
    let key = room.make(&me, owner.id, "").await.expect("made");
    let wrong = ApiKeyText::generate(key.id()).expect("a key");
    let unknown = ApiKeyText::generate(ApiKeyId::random()).expect("a key");
    let ended = room.make(&me, owner.id, "").await.expect("made");
    room.revoke(&me, ended.id()).await.expect("revoked");
    let wrong_and_ended = ApiKeyText::generate(ended.id()).expect("a key");
    for _ in 0..2 {
        let of = [
            (room.worth(&unknown).await, Rejection::Unknown),
            (room.worth(&wrong).await, Rejection::WrongSecret),
            // Whoever does not know the secret does not learn that the key has ended either.
            (room.worth(&wrong_and_ended).await, Rejection::WrongSecret),
            (room.worth(&ended).await, Rejection::Revoked),
        ];
        let mut told = Vec::new();
        for (worth, expected) in of {
            let rejection = worth.expect_err("not admitted");
            assert_eq!(rejection, expected);
            let error = rejection.error();
            assert_eq!(error.reason(), Reason::CredentialInvalid);
            told.push(error.message().to_owned());
        }
        told.dedup();
        assert_eq!(told.len(), 1, "{told:?}");
    }
    assert!(room.worth(&key).await.is_ok(), "nobody locks the owner out");
    // Nor does a source of many failures, from where the key was not seen yet.
    room.api_keys.forget_all();
    for (key, is_valid) in [(&unknown, false), (&wrong, false), (&key, true)] {
        let admitted = room.api_keys.admit(key, false).await;
        assert_eq!(admitted.expect("an answer").is_ok(), is_valid);
    }
}

#[tokio::test]
async fn one_principal_has_a_bounded_number_of_keys() {
    let config = claviger::clients::ApiKeysConfig {
        max_per_owner: 2,
        ..Default::default()
    };
    let room = Room::with(config).await;
    let owner = room.person("ann", &[], "").await;
    let me = caller(owner.clone());
    let first = room.make(&me, owner.id, "").await.expect("made");
    room.make(&me, owner.id, "").await.expect("made");
    assert_eq!(why(room.make(&me, owner.id, "").await), "API_KEY_STATE");
    // A rotation makes one in the place of another.
    assert_eq!(why(room.rotate(&me, first.id(), None).await), "none");
    let other = room.person("bob", &[], "").await;
    let made = room.make(&caller(other.clone()), other.id, "").await;
    assert_eq!(why(made), "none");
}
