//! The keys of one issuer: a JWK Set (RFC 7517), from a file or a URL.
//!
//! What cannot be used is left out: other kinds of keys, keys for encryption, keys without a kid. A key is parsed when a
//! token first names an algorithm for it. Reading is paced, so that tokens with made-up kids cannot make us ask for ever.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use serde::Deserialize;
use serde_json::Value;
use tokio::{sync::Mutex, time::Instant};

use super::{IssuerConfig, fetch::Fetcher};
use crate::model::{Algorithm, PublicKey, Verifier};

/// Keys of one set at most.
const MAX_KEYS: usize = 100;
/// Largest document, in bytes.
pub(super) const MAX_BYTES: usize = 256 << 10;
/// Time between two readings that unknown kids cause.
const PACE: Duration = Duration::from_secs(10);

/// The keys, replaced as a whole.
pub(super) struct Keys {
    source: Source,
    known: ArcSwap<HashMap<String, Arc<Jwk>>>,
    /// When the set was last read because a kid was unknown; held while it is.
    asked: Mutex<Option<Instant>>,
}

enum Source {
    File(PathBuf),
    Url(Box<Fetcher>),
}

/// One key.
pub(super) struct Jwk {
    key: PublicKey,
    /// The only algorithm that it is for, if it says so.
    algorithm: Option<String>,
}

impl Jwk {
    /// The key ready to verify; None when the algorithm does not fit it.
    pub(super) fn verifier(&self, algorithm: Algorithm) -> Option<Verifier> {
        let meant = self.algorithm.as_deref();
        let fits = meant.is_none_or(|meant| meant == algorithm.as_str());
        self.key.verifier(algorithm).ok().filter(|_| fits)
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

impl Keys {
    /// Errors: a file that cannot be read or used; a URL is first asked later.
    pub(super) fn of(config: &IssuerConfig) -> Result<Self, String> {
        let (source, known) = match (&config.jwks_file, &config.jwks_url) {
            (Some(file), _) => {
                let bytes = std::fs::read(file).map_err(|e| unreadable(file, &e))?;
                (Source::File(file.clone()), parse(&bytes)?)
            }
            (None, Some(url)) => {
                let fetcher = Fetcher::new(url, config)?;
                (Source::Url(Box::new(fetcher)), HashMap::new())
            }
            (None, None) => return Err("neither jwks_file nor jwks_url is given".into()),
        };
        Ok(Self {
            source,
            known: ArcSwap::from_pointee(known),
            asked: Mutex::default(),
        })
    }

    /// The key with this kid; reads the set again when it has none and was not read a moment ago. Who comes while it is
    /// being read waits for it. Errors: it cannot be read, and never could be.
    pub(super) async fn find(&self, kid: &str) -> Result<Option<Arc<Jwk>>, String> {
        if let Some(found) = self.known.load().get(kid) {
            return Ok(Some(Arc::clone(found)));
        }
        let mut asked = self.asked.lock().await;
        if let Some(found) = self.known.load().get(kid) {
            return Ok(Some(Arc::clone(found)));
        }
        if asked.is_none_or(|at| at.elapsed() >= PACE) {
            let read = self.read().await;
            *asked = Some(Instant::now());
            if let Err(error) = read {
                tracing::warn!(error, "keys of an issuer not read");
            }
        }
        let known = self.known.load();
        match known.is_empty() {
            true => Err("its JWK Set was never read, or has no key that can be used".to_owned()),
            false => Ok(known.get(kid).cloned()),
        }
    }

    /// Reads the set. Errors: why that did not work; what was known stays.
    pub(super) async fn read(&self) -> Result<(), String> {
        let bytes = match &self.source {
            Source::File(file) => tokio::fs::read(file)
                .await
                .map_err(|e| unreadable(file, &e))?,
            Source::Url(fetcher) => fetcher.get().await?,
        };
        self.known.store(Arc::new(parse(&bytes)?));
        Ok(())
    }
}

fn unreadable(file: &std::path::Path, error: &std::io::Error) -> String {
    format!("cannot read {}: {error}", file.display())
}

/// Errors: no JWK Set. One without a key that can be used is what its issuer wants: nobody counts then.
fn parse(bytes: &[u8]) -> Result<HashMap<String, Arc<Jwk>>, String> {
    if bytes.len() > MAX_BYTES {
        return Err(format!("the JWK Set has more than {MAX_BYTES} bytes"));
    }
    let document: Document =
        serde_json::from_slice(bytes).map_err(|e| format!("no JWK Set: {e}"))?;
    let usable = document.keys.iter().take(MAX_KEYS).filter_map(usable);
    Ok(usable.collect())
}

fn usable(jwk: &Value) -> Option<(String, Arc<Jwk>)> {
    let is_for_signatures = jwk.get("use").is_none_or(|usage| usage == "sig");
    let kid = jwk.get("kid")?.as_str()?;
    let key = PublicKey::from_canonical_jwk(&jwk.to_string()).ok()?;
    let algorithm = jwk.get("alg").and_then(Value::as_str).map(str::to_owned);
    is_for_signatures.then(|| (kid.to_owned(), Arc::new(Jwk { key, algorithm })))
}
