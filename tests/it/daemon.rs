//! Real daemons for end-to-end tests: the built binary in a process of its own, a SoftHSM token of its own, a database
//! of its own, mutual TLS with a CA of its own.
//!
//! ```ignore
//! let daemon = Daemon::start(Engine::Sqlite).await;
//! daemon.actor("issuer").keys().create_key(request).await;
//! daemon.stop().await;
//! ```
//!
//! A test ends with `stop`, which checks what must hold after every test; one that forgets it fails. Files go away with
//! the value; `CLAVIGER_TEST_KEEP=1` keeps them. A failed test shows the end of the daemon's log.

#![allow(
    dead_code,
    unused_imports,
    reason = "a harness offers more than the tests of any one day use"
)]

mod actor;
mod database;
mod http;
mod rotated;
mod setup;
mod teardown;

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use claviger::grpc::proto::{Algorithm, CreateKeyRequest, Key, KeyPurpose, Rotation};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::{
    process::{Child, Command},
    sync::SemaphorePermit,
    time::{Instant, sleep, timeout},
};

pub use self::{
    actor::{Actor, reason},
    http::{Answer, https},
    setup::{Engine, Setup, TOKEN},
};
use crate::pki::{Ca, Leaf};

/// Bound of every wait: far beyond what a loaded machine with two cores needs.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);
/// Lines of the log that a failed test shows.
const TAIL: usize = 30;

/// One daemon and everything that belongs to it.
pub struct Daemon {
    dir: PathBuf,
    engine: Engine,
    /// Where its database is.
    url: String,
    /// Further variables of its environment.
    env: Vec<(String, String)>,
    pub ca: Arc<Ca>,
    leaves: Arc<BTreeMap<&'static str, Leaf>>,
    /// What must never be in the log.
    secrets: Vec<String>,
    child: Option<Child>,
    addresses: Addresses,
    channels: Mutex<BTreeMap<String, Actor>>,
    tampered: bool,
    finished: bool,
    /// None for a second daemon beside one that has it.
    _turn: Option<SemaphorePermit<'static>>,
}

/// The bound addresses, as the daemon writes them.
#[derive(Clone, Default, Deserialize)]
pub struct Addresses {
    pub grpc: String,
    pub public: String,
    pub ops: String,
}

/// A second daemon beside the first.
pub struct Twin {
    pub addresses: Addresses,
    _child: Child,
}

impl Daemon {
    /// A running daemon with the usual configuration; `Setup` makes unusual ones.
    pub async fn start(engine: Engine) -> Self {
        Setup::new(engine).start().await
    }

    /// Which database it has.
    pub const fn engine(&self) -> Engine {
        self.engine
    }

    /// Its directory, in the layout of `claviger dev`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn config_path(&self) -> PathBuf {
        self.path("claviger.toml")
    }

    /// Where its database is.
    pub fn database_url(&self) -> &str {
        &self.url
    }

    /// Changes the configuration; `restart` makes it hold.
    pub fn edit_config(&self, edit: impl FnOnce(String) -> String) {
        let path = self.config_path();
        let text = fs::read_to_string(&path).expect("claviger.toml");
        fs::write(path, edit(text)).expect("claviger.toml");
    }

    pub const fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Everything logged since the directory was made.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("claviger.log")).unwrap_or_default()
    }

    /// Says that this test broke the audit log on purpose, so that the teardown does not mind.
    pub const fn tampered(&mut self) {
        self.tampered = true;
    }

    /// A command of `claviger` with the daemon's environment; `--dir` is set, so `--as NAME` is enough to call it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.foreign(env!("CARGO_BIN_EXE_claviger"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CLAVIGER_") {
                command.env_remove(name);
            }
        }
        command
            .args(args)
            .env("CLAVIGER_CLIENT_DIR", &self.dir)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// A command that sees the daemon's token and nothing else of it.
    pub fn foreign(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("SOFTHSM2_CONF", self.path("softhsm2.conf"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs `claviger ARGS` to its end.
    pub async fn cli(&self, args: &[&str]) -> Output {
        let running = self.command(args).output();
        let output = timeout(PATIENCE, running).await;
        let output = output.unwrap_or_else(|_| panic!("claviger {args:?} does not end"));
        output.expect("claviger runs")
    }

    /// Runs `claviger ARGS`, which must succeed, and returns what it printed.
    pub async fn cli_ok(&self, args: &[&str]) -> String {
        let output = self.cli(args).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "claviger {args:?}: {said}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Starts `claviger serve` and waits until it is ready. Errors: it ended instead; the text is its log.
    pub async fn up(&mut self) -> Result<(), String> {
        assert!(self.child.is_none(), "the daemon is up already");
        let addresses = self.path("addresses.json");
        let _ = fs::remove_file(&addresses);
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.path("claviger.log"))
            .expect("a log");
        let config = self.config_path();
        let mut child = self
            .command(&["serve", "--config"])
            .arg(config)
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("claviger starts");
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("a child") {
                return Err(format!("{status}\n{}", self.log()));
            }
            if let Ok(found) = read_addresses(&addresses)
                && let Some(answer) = http::try_plain(&found.ops, "/readyz").await
                && answer.status == 200
            {
                self.addresses = found;
                self.child = Some(child);
                return Ok(());
            }
            assert!(Instant::now() < until, "not ready: {}", self.log());
            sleep(POLL).await;
        }
    }

    /// SIGTERM, and the end it comes to; the daemon can be started again.
    pub async fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the daemon is up");
        self.forget_channels();
        signal(&child, Signal::TERM);
        let ended = timeout(PATIENCE, child.wait()).await;
        let ended = ended.unwrap_or_else(|_| panic!("no end after SIGTERM: {}", self.log()));
        ended.expect("a child")
    }

    /// SIGKILL: no drain, no goodbye. The daemon can be started again.
    pub async fn kill(&mut self) {
        let mut child = self.child.take().expect("the daemon is up");
        self.forget_channels();
        child.kill().await.expect("a child");
    }

    /// Sets a variable of the environment in which the daemon is started from now on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.unset_env(name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Takes a variable back.
    pub fn unset_env(&mut self, name: &str) {
        self.env.retain(|(known, _)| known != name);
    }

    /// Waits until the daemon has ended by itself, and says how; it can be started again.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the daemon is up");
        self.forget_channels();
        let ended = timeout(PATIENCE, child.wait()).await;
        let ended = ended.unwrap_or_else(|_| panic!("it does not end: {}", self.log()));
        ended.expect("a child")
    }

    /// A second daemon on the same database and the same token, ready. It ends with the value.
    pub async fn twin(&self) -> Twin {
        assert_eq!(self.engine, Engine::Postgres, "SQLite serves one daemon");
        let text = fs::read_to_string(self.config_path()).expect("claviger.toml");
        let (one, two) = ("addresses.json", "addresses-two.json");
        assert!(text.contains(one) && text.contains("replica = \"one\""));
        let text = text.replace(one, two);
        let text = text.replace("replica = \"one\"", "replica = \"two\"");
        let config = self.path("claviger-two.toml");
        fs::write(&config, text).expect("claviger-two.toml");
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.path("claviger-two.log"))
            .expect("a log");
        let mut child = self
            .command(&["serve", "--config"])
            .arg(config)
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("claviger starts");
        let until = Instant::now() + PATIENCE;
        loop {
            let ended = child.try_wait().expect("a child");
            assert!(ended.is_none(), "the second daemon ended: {ended:?}");
            if let Ok(found) = read_addresses(&self.path(two))
                && let Some(answer) = http::try_plain(&found.ops, "/readyz").await
                && answer.status == 200
            {
                return Twin {
                    addresses: found,
                    _child: child,
                };
            }
            assert!(Instant::now() < until, "the second daemon is not ready");
            sleep(POLL).await;
        }
    }

    /// Ends the daemon in order, if it is up, and starts it again on the same files.
    pub async fn restart(&mut self) {
        if self.child.is_some() {
            let status = self.terminate().await;
            assert!(status.success(), "{status}: {}", self.log());
        }
        if let Err(why) = self.up().await {
            panic!("no restart: {why}");
        }
    }

    /// Waits until something holds.
    pub async fn until(&self, holds: impl AsyncFn() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !holds().await {
            assert!(Instant::now() < until, "it does not come: {}", self.log());
            sleep(POLL).await;
        }
    }

    /// Process id of the running daemon.
    pub fn pid(&self) -> u32 {
        let child = self.child.as_ref().expect("the daemon is up");
        child.id().expect("a running child")
    }

    /// GET over HTTPS from the public listener.
    pub async fn public_get(&self, path: &str) -> Answer {
        let config = self.ca.client_config(None);
        http::https(&self.addresses.public, config, path).await
    }

    /// GET over plain HTTP from the ops listener.
    pub async fn ops_get(&self, path: &str) -> Answer {
        let answer = http::try_plain(&self.addresses.ops, path).await;
        answer.expect("an answer of the ops listener")
    }

    /// A new key, made by the issuer.
    pub async fn key(
        &self,
        tenant: &str,
        name: &str,
        purpose: KeyPurpose,
        algorithm: Algorithm,
    ) -> Key {
        let request = CreateKeyRequest {
            tenant: tenant.to_owned(),
            name: name.to_owned(),
            purpose: purpose.into(),
            algorithm: algorithm.into(),
            owner: "team-e2e".to_owned(),
            ..Default::default()
        };
        let made = self.actor("issuer").keys().create_key(request).await;
        let made = made.unwrap_or_else(|status| panic!("CreateKey {name}: {status}"));
        made.into_inner().key.expect("a key")
    }

    /// Ends an open rotation behind the daemon's back: its successor is RETIRED and was never used.
    pub async fn withdraw(&self, rotation: &Rotation) {
        let (id, kid) = (&rotation.id, &rotation.new_kid);
        self.execute(&format!(
            "UPDATE rotations SET state = 'CANCELLED' WHERE id = '{id}'; \
             UPDATE key_versions SET state = 'RETIRED', retired_at = created_at WHERE kid = '{kid}'"
        ))
        .await;
    }

    fn forget_channels(&self) {
        self.channels.lock().expect("no panic").clear();
    }
}

fn signal(child: &Child, signal: Signal) {
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    let pid = id.and_then(Pid::from_raw).expect("a running child");
    kill_process(pid, signal).expect("a signal");
}

fn read_addresses(path: &Path) -> Result<Addresses, ()> {
    let text = fs::read(path).map_err(|_| ())?;
    serde_json::from_slice(&text).map_err(|_| ())
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let log = self.log();
        if std::env::var_os("CLAVIGER_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
        if std::thread::panicking() {
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(TAIL)..];
            eprintln!("--- the daemon's log ends with:\n{}\n---", tail.join("\n"));
        } else {
            assert!(
                self.finished,
                "a test with a daemon ends with daemon.stop()"
            );
        }
    }
}
