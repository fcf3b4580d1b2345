//! A key with all its versions, as one immutable picture that data-plane calls share.

use std::sync::Arc;

use crate::{
    error::{Error, Reason, Result},
    model::{Key, KeyVersion, Kid, Purpose, Verifier, VersionState, key::Material},
};

/// A key and its versions at one moment.
pub struct KeySnapshot {
    /// The key.
    pub key: Key,
    versions: Vec<Version>,
    active: Option<usize>,
    /// Equal for this picture and no other.
    identity: Arc<()>,
}

/// A version with its public key parsed.
pub struct Version {
    /// The version.
    pub version: KeyVersion,
    /// None for data keys.
    pub verifier: Option<Verifier>,
}

impl KeySnapshot {
    /// Puts the picture together. Errors: a stored public key that does not fit the key's algorithm.
    pub fn new(key: Key, versions: Vec<KeyVersion>) -> Result<Self> {
        let active = versions.iter().position(|v| v.state.makes());
        let versions = versions
            .into_iter()
            .map(|version| {
                let verifier = version
                    .public_key()
                    .map(|public| public.verifier(key.algorithm))
                    .transpose()?;
                Ok(Version { version, verifier })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            key,
            versions,
            active,
            identity: Arc::new(()),
        })
    }

    /// What tells this picture from any other of the same key, as long as somebody holds it.
    pub const fn identity(&self) -> &Arc<()> {
        &self.identity
    }

    /// Every version, oldest first.
    pub fn versions(&self) -> &[Version] {
        &self.versions
    }

    /// The version that signs and encrypts. Errors: KEY_COMPROMISED, NO_USABLE_VERSION.
    pub fn active(&self) -> Result<&Version> {
        self.active
            .and_then(|index| self.versions.get(index))
            .ok_or_else(|| self.inactive())
    }

    fn inactive(&self) -> Error {
        let name = &self.key.name;
        let lost = |v: &Version| v.state() == VersionState::Compromised;
        if self.versions.iter().any(lost) {
            return Error::new(
                Reason::KeyCompromised,
                format!(
                    "key {name} was declared compromised and has no successor yet; the daemon makes one as soon as its \
                     backend answers, see the incident"
                ),
            );
        }
        if self
            .versions
            .iter()
            .all(|v| v.state() == VersionState::Destroyed)
        {
            return Error::new(
                Reason::NoUsableVersion,
                format!("every version of key {name} was destroyed"),
            );
        }
        Error::new(
            Reason::NoUsableVersion,
            format!("key {name} has no ACTIVE version; deploy a rotation first"),
        )
    }

    /// The number that the key's next version gets.
    pub fn next_number(&self) -> u32 {
        self.versions.last().map_or(1, |v| v.version.number + 1)
    }

    /// The version with this kid.
    pub fn version(&self, kid: &Kid) -> Option<&Version> {
        self.versions.iter().find(|v| v.version.kid == *kid)
    }

    /// Versions by which signatures are accepted, newest first.
    pub fn verifying(&self) -> impl Iterator<Item = &Version> {
        self.versions
            .iter()
            .rev()
            .filter(|v| v.version.state.verifies())
    }

    /// Did somebody else choose the key's secret? Then the daemon cannot make its next version by itself.
    pub fn is_imported(&self) -> bool {
        self.versions.iter().any(|v| v.sealed_secret().is_some())
    }

    /// Errors: KEY_PURPOSE_MISMATCH unless the key is for `needed`. Only for callers who may see the key.
    pub fn expect(&self, needed: Purpose, operation: &str) -> Result<()> {
        if self.key.purpose == needed {
            return Ok(());
        }
        Err(Error::new(
            Reason::KeyPurposeMismatch,
            format!(
                "key {} is for {}; {operation} needs a key for {needed}",
                self.key.name, self.key.purpose
            ),
        ))
    }
}

impl Version {
    /// Where the version is in its life.
    pub const fn state(&self) -> VersionState {
        self.version.state
    }

    /// The encrypted secret of an imported version.
    pub fn sealed_secret(&self) -> Option<&[u8]> {
        match &self.version.material {
            Material::DataKey { sealed_secret, .. } => sealed_secret.as_deref(),
            Material::KeyPair { .. } | Material::Shredded { .. } => None,
        }
    }
}
