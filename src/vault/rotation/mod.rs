//! Rotation of credentials (R-CRED-7): a new value is staged, its provider asked, promoted, the old one held and then proved
//! dead.
//!
//! Providers are asked before the transaction that acts on what they say; it looks again whether everything is as it was.
//! One order of locks: the version of the key, the tenant, the credential, its rotation, its values.

mod approve;
mod check;
mod driver;
mod errors;
mod mint;
mod remind;
mod settle;
mod stage;
mod step;
mod withdraw;

use std::time::Duration;

pub use check::Look;
pub use driver::{Driver, DriverConfig};
pub use errors::Rates;
pub use mint::SetRotation;
pub use remind::Reminder;
pub use settle::{OfPending, RollBack};
pub use stage::{StageCredential, Staged};
pub use withdraw::Withdrawal;
pub(super) use withdraw::ended;

use super::{Vault, invalid};
use crate::{
    error::{Error, Reason, Result},
    gate::Permit,
    model::{
        CredentialId, CredentialRotation, CredentialRotationId, CredentialRotationState,
        CredentialValue, CredentialValueId, Entity, PrincipalId, Resource, RotationDriver,
        StoredCredential, TenantName, Timestamp, ValueLabel, credential_rotation::Attention,
    },
    store::{CredentialRotationsOf, CredentialsOf, FullCredential, ListedCredential},
};

/// Furthest that people look ahead.
const FURTHEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A rotation and its credential.
#[derive(Clone)]
pub struct FoundRotation {
    /// The rotation.
    pub rotation: CredentialRotation,
    /// Its credential.
    pub credential: FullCredential,
}

impl FoundRotation {
    /// Before the promotion: is the value that is to be replaced not CURRENT any more?
    pub fn is_overtaken(&self) -> bool {
        let current = self.credential.value(ValueLabel::Current);
        current.map(|value| value.id) != Some(self.rotation.old_value)
    }
}

/// Must the provider have said so, or does a person answer for it?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// It must.
    Needed,
    /// A person does.
    Waived,
}

impl Vault {
    /// A rotation with its credential, and what the gate decides about: the credential.
    pub async fn find_rotation(
        &self,
        id: CredentialRotationId,
    ) -> Result<(Resource, Option<FoundRotation>)> {
        let nobody = || Resource {
            tenant: TenantName::system(),
            entity: Entity::UnknownCredential(CredentialId::random()),
        };
        let Some(rotation) = self.db.credential_rotation(id).await? else {
            return Ok((nobody(), None));
        };
        let (resource, found) = self.find(rotation.credential).await?;
        let found = found.map(|credential| FoundRotation {
            rotation,
            credential,
        });
        match found {
            Some(found) => Ok((resource, Some(found))),
            None => Ok((nobody(), None)),
        }
    }

    /// Up to `limit` rotations after `after`, oldest first.
    pub async fn rotations(
        &self,
        _permit: &Permit,
        of: &CredentialRotationsOf,
        after: &str,
        limit: i64,
    ) -> Result<Vec<CredentialRotation>> {
        Ok(self.db.credential_rotations(of, after, limit).await?)
    }

    /// What somebody should look after about a rotation.
    pub fn attention(&self, rotation: &CredentialRotation) -> Option<Attention> {
        rotation.attention(self.clock.now(), self.rotation.stuck)
    }

    /// Up to `limit` credentials after `after` that are to be rotated within this time.
    ///
    /// Errors: INVALID_FIELD.
    pub async fn due(
        &self,
        _permit: &Permit,
        of: &CredentialsOf,
        within: Option<Duration>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<ListedCredential>> {
        let within = within.unwrap_or_default();
        if within > FURTHEST {
            return Err(invalid("within must be at most 365 days"));
        }
        let until = self.clock.now().plus(within);
        Ok(self.db.due_credentials(of, until, after, limit).await?)
    }
}

/// A rotation by hand that begins now, with these new and old values, and without a hold.
fn begun(
    head: &StoredCredential,
    (new_value, old_value): (CredentialValueId, CredentialValueId),
    requester: PrincipalId,
    now: Timestamp,
) -> CredentialRotation {
    CredentialRotation {
        id: CredentialRotationId::random(),
        credential: head.id,
        tenant: head.key.tenant.clone(),
        state: CredentialRotationState::Staged,
        driver: RotationDriver::Manual,
        new_value,
        old_value,
        due_before: head.rotation_due_at,
        hold_for: Duration::ZERO,
        hold_until: None,
        check_at: None,
        attempts: 0,
        refusals: 0,
        withdraw: None,
        requester: Some(requester),
        needs_approval: false,
        approval: None,
        new_probe: None,
        old_probe: None,
        why: String::new(),
        created_at: now,
        updated_at: now,
    }
}

/// What the caller hears of a rotation that is not there.
pub fn unknown_rotation() -> Error {
    Error::new(
        Reason::CredentialRotationNotFound,
        "no such rotation of a credential",
    )
}

/// The value with this label and id. Errors: another one has the label by now, or none.
fn value_of(
    credential: &FullCredential,
    label: ValueLabel,
    id: CredentialValueId,
) -> Result<&CredentialValue> {
    let value = credential.value(label).filter(|value| value.id == id);
    value.ok_or_else(|| {
        state(format!(
            "the {} value of the credential was replaced since this rotation began; roll it back",
            label.as_str()
        ))
    })
}

fn in_state(rotation: &CredentialRotation, wanted: CredentialRotationState) -> Result<()> {
    if rotation.state == wanted {
        return Ok(());
    }
    let (is, wanted) = (rotation.state.as_str(), wanted.as_str());
    Err(state(format!(
        "the rotation is {is}; this needs one that is {wanted}"
    )))
}

fn state(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Reason::CredentialRotationState, message)
}
