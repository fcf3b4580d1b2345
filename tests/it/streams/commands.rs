//! `claviger encrypt` and `decrypt` of more than a request can carry.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Stdio};

use tokio::io::AsyncWriteExt;

use super::{text, vault};
use crate::daemon::{Daemon, Engine};

const LENGTH: usize = (6 << 20) + 5;

fn args<'a>(command: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let common = [
        "--as", "service", command, "--tenant", "acme", "--key", "vault",
    ];
    [&common[..], more].concat()
}

fn name(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// What was begun beside a file and not finished.
fn leftovers(daemon: &Daemon) -> Vec<String> {
    let names = fs::read_dir(daemon.path(".")).expect("a directory");
    let names = names.map(|entry| entry.expect("an entry").file_name().into_string());
    let names = names.map(|name| name.expect("UTF-8"));
    names.filter(|name| name.ends_with(".part")).collect()
}

#[tokio::test]
async fn a_long_file_is_encrypted_and_decrypted_whole_or_not_at_all() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    vault(&daemon).await;
    let [plain, sealed, cut, opened] =
        ["plain", "sealed", "cut", "opened"].map(|name| daemon.path(name));
    fs::write(&plain, text(LENGTH)).expect("a file");
    let files = ["--in", name(&plain), "--out", name(&sealed)];
    daemon.cli_ok(&args("encrypt", &files)).await;
    let files = ["--in", name(&sealed), "--out", name(&opened)];
    daemon.cli_ok(&args("decrypt", &files)).await;
    assert!(fs::read(&opened).expect("a file") == text(LENGTH));
    let mode = fs::metadata(&opened).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "others may read a plaintext");

    // Cut at the border of a chunk: all that is there is right, and it is not all.
    let bytes = fs::read(&sealed).expect("a file");
    let tail = LENGTH % (16 << 10) + 16;
    fs::write(&cut, &bytes[..bytes.len() - tail]).expect("a file");
    fs::write(&opened, "what was there before").expect("a file");
    let files = ["--in", name(&cut), "--out", name(&opened)];
    let failed = daemon.cli(&args("decrypt", &files)).await;
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert_eq!(fs::read(&opened).expect("a file"), b"what was there before");
    let failed = daemon.cli(&args("decrypt", &["--in", name(&cut)])).await;
    assert_eq!(failed.status.code(), Some(1));
    assert!(text(LENGTH).starts_with(&failed.stdout) && !failed.stdout.is_empty());
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(said.contains("discard it"), "{said}");
    assert_eq!(leftovers(&daemon), [""; 0]);

    let files = ["--in", name(&plain), "--output", "json"];
    let refused = daemon.cli(&args("encrypt", &files)).await;
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn stdin_goes_through_a_stream_when_it_is_long_or_asked_to() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    vault(&daemon).await;
    let (none, asked): (&[&str], &[&str]) = (&[], &["--stream"]);
    for (length, flag) in [(LENGTH, none), (100, asked)] {
        let plaintext = text(length);
        let sealed = through(&daemon, &args("encrypt", flag), &plaintext).await;
        let opened = through(&daemon, &args("decrypt", flag), &sealed).await;
        assert!(opened == plaintext, "{length} bytes came back changed");
    }
    let begun = "SELECT data FROM audit_events WHERE data LIKE '%\"begun\"%'";
    assert_eq!(daemon.rows(begun).await.len(), 4);
    daemon.stop().await;
}

async fn through(daemon: &Daemon, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = daemon.command(args);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("claviger runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_vec();
    let write = tokio::spawn(async move { stdin.write_all(&input).await });
    let output = child.wait_with_output().await.expect("an end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    write.await.expect("no panic").expect("everything is read");
    output.stdout
}
