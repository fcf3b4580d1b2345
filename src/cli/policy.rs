//! `claviger policy`: check the Cedar policies, and explain a decision.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::exit::{Exit, Failure, Result};

/// Check and explain the access policies
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Check policies against the schema
    Check(Check),
    /// May X do Y on Z, and which policy says so
    Explain(Explain),
}

#[derive(Args, Debug)]
pub struct Check {
    /// Directory of the policies; the built-in ones when left out
    #[arg(long, value_name = "DIR")]
    pub policies: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Explain {
    /// Directory of the policies; the built-in ones when left out
    #[arg(long, value_name = "DIR")]
    pub policies: Option<PathBuf>,
    /// Home tenant of the caller
    #[arg(long, value_name = "TENANT", default_value = "system")]
    pub principal_tenant: String,
    /// What the caller is: user or service
    #[arg(long, value_name = "TYPE", default_value = "user")]
    pub principal_type: String,
    /// A role of the caller, as ROLE or ROLE@TENANT (`*` for all tenants); repeatable
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<String>,
    /// What is to be done, such as Sign
    #[arg(long)]
    pub action: String,
    /// Kind of thing it is done to: key, rotation, principal, tenant, audit
    #[arg(long, default_value = "key")]
    pub resource: String,
    /// Tenant of that thing
    #[arg(long, value_name = "TENANT")]
    pub tenant: String,
}

/// Runs `claviger policy …`.
pub async fn run(command: Command) -> Result<Exit> {
    let what = match command {
        Command::Check(_) => "policy check",
        Command::Explain(_) => "policy explain",
    };
    Err(Failure::other(format!("{what} is not built yet")))
}
