//! The commands of usage, limits and alerts.

use claviger::clock::Clock;
use serde_json::Value;

use crate::daemon::{Daemon, Engine};

// R-USE-1: the daily report is a command.
#[tokio::test]
async fn a_day_is_recorded_limited_and_reported_from_the_command_line() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let record = async |id: &str, cost: &str| {
        let event = [
            "--event-id",
            id,
            "--provider",
            "openai",
            "--credential",
            "c1",
        ];
        let rest = ["--tokens-in", "7", "--cost", cost];
        let all = [&["--as", "service", "usage", "record"][..], &event, &rest].concat();
        daemon.cli(&all).await
    };
    let said = record("one", "0.5").await;
    assert!(said.status.success());
    assert_eq!(String::from_utf8_lossy(&said.stdout), "recorded\n");
    let said = record("one", "0.5").await;
    assert_eq!(String::from_utf8_lossy(&said.stdout), "duplicate\n");
    let said = record("two", "-1").await;
    assert_eq!(said.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&said.stdout).contains("INVALID_FIELD"));

    let report = ["--as", "auditor", "usage", "report", "--tenant", "acme"];
    let report = async |more: &[&str]| daemon.cli_ok(&[&report[..], more].concat()).await;
    let table = report(&["--day"]).await;
    assert!(
        table.contains("openai") && table.contains("c1") && table.contains("total"),
        "{table}"
    );
    let today = jiff::Timestamp::from_microsecond(Clock::System.now().micros()).expect("a time");
    // Midnight may have passed since.
    let csv = report(&["--begin", "26h", "--csv", "--provider", "openai"]).await;
    let lines: Vec<_> = csv.lines().collect();
    assert_eq!(
        lines[0],
        "from,provider,credential,principal,requests,errors,tokens_in,tokens_out,cost"
    );
    assert!(lines[1].ends_with("Z,openai,c1,,1,0,7,0,0.5"), "{csv}");
    let json = report(&["--output", "json", "--begin", "26h", "--by", "principal"]).await;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["totals"]["tokensIn"], "7", "{json} {today}");
    let nothing = report(&["--day", "2020-01-31"]).await;
    assert!(!nothing.contains("openai"), "{nothing}");

    let limit = ["--as", "admin", "limit"];
    let limit = async |more: &[&str]| daemon.cli_ok(&[&limit[..], more].concat()).await;
    limit(&[
        "set",
        "--tenant",
        "acme",
        "--credential",
        "c1",
        "--requests-per-minute",
        "5",
        "--day-soft",
        "1",
        "--day-hard",
        "2",
    ])
    .await;
    let listed = limit(&["list", "--tenant", "acme"]).await;
    assert!(
        listed.contains("c1") && listed.contains("1 to 2") && listed.contains("100"),
        "{listed}"
    );
    let acquire = [
        "--as",
        "service",
        "usage",
        "acquire",
        "--provider",
        "openai",
        "--credential",
        "c1",
    ];
    let said = daemon.cli_ok(&acquire).await;
    assert_eq!(said, "yes; 4 more this minute\n");
    let more = daemon
        .cli(&[&acquire[..], &["--requests", "5"]].concat())
        .await;
    assert_eq!(more.status.code(), Some(1));
    limit(&["delete", "--tenant", "acme", "--credential", "c1"]).await;
    let listed = limit(&["list", "--tenant", "acme"]).await;
    assert!(!listed.contains("c1"), "{listed}");
    daemon.stop().await;
}
