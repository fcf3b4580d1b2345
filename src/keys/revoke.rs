//! Taking a version out of use before its time: the end of a grace window, or of a version that was never ACTIVE.

use std::sync::Arc;

use serde_json::json;

use super::{KeySnapshot, Keys};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Recorded, not_found},
    model::{KeyVersion, Kid, VersionState, key::VersionEvent},
    store::Tx,
};

impl Keys {
    /// Makes a VERIFY_ONLY version, or a PRE_ACTIVE one outside an open rotation, RETIRED at once.
    ///
    /// Errors: KEY_NOT_FOUND when the key has no such version, VERSION_IN_USE, VERSION_STATE, CONFLICT.
    pub async fn revoke(
        &self,
        permit: AdminPermit,
        key: Arc<KeySnapshot>,
        kid: Kid,
        reason: String,
    ) -> Result<Recorded<Arc<KeySnapshot>>> {
        let key = self.fresh(&key.key.tenant, key.key.id).await?;
        let found = key.version(&kid).map(|v| v.version.clone());
        let mut version = found.ok_or_else(|| not_found(permit.permit().resource()))?;
        let before = version.advance(event(&version)?, self.clock.now())?;
        let mut mutation = permit.begin_on(key.key.id).await?;
        let tx = mutation.tx();
        expect_no_credentials(tx, &kid).await?;
        let open = tx.open_rotation(key.key.id).await?;
        if let Some(rotation) = open.filter(|r| r.new_kid == kid) {
            return Err(Error::new(
                Reason::VersionInUse,
                format!(
                    "version {kid} is the successor in rotation {}, which is {}; reject or cancel that",
                    rotation.id,
                    rotation.state.as_str()
                ),
            ));
        }
        if !tx.update_version(&version, before).await? {
            return Err(conflict());
        }
        let mut completed = None;
        if let Some(rotation) = tx.deployed_rotation_from(&kid).await? {
            let deployed = rotation.state;
            let rotation = rotation.complete(self.clock.now())?;
            if !tx.update_rotation(&rotation, deployed).await? {
                return Err(conflict());
            }
            completed = Some(rotation.id.to_string());
        }
        let details = json!({
            "kid": kid.as_str(),
            "was": before.as_str(),
            "reason": reason,
            "completed_rotation": completed,
        });
        let id = key.key.id;
        let versions = key.versions().iter().map(|v| &v.version);
        let versions = versions.map(|v| if v.kid == kid { &version } else { v });
        let revoked = KeySnapshot::new(key.key.clone(), versions.cloned().collect())?;
        self.forget_after(&mut mutation, id);
        mutation.record(Arc::new(revoked), details).await
    }
}

/// A version that ACTIVE API keys are hashed under cannot end: they would end with it.
///
/// Errors: VERSION_IN_USE.
pub async fn expect_no_credentials(tx: &mut Tx, kid: &Kid) -> Result<()> {
    match tx.count_api_keys_under(kid).await? {
        0 => Ok(()),
        count => Err(Error::new(
            Reason::VersionInUse,
            format!(
                "{count} ACTIVE API keys are hashed under version {kid}; each moves to the newest one when it is used; \
                 rotate or revoke those that nobody uses"
            ),
        )),
    }
}

/// What revoking means for a version in this state. Errors: VERSION_STATE for the ACTIVE one, with what to do instead.
fn event(version: &KeyVersion) -> Result<VersionEvent> {
    match version.state {
        VersionState::Active => Err(Error::new(
            Reason::VersionState,
            format!(
                "version {} is ACTIVE; replace it with RotateKey, or with DeclareCompromise if somebody else may know it",
                version.kid
            ),
        )),
        VersionState::PreActive => Ok(VersionEvent::Withdraw),
        VersionState::VerifyOnly
        | VersionState::Retired
        | VersionState::Compromised
        | VersionState::Destroyed => Ok(VersionEvent::Revoke),
    }
}

fn conflict() -> Error {
    Error::new(
        Reason::Conflict,
        "somebody else changed this key; read it again and retry",
    )
}
