//! The command line as scripts see it: exit codes, one line on stderr, nothing on stdout when it failed.

use std::process::{Command, Output, Stdio};

use claviger::grpc::proto::{Algorithm, KeyPurpose};
use tokio::io::AsyncWriteExt;

use crate::{
    daemon::{Daemon, Engine, PATIENCE, TOKEN},
    softhsm::SoftHsm,
};

fn claviger(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_claviger"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CLAVIGER_") {
            command.env_remove(name);
        }
    }
    let output = command
        .args(args)
        .stdin(std::process::Stdio::null())
        .output();
    output.expect("the binary runs")
}

#[track_caller]
fn fails(args: &[&str], code: i32, says: &str) {
    let output = claviger(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(says), "{said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn help_documents_the_exit_codes() {
    let output = claviger(&["--help"]);
    assert!(output.status.success());
    let help = String::from_utf8_lossy(&output.stdout);
    assert!(help.contains("Exit codes:") && help.contains("3  not authenticated"));
}

#[test]
fn wrong_usage_is_2() {
    fails(&["sing"], 2, "sing");
    fails(&["sign"], 2, "--key");
    fails(&["sign", "--key", "k"], 2, "--ca FILE");
    fails(
        &["--ca", "/nowhere/ca.crt", "token", "jwks"],
        2,
        "/nowhere/ca.crt",
    );
    fails(
        &[
            "--address",
            "http://localhost:1",
            "--ca",
            "x",
            "token",
            "jwks",
        ],
        2,
        "https://",
    );
    fails(
        &["--ca", "x", "--cert", "x", "token", "jwks"],
        2,
        "--cert-key",
    );
    fails(&["--timeout", "soon", "token", "jwks"], 2, "duration");
    fails(&["key", "update", "k"], 2, "--owner");
}

#[test]
fn a_daemon_that_is_not_there_is_6() {
    fails(
        &["--dir", "/nowhere", "--as", "service", "token", "jwks"],
        6,
        "claviger dev",
    );
}

#[test]
fn dev_says_how_to_install_what_it_needs() {
    let output = Command::new(env!("CARGO_BIN_EXE_claviger"))
        .args(["dev", "--once", "--dir", "/nowhere"])
        .env("CLAVIGER_DEV_MODULE", "/nowhere/libsofthsm2.so")
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(7));
    assert!(String::from_utf8_lossy(&output.stderr).contains("CLAVIGER_DEV_MODULE"));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command of a daemon with bytes on its stdin.
async fn piped(daemon: &Daemon, args: &[&str], stdin: &[u8]) -> Output {
    let mut child = daemon
        .command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("claviger runs");
    let mut input = child.stdin.take().expect("stdin");
    let bytes = stdin.to_vec();
    let writer = tokio::spawn(async move {
        let _ = input.write_all(&bytes).await;
    });
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    writer.await.expect("written");
    output.expect("it ends").expect("claviger ends")
}

/// The command fails with this code, one line on stderr, and nothing on stdout.
async fn ends(daemon: &Daemon, code: i32, args: &[&str], says: &str) {
    let output = piped(daemon, args, b"bytes").await;
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(said.contains(says), "{args:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

async fn vault_and_signer() -> Daemon {
    let daemon = Daemon::start(Engine::Sqlite).await;
    let (encryption, signing) = (KeyPurpose::Encryption, KeyPurpose::Signing);
    daemon
        .key("acme", "vault", encryption, Algorithm::A256gcm)
        .await;
    daemon
        .key("acme", "signer", signing, Algorithm::Es256)
        .await;
    daemon
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_exit_code_of_a_call() {
    let daemon = vault_and_signer().await;
    let service = |args: &[&str]| -> Vec<String> {
        let all = [&["--as", "service"], args].concat();
        all.into_iter().map(str::to_owned).collect()
    };
    let call = async |code, args: &[&str], says: &str| {
        let args = service(args);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        ends(&daemon, code, &args, says).await;
    };
    // 0
    let signed = piped(
        &daemon,
        &["--as", "service", "sign", "--key", "signer"],
        b"bytes",
    )
    .await;
    assert_eq!(signed.status.code(), Some(0), "{}", text(&signed.stderr));
    // 1: the answer is no
    call(1, &["decrypt", "--key", "vault"], "CIPHERTEXT_INVALID").await;
    // 2: refused arguments
    call(2, &["sign", "--key", "NOT A NAME"], "INVALID_FIELD").await;
    call(2, &["key", "get", "'; DROP TABLE keys"], "INVALID_FIELD").await;
    // 3: nobody, and not permitted
    let stranger = ["--as", "stranger", "key", "list"];
    ends(&daemon, 3, &stranger, "UNKNOWN_PRINCIPAL").await;
    call(
        3,
        &["key", "update", "vault", "--owner", "me"],
        "PERMISSION_DENIED",
    )
    .await;
    // 4; a tenant's principal cannot see the platform's
    call(4, &["tenant", "create", "mine"], "TENANT_NOT_FOUND").await;
    call(4, &["sign", "--key", "nothing"], "KEY_NOT_FOUND").await;
    call(
        4,
        &["key", "get", "signer", "--tenant", "globex"],
        "KEY_NOT_FOUND",
    )
    .await;
    // 5: the state does not allow it
    call(5, &["sign", "--key", "vault"], "KEY_PURPOSE_MISMATCH").await;
    let again = [
        "--as",
        "issuer",
        "key",
        "create",
        "signer",
        "--tenant",
        "acme",
        "--purpose",
        "signing",
        "--algorithm",
        "es256",
        "--owner",
        "me",
    ];
    ends(&daemon, 5, &again, "ALREADY_EXISTS").await;
    // 6: nobody there
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("https://{}", free.local_addr().expect("an address"));
    drop(free);
    call(6, &["--address", &address, "key", "list"], "cannot connect").await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_go_through_encrypt_and_decrypt_unchanged() {
    let daemon = vault_and_signer().await;
    let all: Vec<u8> = (0..=255).cycle().take(100_003).collect();
    for bytes in [
        &b"\0"[..],
        b"\r\n",
        b"no newline",
        "ключ 🔑\n".as_bytes(),
        &all,
    ] {
        let aad = ["--aad", "a=b", "--aad", "c=d=e"];
        let encrypt = [&["--as", "service", "encrypt", "--key", "vault"], &aad[..]].concat();
        let sealed = piped(&daemon, &encrypt, bytes).await;
        assert!(sealed.status.success(), "{}", text(&sealed.stderr));
        assert_ne!(sealed.stdout, bytes);
        let decrypt = [&["--as", "service", "decrypt", "--key", "vault"], &aad[..]].concat();
        let opened = piped(&daemon, &decrypt, &sealed.stdout).await;
        assert!(opened.status.success(), "{}", text(&opened.stderr));
        assert_eq!(opened.stdout, bytes);
        let without = ["--as", "service", "decrypt", "--key", "vault"];
        let refused = piped(&daemon, &without, &sealed.stdout).await;
        assert_eq!(refused.status.code(), Some(1));
        assert!(refused.stdout.is_empty());
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_output_is_json() {
    let daemon = vault_and_signer().await;
    for args in [
        &["--as", "service", "key", "list"][..],
        &["--as", "service", "key", "get", "signer"],
        &["--as", "service", "token", "jwks"],
        &["--as", "admin", "tenant", "list"],
        &["--as", "admin", "principal", "list", "--tenant", "acme"],
        &["--as", "issuer", "rotation", "list", "--tenant", "acme"],
        &["--as", "auditor", "audit", "list", "--tenant", "*"],
        &["--as", "auditor", "audit", "verify"],
    ] {
        let args = [args, &["--output", "json"]].concat();
        let printed = daemon.cli_ok(&args).await;
        let value: serde_json::Value = serde_json::from_str(&printed).expect(&printed);
        assert!(value.is_object(), "{args:?}: {printed}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_made_by_another_tool_is_adopted() {
    let daemon = vault_and_signer().await;
    let pin = std::fs::read_to_string(daemon.path("secrets/pin")).expect("a PIN");
    let made = daemon
        .foreign("pkcs11-tool")
        .arg("--module")
        .arg(SoftHsm::library())
        .args(["--token-label", TOKEN, "--login", "--pin", &pin])
        .args([
            "--keypairgen",
            "--key-type",
            "EC:prime256v1",
            "--id",
            "0b",
            "--label",
            "theirs",
        ])
        .output()
        .await
        .expect("pkcs11-tool of OpenSC is installed");
    assert!(made.status.success(), "{made:?}");
    let adopt = |name, uri| {
        [
            "--as",
            "issuer",
            "key",
            "adopt",
            name,
            "--uri",
            uri,
            "--tenant",
            "acme",
            "--purpose",
            "signing",
            "--algorithm",
            "es256",
            "--owner",
            "me",
        ]
    };
    daemon
        .cli_ok(&adopt("adopted", "pkcs11:object=theirs"))
        .await;
    let message = daemon.path("message");
    std::fs::write(&message, "signed by it").expect("written");
    let signature = piped(
        &daemon,
        &["--as", "service", "sign", "--key", "adopted"],
        b"signed by it",
    )
    .await;
    assert!(signature.status.success(), "{}", text(&signature.stderr));
    // One pair, one key; and what is not there is not made.
    ends(
        &daemon,
        5,
        &adopt("again", "pkcs11:object=theirs"),
        "ALREADY_EXISTS",
    )
    .await;
    ends(
        &daemon,
        5,
        &adopt("ghost", "pkcs11:object=nothing"),
        "KEY_NOT_ADOPTABLE",
    )
    .await;
    let leaked = daemon
        .cli(&adopt("pin", "pkcs11:object=theirs?pin-value=4711"))
        .await;
    assert!(!leaked.status.success());
    assert!(!text(&leaked.stderr).contains("4711"));
    let count = daemon
        .rows("SELECT name FROM keys WHERE tenant <> 'system' ORDER BY name")
        .await;
    assert_eq!(count, [["adopted"], ["signer"], ["vault"]]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_and_policy_say_what_is_wrong() {
    let daemon = vault_and_signer().await;
    let config = daemon.config_path();
    let config = config.to_str().expect("UTF-8");
    let healthy = daemon.cli_ok(&["doctor", "--config", config]).await;
    assert!(!healthy.contains("FAIL"), "{healthy}");
    for check in [
        "configuration",
        "policies",
        "tls",
        "database",
        "backend hsm",
        "key-encryption key",
    ] {
        assert!(healthy.contains(&format!("ok    {check}")), "{healthy}");
    }
    let wrong = daemon.path("wrong.toml");
    let good = std::fs::read_to_string(config).expect("claviger.toml");
    let broken = good
        .replace("certs/server.key", "certs/service.key")
        .replace("object=claviger-kek", "object=missing");
    std::fs::write(&wrong, broken).expect("written");
    let wrong = wrong.to_str().expect("UTF-8");
    let sick = daemon.cli(&["doctor", "--config", wrong]).await;
    let said = text(&sick.stdout);
    assert_eq!(sick.status.code(), Some(1), "{said}");
    // The first failure does not hide the others.
    assert!(
        said.contains("FAIL  tls") && said.contains("FAIL  key-encryption key"),
        "{said}"
    );
    assert!(said.contains("ok    database"), "{said}");
    let only = daemon
        .cli_ok(&["doctor", "--config", wrong, "--config-only"])
        .await;
    assert!(!only.contains("database"), "{only}");
    let second = daemon.cli(&["serve", "--config", config]).await;
    assert!(text(&second.stderr).contains("another claviger is running"));
    assert!(!second.status.success());
    daemon.stop().await;
}

#[test]
fn policies_are_checked_and_explained() {
    let ok = claviger(&["policy", "check"]);
    assert!(ok.status.success() && text(&ok.stdout).contains("policies"));
    fails(
        &["policy", "check", "--policies", "/nowhere"],
        2,
        "/nowhere",
    );
    let explain = |role: &'static str, action: &'static str| {
        claviger(&[
            "policy", "explain", "--role", role, "--action", action, "--tenant", "acme",
        ])
    };
    let allowed = explain("key-issuer@*", "CreateKey");
    assert_eq!(allowed.status.code(), Some(0));
    assert!(text(&allowed.stdout).starts_with("ALLOW"));
    // An auditor creates nothing, and a role in one tenant holds in no other.
    for role in ["auditor@*", "key-issuer@globex"] {
        let denied = explain(role, "CreateKey");
        assert_eq!(denied.status.code(), Some(1), "{role}");
        assert!(text(&denied.stdout).starts_with("DENY"));
    }
    let unknown = ["policy", "explain", "--action", "Fly", "--tenant", "acme"];
    fails(&unknown, 2, "CreateKey");
    let role = [
        "policy", "explain", "--role", "root", "--action", "Sign", "--tenant", "acme",
    ];
    fails(&role, 2, "key-issuer");
}
