//! `claviger hsm`: prepares a PKCS#11 token.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::exit::{Exit, Failure, Result};

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
    let module = args.module.display();
    Err(Failure::other(format!(
        "{module}: hsm init is not built yet"
    )))
}
