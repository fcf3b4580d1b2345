//! Drivers: what mints a new value, and revokes an old one, without a person. One for each provider, configured.
//!
//! A driver is asked with an id that stays the same however often it is asked, and never with a secret: what it is to revoke
//! it knows by the ids of the values that it has minted. It answers in seconds, or says that it needs more time.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::hmac;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::timeout,
};
use zeroize::Zeroizing;

use crate::{
    egress::{Egress, Request},
    error::{Error, Reason, Result},
    model::{RotationDriver, Secret, SecretFields, TenantName, Timestamp},
};

/// Time for a driver to answer: jobs wait for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer at most.
const MAX_ANSWER: u64 = 64 << 10;
/// Bytes of a webhook's secret at least.
const MIN_SECRET: usize = 16;
/// Exit status of a command that needs more time: `EX_TEMPFAIL` of sysexits.
const NOT_YET: i32 = 75;

/// Section `[vault.rotation.drivers.PROVIDER]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DriverConfig {
    /// URL of an endpoint that mints and revokes.
    pub webhook: Option<String>,
    /// File with the secret that requests to the webhook are signed by, 16 bytes or more; a line feed at its end is left
    /// out.
    pub secret_file: Option<PathBuf>,
    /// A local program that does the same, with its arguments; its path is absolute.
    pub command: Vec<String>,
    /// Tenants whose credentials it may rotate: it mints in the operator's account at the provider. No others may use it.
    pub tenants: Vec<String>,
}

/// How the values of a provider are minted, and for whom.
pub struct Driver {
    how: How,
    tenants: BTreeSet<TenantName>,
}

enum How {
    /// By an endpoint.
    Webhook {
        /// Where.
        url: String,
        /// Signs what is sent.
        key: Box<hmac::Key>,
    },
    /// By a program.
    Command {
        /// Which.
        program: PathBuf,
        /// Its arguments.
        args: Vec<String>,
    },
}

/// What a driver is asked.
pub(super) struct Question {
    /// Stays the same when it is asked again.
    pub(super) id: String,
    /// All of it, as JSON.
    pub(super) body: Value,
}

#[derive(Deserialize)]
struct Minted {
    fields: BTreeMap<String, Secret<String>>,
}

impl DriverConfig {
    /// Errors: a sentence that says what is wrong.
    pub fn check(&self) -> std::result::Result<(), String> {
        self.tenants()?;
        match (&self.webhook, &self.secret_file, self.command.as_slice()) {
            (Some(url), Some(_), []) if url.starts_with("https://") || url.starts_with("http://") => {
                Ok(())
            }
            (None, None, [program, ..]) if program.starts_with('/') => Ok(()),
            _ => Err(
                "is a webhook (an https:// URL) with its secret_file, or a command with an absolute path".into(),
            ),
        }
    }

    /// Who may use it: somebody, or it is of no use and a name is missing.
    fn tenants(&self) -> std::result::Result<BTreeSet<TenantName>, String> {
        let tenants = self.tenants.iter().map(|name| {
            let tenant = name.parse::<TenantName>();
            tenant.map_err(|e| format!("tenants: {}", e.message()))
        });
        let tenants = tenants.collect::<std::result::Result<BTreeSet<_>, _>>()?;
        match tenants.is_empty() {
            true => Err(
                "tenants must name the tenants that may use it: it mints in your account".into(),
            ),
            false => Ok(tenants),
        }
    }

    /// Errors: a sentence that says what is wrong.
    pub fn driver(&self) -> std::result::Result<Driver, String> {
        self.check()?;
        Ok(Driver {
            how: self.how()?,
            tenants: self.tenants()?,
        })
    }

    fn how(&self) -> std::result::Result<How, String> {
        let (Some(url), Some(path)) = (&self.webhook, &self.secret_file) else {
            let mut words = self.command.iter();
            return Ok(How::Command {
                program: words.next().map(PathBuf::from).unwrap_or_default(),
                args: words.cloned().collect(),
            });
        };
        let secret = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let secret = Zeroizing::new(secret);
        let secret = secret.strip_suffix(b"\n").unwrap_or(&secret);
        if secret.len() < MIN_SECRET {
            return Err(format!("{}: a secret has 16 bytes or more", path.display()));
        }
        Ok(How::Webhook {
            url: url.clone(),
            key: Box::new(hmac::Key::new(hmac::HMAC_SHA256, secret)),
        })
    }
}

impl Driver {
    /// What it is, as a credential says it.
    pub const fn kind(&self) -> RotationDriver {
        match self.how {
            How::Webhook { .. } => RotationDriver::Webhook,
            How::Command { .. } => RotationDriver::Command,
        }
    }

    /// May credentials of this tenant be rotated by it?
    pub fn serves(&self, tenant: &TenantName) -> bool {
        self.tenants.contains(tenant)
    }

    /// Whose credentials it may rotate.
    pub fn tenants(&self) -> impl Iterator<Item = &TenantName> {
        self.tenants.iter()
    }

    /// A new secret; None when the driver needs more time.
    ///
    /// Errors: CREDENTIAL_DRIVER_FAILED, which tells nothing of the answer.
    pub(super) async fn mint(
        &self,
        egress: &Arc<Egress>,
        question: &Question,
        now: Timestamp,
    ) -> Result<Option<SecretFields>> {
        let Some(answer) = self.ask(egress, question, now).await? else {
            return Ok(None);
        };
        // serde_json would quote what it does not understand.
        let minted: Minted =
            serde_json::from_slice(&answer).map_err(|_| failed("ANSWER".to_owned()))?;
        SecretFields::new(minted.fields).map(Some)
    }

    /// Asks it to revoke, or to withdraw; false when it needs more time.
    ///
    /// Errors: CREDENTIAL_DRIVER_FAILED.
    pub(super) async fn revoke(
        &self,
        egress: &Arc<Egress>,
        question: &Question,
        now: Timestamp,
    ) -> Result<bool> {
        let answer = self.ask(egress, question, now).await?;
        Ok(answer.is_some())
    }

    async fn ask(
        &self,
        egress: &Arc<Egress>,
        question: &Question,
        now: Timestamp,
    ) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let body = question.body.to_string();
        match &self.how {
            How::Webhook { url, key } => {
                let (at, id) = (now.seconds().to_string(), &question.id);
                let tag = hmac::sign(key, format!("{id}.{at}.{body}").as_bytes());
                let tag: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
                let request = Request::new(http::Method::POST, url.clone())
                    .header("content-type", "application/json")
                    .header("webhook-id", id.clone())
                    .header("webhook-timestamp", at)
                    .header("webhook-signature", tag)
                    .body(body)
                    .patience(PATIENCE);
                let answer = egress.send(request).await;
                let answer = answer.map_err(|error| failed(error.as_str().to_owned()))?;
                match answer.status {
                    202 => Ok(None),
                    200..=299 => Ok(Some(answer.body)),
                    status => Err(failed(format!("HTTP_{status}"))),
                }
            }
            How::Command { program, args } => {
                let mut command = Command::new(program);
                command.args(args).env_clear().kill_on_drop(true);
                // A group of its own, so that what it starts ends with it.
                command.process_group(0);
                command.stdin(Stdio::piped()).stdout(Stdio::piped());
                command.stderr(Stdio::null());
                let answer = timeout(PATIENCE, run(command, body.as_bytes())).await;
                answer.unwrap_or_else(|_| Err(failed("TIMEOUT".to_owned())))
            }
        }
    }
}

async fn run(mut command: Command, question: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let unusable = |error: std::io::Error| failed("COMMAND".to_owned()).because(error);
    let mut child = command.spawn().map_err(unusable)?;
    let mut group = Group::of(&child);
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read what it is asked has its reasons; its status says whether it succeeded.
        let _ = stdin.write_all(question).await;
    }
    // All at once: what grows leaves copies behind.
    let mut answer = Zeroizing::new(Vec::with_capacity(MAX_ANSWER as usize + 1));
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = stdout.take(MAX_ANSWER + 1);
        stdout.read_to_end(&mut answer).await.map_err(unusable)?;
    }
    if answer.len() as u64 > MAX_ANSWER {
        return Err(failed("TOO_LONG".to_owned()));
    }
    let status = child.wait().await.map_err(unusable)?;
    // Its number may be somebody else's from here on.
    group.0 = None;
    match status.code() {
        Some(0) => Ok(Some(answer)),
        Some(NOT_YET) => Ok(None),
        Some(code) => Err(failed(format!("EXIT_{code}"))),
        None => Err(failed("SIGNAL".to_owned())),
    }
}

/// A program and everything that it has started and that has not left its group: killed with this, unless it ended by itself.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.and_then(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Nobody is left in it: that is what was wanted.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

fn failed(code: String) -> Error {
    Error::new(
        Reason::CredentialDriverFailed,
        format!("the driver that mints this provider's values failed: {code}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(script: &str) -> Driver {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let config = DriverConfig {
            command,
            tenants: vec!["acme".to_owned()],
            ..DriverConfig::default()
        };
        config.driver().expect("a driver")
    }

    async fn mint(script: &str) -> Result<Option<SecretFields>> {
        let config = crate::egress::EgressConfig::default();
        let egress = Arc::new(Egress::new(&config).expect("egress"));
        let question = Question {
            id: "1".to_owned(),
            body: serde_json::json!({ "event": "mint" }),
        };
        let driver = command(script);
        driver.mint(&egress, &question, Timestamp::default()).await
    }

    // R-CRED-7
    #[tokio::test]
    async fn a_program_is_asked_on_stdin_and_answers_on_stdout() {
        let script = r#"grep -q '"event":"mint"' && echo '{"fields":{"api_key":"minted"}}'"#;
        let minted = mint(script).await.expect("an answer").expect("a secret");
        let key = minted.get("api_key").expect("a field");
        assert_eq!(key.expose_secret(), "minted");
        assert!(mint("exit 75").await.expect("an answer").is_none());
        // Nothing of the daemon's environment is its business.
        let script = r#"test -z "$HOME$CARGO_MANIFEST_DIR" || exit 3; exit 75"#;
        assert!(mint(script).await.expect("an answer").is_none());
    }

    #[tokio::test]
    async fn what_fails_is_told_without_a_word_of_the_answer() {
        for (script, code) in [
            ("echo planted; exit 4", "EXIT_4"),
            ("kill -9 $$", "SIGNAL"),
            ("echo planted", "ANSWER"),
            ("echo '{\"fields\":{\"api_key\":[\"planted\"]}}'", "ANSWER"),
            ("head -c 70000 /dev/zero", "TOO_LONG"),
            ("sleep 60", "TIMEOUT"),
        ] {
            let error = mint(script).await.err().expect(script);
            assert_eq!(error.reason(), Reason::CredentialDriverFailed, "{script}");
            assert!(error.message().ends_with(code), "{error}");
            assert!(!format!("{error:?}").contains("planted"), "{error:?}");
        }
        let error = mint(r#"echo '{"fields":{"api_key":""}}'"#).await.err();
        assert_eq!(error.expect("empty").reason(), Reason::InvalidField);
    }

    // R-CRED-7
    #[tokio::test]
    async fn what_a_program_has_started_ends_with_it() {
        let file = std::env::temp_dir().join(format!("claviger-{}", uuid::Uuid::now_v7()));
        let script = format!("/bin/sleep 600 & echo $! > {}; wait", file.display());
        let error = mint(&script).await.err().expect("a timeout");
        assert!(error.message().ends_with("TIMEOUT"), "{error}");
        let id = std::fs::read_to_string(&file).expect("a process id");
        std::fs::remove_file(&file).expect("removed");
        let stat = format!("/proc/{}/stat", id.trim());
        // Somebody else reaps it: until then it is there, and dead.
        let is_dead = || {
            let stat = std::fs::read_to_string(&stat).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while !is_dead() {
            assert!(std::time::Instant::now() < until, "it lives on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    // R-CRED-7
    #[test]
    fn a_driver_serves_the_tenants_that_it_is_configured_for_and_no_others() {
        let driver = command("true");
        let serves = |tenant: &str| driver.serves(&tenant.parse().expect("a tenant"));
        assert!(serves("acme"));
        assert!(!serves("globex") && !serves("acme-2"));
        for tenants in [vec![], vec!["*".to_owned()], vec!["Not One".to_owned()]] {
            let config = DriverConfig {
                command: vec!["/bin/true".to_owned()],
                tenants,
                ..DriverConfig::default()
            };
            let refused = config.driver().err().expect("refused");
            assert!(refused.contains("tenants"), "{refused}");
        }
    }

    #[test]
    fn a_driver_is_a_webhook_or_a_command() {
        let tenants = || vec!["acme".to_owned()];
        let webhook = |url: &str, file: Option<&str>| DriverConfig {
            webhook: Some(url.to_owned()),
            secret_file: file.map(PathBuf::from),
            command: Vec::new(),
            tenants: tenants(),
        };
        assert!(webhook("https://x.test", Some("/f")).check().is_ok());
        let mut both = webhook("https://x.test", Some("/f"));
        both.command = vec!["/bin/true".to_owned()];
        let relative = DriverConfig {
            command: vec!["true".to_owned()],
            tenants: tenants(),
            ..DriverConfig::default()
        };
        for bad in [
            both,
            relative,
            webhook("https://x.test", None),
            webhook("ftp://x.test", Some("/f")),
            DriverConfig::default(),
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
