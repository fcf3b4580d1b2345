//! `claviger api-key` and `claviger pepper`. The key itself is printed once, alone on stdout or into a file; what is known
//! about it goes to stderr, so that a script can take the key as it is.

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Subcommand};

use super::{
    exit::{Exit, Failure, Result},
    input,
    options::{Format, Session},
    output::{self, Secrecy},
    pages::Limit,
    people::People,
};
use crate::grpc::proto::{
    ApiKey, CreateApiKeyRequest, GetApiKeyRequest, ListApiKeysRequest, ListApiKeysResponse,
    ListPeppersRequest, Pepper, RevokeApiKeyRequest, RotateApiKeyRequest,
};

/// API keys of users and services
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a key and print it; nobody can print it again
    Create(Create),
    /// List keys, without their secrets
    List(List),
    /// Show one key, without its secret
    Show(Named),
    /// Make a successor and print it; the old key stays valid for a while
    Rotate(Rotate),
    /// End a key at once
    Revoke(Revoke),
}

/// What API keys are hashed under
#[derive(Subcommand, Debug)]
pub enum PepperCommand {
    /// The versions of the pepper, and how many keys are hashed under each
    List,
}

#[derive(Args, Debug)]
pub struct Create {
    /// What people call it
    name: String,
    /// Id of the principal that it acts as; yourself when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    owner: String,
    /// Scope that it may use, such as can.use_users or claviger:crypto-user; repeatable
    #[arg(long = "scope")]
    scopes: Vec<String>,
    /// When it ends: RFC 3339, or a duration from now such as 90d
    #[arg(long, value_name = "TIME", value_parser = input::future)]
    expires: jiff::Timestamp,
    /// Id of the OAuth client whose secret it is
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    client: String,
    #[command(flatten)]
    out: Out,
}

#[derive(Args, Debug)]
pub struct Out {
    /// File that the key is written to, readable by you only; `-` or nothing for stdout
    #[arg(long = "out", value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct List {
    /// Id of the owner; everybody in the tenant when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    owner: String,
    /// Tenant; your own when left out
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        conflicts_with = "owner"
    )]
    tenant: String,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Args, Debug)]
pub struct Named {
    /// Id of the key
    id: String,
}

#[derive(Args, Debug)]
pub struct Rotate {
    /// Id of the key
    id: String,
    /// How long the old key stays valid, at most 7d [default: what the daemon is configured with]
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    overlap: Option<Duration>,
    /// When the new key ends [default: as long from now as the old one was made to last]
    #[arg(long, value_name = "TIME", value_parser = input::future)]
    expires: Option<jiff::Timestamp>,
    #[command(flatten)]
    out: Out,
}

#[derive(Args, Debug)]
pub struct Revoke {
    /// Id of the key
    id: String,
    /// Why, in a sentence
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

/// Runs `claviger api-key …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    let mut client = session.api_keys();
    match command {
        Command::Create(args) => create(args, session).await?,
        Command::List(args) => list(args, session).await?,
        Command::Show(Named { id }) => {
            let request = GetApiKeyRequest { api_key_id: id };
            let answer = client.get_api_key(request).await?.into_inner();
            session.show(&answer, |answer| details(answer.api_key.as_ref()))?;
        }
        Command::Rotate(args) => rotate(args, session).await?,
        Command::Revoke(Revoke { id, reason }) => {
            let request = RevokeApiKeyRequest {
                api_key_id: id,
                reason,
            };
            let call = async |r| session.api_keys().revoke_api_key(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |answer| details(answer.api_key.as_ref()))?;
        }
    }
    Ok(Exit::Ok)
}

/// Runs `claviger pepper …`.
pub async fn pepper(command: PepperCommand, session: &Session) -> Result<Exit> {
    match command {
        PepperCommand::List => {
            let mut client = session.api_keys();
            let answer = client
                .list_peppers(ListPeppersRequest {})
                .await?
                .into_inner();
            session.show(&answer, |answer| peppers(&answer.peppers))?;
        }
    }
    Ok(Exit::Ok)
}

async fn create(args: Create, session: &Session) -> Result<()> {
    let request = CreateApiKeyRequest {
        owner_id: args.owner,
        name: args.name,
        scopes: args.scopes,
        expire_time: Some(input::proto_time(args.expires)),
        client_id: args.client,
    };
    let call = async |r| session.api_keys().create_api_key(r).await;
    let answer = session.mutate(request, call).await?;
    hand_over(session, args.out, &answer, &answer.secret, &answer.api_key)
}

async fn rotate(args: Rotate, session: &Session) -> Result<()> {
    let request = RotateApiKeyRequest {
        api_key_id: args.id,
        overlap: args.overlap.map(input::proto_duration),
        expire_time: args.expires.map(input::proto_time),
    };
    let call = async |r| session.api_keys().rotate_api_key(r).await;
    let answer = session.mutate(request, call).await?;
    let old = answer.replaced.clone().unwrap_or_default();
    hand_over(session, args.out, &answer, &answer.secret, &answer.api_key)?;
    if session.format() == Format::Table {
        tell(&format!(
            "the old key {} ends {}",
            old.id,
            output::time(&old.expire_time)
        ));
    }
    Ok(())
}

/// Prints the key itself, or says that it is lost: an answer that did not arrive cannot be asked for again.
fn hand_over<M>(
    session: &Session,
    Out { out }: Out,
    answer: &M,
    secret: &str,
    key: &Option<ApiKey>,
) -> Result<()>
where
    M: prost::Message + prost::Name,
{
    if secret.is_empty() {
        let id = key.as_ref().map_or("", |key| key.id.as_str());
        return Err(Failure::other(format!(
            "the key was made by an earlier attempt, whose answer was lost with the secret, and nobody can show it again; \
             revoke it and make another: {} api-key revoke {id}",
            session.again()
        )));
    }
    let text = match session.format() {
        Format::Json => output::json(answer)?,
        Format::Table => secret.to_owned(),
    };
    let text = zeroize::Zeroizing::new(format!("{text}\n"));
    output::write(out.as_deref(), text.as_bytes(), Secrecy::Private)?;
    if session.format() == Format::Table {
        tell(&details(key.as_ref()));
    }
    Ok(())
}

/// Beside the key, which is alone on stdout. Nobody is left to tell when stderr is closed.
fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

async fn list(args: List, session: &Session) -> Result<()> {
    let mut client = session.api_keys();
    let mut all = ListApiKeysResponse::default();
    let mut pages = args.limit.pages();
    while let Some(page_size) = pages.next() {
        let request = ListApiKeysRequest {
            owner_id: args.owner.clone(),
            tenant: args.tenant.clone(),
            page_size,
            page_token: all.next_page_token,
        };
        let page = client.list_api_keys(request).await?.into_inner();
        pages.got(page.api_keys.len(), &page.next_page_token);
        all.api_keys.extend(page.api_keys);
        all.next_page_token = page.next_page_token;
    }
    session.show(&all, |all| table(&all.api_keys))?;
    if args.owner.is_empty() {
        session.explain_nothing(all.api_keys.len(), &args.tenant);
    }
    Ok(())
}

fn table(keys: &[ApiKey]) -> String {
    let rows = keys.iter().map(|key| {
        [
            key.id.clone(),
            key.name.clone(),
            People::strangers().short(&key.owner_id),
            state(key),
            visible(key),
            key.scopes.join(" "),
            output::when(&key.expire_time),
            output::when(&key.last_use_time),
        ]
    });
    output::table(
        [
            "ID", "NAME", "OWNER", "STATE", "KEY", "SCOPES", "EXPIRES", "USED",
        ],
        rows,
    )
}

fn details(key: Option<&ApiKey>) -> String {
    let key = key.cloned().unwrap_or_default();
    output::details([
        ("id", key.id.clone()),
        ("name", key.name.clone()),
        ("tenant", key.tenant.clone()),
        ("owner", People::strangers().long(&key.owner_id)),
        ("client", key.client_id.clone()),
        ("state", state(&key)),
        ("key", visible(&key)),
        ("scopes", key.scopes.join(" ")),
        ("created", output::time(&key.create_time)),
        ("expires", output::time(&key.expire_time)),
        ("used", output::time(&key.last_use_time)),
        ("ended", output::time(&key.end_time)),
        ("why", key.end_reason.clone()),
        ("replaces", key.replaces_id.clone()),
        ("replaced by", key.replaced_by_id.clone()),
    ])
}

/// What can be seen of the key itself: `cvk_019a3f5b2c11…9xYz`.
fn visible(key: &ApiKey) -> String {
    format!("{}…{}", key.prefix, key.last_four)
}

fn state(key: &ApiKey) -> String {
    output::short(key.state().as_str_name(), "API_KEY_STATE_")
}

fn peppers(peppers: &[Pepper]) -> String {
    let rows = peppers.iter().map(|pepper| {
        [
            pepper.kid.clone(),
            pepper.state.clone(),
            pepper.api_keys.to_string(),
        ]
    });
    output::table(["KID", "STATE", "API KEYS"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_seen_of_a_key_is_its_beginning_and_its_end() {
        let key = ApiKey {
            prefix: "cvk_019a3f5b2c11".to_owned(),
            last_four: "9xYz".to_owned(),
            ..ApiKey::default()
        };
        assert_eq!(visible(&key), "cvk_019a3f5b2c11…9xYz");
        assert!(table(&[key]).contains("cvk_019a3f5b2c11…9xYz"));
    }
}
