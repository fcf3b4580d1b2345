//! Handling an incident: its story, notes, and the two calls that close it (R-EMER-2).

use std::time::Duration;

use serde_json::json;

use super::{Incidents, found};
use crate::{
    audit::AuditRow,
    error::{Error, Reason, Result},
    gate::{AdminPermit, Permit, Recorded},
    model::{Action, Incident, IncidentNote, IncidentState, NoteId, Timestamp},
    store::Alert,
};

/// How long before the declaration the timeline begins.
const BEFORE: Duration = Duration::from_secs(60 * 60);
/// Rows of a timeline at most.
const MAX_ROWS: i64 = 1000;

/// Everything that is known about an incident.
pub struct Story {
    /// The incident.
    pub incident: Incident,
    /// What happened, oldest first.
    pub timeline: Vec<AuditRow>,
    /// Oldest first.
    pub notes: Vec<IncidentNote>,
    /// Oldest first.
    pub alerts: Vec<Alert>,
}

impl Incidents {
    /// The incident with its timeline, notes and alerts. Errors: INCIDENT_NOT_FOUND.
    pub async fn story(&self, permit: &Permit, incident: Option<Incident>) -> Result<Story> {
        let incident = found(incident, permit)?;
        let (id, tenant) = (incident.id, &incident.tenant);
        let since = incident.declared_at.micros() - crate::model::time::micros(BEFORE);
        let since = Timestamp::from_micros(since);
        let rows = self
            .db
            .incident_timeline(tenant, id, incident.key_id, since, MAX_ROWS)
            .await?;
        Ok(Story {
            timeline: until_closed(&incident, rows),
            notes: self.db.incident_notes(id).await?,
            alerts: self.db.alerts_about(&id.to_string()).await?,
            incident,
        })
    }

    /// Adds a note. Errors: INCIDENT_NOT_FOUND, INCIDENT_STATE when it is closed.
    pub async fn add_note(
        &self,
        permit: AdminPermit,
        incident: Option<Incident>,
        text: String,
    ) -> Result<Recorded<IncidentNote>> {
        let incident = found(incident, permit.permit())?;
        incident.expect_open()?;
        let note = IncidentNote {
            id: NoteId::random(),
            author: permit.caller().principal.id,
            at: self.clock.now(),
            text,
        };
        let mut mutation = permit.begin().await?;
        if !mutation.tx().insert_note(incident.id, &note).await? {
            return Err(changed());
        }
        let details = json!({
            "key_id": incident.key_id.to_string(),
            "note": note.id.to_string(),
        });
        mutation.record(note, details).await
    }

    /// Proposes to close, or confirms.
    ///
    /// Errors: INCIDENT_NOT_FOUND, and as `Incident::close`.
    pub async fn close(
        &self,
        permit: AdminPermit,
        incident: Option<Incident>,
        postmortem: &str,
    ) -> Result<Recorded<Incident>> {
        let before = found(incident, permit.permit())?;
        let by = permit.caller().principal.id;
        let after = before.clone().close(by, postmortem, self.clock.now())?;
        let mut mutation = permit.begin().await?;
        if !mutation.tx().close_incident(&after, &before).await? {
            return Err(changed());
        }
        let details = json!({
            "key_id": after.key_id.to_string(),
            "state": after.state.as_str(),
            "postmortem": after.postmortem,
        });
        mutation.record(after, details).await
    }
}

/// The timeline ends with the row that closed the incident.
fn until_closed(incident: &Incident, mut rows: Vec<AuditRow>) -> Vec<AuditRow> {
    let closes = |row: &AuditRow| {
        let details: serde_json::Value = serde_json::from_str(&row.data).unwrap_or_default();
        row.action == Action::CloseIncident.name()
            && row.entity_id == incident.id.to_string()
            && details["state"] == IncidentState::Closed.as_str()
    };
    if incident.state == IncidentState::Closed
        && let Some(last) = rows.iter().position(closes)
    {
        rows.truncate(last + 1);
    }
    rows
}

fn changed() -> Error {
    Error::new(
        Reason::Conflict,
        "somebody else changed this incident; read it again and retry",
    )
}
