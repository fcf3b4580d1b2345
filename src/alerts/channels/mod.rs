//! The channels: log, e-mail, webhooks. Each takes one alert and says whether it has it; none remembers anything.

mod email;
mod webhook;

use std::{sync::Arc, time::Duration};

use email::Email;
use webhook::Webhook;

use super::AlertsConfig;
use crate::{
    egress::Egress,
    model::Timestamp,
    store::{Alert, Delivery},
};

/// Name of the channel that is the log.
const LOG: &str = "log";
/// Name of the channel by e-mail.
const EMAIL: &str = "email";

/// Every configured channel.
pub struct Channels {
    log: bool,
    email: Option<Email>,
    webhooks: Vec<Webhook>,
}

impl Channels {
    /// Reads secrets and certificates. Errors: a sentence that names the setting.
    pub fn new(config: &AlertsConfig, egress: &Arc<Egress>) -> Result<Self, String> {
        let email = config.email.as_ref();
        let webhooks = config.webhooks.iter();
        Ok(Self {
            log: config.log,
            email: email
                .map(|c| Email::new(c, config.patience()))
                .transpose()?,
            webhooks: webhooks
                .map(|c| Webhook::new(c, Arc::clone(egress)))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let log = self.log.then_some(LOG);
        let email = self.email.as_ref().map(|_| EMAIL);
        let webhooks = self.webhooks.iter().map(|webhook| webhook.name.as_str());
        log.into_iter().chain(email).chain(webhooks)
    }

    /// Sends an alert on its way. Takes `patience` for it, and as much again where it goes to several one by one.
    pub(super) async fn send(
        &self,
        delivery: &Delivery,
        alert: &Alert,
        now: Timestamp,
        patience: Duration,
    ) -> Result<(), NotSent> {
        let sent = match delivery.channel.as_str() {
            LOG if self.log => {
                tracing::warn!(
                    kind = alert.kind,
                    tenant = %alert.tenant,
                    entity = alert.entity,
                    entity_id = alert.entity_id,
                    alert = %alert.id,
                    "{}",
                    alert.text
                );
                Ok(())
            }
            EMAIL => match &self.email {
                Some(email) => return email.send(delivery, alert, patience).await,
                None => Err(NO_CHANNEL),
            },
            name => match self.webhooks.iter().find(|webhook| webhook.name == name) {
                Some(webhook) => {
                    let sending = webhook.send(alert, now, patience);
                    let sent = tokio::time::timeout(patience, sending).await;
                    sent.unwrap_or(Err(TIMEOUT))
                }
                None => Err(NO_CHANNEL),
            },
        };
        sent.map_err(|why| NotSent::to_anybody(why, delivery))
    }
}

/// Why an alert did not get to all who are to have it.
pub struct NotSent {
    /// UPPER_SNAKE_CASE.
    pub why: &'static str,
    /// Recipients that have it nevertheless.
    pub taken: Vec<String>,
}

impl NotSent {
    /// Nobody has it who did not before.
    pub fn to_anybody(why: &'static str, delivery: &Delivery) -> Self {
        Self {
            why,
            taken: delivery.taken.clone(),
        }
    }
}

/// The channel was taken out of the configuration.
const NO_CHANNEL: &str = "NO_CHANNEL";
const TIMEOUT: &str = "TIMEOUT";
