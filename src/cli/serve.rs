//! `claviger serve`: the daemon.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use rustix::process::{Resource, Rlimit, setrlimit};

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
    let traces = telemetry::traces(&config.telemetry, config.identity()).map_err(Failure::usage)?;
    let (tracer, export) = traces.unzip();
    telemetry::logs(&config.log, tracer).map_err(Failure::usage)?;
    no_core_dumps();
    let mut stop = Stop::new()?;
    app::run(config, Clock::System, export, stop.asked())
        .await
        .map_err(Failure::other)?;
    Ok(Exit::Ok)
}

/// Unwrapped data keys are in memory; a core dump would write them to a disk.
fn no_core_dumps() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps cannot be disabled");
    }
}
