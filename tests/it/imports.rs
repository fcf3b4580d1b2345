//! Credentials on their way into the vault: Fernet rows, `.env` files, secret managers.

mod clouds;
mod fernet;
mod variables;

use std::{fs, path::PathBuf, process::Output};

use claviger::grpc::proto::GrantRoleRequest;
use serde_json::Value;
use tokio::time::timeout;

use crate::daemon::{Daemon, Engine, PATIENCE, Setup};

/// A daemon whose `service` may import.
async fn daemon(engine: Engine) -> Daemon {
    let daemon = Setup::new(engine).start().await;
    let service = daemon
        .rows("SELECT id FROM principals WHERE name = 'service'")
        .await;
    let grant = GrantRoleRequest {
        principal_id: service[0][0].clone(),
        role: "credential-manager".into(),
        tenant: "acme".into(),
    };
    let mut admin = daemon.actor("admin").principals();
    admin.grant_role(grant).await.expect("GrantRole");
    daemon
}

/// Writes a file beside the daemon's.
fn file(daemon: &Daemon, name: &str, text: &str) -> PathBuf {
    let path = daemon.path(name);
    fs::write(&path, text).expect("a file");
    path
}

/// Runs `claviger credential import …` as `service`, with these variables.
async fn import(daemon: &Daemon, args: &str, env: &[(&str, &str)]) -> Output {
    let words = [
        "--as",
        "service",
        "--timeout",
        "60s",
        "--output",
        "json",
        "credential",
        "import",
    ];
    let words: Vec<_> = words.into_iter().chain(args.split_whitespace()).collect();
    let running = daemon.command(&words).envs(env.iter().copied()).output();
    let output = timeout(PATIENCE, running).await;
    let output = output.unwrap_or_else(|_| panic!("{args} does not end"));
    output.expect("claviger runs")
}

/// The report of an import that ended by itself, and its exit code.
fn report(output: &Output) -> (Value, Option<i32>) {
    let said = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|e| panic!("{e}: {said}"));
    (report, output.status.code())
}

/// What an import that failed said.
fn failure(output: &Output) -> String {
    assert!(!output.status.success());
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&said).into_owned()
}

/// How many values the vault has.
async fn stored(daemon: &Daemon) -> String {
    let rows = daemon
        .rows("SELECT CAST(COUNT(*) AS BIGINT) FROM user_broker_credentials")
        .await;
    rows[0][0].clone()
}
