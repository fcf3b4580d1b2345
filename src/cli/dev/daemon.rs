//! The child processes of `claviger dev`: short ones that prepare, and the daemon itself.
//!
//! Children, because a PKCS#11 module is loaded into the process and belongs to one daemon only, and because
//! what runs then is what runs in production. They get SOFTHSM2_CONF, and none of the caller's CLAVIGER_…
//! variables, which would override the file.

use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

use super::{files, http, provision::Environment};
use crate::cli::{
    exit::{Failure, Result},
    options::Addresses,
};

/// How long the daemon may take to become ready, and to go.
const READY: Duration = Duration::from_secs(60);
const DRAIN: Duration = Duration::from_secs(45);
/// Lines of the log that a failure shows.
const TAIL: usize = 20;

/// The running daemon. Dropping it kills it.
pub struct Daemon {
    child: Child,
    addresses: Addresses,
}

/// Runs `claviger ARGS` to its end. Errors carry what it said on stderr.
pub async fn once(environment: &Environment, args: &[&str]) -> Result<()> {
    let output = command(environment)?
        .args(args)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|e| Failure::other(format!("cannot run claviger: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("error: ");
    let what = args.iter().take_while(|arg| !arg.starts_with("--"));
    let what: Vec<_> = what.copied().collect();
    Err(Failure::other(format!(
        "claviger {}: {said}",
        what.join(" ")
    )))
}

impl Daemon {
    /// Starts `claviger serve` and waits until it is ready.
    pub async fn start(environment: &Environment) -> Result<Self> {
        let addresses_file = environment.path("addresses.json");
        files::remove(&addresses_file)?;
        let log_path = log(environment);
        let log = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&log_path)
            .map_err(|e| files::failed("cannot write", &log_path, &e))?;
        let errors = log
            .try_clone()
            .map_err(|e| files::failed("cannot write", &log_path, &e))?;
        let child = command(environment)?
            .args(["serve", "--config"])
            .arg(&environment.config)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // Ctrl-C is for us; we stop the daemon in order.
            .process_group(0)
            .spawn()
            .map_err(|e| Failure::other(format!("cannot run claviger: {e}")))?;
        let mut starting = Starting { child };
        let addresses = starting.ready(environment, &addresses_file).await?;
        Ok(Self {
            child: starting.child,
            addresses,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Waits until it ends of its own accord, which it should not.
    pub async fn died(&mut self) -> Failure {
        died(self.child.wait().await)
    }

    /// Has it ended? Then why.
    pub fn dead(&mut self) -> Option<Failure> {
        self.child.try_wait().transpose().map(died)
    }

    /// Asks it to drain and waits for its clean exit.
    pub async fn stop(mut self) -> Result<()> {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = id.and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM)
                .map_err(|e| Failure::other(format!("cannot stop the daemon: {e}")))?;
        }
        match tokio::time::timeout(DRAIN, self.child.wait()).await {
            Err(_) => Err(Failure::other(format!(
                "the daemon did not stop within {DRAIN:?}"
            ))),
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(ended) => Err(died(ended)),
        }
    }
}

struct Starting {
    child: Child,
}

impl Starting {
    async fn ready(
        &mut self,
        environment: &Environment,
        addresses_file: &Path,
    ) -> Result<Addresses> {
        let until = Instant::now() + READY;
        loop {
            if let Some(ended) = self.child.try_wait().transpose() {
                return Err(died(ended));
            }
            if addresses_file.is_file()
                && let Ok(addresses) = Addresses::read(&environment.dir)
                && let Ok(answer) = http::plain(&addresses.ops, "/readyz").await
                && answer.status.is_success()
            {
                return Ok(addresses);
            }
            if Instant::now() > until {
                return Err(Failure::other(format!(
                    "the daemon was not ready within {READY:?}"
                )));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The last lines of the daemon's log.
pub fn log_tail(environment: &Environment) -> String {
    let bytes = files::bytes(&log(environment)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

fn log(environment: &Environment) -> std::path::PathBuf {
    environment.path("claviger.log")
}

fn command(environment: &Environment) -> Result<Command> {
    let program = std::env::current_exe()
        .map_err(|e| Failure::other(format!("cannot find my own executable: {e}")))?;
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CLAVIGER_") {
            command.env_remove(name);
        }
    }
    command
        .env("SOFTHSM2_CONF", &environment.softhsm_conf)
        .kill_on_drop(true);
    Ok(command)
}

fn died(ended: std::io::Result<ExitStatus>) -> Failure {
    match ended {
        Ok(status) => Failure::other(format!("the daemon has ended: {status}")),
        Err(e) => Failure::other(format!("the daemon has ended: {e}")),
    }
}
