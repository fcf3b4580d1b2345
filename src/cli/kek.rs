//! `claviger kek`: the key-encryption key in the backend.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use tokio::time::Instant;

use super::{
    exit::{Exit, Failure, Result},
    output,
};
use crate::{
    app,
    backends::{
        BackendError,
        pkcs11::{Modules, uri::KeyUri},
    },
    config::Config,
    model::{IntentId, KeySpec},
};

/// Time for the token to generate a key.
const PATIENCE: Duration = Duration::from_secs(30);

/// Manage the key-encryption key
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create the configured key-encryption key, unless it exists
    Create(Create),
}

#[derive(Args, Debug)]
pub struct Create {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Runs `claviger kek …`.
pub async fn run(command: Command) -> Result<Exit> {
    let Command::Create(args) = command;
    let config = Config::load(&args.config).map_err(Failure::usage)?;
    let backends = app::open_backends(&config.backends, &Modules::new()).await;
    let backends = backends.map_err(Failure::other)?;
    let backend = backends
        .get(&config.kek.backend)
        .ok_or_else(|| Failure::usage("kek.backend is not configured"))?;
    let deadline = Instant::now() + PATIENCE;
    match backend.adopt(&config.kek.uri, KeySpec::Kek, deadline).await {
        Ok(found) => output::print(&format!("exists already: {}", found.reference))?,
        // The one place where "not there" leads to a new key: a person asked for it, by name.
        Err(BackendError::Missing(_)) => {
            let label = label(&config.kek.uri)?;
            let created = backend
                .create(KeySpec::Kek, IntentId::random(), &label, deadline)
                .await
                .map_err(Failure::other)?;
            output::print(&format!("created: {}", created.reference))?;
        }
        Err(other) => return Err(Failure::other(other)),
    }
    Ok(Exit::Ok)
}

/// The label that makes the configured URI find the new key.
fn label(uri: &str) -> Result<String> {
    if uri.starts_with("alias/") || uri.starts_with("arn:") {
        return Err(Failure::usage(
            "kek.uri names a key in AWS KMS: create a symmetric key there, and the alias",
        ));
    }
    let parsed = KeyUri::parse(uri).map_err(|e| Failure::usage(format!("kek.uri: {e}")))?;
    match (parsed.object, parsed.id) {
        (Some(label), None) => Ok(label),
        _ => Err(Failure::usage(
            "kek.uri must name the key by `object` and without `id`, which is chosen at creation",
        )),
    }
}
