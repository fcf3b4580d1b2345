//! New material for a key: recorded as an intent, then made, then handed to whoever records the version.
//!
//! A crash between the steps leaves at most an object on the device whose `CKA_ID` is the id of a PENDING intent.

use std::sync::Arc;

use super::Keys;
use crate::{
    backends::{Priority, with_priority},
    error::{Error, Result},
    fault,
    model::{IntentId, Key, Kid, Purpose, key::Material},
};

/// Material that exists and is not recorded yet.
pub struct Generated {
    /// Its kid.
    pub kid: Kid,
    /// What it is.
    pub material: Material,
    /// The intent to settle in the transaction that records the version; None for data keys.
    pub intent: Option<IntentId>,
}

impl Keys {
    /// Generates the material of one new version of `key`: a key pair in the key's backend, or a wrapped data key.
    pub async fn generate(&self, key: &Key, number: u32) -> Result<Generated> {
        self.generate_in(key, number, &key.backend).await
    }

    /// As `generate`, with a key pair in this backend.
    pub(super) async fn generate_in(
        &self,
        key: &Key,
        number: u32,
        backend: &str,
    ) -> Result<Generated> {
        with_priority(Priority::Rotation, self.material(key, number, backend)).await
    }

    async fn material(&self, key: &Key, number: u32, backend: &str) -> Result<Generated> {
        match key.purpose {
            Purpose::Encryption | Purpose::Mac => {
                let kid = Kid::random();
                let material = self.new_data_key(&key.tenant, key.id, &kid).await?;
                Ok(Generated {
                    kid,
                    material,
                    intent: None,
                })
            }
            Purpose::Signing | Purpose::TokenSigning => {
                self.generate_pair(key, number, backend).await
            }
        }
    }

    /// Does the device answer that generates or wraps the material of `key`?
    pub async fn ready(&self, key: &Key) -> Result<()> {
        let backend = match key.purpose {
            Purpose::Encryption | Purpose::Mac => self.keks.active()?.backend,
            Purpose::Signing | Purpose::TokenSigning => Arc::clone(self.backend(&key.backend)?),
        };
        Ok(backend.ready(self.deadline()).await?)
    }

    async fn generate_pair(&self, key: &Key, number: u32, name: &str) -> Result<Generated> {
        let backend = self.backend(name)?;
        let spec = key
            .algorithm
            .key_spec(key.rsa_bits)
            .ok_or_else(|| Error::internal(format!("{} is no signature", key.algorithm)))?;
        let intent = IntentId::random();
        let label = format!("{}/{}/{number}", key.tenant, key.name);
        // By database time: another replica judges by it how old the intent is.
        let now = self.db.now().await?;
        self.db
            .record_intent(intent, name, &key.tenant, &label, now)
            .await?;
        fault::point("generate.intended");
        let created = backend
            .create(spec, intent, &label, self.generation_deadline())
            .await?;
        fault::point("generate.generated");
        let public_key = created
            .public_key
            .ok_or_else(|| Error::internal("the backend made a key pair without a public key"))?;
        Ok(Generated {
            kid: public_key.thumbprint(),
            material: Material::KeyPair {
                backend: name.to_owned(),
                reference: created.reference,
                public_key,
            },
            intent: Some(intent),
        })
    }
}
