//! Letting somebody in who shows a key.
//!
//! What the caller of the product learns is yes or no; the reason is for the audit log. Nor does time tell: a key that nobody
//! has is hashed and compared like one that somebody has, and every failure ends with one look for a row that is not there.
//! What the right secret is refused for (expired, revoked, suspended) is decided after the comparison.

use std::sync::Arc;

use tokio::sync::SemaphorePermit;

use super::{ApiKeys, known::KnownKey, pepper::Checked, uses::Moved};
use crate::{
    error::{Error, Reason, Result},
    model::{
        ApiKey, ApiKeyId, ApiKeyState, ApiKeyText, ClientState, Principal, PrincipalState, Scopes,
    },
};

/// Somebody who showed a valid key.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// The key. One that belongs to a client is that client's secret at the OAuth endpoints and nothing elsewhere.
    pub key: Arc<ApiKey>,
    /// Its owner, with the roles and entitlements that the key brings along.
    pub principal: Arc<Principal>,
    /// The key's scopes, as far as the owner holds them.
    pub scopes: Scopes,
}

/// Why a key does not count. For the audit log alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Nobody has a key with this id.
    Unknown,
    /// The id is somebody's, the secret is not.
    WrongSecret,
    /// Its time is over.
    Expired,
    /// Somebody ended it.
    Revoked,
    /// Its owner is suspended.
    OwnerSuspended,
    /// Its owner does not exist.
    OwnerGone,
    /// The client whose secret it is is suspended.
    ClientSuspended,
    /// It is the secret of a client, which proves the client at the OAuth endpoints and nobody elsewhere.
    OfClient,
    /// The version of the pepper that it is hashed under does not verify any more: it was declared compromised.
    PepperUnusable,
}

impl Rejection {
    /// The text in the audit log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "API_KEY_UNKNOWN",
            Self::WrongSecret => "API_KEY_WRONG_SECRET",
            Self::Expired => "API_KEY_EXPIRED",
            Self::Revoked => "API_KEY_REVOKED",
            Self::OwnerSuspended => "API_KEY_OWNER_SUSPENDED",
            Self::OwnerGone => "API_KEY_OWNER_GONE",
            Self::ClientSuspended => "API_KEY_CLIENT_SUSPENDED",
            Self::OfClient => "API_KEY_OF_CLIENT",
            Self::PepperUnusable => "API_KEY_PEPPER_UNUSABLE",
        }
    }

    /// What the caller is told: always the same.
    pub fn error(self) -> Error {
        Error::new(Reason::CredentialInvalid, "the credential is not valid")
    }
}

impl ApiKeys {
    /// Who shows this key, or why it does not count. A valid key that is known costs no read of the database.
    ///
    /// `may_look` is false for a source of many failures. Then the database is asked for few such keys at a time, the others
    /// wait: a valid key is never refused for what others did, and the database has room for everybody else.
    ///
    /// Errors: DATABASE_UNAVAILABLE, and the KEK backend's: nobody knows then whether it is valid.
    pub async fn admit(
        &self,
        shown: &ApiKeyText,
        may_look: bool,
    ) -> Result<Result<Admitted, Rejection>> {
        let is_known = self.known.get(shown.id()).is_some();
        let admitted = match self.look_up(shown, may_look).await? {
            Ok(known) => self.judge(&known).await?,
            Err(rejection) => Err(rejection),
        };
        match &admitted {
            Ok(admitted) => self.uses.note(admitted.key.id, self.clock.now()),
            // The database has been read already.
            Err(_) if !is_known => {}
            Err(_) => {
                let _turn = self.turn(may_look).await;
                self.db.api_key(ApiKeyId::random()).await?;
            }
        }
        Ok(admitted)
    }

    /// Is there such a key, and did nobody revoke it? One whose time is over has not misbehaved.
    pub(in crate::clients) async fn is_unrevoked(&self, id: ApiKeyId) -> Result<bool> {
        let known = match self.known.get(id) {
            Some(known) => Some(known),
            None => self.known.load(&self.db, id).await?,
        };
        Ok(known.is_some_and(|known| known.key.state != ApiKeyState::Revoked))
    }

    /// The right to ask the database about somebody who is not known in memory. None for those who need none.
    pub async fn turn(&self, may_look: bool) -> Option<SemaphorePermit<'_>> {
        match may_look {
            true => None,
            // An error only when somebody closed the semaphore, which nobody does.
            false => self.crowded.acquire().await.ok(),
        }
    }

    /// The key that was shown, if the secret is right.
    async fn look_up(
        &self,
        shown: &ApiKeyText,
        may_look: bool,
    ) -> Result<Result<Arc<KnownKey>, Rejection>> {
        if let Some(known) = self.known.get(shown.id()) {
            let checked = self.pepper.check(shown, Some(&known.key.hash)).await?;
            if checked != Checked::Unusable {
                return self.told(shown, known, checked).await;
            }
            // Another replica may have moved it to a newer version of the pepper, of which no row tells.
            self.known.forget(shown.id());
        }
        let turn = self.turn(may_look).await;
        let loaded = self.known.load(&self.db, shown.id()).await?;
        drop(turn);
        let hash = loaded.as_ref().map(|known| &known.key.hash);
        let checked = self.pepper.check(shown, hash).await?;
        match loaded {
            Some(known) => self.told(shown, known, checked).await,
            None => Ok(Err(Rejection::Unknown)),
        }
    }

    async fn told(
        &self,
        shown: &ApiKeyText,
        known: Arc<KnownKey>,
        checked: Checked,
    ) -> Result<Result<Arc<KnownKey>, Rejection>> {
        match checked {
            Checked::Right { is_current } => {
                if !is_current {
                    self.move_hash(shown, &known.key).await;
                }
                Ok(Ok(known))
            }
            Checked::Wrong => Ok(Err(Rejection::WrongSecret)),
            Checked::Unusable => Ok(Err(Rejection::PepperUnusable)),
        }
    }

    /// Notes the hash under the ACTIVE version of the pepper, for the next flush. What goes wrong is tried again at the next
    /// use.
    async fn move_hash(&self, shown: &ApiKeyText, key: &ApiKey) {
        if self.uses.is_moving(key.id) {
            return;
        }
        match self.pepper.hash_warm(shown).await {
            Ok(to) => {
                let from = key.hash.pepper.clone();
                self.uses.note_move(key.id, Moved { from, to });
            }
            Err(error) => {
                tracing::warn!(api_key = %key.id, %error, "API key not moved to the ACTIVE version of the pepper");
            }
        }
    }

    /// Does the key count now, and for what?
    async fn judge(&self, known: &KnownKey) -> Result<Result<Admitted, Rejection>> {
        let key = &known.key;
        if let Some(rejection) = ended(known, self.clock.now()) {
            return Ok(Err(rejection));
        }
        let Some(owner) = self.directory.principal(key.owner).await? else {
            return Ok(Err(Rejection::OwnerGone));
        };
        if owner.state == PrincipalState::Suspended {
            return Ok(Err(Rejection::OwnerSuspended));
        }
        Ok(Ok(Admitted {
            principal: Arc::new(owner.limited_to(&key.scopes)),
            scopes: key.scopes.intersection(&owner.held()),
            key: Arc::clone(key),
        }))
    }
}

/// Why the key itself, or its client, does not count.
fn ended(known: &KnownKey, now: crate::model::Timestamp) -> Option<Rejection> {
    match known.key.state {
        ApiKeyState::Revoked => return Some(Rejection::Revoked),
        ApiKeyState::Expired => return Some(Rejection::Expired),
        ApiKeyState::Active => {}
    }
    if !known.key.is_valid(now) {
        return Some(Rejection::Expired);
    }
    (known.client == Some(ClientState::Suspended)).then_some(Rejection::ClientSuspended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ApiKeyHash, Kid, PrincipalId, TenantName, Timestamp};

    fn known(state: ApiKeyState, expires_at: i64, client: Option<ClientState>) -> KnownKey {
        let key = ApiKey {
            id: ApiKeyId::random(),
            tenant: TenantName::system(),
            owner: PrincipalId::random(),
            client: None,
            name: "test".to_owned(),
            scopes: Scopes::default(),
            state,
            hash: ApiKeyHash {
                value: vec![0; 32],
                scheme: "test".to_owned(),
                pepper: Kid::random(),
            },
            last_four: "abcd".to_owned(),
            created_at: Timestamp::default(),
            expires_at: Timestamp::from_seconds(expires_at),
            term: std::time::Duration::from_secs(10),
            last_used_at: None,
            ended_at: None,
            ended_by: None,
            end_reason: String::new(),
            replaces: None,
            replaced_by: None,
        };
        KnownKey {
            key: Arc::new(key),
            client,
        }
    }

    // R-OAUTH-4
    #[test]
    fn a_key_ends_by_its_state_by_its_time_and_with_its_client() {
        use ApiKeyState::{Active, Expired, Revoked};
        let now = Timestamp::from_seconds(10);
        let of = |state, expires_at, client| ended(&known(state, expires_at, client), now);
        assert_eq!(of(Active, 11, None), None);
        assert_eq!(of(Active, 11, Some(ClientState::Active)), None);
        // No job has looked yet.
        assert_eq!(of(Active, 10, None), Some(Rejection::Expired));
        assert_eq!(of(Expired, 11, None), Some(Rejection::Expired));
        assert_eq!(of(Revoked, 11, None), Some(Rejection::Revoked));
        let suspended = Some(ClientState::Suspended);
        assert_eq!(of(Active, 11, suspended), Some(Rejection::ClientSuspended));
    }
}
