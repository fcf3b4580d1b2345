//! `claviger kek`: the key-encryption key in the backend.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::exit::{Exit, Failure, Result};

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
    let path = args.config.display();
    Err(Failure::other(format!(
        "{path}: kek create is not built yet"
    )))
}
