//! `claviger dev`: a complete environment below one directory, and the main job performed on it with real
//! calls over mTLS, step by step.
//!
//! provision.rs makes the files, daemon.rs runs the daemon as a child, steps/ are the story. This file puts
//! them in order, and sees to it that the daemon ends with us, whatever happens.

pub mod certs;
mod daemon;
pub mod files;
mod http;
mod provision;
mod steps;
mod story;
mod tamper;

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use super::{
    exit::{Exit, Failure, Result},
    options::{Addresses, DEV_DIR},
    output::shell_word,
    stop::Stop,
};
use daemon::Daemon;
use provision::{Choice, Environment, TOKEN};
use story::Story;

/// Run a complete local environment below --dir [default: .dev], and watch the main job run on it
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// Perform the main job and exit, instead of serving until Ctrl-C
    #[arg(long)]
    once: bool,
    /// Port of the gRPC listener; 0 for a free one
    #[arg(long, value_name = "PORT", default_value_t = 8443)]
    grpc_port: u16,
    /// Port of the public HTTPS listener; 0 for a free one
    #[arg(long, value_name = "PORT", default_value_t = 8444)]
    public_port: u16,
    /// Port of the health and metrics listener; 0 for a free one
    #[arg(long, value_name = "PORT", default_value_t = 9090)]
    ops_port: u16,
    /// `sqlite` for a file below the directory, or a URL postgres://…
    #[arg(long, value_name = "sqlite|URL", default_value = "sqlite", value_parser = database, env = "CLAVIGER_DEV_DATABASE", hide_env_values = true)]
    database: String,
}

/// Runs `claviger dev`.
pub async fn run(args: Args, dir: Option<PathBuf>) -> Result<Exit> {
    let dir = dir.unwrap_or_else(|| PathBuf::from(DEV_DIR));
    let choice = Choice {
        grpc_port: args.grpc_port,
        public_port: args.public_port,
        ops_port: args.ops_port,
        database: args.database,
    };
    let mut stop = Stop::new()?;
    let environment = Environment::provision(&dir, &choice)?;
    let mut story = Story::new();
    story.line(&format!(
        "Claviger development environment in {}",
        environment.dir.display()
    ));

    let started = tokio::select! {
        started = start(&environment, &mut story) => started,
        () = stop.asked() => return Err(interrupted()),
    };
    let mut daemon = started.inspect_err(|_| show_log(&environment))?;
    let addresses = daemon.addresses().clone();

    let outcome = tokio::select! {
        job = steps::main_job(&environment, &addresses, &mut story) => job,
        died = daemon.died() => Err(died),
        () = stop.asked() => Err(interrupted()),
    };
    let keys = match outcome {
        Ok(keys) => keys,
        Err(failure) => {
            let failure = story.failed(&daemon.dead().unwrap_or(failure));
            show_log(&environment);
            // The story's failure is the one to report.
            let _ = daemon.stop().await;
            return Err(failure);
        }
    };
    let summary = format!("main job: ok ({} steps)", story.steps());
    if args.once {
        daemon
            .stop()
            .await
            .inspect_err(|_| show_log(&environment))?;
        story.line(&format!("\n{summary}"));
        return Ok(Exit::Ok);
    }
    story.line(&format!(
        "\n{summary}\n{}",
        next_commands(&dir, &environment, &addresses, &keys)
    ));
    tokio::select! {
        died = daemon.died() => {
            show_log(&environment);
            return Err(died);
        }
        () = stop.asked() => story.line("\nstopping"),
    }
    daemon
        .stop()
        .await
        .inspect_err(|_| show_log(&environment))?;
    Ok(Exit::Ok)
}

/// Prepares token, key-encryption key and database, and starts the daemon.
async fn start(environment: &Environment, story: &mut Story) -> Result<Daemon> {
    match environment.new_certificates {
        0 => story.preparation("certificates: those of the last run are still good"),
        made => story.preparation(&format!(
            "certificates: {made} new ones, from a development CA"
        )),
    }
    if environment.token_missing()? {
        let path = |path: &Path| path.display().to_string();
        let module = path(&environment.module);
        let (pin, so_pin) = (
            path(&environment.path("secrets/pin")),
            path(&environment.path("secrets/so_pin")),
        );
        let args = [
            "hsm",
            "init",
            "--module",
            &module,
            "--label",
            TOKEN,
            "--pin-file",
            &pin,
            "--so-pin-file",
            &so_pin,
        ];
        daemon::once(environment, &args).await?;
        environment.token_made()?;
        story.preparation(&format!("PKCS#11 token {TOKEN}: new, with a random PIN"));
    } else {
        story.preparation(&format!("PKCS#11 token {TOKEN}: that of the last run"));
    }
    let config = environment.config.display().to_string();
    daemon::once(environment, &["kek", "create", "--config", &config]).await?;
    story.preparation("key-encryption key claviger-kek: in the token");
    daemon::once(environment, &["migrate", "--config", &config]).await?;
    story.preparation("database: migrated");
    let daemon = Daemon::start(environment).await?;
    let Addresses { grpc, public, ops } = daemon.addresses();
    story.preparation(&format!(
        "daemon: ready; gRPC {grpc}, public {public}, ops {ops}"
    ));
    Ok(daemon)
}

fn interrupted() -> Failure {
    Failure::other("interrupted")
}

fn show_log(environment: &Environment) {
    let tail = daemon::log_tail(environment);
    if !tail.is_empty() {
        story::complain(&format!(
            "the end of {}:\n{tail}\n",
            environment.path("claviger.log").display()
        ));
    }
}

fn database(argument: &str) -> std::result::Result<String, String> {
    match argument {
        "sqlite" => Ok(argument.to_owned()),
        url if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
            Ok(url.to_owned())
        }
        _ => Err("expected `sqlite` or a URL that begins with postgres://".to_owned()),
    }
}

/// Command lines that work as they stand.
fn next_commands(
    dir: &Path,
    environment: &Environment,
    addresses: &Addresses,
    keys: &steps::Keys,
) -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("claviger"));
    let word = |path: &Path| shell_word(&path.display().to_string());
    let claviger = format!("{} --dir {}", word(&program), word(dir));
    let (certificate, key) = certs::pair(&environment.dir, "service");
    let (ca, certificate, key) = (
        word(&environment.path("certs/ca.crt")),
        word(&certificate),
        word(&key),
    );
    let steps::Keys {
        orders,
        tokens,
        vault,
    } = keys;
    let Addresses { grpc, public, ops } = addresses;
    format!(
        r#"
The daemon keeps serving until Ctrl-C. To try next, from another terminal:

  printf hello | {claviger} --as service sign --key {orders}
  printf hello | {claviger} --as service encrypt --key {vault} --aad order=1 --out /tmp/hello.enc
  {claviger} --as service decrypt --key {vault} --aad order=1 --in /tmp/hello.enc
  {claviger} --as service token issue --key {tokens} --audience orders-api
  {claviger} --as issuer key list --tenant acme
  {claviger} --as issuer rotation request --tenant acme --key {orders} --justification 'trying it'
  {claviger} --as approver rotation list --tenant acme --waiting-for me
  {claviger} --as officer incident list --tenant acme
  {claviger} --as auditor audit list --tenant acme --limit 20
  {claviger} --as auditor audit verify

  curl --cacert {ca} https://{public}/.well-known/jwks.json
  curl http://{ops}/readyz
  grpcurl -cacert {ca} -cert {certificate} -key {key} \
    -d '{{"key":"{orders}","message":"aGVsbG8="}}' {grpc} claviger.v1.CryptoService/Sign
"#
    )
}
