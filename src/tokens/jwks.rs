//! The published JWK Set: announced, active and verify-only keys (R-JWT-4), from memory.
//!
//! Rebuilt from the database when `Keys` has counted a change, by the first reader who notices; readers in between
//! wait for that one rebuild. When the database does not answer, the last set goes on being served.

use std::{fmt::Write, sync::Arc, time::Duration};

use aws_lc_rs::digest;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::Tokens;
use crate::error::Result;

/// Section `[jwks]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JwksConfig {
    /// `Cache-Control: max-age` of the set, in seconds; with the clock skew it is the soak of a rotation. Default 300.
    pub max_age_seconds: u64,
}

impl Default for JwksConfig {
    fn default() -> Self {
        Self {
            max_age_seconds: 300,
        }
    }
}

/// A JWK Set, ready to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwksDocument {
    /// The JSON.
    pub body: Bytes,
    /// Strong entity tag of the body, in its quotes.
    pub etag: String,
    /// How long verifiers may keep it.
    pub max_age: Duration,
}

/// A document and the generation of keys it was made from.
pub struct Published {
    generation: u64,
    document: Arc<JwksDocument>,
}

impl JwksDocument {
    /// A document whose tag is made from its content: replicas that serve the same keys give the same tag.
    pub fn new(body: impl Into<Bytes>, max_age: Duration) -> Self {
        let body = body.into();
        let hash = digest::digest(&digest::SHA256, &body);
        let mut etag = String::from("\"");
        for byte in &hash.as_ref()[..16] {
            // Writing to a String cannot fail.
            let _ = write!(etag, "{byte:02x}");
        }
        etag.push('"');
        Self {
            body,
            etag,
            max_age,
        }
    }
}

impl Tokens {
    /// The current set. Errors: the database does not answer and there is no earlier set.
    pub async fn jwks(&self) -> Result<Arc<JwksDocument>> {
        if let Some(document) = self.current() {
            return Ok(document);
        }
        let _one = self.rebuild.lock().await;
        if let Some(document) = self.current() {
            return Ok(document);
        }
        let generation = self.keys.generation();
        match self.build().await {
            Ok(document) => {
                let document = Arc::new(document);
                self.published.store(Some(Arc::new(Published {
                    generation,
                    document: Arc::clone(&document),
                })));
                Ok(document)
            }
            Err(error) => match self.published.load_full() {
                Some(last) => {
                    tracing::warn!(?error, "JWKS not rebuilt; serving the last one");
                    Ok(Arc::clone(&last.document))
                }
                None => Err(error),
            },
        }
    }

    fn current(&self) -> Option<Arc<JwksDocument>> {
        let published = self.published.load();
        published
            .as_ref()
            .filter(|p| p.generation == self.keys.generation())
            .map(|p| Arc::clone(&p.document))
    }

    async fn build(&self) -> Result<JwksDocument> {
        let keys: Vec<_> = self
            .db
            .published_keys()
            .await?
            .into_iter()
            .map(|(kid, algorithm, public)| public.jwk(&kid, algorithm))
            .collect();
        let body = json!({ "keys": keys }).to_string();
        Ok(JwksDocument::new(body, self.jwks_max_age))
    }
}
