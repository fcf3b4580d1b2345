//! `claviger lease`: a service's way to a credential. The secret goes to stdout or into a file as JSON; what is known
//! about the lease goes to stderr.

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::{
    exit::{Exit, Failure, Result},
    input,
    options::Session,
    output::{self, Secrecy},
    pages::Limit,
    people::People,
};
use crate::grpc::proto::{
    CredentialField, Lease, LeaseCredentialRequest, ListLeasesRequest, ListLeasesResponse,
    RenewLeaseRequest, ReturnLeaseRequest, RevokeLeaseRequest, WatchCredentialsRequest,
};

/// Who holds which credential
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Fetch a credential for a time, and print its secret as JSON
    Take(Take),
    /// More time for your own lease
    Renew(Renew),
    /// Give your own lease back
    Return(Named),
    /// End anybody's lease
    Revoke(Revoke),
    /// Who holds what
    List(List),
    /// Print which value of each credential is CURRENT, now and whenever that changes
    Watch(Watch),
}

#[derive(Args, Debug)]
pub struct Take {
    /// Id of the credential
    credential: String,
    /// How long [default: an hour]
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    ttl: Option<Duration>,
    /// File that the secret is written to, readable by you only; `-` or nothing for stdout
    #[arg(long = "out", value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Renew {
    /// Id of the lease
    id: String,
    /// How long from now [default: an hour]
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    ttl: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct Named {
    /// Id of the lease
    id: String,
}

#[derive(Args, Debug)]
pub struct Revoke {
    /// Id of the lease
    id: String,
    /// Why, in a sentence
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

#[derive(Args, Debug)]
pub struct List {
    /// Id of a credential; all of the tenant when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    credential: String,
    /// Tenant; your own when left out
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        conflicts_with = "credential"
    )]
    tenant: String,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Args, Debug)]
pub struct Watch {
    /// Ids of credentials
    #[arg(required = true)]
    credentials: Vec<String>,
    /// Print what is there now, and end
    #[arg(long)]
    once: bool,
}

/// Runs `claviger lease …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    match command {
        Command::Take(args) => take(args, session).await?,
        Command::Renew(Renew { id, ttl }) => {
            let request = RenewLeaseRequest {
                lease_id: id,
                ttl: ttl.map(input::proto_duration),
            };
            let call = async |r| session.leases().renew_lease(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |answer| details(answer.lease.as_ref()))?;
        }
        Command::Return(Named { id }) => {
            let request = ReturnLeaseRequest { lease_id: id };
            let call = async |r| session.leases().return_lease(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |answer| details(answer.lease.as_ref()))?;
        }
        Command::Revoke(Revoke { id, reason }) => {
            let request = RevokeLeaseRequest {
                lease_id: id,
                reason,
            };
            let call = async |r| session.leases().revoke_lease(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |answer| details(answer.lease.as_ref()))?;
        }
        Command::List(args) => list(args, session).await?,
        Command::Watch(args) => watch(args, session).await?,
    }
    Ok(Exit::Ok)
}

async fn take(args: Take, session: &Session) -> Result<()> {
    let request = LeaseCredentialRequest {
        credential_id: args.credential,
        ttl: args.ttl.map(input::proto_duration),
    };
    // Not repeated by itself: each answer is a lease of its own.
    let answer = session.leases().lease_credential(request).await?;
    let answer = answer.into_inner();
    // Nobody is left to tell when stderr is closed.
    let _ = writeln!(io::stderr(), "{}", details(answer.lease.as_ref()));
    let secret = zeroize::Zeroizing::new(format!("{}\n", json(&answer.fields)?));
    output::write(args.out.as_deref(), secret.as_bytes(), Secrecy::Private)
}

fn json(fields: &[CredentialField]) -> Result<String> {
    let mut object = Map::new();
    for field in fields {
        let text = std::str::from_utf8(&field.value).map_err(Failure::other)?;
        object.insert(field.name.clone(), text.into());
    }
    Ok(Value::Object(object).to_string())
}

async fn list(args: List, session: &Session) -> Result<()> {
    let mut client = session.leases();
    let mut all = ListLeasesResponse::default();
    let mut pages = args.limit.pages();
    while let Some(page_size) = pages.next() {
        let request = ListLeasesRequest {
            credential_id: args.credential.clone(),
            tenant: args.tenant.clone(),
            page_size,
            page_token: all.next_page_token,
        };
        let page = client.list_leases(request).await?.into_inner();
        pages.got(page.leases.len(), &page.next_page_token);
        all.leases.extend(page.leases);
        all.next_page_token = page.next_page_token;
    }
    session.show(&all, |all| table(&all.leases))?;
    if args.credential.is_empty() {
        session.explain_nothing(all.leases.len(), &args.tenant);
    }
    Ok(())
}

/// One line of proto JSON for each, until the daemon ends it. Errors: whatever ended it.
async fn watch(args: Watch, session: &Session) -> Result<()> {
    let request = WatchCredentialsRequest {
        credential_ids: args.credentials,
        once: args.once,
    };
    let mut news = session
        .watches()
        .watch_credentials(request)
        .await?
        .into_inner();
    while let Some(seen) = news.message().await? {
        output::print(&output::json_value(&seen)?.to_string())?;
    }
    Ok(())
}

fn table(leases: &[Lease]) -> String {
    let rows = leases.iter().map(|lease| {
        [
            lease.id.clone(),
            lease.credential_id.clone(),
            People::strangers().short(&lease.holder_id),
            output::when(&lease.create_time),
            output::when(&lease.expire_time),
        ]
    });
    output::table(["ID", "CREDENTIAL", "HOLDER", "SINCE", "UNTIL"], rows)
}

fn details(lease: Option<&Lease>) -> String {
    let lease = lease.cloned().unwrap_or_default();
    let state = output::short(lease.state().as_str_name(), "LEASE_STATE_");
    output::details([
        ("lease", lease.id.clone()),
        ("credential", lease.credential_id.clone()),
        ("value", lease.value_id.clone()),
        ("tenant", lease.tenant.clone()),
        ("holder", People::strangers().long(&lease.holder_id)),
        ("state", state),
        ("until", output::time(&lease.expire_time)),
        ("at most until", output::time(&lease.max_expire_time)),
        ("ended", output::time(&lease.end_time)),
    ])
}
