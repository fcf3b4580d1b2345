//! Secret managers of clouds, as clouds.py plays them.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use super::{daemon, failure, file, import, report, stored};
use crate::{daemon::Engine, foreign};

/// clouds.py; it ends with the value, as its standard input does.
struct Clouds {
    base: String,
    _server: Child,
}

impl Clouds {
    fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/imports/clouds.py");
        let mut server = Command::new(foreign::python())
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python starts");
        let stdout = server.stdout.take().expect("piped");
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        read.expect("clouds.py speaks");
        let port: u16 = line.trim().parse().expect("clouds.py prints its port");
        Self {
            base: format!("http://127.0.0.1:{port}"),
            _server: server,
        }
    }

    /// Secrets that were fetched, so far.
    async fn asked(&self) -> Value {
        let egress = claviger::egress::EgressConfig {
            allow_http: true,
            allow_networks: vec!["127.0.0.0/8".parse().expect("a network")],
            ..claviger::egress::EgressConfig::default()
        };
        let egress = claviger::egress::Egress::new(&egress).expect("egress");
        let url = format!("{}/asked", self.base);
        let request = claviger::egress::Request::new(http::Method::GET, url);
        let answer = egress.send(request).await.expect("an answer");
        serde_json::from_slice(&answer.body).expect("JSON")
    }
}

const WHOSE: &str = "--owner-name service --environment production";
const AWS: [(&str, &str); 4] = [
    ("AWS_ACCESS_KEY_ID", "AKIDTEST"),
    ("AWS_SECRET_ACCESS_KEY", "secret"),
    ("AWS_EC2_METADATA_DISABLED", "true"),
    ("AWS_CONFIG_FILE", "/dev/null"),
];

// R-CRED-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secret_managers_give_what_the_catalogue_names_and_nothing_else() {
    let daemon = daemon(Engine::Sqlite).await;
    let clouds = tokio::task::spawn_blocking(Clouds::start)
        .await
        .expect("started");
    let base = &clouds.base;
    let token = file(&daemon, "token", "planted-token\n")
        .display()
        .to_string();

    let azure = format!("azure --vault {base}/azure/v --token-file {token} {WHOSE}");
    let (said, exit) = report(&import(&daemon, &azure, &[]).await);
    assert_eq!((&said["created"], exit), (&json!(2), Some(0)), "{said}");
    assert_eq!(
        clouds.asked().await,
        json!(["ANTHROPIC-API-KEY", "OPENAI-API-KEY"])
    );

    // The same values under the names of the others: they are there already.
    let google = format!(
        "google --project p1 --endpoint {base}/google --token-file {token} --prefix prod- {WHOSE}"
    );
    let (said, exit) = report(&import(&daemon, &google, &[]).await);
    assert_eq!((&said["unchanged"], exit), (&json!(2), Some(0)), "{said}");
    let aws = format!(
        "aws --region eu-central-1 --endpoint {base} --prefix prod/ --bundle prod/bundle {WHOSE}"
    );
    let (said, exit) = report(&import(&daemon, &aws, &AWS).await);
    assert_eq!(
        (&said["unchanged"], &said["created"], exit),
        (&json!(2), &json!(1), Some(0)),
        "{said}"
    );
    let asked = clouds.asked().await.to_string();
    assert!(
        asked.contains("prod/bundle") && !asked.contains("password"),
        "{asked}"
    );
    assert_eq!(stored(&daemon).await, "3");

    // Refusals name the manager and tell nothing of what it said or of what it was shown.
    let wrong = file(&daemon, "wrong", "planted-wrong")
        .display()
        .to_string();
    let denied = [
        (azure.replace(&token, &wrong), &AWS[..0]),
        (google.replace(&token, &wrong), &AWS[..0]),
    ];
    for (args, env) in denied {
        let output = import(&daemon, &args, env).await;
        let said = failure(&output);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains("401") && !said.contains("planted"), "{said}");
    }
    let mut forged = AWS;
    forged[1].1 = "planted-wrong";
    let output = import(&daemon, &aws, &forged).await;
    let said = failure(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("403") && !said.contains("planted"), "{said}");
    let elsewhere = azure.replace("/azure/v", "/azure/elsewhere");
    let said = failure(&import(&daemon, &elsewhere, &[]).await);
    assert!(said.contains("another host"), "{said}");
    let plain = azure.replace(base.as_str(), "http://192.0.2.1");
    let said = failure(&import(&daemon, &plain, &[]).await);
    assert!(said.contains("plain HTTP"), "{said}");
    assert_eq!(stored(&daemon).await, "3");
    daemon.stop().await;
}
