//! Watching credentials: who holds one is told when another value is CURRENT, whichever replica changed it.
//!
//! The change feed says that a credential may have changed; what it is now is read from the database. So news that is
//! lost, or comes twice, does no harm, and a watcher begins with what is there.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::broadcast::{self, error::RecvError};

use super::Vault;
use crate::{
    error::{Error, Reason, Result},
    model::{CredentialId, CredentialValueId, Timestamp, ValueLabel},
    store::Db,
};

/// News that a slow watcher may be behind before it looks at everything again.
const BEHIND: usize = 1024;

/// Tells watchers which credentials to look at.
pub(super) struct News(broadcast::Sender<CredentialId>);

impl Default for News {
    fn default() -> Self {
        Self(broadcast::Sender::new(BEHIND))
    }
}

/// Which value of a credential is CURRENT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The credential.
    pub credential: CredentialId,
    /// The value, and since when; None when there is none, or no credential any more.
    pub current: Option<(CredentialValueId, Option<Timestamp>)>,
}

/// Somebody who watches.
pub struct Watch {
    db: Db,
    news: broadcast::Receiver<CredentialId>,
    /// What the watcher knows of each; None before it was told anything.
    known: BTreeMap<CredentialId, Option<Option<CredentialValueId>>>,
    due: VecDeque<CredentialId>,
}

impl Vault {
    /// A credential was changed, here or on another replica.
    pub fn changed(&self, id: CredentialId) {
        // Nobody watches: nobody needs to be told.
        let _ = self.news.0.send(id);
    }

    /// Watches these. Who may is decided for each of them before.
    pub fn watch(&self, ids: impl IntoIterator<Item = CredentialId>) -> Watch {
        // News before the first look, so that nothing falls in between.
        let news = self.news.0.subscribe();
        let known: BTreeMap<_, _> = ids.into_iter().map(|id| (id, None)).collect();
        Watch {
            db: self.db.clone(),
            news,
            due: known.keys().copied().collect(),
            known,
        }
    }
}

impl Watch {
    /// Whether the watcher knows all that there was to know at the beginning.
    pub fn has_told_all(&self) -> bool {
        self.known.values().all(Option::is_some)
    }

    /// The next that the watcher does not know yet; waits for it.
    ///
    /// Errors: DATABASE_UNAVAILABLE; watch anew then.
    pub async fn next(&mut self) -> Result<Seen> {
        loop {
            // Due until it was looked at: whoever waits for this may give up in the middle.
            while let Some(id) = self.due.front().copied() {
                let seen = self.look(id).await?;
                self.due.pop_front();
                if let Some(seen) = seen {
                    return Ok(seen);
                }
            }
            match self.news.recv().await {
                Ok(id) if self.known.contains_key(&id) => self.due.push_back(id),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => self.due.extend(self.known.keys().copied()),
                Err(RecvError::Closed) => {
                    return Err(Error::new(
                        Reason::DatabaseUnavailable,
                        "the daemon is going down; watch again",
                    ));
                }
            }
        }
    }

    async fn look(&mut self, id: CredentialId) -> Result<Option<Seen>> {
        let found = self.db.credential(id).await?;
        let value = found
            .as_ref()
            .and_then(|found| found.value(ValueLabel::Current));
        let is_now = value.map(|value| value.id);
        if self.known.insert(id, Some(is_now)) == Some(Some(is_now)) {
            return Ok(None);
        }
        Ok(Some(Seen {
            credential: id,
            current: value.map(|value| (value.id, value.promoted_at)),
        }))
    }
}
