//! `claviger rotation`: request, approve, deploy. Three roles, three people.
//!
//! An approver states the digest of the plan they have read; without it `approve` only shows the plan. plan.rs compares
//! what the daemon says about a rotation with what it says about the key; view.rs tells people what is next.

pub mod plan;
mod view;

use std::{collections::BTreeSet, path::PathBuf};

use clap::{Args, Subcommand, builder::PossibleValuesParser};

use super::{
    exit::{Exit, Failure, Result},
    input,
    options::{Format, Session},
    output,
    pages::Limit,
    people::People,
};
use crate::grpc::proto::{
    ApproveRotationRequest, CancelRotationRequest, DeployRotationRequest, GetKeyRequest,
    GetRotationRequest, GetRotationResponse, Key, ListRotationsRequest, ListRotationsResponse,
    RejectRotationRequest, RotateKeyRequest, Rotation, RotationState,
};
use plan::Findings;

/// Rotate keys: request, approve, deploy
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Generate the next version of a key and ask for approval
    Request(Request),
    /// Approve exactly the plan whose digest you give; without --digest, show what there is to judge
    Approve(Approve),
    /// Turn a rotation down; the new version is withdrawn
    Reject(End),
    /// Take a request back; the new version is withdrawn
    Cancel(End),
    /// Make the new version the ACTIVE one
    Deploy(ById),
    /// Show a rotation with its plan
    Get(ById),
    /// List the rotations of a tenant
    List(List),
}

#[derive(Args, Debug)]
pub struct Request {
    /// Name or id of the key
    #[arg(long)]
    key: String,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Why, in a sentence
    #[arg(long)]
    justification: String,
    /// For an imported MAC key, and required there: file that holds its next secret; `-` for stdin
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// How the secret is written in it
    #[arg(long, value_enum, default_value_t, requires = "secret_file")]
    encoding: input::Encoding,
}

#[derive(Args, Debug)]
pub struct Approve {
    /// Id of the rotation
    id: String,
    /// Digest of the plan you have read
    #[arg(long, value_name = "HEX")]
    digest: Option<String>,
}

#[derive(Args, Debug)]
pub struct End {
    /// Id of the rotation
    id: String,
    /// Why, in a sentence
    #[arg(long)]
    reason: String,
}

#[derive(Args, Debug)]
pub struct ById {
    /// Id of the rotation
    id: String,
}

#[derive(Args, Debug)]
pub struct List {
    /// Tenant; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Only rotations of this key
    #[arg(long, default_value = "", hide_default_value = true)]
    key: String,
    /// Only rotations in this state
    #[arg(long, ignore_case = true, value_parser = input::choice(STATES, "ROTATION_STATE_", RotationState::from_str_name))]
    state: Option<RotationState>,
    /// Only rotations that you can approve or deploy
    #[arg(long, value_name = "me", value_parser = PossibleValuesParser::new(["me"]))]
    waiting_for: Option<String>,
    #[command(flatten)]
    limit: Limit,
}

const STATES: &[&str] = &[
    "requested",
    "approved",
    "deployed",
    "completed",
    "rejected",
    "cancelled",
    "expired",
];

/// Runs `claviger rotation …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    match command {
        Command::Request(args) => request(args, session).await?,
        Command::Approve(Approve { id, digest: None }) => return show_plan(&id, session).await,
        Command::Approve(Approve {
            id,
            digest: Some(plan_digest),
        }) => approve(id, plan_digest, session).await?,
        Command::Reject(args) => reject(args, session).await?,
        Command::Cancel(args) => cancel(args, session).await?,
        Command::Deploy(ById { id }) => deploy(id, session).await?,
        Command::Get(ById { id }) => {
            let answer = get(session, &id).await?;
            let rotation = answer.rotation.clone().unwrap_or_default();
            let yours = is_yours(&rotation, session).await?;
            session.show(&answer, |_| {
                view::details(&rotation, yours, People::strangers())
            })?;
        }
        Command::List(args) => list(args, session).await?,
    }
    Ok(Exit::Ok)
}

async fn request(args: Request, session: &Session) -> Result<()> {
    let encoding = args.encoding;
    let file = args.secret_file.map(|secret_file| input::SecretFile {
        secret_file,
        encoding,
    });
    let secret = file.map(|file| file.read()).transpose()?;
    let request = RotateKeyRequest {
        tenant: args.tenant,
        key: args.key,
        justification: args.justification,
        secret: secret.unwrap_or_default().into(),
    };
    let call = async |r| session.rotations().rotate_key(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| {
        let rotation = answer.rotation.clone().unwrap_or_default();
        done(&rotation, &rotation.requester)
    })
}

async fn approve(id: String, plan_digest: String, session: &Session) -> Result<()> {
    // A plan that contradicts the key is not sent on, whoever computed a digest of it.
    let answer = get(session, &id).await?;
    let rotation = answer.rotation.unwrap_or_default();
    if is_open(&rotation) {
        let key = key_of(&rotation, session).await?;
        honest(&plan::compare(&id, &rotation, &key))?;
    }
    let request = ApproveRotationRequest {
        rotation_id: id,
        plan_digest,
    };
    let call = async |r| session.rotations().approve_rotation(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| {
        let rotation = answer.rotation.clone().unwrap_or_default();
        let last = rotation.approvals.last();
        done(&rotation, last.map_or("", |last| &last.approver))
    })
}

async fn reject(args: End, session: &Session) -> Result<()> {
    let request = RejectRotationRequest {
        rotation_id: args.id,
        reason: args.reason,
    };
    let call = async |r| session.rotations().reject_rotation(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| {
        let rotation = answer.rotation.clone().unwrap_or_default();
        done(&rotation, &rotation.ended_by)
    })
}

async fn cancel(args: End, session: &Session) -> Result<()> {
    let request = CancelRotationRequest {
        rotation_id: args.id,
        reason: args.reason,
    };
    let call = async |r| session.rotations().cancel_rotation(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| {
        let rotation = answer.rotation.clone().unwrap_or_default();
        done(&rotation, &rotation.ended_by)
    })
}

async fn deploy(id: String, session: &Session) -> Result<()> {
    let request = DeployRotationRequest { rotation_id: id };
    let call = async |r| session.rotations().deploy_rotation(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| {
        let rotation = answer.rotation.clone().unwrap_or_default();
        done(&rotation, &rotation.deployer)
    })
}

async fn list(args: List, session: &Session) -> Result<()> {
    let filter = ListRotationsRequest {
        tenant: args.tenant,
        key: args.key,
        state: args.state.unwrap_or_default().into(),
        waiting_for_me: args.waiting_for.is_some(),
        ..Default::default()
    };
    let all = pages(&filter, args.limit, session).await?;
    session.explain_nothing(all.rotations.len(), &filter.tenant);
    let waiting = match session.format() {
        Format::Json => BTreeSet::new(),
        Format::Table if all.rotations.iter().any(is_open) => {
            waiting(&filter, args.limit, session).await?
        }
        Format::Table => BTreeSet::new(),
    };
    session.show(&all, |all| {
        let rows = all.rotations.iter();
        view::table(rows.map(|rotation| (rotation, waiting.contains(&rotation.id))))
    })
}

async fn pages(
    filter: &ListRotationsRequest,
    limit: Limit,
    session: &Session,
) -> Result<ListRotationsResponse> {
    let mut all = ListRotationsResponse::default();
    let mut pages = limit.pages();
    while let Some(page_size) = pages.next() {
        let request = ListRotationsRequest {
            page_size,
            page_token: all.next_page_token,
            ..filter.clone()
        };
        let page = session.rotations().list_rotations(request).await?;
        let page = page.into_inner();
        pages.got(page.rotations.len(), &page.next_page_token);
        all.rotations.extend(page.rotations);
        all.next_page_token = page.next_page_token;
    }
    Ok(all)
}

/// Ids of the rotations that wait for the caller, as the daemon sees it: the client does not know its own roles.
async fn waiting(
    filter: &ListRotationsRequest,
    limit: Limit,
    session: &Session,
) -> Result<BTreeSet<String>> {
    let filter = ListRotationsRequest {
        waiting_for_me: true,
        ..filter.clone()
    };
    let all = pages(&filter, limit, session).await?;
    Ok(all.rotations.into_iter().map(|r| r.id).collect())
}

async fn is_yours(rotation: &Rotation, session: &Session) -> Result<bool> {
    if session.format() == Format::Json || !is_open(rotation) {
        return Ok(false);
    }
    let filter = ListRotationsRequest {
        tenant: rotation.tenant.clone(),
        key: rotation.key_id.clone(),
        ..Default::default()
    };
    let waiting = waiting(&filter, Limit::default(), session).await?;
    Ok(waiting.contains(&rotation.id))
}

async fn get(session: &Session, id: &str) -> Result<GetRotationResponse> {
    let request = GetRotationRequest {
        rotation_id: id.to_owned(),
    };
    Ok(session
        .rotations()
        .get_rotation(request)
        .await?
        .into_inner())
}

async fn key_of(rotation: &Rotation, session: &Session) -> Result<Key> {
    let request = GetKeyRequest {
        tenant: rotation.tenant.clone(),
        key: rotation.key_id.clone(),
    };
    let answer = session.keys().get_key(request).await?.into_inner();
    Ok(answer.key.unwrap_or_default())
}

/// What there is to judge, and the command that approves it. Nothing was approved: exit code 2.
async fn show_plan(id: &str, session: &Session) -> Result<Exit> {
    let answer = get(session, id).await?;
    let rotation = answer.rotation.clone().unwrap_or_default();
    if rotation.state() != RotationState::Requested {
        let state = view::state(&rotation);
        let text = format!(
            "the rotation is {state}, so there is nothing to approve; `rotation get` shows it"
        );
        return Err(Failure::new(Exit::Conflict, text));
    }
    let key = key_of(&rotation, session).await?;
    let findings = plan::compare(id, &rotation, &key);
    honest(&findings)?;
    match session.format() {
        Format::Json => output::print(&output::json(&answer)?)?,
        Format::Table => {
            let yours = is_yours(&rotation, session).await?;
            output::print(&format!(
                "{}\n{}\n\nThe digest was computed here, and the plan agrees with the key.",
                view::details(&rotation, yours, People::strangers()),
                view::judgement(&rotation, &key, &findings)
            ))?;
            output::print(&format!(
                "Nothing is approved yet. To approve exactly this plan:\n\n  {} rotation approve {} --digest {}",
                session.again(),
                rotation.id,
                plan::plan_digest(&rotation.plan),
            ))?;
        }
    }
    Ok(Exit::Usage)
}

/// Errors: what does not fit together; exit code 1.
fn honest(findings: &Findings) -> Result<()> {
    if findings.lies.is_empty() {
        return Ok(());
    }
    let text = format!("do not approve this rotation: {}", findings.lies.join("; "));
    Err(Failure::new(Exit::No, text))
}

fn is_open(rotation: &Rotation) -> bool {
    let open = [RotationState::Requested, RotationState::Approved];
    open.contains(&rotation.state())
}

/// After a step that `you` have just taken.
fn done(rotation: &Rotation, you: &str) -> String {
    view::details(rotation, false, People::you(you))
}
