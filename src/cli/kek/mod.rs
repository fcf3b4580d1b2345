//! `claviger kek`: the key-encryption key and its rotation. Three roles, three people; the daemon rewraps.
//!
//! An approver states the digest of the plan they have read; without it `approve` only shows the plan.

mod create;
mod plan;
mod view;
mod watch;

use clap::{Args, Subcommand};

use super::{
    exit::{Exit, Failure, Result},
    options::{Format, Options, Session},
    output,
    pages::Limit,
    people::People,
    rotation::plan::plan_digest,
};
use crate::grpc::proto::{
    ApproveKekRotationRequest, CancelKekRotationRequest, DeployKekRotationRequest,
    GetKekRotationRequest, GetKekRotationResponse, KekRotation, ListKekRotationsRequest,
    ListKekRotationsResponse, ListKeksRequest, ListKeksResponse, RejectKekRotationRequest,
    RotateKekRequest, RotationState,
};

/// Manage the key-encryption key: create, request its rotation, approve, deploy, watch
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create the configured key-encryption key, or the next one, unless it exists
    Create(create::Create),
    /// List the key-encryption keys and how many data keys each wraps
    List,
    /// Ask for the rotation to another key-encryption key, which exists
    Rotate(Rotate),
    /// Approve exactly the plan whose digest you give; without --digest, show what there is to judge
    Approve(Approve),
    /// Make the new key-encryption key the one that wraps; the daemon then rewraps every data key
    Deploy(ById),
    /// Turn a rotation down
    Reject(End),
    /// Take a request back, or end a deployed rotation that only undecryptable data keys are left of
    Cancel(End),
    /// Show a rotation with its progress; the newest when ID is left out
    Rotation(Show),
    /// List the rotations
    Rotations(List),
}

#[derive(Args, Debug)]
pub struct Rotate {
    /// Backend that holds the new key-encryption key
    #[arg(long)]
    backend: String,
    /// RFC 7512 URI or ARN of the new key-encryption key; `kek create --uri` makes one on a token
    #[arg(long)]
    uri: String,
    /// Why, in a sentence
    #[arg(long)]
    justification: String,
    /// Approvals that it needs, at most 8
    #[arg(long, value_name = "N", default_value_t = 1)]
    approvals: u32,
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
pub struct Show {
    /// Id of the rotation
    id: Option<String>,
    /// Stay until every data key is rewrapped, with a progress bar on stderr
    #[arg(long)]
    watch: bool,
}

#[derive(Args, Debug)]
pub struct List {
    #[command(flatten)]
    limit: Limit,
}

/// Runs `claviger kek …`.
pub async fn run(command: Command, options: &Options) -> Result<Exit> {
    match command {
        Command::Create(args) => create::run(args).await,
        other => call(other, &options.connect().await?).await,
    }
}

async fn call(command: Command, session: &Session) -> Result<Exit> {
    match command {
        Command::Create(args) => return create::run(args).await,
        Command::List => {
            let answer = keks(session).await?;
            session.show(&answer, |answer| view::keks(&answer.keks))?;
        }
        Command::Rotate(args) => rotate(args, session).await?,
        Command::Approve(Approve { id, digest: None }) => return show_plan(&id, session).await,
        Command::Approve(Approve {
            id,
            digest: Some(digest),
        }) => approve(id, digest, session).await?,
        Command::Deploy(ById { id }) => deploy(id, session).await?,
        Command::Reject(args) => reject(args, session).await?,
        Command::Cancel(args) => cancel(args, session).await?,
        Command::Rotation(args) => return show(args, session).await,
        Command::Rotations(args) => list(args, session).await?,
    }
    Ok(Exit::Ok)
}

async fn rotate(args: Rotate, session: &Session) -> Result<()> {
    let request = RotateKekRequest {
        backend: args.backend,
        uri: args.uri,
        justification: args.justification,
        approvals_needed: args.approvals,
    };
    let call = async |r| session.keks().rotate_kek(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| {
        let rotation = answer.rotation.clone().unwrap_or_default();
        view::details(&rotation, People::you(&rotation.requester))
    })
}

async fn approve(id: String, plan_digest: String, session: &Session) -> Result<()> {
    // A plan that contradicts what there is is not sent on, whoever computed a digest of it.
    let rotation = get(session, &id).await?.rotation.unwrap_or_default();
    if rotation.state() == RotationState::Requested {
        honest(&plan::compare(&id, &rotation, &keks(session).await?.keks))?;
    }
    let request = ApproveKekRotationRequest {
        rotation_id: id,
        plan_digest,
    };
    let call = async |r| session.keks().approve_kek_rotation(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| {
        let rotation = answer.rotation.clone().unwrap_or_default();
        let last = rotation.approvals.last();
        let you = last.map_or("", |last| &last.approver);
        view::details(&rotation, People::you(you))
    })
}

async fn deploy(id: String, session: &Session) -> Result<()> {
    let request = DeployKekRotationRequest { rotation_id: id };
    let call = async |r| session.keks().deploy_kek_rotation(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| {
        let rotation = answer.rotation.clone().unwrap_or_default();
        view::details(&rotation, People::you(&rotation.deployer))
    })
}

async fn reject(args: End, session: &Session) -> Result<()> {
    let request = RejectKekRotationRequest {
        rotation_id: args.id,
        reason: args.reason,
    };
    let call = async |r| session.keks().reject_kek_rotation(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| {
        let rotation = answer.rotation.clone().unwrap_or_default();
        view::details(&rotation, People::you(&rotation.ended_by))
    })
}

async fn cancel(args: End, session: &Session) -> Result<()> {
    let request = CancelKekRotationRequest {
        rotation_id: args.id,
        reason: args.reason,
    };
    let call = async |r| session.keks().cancel_kek_rotation(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| {
        let rotation = answer.rotation.clone().unwrap_or_default();
        view::details(&rotation, People::you(&rotation.ended_by))
    })
}

async fn show(args: Show, session: &Session) -> Result<Exit> {
    let id = match args.id {
        Some(id) => id,
        None => newest(session).await?,
    };
    let exit = match args.watch {
        true => watch::until_done(&id, session).await?,
        false => Exit::Ok,
    };
    let answer = get(session, &id).await?;
    session.show(&answer, |answer| {
        let rotation = answer.rotation.clone().unwrap_or_default();
        view::details(&rotation, People::strangers())
    })?;
    Ok(exit)
}

async fn newest(session: &Session) -> Result<String> {
    let request = ListKekRotationsRequest {
        page_size: 1,
        page_token: String::new(),
    };
    let page = session.keks().list_kek_rotations(request).await?;
    let newest = page.into_inner().rotations.into_iter().next();
    newest.map(|rotation| rotation.id).ok_or_else(|| {
        Failure::new(
            Exit::NotFound,
            "the key-encryption key was never rotated; `kek rotate` asks for it",
        )
    })
}

async fn list(args: List, session: &Session) -> Result<()> {
    let mut all = ListKekRotationsResponse::default();
    let mut pages = args.limit.pages();
    while let Some(page_size) = pages.next() {
        let request = ListKekRotationsRequest {
            page_size,
            page_token: all.next_page_token,
        };
        let page = session.keks().list_kek_rotations(request).await?;
        let page = page.into_inner();
        pages.got(page.rotations.len(), &page.next_page_token);
        all.rotations.extend(page.rotations);
        all.next_page_token = page.next_page_token;
    }
    session.show(&all, |all| view::rotations(&all.rotations))
}

async fn keks(session: &Session) -> Result<ListKeksResponse> {
    let answer = session.keks().list_keks(ListKeksRequest {}).await?;
    Ok(answer.into_inner())
}

async fn get(session: &Session, id: &str) -> Result<GetKekRotationResponse> {
    let request = GetKekRotationRequest {
        rotation_id: id.to_owned(),
    };
    Ok(session.keks().get_kek_rotation(request).await?.into_inner())
}

/// What there is to judge, and the command that approves it. Nothing was approved: exit code 2.
async fn show_plan(id: &str, session: &Session) -> Result<Exit> {
    let answer = get(session, id).await?;
    let rotation = answer.rotation.clone().unwrap_or_default();
    if rotation.state() != RotationState::Requested {
        let state = view::state(&rotation);
        let text = format!(
            "the rotation is {state}, so there is nothing to approve; `kek rotation` shows it"
        );
        return Err(Failure::new(Exit::Conflict, text));
    }
    honest(&plan::compare(id, &rotation, &keks(session).await?.keks))?;
    match session.format() {
        Format::Json => output::print(&output::json(&answer)?)?,
        Format::Table => {
            output::print(&view::details(&rotation, People::strangers()))?;
            output::print(&view::judgement(&rotation))?;
            output::print(&format!(
                "\nNothing is approved yet. To approve exactly this plan:\n\n  {} kek approve {} --digest {}",
                session.again(),
                rotation.id,
                plan_digest(&rotation.plan),
            ))?;
        }
    }
    Ok(Exit::Usage)
}

/// Errors: what does not fit together; exit code 1.
fn honest(lies: &[String]) -> Result<()> {
    if lies.is_empty() {
        return Ok(());
    }
    let text = format!("do not approve this rotation: {}", lies.join("; "));
    Err(Failure::new(Exit::No, text))
}

/// Rewrapped of all there are to rewrap: those that were there at the deployment, and what was added since.
fn progress(rotation: &KekRotation) -> (u64, u64) {
    let done = rotation.rewrapped.unsigned_abs();
    (done, done + rotation.remaining.unsigned_abs())
}
