//! What still needs a version: tokens that have not expired, an open rotation, API keys, or data.

use std::fmt;

use super::Destructions;
use crate::{
    error::{Error, Reason, Result},
    model::{
        KeyVersion, RotationId, Timestamp, VersionState,
        key::{Material, VersionEvent},
    },
};

/// Why a version is not to be destroyed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// It is neither RETIRED nor COMPROMISED.
    State(VersionState),
    /// Tokens under it are valid until then.
    Tokens(Timestamp),
    /// The rotation is open.
    Rotation(RotationId),
    /// Data under it was used then.
    Data(Timestamp),
    /// So many ACTIVE API keys are hashed under it.
    ApiKeys(i64),
    /// So many values of credentials are sealed by it.
    Credentials(i64),
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(state) => write!(
                f,
                "the version is {state}; only RETIRED and COMPROMISED ones are destroyed"
            ),
            Self::Tokens(until) => write!(f, "tokens under it are valid until {until}"),
            Self::Rotation(id) => write!(f, "rotation {id} is open and names it"),
            Self::Data(at) => write!(
                f,
                "data under it was used at {at}; rewrap the data to the ACTIVE version first"
            ),
            Self::ApiKeys(count) => write!(
                f,
                "{count} ACTIVE API keys are hashed under it; revoke them first"
            ),
            Self::Credentials(count) => write!(
                f,
                "{count} values of credentials are sealed by it; the daemon moves them by itself, or its log says why not"
            ),
        }
    }
}

impl Need {
    fn error(self) -> Error {
        let reason = match self {
            Self::State(_) => Reason::VersionState,
            Self::Tokens(_)
            | Self::Rotation(_)
            | Self::Data(_)
            | Self::ApiKeys(_)
            | Self::Credentials(_) => Reason::VersionInUse,
        };
        Error::new(reason, format!("it cannot be destroyed: {self}"))
    }
}

impl Destructions {
    /// Errors: VERSION_STATE, VERSION_IN_USE. A use of data within one waiting period counts.
    pub(super) async fn refuse_needed(&self, version: &KeyVersion) -> Result<()> {
        let now = self.clock.now();
        let since = Timestamp::from_micros(
            now.micros()
                .saturating_sub(crate::model::time::micros(self.wait)),
        );
        match self.need(version, since).await? {
            Some(need) => Err(need.error()),
            None => Ok(()),
        }
    }

    /// What needs the version now. Uses of data count that are later than `since`.
    pub(super) async fn need(
        &self,
        version: &KeyVersion,
        since: Timestamp,
    ) -> Result<Option<Need>> {
        if version.state.after(VersionEvent::Destroy).is_err() {
            return Ok(Some(Need::State(version.state)));
        }
        // Tokens of a compromised version are invalid whatever they say.
        let tokens = version.last_token_exp.map(|exp| exp.plus(self.skew));
        if let (VersionState::Retired, Some(until)) = (version.state, tokens)
            && until > self.clock.now()
        {
            return Ok(Some(Need::Tokens(until)));
        }
        if let Some(rotation) = self.db.open_rotation_of_kid(&version.kid).await? {
            return Ok(Some(Need::Rotation(rotation)));
        }
        let api_keys = self.db.api_keys_under(&version.kid).await?;
        if api_keys > 0 {
            return Ok(Some(Need::ApiKeys(api_keys)));
        }
        let credentials = self.db.credential_values_under(&version.kid).await?;
        if credentials > 0 {
            return Ok(Some(Need::Credentials(credentials)));
        }
        let is_data = match version.material {
            Material::DataKey { .. } | Material::Shredded { .. } => true,
            Material::KeyPair { .. } => false,
        };
        let used = self.keys.last_use(&version.kid, version.last_used_at);
        Ok(used.filter(|at| is_data && *at > since).map(Need::Data))
    }
}
