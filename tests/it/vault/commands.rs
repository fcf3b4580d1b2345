//! `claviger credential` and `claviger provider`, as `service`, who has the entitlements.

use super::*;
use crate::daemon::{Engine, Setup};

const SECRET: &str = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEYzYxWvUtSrQpOnMlKjIhGfEdCbA";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_persons_day_with_the_vault() {
    // The variable is seen by the commands and by the daemon, which does not look at it.
    let setup = Setup::new(Engine::Sqlite).env("BROKER_SECRET", SECRET);
    let d = setup.start().await;
    let request = UpdatePrincipalRequest {
        principal_id: d.id_of("service").await,
        add_scopes: vec!["can.use_users".into()],
        ..Default::default()
    };
    let admin = d.actor("admin");
    admin
        .principals()
        .update_principal(request)
        .await
        .expect("UpdatePrincipal");
    let file = d.path("broker.key");
    std::fs::write(&file, format!("{}\n", "k".repeat(64))).expect("a file");
    let key = format!("api_key=file:{}", file.display());
    let put = [
        "--as",
        "service",
        "credential",
        "put",
        "binance",
        "--environment",
        "testing",
        "--field",
        &key,
        "--field",
        "api_secret=env:BROKER_SECRET",
    ];
    let stored = d.cli_ok(&put).await;
    assert!(
        stored.contains("…kkkk") && !stored.contains(SECRET),
        "{stored}"
    );
    let again = d.cli(&put).await;
    assert_eq!(again.status.code(), Some(5), "{again:?}");
    let id = d.rows("SELECT id FROM credentials").await[0][0].clone();
    let id = id.as_str();

    let of = async |args: &[&str]| {
        d.cli_ok(&[&["--as", "service", "credential"][..], args].concat())
            .await
    };
    for shown in [
        of(&["list", "--owner", "me"]).await,
        of(&["get", id]).await,
        of(&["validate", id]).await,
        of(&["report", "--owner", "me"]).await,
    ] {
        assert!(
            shown.contains("binance") && !shown.contains(SECRET),
            "{shown}"
        );
    }
    let revealed = of(&["reveal", id, "--reason", "a test", "--field", "api_secret"]).await;
    assert_eq!(revealed, SECRET);
    let all = of(&["reveal", id, "--reason", "a test"]).await;
    let all: Value = serde_json::from_str(&all).expect("JSON");
    assert_eq!(all["api_secret"], SECRET);
    let nameless = [
        "--as",
        "service",
        "credential",
        "reveal",
        id,
        "--reason",
        "a test",
        "--field",
        "pin",
    ];
    assert_eq!(d.cli(&nameless).await.status.code(), Some(2));

    let planted = format!("api_secret={SECRET}");
    let argument = d
        .cli(
            &[
                &put[..8],
                &[key.as_str(), "--field", &planted],
                &["--replace"],
            ]
            .concat(),
        )
        .await;
    assert_eq!(argument.status.code(), Some(2));
    let said = String::from_utf8_lossy(&argument.stderr).into_owned();
    assert!(
        said.contains("no place") && !said.contains(SECRET),
        "{said}"
    );

    let providers = d.cli_ok(&["--as", "service", "provider", "list"]).await;
    assert!(providers.contains("kimi-k2") && providers.contains("sk-ant-api03-"));
    of(&["delete", id]).await;
    let gone = d.cli(&["--as", "service", "credential", "get", id]).await;
    assert_eq!(gone.status.code(), Some(4), "{gone:?}");
    d.stop().await;
}
