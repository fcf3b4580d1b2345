//! The harness itself: a daemon comes up, answers, and goes down, on both engines.

use claviger::grpc::proto::{Algorithm, KeyPurpose};

use crate::daemon::{Daemon, Engine};

async fn comes_and_goes(engine: Engine) {
    let mut daemon = Daemon::start(engine).await;
    daemon
        .key("acme", "first", KeyPurpose::Signing, Algorithm::Es256)
        .await;
    daemon.restart().await;
    assert_eq!(daemon.ops_get("/livez").await.status, 200);
    assert_eq!(
        daemon.public_get("/.well-known/jwks.json").await.status,
        200
    );
    let listed = daemon.cli_ok(&["--as", "service", "key", "list"]).await;
    assert!(listed.contains("first"), "{listed}");
    daemon.kill().await;
    daemon.restart().await;
    let rows = daemon.rows("SELECT name, created_at FROM keys").await;
    assert_eq!(rows[0][0], "first");
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_comes_and_goes_on_sqlite() {
    comes_and_goes(Engine::Sqlite).await;
}

#[tokio::test]
async fn a_daemon_comes_and_goes_on_postgres() {
    comes_and_goes(Engine::Postgres).await;
}
