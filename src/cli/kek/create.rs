//! `claviger kek create`: the configured key-encryption key, made in its backend. No daemon is asked.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use tokio::time::Instant;

use crate::{
    app,
    backends::{
        BackendError,
        pkcs11::{Modules, uri::KeyUri},
    },
    cli::{
        exit::{Exit, Failure, Result},
        output,
    },
    config::Config,
    model::{IntentId, KeySpec},
};

/// Time for the token to generate a key.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Args, Debug)]
pub struct Create {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// RFC 7512 URI of the key to create, for a rotation; kek.uri when left out
    #[arg(long)]
    pub uri: Option<String>,
    /// Backend to create it in; kek.backend when left out
    #[arg(long)]
    pub backend: Option<String>,
}

/// Creates it, unless it exists.
pub async fn run(args: Create) -> Result<Exit> {
    let config = Config::load(&args.config).map_err(Failure::usage)?;
    let uri = args.uri.as_ref().unwrap_or(&config.kek.uri);
    let name = args.backend.as_ref().unwrap_or(&config.kek.backend);
    let backends = app::open_backends(&config.backends, &Modules::new()).await;
    let backends = backends.map_err(Failure::other)?;
    let backend = backends
        .get(name)
        .ok_or_else(|| Failure::usage(format!("backend {name} is not configured")))?;
    let deadline = Instant::now() + PATIENCE;
    match backend.adopt(uri, KeySpec::Kek, deadline).await {
        Ok(found) => output::print(&format!("exists already: {}", found.reference))?,
        // The one place where "not there" leads to a new key: a person asked for it, by name.
        Err(BackendError::Missing(_)) => {
            let label = label(uri)?;
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
            "the URI names a key in AWS KMS: create a symmetric key there, and the alias",
        ));
    }
    let parsed = KeyUri::parse(uri).map_err(|e| Failure::usage(format!("URI of the key: {e}")))?;
    match (parsed.object, parsed.id) {
        (Some(label), None) => Ok(label),
        _ => Err(Failure::usage(
            "the URI must name the key by `object` and without `id`, which is chosen at creation",
        )),
    }
}
