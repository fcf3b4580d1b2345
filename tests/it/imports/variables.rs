//! `.env` files and the environment.

use serde_json::{Value, json};

use super::{daemon, failure, file, import, report, stored};
use crate::daemon::Engine;

/// Keys of the eight LLM providers, as they look.
fn env() -> String {
    let long =
        |prefix: &str, length: usize| format!("{prefix}{}", "aB3".repeat(40)[..length].to_owned());
    format!(
        "# the LLM system\nOPENAI_API_KEY={}\nexport ANTHROPIC_API_KEY='{}'\nGEMINI_API_KEY=\"{}\"\n\
         MISTRAL_API_KEY={} # old\nXAI_API_KEY={}\nQWEN_API_KEY={}\nDEEPSEEK_API_KEY={}\nKIMI_API_KEY={}\n\
         DATABASE_URL=postgres://planted-secret@db/x\nLOG_LEVEL=info\n",
        long("sk-", 48),
        long("sk-ant-api03-", 95),
        long("AIzaSy", 33),
        long("", 32),
        long("xai-", 40),
        long("sk-", 48),
        long("sk-", 48),
        long("sk-", 48),
    )
}

fn counts(report: &Value) -> [u64; 4] {
    let number = |name: &str| report[name].as_u64().unwrap_or_default();
    let bad = report["bad"].as_array().map_or(0, Vec::len) as u64;
    [
        number("created"),
        number("replaced"),
        number("unchanged"),
        bad,
    ]
}

// R-CRED-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_eight_keys_of_an_env_file_come_in_once() {
    let daemon = daemon(Engine::Sqlite).await;
    let path = file(&daemon, "llm.env", &env());
    let args = format!(
        "env --file {} --owner-name service --environment production",
        path.display()
    );

    let (said, exit) = report(&import(&daemon, &format!("{args} --dry-run"), &[]).await);
    assert_eq!((counts(&said), exit), ([8, 0, 0, 0], Some(0)), "{said}");
    assert_eq!(stored(&daemon).await, "0");

    let (said, exit) = report(&import(&daemon, &args, &[]).await);
    assert_eq!((counts(&said), exit), ([8, 0, 0, 0], Some(0)), "{said}");
    assert_eq!(said["ignored"], json!(["DATABASE_URL", "LOG_LEVEL"]));
    assert_eq!(said["warnings"], json!([]), "they look as they should");
    assert!(!said.to_string().contains("planted"));
    let (said, _) = report(&import(&daemon, &args, &[]).await);
    assert_eq!(counts(&said), [0, 0, 8, 0]);

    // Another value is not written over the old one by itself.
    file(&daemon, "llm.env", &env().replace("xai-aB3", "xai-zZ9"));
    let (said, exit) = report(&import(&daemon, &args, &[]).await);
    assert_eq!((counts(&said), exit), ([0, 0, 7, 1], Some(1)));
    assert_eq!(said["bad"][0]["reason"], "CONFLICT", "{said}");
    let (said, exit) = report(&import(&daemon, &format!("{args} --replace"), &[]).await);
    assert_eq!((counts(&said), exit), ([0, 1, 7, 0], Some(0)), "{said}");

    // R-CRED-8: another environment is another value.
    let testing = args.replace("production", "testing");
    let (said, _) = report(&import(&daemon, &testing, &[]).await);
    assert_eq!(counts(&said), [8, 0, 0, 0]);
    assert_eq!(
        stored(&daemon).await.parse::<u32>().expect("a number") % 8,
        0
    );
    daemon.stop().await;
}

// R-CRED-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_is_read_and_lines_that_can_be_misread_are_refused() {
    let daemon = daemon(Engine::Sqlite).await;
    let args = "env --owner-name service --environment development";
    let key = "m".repeat(32);
    let set = [("MISTRAL_API_KEY", key.as_str()), ("OPENAI_API_KEY", "")];
    let (said, exit) = report(&import(&daemon, args, &set).await);
    assert_eq!((counts(&said), exit), ([1, 0, 0, 0], Some(0)), "{said}");

    for line in [
        "OPENAI_API_KEY=\"planted-secret",
        "OPENAI_API_KEY=${planted-secret}",
        "planted-secret",
    ] {
        let text = format!("MISTRAL_API_KEY={key}\n{line}\n");
        let path = file(&daemon, "bad.env", &text);
        let said =
            failure(&import(&daemon, &format!("{args} --file {}", path.display()), &[]).await);
        assert!(
            said.contains("line 2") && !said.contains("planted"),
            "{said}"
        );
    }
    assert_eq!(stored(&daemon).await, "1");
    daemon.stop().await;
}
