//! What an intent left: the search of the reconciler.
//!
//! A key that was created to the end has the alias `alias/claviger/INTENT`, so one DescribeKey finds it. A creation that
//! was cut between CreateKey and CreateAlias has only its tag, and KMS finds no key by its tag. (The tagging API of AWS
//! does, minutes late, with a permission and a client of its own.) So without the alias every key of the account is
//! looked at, a page of ListKeys at a time, with the priority of a batch.
//!
//! What a key was made for never changes, so it is remembered. A search that runs into its deadline goes on where it
//! ended when it is asked again, and the next intent costs only the keys that are new: an account of any size is
//! searched once per process. Nothing is believed to be missing before every key has been looked at.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aws_sdk_kms::types::KeyMetadata;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use super::{AwsKmsBackend, Class, errors::Fault, lookup::is_gone};
use crate::{backends::BackendError, model::IntentId};

/// Keys that are looked at side by side.
const SIDE_BY_SIDE: usize = 16;
/// Keys that are remembered; AWS allows 100,000 per account and region. About 15 MB when full.
const REMEMBERED: usize = 100_000;
/// How the description of a key begins that we made, before its intent.
const OURS: &str = "Claviger ";

/// Which intent each key was made for, by ARN; None for keys of others.
#[derive(Default)]
pub(super) struct Surveyed(Mutex<HashMap<String, Option<IntentId>>>);

impl Surveyed {
    /// Can the key be one that `intent` left?
    fn may_be(&self, arn: &str, intent: IntentId) -> bool {
        self.lock()
            .get(arn)
            .is_none_or(|made| *made == Some(intent))
    }

    fn remember(&self, arn: &str, made_for: Option<IntentId>) {
        let mut known = self.lock();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(arn.to_owned(), made_for);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Option<IntentId>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the look at one key said.
enum Seen {
    /// It is what the intent left.
    Left(String),
    Other,
    /// Nobody lets us look.
    Denied(BackendError),
}

/// The description of a key that is made for `intent`, in at most 1000 characters.
pub(super) fn description(intent: IntentId, label: &str) -> String {
    let whole = format!("{OURS}{intent} {label}");
    whole.chars().take(1000).collect()
}

fn made_for(key: &KeyMetadata) -> Option<IntentId> {
    let (intent, _label) = key.description()?.strip_prefix(OURS)?.split_once(' ')?;
    intent.parse().ok()
}

impl AwsKmsBackend {
    pub(super) async fn left_by(
        &self,
        intent: IntentId,
        deadline: Instant,
    ) -> Result<Vec<String>, BackendError> {
        match self.describe(&alias(intent), deadline).await {
            Ok(key) if is_gone(&key) => return Ok(Vec::new()),
            Ok(key) => {
                if let Some(left) = self.if_left_by(intent, &key, deadline).await? {
                    return Ok(vec![left]);
                }
                // Somebody gave a name of ours to a key of theirs.
            }
            Err(BackendError::Missing(_)) => {}
            Err(error) => return Err(error),
        }
        self.search(intent, deadline).await
    }

    async fn search(
        &self,
        intent: IntentId,
        deadline: Instant,
    ) -> Result<Vec<String>, BackendError> {
        let (mut found, mut denied, mut is_any_seen) = (Vec::new(), None, false);
        let mut marker = None;
        loop {
            let (keys, next) = self.page(marker, deadline).await?;
            let (unknown, known): (Vec<_>, Vec<_>) = keys
                .into_iter()
                .partition(|arn| self.shared.surveyed.may_be(arn, intent));
            // They were looked at by a search before this one.
            is_any_seen |= !known.is_empty();
            let seen: Vec<_> = stream::iter(unknown)
                .map(|arn| async move { self.look(intent, &arn, deadline).await })
                .buffer_unordered(SIDE_BY_SIDE)
                .try_collect()
                .await?;
            for seen in seen {
                match seen {
                    Seen::Left(left) => found.push(left),
                    Seen::Other => is_any_seen = true,
                    Seen::Denied(error) => denied = Some(error),
                }
            }
            if next.is_none() {
                break;
            }
            marker = next;
        }
        match denied {
            // Keys of other owners in the same account do not concern us; but who may see none has seen nothing.
            Some(error) if found.is_empty() && !is_any_seen => Err(error),
            Some(_) | None => Ok(found),
        }
    }

    /// ARNs of one page of keys, and where the next page begins.
    async fn page(
        &self,
        marker: Option<String>,
        deadline: Instant,
    ) -> Result<(Vec<String>, Option<String>), BackendError> {
        let plan = self.plan("kms:ListKeys", Class::Read, deadline);
        let page = self.shared.calls.run(plan, |client| {
            let list = client.list_keys().limit(1000);
            list.set_marker(marker.clone()).send()
        });
        let page = page.await.map_err(Fault::into_error)?;
        let keys = page.keys().iter().filter_map(|key| key.key_arn.clone());
        let next = page.next_marker.clone().filter(|_| page.truncated);
        Ok((keys.collect(), next))
    }

    async fn look(
        &self,
        intent: IntentId,
        arn: &str,
        deadline: Instant,
    ) -> Result<Seen, BackendError> {
        let key = match self.describe(arn, deadline).await {
            Ok(key) => key,
            Err(error @ BackendError::Denied { .. }) => return Ok(Seen::Denied(error)),
            // Deleted for good between the list and the look.
            Err(BackendError::Missing(_)) => return Ok(Seen::Other),
            Err(error) => return Err(error),
        };
        self.shared.surveyed.remember(arn, made_for(&key));
        let left = self.if_left_by(intent, &key, deadline).await?;
        Ok(left.map_or(Seen::Other, Seen::Left))
    }

    /// The description costs no request, so it is read first; the tag decides.
    async fn if_left_by(
        &self,
        intent: IntentId,
        key: &KeyMetadata,
        deadline: Instant,
    ) -> Result<Option<String>, BackendError> {
        let arn = key.arn().unwrap_or_default();
        if made_for(key) != Some(intent)
            || is_gone(key)
            || self.tag(arn, deadline).await? != Some(intent)
        {
            return Ok(None);
        }
        let word = |text: Option<&str>| text.unwrap_or("unknown").to_owned();
        Ok(Some(format!(
            "{arn}, {}, {}",
            word(key.key_spec().map(|spec| spec.as_str())),
            word(key.key_state().map(|state| state.as_str()))
        )))
    }
}

/// The one name of the key that is made for an intent.
pub(super) fn alias(intent: IntentId) -> String {
    format!("alias/claviger/{intent}")
}
