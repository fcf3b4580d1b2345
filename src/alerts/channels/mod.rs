//! The channels: log, e-mail, webhooks. Each takes one alert and says whether it has it; none remembers anything.

mod email;
mod webhook;

use std::{sync::Arc, time::Duration};

use email::Email;
use webhook::Webhook;

use super::AlertsConfig;
use crate::{egress::Egress, model::Timestamp, store::Alert};

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

    /// Sends an alert to a channel. Errors: why it did not get there, UPPER_SNAKE_CASE.
    pub(super) async fn send(
        &self,
        channel: &str,
        alert: &Alert,
        now: Timestamp,
        patience: Duration,
    ) -> Result<(), &'static str> {
        match channel {
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
                Some(email) => email.send(alert).await,
                None => Err(NO_CHANNEL),
            },
            name => match self.webhooks.iter().find(|webhook| webhook.name == name) {
                Some(webhook) => webhook.send(alert, now, patience).await,
                None => Err(NO_CHANNEL),
            },
        }
    }
}

/// The channel was taken out of the configuration.
const NO_CHANNEL: &str = "NO_CHANNEL";
