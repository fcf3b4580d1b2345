//! The same token for the same question, for clients that ask for that: it saves signatures of the device.
//!
//! Per replica, bounded, and for the first half of a token's lifetime only. One signature at a time per question; who
//! waited finds the token. Whether a token may still be handed out is asked each time, by the caller of this module.

use std::{convert::Infallible, sync::Arc};

use quick_cache::sync::Cache;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::model::{ApiKeyId, Kid, PrincipalId, Secret, Timestamp};

/// Questions whose answer is kept at most.
const REMEMBERED: usize = 10_000;

/// Everything that two requests must have in common to get one token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    pub client_id: String,
    /// Of the client, so that no change of it is missed.
    pub revision: i64,
    /// A key that follows another gets tokens of its own, which end with nothing but their time.
    pub api_key: Option<ApiKeyId>,
    pub owner: PrincipalId,
    pub scopes: String,
    pub audience: String,
    pub bound_to: Option<String>,
}

/// A token that was issued.
pub struct Held {
    pub token: Secret<String>,
    pub kid: Kid,
    pub jti: String,
    pub expires_at: Timestamp,
    /// End of the first half of its lifetime.
    pub fresh_until: Timestamp,
}

/// The place of one token.
pub type Slot = OwnedMutexGuard<Option<Held>>;

/// The tokens of recent answers.
pub struct Recent {
    slots: Cache<Question, Arc<Mutex<Option<Held>>>>,
}

impl Recent {
    pub fn new() -> Self {
        Self {
            slots: Cache::new(REMEMBERED),
        }
    }

    /// The place of the answer to `question`, for one at a time.
    pub async fn slot(&self, question: &Question) -> Slot {
        let made = self
            .slots
            .get_or_insert_with(question, || Ok::<_, Infallible>(Arc::default()));
        let Ok(slot) = made;
        slot.lock_owned().await
    }

    /// Forgets all of them. One that is being issued at this moment is handed out once.
    pub fn forget(&self) {
        self.slots.clear();
    }
}

impl Held {
    /// Still in the first half of its lifetime?
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        now < self.fresh_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(scopes: &str) -> Question {
        Question {
            client_id: "client".into(),
            revision: 1,
            api_key: None,
            owner: PrincipalId::random(),
            scopes: scopes.into(),
            audience: "api".into(),
            bound_to: None,
        }
    }

    fn held() -> Held {
        Held {
            token: Secret::new("token".into()),
            kid: "kid".parse().expect("a kid"),
            jti: "jti".into(),
            expires_at: Timestamp::from_seconds(100),
            fresh_until: Timestamp::from_seconds(50),
        }
    }

    #[tokio::test]
    async fn one_question_has_one_place_until_it_is_forgotten() {
        let recent = Recent::new();
        let (one, other) = (question("a"), question("b"));
        *recent.slot(&one).await = Some(held());
        assert!(recent.slot(&one).await.is_some());
        assert!(recent.slot(&other).await.is_none());
        let changed = Question {
            revision: 2,
            ..one.clone()
        };
        assert!(recent.slot(&changed).await.is_none());
        recent.forget();
        assert!(recent.slot(&one).await.is_none());
    }

    #[test]
    fn a_token_is_fresh_for_the_first_half_of_its_life() {
        let held = held();
        assert!(held.is_fresh(Timestamp::from_seconds(49)));
        assert!(!held.is_fresh(Timestamp::from_seconds(50)));
    }
}
