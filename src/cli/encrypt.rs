//! `claviger encrypt`, `decrypt` and `rewrap`: bytes in, bytes out.

use std::{collections::BTreeMap, path::PathBuf};

use clap::Args as ClapArgs;

use super::{
    batch,
    exit::{Exit, Failure, Result},
    input::{self, Streams},
    options::{Format, Session},
    output::{self, Secrecy},
    stream,
};
use crate::grpc::proto::{
    BatchDecryptRequest, BatchEncryptRequest, BatchRewrapRequest, DecryptRequest, EncryptRequest,
    RewrapRequest, decrypt_stream_request, encrypt_stream_request,
};

/// What all three have.
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// Name or id of an ENCRYPTION key
    #[arg(long, value_name = "KEY", required_unless_present = "batch")]
    key: Option<String>,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Additional authenticated data; not stored, the same pairs must be given to decrypt; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = input::pair)]
    aad: Vec<(String, String)>,
    #[command(flatten)]
    streams: Streams,
    #[arg(long, value_name = "FILE", help = batch::HELP, conflicts_with_all = ["input_file", "output_file"])]
    batch: Option<PathBuf>,
}

/// Arguments of `encrypt` and `decrypt`.
#[derive(ClapArgs, Debug)]
pub struct StreamArgs {
    #[command(flatten)]
    args: Args,
    /// Go through a stream, as any input of more than 4 MiB does; --out is written whole or not at all, what went to
    /// stdout before a failure must be discarded
    #[arg(long, conflicts_with = "batch")]
    stream: bool,
}

/// What there is to encrypt or decrypt.
enum Payload {
    /// All of it.
    Whole(Vec<u8>),
    /// More than one request should carry, or asked to go through a stream.
    Long(stream::Source),
}

impl StreamArgs {
    fn payload(&self, session: &Session) -> Result<Payload> {
        let (name, mut source) = input::open(self.args.streams.input_file.as_deref())?;
        let most = stream::WHOLE + 1;
        let beginning = input::read_at_most(&name, &mut source, most)?;
        if !self.stream && (beginning.len() as u64) < most {
            return Ok(Payload::Whole(beginning));
        }
        if session.format() == Format::Json {
            return Err(Failure::usage(
                "a stream is bytes and not JSON; leave --output json out, or give at most 4 MiB",
            ));
        }
        Ok(Payload::Long(stream::Source::new(name, beginning, source)))
    }
}

impl Args {
    fn aad(&self) -> Result<BTreeMap<String, String>> {
        input::aad(&self.aad)
    }

    fn defaults(&self) -> Result<serde_json::Map<String, serde_json::Value>> {
        let aad = serde_json::json!(self.aad()?);
        Ok(batch::defaults(self.key.as_deref(), &self.tenant, aad))
    }

    fn key(&self) -> String {
        self.key.clone().unwrap_or_default()
    }

    /// Ciphertext is binary; a terminal is no place for it.
    fn check_ciphertext_output(&self, session: &Session) -> Result<()> {
        let binary = session.format() == Format::Table;
        if binary && output::to_terminal(self.streams.output_file.as_deref()) {
            return Err(Failure::usage(
                "the ciphertext is binary and not for a terminal; give --out FILE or --output json",
            ));
        }
        Ok(())
    }

    fn answer<M>(
        &self,
        session: &Session,
        message: &M,
        bytes: &[u8],
        secrecy: Secrecy,
    ) -> Result<Exit>
    where
        M: prost::Message + prost::Name,
    {
        match session.format() {
            Format::Json => self
                .streams
                .write((output::json(message)? + "\n").as_bytes(), secrecy)?,
            Format::Table => self.streams.write(bytes, secrecy)?,
        }
        Ok(Exit::Ok)
    }
}

/// Runs `claviger encrypt`.
pub async fn encrypt(streamed: StreamArgs, session: &Session) -> Result<Exit> {
    let args = &streamed.args;
    let mut client = session.crypto();
    if let Some(file) = &args.batch {
        let call = async |request: BatchEncryptRequest| client.batch_encrypt(request).await;
        return batch::run(file, args.defaults()?, call).await;
    }
    args.check_ciphertext_output(session)?;
    let plaintext = match streamed.payload(session)? {
        Payload::Whole(bytes) => bytes,
        Payload::Long(source) => {
            let start = encrypt_stream_request::Start {
                tenant: args.tenant.clone(),
                key: args.key(),
                aad: args.aad()?,
            };
            let to = args.streams.output_file.as_deref();
            return stream::encrypt(session, start, source, to).await;
        }
    };
    let request = EncryptRequest {
        tenant: args.tenant.clone(),
        key: args.key(),
        plaintext: plaintext.into(),
        aad: args.aad()?,
    };
    let answer = client.encrypt(request).await?.into_inner();
    args.answer(session, &answer, &answer.ciphertext, Secrecy::Open)
}

/// Runs `claviger decrypt`.
pub async fn decrypt(streamed: StreamArgs, session: &Session) -> Result<Exit> {
    let args = &streamed.args;
    let mut client = session.crypto();
    if let Some(file) = &args.batch {
        let call = async |request: BatchDecryptRequest| client.batch_decrypt(request).await;
        return batch::run(file, args.defaults()?, call).await;
    }
    let ciphertext = match streamed.payload(session)? {
        Payload::Whole(bytes) => bytes,
        Payload::Long(source) => {
            let start = decrypt_stream_request::Start {
                tenant: args.tenant.clone(),
                key: args.key(),
                aad: args.aad()?,
            };
            let to = args.streams.output_file.as_deref();
            return stream::decrypt(session, start, source, to).await;
        }
    };
    let request = DecryptRequest {
        tenant: args.tenant.clone(),
        key: args.key(),
        ciphertext: ciphertext.into(),
        aad: args.aad()?,
    };
    let answer = client.decrypt(request).await?.into_inner();
    args.answer(session, &answer, &answer.plaintext, Secrecy::Private)
}

/// Runs `claviger rewrap`.
pub async fn rewrap(args: Args, session: &Session) -> Result<Exit> {
    let mut client = session.crypto();
    if let Some(file) = &args.batch {
        let call = async |request: BatchRewrapRequest| client.batch_rewrap(request).await;
        return batch::run(file, args.defaults()?, call).await;
    }
    args.check_ciphertext_output(session)?;
    let request = RewrapRequest {
        tenant: args.tenant.clone(),
        key: args.key(),
        ciphertext: args.streams.read()?.into(),
        aad: args.aad()?,
    };
    let answer = client.rewrap(request).await?.into_inner();
    args.answer(session, &answer, &answer.ciphertext, Secrecy::Open)
}
