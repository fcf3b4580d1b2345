//! The daemon's own data-plane calls and failed authentications, counted by the gate and written here.

use super::{
    Usage,
    record::{Sums, add},
};
use crate::{
    error::Result,
    gate::{Counted, Gate, Whose},
    model::{
        TenantName, Timestamp,
        usage::{FAILED_LOGINS, OWN_CALLS, UsageKey, Used},
    },
};
use std::collections::BTreeMap;

impl Usage {
    /// Writes what the gate counted since the last time. It counts for the minute in which it is written. What cannot be
    /// written is kept for the next time.
    pub async fn flush(&self, gate: &Gate) -> Result<()> {
        let taken = gate.meter().take();
        if taken.is_empty() {
            return Ok(());
        }
        let written = self.write(taken.iter()).await;
        if written.is_ok() {
            taken.written();
        }
        written
    }

    async fn write<'a>(
        &self,
        counted: impl Iterator<Item = (&'a Whose, &'a Counted)>,
    ) -> Result<()> {
        let now = self.clock.now();
        let mut tenants: BTreeMap<TenantName, Sums> = BTreeMap::new();
        for (whose, counted) in counted {
            let (tenant, key) = row(whose, counted);
            add(
                tenants.entry(tenant).or_default(),
                now,
                &key,
                &used(counted, now),
            );
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

fn row(whose: &Whose, counted: &Counted) -> (TenantName, UsageKey) {
    let (provider, principal) = match whose {
        Whose::Principal(id) => (OWN_CALLS, id.to_string()),
        Whose::Stranger(source) => (FAILED_LOGINS, source.to_string()),
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
