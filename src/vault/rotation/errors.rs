//! Do more requests fail since the promotion than before? Clients say how theirs went (RecordUsage), minute by minute.

use std::time::Duration;

use crate::{
    error::Result,
    model::{
        Timestamp, ValueLabel,
        credential_rotation::Rate,
        usage::{Span, UsageKey, aligned},
    },
    store::{FullCredential, UsageQuery},
    vault::Vault,
};

const MINUTE: Duration = Duration::from_secs(60);
/// What is compared: so much before the promotion ...
const BEFORE: Duration = Duration::from_secs(60 * 60);
/// ... and the last of it since then ...
const AFTER: Duration = Duration::from_secs(15 * 60);
/// ... for so long. What goes wrong later is not the doing of the promotion: an outage would take every value back that is held.
const WATCHED: Duration = Duration::from_secs(60 * 60);

/// How requests went before a promotion and after it.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// In the hour before.
    pub before: Rate,
    /// In the last quarter of an hour, since the promotion at most.
    pub after: Rate,
}

impl Vault {
    /// The rates before and after the promotion of the CURRENT value, where that is to be taken back for them. The minute of
    /// the promotion itself is neither.
    pub(super) async fn risen_errors(&self, credential: &FullCredential) -> Result<Option<Rates>> {
        let current = credential.value(ValueLabel::Current);
        let Some(promoted) = current.and_then(|value| value.promoted_at) else {
            return Ok(None);
        };
        let (now, minute) = (self.clock.now(), aligned(promoted, MINUTE));
        if now > promoted.plus(WATCHED) {
            return Ok(None);
        }
        let since = minute.plus(MINUTE).max(aligned(now.minus(AFTER), MINUTE));
        let rates = Rates {
            before: self
                .rate(credential, (minute.minus(BEFORE), minute))
                .await?,
            after: self.rate(credential, (since, now.plus(MINUTE))).await?,
        };
        let broken = self.errors.is_broken(rates.before, rates.after);
        Ok(broken.then_some(rates))
    }

    async fn rate(
        &self,
        credential: &FullCredential,
        (from, to): (Timestamp, Timestamp),
    ) -> Result<Rate> {
        let query = UsageQuery {
            tenant: credential.head.key.tenant.clone(),
            span: Span::Minute,
            from,
            to,
            only: UsageKey {
                provider: String::new(),
                credential: credential.head.id.to_string(),
                principal: String::new(),
            },
            apart: [false; 3],
        };
        let used = self.db.usage_totals(&query).await?;
        Ok(Rate {
            requests: used.requests,
            errors: used.errors,
        })
    }
}
