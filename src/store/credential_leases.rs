//! Table `credential_leases`. (`leases` is who does the scheduled work.)

use super::{
    Db, Result, StoreError, Tx,
    engine::{execute, fetch_all, fetch_in, fetch_optional},
    parse,
};
use crate::model::{CredentialId, Lease, LeaseId, TenantName, Timestamp};

/// Every reader gets the same columns.
macro_rules! leases {
    ($which:literal) => {
        concat!(
            "SELECT id, credential_id, value_id, tenant, holder, created_at, expires_at, max_expires_at, ended_at, \
             ended_how FROM credential_leases ",
            $which
        )
    };
}

const INSERT: &str = "INSERT INTO credential_leases (id, credential_id, value_id, tenant, holder, created_at, expires_at, \
     max_expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
const UPDATE: &str =
    "UPDATE credential_leases SET expires_at = $2, ended_at = $3, ended_how = $4 WHERE id = $1";
const LOCK: &str = "UPDATE credential_leases SET expires_at = expires_at WHERE id = $1";
const END_OF_CREDENTIAL: &str = "UPDATE credential_leases SET ended_at = $2, ended_how = 'REVOKED' \
     WHERE credential_id = $1 AND ended_at IS NULL AND expires_at > $2";
const END_OF_TENANT: &str = "UPDATE credential_leases SET ended_at = $2, ended_how = 'REVOKED' \
     WHERE tenant = $1 AND ended_at IS NULL AND expires_at > $2";
const PRUNE: &str = "DELETE FROM credential_leases WHERE expires_at <= $1";
const BY_ID: &str = leases!("WHERE id = $1");
const OF_CREDENTIAL: &str = leases!(
    "WHERE credential_id = $1 AND id > $2 AND ended_at IS NULL AND expires_at > $3 ORDER BY id LIMIT $4"
);
const OF_TENANT: &str = leases!(
    "WHERE tenant = $1 AND id > $2 AND ended_at IS NULL AND expires_at > $3 ORDER BY id LIMIT $4"
);

/// Which leases to list.
#[derive(Clone, Debug)]
pub enum LeasesOf {
    /// Of one credential.
    Credential(CredentialId),
    /// Of every credential of a tenant.
    Tenant(TenantName),
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    credential_id: String,
    value_id: String,
    tenant: String,
    holder: String,
    created_at: i64,
    expires_at: i64,
    max_expires_at: i64,
    ended_at: Option<i64>,
    ended_how: Option<String>,
}

impl TryFrom<Row> for Lease {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self> {
        let ended = match (row.ended_at, row.ended_how) {
            (Some(at), Some(how)) => Some((Timestamp::from_micros(at), parse("ended_how", &how)?)),
            _ => None,
        };
        Ok(Self {
            id: parse("lease id", &row.id)?,
            credential: parse("credential id", &row.credential_id)?,
            value: parse("value id", &row.value_id)?,
            tenant: parse("tenant", &row.tenant)?,
            holder: parse("holder", &row.holder)?,
            created_at: Timestamp::from_micros(row.created_at),
            expires_at: Timestamp::from_micros(row.expires_at),
            max_expires_at: Timestamp::from_micros(row.max_expires_at),
            ended,
        })
    }
}

impl Tx {
    /// Ends what is held of a credential that goes.
    pub async fn end_leases_of_credential(
        &mut self,
        credential: CredentialId,
        now: Timestamp,
    ) -> Result<()> {
        let (credential, now) = (credential.to_string(), now.micros());
        execute!(self, END_OF_CREDENTIAL, credential, now).map(|_| ())
    }

    /// Ends what is held of everything that a tenant has.
    pub async fn end_leases_of_tenant(
        &mut self,
        tenant: &TenantName,
        now: Timestamp,
    ) -> Result<()> {
        execute!(self, END_OF_TENANT, tenant.as_str(), now.micros()).map(|_| ())
    }

    /// Adds a lease.
    pub async fn insert_lease(&mut self, lease: &Lease) -> Result<()> {
        execute!(
            self,
            INSERT,
            lease.id.to_string(),
            lease.credential.to_string(),
            lease.value.to_string(),
            lease.tenant.as_str(),
            lease.holder.to_string(),
            lease.created_at.micros(),
            lease.expires_at.micros(),
            lease.max_expires_at.micros(),
        )
        .map(|_| ())
    }

    /// The lease as it is now; nobody changes it before this transaction ends.
    pub async fn lock_lease(&mut self, id: LeaseId) -> Result<Option<Lease>> {
        execute!(self, LOCK, id.to_string())?;
        let row = fetch_in!(self, Row, BY_ID, id.to_string())?;
        row.map(Lease::try_from).transpose()
    }

    /// Stores what may change of a lease that is locked.
    pub async fn update_lease(&mut self, lease: &Lease) -> Result<()> {
        execute!(
            self,
            UPDATE,
            lease.id.to_string(),
            lease.expires_at.micros(),
            lease.ended.map(|(at, _)| at.micros()),
            lease.ended.map(|(_, how)| how.as_str()),
        )
        .map(|_| ())
    }

    /// Forgets leases whose time was over by `before`; how many.
    pub async fn prune_leases(&mut self, before: Timestamp) -> Result<u64> {
        execute!(self, PRUNE, before.micros())
    }
}

impl Db {
    /// One lease.
    pub async fn lease(&self, id: LeaseId) -> Result<Option<Lease>> {
        let row = fetch_optional!(self, Row, BY_ID, id.to_string())?;
        row.map(Lease::try_from).transpose()
    }

    /// Up to `limit` leases after `after` that are held at `now`, oldest first.
    pub async fn leases(
        &self,
        of: &LeasesOf,
        after: &str,
        now: Timestamp,
        limit: i64,
    ) -> Result<Vec<Lease>> {
        let (sql, whose) = match of {
            LeasesOf::Credential(id) => (OF_CREDENTIAL, id.to_string()),
            LeasesOf::Tenant(tenant) => (OF_TENANT, tenant.to_string()),
        };
        let rows = fetch_all!(self, Row, sql, &whose, after, now.micros(), limit)?;
        rows.into_iter().map(Lease::try_from).collect()
    }
}
