//! R3: what people should be told, and how it reaches them (R-USE-3, R-USE-4).
//!
//! Alerts are rows, raised once per window by whoever notices something; this room adds those about usage (`rules`), ends
//! those that are over, and makes one delivery for each channel (`watch`). Deliveries are rows too: any replica takes one
//! that is due, claims it, sends it, and notes what came of it (`deliver`). A crash in between sends it twice, never not at
//! all.

mod channels;
mod config;
mod deliver;
mod rules;
mod watch;

use std::sync::Arc;

use serde_json::json;

pub use channels::Channels;
pub use config::{AlertsConfig, EmailConfig, WebhookConfig};

// The edges see the store's rows under this roof.
pub use crate::store::{AlertFilter, AlertState, Delivery, DeliveryState, ToldAlert};
use crate::{
    clock::Clock,
    error::{Error, Reason, Result},
    gate::{AdminPermit, Permit, Recorded},
    model::{Action, AlertId, DeliveryId, TenantName},
    store::Db,
};

/// Alerts and their deliveries.
pub struct Alerts {
    db: Db,
    clock: Clock,
    config: AlertsConfig,
    channels: Arc<Channels>,
}

impl Alerts {
    /// Alerts over these parts.
    pub fn new(db: Db, clock: Clock, config: AlertsConfig, channels: Channels) -> Self {
        Self {
            db,
            clock,
            config,
            channels: Arc::new(channels),
        }
    }

    /// The configuration.
    pub const fn config(&self) -> &AlertsConfig {
        &self.config
    }

    /// Up to `limit` alerts before the one with the id `before`, newest first.
    pub async fn list(
        &self,
        permit: &Permit,
        filter: &AlertFilter,
        before: &str,
        limit: i64,
    ) -> Result<Vec<ToldAlert>> {
        permit.covers_tenant(Action::ListAlerts, &filter.tenant)?;
        Ok(self.db.alerts(filter, before, limit).await?)
    }

    /// Notes that the caller takes care of an alert.
    ///
    /// Errors: ALERT_NOT_FOUND; ALERT_STATE when somebody does already.
    pub async fn ack(
        &self,
        permit: AdminPermit,
        tenant: TenantName,
        id: AlertId,
        note: String,
    ) -> Result<Recorded<ToldAlert>> {
        permit.permit().covers_tenant(Action::AckAlert, &tenant)?;
        let by = permit.caller().principal.id.to_string();
        let now = self.clock.now();
        let mut mutation = permit.begin().await?;
        mutation.on("alert", id);
        let tx = mutation.tx();
        let found = tx.alert(id, &tenant).await?;
        let mut told = found.ok_or_else(|| {
            Error::new(
                Reason::AlertNotFound,
                "no such alert, or none that you may see",
            )
        })?;
        if !tx.ack_alert(id, &by, now, &note).await? {
            return Err(Error::new(
                Reason::AlertState,
                "the alert is acknowledged already; ListAlerts says by whom",
            ));
        }
        let details = json!({"kind": told.alert.kind, "note": note});
        told.acked_by = Some(by);
        told.acked_at = Some(now);
        told.ack_note = note;
        mutation.record(told, details).await
    }

    /// Up to `limit` deliveries before the one with the id `before`, newest first.
    pub async fn deliveries(
        &self,
        permit: &Permit,
        tenant: &TenantName,
        only: (Option<DeliveryState>, &str),
        (before, limit): (&str, i64),
    ) -> Result<Vec<Delivery>> {
        permit.covers_tenant(Action::ListDeliveries, tenant)?;
        Ok(self.db.deliveries(tenant, only, before, limit).await?)
    }

    /// Takes a delivery up again that was given up.
    ///
    /// Errors: DELIVERY_NOT_FOUND; DELIVERY_STATE.
    pub async fn retry(
        &self,
        permit: AdminPermit,
        tenant: TenantName,
        id: DeliveryId,
    ) -> Result<Recorded<Delivery>> {
        permit
            .permit()
            .covers_tenant(Action::RetryDelivery, &tenant)?;
        let mut mutation = permit.begin().await?;
        mutation.on("alert_delivery", id);
        let tx = mutation.tx();
        let now = tx.now().await?;
        let unknown = || {
            Error::new(
                Reason::DeliveryNotFound,
                "no such delivery, or none that you may see",
            )
        };
        tx.delivery(id, &tenant).await?.ok_or_else(unknown)?;
        if !tx.revive_delivery(id, now).await? {
            return Err(Error::new(
                Reason::DeliveryState,
                "only a delivery that is DEAD is taken up again",
            ));
        }
        let delivery = tx.delivery(id, &tenant).await?.ok_or_else(unknown)?;
        let details = json!({"alert": delivery.alert.to_string(), "channel": delivery.channel});
        mutation.record(delivery, details).await
    }
}
