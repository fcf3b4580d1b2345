//! `claviger doctor`: checks a configuration against the live devices, database and certificates.
//!
//! Every check is printed, and the first failure does not hide the others. `FAIL` is what the daemon cannot work with, or
//! what no keeper of keys should; `WARN` is what somebody should look at before it fails; `note` is
//! what is under way. It changes nothing: the key
//! pair that the signing rate is measured with lives in a session only.

mod backends;
mod database;
mod kek;
mod keys;

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args as ClapArgs;

use super::{
    exit::{Exit, Failure, Result},
    output,
};
use crate::{
    app,
    authn::{self, ClientCertificate, Manner, ReloadableTls, TlsConfig},
    backends::{Priority, pkcs11::Modules, with_priority},
    clock::Clock,
    config::Config,
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
    /// Do not measure how fast tokens sign
    #[arg(long)]
    pub no_measure: bool,
}

/// A certificate that ends sooner is worth a warning.
const RENEW_WITHIN: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Runs `claviger doctor`.
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
        // A daemon may be at work with the same devices.
        with_priority(Priority::Batch, live(&config, &args, &mut report)).await?;
    }
    Ok(match report.failures {
        0 => Exit::Ok,
        _ => Exit::No,
    })
}

async fn live(config: &Config, args: &Args, report: &mut Report) -> Result<()> {
    certificates(&config.tls, report)?;
    let db = database::check(config, report).await?;
    // A PKCS#11 library is loaded once per process.
    let modules = Modules::new();
    let opened = app::open_backends(&config.backends, &modules).await;
    let devices = match opened {
        Ok(devices) => devices,
        Err(error) => return report.check("backends", Err::<&str, _>(error)),
    };
    for (name, device) in &devices {
        backends::check(name, &**device, report).await?;
    }
    for (name, section) in &config.backends {
        backends::inspect(name, section, &modules, !args.no_measure, report)?;
    }
    backends::expect_what_is_needed(config, db.as_ref(), &devices, report).await?;
    kek::check(config, db.as_ref(), &devices, report).await?;
    match db {
        Some(db) => keys::check(&db, &devices, report).await,
        None => Ok(()),
    }
}

fn certificates(tls: &TlsConfig, report: &mut Report) -> Result<()> {
    let usable = ReloadableTls::new(
        tls.clone(),
        Clock::System,
        Manner::grpc(ClientCertificate::Required),
    );
    let usable = usable.map(|_| "certificate, key and client CA fit together");
    report.check("tls", usable)?;
    let files = [
        ("certificate", Some(&tls.certificate)),
        ("client CA", tls.client_ca.as_ref()),
    ];
    for (what, path) in files {
        if let Some(path) = path {
            expiry(what, path, report)?;
        }
    }
    Ok(())
}

fn expiry(what: &str, path: &Path, report: &mut Report) -> Result<()> {
    let now = Clock::System.now();
    let what = format!("expiry of {what}");
    match authn::first_expiry(path) {
        Ok(at) if at <= now => report.fail(&what, format!("{}: expired at {at}", path.display())),
        Ok(at) if at <= now.plus(RENEW_WITHIN) => report.warn(
            &what,
            format!("{}: expires at {at}; renew it", path.display()),
        ),
        Ok(at) => report.ok(&what, at),
        Err(error) => report.fail(&what, error),
    }
}

/// What has been found so far.
#[derive(Default)]
struct Report {
    failures: usize,
}

impl Report {
    fn check(&mut self, what: &str, found: Result<impl Display, impl Display>) -> Result<()> {
        match found {
            Ok(text) => self.ok(what, text),
            Err(error) => self.fail(what, error),
        }
    }

    fn ok(&self, what: &str, text: impl Display) -> Result<()> {
        output::print(&format!("ok    {what}: {text}"))
    }

    fn note(&self, what: &str, text: impl Display) -> Result<()> {
        output::print(&format!("note  {what}: {text}"))
    }

    fn warn(&self, what: &str, text: impl Display) -> Result<()> {
        output::print(&format!("WARN  {what}: {text}"))
    }

    fn fail(&mut self, what: &str, text: impl Display) -> Result<()> {
        self.failures += 1;
        output::print(&format!("FAIL  {what}: {text}"))
    }
}
