//! A verifier as others write it: a JOSE library, and the JWK Set kept for exactly as long as Cache-Control allows. It
//! never asks earlier, not even for a kid that it does not know.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, jwk::JwkSet};
use serde_json::Value;
use tokio::{sync::Mutex, time::Instant};

use super::AUDIENCE;
use crate::daemon::{Answer, Daemon};

pub struct RelyingParty {
    fetch: Box<dyn Fn() -> Fetching + Send + Sync>,
    kept: Mutex<Option<Kept>>,
    fetched: AtomicUsize,
}

type Fetching = std::pin::Pin<Box<dyn Future<Output = Answer> + Send>>;

struct Kept {
    set: Arc<JwkSet>,
    until: Instant,
}

impl RelyingParty {
    pub fn new(daemon: &Daemon) -> Self {
        let (address, trust) = (
            daemon.addresses().public.clone(),
            daemon.ca.client_config(None),
        );
        let fetch = move || -> Fetching {
            let (address, trust) = (address.clone(), trust.clone());
            Box::pin(async move {
                crate::daemon::https(&address, trust, "/.well-known/jwks.json").await
            })
        };
        Self {
            fetch: Box::new(fetch),
            kept: Mutex::new(None),
            fetched: AtomicUsize::new(0),
        }
    }

    /// How often it asked for the JWK Set.
    pub fn fetched(&self) -> usize {
        self.fetched.load(Ordering::SeqCst)
    }

    /// The kid of a valid token, or why it is none.
    pub async fn accepts(&self, token: &str) -> Result<String, String> {
        let header = decode_header(token).map_err(|e| e.to_string())?;
        let kid = header.kid.ok_or("no kid")?;
        let set = self.set().await;
        let jwk = set.find(&kid).ok_or_else(|| format!("unknown kid {kid}"))?;
        let key = DecodingKey::from_jwk(jwk).map_err(|e| e.to_string())?;
        let mut rules = Validation::new(Algorithm::ES256);
        rules.leeway = 0;
        rules.set_audience(&[AUDIENCE]);
        rules.set_issuer(&["https://issuer.test"]);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        decode::<Value>(token, &key, &rules).map_err(|e| e.to_string())?;
        Ok(kid)
    }

    async fn set(&self) -> Arc<JwkSet> {
        let mut kept = self.kept.lock().await;
        if let Some(kept) = kept.as_ref().filter(|kept| Instant::now() < kept.until) {
            return Arc::clone(&kept.set);
        }
        let answer = (self.fetch)().await;
        assert_eq!(answer.status, 200);
        self.fetched.fetch_add(1, Ordering::SeqCst);
        let set = Arc::new(serde_json::from_slice(&answer.body).expect("a JWK Set"));
        *kept = Some(Kept {
            set: Arc::clone(&set),
            // By its own clock, from when it has the set: the latest that the header can mean.
            until: Instant::now() + max_age(&answer),
        });
        set
    }
}

fn max_age(answer: &Answer) -> Duration {
    let header = answer.headers["cache-control"].to_str().expect("ASCII");
    let directives = header.split(',').map(str::trim);
    let seconds = directives.filter_map(|d| d.strip_prefix("max-age=")).next();
    Duration::from_secs(seconds.expect("max-age").parse().expect("seconds"))
}
