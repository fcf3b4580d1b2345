//! Webhooks, signed as Standard Webhooks (standardwebhooks.com) are: HMAC-SHA-256 over `id.timestamp.body`, which is what
//! our own VerifyWebhook checks under ID_TIMESTAMP_BODY. The id is the alert's, the same for every attempt, so that a
//! receiver knows what it has; the timestamp is the attempt's.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_STANDARD};
use http::Method;
use serde_json::json;
use zeroize::Zeroizing;

use crate::{
    alerts::WebhookConfig,
    egress::{Egress, EgressError, Request},
    model::Timestamp,
    store::Alert,
};

/// Fewest bytes of a secret (Standard Webhooks).
const LEAST: usize = 24;

/// One webhook.
pub struct Webhook {
    pub(super) name: String,
    url: String,
    key: hmac::Key,
    egress: Arc<Egress>,
}

impl Webhook {
    /// Errors: a sentence that names the setting; never the secret.
    pub fn new(config: &WebhookConfig, egress: Arc<Egress>) -> Result<Self, String> {
        let name = &config.name;
        let path = config.secret_file.display();
        let text = std::fs::read_to_string(&config.secret_file)
            .map_err(|e| format!("alerts.webhooks {name}: secret_file {path}: {e}"))?;
        let text = Zeroizing::new(text);
        let secret = secret(text.trim()).ok_or_else(|| {
            format!(
                "alerts.webhooks {name}: secret_file {path} must hold `whsec_` and base64 of at least {LEAST} bytes, or at \
                 least {LEAST} characters"
            )
        })?;
        if !config.url.starts_with("https://") && !config.url.starts_with("http://") {
            return Err(format!(
                "alerts.webhooks {name}: url must begin with https://"
            ));
        }
        Ok(Self {
            name: name.clone(),
            url: config.url.clone(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            egress,
        })
    }

    /// Errors: why it did not get there.
    pub async fn send(
        &self,
        alert: &Alert,
        now: Timestamp,
        patience: Duration,
    ) -> Result<(), &'static str> {
        let (id, timestamp, body) = (alert.id.to_string(), now.seconds(), body(alert));
        let signature = sign(&self.key, &id, timestamp, &body);
        let request = Request::new(Method::POST, self.url.as_str())
            .header("content-type", "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp.to_string())
            .header("webhook-signature", signature)
            .body(body)
            .patience(patience);
        match self.egress.send(request).await {
            Ok(answer) if answer.is_success() => Ok(()),
            Ok(answer) if answer.status >= 500 => Err("STATUS_5XX"),
            Ok(_) => Err("STATUS_REFUSED"),
            Err(error) => Err(EgressError::as_str(error)),
        }
    }
}

fn secret(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let bytes = match text.strip_prefix("whsec_") {
        Some(encoded) => BASE64_STANDARD.decode(encoded).ok()?,
        None => text.as_bytes().to_vec(),
    };
    let bytes = Zeroizing::new(bytes);
    (bytes.len() >= LEAST).then_some(bytes)
}

/// What a receiver reads.
fn body(alert: &Alert) -> Vec<u8> {
    json!({
        "id": alert.id.to_string(),
        "type": "claviger.alert",
        "kind": alert.kind,
        "tenant": alert.tenant.as_str(),
        "entity": alert.entity,
        "entity_id": alert.entity_id,
        "text": alert.text,
        "raised_at": alert.raised_at.to_string(),
        "window": alert.window_key,
    })
    .to_string()
    .into_bytes()
}

fn sign(key: &hmac::Key, id: &str, timestamp: i64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{id}.{timestamp}.").as_bytes());
    context.update(body);
    format!("v1,{}", BASE64_STANDARD.encode(context.sign()))
}

#[cfg(test)]
mod tests {
    use super::*;

    // The example of the Standard Webhooks specification's reference libraries.
    #[test]
    fn a_signature_is_that_of_the_specification() {
        let secret = secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a secret");
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let signature = sign(
            &key,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn short_secrets_are_none() {
        assert!(secret("whsec_c2hvcnQ=").is_none());
        assert!(secret("whsec_not base64").is_none());
        assert!(secret("too short").is_none());
        assert!(secret("twenty-four characters!!").is_some());
    }
}
