//! Carries deliveries out: claims what is due, sends it, notes what came of it. On every replica.
//!
//! A claim is a row that was moved on, so two replicas do not send the same; it outlives the attempt, and whoever dies in
//! between has it tried again when it runs out. Channels do not wait for each other.

use futures_util::future::join_all;

use super::Alerts;
use crate::{
    error::Result,
    fault,
    store::{Delivery, DeliveryState},
};

/// Deliveries that are carried out at the same time.
const AT_ONCE: i64 = 32;

impl Alerts {
    /// Carries out what is due, as much as fits into one round.
    pub async fn deliver_due(&self) -> Result<()> {
        let due = self.db.due_deliveries(self.clock.now(), AT_ONCE).await?;
        for outcome in join_all(due.iter().map(|delivery| self.deliver(delivery))).await {
            outcome?;
        }
        Ok(())
    }

    async fn deliver(&self, delivery: &Delivery) -> Result<()> {
        if !self
            .db
            .claim_delivery(delivery, self.config.claim())
            .await?
        {
            return Ok(());
        }
        let attempt = delivery.attempts + 1;
        let sent = self.send(delivery).await;
        fault::point("alert_sent");
        let outcome = match sent {
            Ok(()) => {
                self.end(delivery, attempt, DeliveryState::Delivered, "")
                    .await?;
                "delivered"
            }
            Err(why) if attempt >= self.config.max_attempts => {
                tracing::error!(
                    channel = delivery.channel,
                    alert = %delivery.alert,
                    why,
                    "alert not delivered, and not tried any more; `claviger alerts retry` tries again"
                );
                self.end(delivery, attempt, DeliveryState::Dead, why)
                    .await?;
                "dead"
            }
            Err(why) => {
                tracing::warn!(
                    channel = delivery.channel,
                    alert = %delivery.alert,
                    why,
                    attempt,
                    "alert not delivered; it is tried again"
                );
                let pause = self.config.pause(attempt);
                let postponed = self.db.postpone_delivery(delivery.id, attempt, pause, why);
                postponed.await?;
                "failed"
            }
        };
        let channel = delivery.channel.clone();
        metrics::counter!(
            "claviger_alert_deliveries_total", "channel" => channel, "outcome" => outcome
        )
        .increment(1);
        Ok(())
    }

    async fn end(
        &self,
        delivery: &Delivery,
        attempt: i64,
        state: DeliveryState,
        why: &str,
    ) -> Result<()> {
        let ended = self.db.end_delivery(delivery.id, attempt, state, why);
        Ok(ended.await?)
    }

    /// Errors: why it did not get there, UPPER_SNAKE_CASE.
    async fn send(&self, delivery: &Delivery) -> std::result::Result<(), &'static str> {
        let found = self.db.alert_to_deliver(delivery.alert).await;
        let told = found
            .map_err(|_| "DATABASE_UNAVAILABLE")?
            .ok_or("ALERT_GONE")?;
        let patience = self.config.patience();
        let now = self.clock.now();
        let sending = self
            .channels
            .send(&delivery.channel, &told.alert, now, patience);
        let sent = tokio::time::timeout(patience, sending).await;
        sent.unwrap_or(Err("TIMEOUT"))
    }
}
