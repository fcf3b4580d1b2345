//! `claviger hsm`: prepares a PKCS#11 token.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use super::exit::{Exit, Failure, Result};
use crate::{
    backends::pkcs11::{Modules, provision},
    model::{Secret, secret::SecretString},
};

/// Prepare a PKCS#11 token
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Initialise the first free slot as a token with a label and PINs
    Init(Init),
}

#[derive(Args, Debug)]
pub struct Init {
    /// PKCS#11 module
    #[arg(long, value_name = "PATH")]
    pub module: PathBuf,
    /// Label of the new token
    #[arg(long)]
    pub label: String,
    /// File that holds the user PIN
    #[arg(long, value_name = "FILE")]
    pub pin_file: PathBuf,
    /// File that holds the security officer's PIN
    #[arg(long, value_name = "FILE")]
    pub so_pin_file: PathBuf,
}

/// Runs `claviger hsm …`.
pub async fn run(command: Command) -> Result<Exit> {
    let Command::Init(args) = command;
    let pin = pin(&args.pin_file)?;
    let so_pin = pin_of_officer(&args.so_pin_file, &pin)?;
    let module = Modules::new().load(&args.module).map_err(Failure::other)?;
    provision::init_token(&module, &args.label, &so_pin, &pin).map_err(Failure::other)?;
    Ok(Exit::Ok)
}

fn pin(path: &Path) -> Result<SecretString> {
    let text = fs::read_to_string(path)
        .map_err(|e| Failure::usage(format!("cannot read {}: {e}", path.display())))?;
    let pin = text.strip_suffix('\n').unwrap_or(&text);
    if pin.is_empty() {
        return Err(Failure::usage(format!("{} is empty", path.display())));
    }
    Ok(Secret::new(pin.to_owned()))
}

/// Whoever knows the daemon's PIN must not be able to re-initialise the token with it.
fn pin_of_officer(path: &Path, user: &SecretString) -> Result<SecretString> {
    let so_pin = pin(path)?;
    if so_pin.expose_secret() == user.expose_secret() {
        return Err(Failure::usage("the two PINs must differ"));
    }
    Ok(so_pin)
}
