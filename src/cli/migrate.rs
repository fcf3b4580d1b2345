//! `claviger migrate`: brings the database to the schema of this binary.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::exit::{Exit, Failure, Result};

/// Migrate the database
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Change nothing; exit code 0 when the schema is current, 1 when migrations are pending
    #[arg(long)]
    pub check: bool,
}

/// Runs `claviger migrate`.
pub async fn run(args: Args) -> Result<Exit> {
    let path = args.config.display();
    Err(Failure::other(format!("{path}: migrate is not built yet")))
}
