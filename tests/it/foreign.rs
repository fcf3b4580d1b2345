//! Verifiers that share no code with the daemon: jose.py, macs/sign.py, and pkcs11-tool of OpenSC.

use std::{path::Path, process::Stdio, sync::OnceLock};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{
    daemon::{Daemon, TOKEN},
    softhsm::SoftHsm,
};

/// Runs jose.py.
pub async fn jose(command: &str, input: &Value) -> Value {
    script("jose.py", &[command], input).await
}

/// The MAC of a message, by macs/sign.py; `hash` is `sha256` or `sha512`.
pub async fn hmac(hash: &str, secret: &[u8], message: &[u8]) -> Vec<u8> {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let input =
        serde_json::json!([{ "hash": hash, "secret": hex(secret), "message": hex(message) }]);
    let macs = script("macs/sign.py", &[], &input).await;
    let mac = macs[0].as_str().expect("a MAC").as_bytes();
    let byte = |pair: &[u8; 2]| {
        let pair = std::str::from_utf8(pair).expect("ASCII");
        u8::from_str_radix(pair, 16).expect("hex")
    };
    mac.as_chunks::<2>().0.iter().map(byte).collect()
}

/// Runs a script of tests/it with JSON on its standard input; what it prints.
pub async fn script(name: &str, arguments: &[&str], input: &Value) -> Value {
    let python = tokio::task::spawn_blocking(python).await.expect("python");
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it")
        .join(name);
    let mut child = Command::new(python)
        .arg(script)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("python starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin
        .write_all(input.to_string().as_bytes())
        .await
        .expect("python reads");
    drop(stdin);
    let output = child.wait_with_output().await.expect("python ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments:?}: {said}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The interpreter that scripts/test-python provides.
pub fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/test-python");
        let output = std::process::Command::new(script).output();
        let output = output.expect("scripts/test-python runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/test-python: {said}");
        let path = String::from_utf8(output.stdout).expect("UTF-8");
        path.trim().to_owned()
    })
}

/// A private key as pkcs11-tool shows it.
#[derive(Debug, Default)]
pub struct PrivateKey {
    /// CKA_ID, lower-case hex.
    pub id: String,
    /// `sensitive`, `never extractable` and the like.
    pub access: Vec<String>,
}

impl Daemon {
    /// Runs pkcs11-tool on the daemon's token, logged in.
    pub async fn pkcs11_tool(&self, args: &[&str]) -> String {
        let pin = std::fs::read_to_string(self.path("secrets/pin")).expect("the PIN");
        let output = self
            .foreign("pkcs11-tool")
            .arg("--module")
            .arg(SoftHsm::library())
            .args(["--token-label", TOKEN, "--login", "--pin", &pin])
            .args(args)
            .output()
            .await
            .expect("pkcs11-tool is installed: apt-get install opensc");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "pkcs11-tool {args:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Every private key of the daemon's token.
    pub async fn private_keys(&self) -> Vec<PrivateKey> {
        let text = self
            .pkcs11_tool(&["--list-objects", "--type", "privkey"])
            .await;
        let mut keys: Vec<PrivateKey> = Vec::new();
        for line in text.lines() {
            if line.starts_with("Private Key Object") {
                keys.push(PrivateKey::default());
            }
            let (Some(key), Some((field, value))) = (keys.last_mut(), line.split_once(':')) else {
                continue;
            };
            match field.trim() {
                "ID" => key.id = value.trim().to_ascii_lowercase(),
                "Access" => key.access = value.split(',').map(|s| s.trim().to_owned()).collect(),
                _ => {}
            }
        }
        keys
    }
}
