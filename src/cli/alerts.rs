//! `claviger alerts`: what people should be told, and whether they were.

use clap::{Args, Subcommand};

use super::{
    exit::{Exit, Result},
    input,
    options::Session,
    output,
    pages::Limit,
};
use crate::grpc::proto::{
    AckAlertRequest, Alert, AlertDelivery, AlertState, DeliveryState, ListAlertsRequest,
    ListAlertsResponse, ListDeliveriesRequest, ListDeliveriesResponse, RetryDeliveryRequest,
};

/// Alerts and their deliveries
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List the alerts of a tenant, newest first
    List(List),
    /// Say that you take care of an alert
    Ack(Ack),
    /// List deliveries, newest first; those given up with --state dead
    Deliveries(Deliveries),
    /// Try a delivery again that was given up
    Retry {
        /// Its id
        id: String,
        /// Tenant of the alert; your own when left out
        #[arg(long, default_value = "", hide_default_value = true)]
        tenant: String,
    },
}

#[derive(Args, Debug)]
pub struct List {
    /// Tenant; your own when left out. What concerns the installation is in `system`
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// In this state only
    #[arg(long, ignore_case = true, value_parser = input::choice(&["firing", "resolved"], "ALERT_STATE_", AlertState::from_str_name))]
    state: Option<AlertState>,
    /// Of this kind only, such as ERROR_RATE
    #[arg(long, default_value = "", hide_default_value = true)]
    kind: String,
    /// Only those that nobody takes care of yet
    #[arg(long)]
    unacknowledged: bool,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Args, Debug)]
pub struct Ack {
    /// Its id
    id: String,
    /// Tenant of the alert; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// What you do about it
    #[arg(long, default_value = "", hide_default_value = true)]
    note: String,
}

#[derive(Args, Debug)]
pub struct Deliveries {
    /// Tenant; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// In this state only
    #[arg(long, ignore_case = true, value_parser = input::choice(&["pending", "delivered", "dead"], "DELIVERY_STATE_", DeliveryState::from_str_name))]
    state: Option<DeliveryState>,
    /// Of this alert only
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    alert: String,
    #[command(flatten)]
    limit: Limit,
}

/// Runs `claviger alerts …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    match command {
        Command::List(args) => list(args, session).await?,
        Command::Ack(args) => {
            let request = AckAlertRequest {
                tenant: args.tenant,
                alert_id: args.id,
                note: args.note,
            };
            let answer = session
                .mutate(request, async |r| session.alerts().ack_alert(r).await)
                .await?;
            session.show(&answer, |answer| alerts(answer.alert.as_slice()))?;
        }
        Command::Deliveries(args) => deliveries(args, session).await?,
        Command::Retry { id, tenant } => {
            let request = RetryDeliveryRequest {
                tenant,
                delivery_id: id,
            };
            let answer = session
                .mutate(request, async |r| session.alerts().retry_delivery(r).await)
                .await?;
            session.show(&answer, |answer| table(answer.delivery.as_slice()))?;
        }
    }
    Ok(Exit::Ok)
}

async fn list(args: List, session: &Session) -> Result<()> {
    let mut client = session.alerts();
    let mut all = ListAlertsResponse::default();
    let mut pages = args.limit.pages();
    while let Some(page_size) = pages.next() {
        let request = ListAlertsRequest {
            tenant: args.tenant.clone(),
            state: args.state.unwrap_or_default().into(),
            kind: args.kind.clone(),
            unacknowledged: args.unacknowledged,
            page_size,
            page_token: all.next_page_token,
        };
        let page = client.list_alerts(request).await?.into_inner();
        pages.got(page.alerts.len(), &page.next_page_token);
        all.alerts.extend(page.alerts);
        all.next_page_token = page.next_page_token;
    }
    session.show(&all, |all| alerts(&all.alerts))?;
    session.explain_nothing(all.alerts.len(), &args.tenant);
    Ok(())
}

async fn deliveries(args: Deliveries, session: &Session) -> Result<()> {
    let mut client = session.alerts();
    let mut all = ListDeliveriesResponse::default();
    let mut pages = args.limit.pages();
    while let Some(page_size) = pages.next() {
        let request = ListDeliveriesRequest {
            tenant: args.tenant.clone(),
            state: args.state.unwrap_or_default().into(),
            alert_id: args.alert.clone(),
            page_size,
            page_token: all.next_page_token,
        };
        let page = client.list_deliveries(request).await?.into_inner();
        pages.got(page.deliveries.len(), &page.next_page_token);
        all.deliveries.extend(page.deliveries);
        all.next_page_token = page.next_page_token;
    }
    session.show(&all, |all| table(&all.deliveries))?;
    session.explain_nothing(all.deliveries.len(), &args.tenant);
    Ok(())
}

fn alerts(alerts: &[Alert]) -> String {
    let rows = alerts.iter().map(|alert| {
        [
            output::when(&alert.raise_time),
            alert.kind.clone(),
            output::short(alert.state().as_str_name(), "ALERT_STATE_"),
            output::when(&alert.ack_time),
            alert.text.clone(),
            alert.id.clone(),
        ]
    });
    output::table(["RAISED", "KIND", "STATE", "SEEN", "WHAT", "ID"], rows)
}

fn table(deliveries: &[AlertDelivery]) -> String {
    let rows = deliveries.iter().map(|delivery| {
        [
            delivery.channel.clone(),
            output::short(delivery.state().as_str_name(), "DELIVERY_STATE_"),
            delivery.attempts.to_string(),
            output::when(&delivery.next_attempt_time),
            delivery.last_error.clone(),
            delivery.alert_id.clone(),
            delivery.id.clone(),
        ]
    });
    let header = [
        "CHANNEL",
        "STATE",
        "ATTEMPTS",
        "NEXT",
        "LAST ERROR",
        "ALERT",
        "ID",
    ];
    output::table(header, rows)
}
