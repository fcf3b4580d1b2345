//! Storing a credential, and replacing its CURRENT value.
//!
//! One order of locks: the version of the key, the tenant, the credential, its values.

use std::time::Duration;

use serde_json::Value;

use super::{Found, Vault, Warnings, catalogue::look_at, conflict, details, invalid};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Mutation, Recorded},
    model::{
        CredentialId, CredentialKey, CredentialValue, CredentialValueId, Provider, RotationDriver,
        SecretFields, StoredCredential, Timestamp, ValueLabel,
    },
    store::{FullCredential, StoreError, Tx},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a value may be CURRENT.
pub(super) const PERIODS: std::ops::RangeInclusive<Duration> =
    DAY..=Duration::from_secs(365 * 24 * 60 * 60);

/// What PutCredential is asked for, besides the place.
pub struct PutCredential {
    /// The secret.
    pub fields: SecretFields,
    /// Organisation or account at the provider.
    pub organisation: String,
    /// Replaces the CURRENT value of one that exists.
    pub replace: bool,
    /// How long a value may be CURRENT; None for the provider's own, or what the credential has.
    pub rotation_period: Option<Duration>,
}

/// What was stored.
pub struct Put {
    /// The credential as it is now.
    pub credential: FullCredential,
    /// What is unusual about the value.
    pub warnings: Warnings,
    /// False when an existing one was replaced.
    pub is_new: bool,
}

/// A credential that is ready to be written.
pub(super) struct Draft {
    pub(super) head: StoredCredential,
    pub(super) value: CredentialValue,
    pub(super) is_new: bool,
    pub(super) warnings: Warnings,
}

impl Vault {
    /// Stores a credential, or replaces the CURRENT value of the one that was found.
    ///
    /// Errors: INVALID_FIELD, also for a value of an unusual format under `strict`; ALREADY_EXISTS without `replace`;
    /// CREDENTIAL_KEY_UNAVAILABLE, TENANT_ERASED, CONFLICT.
    pub async fn put(
        &self,
        permit: AdminPermit,
        found: Found,
        request: &PutCredential,
    ) -> Result<Recorded<Put>> {
        let draft = self.draft(&found, request).await?;
        let details = put_details(&draft);
        let mut mutation = permit.begin().await?;
        hold(&mut mutation, &draft.value).await?;
        write(mutation.tx(), &draft).await?;
        let put = draft.done(found.existing);
        mutation.record(put, details).await
    }

    /// Whether a call that is made again brings the secret that the first one has stored as this value. Nothing is kept of a
    /// secret that could be tried against, so the value itself is asked; one that was replaced or deleted since says nothing.
    ///
    /// Errors: IDEMPOTENCY_KEY_REUSED for another secret; CREDENTIAL_UNREADABLE, CREDENTIAL_KEY_UNAVAILABLE.
    pub async fn expect_same(
        &self,
        credential: CredentialId,
        value: CredentialValueId,
        fields: &SecretFields,
    ) -> Result<()> {
        let Some(found) = self.db.credential(credential).await? else {
            return Ok(());
        };
        let Some(stored) = found.values.iter().find(|stored| stored.id == value) else {
            return Ok(());
        };
        match self.open(&found.head, stored).await?.is_same(fields)? {
            true => Ok(()),
            false => Err(Error::new(
                Reason::IdempotencyKeyReused,
                "this idempotency-key was used for another secret, which is the one that is stored; use a new key for a new \
                 request",
            )),
        }
    }

    /// What would be stored. Errors: as `put`.
    pub(super) async fn draft(&self, found: &Found, request: &PutCredential) -> Result<Draft> {
        crate::model::credential::check_name(&found.key.name)?;
        let period = request.rotation_period;
        if period.is_some_and(|period| !PERIODS.contains(&period)) {
            return Err(invalid("rotation_period must be 1 to 365 days"));
        }
        let provider = self.catalogue.provider(&found.key.provider)?;
        let warnings = self.judge(provider, &request.fields)?;
        if found.existing.is_some() && !request.replace {
            return Err(exists(&found.key));
        }
        let now = self.clock.now();
        let (place, current) = ((found.id, &found.key), ValueLabel::Current);
        let value = self
            .seal(place, provider, &request.fields, current, now)
            .await?;
        let mut head = match &found.existing {
            Some(existing) => existing.head.clone(),
            None => new_head(found, provider, now),
        };
        head.organisation.clone_from(&request.organisation);
        head.rotation_period = period.unwrap_or(head.rotation_period);
        head.rotation_due_at = now.plus(head.rotation_period);
        head.format_ok = warnings.is_empty();
        // It was about another value.
        head.probe = None;
        head.updated_at = now;
        Ok(Draft {
            head,
            value,
            is_new: found.existing.is_none(),
            warnings,
        })
    }

    /// What is unusual about a secret. Errors: INVALID_FIELD, under `strict` for anything unusual.
    pub(super) fn judge(&self, provider: &Provider, fields: &SecretFields) -> Result<Warnings> {
        let warnings = look_at(provider, fields)?;
        match (self.is_strict, warnings.first()) {
            (true, Some(first)) => Err(invalid(first.clone())),
            _ => Ok(warnings),
        }
    }
}

impl Draft {
    pub(super) fn done(self, existing: Option<FullCredential>) -> Put {
        let mut head = self.head;
        let mut values = existing.map_or_else(Vec::new, |existing| existing.values);
        if !self.is_new {
            head.revision += 1;
        }
        values.retain(|value| value.label != ValueLabel::Current);
        values.insert(0, self.value);
        Put {
            credential: FullCredential { head, values },
            warnings: self.warnings,
            is_new: self.is_new,
        }
    }
}

fn new_head(found: &Found, provider: &Provider, now: Timestamp) -> StoredCredential {
    StoredCredential {
        id: found.id,
        key: found.key.clone(),
        organisation: String::new(),
        rotation_period: provider.rotation_period(),
        rotation_due_at: now,
        rotation_driver: RotationDriver::Manual,
        format_ok: true,
        probe: None,
        revision: 1,
        created_at: now,
        updated_at: now,
    }
}

/// Nobody takes the version that has sealed the value out of use before the value is there.
///
/// Errors: CONFLICT.
pub(super) async fn hold(mutation: &mut Mutation, value: &CredentialValue) -> Result<()> {
    if mutation.tx().hold_active(&value.kid).await? {
        return Ok(());
    }
    Err(Error::new(
        Reason::Conflict,
        "the key that credentials are sealed by was rotated at this very moment; nothing was changed; retry",
    )
    .retry_after(Duration::from_secs(1)))
}

/// Writes a draft whose version is held.
///
/// Errors: ALREADY_EXISTS and CONFLICT when somebody else was first, TENANT_ERASED.
pub(super) async fn write(tx: &mut Tx, draft: &Draft) -> Result<()> {
    let (head, value) = (&draft.head, &draft.value);
    if draft.is_new {
        let inserted = tx.insert_credential(head).await;
        inserted.map_err(|error| match error {
            StoreError::Exists(_) => exists(&head.key),
            other => other.into(),
        })?;
    } else {
        tx.hold_tenant(&head.key.tenant).await?;
        if !tx.update_credential(head).await? {
            return Err(conflict());
        }
        tx.delete_credential_value(head.id, ValueLabel::Current)
            .await?;
    }
    Ok(tx.insert_credential_value(&head.key, value).await?)
}

fn put_details(draft: &Draft) -> Value {
    let mut details = details(&draft.head.key);
    details["value_id"] = draft.value.id.to_string().into();
    details["kid"] = draft.value.kid.as_str().into();
    details["replaced"] = (!draft.is_new).into();
    details["format_ok"] = draft.head.format_ok.into();
    details
}

fn exists(key: &CredentialKey) -> Error {
    Error::new(
        Reason::AlreadyExists,
        format!(
            "there is a credential {key} already; set replace to put another value in its place"
        ),
    )
}
