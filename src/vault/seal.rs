//! Secrets to ciphertexts and back, bound to where they are.

use std::collections::BTreeMap;

use super::{Vault, key::unavailable};
use crate::{
    error::{Error, Reason, Result},
    keys::KeySnapshot,
    model::{
        CredentialId, CredentialKey, CredentialValue, CredentialValueId, Provider, SecretFields,
        StoredCredential, Timestamp, ValueLabel, VersionState, credential,
    },
};

impl Vault {
    /// A value of this label, sealed by the tenant's key as this replica knows it.
    ///
    /// Errors: CREDENTIAL_KEY_UNAVAILABLE, NO_USABLE_VERSION, KEY_COMPROMISED.
    pub(super) async fn seal(
        &self,
        (id, key): (CredentialId, &CredentialKey),
        provider: &Provider,
        fields: &SecretFields,
        label: ValueLabel,
        now: Timestamp,
    ) -> Result<CredentialValue> {
        let value_id = CredentialValueId::random();
        self.seal_as(value_id, (id, key), provider, fields, label, now)
            .await
    }

    /// As `seal`, for a value whose id is known already.
    pub(super) async fn seal_as(
        &self,
        value_id: CredentialValueId,
        (id, key): (CredentialId, &CredentialKey),
        provider: &Provider,
        fields: &SecretFields,
        label: ValueLabel,
        now: Timestamp,
    ) -> Result<CredentialValue> {
        let with = self.tenant_key(&key.tenant).await?;
        let binding = binding(value_id, id, key);
        let secret = fields.to_json()?;
        let sealed = self.keys.seal_credential(&with, &secret, &binding).await;
        let (ciphertext, kid) = sealed.map_err(unavailable)?;
        let shown = provider.primary().and_then(|spec| fields.get(&spec.name));
        Ok(CredentialValue {
            id: value_id,
            credential: id,
            label,
            kid,
            ciphertext,
            last_four: shown.map_or_else(String::new, |v| credential::last_four(v.expose_secret())),
            created_at: now,
            promoted_at: (label == ValueLabel::Current).then_some(now),
            hold_until: None,
        })
    }

    /// The secret of a value. For whoever has a permit for the credential.
    ///
    /// Errors: TENANT_ERASED, also while its keys are still being destroyed; CREDENTIAL_UNREADABLE,
    /// CREDENTIAL_KEY_UNAVAILABLE, NO_USABLE_VERSION.
    pub(super) async fn open(
        &self,
        head: &StoredCredential,
        value: &CredentialValue,
    ) -> Result<SecretFields> {
        self.db.expect_unerased(&head.key.tenant).await?;
        self.open_as(head, value, VersionState::decrypts).await
    }

    /// As `open`, in a transaction that holds the tenant: asks the database nothing by another connection.
    pub(super) async fn open_held(
        &self,
        head: &StoredCredential,
        value: &CredentialValue,
    ) -> Result<SecretFields> {
        self.open_as(head, value, VersionState::decrypts).await
    }

    async fn open_as(
        &self,
        head: &StoredCredential,
        value: &CredentialValue,
        allows: fn(VersionState) -> bool,
    ) -> Result<SecretFields> {
        let binding = binding(value.id, head.id, &head.key);
        let tenant = &head.key.tenant;
        let opened = self
            .keys
            .open_credential(tenant, &value.ciphertext, &binding, allows)
            .await;
        let secret = opened.map_err(|error| match error.reason() {
            Reason::CiphertextInvalid => unreadable(head, value, error),
            _ => unavailable(error),
        })?;
        SecretFields::from_json(secret.expose_secret()).map_err(Error::internal)
    }

    /// The same value, sealed by the ACTIVE version of `with`.
    ///
    /// Errors: as `open` and `seal`.
    pub(super) async fn reseal(
        &self,
        with: &KeySnapshot,
        head: &StoredCredential,
        value: &CredentialValue,
    ) -> Result<CredentialValue> {
        let secret = self.open_as(head, value, VersionState::rewraps).await?;
        let binding = binding(value.id, head.id, &head.key);
        let sealed = self
            .keys
            .seal_credential(with, &secret.to_json()?, &binding)
            .await;
        let (ciphertext, kid) = sealed.map_err(unavailable)?;
        Ok(CredentialValue {
            kid,
            ciphertext,
            ..value.clone()
        })
    }
}

/// What a sealed secret is bound to, besides the tenant's key and its version.
fn binding(
    value: CredentialValueId,
    credential: CredentialId,
    key: &CredentialKey,
) -> BTreeMap<String, String> {
    [
        ("value", value.to_string()),
        ("credential", credential.to_string()),
        ("tenant", key.tenant.to_string()),
        ("owner", key.owner.to_string()),
        ("provider", key.provider.to_string()),
        ("environment", key.environment.as_str().to_owned()),
    ]
    .map(|(name, text)| (name.to_owned(), text))
    .into()
}

/// Nobody but the daemon writes these rows, so this is news for operators.
fn unreadable(head: &StoredCredential, value: &CredentialValue, why: Error) -> Error {
    let (credential, tenant, kid) = (head.id, &head.key.tenant, &value.kid);
    tracing::error!(%credential, value = %value.id, %tenant, %kid, "the value of a credential does not open");
    metrics::counter!("claviger_credential_unreadable_total").increment(1);
    Error::new(
        Reason::CredentialUnreadable,
        "the stored value does not open: it was changed or moved outside the daemon; store the credential anew",
    )
    .because(why)
}
