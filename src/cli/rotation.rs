//! `claviger rotation`: request, approve, deploy. Three roles, three people.
//!
//! An approver states the digest of the plan they have read; without it `approve` only shows the plan.

use aws_lc_rs::digest;
use clap::{Args, Subcommand};

use super::{
    exit::{Exit, Failure, Result},
    input,
    options::{Format, Session},
    output,
    pages::Limit,
};
use crate::grpc::proto::{
    ApproveRotationRequest, DeployRotationRequest, GetRotationRequest, GetRotationResponse,
    ListRotationsRequest, ListRotationsResponse, RotateKeyRequest, Rotation, RotationState,
};

/// Rotate keys: request, approve, deploy
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Generate the next version of a key and ask for approval
    Request(Request),
    /// Approve exactly the plan whose digest you give; without --digest, show the plan
    Approve(Approve),
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
    #[arg(long, ignore_case = true, value_parser = input::choice(&["requested", "approved", "deployed"], "ROTATION_STATE_", RotationState::from_str_name))]
    state: Option<RotationState>,
    #[command(flatten)]
    limit: Limit,
}

/// Runs `claviger rotation …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    let mut client = session.rotations();
    match command {
        Command::Request(args) => {
            let request = RotateKeyRequest {
                tenant: args.tenant,
                key: args.key,
                justification: args.justification,
            };
            let answer = client.rotate_key(request).await?.into_inner();
            session.show(&answer, |answer| details(answer.rotation.as_ref()))?;
        }
        Command::Approve(Approve { id, digest: None }) => {
            let answer = get(session, id).await?;
            return show_plan(&answer, session);
        }
        Command::Approve(Approve {
            id,
            digest: Some(plan_digest),
        }) => {
            let request = ApproveRotationRequest {
                rotation_id: id,
                plan_digest,
            };
            let answer = client.approve_rotation(request).await?.into_inner();
            session.show(&answer, |answer| details(answer.rotation.as_ref()))?;
        }
        Command::Deploy(ById { id }) => {
            let request = DeployRotationRequest { rotation_id: id };
            let answer = client.deploy_rotation(request).await?.into_inner();
            session.show(&answer, |answer| details(answer.rotation.as_ref()))?;
        }
        Command::Get(ById { id }) => {
            let answer = get(session, id).await?;
            session.show(&answer, |answer| details(answer.rotation.as_ref()))?;
        }
        Command::List(args) => {
            let mut all = ListRotationsResponse::default();
            let mut pages = args.limit.pages();
            while let Some(page_size) = pages.next() {
                let request = ListRotationsRequest {
                    tenant: args.tenant.clone(),
                    key: args.key.clone(),
                    state: args.state.unwrap_or_default().into(),
                    page_size,
                    page_token: all.next_page_token,
                    ..Default::default()
                };
                let page = client.list_rotations(request).await?.into_inner();
                pages.got(page.rotations.len(), &page.next_page_token);
                all.rotations.extend(page.rotations);
                all.next_page_token = page.next_page_token;
            }
            session.show(&all, |all| table(&all.rotations))?;
        }
    }
    Ok(Exit::Ok)
}

/// SHA-256 of a plan, in hex: what an approver computes to know that they approve what they read.
pub fn plan_digest(plan: &str) -> String {
    let digest = digest::digest(&digest::SHA256, plan.as_bytes());
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

async fn get(session: &Session, id: String) -> Result<GetRotationResponse> {
    let request = GetRotationRequest { rotation_id: id };
    Ok(session
        .rotations()
        .get_rotation(request)
        .await?
        .into_inner())
}

/// The plan, its digest computed here, and the command that approves it. Nothing was approved: exit code 2.
fn show_plan(answer: &GetRotationResponse, session: &Session) -> Result<Exit> {
    let rotation = answer.rotation.clone().unwrap_or_default();
    let digest = plan_digest(&rotation.plan);
    if digest != rotation.plan_digest {
        return Err(Failure::other(
            "the daemon's digest is not that of the plan it shows; do not approve this rotation",
        ));
    }
    match session.format() {
        Format::Json => output::print(&output::json(answer)?)?,
        Format::Table => {
            output::print(&details(Some(&rotation)))?;
            output::print(&format!(
                "\nNothing is approved yet. To approve exactly this plan:\n\n  {} rotation approve {} --digest {digest}",
                session.again(),
                rotation.id,
            ))?;
        }
    }
    Ok(Exit::Usage)
}

fn table(rotations: &[Rotation]) -> String {
    let rows = rotations.iter().map(|rotation| {
        [
            rotation.id.clone(),
            rotation.key_name.clone(),
            state(rotation),
            output::when(&rotation.request_time),
            deployable(rotation),
            rotation.justification.clone(),
        ]
    });
    output::table(
        ["ID", "KEY", "STATE", "REQUESTED", "DEPLOYABLE", "WHY"],
        rows,
    )
}

fn details(rotation: Option<&Rotation>) -> String {
    let Some(rotation) = rotation else {
        return String::new();
    };
    let approvals: Vec<_> = rotation
        .approvals
        .iter()
        .map(|approval| format!("{} {}", approval.approver, output::when(&approval.time)))
        .collect();
    output::details([
        ("rotation", rotation.id.clone()),
        (
            "key",
            format!("{} ({})", rotation.key_name, rotation.key_id),
        ),
        ("tenant", rotation.tenant.clone()),
        ("state", state(rotation)),
        ("why", rotation.justification.clone()),
        ("old kid", rotation.old_kid.clone()),
        ("new kid", rotation.new_kid.clone()),
        (
            "requested",
            format!(
                "{} by {}",
                output::time(&rotation.request_time),
                rotation.requester
            ),
        ),
        (
            "approvals",
            format!("{} of {}", approvals.len(), rotation.approvals_needed),
        ),
        ("approved by", approvals.join("\n")),
        ("announced", output::time(&rotation.announce_time)),
        ("deployable", output::time(&rotation.deployable_time)),
        ("deployed", output::time(&rotation.deploy_time)),
        ("deployed by", rotation.deployer.clone()),
        ("plan", rotation.plan.clone()),
        ("plan digest", rotation.plan_digest.clone()),
    ])
}

fn state(rotation: &Rotation) -> String {
    output::short(rotation.state().as_str_name(), "ROTATION_STATE_")
}

fn deployable(rotation: &Rotation) -> String {
    match rotation.state() {
        RotationState::Approved => output::when(&rotation.deployable_time),
        RotationState::Unspecified
        | RotationState::Requested
        | RotationState::Deployed
        | RotationState::Completed
        | RotationState::Rejected
        | RotationState::Cancelled
        | RotationState::Expired => String::new(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_digest_is_plain_sha_256() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(super::plan_digest("abc"), abc);
    }
}
