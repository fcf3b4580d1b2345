//! `claviger audit`: read the log, and prove that nobody changed it.

mod verify;

use clap::{Args, Subcommand};

use super::{
    exit::{Exit, Result},
    input,
    options::Session,
    output,
    pages::Limit,
};
use crate::grpc::proto::{
    AuditEvent, AuditOutcome, ListAuditEventsRequest, ListAuditEventsResponse,
};

/// Read and prove the audit log
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List events, newest first
    List(List),
    /// Recompute the hash chains; exit code 0 when they are whole, 1 when not
    Verify(verify::Verify),
}

#[derive(Args, Debug)]
pub struct List {
    /// Tenant, `*` for all; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Only this stream: `admin` or `access/REPLICA`
    #[arg(long, default_value = "", hide_default_value = true)]
    stream: String,
    /// Only this actor, by principal id
    #[arg(long, default_value = "", hide_default_value = true)]
    actor: String,
    /// Only this action, such as Sign
    #[arg(long, default_value = "", hide_default_value = true)]
    action: String,
    /// Only this entity, by id
    #[arg(long, default_value = "", hide_default_value = true)]
    entity_id: String,
    /// Only this outcome
    #[arg(long, ignore_case = true, value_parser = input::choice(&["success", "refused", "failed"], "AUDIT_OUTCOME_", AuditOutcome::from_str_name))]
    outcome: Option<AuditOutcome>,
    /// Only from this time on: RFC 3339, or a duration ago such as 2h
    #[arg(long, value_name = "TIME", value_parser = input::past)]
    since: Option<jiff::Timestamp>,
    /// Only before this time: RFC 3339, or a duration ago
    #[arg(long, value_name = "TIME", value_parser = input::past)]
    until: Option<jiff::Timestamp>,
    #[command(flatten)]
    limit: Limit,
}

/// Runs `claviger audit …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    match command {
        Command::List(args) => list(args, session).await,
        Command::Verify(args) => verify::run(args, session).await,
    }
}

async fn list(args: List, session: &Session) -> Result<Exit> {
    let mut all = ListAuditEventsResponse::default();
    let mut pages = args.limit.pages();
    while let Some(page_size) = pages.next() {
        let request = ListAuditEventsRequest {
            tenant: args.tenant.clone(),
            stream: args.stream.clone(),
            actor: args.actor.clone(),
            action: args.action.clone(),
            entity_id: args.entity_id.clone(),
            outcome: args.outcome.unwrap_or_default().into(),
            since: args.since.map(input::proto_time),
            until: args.until.map(input::proto_time),
            page_size,
            page_token: all.next_page_token,
        };
        let page = session
            .audit()
            .list_audit_events(request)
            .await?
            .into_inner();
        pages.got(page.events.len(), &page.next_page_token);
        all.events.extend(page.events);
        all.next_page_token = page.next_page_token;
    }
    session.show(&all, |all| events(&all.events))?;
    Ok(Exit::Ok)
}

fn events(events: &[AuditEvent]) -> String {
    let rows = events.iter().map(|event| {
        [
            output::clock_time(&event.time),
            format!("{} {}", event.stream, event.seq),
            event.tenant.clone(),
            event.actor.clone(),
            event.action.clone(),
            format!("{} {}", event.entity, event.entity_id),
            outcome(event),
        ]
    });
    output::table(
        [
            "TIME", "ROW", "TENANT", "ACTOR", "ACTION", "ENTITY", "OUTCOME",
        ],
        rows,
    )
}

/// How an event ended, in a word.
pub fn outcome(event: &AuditEvent) -> String {
    output::short(event.outcome().as_str_name(), "AUDIT_OUTCOME_")
}
