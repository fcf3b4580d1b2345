//! `claviger api-key`, `claviger pepper` and `claviger principal`.

use crate::daemon::{Daemon, Engine};

// R-OAUTH-3
#[tokio::test]
async fn a_key_is_printed_alone_and_once() {
    let d = Daemon::start(Engine::Sqlite).await;
    let create = [
        "--as",
        "service",
        "api-key",
        "create",
        "nightly",
        "--expires",
        "90d",
        "--scope",
        "claviger:crypto-user",
    ];
    let made = d.cli(&create).await;
    assert!(made.status.success());
    let key = String::from_utf8(made.stdout).expect("UTF-8");
    let key = key.trim_end();
    assert!(key.starts_with("cvk_") && key.len() == 87, "{key}");
    let known = String::from_utf8(made.stderr).expect("UTF-8");
    assert!(known.contains("nightly") && !known.contains(key), "{known}");

    let listed = d
        .cli_ok(&["--as", "admin", "api-key", "list", "--tenant", "acme"])
        .await;
    assert!(
        listed.contains("nightly") && !listed.contains(key),
        "{listed}"
    );
    let line = known
        .lines()
        .find(|line| line.starts_with("id "))
        .expect("an id");
    let id = line.split_whitespace().last().expect("an id");
    let shown = d.cli_ok(&["--as", "service", "api-key", "show", id]).await;
    assert!(shown.contains("claviger:crypto-user"), "{shown}");

    let file = d.path("new.key");
    let out = file.to_str().expect("UTF-8");
    let rotate = [
        "--as",
        "service",
        "api-key",
        "rotate",
        id,
        "--overlap",
        "1h",
        "--out",
        out,
    ];
    assert_eq!(d.cli_ok(&rotate).await, "");
    let new = std::fs::read_to_string(&file).expect("the new key");
    assert!(new.starts_with("cvk_") && new.trim_end() != key);
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&file)
        .expect("a file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    let revoke = [
        "--as", "service", "api-key", "revoke", id, "--reason", "test",
    ];
    assert!(d.cli_ok(&revoke).await.contains("REVOKED"));
    let peppers = d.cli_ok(&["--as", "admin", "pepper", "list"]).await;
    assert!(
        peppers
            .lines()
            .any(|l| l.contains("ACTIVE") && l.trim_end().ends_with('1')),
        "{peppers}"
    );
    d.stop().await;
}

#[tokio::test]
async fn an_answer_without_the_key_is_an_error() {
    let d = Daemon::start(Engine::Sqlite).await;
    let create = [
        "--as",
        "service",
        "--idempotency-key",
        "once",
        "api-key",
        "create",
        "nightly",
        "--expires",
        "2099-01-01T00:00:00Z",
    ];
    // Too far; nothing is made and nothing is kept.
    assert!(!d.cli(&create).await.status.success());
    let day = claviger::clock::Clock::System
        .now()
        .plus(std::time::Duration::from_secs(86_400));
    let day = day.to_string();
    let mut create = create.to_vec();
    *create.last_mut().expect("a time") = &day;
    assert!(d.cli(&create).await.status.success());
    let again = d.cli(&create).await;
    assert!(!again.status.success());
    assert!(again.stdout.is_empty());
    let said = String::from_utf8(again.stderr).expect("UTF-8");
    assert!(said.contains("api-key revoke"), "{said}");
    d.stop().await;
}

#[tokio::test]
async fn a_principal_is_shown_changed_suspended_and_resumed() {
    let d = Daemon::start(Engine::Sqlite).await;
    let id = d.id_of("service").await;
    let by_admin = async |words: &[&str]| {
        let words = [&["--as", "admin", "principal"], words].concat();
        d.cli_ok(&words).await
    };
    let shown = by_admin(&["show", &id]).await;
    assert!(
        shown.contains("crypto-user in acme") && shown.contains("ACTIVE"),
        "{shown}"
    );
    let update = [
        "update",
        &id,
        "--add-scope",
        "can.use_users",
        "--owner",
        "team-a",
    ];
    let shown = by_admin(&update).await;
    assert!(
        shown.contains("can.use_users") && shown.contains("team-a"),
        "{shown}"
    );
    let shown = by_admin(&["suspend", &id, "--reason", "on leave"]).await;
    assert!(shown.contains("SUSPENDED"), "{shown}");
    let shown = by_admin(&["resume", &id]).await;
    assert!(shown.contains("ACTIVE"), "{shown}");
    d.stop().await;
}
