//! AlertService: alerts and their deliveries.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    call::Parts,
    convert,
    proto::{self, alert_service_server::AlertService},
};
use crate::{
    alerts::{AlertFilter, AlertState, Delivery, DeliveryState, ToldAlert},
    audit::Receipt,
    error::Result,
    model::{Action, AlertId, Caller, DeliveryId, Resource},
};

/// AlertService over these parts.
pub struct AlertApi(pub Parts);

type Answer<T> = Result<Response<T>, Status>;

const ALERTS: &str = "alerts";
const DELIVERIES: &str = "alert deliveries";
/// Characters of a note.
const MAX_NOTE: usize = 500;
/// After every id, for the first page of a listing that begins with the newest.
const NEWEST: &str = "g";

impl AlertApi {
    async fn list(
        &self,
        caller: Caller,
        r: proto::ListAlertsRequest,
    ) -> Result<proto::ListAlertsResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let size = convert::page_size(r.page_size)?;
        let before = before(ALERTS, &r.page_token)?;
        let filter = AlertFilter {
            tenant: tenant.clone(),
            state: alert_state(r.state)?,
            kind: convert::filter("kind", r.kind)?,
            unacknowledged: r.unacknowledged,
        };
        let resource = Resource::tenant(tenant);
        let act = async |permit| {
            let page = self.0.alerts.list(&permit, &filter, &before, size).await?;
            let next = convert::next_page(ALERTS, &page, size, |told| told.alert.id.to_string());
            let answer = proto::ListAlertsResponse {
                alerts: page.iter().map(alert).collect(),
                next_page_token: next,
            };
            Ok((answer, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::ListAlerts, resource, act)
            .await
    }

    async fn ack(
        &self,
        caller: Caller,
        r: proto::AckAlertRequest,
    ) -> Result<proto::AckAlertResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let id: AlertId = r.alert_id.parse()?;
        let note = match r.note.as_str() {
            "" => String::new(),
            _ => convert::text("note", r.note, MAX_NOTE)?,
        };
        let answer = |told: &ToldAlert, receipt: &Receipt| proto::AckAlertResponse {
            alert: Some(alert(told)),
            receipt: convert::receipt(receipt),
        };
        let (alerts, of) = (Arc::clone(&self.0.alerts), tenant.clone());
        let act = async move |permit| alerts.ack(permit, of, id, note).await;
        let (gate, resource) = (&self.0.gate, Resource::tenant(tenant));
        gate.mutate(&caller, Action::AckAlert, resource, answer, act)
            .await
    }

    async fn deliveries(
        &self,
        caller: Caller,
        r: proto::ListDeliveriesRequest,
    ) -> Result<proto::ListDeliveriesResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let size = convert::page_size(r.page_size)?;
        let before = before(DELIVERIES, &r.page_token)?;
        let state = delivery_state(r.state)?;
        let alert = match r.alert_id.as_str() {
            "" => String::new(),
            id => id.parse::<AlertId>()?.to_string(),
        };
        let resource = Resource::tenant(tenant.clone());
        let act = async |permit| {
            let (only, place) = ((state, alert.as_str()), (before.as_str(), size));
            let alerts = &self.0.alerts;
            let page = alerts.deliveries(&permit, &tenant, only, place).await?;
            let next = convert::next_page(DELIVERIES, &page, size, |d| d.id.to_string());
            let answer = proto::ListDeliveriesResponse {
                deliveries: page.iter().map(delivery).collect(),
                next_page_token: next,
            };
            Ok((answer, String::new()))
        };
        let gate = &self.0.gate;
        gate.access(&caller, Action::ListDeliveries, resource, act)
            .await
    }

    async fn retry(
        &self,
        caller: Caller,
        r: proto::RetryDeliveryRequest,
    ) -> Result<proto::RetryDeliveryResponse> {
        let tenant = convert::tenant(&r.tenant, &caller)?;
        let id: DeliveryId = r.delivery_id.parse()?;
        let answer = |d: &Delivery, receipt: &Receipt| proto::RetryDeliveryResponse {
            delivery: Some(delivery(d)),
            receipt: convert::receipt(receipt),
        };
        let (alerts, of) = (Arc::clone(&self.0.alerts), tenant.clone());
        let act = async move |permit| alerts.retry(permit, of, id).await;
        let (gate, resource) = (&self.0.gate, Resource::tenant(tenant));
        gate.mutate(&caller, Action::RetryDelivery, resource, answer, act)
            .await
    }
}

fn before(listing: &str, token: &str) -> Result<String> {
    let before = convert::page_token(listing, token)?;
    Ok(match before.as_str() {
        "" => NEWEST.to_owned(),
        _ => before,
    })
}

fn alert_state(number: i32) -> Result<Option<AlertState>> {
    use proto::AlertState as P;
    match P::try_from(number) {
        Ok(P::Unspecified) => Ok(None),
        Ok(P::Firing) => Ok(Some(AlertState::Firing)),
        Ok(P::Resolved) => Ok(Some(AlertState::Resolved)),
        Err(_) => Err(convert::invalid("state must be FIRING or RESOLVED")),
    }
}

fn delivery_state(number: i32) -> Result<Option<DeliveryState>> {
    use proto::DeliveryState as P;
    match P::try_from(number) {
        Ok(P::Unspecified) => Ok(None),
        Ok(P::Pending) => Ok(Some(DeliveryState::Pending)),
        Ok(P::Delivered) => Ok(Some(DeliveryState::Delivered)),
        Ok(P::Dead) => Ok(Some(DeliveryState::Dead)),
        Err(_) => Err(convert::invalid("state must be PENDING, DELIVERED or DEAD")),
    }
}

fn alert(told: &ToldAlert) -> proto::Alert {
    let a = &told.alert;
    let state = match told.state {
        AlertState::Firing => proto::AlertState::Firing,
        AlertState::Resolved => proto::AlertState::Resolved,
    };
    proto::Alert {
        id: a.id.to_string(),
        tenant: a.tenant.to_string(),
        kind: a.kind.clone(),
        entity: a.entity.clone(),
        entity_id: a.entity_id.clone(),
        text: a.text.clone(),
        state: state.into(),
        raise_time: convert::time(a.raised_at),
        resolve_time: told.resolved_at.and_then(convert::time),
        acked_by: told.acked_by.clone().unwrap_or_default(),
        ack_time: told.acked_at.and_then(convert::time),
        ack_note: told.ack_note.clone(),
    }
}

fn delivery(d: &Delivery) -> proto::AlertDelivery {
    use proto::DeliveryState as P;
    let (state, next) = match d.state {
        DeliveryState::Pending => (P::Pending, convert::time(d.next_at)),
        DeliveryState::Delivered => (P::Delivered, None),
        DeliveryState::Dead => (P::Dead, None),
    };
    proto::AlertDelivery {
        id: d.id.to_string(),
        alert_id: d.alert.to_string(),
        tenant: d.tenant.to_string(),
        channel: d.channel.clone(),
        state: state.into(),
        attempts: d.attempts,
        next_attempt_time: next,
        last_error: d.last_error.clone(),
        create_time: convert::time(d.created_at),
        end_time: d.ended_at.and_then(convert::time),
    }
}

#[tonic::async_trait]
impl AlertService for AlertApi {
    async fn list_alerts(
        &self,
        r: Request<proto::ListAlertsRequest>,
    ) -> Answer<proto::ListAlertsResponse> {
        let act = async |caller, m| self.list(caller, m).await;
        self.0.call(r, Action::ListAlerts, act).await
    }

    async fn ack_alert(
        &self,
        r: Request<proto::AckAlertRequest>,
    ) -> Answer<proto::AckAlertResponse> {
        let act = async |caller, m| self.ack(caller, m).await;
        self.0.call(r, Action::AckAlert, act).await
    }

    async fn list_deliveries(
        &self,
        r: Request<proto::ListDeliveriesRequest>,
    ) -> Answer<proto::ListDeliveriesResponse> {
        let act = async |caller, m| self.deliveries(caller, m).await;
        self.0.call(r, Action::ListDeliveries, act).await
    }

    async fn retry_delivery(
        &self,
        r: Request<proto::RetryDeliveryRequest>,
    ) -> Answer<proto::RetryDeliveryResponse> {
        let act = async |caller, m| self.retry(caller, m).await;
        self.0.call(r, Action::RetryDelivery, act).await
    }
}
