//! Reports: sums of a time, told apart by whatever is asked for.

use super::{Usage, record::invalid};
use crate::{
    error::{Error, Result},
    gate::Permit,
    model::{
        Action, Entity, Timestamp,
        usage::{UsageKey, Used},
    },
    store::{UsageQuery, UsageRow},
};

impl Usage {
    /// Up to `limit` rows of a report after that row, and the sum of all.
    ///
    /// Errors: INVALID_FIELD when the end is before the begin.
    pub async fn report(
        &self,
        permit: &Permit,
        mut query: UsageQuery,
        after: (Timestamp, &UsageKey),
        limit: i64,
    ) -> Result<(Vec<UsageRow>, Used)> {
        // A permit for one's own account is one for one's own rows.
        let is_permitted = match &permit.resource().entity {
            Entity::Principal(id) => query.only.principal == id.to_string(),
            _ => permit
                .covers_tenant(Action::GetUsageReport, &query.tenant)
                .is_ok(),
        };
        if !is_permitted || permit.resource().tenant != query.tenant {
            return Err(Error::internal("a permit was used for something else"));
        }
        query.from = query.span.begin(query.from);
        if query.to <= query.from {
            return Err(invalid("end_time must be after begin_time"));
        }
        let rows = self.db.usage_report(&query, after, limit).await?;
        Ok((rows, self.db.usage_totals(&query).await?))
    }
}
