//! `claviger encrypt`, `decrypt` and `rewrap`: bytes in, bytes out.

use std::{collections::BTreeMap, path::PathBuf};

use clap::Args as ClapArgs;

use super::{
    batch,
    exit::{Exit, Failure, Result},
    input::{self, Streams},
    options::{Format, Session},
    output::{self, Secrecy},
};
use crate::grpc::proto::{
    BatchDecryptRequest, BatchEncryptRequest, BatchRewrapRequest, DecryptRequest, EncryptRequest,
    RewrapRequest,
};

/// Arguments of all three.
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
pub async fn encrypt(args: Args, session: &Session) -> Result<Exit> {
    let mut client = session.crypto();
    if let Some(file) = &args.batch {
        let call = async |request: BatchEncryptRequest| client.batch_encrypt(request).await;
        return batch::run(file, args.defaults()?, call).await;
    }
    args.check_ciphertext_output(session)?;
    let request = EncryptRequest {
        tenant: args.tenant.clone(),
        key: args.key(),
        plaintext: args.streams.read()?.into(),
        aad: args.aad()?,
    };
    let answer = client.encrypt(request).await?.into_inner();
    args.answer(session, &answer, &answer.ciphertext, Secrecy::Open)
}

/// Runs `claviger decrypt`.
pub async fn decrypt(args: Args, session: &Session) -> Result<Exit> {
    let mut client = session.crypto();
    if let Some(file) = &args.batch {
        let call = async |request: BatchDecryptRequest| client.batch_decrypt(request).await;
        return batch::run(file, args.defaults()?, call).await;
    }
    let request = DecryptRequest {
        tenant: args.tenant.clone(),
        key: args.key(),
        ciphertext: args.streams.read()?.into(),
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
