//! Carries deliveries out: claims what is due, sends it, notes what came of it. On every replica.
//!
//! A claim is a row that was moved on, so two replicas do not send the same; it outlives the attempt, and whoever dies in
//! between has it tried again when it runs out. Each channel has its own round, so one that hangs keeps no other waiting.

use futures_util::future::join_all;

use super::{Alerts, channels::NotSent};
use crate::{
    error::Result,
    fault,
    store::{Delivery, DeliveryState},
};

/// Deliveries of one channel that are carried out at the same time.
const AT_ONCE: i64 = 16;

impl Alerts {
    /// The channels that have something to be carried out.
    pub async fn due_channels(&self) -> Result<Vec<String>> {
        Ok(self.db.due_channels(self.clock.now()).await?)
    }

    /// Carries out what is due of a channel, as much as fits into one round.
    pub async fn deliver_due(&self, channel: &str) -> Result<()> {
        let now = self.clock.now();
        let due = self.db.due_deliveries(channel, now, AT_ONCE).await?;
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
                self.end(delivery, attempt, DeliveryState::Delivered, ("", &[]))
                    .await?;
                "delivered"
            }
            Err(NotSent { why, taken }) if attempt >= self.config.max_attempts => {
                tracing::error!(
                    channel = delivery.channel,
                    alert = %delivery.alert,
                    why,
                    taken = taken.len(),
                    "alert not delivered, and not tried any more; `claviger alerts retry` tries again"
                );
                self.end(delivery, attempt, DeliveryState::Dead, (why, &taken))
                    .await?;
                "dead"
            }
            Err(NotSent { why, taken }) => {
                tracing::warn!(
                    channel = delivery.channel,
                    alert = %delivery.alert,
                    why,
                    taken = taken.len(),
                    attempt,
                    "alert not delivered; it is tried again"
                );
                let pause = self.config.pause(attempt);
                let why = (why, &taken[..]);
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
        why: (&str, &[String]),
    ) -> Result<()> {
        let ended = self.db.end_delivery(delivery.id, attempt, state, why);
        Ok(ended.await?)
    }

    async fn send(&self, delivery: &Delivery) -> std::result::Result<(), NotSent> {
        let found = self.db.alert_to_deliver(delivery.alert).await;
        let told = match found {
            Ok(Some(told)) => told,
            Ok(None) => return Err(NotSent::to_anybody("ALERT_GONE", delivery)),
            Err(_) => return Err(NotSent::to_anybody("DATABASE_UNAVAILABLE", delivery)),
        };
        let (now, patience) = (self.clock.now(), self.config.patience());
        self.channels
            .send(delivery, &told.alert, now, patience)
            .await
    }
}
