//! What the device holds beside what the rows say: pairs that an interrupted attempt left, and pairs that are to go.
//!
//! Nothing here deletes what it was not told to, and "not found" is believed only of a device that shows something else.

use std::sync::Arc;

use super::{KeySnapshot, Keys};
use crate::{
    backends::{Backend, BackendError, Destroyed},
    error::{Error, Reason, Result},
    model::{
        KeySpec, Kid, VersionState,
        key::{BackendRef, Material},
    },
    store::Intent,
};

/// Other pairs that are asked for when one is not there.
const WITNESSES: i64 = 8;

/// How the pair of a version came to be gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The device destroyed it just now, or will.
    Destroyed(Destroyed),
    /// It was not there any more: an attempt before this one was cut short, or somebody else destroyed it. In the device's
    /// words.
    Already(String),
}

impl Gone {
    /// Was it gone before it was to be destroyed?
    pub const fn was_gone(&self) -> bool {
        matches!(self, Self::Already(_))
    }

    /// What became of the pair, as its intent keeps it for the proof: one line.
    pub fn fate(&self) -> String {
        match self {
            Self::Destroyed(Destroyed::Now) => "destroyed".to_owned(),
            Self::Destroyed(Destroyed::Scheduled(at)) => format!("deletion scheduled for {at}"),
            // As JSON: words of a device, which may be anything.
            Self::Already(words) => {
                let words = words.chars().filter(|c| !c.is_control());
                let words: String = words.take(500).collect();
                format!("was already gone {}", serde_json::Value::from(words))
            }
        }
    }
}

impl Keys {
    /// What the device holds under the id of an intent, for people; empty when nothing.
    pub async fn left_by(&self, intent: &Intent) -> Result<Vec<String>> {
        let backend = self.backend(&intent.backend)?;
        Ok(backend.find(intent.id, self.deadline()).await?)
    }

    /// Destroys the pair of a version on its device, for ever. The intent to do so must be recorded.
    ///
    /// Errors: the backend's. A pair that the device does not show counts as gone only when the device is ready, still
    /// does not show it, and shows another key of ours: a token that vanished looks like an empty one.
    pub async fn destroy_pair(
        &self,
        key: &KeySnapshot,
        backend: &str,
        reference: &BackendRef,
    ) -> Result<Gone> {
        let backend = self.backend(backend)?;
        match backend.destroy(reference, self.deadline()).await {
            Ok(done) => return Ok(Gone::Destroyed(done)),
            Err(BackendError::Missing(_)) => {}
            Err(other) => return Err(other.into()),
        }
        backend.ready(self.deadline()).await?;
        self.see_another(backend, key, reference).await?;
        match backend.destroy(reference, self.deadline()).await {
            Ok(done) => Ok(Gone::Destroyed(done)),
            Err(BackendError::Missing(words)) => Ok(Gone::Already(words)),
            Err(other) => Err(other.into()),
        }
    }

    /// Errors: BACKEND_UNAVAILABLE unless the device shows a key that must be there.
    async fn see_another(
        &self,
        backend: &Arc<dyn Backend>,
        key: &KeySnapshot,
        gone: &BackendRef,
    ) -> Result<()> {
        if let Some(kek) = self.keks.in_backend(&backend.capabilities().name) {
            let deadline = self.deadline();
            let seen = backend.adopt(&kek.reference.0, KeySpec::Kek, deadline);
            seen.await?;
            return Ok(());
        }
        let others = key
            .versions()
            .iter()
            .filter_map(|v| match &v.version.material {
                Material::KeyPair {
                    backend: name,
                    reference,
                    ..
                } if v.state() != VersionState::Destroyed
                    && reference != gone
                    && *name == backend.capabilities().name =>
                {
                    Some(reference)
                }
                _ => None,
            });
        for other in others {
            if backend.public_key(other, self.deadline()).await.is_ok() {
                return Ok(());
            }
        }
        // All pairs of this key may be gone: any other that the backend must have will do.
        let name = &backend.capabilities().name;
        for other in self.db.pairs_in(name, gone, WITNESSES).await? {
            if backend.public_key(&other, self.deadline()).await.is_ok() {
                return Ok(());
            }
        }
        Err(Error::new(
            Reason::BackendUnavailable,
            "the backend shows neither the key to destroy nor any other; an operator must look at it, and if it is in \
             order, create a key of any tenant in it, which shows so",
        ))
    }

    /// Wipes the unwrapped data key of a version from memory, if it is there.
    pub fn forget_data_key(&self, kid: &Kid) {
        self.data_keys.forget(kid);
    }

    /// Wipes it as soon as `mutation` is committed.
    pub fn forget_data_key_after(&self, mutation: &mut crate::gate::Mutation, kid: &Kid) {
        let (data_keys, kid) = (Arc::clone(&self.data_keys), kid.clone());
        mutation.then(move || data_keys.forget(&kid));
    }
}
