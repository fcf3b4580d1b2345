//! `claviger sign` and `claviger verify`.

use std::path::PathBuf;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use clap::Args;
use serde_json::Value;

use super::{
    batch,
    exit::{Exit, Failure, Result},
    input::{self, Streams},
    options::{Format, Session},
    output::{self, Secrecy},
};
use crate::grpc::proto::{
    BatchSignRequest, BatchVerifyRequest, SignRequest, VerifyRequest, sign_request, verify_request,
};

/// Sign a message or digest; the payload comes from stdin
#[derive(Args, Debug)]
pub struct SignArgs {
    /// Name or id of a SIGNING key
    #[arg(long, value_name = "KEY", required_unless_present = "batch")]
    key: Option<String>,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// The input is the digest, not the message
    #[arg(long)]
    digest: bool,
    #[command(flatten)]
    streams: Streams,
    /// Write the bytes of the signature
    #[arg(long, conflicts_with = "base64url")]
    raw: bool,
    /// Write the signature as base64url and a newline (the default)
    #[arg(long)]
    base64url: bool,
    #[arg(long, value_name = "FILE", help = batch::HELP, conflicts_with_all = ["digest", "input_file", "output_file", "raw", "base64url"])]
    batch: Option<PathBuf>,
}

/// Verify a signature; exit code 0 when it is valid, 1 when it is not
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Name or id of a SIGNING key
    #[arg(long, value_name = "KEY", required_unless_present = "batch")]
    key: Option<String>,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// kid that made the signature; every version that may verify is tried when left out
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    kid: String,
    /// The signature: a file, raw or as base64url, or the base64url text itself
    #[arg(
        long,
        value_name = "FILE|TEXT",
        required_unless_present = "batch",
        allow_hyphen_values = true
    )]
    signature: Option<String>,
    /// The input is the digest, not the message
    #[arg(long)]
    digest: bool,
    /// File to read; `-` or nothing for stdin
    #[arg(long = "in", value_name = "FILE")]
    input: Option<PathBuf>,
    #[arg(long, value_name = "FILE", help = batch::HELP, conflicts_with_all = ["digest", "input", "signature", "kid"])]
    batch: Option<PathBuf>,
}

/// Runs `claviger sign`.
pub async fn sign(args: SignArgs, session: &Session) -> Result<Exit> {
    let mut client = session.crypto();
    if let Some(file) = &args.batch {
        let defaults = batch::defaults(args.key.as_deref(), &args.tenant, Value::Null);
        let call = async |request: BatchSignRequest| client.batch_sign(request).await;
        return batch::run(file, defaults, call).await;
    }
    if args.raw && output::to_terminal(args.streams.output_file.as_deref()) {
        return Err(Failure::usage(
            "--raw bytes are not for a terminal; give --out FILE",
        ));
    }
    let payload = args.streams.read()?.into();
    let request = SignRequest {
        tenant: args.tenant,
        key: args.key.unwrap_or_default(),
        payload: Some(match args.digest {
            true => sign_request::Payload::Digest(payload),
            false => sign_request::Payload::Message(payload),
        }),
    };
    let answer = client.sign(request).await?.into_inner();
    let text = match session.format() {
        _ if args.raw => {
            args.streams.write(&answer.signature, Secrecy::Open)?;
            return Ok(Exit::Ok);
        }
        Format::Json => output::json(&answer)?,
        Format::Table => BASE64_URL_SAFE_NO_PAD.encode(&answer.signature),
    };
    args.streams
        .write(format!("{text}\n").as_bytes(), Secrecy::Open)?;
    Ok(Exit::Ok)
}

/// Runs `claviger verify`.
pub async fn verify(args: VerifyArgs, session: &Session) -> Result<Exit> {
    let mut client = session.crypto();
    if let Some(file) = &args.batch {
        let defaults = batch::defaults(args.key.as_deref(), &args.tenant, Value::Null);
        let call = async |request: BatchVerifyRequest| client.batch_verify(request).await;
        return batch::run(file, defaults, call).await;
    }
    let signature = input::signature(args.signature.as_deref().unwrap_or_default())?;
    let payload = input::read(args.input.as_deref())?.into();
    let request = VerifyRequest {
        tenant: args.tenant,
        key: args.key.unwrap_or_default(),
        kid: args.kid,
        payload: Some(match args.digest {
            true => verify_request::Payload::Digest(payload),
            false => verify_request::Payload::Message(payload),
        }),
        signature: signature.into(),
    };
    let answer = client.verify(request).await?.into_inner();
    session.show(&answer, |answer| match answer.valid {
        true => format!("valid  kid {}", answer.kid),
        false => "not valid".to_owned(),
    })?;
    Ok(match answer.valid {
        true => Exit::Ok,
        false => Exit::No,
    })
}
