//! smtp.py: a real mail server.

use std::{
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{daemon::Daemon, foreign};

pub const USERNAME: &str = "claviger";
pub const PASSWORD: &str = "correct horse battery staple";

pub struct MailServer {
    pub port: u16,
    messages: Arc<Mutex<Vec<Value>>>,
    _child: Child,
}

impl MailServer {
    /// With the server certificate of the daemon's own CA.
    pub async fn start(daemon: &Daemon) -> Self {
        let python = tokio::task::spawn_blocking(foreign::python).await;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/alerts/smtp.py");
        let mut child = Command::new(python.expect("python"))
            .arg(script)
            .arg(daemon.path("certs/server.crt"))
            .arg(daemon.path("certs/server.key"))
            .args([USERNAME, PASSWORD])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("python starts");
        let stdout = child.stdout.take().expect("piped");
        let mut lines = BufReader::new(stdout).lines();
        let first = lines.next_line().await.expect("a line").expect("a port");
        let first: Value = serde_json::from_str(&first).expect("JSON");
        let port = first["port"].as_u64().and_then(|port| port.try_into().ok());
        let messages = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&messages);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let message = serde_json::from_str(&line).expect("JSON");
                shared.lock().expect("no panic").push(message);
            }
        });
        Self {
            port: port.expect("a port"),
            messages,
            _child: child,
        }
    }

    /// Every message that was taken so far.
    pub fn messages(&self) -> Vec<Value> {
        self.messages.lock().expect("no panic").clone()
    }
}
