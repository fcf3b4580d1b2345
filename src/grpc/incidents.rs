//! IncidentService.

use tonic::{Request, Response, Status};

use super::{
    call::{Parts, unfinished},
    proto::{self, incident_service_server::IncidentService},
};
use crate::{error::Result, model::Action};

/// IncidentService over these parts.
pub struct IncidentApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl IncidentService for IncidentApi {
    async fn declare_compromise(
        &self,
        r: Request<proto::DeclareCompromiseRequest>,
    ) -> Answer<proto::DeclareCompromiseResponse> {
        self.0.call(r, Action::DeclareCompromise, unfinished).await
    }

    async fn get_incident(
        &self,
        r: Request<proto::GetIncidentRequest>,
    ) -> Answer<proto::GetIncidentResponse> {
        self.0.call(r, Action::GetIncident, unfinished).await
    }

    async fn list_incidents(
        &self,
        r: Request<proto::ListIncidentsRequest>,
    ) -> Answer<proto::ListIncidentsResponse> {
        self.0.call(r, Action::ListIncidents, unfinished).await
    }

    async fn add_incident_note(
        &self,
        r: Request<proto::AddIncidentNoteRequest>,
    ) -> Answer<proto::AddIncidentNoteResponse> {
        self.0.call(r, Action::AddIncidentNote, unfinished).await
    }

    async fn close_incident(
        &self,
        r: Request<proto::CloseIncidentRequest>,
    ) -> Answer<proto::CloseIncidentResponse> {
        self.0.call(r, Action::CloseIncident, unfinished).await
    }
}
