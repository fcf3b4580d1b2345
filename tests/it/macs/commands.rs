//! The commands of MACs, webhooks, data keys and random bytes, as scripts call them.

use std::process::Output;

use claviger::clock::Clock;

use super::*;

const SECRET: &[u8] = b"the provider's own secret";

async fn run(daemon: &Daemon, who: &str, args: &[&str]) -> Output {
    daemon.cli(&[&["--as", who], args].concat()).await
}

async fn ok(daemon: &Daemon, who: &str, args: &[&str]) -> String {
    let output = run(daemon, who, args).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

async fn ends(daemon: &Daemon, who: &str, code: i32, args: &[&str]) -> String {
    let output = run(daemon, who, args).await;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).expect("UTF-8");
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    said
}

/// A file in the daemon's directory; its path.
fn file(daemon: &Daemon, name: &str, bytes: &[u8]) -> String {
    let path = daemon.path(name);
    std::fs::write(&path, bytes).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn secrets_macs_and_webhooks_from_the_command_line() {
    let daemon = setup(Engine::Sqlite).start().await;
    let secret = file(&daemon, "secret", SECRET);
    let line = file(&daemon, "line", &[SECRET, b"\n"].concat());
    let digits = file(
        &daemon,
        "digits",
        format!("{}\n", hex(b"another of their secrets")).as_bytes(),
    );
    let import = [
        "key",
        "import",
        "hooks",
        "--tenant",
        "acme",
        "--algorithm",
        "hs256",
        "--owner",
        "payments",
    ];
    let import = |file: &'static str| [&import[..], &["--secret-file", file]].concat();
    let (secret, line): (&'static str, &'static str) = (secret.leak(), line.leak());
    let said = ends(&daemon, "issuer", 2, &import(line)).await;
    assert!(
        said.contains("line feed") && !said.contains("provider"),
        "{said}"
    );
    ok(&daemon, "issuer", &import(secret)).await;

    let message = file(&daemon, "message", b"order 4711");
    let expected = hex(&hmac("sha256", SECRET, b"order 4711").await);
    let compute = ["mac", "compute", "--key", "hooks", "--in", &message];
    assert_eq!(
        ok(&daemon, "service", &compute).await,
        format!("{expected}\n")
    );
    let verify = ["mac", "verify", "--key", "hooks", "--in", &message, "--mac"];
    let said = ok(
        &daemon,
        "service",
        &[&verify[..], &[expected.as_str()]].concat(),
    )
    .await;
    assert!(said.starts_with("valid"), "{said}");
    let wrong = hex(&[7; 32]);
    ends(
        &daemon,
        "service",
        1,
        &[&verify[..], &[wrong.as_str()]].concat(),
    )
    .await;
    ends(&daemon, "service", 2, &[&verify[..], &["no mac!"]].concat()).await;

    let body = file(&daemon, "body", br#"{"paid":1}"#);
    let at = Clock::System.now().seconds().to_string();
    let signed = format!(r#"{at}.{{"paid":1}}"#);
    let mac = hex(&hmac("sha256", SECRET, signed.as_bytes()).await);
    let webhook = [
        "webhook",
        "verify",
        "--key",
        "hooks",
        "--scheme",
        "timestamp-body",
        "--timestamp",
        &at,
        "--event-id",
        "evt_1",
        "--in",
        &body,
        "--mac",
        &wrong,
        "--mac",
    ];
    let said = ends(
        &daemon,
        "service",
        1,
        &[&webhook[..], &[wrong.as_str()]].concat(),
    )
    .await;
    assert!(said.contains("not valid"), "{said}");
    let said = ok(
        &daemon,
        "service",
        &[&webhook[..], &[mac.as_str()]].concat(),
    )
    .await;
    assert!(said.contains("valid and new"), "{said}");
    let said = ends(
        &daemon,
        "service",
        1,
        &[&webhook[..], &[mac.as_str()]].concat(),
    )
    .await;
    assert!(said.contains("seen before, at 20"), "{said}");

    let request = [
        "rotation",
        "request",
        "--key",
        "hooks",
        "--tenant",
        "acme",
        "--justification",
        "they changed it",
    ];
    ends(&daemon, "issuer", 2, &request).await;
    let next = ["--secret-file", &digits, "--encoding", "hex"];
    ok(&daemon, "issuer", &[&request[..], &next].concat()).await;
    daemon.stop().await;
}

#[tokio::test]
async fn data_keys_and_random_bytes_from_the_command_line() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let (purpose, algorithm) = (KeyPurpose::Encryption, Algorithm::A256gcm);
    daemon.key("acme", "vault", purpose, algorithm).await;
    let path = |name: &str| daemon.path(name).to_str().expect("UTF-8").to_owned();
    let (wrapped, plain, again) = (path("wrapped"), path("plain"), path("again"));
    let generate = [
        "data-key",
        "generate",
        "--key",
        "vault",
        "--aad",
        "a=b",
        "--length",
        "64",
        "--wrapped",
        &wrapped,
    ];
    ok(
        &daemon,
        "service",
        &[&generate[..], &["--out", &plain]].concat(),
    )
    .await;
    let read = |path: &str| std::fs::read(path).expect("a file");
    assert_eq!(read(&plain).len(), 64);
    let mode = std::fs::metadata(&plain).expect("a file").permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o600
    );
    let decrypt = [
        "data-key", "decrypt", "--key", "vault", "--in", &wrapped, "--out", &again,
    ];
    ends(&daemon, "service", 1, &decrypt).await;
    ok(
        &daemon,
        "service",
        &[&decrypt[..], &["--aad", "a=b"]].concat(),
    )
    .await;
    assert_eq!(read(&again), read(&plain));
    // Without --out, the plain key is not even sent.
    ok(&daemon, "service", &generate).await;
    ok(
        &daemon,
        "service",
        &[&decrypt[..], &["--aad", "a=b"]].concat(),
    )
    .await;
    assert_ne!(read(&again), read(&plain));
    let without =
        "SELECT COUNT(*) FROM audit_events WHERE action = 'GenerateDataKeyWithoutPlaintext'";
    assert_eq!(daemon.rows(without).await, [["1"]]);

    let random = ok(&daemon, "service", &["random", "16"]).await;
    assert_eq!(random.trim_end().len(), 32, "{random}");
    ends(&daemon, "service", 2, &["random", "0"]).await;
    daemon.stop().await;
}
