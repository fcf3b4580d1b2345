//! `claviger data-key` and `claviger random`: keys and bytes for who encrypts by themselves.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    exit::{Exit, Failure, Result},
    input::{self, Streams},
    options::{Format, Session},
    output::{self, Secrecy},
};
use crate::grpc::proto::{
    DecryptDataKeyRequest, GenerateDataKeyRequest, GenerateDataKeyWithoutPlaintextRequest,
    GenerateRandomRequest,
};

/// Data keys for who encrypts by themselves
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a data key, plain and wrapped
    Generate(Generate),
    /// Unwrap a data key
    Decrypt(Decrypt),
}

#[derive(Args, Debug)]
pub struct Named {
    /// Name or id of an ENCRYPTION key
    #[arg(long)]
    key: String,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Additional authenticated data; not stored, the same pairs must be given to decrypt; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = input::pair)]
    aad: Vec<(String, String)>,
}

#[derive(Args, Debug)]
pub struct Generate {
    #[command(flatten)]
    named: Named,
    /// Length of the data key in bytes: 16, 32 or 64 [default: 32]
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 0,
        hide_default_value = true
    )]
    length: u32,
    /// File that the wrapped key is written to; `-` for stdout
    #[arg(long, value_name = "FILE")]
    wrapped: PathBuf,
    /// File that the plain key is written to, readable by you only; without it, the daemon does not send the plain key
    #[arg(long = "out", value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Decrypt {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    streams: Streams,
}

/// Random bytes of the daemon
#[derive(Args, Debug)]
pub struct Random {
    /// How many bytes, 1 to 1024
    length: u32,
    /// Write the bytes instead of hex digits and a newline
    #[arg(long)]
    raw: bool,
    /// File to write, readable by you only; `-` or nothing for stdout
    #[arg(long = "out", value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs `claviger data-key …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    match command {
        Command::Generate(args) => generate(args, session).await?,
        Command::Decrypt(args) => decrypt(args, session).await?,
    }
    Ok(Exit::Ok)
}

async fn generate(args: Generate, session: &Session) -> Result<()> {
    let Named { key, tenant, aad } = args.named;
    let (aad, length, mut client) = (input::aad(&aad)?, args.length, session.data_keys());
    for file in std::iter::once(&args.wrapped).chain(&args.out) {
        refuse_terminal(Some(file), session)?;
    }
    let Some(out) = args.out else {
        let request = GenerateDataKeyWithoutPlaintextRequest {
            tenant,
            key,
            aad,
            length,
        };
        let answer = client.generate_data_key_without_plaintext(request).await?;
        let answer = answer.into_inner();
        return match session.format() {
            Format::Json => output::print(&output::json(&answer)?),
            Format::Table => output::write(Some(&args.wrapped), &answer.wrapped, Secrecy::Open),
        };
    };
    let request = GenerateDataKeyRequest {
        tenant,
        key,
        aad,
        length,
    };
    let answer = client.generate_data_key(request).await?.into_inner();
    // First what can be unwrapped again.
    output::write(Some(&args.wrapped), &answer.wrapped, Secrecy::Open)?;
    output::write(Some(&out), &answer.plaintext, Secrecy::Private)
}

async fn decrypt(args: Decrypt, session: &Session) -> Result<()> {
    refuse_terminal(args.streams.output_file.as_deref(), session)?;
    let request = DecryptDataKeyRequest {
        tenant: args.named.tenant,
        key: args.named.key,
        wrapped: args.streams.read()?.into(),
        aad: input::aad(&args.named.aad)?,
    };
    let answer = session.data_keys().decrypt_data_key(request).await?;
    let answer = answer.into_inner();
    match session.format() {
        Format::Json => args
            .streams
            .write((output::json(&answer)? + "\n").as_bytes(), Secrecy::Private),
        Format::Table => args.streams.write(&answer.plaintext, Secrecy::Private),
    }
}

/// Runs `claviger random`.
pub async fn random(args: Random, session: &Session) -> Result<Exit> {
    if args.raw {
        refuse_terminal(args.out.as_deref(), session)?;
    }
    let request = GenerateRandomRequest {
        length: args.length,
    };
    let answer = session.data_keys().generate_random(request).await?;
    let answer = answer.into_inner();
    let text = match session.format() {
        _ if args.raw => {
            output::write(args.out.as_deref(), &answer.random, Secrecy::Private)?;
            return Ok(Exit::Ok);
        }
        Format::Json => output::json(&answer)?,
        Format::Table => input::hex(&answer.random),
    };
    output::write(
        args.out.as_deref(),
        format!("{text}\n").as_bytes(),
        Secrecy::Private,
    )?;
    Ok(Exit::Ok)
}

/// Keys are binary; a terminal is no place for them.
fn refuse_terminal(file: Option<&std::path::Path>, session: &Session) -> Result<()> {
    if session.format() == Format::Table && output::to_terminal(file) {
        return Err(Failure::usage(
            "this is binary and not for a terminal; name a file",
        ));
    }
    Ok(())
}
