//! `claviger serve`: the daemon.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::{
    exit::{Exit, Failure, Result},
    stop::Stop,
};
use crate::{app, clock::Clock, config::Config, telemetry};

/// Run the daemon until SIGTERM or Ctrl-C
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Runs `claviger serve`.
pub async fn run(args: Args) -> Result<Exit> {
    let config = Config::load(&args.config).map_err(Failure::usage)?;
    telemetry::logs(&config.log).map_err(Failure::usage)?;
    let mut stop = Stop::new()?;
    app::run(config, Clock::System, stop.asked())
        .await
        .map_err(Failure::other)?;
    Ok(Exit::Ok)
}
