//! After a rotation of a tenant's key: values move to the ACTIVE version, batch by batch. Which are left is in the rows.

use serde_json::json;

use super::{OutdatedValues, Vault, put::hold};
use crate::{
    error::{Error, Reason, Result},
    gate::{AdminPermit, Recorded},
    model::{Entity, Purpose, Resource},
    store::Term,
};

/// Values in one transaction.
const BATCH: i64 = 200;

impl Vault {
    /// Up to `limit` versions of keys that do not seal any more, and have values under them.
    pub async fn outdated(&self, limit: i64) -> Result<Vec<OutdatedValues>> {
        Ok(self.db.outdated_credential_values(limit).await?)
    }

    /// What the gate decides about.
    pub fn resource_of(outdated: &OutdatedValues) -> Resource {
        Resource {
            tenant: outdated.tenant.clone(),
            entity: Entity::Key {
                id: outdated.key,
                purpose: Purpose::Encryption,
            },
        }
    }

    /// Moves a batch of values under a version to the ACTIVE one of the tenant's key; how many were moved. A value that
    /// does not open keeps no other from moving, and stays.
    ///
    /// Errors: CREDENTIAL_UNREADABLE when no value of the version can be moved; CREDENTIAL_KEY_UNAVAILABLE,
    /// NO_USABLE_VERSION, CONFLICT, LEASE_LOST.
    pub async fn rewrap(
        &self,
        permit: AdminPermit,
        term: Term,
        outdated: OutdatedValues,
    ) -> Result<Recorded<usize>> {
        let with = self.tenant_key(&outdated.tenant).await?;
        let (mut moved, mut after, mut stuck) = (Vec::new(), String::new(), 0_usize);
        while moved.is_empty() {
            let page = self.db.values_under(&outdated.kid, &after, BATCH).await?;
            let Some((_, last)) = page.last() else {
                return Err(nothing_moved(stuck));
            };
            after = last.id.to_string();
            for (head, value) in &page {
                match self.reseal(&with, head, value).await {
                    Ok(resealed) => moved.push(resealed),
                    Err(error) if error.reason() == Reason::CredentialUnreadable => stuck += 1,
                    Err(error) => return Err(error),
                }
            }
        }
        let mut mutation = permit.begin_in(&term).await?;
        if let Some(one) = moved.first() {
            hold(&mut mutation, one).await?;
        }
        // The credentials before their values, as everybody does, and in one order.
        moved.sort_by_key(|value| value.credential);
        let mut count = 0;
        for value in &moved {
            let tx = mutation.tx();
            tx.hold_credential(value.credential).await?;
            count += usize::from(tx.reseal_credential_value(value, &outdated.kid).await?);
        }
        let details = json!({
            "key_id": outdated.key.to_string(),
            "from": outdated.kid.as_str(),
            "moved": count,
            "unreadable": stuck,
        });
        mutation.record(count, details).await
    }
}

fn nothing_moved(stuck: usize) -> Error {
    match stuck {
        // Somebody else moved or deleted them meanwhile.
        0 => Error::new(Reason::Conflict, "nothing is left to move"),
        stuck => Error::new(
            Reason::CredentialUnreadable,
            format!("{stuck} values do not open, so they cannot be moved; the log names each"),
        ),
    }
}
