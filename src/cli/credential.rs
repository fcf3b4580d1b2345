//! `claviger credential`: the vault from outside.

use clap::Subcommand;

use super::{
    exit::{Exit, Result},
    import,
    options::Session,
};

/// Credentials of brokers and LLM providers
#[derive(Subcommand, Debug)]
pub enum Command {
    Import(import::Import),
}

/// Runs `claviger credential …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    match command {
        Command::Import(args) => import::run(args, session).await,
    }
}
