//! `claviger restore`: puts a backup back, tells whether the database is an older copy than the checkpoints know, and lets
//! somebody stand for it (`crate::restore`).

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    backup::Manifest,
    exit::{Exit, Failure, Result},
    output,
};
use crate::{
    audit::{self, CheckpointConfig, verify},
    config::Config,
    restore::{self, Acknowledged, Lost},
    store::{self, Db, StoreError},
};

/// Put a backup back, and let an older copy of the database count
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Load a backup into an empty database
    Load(Load),
    /// Compare the database with the last checkpoint; exit code 0 when it fits, 1 when it was set back. Changes nothing
    Status(Status),
    /// Let an older copy of the database count: every version that was compromised by the last checkpoint is declared so again
    Acknowledge(Acknowledge),
}

#[derive(Args, Debug)]
pub struct Load {
    /// Configuration file, whose database is filled
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Directory that `claviger backup` wrote
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
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
        Command::Load(args) => load(args).await,
        Command::Status(args) => status(args).await,
        Command::Acknowledge(args) => acknowledge(args).await,
    }
}

async fn load(args: Load) -> Result<Exit> {
    let config = Config::load(&args.config).map_err(Failure::usage)?;
    let manifest = Manifest::read(&args.from)?;
    let copy = manifest.checked_copy(&args.from, &config.database)?;
    store::load(&config.database, &copy)
        .await
        .map_err(Failure::other)?;
    let db = Db::open_beside(&config.database).await;
    let db = db.map_err(Failure::unavailable)?;
    let heads = manifest.heads()?;
    let missing = verify::mismatches(&db, heads).await;
    if let Some(missing) = missing.map_err(Failure::unavailable)?.first() {
        return Err(Failure::new(
            Exit::No,
            format!(
                "the copy is loaded and is not what its manifest says: row {} of stream {}: {}",
                missing.seq, missing.stream, missing.problem
            ),
        ));
    }
    let mut text = format!("loaded the backup of {}\n", manifest.made_at);
    match db.check_schema().await {
        Ok(()) => text.push_str(&next_step(&db, &config).await?),
        Err(StoreError::Setup(pending)) => text.push_str(&pending),
        Err(other) => return Err(Failure::unavailable(other)),
    }
    db.close().await;
    output::print(&text)?;
    Ok(Exit::Ok)
}

/// What is to be done before the daemons start.
async fn next_step(db: &Db, config: &Config) -> Result<String> {
    if config.audit.checkpoint.is_none() {
        return Ok("there are no checkpoints to compare it with; what was revoked, frozen or suspended since counts again".into());
    }
    Ok(match lost(db, config).await? {
        None => "it has what the last checkpoint says; the daemons can start".to_owned(),
        Some(lost) => lost.advice(),
    })
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
