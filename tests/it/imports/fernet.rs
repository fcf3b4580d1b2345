//! Rows that a user service encrypted with Fernet.

use std::{collections::BTreeMap, fs, os::unix::process::ExitStatusExt};

use claviger::grpc::proto::*;
use serde::Deserialize;
use serde_json::json;

use super::{daemon, failure, file, import, report, stored};
use crate::{
    daemon::{Daemon, Engine},
    foreign::script,
};

/// What fernet.py made.
#[derive(Deserialize)]
struct Rows {
    keys: Vec<String>,
    text: String,
    secrets: BTreeMap<String, String>,
    bad: Vec<String>,
}

async fn rows(rows: usize, bad: usize, format: &str) -> Rows {
    let asked = json!({ "rows": rows, "bad": bad, "format": format });
    let made = script("imports/fernet.py", &[], &asked).await;
    serde_json::from_value(made).expect("rows")
}

/// A row as the vault is to have it.
fn item(id: &str, secret: &str) -> ImportCredential {
    ImportCredential {
        owner_name: "service".into(),
        provider: "openai".into(),
        environment: CredentialEnvironment::Production.into(),
        name: format!("row \"{}\"", id.trim_start_matches('u')),
        fields: vec![CredentialField {
            name: "api_key".into(),
            value: secret.as_bytes().to_vec().into(),
        }],
        ..Default::default()
    }
}

async fn rehearse(daemon: &Daemon, items: Vec<ImportCredential>) -> Vec<ImportResult> {
    let request = ImportCredentialsRequest {
        tenant: "acme".into(),
        items,
        dry_run: true,
        ..Default::default()
    };
    let mut service = daemon.actor("service").credentials();
    let answer = service.import_credentials(request).await;
    let outcomes = answer.expect("ImportCredentials").into_inner().outcomes;
    outcomes.iter().map(ImportOutcome::result).collect()
}

const HOW: &str = "--token api_key=token --column name=label --set owner_name=service \
                   --set provider=openai --set environment=production";

// R-CRED-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_rows_come_in_through_two_crashes_and_no_bad_one_is_lost() {
    let daemon = daemon(Engine::Sqlite).await;
    let made = rows(10_000, 20, "csv").await;
    assert_eq!((made.secrets.len(), made.bad.len()), (9_980, 20));
    let csv = file(&daemon, "rows.csv", &made.text);
    let keys = file(&daemon, "keys", &made.keys.join("\n"));
    let (state, result) = (daemon.path("state"), daemon.path("report.json"));
    let args = format!(
        "fernet --rows {} --keys {} --state {} --report {} --batch 500 {HOW}",
        csv.display(),
        keys.display(),
        state.display(),
        result.display()
    );

    // Nothing is stored by a rehearsal, and nothing noted.
    let rehearsal = format!("{args} --dry-run").replace("--batch 500", "--batch 1000");
    let (said, exit) = report(&import(&daemon, &rehearsal, &[]).await);
    assert_eq!(
        (&said["created"], &said["dryRun"]),
        (&json!(9_980), &json!(true))
    );
    assert_eq!((exit, stored(&daemon).await.as_str()), (Some(1), "0"));
    assert!(!state.exists());

    // Once behind the daemon's answer and before it is noted, once right behind the note.
    for point in ["import.stored:7", "import.noted:6"] {
        let killed = import(&daemon, &args, &[("CLAVIGER_TEST_KILL_AT", point)]).await;
        assert_eq!(killed.status.signal(), Some(9), "{point}");
        let noted = fs::read_to_string(&state)
            .expect("a state file")
            .lines()
            .count();
        assert!((2..9_980).contains(&noted), "{noted} rows noted at {point}");
    }
    let output = import(&daemon, &args, &[]).await;
    let (said, exit) = report(&output);
    assert_eq!(exit, Some(1), "bad rows are an exit code");
    let progress = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        progress.contains("10000 of 10000 rows, 20 bad"),
        "{progress}"
    );

    let count = |name: &str| said[name].as_u64().unwrap_or_default();
    assert_eq!(count("rows"), 10_000);
    assert_eq!(count("created") + count("unchanged"), 9_980, "{said}");
    assert!(count("storedEarlier") >= 500, "{said}");
    let mut bad: Vec<_> = said["bad"].as_array().expect("rows").iter().collect();
    bad.sort_by_key(|row| row["id"].as_str());
    let ids: Vec<_> = bad
        .iter()
        .map(|row| row["id"].as_str().unwrap_or_default())
        .collect();
    let mut expected: Vec<_> = made.bad.iter().map(String::as_str).collect();
    expected.sort_unstable();
    assert_eq!(ids, expected);
    for row in bad {
        assert!(
            ["TOKEN_INVALID", "MISSING"].contains(&row["reason"].as_str().unwrap_or_default()),
            "{row}"
        );
    }
    assert_eq!(stored(&daemon).await, "9980");

    // Every one is what Python encrypted: the daemon opens it and compares it with that, past all that the importer did.
    let known: Vec<_> = made.secrets.iter().collect();
    for known in known.chunks(1000) {
        let items = known.iter().map(|(id, secret)| item(id, secret)).collect();
        let outcomes = rehearse(&daemon, items).await;
        assert!(outcomes.iter().all(|o| *o == ImportResult::Unchanged));
    }
    // Which it would say if one were not.
    let (id, secret) = known[0];
    let outcomes = rehearse(&daemon, vec![item(id, &format!("{secret}x"))]).await;
    assert_eq!(outcomes, [ImportResult::Conflict]);

    // And the importer says the same.
    let again = args.replace("--state", "--dry-run --state");
    let (said, _) = report(&import(&daemon, &again, &[]).await);
    assert_eq!(said["unchanged"], json!(9_980), "{}", said["bad"]);

    // No plaintext in what an import leaves behind.
    let left = [&state, &result].map(|path| fs::read_to_string(path).expect("a file"));
    for text in left {
        assert!(!text.contains("sk-") && !text.contains("gAAAA"));
        assert!(
            !made
                .secrets
                .values()
                .any(|secret| text.contains(secret.as_str()))
        );
    }
    daemon.stop().await;
}

// R-CRED-3
async fn rows_of_a_table(engine: Engine) {
    let daemon = daemon(engine).await;
    let made = rows(40, 5, "jsonl").await;
    daemon
        .execute("CREATE TABLE legacy (user_id BIGINT, label TEXT, token TEXT, note TEXT)")
        .await;
    for line in made.text.lines() {
        let row: BTreeMap<String, String> = serde_json::from_str(line).expect("a row");
        let number = row["id"].trim_start_matches('u');
        daemon
            .execute(&format!(
                "INSERT INTO legacy VALUES ({number}, '{}', '{}', NULL)",
                row["label"], row["token"]
            ))
            .await;
    }
    let url = file(&daemon, "legacy-url", daemon.database_url());
    let keys = file(&daemon, "keys", &made.keys.join("\n"));
    let asked = async |daemon: &Daemon, query: &str| {
        let args = format!(
            "fernet --database-url-file {} --keys {} {HOW}",
            url.display(),
            keys.display()
        );
        let words: Vec<_> = [
            "--as",
            "service",
            "--output",
            "json",
            "credential",
            "import",
        ]
        .into_iter()
        .chain(args.split_whitespace())
        .chain(["--column", "id=user_id", "--query", query])
        .collect();
        daemon.cli(&words).await
    };
    let query = "SELECT user_id, label, token, note FROM legacy ORDER BY user_id";
    let (said, exit) = report(&asked(&daemon, query).await);
    assert_eq!((&said["created"], exit), (&json!(35), Some(1)), "{said}");
    assert_eq!(said["bad"].as_array().map(Vec::len), Some(5));
    assert_eq!(stored(&daemon).await, "35");

    // Who reads cannot write, whatever the query says.
    let count = "SELECT CAST(COUNT(*) AS BIGINT) FROM legacy";
    for query in [
        "DELETE FROM legacy",
        "DROP TABLE legacy",
        "SELECT nonsense FROM legacy",
        "DELETE FROM legacy RETURNING token",
        "SELECT token FROM legacy; DELETE FROM legacy",
        "COMMIT; DELETE FROM legacy",
        "SET default_transaction_read_only = off; DELETE FROM legacy",
        "WITH gone AS (DELETE FROM legacy RETURNING token) SELECT token FROM gone",
        "VACUUM INTO '/nowhere/copy'",
        "",
    ] {
        let said = failure(&asked(&daemon, query).await);
        assert!(said.contains("the query was refused"), "{query}: {said}");
        assert_eq!(daemon.rows(count).await[0][0], "40", "{query}");
    }
    daemon.stop().await;
}

// R-CRED-3: who goes on goes on with the same import, and one row is one credential.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_goes_on_only_as_it_began() {
    let daemon = daemon(Engine::Sqlite).await;
    let made = rows(4, 0, "jsonl").await;
    let keys = file(&daemon, "keys", &made.keys.join("\n"));
    let rows = file(&daemon, "rows.jsonl", &made.text);
    let state = daemon.path("state");
    let args = format!(
        "fernet --rows {} --keys {} --state {} {HOW}",
        rows.display(),
        keys.display(),
        state.display()
    );
    let (said, exit) = report(&import(&daemon, &args, &[]).await);
    assert_eq!((&said["created"], exit), (&json!(4), Some(0)), "{said}");
    for (from, to, says) in [
        ("environment=production", "environment=testing", "--set"),
        ("--column name=label", "--column name=id", "--column"),
        (
            "--token api_key=token",
            "--token api_secret=token",
            "--token",
        ),
        ("--set provider", "--replace --set provider", "--replace"),
        ("fernet", "fernet --tenant acme", "--tenant"),
    ] {
        let said = failure(&import(&daemon, &args.replace(from, to), &[]).await);
        assert!(
            said.contains("another import, with") && said.contains(says),
            "{to}: {said}"
        );
    }
    let (said, _) = report(&import(&daemon, &args, &[]).await);
    assert_eq!(said["storedEarlier"], json!(4));

    // Two rows for one credential in two batches: the second is not put in the place of the first.
    let lines: Vec<_> = made.text.lines().collect();
    let second = lines[1].replace("row \\\"1\\\"", "row \\\"0\\\"");
    assert_ne!(second, lines[1]);
    let twice = file(&daemon, "twice.jsonl", &format!("{}\n{second}\n", lines[0]));
    let args = format!(
        "fernet --rows {} --keys {} --replace --batch 1 {HOW}",
        twice.display(),
        keys.display()
    );
    let (said, exit) = report(&import(&daemon, &args, &[]).await);
    assert_eq!(exit, Some(1));
    assert_eq!(said["unchanged"], json!(1), "{said}");
    assert_eq!(
        said["bad"][0]["reason"],
        json!("CREDENTIAL_TWICE"),
        "{said}"
    );

    // The rows of a query have no place that would name them.
    daemon
        .execute("CREATE TABLE unnamed (label TEXT, token TEXT)")
        .await;
    daemon
        .execute("INSERT INTO unnamed VALUES ('a', 'b')")
        .await;
    let url = file(&daemon, "legacy-url", daemon.database_url());
    let words = format!(
        "--as service credential import fernet --database-url-file {} --keys {} --state {} {HOW}",
        url.display(),
        keys.display(),
        daemon.path("other-state").display()
    );
    let words: Vec<_> = words.split_whitespace().collect();
    let query = ["--query", "SELECT label, token FROM unnamed"];
    let words = [&words[..], &query].concat();
    let said = failure(&daemon.cli(&words).await);
    assert!(said.contains("--state needs rows with an id"), "{said}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_sqlite_table_come_in() {
    rows_of_a_table(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_postgresql_table_come_in() {
    rows_of_a_table(Engine::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_said_before_anything_is_stored() {
    let daemon = daemon(Engine::Sqlite).await;
    let made = rows(3, 0, "jsonl").await;
    let path = |name: &str, text: &str| file(&daemon, name, text).display().to_string();
    let rows = path("rows.jsonl", &made.text);
    let keys = path("keys", &made.keys.join("\n"));
    let stranger = path("stranger", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let no_key = path("no-key", "planted-secret");
    let no_csv = path("rows.csv", "id,token\n1,\"planted-secret\n");
    for (rows, keys, says) in [
        (&rows, &no_key, "line 1 is no Fernet key"),
        (&no_csv, &keys, "line 2"),
        (&"/nowhere".to_owned(), &keys, "/nowhere"),
    ] {
        let args = format!("fernet --rows {rows} --keys {keys} {HOW}");
        let said = failure(&import(&daemon, &args, &[]).await);
        assert!(said.contains(says) && !said.contains("planted"), "{said}");
    }
    let args = format!("fernet --rows {rows} --keys {stranger} {HOW}");
    let (said, exit) = report(&import(&daemon, &args, &[]).await);
    assert_eq!(said["bad"].as_array().map(Vec::len), Some(3));
    assert_eq!((exit, stored(&daemon).await.as_str()), (Some(1), "0"));

    // Rows that nothing tells apart, and owners and providers that are not there.
    let twice = path("twice.jsonl", &format!("{0}{0}", made.text));
    let args = format!("fernet --rows {twice} --keys {keys} {HOW}");
    let (said, _) = report(&import(&daemon, &args, &[]).await);
    let reasons = said["bad"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| row["reason"].clone());
    assert_eq!(reasons.collect::<Vec<_>>(), vec![json!("ID_TWICE"); 3]);
    assert_eq!(said["created"], json!(3));
    for (from, to) in [
        ("owner_name=service", "owner_name=nobody"),
        ("provider=openai", "provider=nowhere"),
    ] {
        let args = format!("fernet --rows {rows} --keys {keys} {HOW}").replace(from, to);
        let (said, exit) = report(&import(&daemon, &args, &[]).await);
        assert_eq!(
            (said["bad"].as_array().map(Vec::len), exit),
            (Some(3), Some(1)),
            "{to}: {said}"
        );
    }

    // A state file is for one import.
    let state = daemon.path("state").display().to_string();
    let args = format!("fernet --rows {rows} --keys {keys} --state {state} {HOW}");
    let (said, exit) = report(&import(&daemon, &args, &[]).await);
    assert_eq!((&said["unchanged"], exit), (&json!(3), Some(0)));
    let (said, _) = report(&import(&daemon, &args, &[]).await);
    assert_eq!(said["storedEarlier"], json!(3));
    let other = format!("fernet --rows {twice} --keys {keys} --state {state} {HOW}");
    let said = failure(&import(&daemon, &other, &[]).await);
    assert!(said.contains("another import"), "{said}");
    daemon.stop().await;
}

// R-ACL-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_import_imports_nothing() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let made = rows(3, 0, "jsonl").await;
    let rows = file(&daemon, "rows.jsonl", &made.text);
    let keys = file(&daemon, "keys", &made.keys.join("\n"));
    let args = format!(
        "fernet --rows {} --keys {} {HOW}",
        rows.display(),
        keys.display()
    );
    let output = import(&daemon, &args, &[]).await;
    assert_eq!(output.status.code(), Some(3), "{}", failure(&output));
    assert_eq!(stored(&daemon).await, "0");
    daemon.stop().await;
}
