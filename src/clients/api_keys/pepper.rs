//! The pepper: the MAC key of tenant `system` under which the secrets of API keys are hashed.
//!
//! Its versions are key versions like any other: wrapped by the KEK, rotated by RotateKey. Each row names the version that
//! it is hashed under; `admit` moves it to the ACTIVE one at the next use, and a version is retired when no row is left.
//! Secrets have 256 random bits, so the hash need not be slow: the pepper keeps who can write to the database, and no more,
//! from putting in a key of their own.

use std::sync::Arc;

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac, rand};
use zeroize::Zeroizing;

use crate::{
    error::{Error, Reason, Result},
    gate::Gate,
    keys::{CreateKey, KeySnapshot, Keys},
    model::{
        Action, Algorithm, ApiKeyHash, ApiKeyText, Job, KeyRef, Kid, Purpose, Resource, TenantName,
        VersionState,
    },
};

/// How a hash is made: HMAC-SHA-256 over domain, id (16 bytes) and secret part (43 characters).
const SCHEME: &str = "hmac-sha256-v1";
/// Keeps these hashes apart from everything else that a MAC key could be asked for.
const DOMAIN: &[u8] = b"claviger api key v1\0";

/// The pepper key.
pub struct Pepper {
    keys: Arc<Keys>,
    name: KeyRef,
    /// Stands in where there is no version to hash under, so that it takes as long.
    stand_in: hmac::Key,
}

/// What became of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// The secret is the right one. Says whether its hash is under the ACTIVE version.
    Right {
        /// It is.
        is_current: bool,
    },
    /// It is not.
    Wrong,
    /// The version that the hash is under does not verify any more.
    Unusable,
}

/// One version of the pepper.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Its kid.
    pub kid: Kid,
    /// Its state.
    pub state: VersionState,
    /// ACTIVE API keys that are hashed under it.
    pub api_keys: u64,
}

impl Pepper {
    /// The pepper key with this name. Errors: INTERNAL when the system has no randomness.
    pub fn new(keys: Arc<Keys>, name: KeyRef) -> Result<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        rand::fill(&mut *bytes).map_err(Error::internal)?;
        Ok(Self {
            keys,
            name,
            stand_in: hmac::Key::new(hmac::HMAC_SHA256, &*bytes),
        })
    }

    /// Makes the key when there is none. Of two replicas that start together the second takes what the first has made.
    ///
    /// Errors: KEY_PURPOSE_MISMATCH when a key of another kind has the name; the KEK backend's.
    pub async fn make(&self, gate: &Gate) -> Result<()> {
        if self.find().await?.is_none() {
            let (keys, request) = (Arc::clone(&self.keys), self.request()?);
            let act = async move |permit| keys.create(permit, request).await;
            let resource = Resource::tenant(TenantName::system());
            let made = gate.work(Job::Scheduler, Action::CreatePepper, resource, act);
            match made.await {
                Ok(_) => tracing::info!(key = %self.name, "made the pepper of the API keys"),
                Err(error) if error.reason() == Reason::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        self.snapshot().await.map(|_| ())
    }

    fn request(&self) -> Result<CreateKey> {
        let KeyRef::Name(name) = &self.name else {
            return Err(Error::internal("the pepper key has no name"));
        };
        Ok(CreateKey {
            tenant: TenantName::system(),
            name: name.clone(),
            purpose: Purpose::Mac,
            algorithm: Algorithm::Hs256,
            rsa_bits: 0,
            owner: "claviger".to_owned(),
            rotation_period: None,
            rotation_mode: None,
            approvals_needed: None,
            standby: false,
            // What keeps an old version is the rows under it, for as long as there are any. The release before this one
            // does not know of them, and must not retire it in the days of an upgrade.
            grace: Some(std::time::Duration::from_secs(7 * 24 * 60 * 60)),
            backend: None,
            standby_backend: None,
        })
    }

    /// The hash of a key under the ACTIVE version, as the database has it now.
    ///
    /// Errors: NO_USABLE_VERSION, KEY_COMPROMISED, and the KEK backend's.
    pub async fn hash(&self, text: &ApiKeyText) -> Result<ApiKeyHash> {
        let key = self.fresh().await?;
        self.hash_under(&key, text).await
    }

    /// As `hash`, by what is known in memory.
    pub async fn hash_warm(&self, text: &ApiKeyText) -> Result<ApiKeyHash> {
        let key = self.snapshot().await?;
        self.hash_under(&key, text).await
    }

    async fn hash_under(&self, key: &KeySnapshot, text: &ApiKeyText) -> Result<ApiKeyHash> {
        let pepper = key.active()?.version.kid.clone();
        let secret = self.keys.credential_mac(key, &pepper).await?;
        Ok(ApiKeyHash {
            value: tag(&secret, text).as_ref().to_vec(),
            scheme: SCHEME.to_owned(),
            pepper,
        })
    }

    /// Is this the key that was hashed? Without a hash there is nothing to compare with, and it takes as long.
    ///
    /// Errors: NO_USABLE_VERSION, INTERNAL for a hash that is none of ours, and the KEK backend's.
    pub async fn check(&self, text: &ApiKeyText, hash: Option<&ApiKeyHash>) -> Result<Checked> {
        let Some(key) = self.find().await? else {
            // Nobody has made an API key yet.
            return Ok(self.compare_with_nothing(&tag(&self.stand_in, text)));
        };
        let mut key = self.ours(key)?;
        let Some(hash) = hash else {
            self.compare_nothing(&key, text).await?;
            return Ok(Checked::Wrong);
        };
        if hash.scheme != SCHEME {
            return Err(Error::internal(format!(
                "an API key is hashed by {:?}, which this release does not know",
                hash.scheme
            )));
        }
        if is_news(&key, &hash.pepper) {
            // Another replica may just have hashed it under a version that is new to us.
            key = self.fresh().await?;
        }
        if !verifies(&key, &hash.pepper) {
            self.compare_nothing(&key, text).await?;
            return Ok(Checked::Unusable);
        }
        let secret = self.keys.credential_mac(&key, &hash.pepper).await?;
        let tag = tag(&secret, text);
        Ok(
            match verify_slices_are_equal(tag.as_ref(), &hash.value).is_ok() {
                true => Checked::Right {
                    is_current: key.active().is_ok_and(|v| v.version.kid == hash.pepper),
                },
                false => Checked::Wrong,
            },
        )
    }

    async fn compare_nothing(&self, key: &KeySnapshot, text: &ApiKeyText) -> Result<()> {
        let tag = match key.active() {
            Ok(active) => {
                let kid = &active.version.kid;
                tag(&*self.keys.credential_mac(key, kid).await?, text)
            }
            Err(_) => tag(&self.stand_in, text),
        };
        self.compare_with_nothing(&tag);
        Ok(())
    }

    /// The result is known; the time it takes is the point.
    fn compare_with_nothing(&self, tag: &hmac::Tag) -> Checked {
        let _ = std::hint::black_box(verify_slices_are_equal(tag.as_ref(), &[0; 32]));
        Checked::Wrong
    }

    /// Versions that hash, verify, or have rows under them, newest first, with these numbers of rows.
    pub async fn progress(&self, counts: &[(Kid, u64)]) -> Result<Vec<Progress>> {
        if self.find().await?.is_none() {
            // Nobody has made an API key yet.
            return Ok(Vec::new());
        }
        let key = self.fresh().await?;
        let versions = key.versions().iter().rev();
        let versions = versions.filter_map(|v| {
            let (kid, state) = (&v.version.kid, v.state());
            let counted = counts.iter().find(|(counted, _)| counted == kid);
            let api_keys = counted.map_or(0, |(_, count)| *count);
            (state.verifies() || api_keys > 0).then(|| Progress {
                kid: kid.clone(),
                state,
                api_keys,
            })
        });
        Ok(versions.collect())
    }

    async fn find(&self) -> Result<Option<Arc<KeySnapshot>>> {
        let target = self.keys.find(&TenantName::system(), &self.name).await?;
        Ok(target.snapshot().ok().cloned())
    }

    async fn fresh(&self) -> Result<Arc<KeySnapshot>> {
        if let Some(found) = self.find().await? {
            self.keys.forget(found.key.id);
        }
        self.snapshot().await
    }

    async fn snapshot(&self) -> Result<Arc<KeySnapshot>> {
        let Some(found) = self.find().await? else {
            return Err(Error::new(
                Reason::NoUsableVersion,
                "there is no pepper yet: the daemon makes it with the first API key",
            ));
        };
        self.ours(found)
    }

    fn ours(&self, found: Arc<KeySnapshot>) -> Result<Arc<KeySnapshot>> {
        let is_ours = found.key.algorithm == Algorithm::Hs256 && !found.is_imported();
        if found.key.purpose == Purpose::Mac && is_ours {
            return Ok(found);
        }
        Err(Error::new(
            Reason::KeyPurposeMismatch,
            format!(
                "key {} of tenant system is no generated HS256 key, so API keys cannot be hashed under it; name \
                 another one in api_keys.pepper_key",
                self.name
            ),
        ))
    }
}

/// Could what the database has now make this version verify? Not one that has ended: those stay ended.
fn is_news(key: &KeySnapshot, kid: &Kid) -> bool {
    let state = key.version(kid).map(|v| v.state());
    state.is_none_or(|state| state == VersionState::PreActive)
}

fn verifies(key: &KeySnapshot, kid: &Kid) -> bool {
    key.version(kid).is_some_and(|v| v.state().verifies())
}

fn tag(secret: &hmac::Key, text: &ApiKeyText) -> hmac::Tag {
    let mut context = hmac::Context::with_key(secret);
    context.update(DOMAIN);
    context.update(text.id().as_bytes());
    context.update(text.expose_secret_part().as_bytes());
    context.sign()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ApiKeyId;

    #[test]
    fn the_hash_depends_on_pepper_id_and_secret() {
        let key = |byte| hmac::Key::new(hmac::HMAC_SHA256, &[byte; 32]);
        let text = ApiKeyText::generate(ApiKeyId::random()).expect("a key");
        let other = ApiKeyText::generate(text.id()).expect("a key");
        let foreign = ApiKeyText::generate(ApiKeyId::random()).expect("a key");
        let of = |byte, text| tag(&key(byte), text).as_ref().to_vec();
        assert_eq!(of(1, &text), of(1, &text));
        assert_ne!(of(1, &text), of(2, &text));
        assert_ne!(of(1, &text), of(1, &other));
        assert_ne!(of(1, &text), of(1, &foreign));
        assert_eq!(of(1, &text).len(), 32);
    }
}
