//! `claviger restore`: is the database an older copy than the checkpoints know, and who stands for that (`crate::restore`).

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    exit::{Exit, Failure, Result},
    output,
};
use crate::{
    audit::{self, CheckpointConfig},
    config::Config,
    restore::{self, Acknowledged, Lost},
    store::Db,
};

/// Tell whether the database was set back, and let an older copy count
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Compare the database with the last checkpoint; exit code 0 when it fits, 1 when it was set back. Changes nothing
    Status(Status),
    /// Let an older copy of the database count: every version that was compromised by the last checkpoint is declared so again
    Acknowledge(Acknowledge),
}

#[derive(Args, Debug)]
pub struct Status {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Args, Debug)]
pub struct Acknowledge {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Who stands for the copy; goes into the audit log
    #[arg(long, value_parser = line)]
    by: String,
    /// Why it was restored; goes into the audit log
    #[arg(long, value_parser = line)]
    reason: String,
}

/// A line for the log: 1 to 500 characters.
fn line(text: &str) -> std::result::Result<String, String> {
    let is_fine = (1..=500).contains(&text.chars().count()) && !text.contains(char::is_control);
    match is_fine && !text.trim().is_empty() {
        true => Ok(text.to_owned()),
        false => Err("must be 1 to 500 characters on one line".into()),
    }
}

/// Runs `claviger restore …`.
pub async fn run(command: Command) -> Result<Exit> {
    match command {
        Command::Status(args) => status(args).await,
        Command::Acknowledge(args) => acknowledge(args).await,
    }
}

async fn status(args: Status) -> Result<Exit> {
    let config = Config::load(&args.config).map_err(Failure::usage)?;
    let db = Db::open_beside(&config.database).await;
    let db = db.map_err(Failure::unavailable)?;
    match lost(&db, &config).await? {
        None => {
            output::print("the database has what the last checkpoint says")?;
            Ok(Exit::Ok)
        }
        Some(lost) => {
            output::print(&lost.advice())?;
            Ok(Exit::No)
        }
    }
}

async fn acknowledge(args: Acknowledge) -> Result<Exit> {
    let config = Config::load(&args.config).map_err(Failure::usage)?;
    // With the daemon's own lock on SQLite: nobody serves meanwhile.
    let db = Db::open(&config.database).await;
    let db = db.map_err(Failure::unavailable)?;
    if let Some(replica) = db.live_replica().await.map_err(Failure::unavailable)? {
        return Err(Failure::new(
            Exit::Conflict,
            format!(
                "replica {replica} is at work on this database; stop every replica, then acknowledge, then start them"
            ),
        ));
    }
    let Some(lost) = lost(&db, &config).await? else {
        return Err(Failure::new(
            Exit::Conflict,
            "nothing to acknowledge: the database has what the last checkpoint says",
        ));
    };
    let done = restore::acknowledge(&db, &lost, &args.by, &args.reason).await;
    let done = done.map_err(Failure::other)?;
    db.close().await;
    output::print(&summary(&lost, &done))?;
    Ok(Exit::Ok)
}

async fn lost(db: &Db, config: &Config) -> Result<Option<Lost>> {
    let checkpoint = configured(config)?;
    db.check_schema().await.map_err(Failure::other)?;
    let lost = restore::lost(db, checkpoint, &config.tokens.issuer).await;
    lost.map_err(Failure::other)
}

fn configured(config: &Config) -> Result<&CheckpointConfig> {
    let checkpoint = config.audit.checkpoint.as_ref();
    checkpoint.ok_or_else(|| {
        Failure::usage(
            "there is no [audit.checkpoint] in the configuration: nothing outside the database says what it had",
        )
    })
}

fn summary(lost: &Lost, done: &Acknowledged) -> String {
    let mut text = format!(
        "acknowledged: the database counts as it was at {}; row {} of the admin stream, {}, says so\n",
        lost.kept_until,
        done.receipt.seq,
        audit::hex(&done.receipt.hash)
    );
    for incident in &done.declared {
        text.push_str(&format!(
            "declared compromised again: version {} of key {} in tenant {}, incident {}\n",
            incident.kid, incident.key_name, incident.tenant, incident.id
        ));
    }
    for kid in &done.unknown {
        text.push_str(&format!(
            "was compromised and is not in this copy: version {kid}; its key pair may still be on the device\n"
        ));
    }
    text.push_str(
        "not in this copy, and to be done again by hand: revocations of tokens and API keys, suspensions, deletions and \
         changes of roles since then",
    );
    text
}
