//! `claviger key`: create, adopt, import, inspect, update and retire keys. view.rs and usage.rs show them, destroy.rs ends
//! versions for good.

mod destroy;
mod usage;
mod view;

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};

use super::{
    exit::{Exit, Failure, Result},
    input,
    options::Session,
    output,
    pages::Limit,
};
use crate::grpc::proto::{
    AdoptKeyRequest, Algorithm, ApproveRotationPolicyRequest, CreateKeyRequest, GetKeyRequest,
    ImportKeyRequest, KeyPurpose, ListKeysRequest, ListKeysResponse, RevokeKeyVersionRequest,
    RotationMode, RotationPolicy, UpdateKeyRequest,
};

/// Manage keys
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create a key; its material is generated in the backend
    Create(Create),
    /// Take over a key pair that exists in the backend
    Adopt(Adopt),
    /// Take over a MAC secret that somebody else chose, such as that of a payment provider's webhooks
    Import(Import),
    /// Show a key with all its versions
    Get(Get),
    /// Show how each version was used, and how much of its data was moved to its successors
    Usage(usage::Usage),
    /// List the keys of a tenant
    List(List),
    /// Change owner, rotation period, next rotation or rotation policy
    Update(Update),
    /// Give the standing approval to a key that rotates automatically; without --revision, show what there is to judge
    ApprovePolicy(ApprovePolicy),
    /// End a VERIFY_ONLY version at once, or withdraw one that was never ACTIVE; its tokens stop verifying
    RevokeVersion(RevokeVersion),
    /// Destroy a RETIRED or COMPROMISED version: two people and a waiting period
    #[command(subcommand)]
    Destroy(destroy::Command),
}

/// How old versions end; for `create` and `adopt`.
#[derive(Args, Debug)]
pub struct Policy {
    /// Approvals that each rotation needs, 1 to 8; it can be raised later, never lowered [default: 1]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    approvals: u32,
    /// Keep a standby version announced, so that a compromise needs no soak
    #[arg(long)]
    standby: bool,
    /// How long the old version keeps verifying after a rotation, beside the tokens it issued [default: 90d for SIGNING
    /// and MAC, none for the others]
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    grace: Option<Duration>,
    /// Backend of the key pairs [default: keys.default_backend of the daemon]
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    backend: String,
    /// Backend of the standby version [default: the key's own]
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    standby_backend: String,
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
    /// Who starts rotations [default: automatic for encryption keys with one approval, manual for every other]
    #[arg(long, value_parser = input::rotation_mode(), ignore_case = true)]
    rotation_mode: Option<RotationMode>,
    #[command(flatten)]
    policy: Policy,
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
    #[command(flatten)]
    policy: Policy,
}

#[derive(Args, Debug)]
pub struct Import {
    /// Name, unique in the tenant
    name: String,
    #[command(flatten)]
    secret: input::SecretFile,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// HS256 or HS512, as the other side has it
    #[arg(long, value_parser = input::algorithm(), ignore_case = true)]
    algorithm: Algorithm,
    /// Person or team that answers for the key
    #[arg(long)]
    owner: String,
    /// Time between rotations, such as 30d; the longest allowed when left out
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    rotation_period: Option<Duration>,
    /// Approvals that each rotation needs, 1 to 8; it can be raised later, never lowered [default: 1]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    approvals: u32,
    /// How long the old secret keeps verifying after a rotation [default: 90d]
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    grace: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct Get {
    /// Name or id
    key: String,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Show one version with all its times
    #[arg(long, allow_hyphen_values = true)]
    kid: Option<String>,
    /// Print only the public key, PEM: of the ACTIVE version, or of --kid
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
    /// Only keys that must be rotated within this time, such as 7d; overdue ones among them
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    due_within: Option<Duration>,
    /// Only keys with a COMPROMISED version
    #[arg(long)]
    compromised: bool,
    /// Only keys of this owner
    #[arg(long, default_value = "", hide_default_value = true)]
    owner: String,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Args, Debug)]
#[command(group(ArgGroup::new("change").required(true).multiple(true).args(["owner", "rotation_period", "next_rotation", "rotation_mode", "approvals", "standby", "grace", "backend", "standby_backend"])))]
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
    /// Who starts rotations; `automatic` needs `key approve-policy` by somebody else, again after each change
    #[arg(long, value_parser = input::rotation_mode(), ignore_case = true)]
    rotation_mode: Option<RotationMode>,
    /// More approvals for each rotation, up to 8; never fewer
    #[arg(long, value_name = "N")]
    approvals: Option<u32>,
    /// Keep a standby version, or with `--standby=false` keep none
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    standby: Option<bool>,
    /// How long the old version keeps verifying after rotations that are requested from now on
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    grace: Option<Duration>,
    /// Backend that generates versions from now on: the next rotation moves the key there
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Backend of the standby version; empty for the key's own
    #[arg(long, value_name = "NAME")]
    standby_backend: Option<String>,
}

#[derive(Args, Debug)]
pub struct ApprovePolicy {
    /// Name or id
    key: String,
    /// Revision of the key whose policy you have read
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    revision: Option<i64>,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
}

#[derive(Args, Debug)]
pub struct RevokeVersion {
    /// Name or id
    key: String,
    /// The version
    #[arg(long, allow_hyphen_values = true)]
    kid: String,
    /// Why, in a sentence
    #[arg(long)]
    reason: String,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
}

/// Runs `claviger key …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    match command {
        Command::Create(args) => create(args, session).await?,
        Command::Adopt(args) => adopt(args, session).await?,
        Command::Import(args) => import(args, session).await?,
        Command::Get(args) => get(args, session).await?,
        Command::Usage(args) => usage::run(args, session).await?,
        Command::List(args) => list(args, session).await?,
        Command::Update(args) => update(args, session).await?,
        Command::ApprovePolicy(args) => return approve_policy(args, session).await,
        Command::RevokeVersion(args) => {
            let request = RevokeKeyVersionRequest {
                tenant: args.tenant,
                key: args.key,
                kid: args.kid,
                reason: args.reason,
            };
            let call = async |r| session.keys().revoke_key_version(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |answer| view::whole(answer.key.as_ref()))?;
        }
        Command::Destroy(command) => destroy::run(command, session).await?,
    }
    Ok(Exit::Ok)
}

async fn create(args: Create, session: &Session) -> Result<()> {
    let request = CreateKeyRequest {
        tenant: args.tenant,
        name: args.name,
        purpose: args.purpose.into(),
        algorithm: args.algorithm.into(),
        rsa_bits: args.rsa_bits,
        owner: args.owner,
        rotation_period: args.rotation_period.map(input::proto_duration),
        rotation_mode: args.rotation_mode.unwrap_or_default().into(),
        approvals_needed: args.policy.approvals,
        standby: args.policy.standby,
        grace: args.policy.grace.map(input::proto_duration),
        backend: args.policy.backend,
        standby_backend: args.policy.standby_backend,
    };
    let call = async |r| session.keys().create_key(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| view::whole(answer.key.as_ref()))
}

async fn adopt(args: Adopt, session: &Session) -> Result<()> {
    let request = AdoptKeyRequest {
        tenant: args.tenant,
        name: args.name,
        purpose: args.purpose.into(),
        algorithm: args.algorithm.into(),
        uri: args.uri,
        owner: args.owner,
        rotation_period: args.rotation_period.map(input::proto_duration),
        approvals_needed: args.policy.approvals,
        standby: args.policy.standby,
        grace: args.policy.grace.map(input::proto_duration),
        backend: args.policy.backend,
        standby_backend: args.policy.standby_backend,
    };
    let call = async |r| session.keys().adopt_key(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| view::whole(answer.key.as_ref()))
}

async fn import(args: Import, session: &Session) -> Result<()> {
    let request = ImportKeyRequest {
        secret: args.secret.read()?.into(),
        tenant: args.tenant,
        name: args.name,
        algorithm: args.algorithm.into(),
        owner: args.owner,
        rotation_period: args.rotation_period.map(input::proto_duration),
        approvals_needed: args.approvals,
        grace: args.grace.map(input::proto_duration),
    };
    let call = async |r| session.keys().import_key(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| view::whole(answer.key.as_ref()))
}

async fn get(args: Get, session: &Session) -> Result<()> {
    let request = GetKeyRequest {
        tenant: args.tenant,
        key: args.key,
    };
    let answer = session.keys().get_key(request).await?.into_inner();
    if args.kid.is_none() && !args.public_key {
        return session.show(&answer, |answer| view::whole(answer.key.as_ref()));
    }
    let key = answer.key.unwrap_or_default();
    let kid = args.kid.as_ref().unwrap_or(&key.active_kid);
    let version = key.versions.iter().find(|version| version.kid == *kid);
    match (args.public_key, version) {
        (false, Some(version)) => session.show(version, view::version),
        (true, Some(version)) => output::print(&version.public_pem),
        // No ACTIVE version, no public key of it: a script reads an empty line.
        (true, None) if args.kid.is_none() => output::print(""),
        (_, None) => {
            let text = format!("key {} has no version {kid}", key.name);
            Err(Failure::new(Exit::NotFound, text))
        }
    }
}

async fn list(args: List, session: &Session) -> Result<()> {
    let mut all = ListKeysResponse::default();
    let mut pages = args.limit.pages();
    while let Some(page_size) = pages.next() {
        let request = ListKeysRequest {
            tenant: args.tenant.clone(),
            page_size,
            page_token: all.next_page_token,
            overdue_only: args.overdue,
            due_within: args.due_within.map(input::proto_duration),
            compromised_only: args.compromised,
            owner: args.owner.clone(),
        };
        let page = session.keys().list_keys(request).await?.into_inner();
        pages.got(page.keys.len(), &page.next_page_token);
        all.keys.extend(page.keys);
        all.next_page_token = page.next_page_token;
    }
    session.explain_nothing(all.keys.len(), &args.tenant);
    session.show(&all, |all| view::table(&all.keys))
}

async fn approve_policy(args: ApprovePolicy, session: &Session) -> Result<Exit> {
    let Some(revision) = args.revision else {
        return show_policy(args, session).await;
    };
    let request = ApproveRotationPolicyRequest {
        tenant: args.tenant,
        key: args.key,
        revision,
    };
    let call = async |r| session.keys().approve_rotation_policy(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| view::whole(answer.key.as_ref()))?;
    Ok(Exit::Ok)
}

/// What there is to judge, and the command that approves it. Nothing was approved: exit code 2.
async fn show_policy(args: ApprovePolicy, session: &Session) -> Result<Exit> {
    let request = GetKeyRequest {
        tenant: args.tenant,
        key: args.key,
    };
    let answer = session.keys().get_key(request).await?.into_inner();
    let key = answer.key.clone().unwrap_or_default();
    let mode = key.rotation_policy.as_ref().map(RotationPolicy::mode);
    if mode != Some(RotationMode::Automatic) {
        let text = format!(
            "key {} does not rotate automatically, so there is no policy to approve",
            key.name
        );
        return Err(Failure::new(Exit::Conflict, text));
    }
    session.show(&answer, |_| {
        format!(
            "{}\n\nNothing is approved yet. To approve exactly this policy:\n\n  \
             {} key approve-policy {} --tenant {} --revision {}",
            view::policy(&key),
            session.again(),
            key.name,
            key.tenant,
            key.revision
        )
    })?;
    Ok(Exit::Usage)
}

async fn update(args: Update, session: &Session) -> Result<()> {
    let request = UpdateKeyRequest {
        tenant: args.tenant,
        key: args.key,
        owner: args.owner,
        rotation_period: args.rotation_period.map(input::proto_duration),
        next_rotation_time: args.next_rotation.map(input::proto_time),
        rotation_mode: args.rotation_mode.unwrap_or_default().into(),
        approvals_needed: args.approvals,
        standby: args.standby,
        grace: args.grace.map(input::proto_duration),
        backend: args.backend,
        standby_backend: args.standby_backend,
    };
    let call = async |r| session.keys().update_key(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| view::whole(answer.key.as_ref()))
}
