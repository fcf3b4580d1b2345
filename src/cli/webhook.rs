//! `claviger webhook verify`: is a delivery authentic, recent and new?

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use super::{
    exit::{Exit, Result},
    input,
    options::Session,
};
use crate::grpc::proto::{
    VerifyWebhookRequest, VerifyWebhookResponse, WebhookScheme, WebhookVerdict,
};

/// Webhooks that carry a MAC
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Verify a delivery whose body comes from stdin, and take it; exit code 0 when it is valid and new, 1 when it is not
    Verify(Verify),
}

#[derive(Args, Debug)]
pub struct Verify {
    /// Name or id of a MAC key
    #[arg(long)]
    key: String,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// What the MAC is computed over, joined with "."
    #[arg(long, ignore_case = true, value_parser = input::choice(SCHEMES, "WEBHOOK_SCHEME_", WebhookScheme::from_str_name))]
    scheme: WebhookScheme,
    /// The delivery's timestamp, in Unix seconds
    #[arg(long, value_name = "SECONDS")]
    timestamp: i64,
    /// The sender's id of the event
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    event_id: String,
    /// A MAC of the delivery: hex or base64; repeatable, one must verify
    #[arg(long = "mac", value_name = "MAC", required = true, value_parser = input::mac, allow_hyphen_values = true)]
    macs: Vec<std::vec::Vec<u8>>,
    /// How far the timestamp may be from now [default: 5min]
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    tolerance: Option<Duration>,
    /// File that holds the body, byte for byte; `-` or nothing for stdin
    #[arg(long = "in", value_name = "FILE")]
    input: Option<PathBuf>,
}

const SCHEMES: &[&str] = &["timestamp-body", "id-timestamp-body"];

/// Runs `claviger webhook …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    let Command::Verify(args) = command;
    let request = VerifyWebhookRequest {
        tenant: args.tenant,
        key: args.key,
        scheme: args.scheme.into(),
        body: input::read(args.input.as_deref())?.into(),
        timestamp: args.timestamp,
        event_id: args.event_id,
        macs: args.macs.into_iter().map(Into::into).collect(),
        tolerance: args.tolerance.map(input::proto_duration),
    };
    let answer = session.macs().verify_webhook(request).await?.into_inner();
    session.show(&answer, said)?;
    Ok(match answer.valid {
        true => Exit::Ok,
        false => Exit::No,
    })
}

fn said(answer: &VerifyWebhookResponse) -> String {
    match answer.verdict() {
        WebhookVerdict::Valid => format!("valid and new  kid {}", answer.kid),
        WebhookVerdict::OutsideTolerance => "authentic, but too old or too new".to_owned(),
        WebhookVerdict::Replayed => {
            let seen = answer.first_seen_time.unwrap_or_default();
            let at = jiff::Timestamp::new(seen.seconds, seen.nanos);
            let at = at.map(|at| at.to_string()).unwrap_or_default();
            format!("authentic, but seen before, at {at}")
        }
        WebhookVerdict::MacInvalid | WebhookVerdict::Unspecified => "not valid".to_owned(),
    }
}
