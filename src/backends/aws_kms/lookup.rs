//! What KMS says about keys, without using them.

use aws_sdk_kms::types::{KeyManagerType, KeyMetadata, KeyState, OriginType};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use super::{AwsKmsBackend, Class, errors::Fault, keys::TAG, specs, unfit};
use crate::{
    backends::BackendError,
    model::{IntentId, KeySpec, PublicKey},
};

/// Keys that are looked at side by side in a search.
const SIDE_BY_SIDE: usize = 16;

impl AwsKmsBackend {
    /// The metadata of the key that an ARN or an alias names.
    pub(super) async fn describe(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<KeyMetadata, BackendError> {
        let plan = self.management("kms:DescribeKey", Class::Read, deadline);
        let shown = self
            .shared
            .calls
            .run(plan, |client| client.describe_key().key_id(name).send())
            .await
            .map_err(Fault::into_error)?;
        shown
            .key_metadata
            .ok_or_else(|| BackendError::Unavailable("kms:DescribeKey answered no metadata".into()))
    }

    pub(super) async fn public_half(
        &self,
        arn: &str,
        deadline: Instant,
    ) -> Result<PublicKey, BackendError> {
        let plan = self.management("kms:GetPublicKey", Class::Read, deadline);
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
        let plan = self.management("kms:ListResourceTags", Class::Read, deadline);
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

    /// Looks at every key of the account: KMS finds no key by its tag. The intent is in the description too,
    /// which costs one request per key and not two; the tag then decides.
    pub(super) async fn left_by(
        &self,
        intent: IntentId,
        deadline: Instant,
    ) -> Result<Vec<String>, BackendError> {
        let arns = self.every_key(deadline).await?;
        let found: Vec<_> = stream::iter(arns)
            .map(|arn| async move { self.if_left_by(intent, &arn, deadline).await })
            .buffer_unordered(SIDE_BY_SIDE)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn every_key(&self, deadline: Instant) -> Result<Vec<String>, BackendError> {
        let mut arns = Vec::new();
        let mut marker = None;
        loop {
            let plan = self.management("kms:ListKeys", Class::Read, deadline);
            let page = self.shared.calls.run(plan, |client| {
                let list = client.list_keys().limit(1000);
                list.set_marker(marker.clone()).send()
            });
            let page = page.await.map_err(Fault::into_error)?;
            let keys = page.keys();
            arns.extend(keys.iter().filter_map(|key| key.key_arn.clone()));
            match page.next_marker {
                Some(next) if page.truncated => marker = Some(next),
                Some(_) | None => return Ok(arns),
            }
        }
    }

    async fn if_left_by(
        &self,
        intent: IntentId,
        arn: &str,
        deadline: Instant,
    ) -> Result<Option<String>, BackendError> {
        let key = match self.describe(arn, deadline).await {
            Ok(key) => key,
            // Keys of other owners in the same account, which do not concern us.
            Err(BackendError::Misconfigured(_) | BackendError::Missing(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_named = key
            .description()
            .is_some_and(|text| text.contains(&intent.to_string()));
        if !is_named || is_gone(&key) || self.tag(arn, deadline).await? != Some(intent) {
            return Ok(None);
        }
        let word = |text: Option<&str>| text.unwrap_or("unknown").to_owned();
        Ok(Some(format!(
            "{arn}, {}, {}",
            word(key.key_spec().map(|spec| spec.as_str())),
            word(key.key_state().map(|state| state.as_str()))
        )))
    }

    /// What a refusal because of the key's state means: KMS answers "disabled" also for keys that are about
    /// to be deleted, so the state is read.
    pub(super) async fn explain(&self, arn: &str, fault: Fault, deadline: Instant) -> BackendError {
        if !matches!(fault, Fault::State(_)) {
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
        let plan = self.management("kms:ListKeys", Class::Read, deadline);
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
    if is_gone(key) {
        return Err(BackendError::Missing(format!(
            "{arn}: it is scheduled for deletion"
        )));
    }
    match key.key_state() {
        Some(KeyState::Enabled | KeyState::Updating) => Ok(()),
        Some(KeyState::Disabled) => Err(unfit(&format!(
            "{arn} is disabled in KMS; enable it (kms:EnableKey)"
        ))),
        Some(KeyState::PendingImport) => Err(unfit("it has no key material of KMS")),
        // Creating, or its custom key store is disconnected; a wildcard, because AWS adds states.
        other => Err(BackendError::Unavailable(format!(
            "{arn} is in state {}",
            other.map_or("unknown", KeyState::as_str)
        ))),
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
