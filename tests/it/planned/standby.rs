//! Standby versions: generated and announced before anybody needs them, and gone when nobody wants them.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_version_is_kept_announced_on_sqlite() {
    a_standby_version_is_kept_announced(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_version_is_kept_announced_on_postgres() {
    a_standby_version_is_kept_announced(Engine::Postgres).await;
}

// R-EMER-1, R-JWT-4
async fn a_standby_version_is_kept_announced(engine: Engine) {
    let daemon = setup(engine).start().await;
    let create = CreateKeyRequest {
        tenant: "acme".into(),
        name: "jwt".into(),
        purpose: KeyPurpose::TokenSigning.into(),
        algorithm: Algorithm::Es256.into(),
        owner: "team-e2e".into(),
        standby: true,
        ..Default::default()
    };
    let issuer = daemon.actor("issuer");
    let made = issuer.keys().create_key(create).await;
    let key = made.expect("CreateKey").into_inner().key.expect("a key");
    token_key(&daemon, "without").await;
    let count = format!(
        "SELECT COUNT(*) FROM key_versions WHERE key_id = '{}' AND state = 'PRE_ACTIVE' AND is_standby = 1",
        key.id
    );
    until(&daemon, &count, "1").await;
    looked(&daemon).await;
    let now = get_key(&daemon, "jwt").await;
    let [first, standby] = &now.versions[..] else {
        panic!("{} versions", now.versions.len())
    };
    assert!(standby.standby && !first.standby);
    assert_eq!(standby.state(), KeyVersionState::PreActive);
    assert!(standby.announce_time.is_some());
    assert!(published(&daemon).await.contains(&standby.kid));
    assert_eq!(get_key(&daemon, "without").await.versions.len(), 1);
    // It signs nothing, and no token under it is taken.
    assert_eq!(token(&daemon, "jwt", 60).await.kid, first.kid);

    // A planned rotation goes past it and leaves it where it is.
    let rotation = deployed(&daemon, "jwt").await;
    assert_ne!(rotation.new_kid, standby.kid);
    looked(&daemon).await;
    assert_eq!(get_key(&daemon, "jwt").await.versions.len(), 3);
    assert_eq!(state_of(&daemon, &standby.kid).await, "PRE_ACTIVE");

    // Taken by an incident, it is replaced.
    let taken = format!(
        "UPDATE key_versions SET state = 'COMPROMISED', is_standby = 0, compromised_at = {} WHERE kid = '{}'",
        super::now(),
        standby.kid
    );
    daemon.execute(&taken).await;
    until(&daemon, &count, "1").await;

    let update = UpdateKeyRequest {
        tenant: "acme".into(),
        key: "jwt".into(),
        standby: Some(false),
        ..Default::default()
    };
    let unwanted = get_key(&daemon, "jwt").await;
    let unwanted = unwanted.versions.iter().find(|v| v.standby);
    let unwanted = unwanted.expect("a standby version").kid.clone();
    assert!(published(&daemon).await.contains(&unwanted));
    // The cached row of the key is older than the change made behind the daemon's back, so read it anew.
    let answer = issuer.keys().update_key(update).await;
    answer.expect("UpdateKey");
    until(&daemon, &count, "0").await;
    assert_eq!(state_of(&daemon, &unwanted).await, "RETIRED");
    assert!(!published(&daemon).await.contains(&unwanted));
    let rows = recorded(&daemon, &key.id).await;
    let kept = rows.iter().filter(|row| *row == "KeepStandby success");
    assert_eq!(kept.count(), 3, "{rows:?}");
    daemon.stop().await;
}

/// A key that wants its standby version elsewhere gets one there, and the one that it had goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_version_follows_its_backend() {
    // The same token under another name will do.
    let spare = |text: String| {
        let begin = text.find("[backends.hsm]\n").expect("a backend");
        let end = begin + text[begin..].find("\n[kek]").expect("its end");
        let section = text[begin..end].replace("[backends.hsm]", "[backends.spare]");
        format!("{text}\n{section}\n")
    };
    let daemon = setup(Engine::Sqlite).edit(spare).start().await;
    let create = CreateKeyRequest {
        tenant: "acme".into(),
        name: "jwt".into(),
        purpose: KeyPurpose::TokenSigning.into(),
        algorithm: Algorithm::Es256.into(),
        owner: "team-e2e".into(),
        standby: true,
        ..Default::default()
    };
    let issuer = daemon.actor("issuer");
    issuer.keys().create_key(create).await.expect("CreateKey");
    let kept = |backend: &str| {
        format!(
            "SELECT COUNT(*) FROM key_versions WHERE state = 'PRE_ACTIVE' AND is_standby = 1 AND backend = '{backend}'"
        )
    };
    until(&daemon, &kept("hsm"), "1").await;
    let move_to = |backend: &str| UpdateKeyRequest {
        tenant: "acme".into(),
        key: "jwt".into(),
        standby_backend: Some(backend.into()),
        ..Default::default()
    };
    for (to, from) in [("spare", "hsm"), ("", "spare")] {
        let updated = issuer.keys().update_key(move_to(to)).await;
        updated.expect("UpdateKey");
        let to = if to.is_empty() { "hsm" } else { to };
        until(&daemon, &kept(to), "1").await;
        until(&daemon, &kept(from), "0").await;
    }
    looked(&daemon).await;
    // Each move one withdrawal and one generation, and then no more.
    assert_eq!(get_key(&daemon, "jwt").await.versions.len(), 4);
    daemon.stop().await;
}
