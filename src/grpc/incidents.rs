//! IncidentService.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{
    call::Parts,
    convert,
    layers::Deadline,
    proto::{self, incident_service_server::IncidentService},
};
use crate::{
    audit::Receipt,
    error::Result,
    incidents::{Freeze, Story},
    model::{Action, Caller, Incident, IncidentId, IncidentNote, KeyRef, Kid, Resource},
    trace,
};

/// IncidentService over these parts.
pub struct IncidentApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

const LISTING: &str = "incidents";
/// Kept back from the caller's time, so that the answer arrives before it is over.
const WAY_HOME: Duration = Duration::from_millis(500);

impl IncidentApi {
    async fn declare(
        &self,
        caller: Caller,
        r: proto::DeclareCompromiseRequest,
        deadline: Instant,
    ) -> Result<proto::DeclareCompromiseResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let key: KeyRef = r.key.parse()?;
        let kid: Option<Kid> = match r.kid.as_str() {
            "" => None,
            kid => Some(kid.parse()?),
        };
        let reason = convert::text("reason", r.reason, 512)?;
        let target = self.0.keys.find(&tenant, &key).await?;
        let resource = target.resource();
        let incidents = Arc::clone(&self.0.incidents);
        let answer = |incident: &Incident, receipt: &Receipt| proto::DeclareCompromiseResponse {
            incident: Some(convert::incident(incident)),
            receipt: convert::receipt(receipt),
            frozen_everywhere: false,
            freeze_duration: None,
        };
        let act = async move |permit| {
            let key = Arc::clone(target.snapshot()?);
            incidents.declare(permit, key, kid, reason).await
        };
        let gate = &self.0.gate;
        let declared = gate.mutate(&caller, Action::DeclareCompromise, resource, answer, act);
        self.aftermath(declared.await?, deadline).await
    }

    /// The version is frozen in the database: whatever fails from here on takes nothing of that back. A repeated call
    /// comes here too, and learns how things are now.
    async fn aftermath(
        &self,
        mut declared: proto::DeclareCompromiseResponse,
        deadline: Instant,
    ) -> Result<proto::DeclareCompromiseResponse> {
        let (Some(incident), Some(receipt)) = (&declared.incident, &declared.receipt) else {
            return Ok(declared);
        };
        let id: IncidentId = incident.id.parse()?;
        let until = deadline.checked_sub(WAY_HOME).unwrap_or(deadline);
        let (freeze, now) = tokio::join!(
            self.0.incidents.freeze(receipt.seq, until),
            self.switch(id, until)
        );
        let Freeze { everywhere, after } = freeze;
        declared.frozen_everywhere = everywhere;
        declared.freeze_duration = convert::length(after);
        if let Some(now) = now {
            declared.incident = Some(convert::incident(&now));
        }
        Ok(declared)
    }

    /// Generates a successor if the key has none. What does not work here is tried again by a job.
    async fn switch(&self, id: IncidentId, until: Instant) -> Option<Incident> {
        let (incidents, gate) = (Arc::clone(&self.0.incidents), Arc::clone(&self.0.gate));
        let switch = async move { incidents.switch(&gate, id, None).await };
        // Goes on when this call's time is over.
        let switch = tokio::spawn(trace::carry(switch));
        match tokio::time::timeout_at(until, switch).await {
            Ok(Ok(Ok(incident))) => return Some(incident),
            Ok(Ok(Err(error))) => {
                tracing::error!(incident = %id, ?error, "compromised key not switched; a job tries again");
            }
            Ok(Err(error)) => tracing::error!(incident = %id, ?error, "switching panicked"),
            Err(_) => {
                tracing::warn!(incident = %id, "compromised key not switched in the call's time");
            }
        }
        self.0.incidents.current(id).await.ok()
    }

    async fn get(
        &self,
        caller: Caller,
        r: proto::GetIncidentRequest,
    ) -> Result<proto::GetIncidentResponse> {
        let id: IncidentId = r.incident_id.parse()?;
        let (resource, found) = self.0.incidents.find(id).await?;
        let act = async |permit| {
            let story = self.0.incidents.story(&permit, found).await?;
            Ok((story_message(story), String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::GetIncident, resource, act)
            .await
    }

    async fn list(
        &self,
        caller: Caller,
        r: proto::ListIncidentsRequest,
    ) -> Result<proto::ListIncidentsResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let state = convert::incident_state(r.state)?;
        let size = convert::page_size(r.page_size)?;
        let before = convert::page_token(LISTING, &r.page_token)?;
        let incidents = &self.0.incidents;
        let act = async |permit| {
            let page = incidents
                .list(&permit, &tenant, state, &before, size)
                .await?;
            let answer = proto::ListIncidentsResponse {
                incidents: page.iter().map(convert::incident).collect(),
                next_page_token: convert::next_page(LISTING, &page, size, |i| i.id.to_string()),
            };
            Ok((answer, String::new()))
        };
        let resource = Resource::tenant(tenant.clone());
        let gate = &self.0.gate;
        gate.access(&caller, Action::ListIncidents, resource, act)
            .await
    }

    async fn add_note(
        &self,
        caller: Caller,
        r: proto::AddIncidentNoteRequest,
    ) -> Result<proto::AddIncidentNoteResponse> {
        let id: IncidentId = r.incident_id.parse()?;
        let text = convert::lines("text", r.text, 4096)?;
        let (resource, found) = self.0.incidents.find(id).await?;
        let incidents = Arc::clone(&self.0.incidents);
        let answer = |note: &IncidentNote, receipt: &Receipt| proto::AddIncidentNoteResponse {
            note: Some(convert::incident_note(note)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| incidents.add_note(permit, found, text).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::AddIncidentNote, resource, answer, act)
            .await
    }

    async fn close(
        &self,
        caller: Caller,
        r: proto::CloseIncidentRequest,
    ) -> Result<proto::CloseIncidentResponse> {
        let id: IncidentId = r.incident_id.parse()?;
        // Without one, the incident itself says what is missing.
        let postmortem = match r.postmortem.is_empty() {
            true => r.postmortem,
            false => convert::text("postmortem", r.postmortem, 512)?,
        };
        let (resource, found) = self.0.incidents.find(id).await?;
        let incidents = Arc::clone(&self.0.incidents);
        let answer = |incident: &Incident, receipt: &Receipt| proto::CloseIncidentResponse {
            incident: Some(convert::incident(incident)),
            receipt: convert::receipt(receipt),
        };
        let act = async move |permit| incidents.close(permit, found, &postmortem).await;
        let gate = &self.0.gate;
        gate.mutate(&caller, Action::CloseIncident, resource, answer, act)
            .await
    }
}

fn story_message(story: Story) -> proto::GetIncidentResponse {
    let alerts = story.alerts.into_iter();
    proto::GetIncidentResponse {
        incident: Some(convert::incident(&story.incident)),
        timeline: story
            .timeline
            .into_iter()
            .map(convert::audit_event)
            .collect(),
        notes: story.notes.iter().map(convert::incident_note).collect(),
        alerts: alerts
            .map(|alert| proto::IncidentAlert {
                id: alert.id.to_string(),
                kind: alert.kind,
                raise_time: convert::time(alert.raised_at),
                text: alert.text,
            })
            .collect(),
    }
}

#[tonic::async_trait]
impl IncidentService for IncidentApi {
    async fn declare_compromise(
        &self,
        r: Request<proto::DeclareCompromiseRequest>,
    ) -> Answer<proto::DeclareCompromiseResponse> {
        // Always there behind the layer of `layers`.
        let deadline = r.extensions().get::<Deadline>().map(|d| d.0);
        let deadline = deadline.unwrap_or_else(Instant::now);
        let act = async |caller, m| self.declare(caller, m, deadline).await;
        self.0.call(r, Action::DeclareCompromise, act).await
    }

    async fn get_incident(
        &self,
        r: Request<proto::GetIncidentRequest>,
    ) -> Answer<proto::GetIncidentResponse> {
        let act = async |caller, m| self.get(caller, m).await;
        self.0.call(r, Action::GetIncident, act).await
    }

    async fn list_incidents(
        &self,
        r: Request<proto::ListIncidentsRequest>,
    ) -> Answer<proto::ListIncidentsResponse> {
        let act = async |caller, m| self.list(caller, m).await;
        self.0.call(r, Action::ListIncidents, act).await
    }

    async fn add_incident_note(
        &self,
        r: Request<proto::AddIncidentNoteRequest>,
    ) -> Answer<proto::AddIncidentNoteResponse> {
        let act = async |caller, m| self.add_note(caller, m).await;
        self.0.call(r, Action::AddIncidentNote, act).await
    }

    async fn close_incident(
        &self,
        r: Request<proto::CloseIncidentRequest>,
    ) -> Answer<proto::CloseIncidentResponse> {
        let act = async |caller, m| self.close(caller, m).await;
        self.0.call(r, Action::CloseIncident, act).await
    }
}
