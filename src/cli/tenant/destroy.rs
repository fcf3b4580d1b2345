//! `claviger tenant destroy`: all keys of a tenant go for ever. One person asks, another approves, then a waiting period
//! runs in which either, or an officer, may call it off.

use std::io::{self, IsTerminal, Write};

use clap::{Args, Subcommand};

use crate::{
    cli::{
        exit::{Failure, Result},
        options::Session,
        output,
        pages::Limit,
        people::People,
    },
    grpc::proto::{
        ApproveTenantDestructionRequest, CancelTenantDestructionRequest, DestroyTenantKeysRequest,
        GetTenantDestructionRequest, ListTenantDestructionsRequest, ListTenantDestructionsResponse,
        TenantDestruction, TenantDestructionState,
    },
};

/// Destroy all keys of a tenant
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Ask for the destruction of all keys of a tenant
    Request(Request),
    /// Approve a destruction that somebody else asked for; the waiting period begins
    Approve(Approve),
    /// Call a destruction off before it begins
    Cancel(Cancel),
    /// Show a destruction and how far it has come, or its proof
    Get(Get),
    /// List the destructions of a tenant
    List(List),
}

#[derive(Args, Debug)]
pub struct Request {
    /// Name of the tenant
    name: String,
    /// Why, in a sentence
    #[arg(long)]
    reason: String,
    /// The tenant's name once more; asked for when left out
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
}

#[derive(Args, Debug)]
pub struct Approve {
    /// Id of the destruction
    id: String,
    /// Name of the tenant whose keys are to be destroyed, as you have read it in `tenant destroy get`
    #[arg(long)]
    tenant: String,
}

#[derive(Args, Debug)]
pub struct Cancel {
    /// Id of the destruction
    id: String,
    /// Why, in a sentence
    #[arg(long)]
    reason: String,
}

#[derive(Args, Debug)]
pub struct Get {
    /// Id of the destruction
    id: String,
    /// Print the signed proof and nothing else, for `claviger tenant proof verify`
    #[arg(long)]
    proof: bool,
}

#[derive(Args, Debug)]
pub struct List {
    /// Tenant; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    #[command(flatten)]
    limit: Limit,
}

/// Runs `claviger tenant destroy …`.
pub async fn run(command: Command, session: &Session) -> Result<()> {
    match command {
        Command::Request(args) => {
            confirm(&args.name, args.confirm)?;
            let request = DestroyTenantKeysRequest {
                tenant: args.name,
                reason: args.reason,
            };
            let call = async |r| session.erasures().destroy_tenant_keys(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |answer| {
                let destruction = answer.destruction.clone().unwrap_or_default();
                asked(&destruction, session.somebody())
            })
        }
        Command::Approve(args) => {
            let request = ApproveTenantDestructionRequest {
                destruction_id: args.id,
                tenant: args.tenant,
            };
            let call = async |r| session.erasures().approve_tenant_destruction(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |answer| {
                let destruction = answer.destruction.clone().unwrap_or_default();
                details(&destruction, People::you(&destruction.approver))
            })
        }
        Command::Cancel(args) => {
            let request = CancelTenantDestructionRequest {
                destruction_id: args.id,
                reason: args.reason,
            };
            let call = async |r| session.erasures().cancel_tenant_destruction(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |answer| {
                let destruction = answer.destruction.clone().unwrap_or_default();
                details(&destruction, People::you(&destruction.cancelled_by))
            })
        }
        Command::Get(args) => get(args, session).await,
        Command::List(args) => list(args, session).await,
    }
}

/// Has the name typed once more: there is no way back from the wrong one.
fn confirm(name: &str, confirmed: Option<String>) -> Result<()> {
    let typed = match confirmed {
        Some(typed) => typed,
        None if io::stdin().is_terminal() => ask(name)?,
        None => {
            return Err(Failure::usage(format!(
                "this asks for the destruction of all keys of a tenant; confirm it with --confirm={name}"
            )));
        }
    };
    match typed.trim() == name {
        true => Ok(()),
        false => Err(Failure::usage(
            "the name was not confirmed; nothing was asked for",
        )),
    }
}

fn ask(name: &str) -> Result<String> {
    let failed = |e: io::Error| Failure::other(format!("cannot ask for the name: {e}"));
    let mut stderr = io::stderr();
    write!(
        stderr,
        "All keys of tenant {name} will be destroyed for ever, and all data under them is lost.\nType the tenant's name: "
    )
    .and_then(|()| stderr.flush())
    .map_err(failed)?;
    let mut typed = String::new();
    io::stdin().read_line(&mut typed).map_err(failed)?;
    Ok(typed)
}

async fn get(args: Get, session: &Session) -> Result<()> {
    let request = GetTenantDestructionRequest {
        destruction_id: args.id,
    };
    let answer = session.erasures().get_tenant_destruction(request).await?;
    let answer = answer.into_inner();
    if !args.proof {
        return session.show(&answer, |answer| {
            let destruction = answer.destruction.clone().unwrap_or_default();
            details(&destruction, People::strangers())
        });
    }
    match answer.proof.as_str() {
        "" => Err(Failure::other(
            "there is no proof before everything is destroyed",
        )),
        proof => output::print(proof),
    }
}

async fn list(args: List, session: &Session) -> Result<()> {
    let mut all = ListTenantDestructionsResponse::default();
    let mut pages = args.limit.pages();
    while let Some(page_size) = pages.next() {
        let request = ListTenantDestructionsRequest {
            tenant: args.tenant.clone(),
            page_size,
            page_token: all.next_page_token,
        };
        let page = session.erasures().list_tenant_destructions(request).await?;
        let page = page.into_inner();
        pages.got(page.destructions.len(), &page.next_page_token);
        all.destructions.extend(page.destructions);
        all.next_page_token = page.next_page_token;
    }
    session.explain_nothing(all.destructions.len(), &args.tenant);
    session.show(&all, |all| table(&all.destructions))
}

fn asked(destruction: &TenantDestruction, somebody: &str) -> String {
    format!(
        "{}\n\nNothing happens before a second person approves, with exactly this:\n\n  \
         {somebody} tenant destroy approve {} --tenant {}",
        details(destruction, People::you(&destruction.requester)),
        destruction.id,
        output::shell_word(&destruction.tenant)
    )
}

fn table(destructions: &[TenantDestruction]) -> String {
    let rows = destructions.iter().map(|destruction| {
        [
            destruction.id.clone(),
            destruction.tenant.clone(),
            state(destruction),
            next(destruction),
            output::when(&destruction.request_time),
            People::strangers().short(&destruction.requester),
            destruction.reason.clone(),
        ]
    });
    let header = ["ID", "TENANT", "STATE", "NEXT", "ASKED", "BY", "WHY"];
    output::table(header, rows)
}

fn details(destruction: &TenantDestruction, people: People<'_>) -> String {
    let by = |time: &Option<prost_types::Timestamp>, id: &str| match id {
        "" => output::time(time),
        id => format!("{} by {}", output::time(time), people.long(id)),
    };
    output::details([
        ("destruction", destruction.id.clone()),
        ("tenant", destruction.tenant.clone()),
        ("state", state(destruction)),
        ("next", next(destruction)),
        (
            "versions",
            format!(
                "{} left, {} destroyed",
                destruction.remaining_versions, destruction.destroyed_versions
            ),
        ),
        ("why", destruction.reason.clone()),
        (
            "requested",
            by(&destruction.request_time, &destruction.requester),
        ),
        (
            "approved",
            by(&destruction.approve_time, &destruction.approver),
        ),
        ("begins", output::time(&destruction.destroy_time)),
        (
            "ended",
            by(&destruction.end_time, &destruction.cancelled_by),
        ),
        ("because", destruction.cancel_reason.clone()),
    ])
}

fn next(destruction: &TenantDestruction) -> String {
    match destruction.state() {
        TenantDestructionState::Requested => "waits for a second person (key-approver)".to_owned(),
        TenantDestructionState::Scheduled => format!(
            "begins {} unless it is cancelled",
            output::when(&destruction.destroy_time)
        ),
        TenantDestructionState::Destroying => {
            format!("{} versions are left", destruction.remaining_versions)
        }
        TenantDestructionState::Destroyed => {
            format!("prove it: tenant destroy get {} --proof", destruction.id)
        }
        TenantDestructionState::Unspecified | TenantDestructionState::Cancelled => String::new(),
    }
}

fn state(destruction: &TenantDestruction) -> String {
    output::short(
        destruction.state().as_str_name(),
        "TENANT_DESTRUCTION_STATE_",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_confirmed_or_nothing_is_asked_for() {
        assert!(confirm("acme", Some("acme".into())).is_ok());
        for wrong in ["", "acm", "acme2", "ACME"] {
            assert!(confirm("acme", Some(wrong.into())).is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_asks_is_told_how_the_second_person_approves() {
        let destruction = TenantDestruction {
            id: "d-1".into(),
            tenant: "acme".into(),
            state: TenantDestructionState::Requested.into(),
            requester: "me".into(),
            ..Default::default()
        };
        let said = asked(&destruction, "claviger --as THEM");
        assert!(said.contains("me (you)"), "{said}");
        let command = "claviger --as THEM tenant destroy approve d-1 --tenant acme";
        assert!(said.contains(command), "{said}");
    }
}
