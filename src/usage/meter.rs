//! The daemon's own data-plane calls and failed authentications, counted by the gate and written here.

use super::{
    Usage,
    record::{Sums, add_spans},
};
use crate::{
    error::Result,
    gate::{Counted, Gate, Whose},
    model::{
        TenantName, Timestamp,
        usage::{FAILED_LOGINS, OTHERS, OWN_CALLS, Span, UsageKey, Used},
    },
};
use std::collections::BTreeMap;

/// Principals and addresses whose counts are written in one transaction.
const PIECE: usize = 200;

impl Usage {
    /// Writes what the gate counted since the last time. It counts for the minute in which it is written. What cannot be
    /// written is kept for the next time.
    pub async fn flush(&self, gate: &Gate) -> Result<()> {
        let mut taken = gate.meter().take();
        while !taken.next(PIECE).is_empty() {
            self.write(taken.next(PIECE)).await?;
            taken.written(PIECE);
        }
        Ok(())
    }

    async fn write(&self, counted: &[(Whose, Counted)]) -> Result<()> {
        let now = self.clock.now();
        let mut tenants: BTreeMap<TenantName, Sums> = BTreeMap::new();
        for (whose, counted) in counted {
            let (tenant, key) = row(whose, counted);
            let sums = tenants.entry(tenant).or_default();
            add_spans(sums, spans(whose), now, &key, &used(counted, now));
        }
        let mut tx = self.db.begin().await?;
        for (tenant, sums) in &tenants {
            for ((span, begins_at, key), used) in sums {
                tx.add_usage(tenant, (*span, *begins_at), key, used).await?;
            }
        }
        Ok(tx.commit().await?)
    }
}

/// Anybody can have strangers counted, so what is kept of them is kept for a short time only.
const fn spans(whose: &Whose) -> &'static [Span] {
    match whose {
        Whose::Principal(_) => &Span::ALL,
        Whose::Stranger(_) | Whose::Crowd => &[Span::Minute],
    }
}

fn row(whose: &Whose, counted: &Counted) -> (TenantName, UsageKey) {
    let (provider, principal) = match whose {
        Whose::Principal(id) => (OWN_CALLS, id.to_string()),
        Whose::Stranger(source) => (FAILED_LOGINS, source.to_string()),
        Whose::Crowd => (FAILED_LOGINS, OTHERS.to_owned()),
    };
    let key = UsageKey {
        provider: provider.to_owned(),
        credential: String::new(),
        principal,
    };
    (counted.tenant.clone(), key)
}

const fn used(counted: &Counted, now: Timestamp) -> Used {
    Used {
        requests: counted.calls,
        errors: counted.failures,
        tokens_in: 0,
        tokens_out: 0,
        cost: crate::model::usage::Cost::ZERO,
        last: Some(now),
    }
}
