//! `claviger incident`: a key version is compromised. One call freezes it everywhere, two people close the record.
//!
//! Whoever declares does so at 3 a.m.: view.rs prints what has happened in order, and what is to be done next, as command
//! lines that work as they stand.

mod view;

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{
    exit::{Exit, Result},
    input,
    options::{Format, Session},
    output,
    pages::Limit,
    people::People,
};
use crate::grpc::proto::{
    AddIncidentNoteRequest, CloseIncidentRequest, DeclareCompromiseRequest, GetIncidentRequest,
    GetJwksRequest, GetKeyRequest, IncidentState, ListIncidentsRequest, ListIncidentsResponse,
};
use view::Declared;

/// Declare that a key is compromised, and handle it until it is closed
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Freeze a key version everywhere, switch the key to a successor, open an incident
    Declare(Declare),
    /// Show an incident with its timeline, notes and alerts
    Get(ById),
    /// List the incidents of a tenant
    List(List),
    /// Add a note to an incident
    Note(Note),
    /// Propose to close an incident, or confirm it as the second person
    Close(Close),
}

#[derive(Args, Debug)]
pub struct Declare {
    /// Name or id of the key
    #[arg(long)]
    key: String,
    /// The compromised version; the ACTIVE one when left out
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    kid: String,
    /// What happened, in a sentence
    #[arg(long)]
    reason: String,
    /// Tenant of the key; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
}

#[derive(Args, Debug)]
pub struct ById {
    /// Id of the incident
    id: String,
}

#[derive(Args, Debug)]
pub struct List {
    /// Tenant; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Only incidents in this state
    #[arg(long, ignore_case = true, value_parser = input::choice(&["open", "closing", "closed"], "INCIDENT_STATE_", IncidentState::from_str_name))]
    state: Option<IncidentState>,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Args, Debug)]
pub struct Note {
    /// Id of the incident
    id: String,
    /// What to write down
    #[arg(long)]
    text: String,
}

#[derive(Args, Debug)]
pub struct Close {
    /// Id of the incident
    id: String,
    /// Reference of the postmortem: a URL or a document number. Who confirms names the same one
    #[arg(long, value_name = "REFERENCE")]
    postmortem: String,
}

/// Runs `claviger incident …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    match command {
        Command::Declare(args) => declare(args, session).await?,
        Command::Get(ById { id }) => {
            let request = GetIncidentRequest { incident_id: id };
            let answer = session.incidents().get_incident(request).await?;
            session.show(answer.get_ref(), view::whole)?;
        }
        Command::List(args) => list(args, session).await?,
        Command::Note(args) => {
            let request = AddIncidentNoteRequest {
                incident_id: args.id,
                text: args.text,
            };
            let call = async |r| session.incidents().add_incident_note(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |answer| view::notes(answer.note.as_slice()))?;
        }
        Command::Close(args) => close(args, session).await?,
    }
    Ok(Exit::Ok)
}

async fn declare(args: Declare, session: &Session) -> Result<()> {
    let request = DeclareCompromiseRequest {
        tenant: args.tenant,
        key: args.key,
        kid: args.kid,
        reason: args.reason,
    };
    let call = async |r| session.incidents().declare_compromise(r).await;
    let answer = session.mutate(request, call).await?;
    if session.format() == Format::Json {
        return output::print(&output::json(&answer)?);
    }
    let incident = answer.incident.clone().unwrap_or_default();
    let declared = Declared {
        frozen_everywhere: answer.frozen_everywhere,
        freeze_duration: answer.freeze_duration,
        active_kid: active_kid(&incident.tenant, &incident.key_id, session).await,
        cached_for: jwks_max_age(session).await,
        again: session.again(),
        somebody: session.somebody(),
    };
    output::print(&view::declared(&incident, &declared))
}

/// kid that the key uses now; None when the daemon does not say. The declaration stands, whatever becomes of this.
async fn active_kid(tenant: &str, key: &str, session: &Session) -> Option<String> {
    let request = GetKeyRequest {
        tenant: tenant.to_owned(),
        key: key.to_owned(),
    };
    let answer = session.keys().get_key(request).await.ok()?;
    Some(answer.into_inner().key?.active_kid)
}

/// How long verifiers may go on with the JWKS that they have; None when the daemon does not say.
async fn jwks_max_age(session: &Session) -> Option<Duration> {
    let answer = session.tokens().get_jwks(GetJwksRequest {}).await.ok()?;
    answer.into_inner().max_age?.try_into().ok()
}

async fn list(args: List, session: &Session) -> Result<()> {
    let mut all = ListIncidentsResponse::default();
    let mut pages = args.limit.pages();
    while let Some(page_size) = pages.next() {
        let request = ListIncidentsRequest {
            tenant: args.tenant.clone(),
            state: args.state.unwrap_or_default().into(),
            page_size,
            page_token: all.next_page_token,
        };
        let page = session.incidents().list_incidents(request).await?;
        let page = page.into_inner();
        pages.got(page.incidents.len(), &page.next_page_token);
        all.incidents.extend(page.incidents);
        all.next_page_token = page.next_page_token;
    }
    session.explain_nothing(all.incidents.len(), &args.tenant);
    session.show(&all, |all| view::table(&all.incidents))
}

async fn close(args: Close, session: &Session) -> Result<()> {
    let request = CloseIncidentRequest {
        incident_id: args.id,
        postmortem: args.postmortem,
    };
    let call = async |r| session.incidents().close_incident(r).await;
    let answer = session.mutate(request, call).await?;
    session.show(&answer, |answer| {
        let incident = answer.incident.clone().unwrap_or_default();
        let you = match incident.state() {
            IncidentState::Closed => &incident.closed_by,
            IncidentState::Unspecified | IncidentState::Open | IncidentState::Closing => {
                &incident.close_requested_by
            }
        };
        view::closing(&incident, People::you(you), session.somebody())
    })
}
