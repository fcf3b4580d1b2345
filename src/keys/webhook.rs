//! Webhook deliveries: authentic, recent, and new. In this order, so that nobody without the secret reaches the table of
//! what was seen.
//!
//! Two marks are left of a delivery, in one transaction: its event id, and a digest of what its MAC is computed over. The
//! digest and not the MAC, because a sender who rotates sends several MACs of one delivery, each of which would pass for
//! another delivery. Under TIMESTAMP_BODY the event id is not covered by the MAC: whoever replays can name any, so the
//! digest is what holds, and a caller takes the id from the signed body.
//!
//! VALID is said once. A consumer that crashed after it and before its own commit hears REPLAYED when the sender tries
//! again: it looks into its own records, and processes the event if they do not have it (docs/operations.md).

use std::{ops::RangeInclusive, time::Duration};

use aws_lc_rs::digest::{Context, SHA256};

use super::{KeySnapshot, Keys};
use crate::{
    error::{Error, Result},
    gate::Permit,
    model::{Action, KeyId, Kid, Purpose, Timestamp},
    store::WebhookMark,
};

/// How far a delivery's timestamp may be from now, at the least and at the most.
pub const TOLERANCES: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(60 * 60);
/// The tolerance when the caller names none.
pub const DEFAULT_TOLERANCE: Duration = Duration::from_secs(5 * 60);
/// How long after its timestamp a delivery is remembered: as long as the largest tolerance would let it pass, whatever the
/// tolerance of the first call, and once more for clocks that differ.
const DELIVERY_KEPT: Duration = Duration::from_secs(2 * 60 * 60);
/// How long after its timestamp an event id is remembered. A sender that gets no answer signs the event anew, for days.
const EVENT_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What a webhook's MAC is computed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Timestamp, ".", body.
    TimestampBody,
    /// Event id, ".", timestamp, ".", body (Standard Webhooks).
    IdTimestampBody,
}

/// One delivery, as it came.
pub struct Delivery<'a> {
    /// How it is signed.
    pub scheme: Scheme,
    /// Unix seconds, at least 1.
    pub timestamp: i64,
    /// The sender's id of the event; without a "." where that separates it from the timestamp.
    pub event_id: &'a str,
    /// The body, byte for byte.
    pub body: &'a [u8],
    /// Its MACs; one must verify.
    pub macs: &'a [&'a [u8]],
    /// How far the timestamp may be from now, in either direction, inclusive.
    pub tolerance: Duration,
}

/// What is to be said of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Authentic, recent and new: this call, and no other, has taken it.
    Valid(Kid),
    /// No MAC verifies.
    MacInvalid,
    /// Authentic, and too old or too new.
    OutsideTolerance(Kid),
    /// Authentic and recent; its event or the delivery was seen at this time.
    Replayed(Kid, Timestamp),
}

impl Delivery<'_> {
    /// What comes before the body in what is signed.
    fn head(&self) -> String {
        match self.scheme {
            Scheme::TimestampBody => format!("{}.", self.timestamp),
            Scheme::IdTimestampBody => format!("{}.{}.", self.event_id, self.timestamp),
        }
    }

    /// Is the timestamp within the tolerance?
    fn is_recent(&self, now: Timestamp) -> bool {
        let at = Timestamp::from_seconds(self.timestamp);
        now.since(at) <= self.tolerance && at.since(now) <= self.tolerance
    }

    fn marks(&self, key: KeyId, head: &str) -> [WebhookMark; 2] {
        let mut digest = Context::new(&SHA256);
        digest.update(key.as_bytes());
        digest.update(head.as_bytes());
        digest.update(self.body);
        let digest = digest.finish();
        let digest = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
        let at = Timestamp::from_seconds(self.timestamp);
        [
            WebhookMark {
                mark: format!("id:{}", self.event_id),
                keep_until: at.plus(EVENT_KEPT),
            },
            WebhookMark {
                mark: format!("sha256:{}", digest.collect::<String>()),
                keep_until: at.plus(DELIVERY_KEPT),
            },
        ]
    }
}

impl Keys {
    /// Judges a delivery by the versions of a MAC key that may verify, and takes it if it is VALID.
    ///
    /// Errors: KEY_PURPOSE_MISMATCH, DATABASE_UNAVAILABLE, and the KEK backend's for a cold data key; an error never
    /// means that the delivery is valid.
    pub async fn verify_webhook(
        &self,
        permit: &Permit,
        key: &KeySnapshot,
        delivery: &Delivery<'_>,
    ) -> Result<Verdict> {
        permit.covers_key(Action::VerifyWebhook, key.key.id)?;
        key.expect(Purpose::Mac, "VerifyWebhook")?;
        self.expect_unreserved(key)?;
        let head = delivery.head();
        let parts = [head.as_bytes(), delivery.body];
        let verified = self.authentic(permit, key, None, &parts, delivery.macs);
        let Some(kid) = verified.await? else {
            return Ok(Verdict::MacInvalid);
        };
        let now = self.clock.now();
        if !delivery.is_recent(now) {
            return Ok(Verdict::OutsideTolerance(kid));
        }
        let marks = delivery.marks(key.key.id, &head);
        Ok(match self.take(key.key.id, &marks, now).await? {
            None => Verdict::Valid(kid),
            Some(first_seen) => Verdict::Replayed(kid, first_seen),
        })
    }

    /// Leaves all the marks, or none when one is there: then it answers since when. The database lets one of several
    /// calls leave them, whichever daemon they came to.
    async fn take(
        &self,
        key: KeyId,
        marks: &[WebhookMark; 2],
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let mut tx = self.db.begin().await?;
        let mut new = true;
        for mark in marks {
            new &= tx.mark_webhook(key, mark, now).await?;
        }
        if new {
            tx.commit().await?;
            return Ok(None);
        }
        let [id, delivery] = marks;
        let seen = tx.webhook_seen(key, &id.mark, &delivery.mark).await?;
        seen.map(Some)
            .ok_or_else(|| Error::internal("a mark of a webhook vanished"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn delivery(timestamp: i64) -> Delivery<'static> {
        Delivery {
            scheme: Scheme::TimestampBody,
            timestamp,
            event_id: "evt_1",
            body: b"{}",
            macs: &[],
            tolerance: Duration::from_secs(300),
        }
    }

    #[test]
    fn the_bound_of_the_tolerance_is_inside_it() {
        let at = |micros| Timestamp::from_micros(micros);
        let sent = delivery(1_000);
        for (now, recent) in [
            (1_000_000_000, true),
            (1_300_000_000, true),
            (1_300_000_001, false),
            (700_000_000, true),
            (699_999_999, false),
        ] {
            assert_eq!(sent.is_recent(at(now)), recent, "{now}");
        }
        for timestamp in [i64::MIN, 0, i64::MAX] {
            assert!(!delivery(timestamp).is_recent(at(1_700_000_000_000_000)));
        }
    }

    #[test]
    fn a_delivery_is_remembered_for_as_long_as_any_tolerance_lets_it_pass() {
        assert!(DELIVERY_KEPT > *TOLERANCES.end() && EVENT_KEPT > DELIVERY_KEPT);
    }

    #[test]
    fn the_same_bytes_leave_the_same_mark_however_they_are_read() {
        let key = KeyId::random();
        let one = Delivery {
            scheme: Scheme::IdTimestampBody,
            event_id: "5",
            ..delivery(7)
        };
        let other = Delivery {
            body: b"7.{}",
            ..delivery(5)
        };
        let [id, bytes] = one.marks(key, &one.head());
        let [other_id, other_bytes] = other.marks(key, &other.head());
        assert_eq!(bytes.mark, other_bytes.mark);
        assert_ne!(id.mark, other_id.mark);
        let [_, elsewhere] = one.marks(KeyId::random(), &one.head());
        assert_ne!(bytes.mark, elsewhere.mark);
    }
}
