//! `claviger key`: create, adopt, inspect and update keys.

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};

use super::{
    exit::{Exit, Result},
    input,
    options::Session,
    output,
    pages::Limit,
};
use crate::grpc::proto::{
    AdoptKeyRequest, Algorithm, CreateKeyRequest, GetKeyRequest, Key, KeyPurpose, KeyVersion,
    ListKeysRequest, ListKeysResponse, UpdateKeyRequest,
};

/// Manage keys
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create a key; its material is generated in the backend
    Create(Create),
    /// Take over a key pair that exists in the backend
    Adopt(Adopt),
    /// Show a key with all its versions
    Get(Get),
    /// List the keys of a tenant
    List(List),
    /// Change owner, rotation period or next rotation
    Update(Update),
}

#[derive(Args, Debug)]
pub struct Create {
    /// Name, unique in the tenant
    name: String,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// What the key may be used for
    #[arg(long, value_parser = input::purpose(), ignore_case = true)]
    purpose: KeyPurpose,
    /// The key's one algorithm, for life
    #[arg(long, value_parser = input::algorithm(), ignore_case = true)]
    algorithm: Algorithm,
    /// RSA modulus length [default: 3072]
    #[arg(
        long,
        value_name = "BITS",
        default_value_t = 0,
        hide_default_value = true
    )]
    rsa_bits: u32,
    /// Person or team that answers for the key
    #[arg(long)]
    owner: String,
    /// Time between rotations, such as 30d; the longest allowed when left out
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    rotation_period: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct Adopt {
    /// Name, unique in the tenant
    name: String,
    /// RFC 7512 URI that names exactly one private key, without PIN
    #[arg(long)]
    uri: String,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// What the key may be used for
    #[arg(long, value_parser = input::purpose(), ignore_case = true)]
    purpose: KeyPurpose,
    /// Algorithm that the key pair is to be used with
    #[arg(long, value_parser = input::algorithm(), ignore_case = true)]
    algorithm: Algorithm,
    /// Person or team that answers for the key
    #[arg(long)]
    owner: String,
    /// Time between rotations, such as 30d; the longest allowed when left out
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    rotation_period: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct Get {
    /// Name or id
    key: String,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Print only the public key of the ACTIVE version, PEM
    #[arg(long)]
    public_key: bool,
}

#[derive(Args, Debug)]
pub struct List {
    /// Tenant; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Only keys that should have been rotated already
    #[arg(long)]
    overdue: bool,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Args, Debug)]
#[command(group(ArgGroup::new("change").required(true).multiple(true).args(["owner", "rotation_period", "next_rotation"])))]
pub struct Update {
    /// Name or id
    key: String,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// New owner
    #[arg(long)]
    owner: Option<String>,
    /// New time between rotations, such as 30d
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    rotation_period: Option<Duration>,
    /// New date of the next rotation: RFC 3339, or a duration from now such as 7d
    #[arg(long, value_name = "TIME", value_parser = input::future)]
    next_rotation: Option<jiff::Timestamp>,
}

/// Runs `claviger key …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    let mut client = session.keys();
    match command {
        Command::Create(args) => {
            let request = CreateKeyRequest {
                tenant: args.tenant,
                name: args.name,
                purpose: args.purpose.into(),
                algorithm: args.algorithm.into(),
                rsa_bits: args.rsa_bits,
                owner: args.owner,
                rotation_period: args.rotation_period.map(input::proto_duration),
                ..Default::default()
            };
            let answer = client.create_key(request).await?.into_inner();
            session.show(&answer, |answer| with_versions(answer.key.as_ref()))?;
        }
        Command::Adopt(args) => {
            let request = AdoptKeyRequest {
                tenant: args.tenant,
                name: args.name,
                purpose: args.purpose.into(),
                algorithm: args.algorithm.into(),
                uri: args.uri,
                owner: args.owner,
                rotation_period: args.rotation_period.map(input::proto_duration),
                ..Default::default()
            };
            let answer = client.adopt_key(request).await?.into_inner();
            session.show(&answer, |answer| with_versions(answer.key.as_ref()))?;
        }
        Command::Get(args) => {
            let request = GetKeyRequest {
                tenant: args.tenant,
                key: args.key,
            };
            let answer = client.get_key(request).await?.into_inner();
            match args.public_key {
                true => output::print(&active_pem(answer.key.as_ref()))?,
                false => session.show(&answer, |answer| with_versions(answer.key.as_ref()))?,
            }
        }
        Command::List(args) => {
            let mut all = ListKeysResponse::default();
            let mut pages = args.limit.pages();
            while let Some(page_size) = pages.next() {
                let request = ListKeysRequest {
                    tenant: args.tenant.clone(),
                    page_size,
                    page_token: all.next_page_token,
                    overdue_only: args.overdue,
                    ..Default::default()
                };
                let page = client.list_keys(request).await?.into_inner();
                pages.got(page.keys.len(), &page.next_page_token);
                all.keys.extend(page.keys);
                all.next_page_token = page.next_page_token;
            }
            session.show(&all, |all| table(&all.keys))?;
        }
        Command::Update(args) => {
            let request = UpdateKeyRequest {
                tenant: args.tenant,
                key: args.key,
                owner: args.owner,
                rotation_period: args.rotation_period.map(input::proto_duration),
                next_rotation_time: args.next_rotation.map(input::proto_time),
                ..Default::default()
            };
            let answer = client.update_key(request).await?.into_inner();
            session.show(&answer, |answer| with_versions(answer.key.as_ref()))?;
        }
    }
    Ok(Exit::Ok)
}

fn table(keys: &[Key]) -> String {
    let rows = keys.iter().map(|key| {
        [
            key.name.clone(),
            purpose(key),
            algorithm(key),
            key.owner.clone(),
            next_rotation(key),
            key.active_kid.clone(),
        ]
    });
    output::table(
        [
            "NAME",
            "PURPOSE",
            "ALGORITHM",
            "OWNER",
            "NEXT ROTATION",
            "ACTIVE KID",
        ],
        rows,
    )
}

fn with_versions(key: Option<&Key>) -> String {
    let Some(key) = key else { return String::new() };
    let head = output::details([
        ("key", key.name.clone()),
        ("id", key.id.clone()),
        ("tenant", key.tenant.clone()),
        ("purpose", purpose(key)),
        ("algorithm", algorithm(key)),
        ("backend", key.backend.clone()),
        ("owner", key.owner.clone()),
        ("created", output::time(&key.create_time)),
        (
            "rotation",
            format!("every {}", output::duration(&key.rotation_period)),
        ),
        ("next rotation", next_rotation(key)),
    ]);
    let rows = key.versions.iter().map(|version| {
        [
            version.number.to_string(),
            output::short(version.state().as_str_name(), "KEY_VERSION_STATE_"),
            version.kid.clone(),
            since(version),
            version.backend_ref.clone(),
        ]
    });
    let versions = output::table(
        ["VERSION", "STATE", "KID", "SINCE", "BACKEND REFERENCE"],
        rows,
    );
    format!("{head}\n\n{versions}")
}

/// When the version got to where it is, as far as the timestamps tell.
fn since(version: &KeyVersion) -> String {
    let times = [
        version.deactivate_time,
        version.activate_time,
        version.announce_time,
        version.create_time,
    ];
    output::when(&times.into_iter().flatten().next())
}

fn next_rotation(key: &Key) -> String {
    let when = output::when(&key.next_rotation_time);
    match key.overdue {
        true => format!("OVERDUE ({when})"),
        false => when,
    }
}

fn purpose(key: &Key) -> String {
    output::short(key.purpose().as_str_name(), "KEY_PURPOSE_")
}

fn algorithm(key: &Key) -> String {
    let name = output::short(key.algorithm().as_str_name(), "ALGORITHM_");
    match key.rsa_bits {
        0 => name,
        bits => format!("{name} ({bits} bit)"),
    }
}

fn active_pem(key: Option<&Key>) -> String {
    let key = key.cloned().unwrap_or_default();
    let active = key
        .versions
        .into_iter()
        .find(|version| version.kid == key.active_kid);
    active.map(|version| version.public_pem).unwrap_or_default()
}
