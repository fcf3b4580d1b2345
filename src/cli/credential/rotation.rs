//! `claviger credential rotation`: another value in the place of one, step by step.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{
    super::{
        exit::{Exit, Result},
        input,
        options::Session,
        output,
        pages::Limit,
    },
    Whose, view,
};
use crate::grpc::proto::{
    ApproveCredentialRotationRequest, CompleteCredentialRotationRequest, CredentialProof,
    CredentialRotation, CredentialRotationState, GetCredentialRotationRequest,
    ListCredentialRotationsRequest, ListCredentialRotationsResponse, ListDueCredentialsRequest,
    ListDueCredentialsResponse, PromoteCredentialRequest, RollBackCredentialRequest,
    SetCredentialRotationRequest, StageCredentialRequest,
};

/// Put another value in the place of one, step by step
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Store a new value as PENDING
    Stage(Stage),
    /// Ask the provider about the PENDING value, and make it CURRENT when it is taken
    Promote(Promote),
    /// Agree to a promotion that needs three people
    Approve(Named),
    /// Let the old value go when the provider refuses it
    Complete(Complete),
    /// Take the old value back
    RollBack(RollBack),
    /// Say where new values come from, and how often
    Set(Set),
    /// Show one rotation
    Get(Named),
    /// List rotations, oldest first
    List(List),
    /// List credentials that are to be rotated
    Due(Due),
}

#[derive(Args, Debug)]
pub struct Stage {
    /// Id of the credential
    credential: String,
    /// A field of the secret and where it is: NAME=- for stdin, NAME=file:PATH, NAME=env:VARIABLE; repeatable [default:
    /// api_key from stdin]
    #[arg(long = "field", value_name = "NAME=SOURCE")]
    fields: Vec<String>,
    /// How long the old value is held once the new one is in use, such as 2h [default: the daemon's]
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    hold: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct Promote {
    /// Id of the rotation
    id: String,
    /// Without asking the provider
    #[arg(long)]
    without_probe: bool,
}

#[derive(Args, Debug)]
pub struct Complete {
    /// Id of the rotation
    id: String,
    /// Also when the old value is not proved dead
    #[arg(long)]
    without_proof: bool,
}

#[derive(Args, Debug)]
pub struct RollBack {
    /// Id of the rotation
    id: String,
    /// Why, in a sentence
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

#[derive(Args, Debug)]
pub struct Set {
    /// Id of the credential
    credential: String,
    /// Where new values come from
    #[arg(long, value_parser = ["manual", "webhook", "command"])]
    driver: Option<String>,
    /// How long a value is to be used, such as 30d
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    period: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct Named {
    /// Id of the rotation
    id: String,
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
pub struct Due {
    #[command(flatten)]
    whose: Whose,
    /// How far to look ahead, such as 7d [default: only what is overdue]
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    within: Option<Duration>,
    #[command(flatten)]
    limit: Limit,
}

/// Runs `claviger credential rotation …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    match command {
        Command::Stage(args) => stage(args, session).await?,
        Command::Promote(args) => return promote(args, session).await,
        Command::Approve(Named { id }) => {
            let request = ApproveCredentialRotationRequest { rotation_id: id };
            let call = async |r| {
                let mut client = session.credential_rotations();
                client.approve_credential_rotation(r).await
            };
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |a| details(a.rotation.as_ref()))?;
        }
        Command::Complete(args) => return complete(args, session).await,
        Command::RollBack(RollBack { id, reason }) => {
            let request = RollBackCredentialRequest {
                rotation_id: id,
                reason,
            };
            let call = async |r| session.credential_rotations().roll_back_credential(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |a| details(a.rotation.as_ref()))?;
        }
        Command::Set(args) => {
            let request = SetCredentialRotationRequest {
                credential_id: args.credential,
                driver: args.driver.unwrap_or_default(),
                rotation_period: args.period.map(input::proto_duration),
            };
            let call = async |r| {
                session
                    .credential_rotations()
                    .set_credential_rotation(r)
                    .await
            };
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |a| view::details(a.credential.as_ref()))?;
        }
        Command::Get(Named { id }) => {
            let request = GetCredentialRotationRequest { rotation_id: id };
            let mut client = session.credential_rotations();
            let answer = client.get_credential_rotation(request).await?;
            session.show(&answer.into_inner(), |a| details(a.rotation.as_ref()))?;
        }
        Command::List(args) => list(args, session).await?,
        Command::Due(args) => due(args, session).await?,
    }
    Ok(Exit::Ok)
}

async fn stage(args: Stage, session: &Session) -> Result<()> {
    let request = StageCredentialRequest {
        credential_id: args.credential,
        fields: super::fields(&args.fields)?,
        hold: args.hold.map(input::proto_duration),
    };
    let call = async |r| session.credential_rotations().stage_credential(r).await;
    let answer = session.mutate(request, call).await?;
    for warning in &answer.warnings {
        view::warn(warning);
    }
    session.show(&answer, |a| details(a.rotation.as_ref()))
}

/// The answer is no unless the value was promoted.
async fn promote(args: Promote, session: &Session) -> Result<Exit> {
    let request = PromoteCredentialRequest {
        rotation_id: args.id,
        without_probe: args.without_probe,
    };
    let call = async |r| session.credential_rotations().promote_credential(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |a| details(a.rotation.as_ref()))?;
    let state = answer.rotation.unwrap_or_default().state();
    Ok(yes(state == CredentialRotationState::Holding))
}

/// The answer is no unless the old value is gone.
async fn complete(args: Complete, session: &Session) -> Result<Exit> {
    let request = CompleteCredentialRotationRequest {
        rotation_id: args.id,
        without_proof: args.without_proof,
    };
    let call = async |r| {
        let mut client = session.credential_rotations();
        client.complete_credential_rotation(r).await
    };
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |a| details(a.rotation.as_ref()))?;
    let state = answer.rotation.unwrap_or_default().state();
    Ok(yes(state == CredentialRotationState::Completed))
}

const fn yes(is_so: bool) -> Exit {
    match is_so {
        true => Exit::Ok,
        false => Exit::No,
    }
}

async fn list(args: List, session: &Session) -> Result<()> {
    let mut client = session.credential_rotations();
    let mut all = ListCredentialRotationsResponse::default();
    let mut pages = args.limit.pages();
    while let Some(page_size) = pages.next() {
        let request = ListCredentialRotationsRequest {
            credential_id: args.credential.clone(),
            tenant: args.tenant.clone(),
            page_size,
            page_token: all.next_page_token,
        };
        let page = client.list_credential_rotations(request).await?;
        let page = page.into_inner();
        pages.got(page.rotations.len(), &page.next_page_token);
        all.rotations.extend(page.rotations);
        all.next_page_token = page.next_page_token;
    }
    session.show(&all, |all| table(&all.rotations))?;
    if args.credential.is_empty() {
        session.explain_nothing(all.rotations.len(), &args.tenant);
    }
    Ok(())
}

async fn due(args: Due, session: &Session) -> Result<()> {
    let mut client = session.credential_rotations();
    let mut all = ListDueCredentialsResponse::default();
    let mut pages = args.limit.pages();
    while let Some(page_size) = pages.next() {
        let request = ListDueCredentialsRequest {
            owner_id: args.whose.owner.clone(),
            tenant: args.whose.tenant.clone(),
            within: args.within.map(input::proto_duration),
            page_size,
            page_token: all.next_page_token,
        };
        let page = client.list_due_credentials(request).await?.into_inner();
        pages.got(page.credentials.len(), &page.next_page_token);
        all.credentials.extend(page.credentials);
        all.next_page_token = page.next_page_token;
    }
    session.show(&all, |all| view::table(&all.credentials))
}

fn table(rotations: &[CredentialRotation]) -> String {
    let rows = rotations.iter().map(|r| {
        [
            r.id.clone(),
            r.credential_id.clone(),
            state(r),
            proof(r),
            r.why.clone(),
            attention(r),
            output::when(&r.create_time),
            output::when(&r.hold_until_time),
        ]
    });
    output::table(
        [
            "ID",
            "CREDENTIAL",
            "STATE",
            "OLD VALUE",
            "WHY",
            "LOOK AFTER",
            "STAGED",
            "HELD UNTIL",
        ],
        rows,
    )
}

fn details(rotation: Option<&CredentialRotation>) -> String {
    let r = rotation.cloned().unwrap_or_default();
    output::details([
        ("id", r.id.clone()),
        ("credential", r.credential_id.clone()),
        ("state", state(&r)),
        ("why", r.why.clone()),
        ("look after", attention(&r)),
        ("requested by", r.requester_id.clone()),
        ("approved by", approver(&r)),
        ("new value", r.new_value_id.clone()),
        ("provider says", view::probe(r.new_probe.as_ref())),
        ("old value", r.old_value_id.clone()),
        ("provider says", view::probe(r.old_probe.as_ref())),
        ("proof", proof(&r)),
        ("staged", output::time(&r.create_time)),
        ("held until", output::time(&r.hold_until_time)),
    ])
}

fn attention(r: &CredentialRotation) -> String {
    r.attention.to_ascii_lowercase().replace('_', " ")
}

fn approver(r: &CredentialRotation) -> String {
    match (r.needs_approval, r.approver_id.as_str()) {
        (false, _) => "not needed".to_owned(),
        (true, "") => "nobody yet".to_owned(),
        (true, id) => format!("{id}, {}", output::time(&r.approve_time)),
    }
}

fn state(r: &CredentialRotation) -> String {
    output::short(r.state().as_str_name(), "CREDENTIAL_ROTATION_STATE_")
}

fn proof(r: &CredentialRotation) -> String {
    match r.proof() {
        CredentialProof::Unspecified => "unknown",
        CredentialProof::Dead => "dead",
        CredentialProof::Alive => "alive: revoke it at the provider",
    }
    .to_owned()
}
