//! What KMS says about keys, without using them.

use aws_sdk_kms::types::{KeyManagerType, KeyMetadata, KeyState, OriginType};
use tokio::time::Instant;

use super::{AwsKmsBackend, Class, errors::Fault, keys::TAG, specs, unfit};
use crate::{
    backends::BackendError,
    model::{IntentId, KeySpec, PublicKey},
};

impl AwsKmsBackend {
    /// The metadata of the key that an ARN or an alias names.
    pub(super) async fn describe(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<KeyMetadata, BackendError> {
        let plan = self.plan("kms:DescribeKey", Class::Read, deadline);
        let shown = self
            .shared
            .calls
            .run(plan, |client| client.describe_key().key_id(name).send())
            .await
            .map_err(|fault| match fault.into_error() {
                BackendError::Missing(_) => BackendError::Missing(format!(
                    "{name}, which is not in region {} of the daemon's account",
                    self.shared.config.region
                )),
                other => other,
            })?;
        shown
            .key_metadata
            .ok_or_else(|| BackendError::Unavailable("kms:DescribeKey answered no metadata".into()))
    }

    pub(super) async fn public_half(
        &self,
        arn: &str,
        deadline: Instant,
    ) -> Result<PublicKey, BackendError> {
        let plan = self.plan("kms:GetPublicKey", Class::Read, deadline);
        let shown = self
            .shared
            .calls
            .run(plan, |client| client.get_public_key().key_id(arn).send());
        let shown = match shown.await {
            Ok(shown) => shown,
            Err(fault) => return Err(self.explain(arn, fault, deadline).await),
        };
        let spec = match (&shown.key_spec, &shown.key_usage) {
            (Some(spec), Some(usage)) => specs::from_aws(spec, usage),
            _ => None,
        };
        let spec = spec.ok_or_else(|| unfit("it is no key pair of a kind that we use"))?;
        let der = shown.public_key().map(AsRef::as_ref).unwrap_or_default();
        specs::public_key(der, spec)
    }

    /// The intent that a key was made for, if we made it.
    pub(super) async fn tag(
        &self,
        arn: &str,
        deadline: Instant,
    ) -> Result<Option<IntentId>, BackendError> {
        let plan = self.plan("kms:ListResourceTags", Class::Read, deadline);
        // A key has 50 tags at most, and one page holds 50.
        let shown = self
            .shared
            .calls
            .run(plan, |client| {
                client.list_resource_tags().key_id(arn).limit(50).send()
            })
            .await
            .map_err(Fault::into_error)?;
        let tag = shown.tags().iter().find(|tag| tag.tag_key() == TAG);
        Ok(tag.and_then(|tag| tag.tag_value().parse().ok()))
    }

    /// What a refusal because of the key's state means: KMS answers "disabled" also for keys that are about
    /// to be deleted, so the state is read.
    pub(super) async fn explain(&self, arn: &str, fault: Fault, deadline: Instant) -> BackendError {
        if !matches!(fault, Fault::State(_) | Fault::KeyTrouble(_)) {
            return fault.into_error();
        }
        match self.describe(arn, deadline).await {
            Ok(key) => usable(&key).err().unwrap_or_else(|| fault.into_error()),
            Err(BackendError::Missing(what)) => BackendError::Missing(what),
            Err(_) => fault.into_error(),
        }
    }

    /// One request that reads nothing of anybody.
    pub(super) async fn answers(&self, deadline: Instant) -> Result<(), BackendError> {
        let plan = self.plan("kms:ListKeys", Class::Read, deadline);
        let calls = &self.shared.calls;
        calls
            .run(plan, |client| client.list_keys().limit(1).send())
            .await
            .map(drop)
            .map_err(Fault::into_error)
    }
}

/// KMS keeps deleted keys for a week at least. They are gone for us.
pub(super) fn is_gone(key: &KeyMetadata) -> bool {
    matches!(
        key.key_state(),
        Some(KeyState::PendingDeletion | KeyState::PendingReplicaDeletion)
    )
}

/// Can the key be used now?
pub(super) fn usable(key: &KeyMetadata) -> Result<(), BackendError> {
    let arn = key.arn().unwrap_or_default();
    let suspended = |why: &str| {
        Err(BackendError::Suspended {
            key: arn.to_owned(),
            why: why.to_owned(),
        })
    };
    if is_gone(key) {
        return Err(BackendError::Missing(format!(
            "{arn}, which is scheduled for deletion; before that is done, kms:CancelKeyDeletion and kms:EnableKey \
             bring it back"
        )));
    }
    match key.key_state() {
        Some(KeyState::Enabled | KeyState::Updating) => Ok(()),
        Some(KeyState::Disabled) => suspended("it is disabled in KMS; enable it (kms:EnableKey)"),
        Some(KeyState::Unavailable) => suspended(
            "its custom key store is disconnected from KMS; connect it (kms:ConnectCustomKeyStore)",
        ),
        Some(KeyState::PendingImport) => Err(unfit("it has no key material of KMS")),
        // Creating, for example; a wildcard, because AWS adds states.
        other => suspended(&format!(
            "its state in KMS is {}",
            other.map_or("unknown", KeyState::as_str)
        )),
    }
}

/// May we rely on the key, and of what kind is it? `Rsa(0)` stands for any length.
pub(super) fn fitness(key: &KeyMetadata, wanted: KeySpec) -> Result<KeySpec, BackendError> {
    usable(key)?;
    match key.origin() {
        Some(OriginType::AwsKms | OriginType::AwsCloudhsm) => {}
        other => {
            return Err(unfit(&format!(
                "its origin is {}: the material has been or is outside of KMS",
                other.map_or("unknown", OriginType::as_str)
            )));
        }
    }
    if key.key_manager() != Some(&KeyManagerType::Customer) {
        return Err(unfit("it is managed by AWS; use a customer managed key"));
    }
    let found = match (key.key_spec(), key.key_usage()) {
        (Some(spec), Some(usage)) => specs::from_aws(spec, usage),
        _ => None,
    };
    // A replica elsewhere signs whatever we say here, and outlives what is deleted here.
    if key.multi_region() == Some(true) && wanted != KeySpec::Kek {
        return Err(unfit(
            "it is a multi-region key: its private half is in other regions too, where neither a destruction here nor \
             its proof reaches; use a single-region key",
        ));
    }
    match (wanted, found) {
        (KeySpec::Rsa(0), Some(found @ KeySpec::Rsa(_))) => Ok(found),
        (wanted, Some(found)) if wanted == found => Ok(found),
        (wanted, Some(found)) => Err(unfit(&format!("it is {found:?}, not {wanted:?}"))),
        (wanted, None) => Err(unfit(&format!(
            "its KeySpec {} or KeyUsage {} is not that of {wanted:?}",
            key.key_spec().map_or("unknown", |spec| spec.as_str()),
            key.key_usage().map_or("unknown", |usage| usage.as_str())
        ))),
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_kms::types::{KeySpec as AwsSpec, KeyUsageType, builders::KeyMetadataBuilder};

    use super::*;

    fn key(spec: AwsSpec, usage: KeyUsageType) -> KeyMetadataBuilder {
        KeyMetadata::builder()
            .key_id("0a1b")
            .arn("arn:aws:kms:eu-west-1:123456789012:key/0a1b")
            .key_state(KeyState::Enabled)
            .origin(OriginType::AwsKms)
            .key_manager(KeyManagerType::Customer)
            .key_spec(spec)
            .key_usage(usage)
    }

    fn judged(key: KeyMetadataBuilder, wanted: KeySpec) -> Result<KeySpec, BackendError> {
        fitness(&key.build().expect("metadata"), wanted)
    }

    #[test]
    fn a_key_of_several_regions_may_wrap_and_not_sign() {
        let pair = || key(AwsSpec::EccNistP256, KeyUsageType::SignVerify);
        let kek = || key(AwsSpec::SymmetricDefault, KeyUsageType::EncryptDecrypt);
        assert!(judged(pair(), KeySpec::P256).is_ok());
        let several = judged(pair().multi_region(true), KeySpec::P256);
        assert!(
            matches!(several, Err(BackendError::Unfit(_))),
            "{several:?}"
        );
        assert!(judged(kek().multi_region(true), KeySpec::Kek).is_ok());
    }

    #[test]
    fn who_holds_the_material_decides() {
        let pair = || key(AwsSpec::EccNistP256, KeyUsageType::SignVerify);
        assert!(judged(pair().origin(OriginType::AwsCloudhsm), KeySpec::P256).is_ok());
        for outside in [OriginType::External, OriginType::ExternalKeyStore] {
            let refused = judged(pair().origin(outside), KeySpec::P256);
            assert!(
                matches!(refused, Err(BackendError::Unfit(_))),
                "{refused:?}"
            );
        }
        let managed = judged(pair().key_manager(KeyManagerType::Aws), KeySpec::P256);
        assert!(
            matches!(managed, Err(BackendError::Unfit(_))),
            "{managed:?}"
        );
    }

    #[test]
    fn a_state_that_ends_is_no_verdict_on_the_key() {
        let in_state = |state| key(AwsSpec::EccNistP256, KeyUsageType::SignVerify).key_state(state);
        for state in [
            KeyState::Disabled,
            KeyState::Unavailable,
            KeyState::Creating,
        ] {
            let outcome = judged(in_state(state), KeySpec::P256);
            assert!(
                matches!(outcome, Err(BackendError::Suspended { .. })),
                "{outcome:?}"
            );
        }
        for state in [KeyState::PendingDeletion, KeyState::PendingReplicaDeletion] {
            let outcome = judged(in_state(state), KeySpec::P256);
            assert!(
                matches!(outcome, Err(BackendError::Missing(_))),
                "{outcome:?}"
            );
        }
    }
}
