//! `claviger mac`: compute and verify message authentication codes.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    exit::{Exit, Failure, Result},
    input::{self, Streams},
    options::{Format, Session},
    output::{self, Secrecy},
};
use crate::grpc::proto::{ComputeMacRequest, VerifyMacRequest};

/// Message authentication codes (HMAC)
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Compute the MAC of a message from stdin, as hex digits
    Compute(Compute),
    /// Verify a MAC; exit code 0 when it is valid, 1 when it is not
    Verify(Verify),
}

#[derive(Args, Debug)]
pub struct Compute {
    /// Name or id of a MAC key
    #[arg(long)]
    key: String,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    #[command(flatten)]
    streams: Streams,
    /// Write the bytes of the MAC
    #[arg(long)]
    raw: bool,
}

#[derive(Args, Debug)]
pub struct Verify {
    /// Name or id of a MAC key
    #[arg(long)]
    key: String,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// kid that computed the MAC; every version that may verify is tried when left out
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    kid: String,
    /// The MAC: hex or base64
    #[arg(long, value_parser = input::mac, allow_hyphen_values = true)]
    mac: std::vec::Vec<u8>,
    /// File to read; `-` or nothing for stdin
    #[arg(long = "in", value_name = "FILE")]
    input: Option<PathBuf>,
}

/// Runs `claviger mac …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    match command {
        Command::Compute(args) => compute(args, session).await,
        Command::Verify(args) => verify(args, session).await,
    }
}

async fn compute(args: Compute, session: &Session) -> Result<Exit> {
    if args.raw && output::to_terminal(args.streams.output_file.as_deref()) {
        return Err(Failure::usage(
            "--raw bytes are not for a terminal; give --out FILE",
        ));
    }
    let request = ComputeMacRequest {
        tenant: args.tenant,
        key: args.key,
        message: args.streams.read()?.into(),
    };
    let answer = session.macs().compute_mac(request).await?.into_inner();
    let text = match session.format() {
        _ if args.raw => {
            args.streams.write(&answer.mac, Secrecy::Open)?;
            return Ok(Exit::Ok);
        }
        Format::Json => output::json(&answer)?,
        Format::Table => input::hex(&answer.mac),
    };
    args.streams
        .write(format!("{text}\n").as_bytes(), Secrecy::Open)?;
    Ok(Exit::Ok)
}

async fn verify(args: Verify, session: &Session) -> Result<Exit> {
    let request = VerifyMacRequest {
        tenant: args.tenant,
        key: args.key,
        message: input::read(args.input.as_deref())?.into(),
        mac: args.mac.into(),
        kid: args.kid,
    };
    let answer = session.macs().verify_mac(request).await?.into_inner();
    session.show(&answer, |answer| match answer.valid {
        true => format!("valid  kid {}", answer.kid),
        false => "not valid".to_owned(),
    })?;
    Ok(match answer.valid {
        true => Exit::Ok,
        false => Exit::No,
    })
}
