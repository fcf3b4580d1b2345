//! Backup and restore, with the product's own commands: what comes back, and what an older copy must not undo. R-OPS-6,
//! R-EMER-1, R-LIFE-6.

use std::{fs, path::Path};

use claviger::grpc::proto::*;

use crate::{
    checkpoints::{changed, covered, with_key},
    daemon::{Daemon, Engine},
    incidents::{declared, issue, issued, token_key, verdict},
};

/// `claviger ARGS --config FILE`: exit code, and what it said.
async fn with_config(daemon: &Daemon, args: &[&str]) -> (i32, String) {
    let config = daemon.config_path();
    let config = ["--config", config.to_str().expect("UTF-8")];
    let output = daemon.cli(&[args, &config].concat()).await;
    let said = [output.stdout, output.stderr].concat();
    let code = output.status.code().expect("an exit code");
    (code, String::from_utf8(said).expect("UTF-8"))
}

async fn backup(daemon: &Daemon, name: &str) -> String {
    let to = daemon.path(name).to_str().expect("UTF-8").to_owned();
    let (code, said) = with_config(daemon, &["backup", "--to", &to]).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("not in it: the keys of the token"), "{said}");
    to
}

async fn load(daemon: &Daemon, from: &str) -> (i32, String) {
    with_config(daemon, &["restore", "load", "--from", from]).await
}

async fn status(daemon: &Daemon) -> (i32, String) {
    with_config(daemon, &["restore", "status"]).await
}

async fn acknowledge(daemon: &Daemon) -> (i32, String) {
    let args = [
        "restore",
        "acknowledge",
        "--by",
        "olga@ops",
        "--reason",
        "disk failure, ticket 17",
    ];
    with_config(daemon, &args).await
}

/// `claviger audit verify` with the checkpoints, by an auditor who knows of so many restores.
async fn verify(daemon: &Daemon, restores: &str) -> (i32, String) {
    let [file, key] = ["checkpoints", "checkpoints.pem"].map(|name| daemon.path(name));
    let (file, key) = (file.to_str().expect("UTF-8"), key.to_str().expect("UTF-8"));
    let args = ["--as", "auditor", "audit", "verify", "--checkpoints", file];
    let keys = ["--checkpoint-key", key, "--restores", restores];
    let output = daemon.cli(&[&args[..], &keys[..]].concat()).await;
    let said = [output.stdout, output.stderr].concat();
    let code = output.status.code().expect("an exit code");
    (code, String::from_utf8(said).expect("UTF-8"))
}

fn receipt(declared: &DeclareCompromiseResponse) -> i64 {
    declared.receipt.as_ref().expect("a receipt").seq
}

/// A copy that has everything is served without a word; one that was changed, or is of another kind, is not loaded.
async fn a_backup_comes_back(engine: Engine) {
    let (mut daemon, _) = with_key(engine, Algorithm::Es256).await;
    token_key(&daemon, "jwt").await;
    let token = issued(&daemon, "jwt").await;
    let other = backup(&daemon, "earlier").await;
    let status_of_running = status(&daemon).await;
    assert_eq!(status_of_running.0, 0, "{}", status_of_running.1);
    daemon.terminate().await;
    // With the daemon down nothing comes behind the backup.
    let from = backup(&daemon, "backup").await;
    let (code, said) = with_config(&daemon, &["backup", "--to", &from]).await;
    assert_eq!((code, said.contains("File exists")), (2, true), "{said}");

    let (code, said) = load(&daemon, &from).await;
    assert_ne!(code, 0, "over a database that is there");
    assert!(said.contains("database.url"), "{said}");
    daemon.lose_database().await;
    let (manifest, copy) = files(Path::new(&other));
    let bytes = fs::read(&copy).expect("a copy");
    let mut changed = bytes.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    fs::write(&copy, &changed).expect("a copy");
    let (code, said) = load(&daemon, &other).await;
    assert_eq!((code, said.contains("it was changed")), (1, true), "{said}");
    fs::write(&copy, &bytes).expect("a copy");
    fs::remove_file(manifest).expect("a manifest");
    let (code, said) = load(&daemon, &other).await;
    assert_eq!((code, said.contains("manifest.json")), (2, true), "{said}");

    let (code, said) = load(&daemon, &from).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("the daemons can start"), "{said}");
    daemon.up().await.expect("it starts");
    assert!(verdict(&daemon, &token.token).await.valid);
    issued(&daemon, "jwt").await;
    let (code, said) = verify(&daemon, "0").await;
    assert_eq!(code, 0, "{said}");
    daemon.stop().await;
}

fn files(directory: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
    let mut names: Vec<_> = fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    names.sort();
    let [copy, manifest] = <[_; 2]>::try_from(names).expect("two files");
    use std::os::unix::fs::PermissionsExt;
    for file in [&copy, &manifest] {
        let mode = fs::metadata(file).expect("a file").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", file.display());
    }
    (manifest, copy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_comes_back_on_sqlite() {
    a_backup_comes_back(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_comes_back_on_postgres() {
    a_backup_comes_back(Engine::Postgres).await;
}

/// The officer froze a version; an operator puts yesterday's copy in place. Nobody serves over it before somebody stands for
/// it, and what was frozen is frozen then.
async fn an_older_copy_does_not_undo_a_freeze(engine: Engine) {
    let (mut daemon, _) = with_key(engine, Algorithm::Es256).await;
    let key = token_key(&daemon, "jwt").await;
    let kid = key.versions[0].kid.clone();
    let stolen = issued(&daemon, "jwt").await.token;
    let copy = backup(&daemon, "backup").await;
    let seq = receipt(&declared(&daemon, "jwt", &kid).await);
    let later = token_key(&daemon, "later").await.versions[0].kid.clone();
    let seq = receipt(&declared(&daemon, "later", &later).await).max(seq);
    covered(&daemon, seq).await;
    // The checkpoint behind the freeze comes at once; so that it names both.
    let checkpoints = daemon.path("checkpoints");
    let frozen = |kid: &str| {
        let text = fs::read_to_string(&checkpoints).unwrap_or_default();
        text.contains(&format!("\nfrozen {kid}\n"))
    };
    daemon.until(async || frozen(&kid) && frozen(&later)).await;
    let running = acknowledge(&daemon).await;
    assert_ne!(running.0, 0, "beside a daemon at work: {}", running.1);
    assert!(!verdict(&daemon, &stolen).await.valid);
    daemon.terminate().await;

    daemon.lose_database().await;
    let (code, said) = load(&daemon, &copy).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("the database was set back"), "{said}");
    let why = daemon.up().await.expect_err("it must not start");
    assert!(
        why.contains("the database was set back: it ends at"),
        "{why}"
    );
    assert!(why.contains("claviger restore acknowledge"), "{why}");
    let (code, said) = status(&daemon).await;
    assert_eq!(code, 1, "{said}");
    // Not by somebody without a name, not without a reason.
    for (by, reason) in [("", "x"), ("x", " "), ("x", "a\nb")] {
        let args = ["restore", "acknowledge", "--by", by, "--reason", reason];
        assert_eq!(with_config(&daemon, &args).await.0, 2, "{by:?} {reason:?}");
    }
    let version = format!("SELECT state FROM key_versions WHERE kid = '{kid}'");
    assert_eq!(daemon.rows(&version).await.concat(), ["ACTIVE"]);

    let (code, said) = acknowledge(&daemon).await;
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains(&format!("again: version {kid} of key jwt")),
        "{said}"
    );
    assert!(
        said.contains(&format!("not in this copy: version {later}")),
        "{said}"
    );
    assert_eq!(daemon.rows(&version).await.concat(), ["COMPROMISED"]);
    let (code, said) = acknowledge(&daemon).await;
    assert_eq!(
        (code, said.contains("nothing to acknowledge")),
        (5, true),
        "{said}"
    );
    daemon.up().await.expect("it starts");
    assert_eq!(
        verdict(&daemon, &stolen).await.rejection(),
        TokenRejection::CompromisedKid
    );
    // The key has a successor by itself, the incident waits for people.
    let service = daemon.actor("service");
    daemon
        .until(async || service.tokens().issue_token(issue("jwt")).await.is_ok())
        .await;
    let token = issued(&daemon, "jwt").await.token;
    assert!(verdict(&daemon, &token).await.valid);
    let request = ListIncidentsRequest {
        tenant: "acme".into(),
        ..Default::default()
    };
    let officer = daemon.actor("officer");
    let incidents = officer.incidents().list_incidents(request).await;
    let incidents = incidents.expect("ListIncidents").into_inner().incidents;
    let [incident] = incidents.as_slice() else {
        panic!("{incidents:?}");
    };
    assert_eq!(
        (incident.kid.as_str(), incident.state()),
        (kid.as_str(), IncidentState::Open)
    );
    assert!(
        incident.reason.contains("disk failure, ticket 17"),
        "{incident:?}"
    );

    // The auditor sees it, and has to know of it.
    let row =
        "SELECT actor_type, outcome, data FROM audit_events WHERE action = 'AcknowledgeRestore'";
    let rows = daemon.rows(row).await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0][..2], ["job", "success"]);
    assert!(rows[0][2].contains(r#""by":"olga@ops""#), "{rows:?}");
    covered_again(&daemon).await;
    for (known, code) in [("0", 1), ("1", 0), ("2", 1)] {
        let (found, said) = verify(&daemon, known).await;
        assert_eq!(found, code, "{known}: {said}");
        assert!(said.contains("olga@ops"), "{said}");
    }

    // The same copy again: this time the acknowledgement is lost with the rest.
    daemon.terminate().await;
    daemon.lose_database().await;
    assert_eq!(load(&daemon, &copy).await.0, 0);
    daemon.up().await.expect_err("it must not start");
    let (code, said) = acknowledge(&daemon).await;
    assert_eq!(code, 0, "{said}");
    daemon.up().await.expect("it starts");
    assert_eq!(
        verdict(&daemon, &stolen).await.rejection(),
        TokenRejection::CompromisedKid
    );
    covered_again(&daemon).await;
    let (code, said) = verify(&daemon, "1").await;
    assert_eq!(code, 0, "{said}");

    // Who only takes rows away has acknowledged nothing.
    daemon.terminate().await;
    daemon.tampered();
    daemon.execute("DELETE FROM restores").await;
    daemon.restart().await;
    let (code, said) = verify(&daemon, "0").await;
    assert_eq!(code, 1, "{said}");
    daemon.stop().await;
}

/// Waits until the last checkpoint is of the history that goes on.
async fn covered_again(daemon: &Daemon) {
    let head = "SELECT seq FROM audit_heads WHERE stream = 'admin'";
    let head: i64 = daemon.rows(head).await[0][0].parse().expect("a number");
    let request = UpdateKeyRequest {
        tenant: "acme".into(),
        key: "jwt".into(),
        owner: Some(format!("team-{head}")),
        ..Default::default()
    };
    let answer = daemon.actor("issuer").keys().update_key(request).await;
    let receipt = answer.expect("UpdateKey").into_inner().receipt;
    let receipt = receipt.expect("a receipt");
    let file = daemon.path("checkpoints");
    let known = "SELECT stream FROM audit_events WHERE stream = 'admin' AND hash = ";
    daemon
        .until(async || {
            let text = fs::read_to_string(&file).unwrap_or_default();
            let last = text.lines().rfind(|line| line.starts_with("admin "));
            let Some((seq, hash)) = last.and_then(|line| line[6..].split_once(' ')) else {
                return false;
            };
            let hash = match daemon.engine() {
                Engine::Sqlite => format!("x'{hash}'"),
                Engine::Postgres => format!("'\\x{hash}'::bytea"),
            };
            seq.parse::<i64>().is_ok_and(|seq| seq >= receipt.seq)
                && !daemon.rows(&format!("{known}{hash}")).await.is_empty()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_does_not_undo_a_freeze_on_sqlite() {
    an_older_copy_does_not_undo_a_freeze(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_does_not_undo_a_freeze_on_postgres() {
    an_older_copy_does_not_undo_a_freeze(Engine::Postgres).await;
}

/// A file that cannot be read says nothing about the database, so the start is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_file_that_cannot_be_read_stops_the_start() {
    let (mut daemon, _) = with_key(Engine::Sqlite, Algorithm::Es256).await;
    let seq = changed(&daemon, "team-one").await;
    covered(&daemon, seq).await;
    daemon.terminate().await;
    let file = daemon.path("checkpoints");
    fs::rename(&file, daemon.path("aside")).expect("moved");
    fs::create_dir(&file).expect("a directory");
    let why = daemon.up().await.expect_err("it must not start");
    assert!(why.contains("audit.checkpoint.file"), "{why}");
    fs::remove_dir(&file).expect("removed");
    daemon.up().await.expect("it starts without one");
    daemon.stop().await;
}

/// Without checkpoints nothing can be compared, and the command says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_checkpoints_there_is_nothing_to_acknowledge() {
    let mut daemon = Daemon::start(Engine::Sqlite).await;
    daemon.terminate().await;
    let (code, said) = acknowledge(&daemon).await;
    assert_eq!(
        (code, said.contains("[audit.checkpoint]")),
        (2, true),
        "{said}"
    );
    daemon.stop().await;
}
