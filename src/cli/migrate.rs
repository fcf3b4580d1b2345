//! `claviger migrate`: brings the database to the schema of this binary.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::{
    exit::{Exit, Failure, Result},
    output,
};
use crate::{
    config::Config,
    store::{Db, StoreError},
};

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
    let config = Config::load(&args.config).map_err(Failure::usage)?;
    if args.check {
        let db = Db::open_beside(&config.database).await;
        let db = db.map_err(Failure::unavailable)?;
        return match db.check_schema().await {
            Ok(()) => Ok(Exit::Ok),
            Err(StoreError::Setup(pending)) => {
                output::print(&pending)?;
                Ok(Exit::No)
            }
            Err(other) => Err(Failure::unavailable(other)),
        };
    }
    // With the daemon's own lock on SQLite: nobody migrates under a running daemon.
    let db = Db::open(&config.database).await;
    let db = db.map_err(Failure::unavailable)?;
    db.migrate().await.map_err(Failure::other)?;
    db.close().await;
    Ok(Exit::Ok)
}
