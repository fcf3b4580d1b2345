//! `claviger key destroy`: the material of a version goes for ever. One person asks, another approves, then a waiting
//! period runs in which anybody may call it off.

use clap::{Args, Subcommand};

use crate::{
    cli::{exit::Result, input, options::Session, output, pages::Limit, people::People},
    grpc::proto::{
        ApproveKeyDestructionRequest, CancelKeyDestructionRequest, DestroyKeyVersionRequest,
        KeyDestruction, KeyDestructionState, ListKeyDestructionsRequest,
        ListKeyDestructionsResponse,
    },
};

/// Destroy versions
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Ask for the destruction of a RETIRED or COMPROMISED version
    Request(Request),
    /// Approve a destruction that somebody else asked for; the waiting period begins
    Approve(Approve),
    /// Call a destruction off
    Cancel(Cancel),
    /// List the destructions of a tenant
    List(List),
}

#[derive(Args, Debug)]
pub struct Request {
    /// Name or id of the key
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

#[derive(Args, Debug)]
pub struct Approve {
    /// Id of the destruction
    id: String,
    /// The version that is to be destroyed, as you have read it in `key destroy list`
    #[arg(long, allow_hyphen_values = true)]
    kid: String,
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
pub struct List {
    /// Tenant; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Only destructions in this state
    #[arg(long, ignore_case = true, value_parser = input::choice(&["requested", "scheduled", "destroyed", "cancelled"], "KEY_DESTRUCTION_STATE_", KeyDestructionState::from_str_name))]
    state: Option<KeyDestructionState>,
    #[command(flatten)]
    limit: Limit,
}

/// Runs `claviger key destroy …`.
pub async fn run(command: Command, session: &Session) -> Result<()> {
    match command {
        Command::Request(args) => {
            let request = DestroyKeyVersionRequest {
                tenant: args.tenant,
                key: args.key,
                kid: args.kid,
                reason: args.reason,
            };
            let call = async |r| session.keys().destroy_key_version(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |answer| {
                let destruction = answer.destruction.clone().unwrap_or_default();
                asked(&destruction, session.somebody())
            })
        }
        Command::Approve(args) => {
            let request = ApproveKeyDestructionRequest {
                destruction_id: args.id,
                kid: args.kid,
            };
            let call = async |r| session.keys().approve_key_destruction(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |answer| {
                let destruction = answer.destruction.clone().unwrap_or_default();
                details(&destruction, People::you(&destruction.approver))
            })
        }
        Command::Cancel(args) => {
            let request = CancelKeyDestructionRequest {
                destruction_id: args.id,
                reason: args.reason,
            };
            let call = async |r| session.keys().cancel_key_destruction(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |answer| {
                let destruction = answer.destruction.clone().unwrap_or_default();
                details(&destruction, People::you(&destruction.cancelled_by))
            })
        }
        Command::List(args) => list(args, session).await,
    }
}

async fn list(args: List, session: &Session) -> Result<()> {
    let mut all = ListKeyDestructionsResponse::default();
    let mut pages = args.limit.pages();
    while let Some(page_size) = pages.next() {
        let request = ListKeyDestructionsRequest {
            tenant: args.tenant.clone(),
            state: args.state.unwrap_or_default().into(),
            page_size,
            page_token: all.next_page_token,
        };
        let page = session.keys().list_key_destructions(request).await?;
        let page = page.into_inner();
        pages.got(page.destructions.len(), &page.next_page_token);
        all.destructions.extend(page.destructions);
        all.next_page_token = page.next_page_token;
    }
    session.explain_nothing(all.destructions.len(), &args.tenant);
    session.show(&all, |all| table(&all.destructions))
}

fn asked(destruction: &KeyDestruction, somebody: &str) -> String {
    format!(
        "{}\n\nNothing happens before a second person approves, with exactly this:\n\n  \
         {somebody} key destroy approve {} --kid {}",
        details(destruction, People::you(&destruction.requester)),
        destruction.id,
        output::shell_word(&destruction.kid)
    )
}

fn table(destructions: &[KeyDestruction]) -> String {
    let rows = destructions.iter().map(|destruction| {
        [
            destruction.id.clone(),
            destruction.key_name.clone(),
            destruction.kid.clone(),
            state(destruction),
            next(destruction),
            output::when(&destruction.request_time),
            People::strangers().short(&destruction.requester),
            destruction.reason.clone(),
        ]
    });
    let header = ["ID", "KEY", "KID", "STATE", "NEXT", "ASKED", "BY", "WHY"];
    output::table(header, rows)
}

fn details(destruction: &KeyDestruction, people: People<'_>) -> String {
    let by = |time: &Option<prost_types::Timestamp>, id: &str| match id {
        "" => output::time(time),
        id => format!("{} by {}", output::time(time), people.long(id)),
    };
    output::details([
        ("destruction", destruction.id.clone()),
        (
            "key",
            format!("{} ({})", destruction.key_name, destruction.key_id),
        ),
        ("tenant", destruction.tenant.clone()),
        ("kid", destruction.kid.clone()),
        ("state", state(destruction)),
        ("next", next(destruction)),
        ("why", destruction.reason.clone()),
        (
            "requested",
            by(&destruction.request_time, &destruction.requester),
        ),
        (
            "approved",
            by(&destruction.approve_time, &destruction.approver),
        ),
        ("destroyed at", output::time(&destruction.destroy_time)),
        (
            "ended",
            by(&destruction.end_time, &destruction.cancelled_by),
        ),
        ("because", destruction.cancel_reason.clone()),
    ])
}

fn next(destruction: &KeyDestruction) -> String {
    match destruction.state() {
        KeyDestructionState::Requested => "waits for a second person (key-approver)".to_owned(),
        KeyDestructionState::Scheduled => format!(
            "destroyed {} unless it is cancelled",
            output::when(&destruction.destroy_time)
        ),
        KeyDestructionState::Unspecified
        | KeyDestructionState::Destroyed
        | KeyDestructionState::Cancelled => String::new(),
    }
}

fn state(destruction: &KeyDestruction) -> String {
    output::short(destruction.state().as_str_name(), "KEY_DESTRUCTION_STATE_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destruction(state: KeyDestructionState) -> KeyDestruction {
        KeyDestruction {
            id: "d-1".into(),
            kid: "-old".into(),
            state: state.into(),
            requester: "me".into(),
            ..Default::default()
        }
    }

    #[test]
    fn who_asks_is_told_how_the_second_person_approves() {
        let said = asked(
            &destruction(KeyDestructionState::Requested),
            "claviger --as THEM",
        );
        assert!(said.contains("me (you)"), "{said}");
        let command = "claviger --as THEM key destroy approve d-1 --kid";
        assert!(said.contains(command), "{said}");
    }

    #[test]
    fn a_listing_says_what_is_next() {
        let mut scheduled = destruction(KeyDestructionState::Scheduled);
        let in_a_week = output::now().checked_add(jiff::SignedDuration::from_hours(24 * 7 + 1));
        scheduled.destroy_time = Some(input::proto_time(in_a_week.unwrap()));
        let said = table(&[
            destruction(KeyDestructionState::Requested),
            scheduled,
            destruction(KeyDestructionState::Destroyed),
        ]);
        assert!(said.contains("waits for a second person"), "{said}");
        assert!(said.contains("destroyed in 7 d unless"), "{said}");
    }
}
