//! `claviger serve`: the daemon.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::exit::{Exit, Failure, Result};

/// Run the daemon until SIGTERM or Ctrl-C
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Runs `claviger serve`.
pub async fn run(args: Args) -> Result<Exit> {
    let path = args.config.display();
    Err(Failure::other(format!("{path}: serve is not built yet")))
}
