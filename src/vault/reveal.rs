//! The one way for people to a secret: with a permission of its own and a reason that is recorded.

use super::{Vault, conflict, details};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Recorded, not_found},
    model::{SecretFields, ValueLabel},
    store::FullCredential,
};

/// What was revealed.
pub struct Revealed {
    /// The credential.
    pub credential: FullCredential,
    /// Which value.
    pub label: ValueLabel,
    /// Its secret.
    pub fields: SecretFields,
}

impl Vault {
    /// The secret of a value, once its record is written with `reason`.
    ///
    /// Errors: CREDENTIAL_NOT_FOUND, also for a label that the credential has no value with; CREDENTIAL_UNREADABLE,
    /// CREDENTIAL_KEY_UNAVAILABLE, NO_USABLE_VERSION; TENANT_ERASED; CONFLICT when it was changed meanwhile.
    pub async fn reveal(
        &self,
        permit: AdminPermit,
        found: Option<FullCredential>,
        label: ValueLabel,
        reason: String,
    ) -> Result<Recorded<Revealed>> {
        let found = found.ok_or_else(|| not_found(permit.permit().resource()))?;
        let value = found.value(label).ok_or_else(|| {
            let text = format!("the credential has no {} value", label.as_str());
            Error::new(Reason::CredentialNotFound, text)
        })?;
        let fields = self.open(&found.head, value).await?;
        let mut details = details(&found.head.key);
        details["value_id"] = value.id.to_string().into();
        details["label"] = label.as_str().into();
        details["kid"] = value.kid.as_str().into();
        details["reason"] = reason.into();
        let id = value.id;
        let mut mutation = permit.begin().await?;
        mutation.tx().hold_tenant(&found.head.key.tenant).await?;
        let now = mutation.tx().lock_credential(found.head.id).await?;
        let still = now.is_some_and(|now| now.value(label).is_some_and(|value| value.id == id));
        if !still {
            return Err(conflict());
        }
        let revealed = Revealed {
            credential: found,
            label,
            fields,
        };
        mutation.record(revealed, details).await
    }
}
