//! `claviger doctor`: checks a configuration against the live token, database and certificates.

use std::{fmt::Display, path::PathBuf};

use clap::Args as ClapArgs;

use super::{
    exit::{Exit, Failure, Result},
    output,
};
use crate::{
    app, audit,
    authn::ReloadableTls,
    clock::Clock,
    config::Config,
    store::{Db, StoreError},
};

/// Check a configuration, and everything it points to
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Only the file itself and the policies; touch neither token, database nor certificates
    #[arg(long)]
    pub config_only: bool,
}

/// Runs `claviger doctor`: every check is printed; the first failure does not hide the others.
pub async fn run(args: Args) -> Result<Exit> {
    let mut report = Report::default();
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            report.check("configuration", Err::<&str, _>(error))?;
            return Ok(Exit::No);
        }
    };
    let environment = format!("{:?}", config.environment).to_lowercase();
    report.check("configuration", Ok::<_, Failure>(environment))?;
    let policies = app::policies(config.authz.policies.as_deref());
    let policies = policies.map(|p| format!("{} policies", p.sources().len()));
    report.check("policies", policies)?;
    if !args.config_only {
        live(&config, &mut report).await?;
    }
    Ok(match report.failures {
        0 => Exit::Ok,
        _ => Exit::No,
    })
}

async fn live(config: &Config, report: &mut Report) -> Result<()> {
    let tls = ReloadableTls::mtls(config.tls.clone(), Clock::System);
    let tls = tls.map(|_| "certificate, key and client CA fit together");
    report.check("tls", tls)?;
    let database = async {
        let db = Db::open_beside(&config.database).await?;
        db.check_schema().await?;
        let version = db.schema_version().await?;
        Ok::<_, StoreError>(format!("{}, schema {version}", db.engine()))
    };
    report.check("database", database.await)?;
    report.check("leftovers", leftovers(config).await)?;
    let backends = match app::open_backends(&config.backends).await {
        Ok(backends) => backends,
        Err(error) => return report.check("backends", Err::<&str, _>(error)),
    };
    for (name, backend) in &backends {
        let can = backend.capabilities();
        let algorithms: Vec<_> = can.algorithms.iter().map(|a| a.as_str()).collect();
        let text = format!("{}; {}", can.device, algorithms.join(" "));
        report.check(&format!("backend {name}"), Ok::<_, Failure>(text))?;
    }
    let kek = app::find_kek(&backends, &config.kek).await;
    let kek = kek.map(|kek| format!("{}; wraps and unwraps", kek.reference));
    report.check("key-encryption key", kek)
}

/// What interrupted attempts left on the devices. Nothing uses or deletes it, so it is a matter for people, not a fault.
async fn leftovers(config: &Config) -> std::result::Result<String, StoreError> {
    let db = Db::open_beside(&config.database).await?;
    let left = db.quarantined_intents().await?;
    let lines = left.iter().map(|intent| {
        let id = audit::hex(intent.id.as_bytes());
        format!(
            "\n        backend {}, CKA_ID {id}, of {}: {}",
            intent.backend, intent.label, intent.found
        )
    });
    Ok(match left.len() {
        0 => "none".into(),
        n => format!(
            "{n} quarantined; adopt them with `claviger key adopt`, or remove them from the device:{}",
            lines.collect::<String>()
        ),
    })
}

#[derive(Default)]
struct Report {
    failures: usize,
}

impl Report {
    fn check(&mut self, what: &str, found: Result<impl Display, impl Display>) -> Result<()> {
        match found {
            Ok(text) => output::print(&format!("ok    {what}: {text}")),
            Err(error) => {
                self.failures += 1;
                output::print(&format!("FAIL  {what}: {error}"))
            }
        }
    }
}
