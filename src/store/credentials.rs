//! Tables `credentials` and `user_broker_credentials`.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Db, Result, StoreError, Tx,
    engine::{execute, fetch_all, fetch_all_in, fetch_in, fetch_optional},
    parse, unsigned,
};
use crate::model::{
    CredentialEnvironment, CredentialId, CredentialKey, CredentialValue, CredentialValueId, KeyId,
    Kid, PrincipalId, Probed, ProviderName, StoredCredential, TenantName, Timestamp, ValueLabel,
    time::micros,
};

/// Every reader of heads gets the same columns.
macro_rules! heads {
    ($which:literal) => {
        concat!(
            "SELECT id, tenant, owner, provider, environment, name, organisation, rotation_period, rotation_due_at, \
             rotation_driver, format_ok, probe_result, probe_detail, probed_at, revision, created_at, updated_at \
             FROM credentials ",
            $which
        )
    };
}
/// And of values.
macro_rules! values {
    ($which:literal) => {
        concat!(
            "SELECT v.id, v.credential_id, v.label, v.kid, v.ciphertext, v.last_four, v.created_at, v.promoted_at, \
             v.hold_until FROM user_broker_credentials v ",
            $which
        )
    };
}

const INSERT: &str = "INSERT INTO credentials (id, tenant, owner, provider, environment, name, organisation, \
     rotation_period, rotation_due_at, rotation_driver, format_ok, revision, created_at, updated_at) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)";
const UPDATE: &str = "UPDATE credentials SET organisation = $3, rotation_period = $4, rotation_due_at = $5, \
     rotation_driver = $6, format_ok = $7, probe_result = $8, probe_detail = $9, probed_at = $10, updated_at = $11, \
     revision = revision + 1 WHERE id = $1 AND revision = $2";
const DELETE: &str = "DELETE FROM credentials WHERE id = $1 AND revision = $2";
const LOCK: &str = "UPDATE credentials SET revision = revision WHERE id = $1";
const BY_ID: &str = heads!("WHERE id = $1");
const BY_KEY: &str =
    heads!("WHERE tenant = $1 AND owner = $2 AND provider = $3 AND environment = $4 AND name = $5");
const OF_OWNER: &str = heads!(
    "WHERE owner = $1 AND id > $2 AND ($3 = '' OR provider = $3) AND ($4 = '' OR environment = $4) ORDER BY id LIMIT $5"
);
const OF_TENANT: &str = heads!(
    "WHERE tenant = $1 AND id > $2 AND ($3 = '' OR provider = $3) AND ($4 = '' OR environment = $4) ORDER BY id LIMIT $5"
);
const DUE_OF_OWNER: &str =
    heads!("WHERE owner = $1 AND id > $2 AND rotation_due_at <= $3 ORDER BY id LIMIT $4");
const DUE_OF_TENANT: &str =
    heads!("WHERE tenant = $1 AND id > $2 AND rotation_due_at <= $3 ORDER BY id LIMIT $4");
const UNTOLD: &str = heads!(
    "WHERE rotation_due_at > $2 AND rotation_due_at <= $3 \
     AND NOT EXISTS (SELECT 1 FROM tenants t WHERE t.name = credentials.tenant AND t.erased_at IS NOT NULL) \
     AND NOT EXISTS (SELECT 1 FROM alerts a \
     WHERE a.window_key = $1 || '/' || credentials.id || '/' || CAST(rotation_due_at AS TEXT)) \
     ORDER BY rotation_due_at, id LIMIT $4"
);
// $3: a `|provider/driver/tenant|` for each that may be rotated so. One of each tenant, then a second one of each; what
// was never tried comes first.
const DUE_FOR_DRIVERS: &str = heads!(
    "JOIN (SELECT id AS due, ROW_NUMBER() OVER (PARTITION BY tenant ORDER BY rotation_next_try, rotation_due_at, id) AS turn \
     FROM credentials c WHERE rotation_driver <> 'manual' AND rotation_due_at <= $1 AND rotation_next_try <= $1 \
     AND REPLACE($3, '|' || provider || '/' || rotation_driver || '/' || tenant || '|', '') <> $3 \
     AND NOT EXISTS (SELECT 1 FROM tenants t WHERE t.name = c.tenant AND t.erased_at IS NOT NULL) \
     AND NOT EXISTS (SELECT 1 FROM credential_rotations r WHERE r.credential_id = c.id \
     AND (r.state IN ('MINTING', 'STAGED', 'HOLDING') OR r.created_at > $2))) AS fair ON fair.due = id \
     ORDER BY fair.turn, rotation_next_try, rotation_due_at, id LIMIT $4"
);
const TRIES: &str = "SELECT rotation_tries FROM credentials WHERE id = $1";
const CLAIM: &str = "UPDATE credentials SET rotation_next_try = $2, rotation_tries = rotation_tries + 1 WHERE id = $1";
const BEGUN: &str =
    "UPDATE credentials SET rotation_next_try = 0, rotation_tries = 0 WHERE id = $1";
/// Counts of the credentials that the condition names.
macro_rules! report {
    ($which:literal) => {
        concat!(
            "SELECT provider, environment, CAST(COUNT(*) AS BIGINT), \
             CAST(SUM(CASE WHEN format_ok THEN 1 ELSE 0 END) AS BIGINT), \
             CAST(SUM(CASE WHEN probe_result = 'VALID' THEN 1 ELSE 0 END) AS BIGINT), \
             CAST(SUM(CASE WHEN probe_result = 'INVALID' THEN 1 ELSE 0 END) AS BIGINT), MAX(probed_at) \
             FROM credentials ",
            $which,
            " GROUP BY provider, environment ORDER BY provider, environment"
        )
    };
}
const REPORT_OF_ALL: &str = report!("");
const REPORT_OF_TENANT: &str = report!("WHERE tenant = $1");
const REPORT_OF_OWNER: &str = report!("WHERE owner = $1");

const INSERT_VALUE: &str = "INSERT INTO user_broker_credentials (id, credential_id, tenant, owner, provider, environment, \
     label, kid, ciphertext, last_four, created_at, promoted_at, hold_until) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";
const RELABEL: &str = "UPDATE user_broker_credentials SET label = $3, promoted_at = $4, hold_until = $5 \
     WHERE id = $1 AND label = $2";
const RESEAL: &str =
    "UPDATE user_broker_credentials SET kid = $3, ciphertext = $4 WHERE id = $1 AND kid = $2";
const DELETE_VALUE: &str =
    "DELETE FROM user_broker_credentials WHERE credential_id = $1 AND label = $2";
const DELETE_VALUES: &str = "DELETE FROM user_broker_credentials WHERE credential_id = $1";
const VALUES_OF: &str = values!("WHERE v.credential_id = $1 ORDER BY v.id");
/// Listings show no secret, so they read none: only what is said of values, and only of the credentials of the page.
macro_rules! listed {
    ($which:literal) => {
        concat!(
            "SELECT v.id, v.credential_id, v.label, v.kid, v.last_four, v.created_at, v.promoted_at, v.hold_until \
             FROM user_broker_credentials v WHERE v.credential_id IN (SELECT id FROM credentials WHERE ",
            $which,
            ") ORDER BY v.id"
        )
    };
}
const LISTED_OF_OWNER: &str = listed!(
    "owner = $1 AND id > $2 AND id <= $5 AND ($3 = '' OR provider = $3) AND ($4 = '' OR environment = $4)"
);
const LISTED_OF_TENANT: &str = listed!(
    "tenant = $1 AND id > $2 AND id <= $5 AND ($3 = '' OR provider = $3) AND ($4 = '' OR environment = $4)"
);
const LISTED_DUE_OF_OWNER: &str =
    listed!("owner = $1 AND id > $2 AND id <= $4 AND rotation_due_at <= $3");
const LISTED_DUE_OF_TENANT: &str =
    listed!("tenant = $1 AND id > $2 AND id <= $4 AND rotation_due_at <= $3");
const UNDER: &str = "SELECT CAST(COUNT(*) AS BIGINT) FROM user_broker_credentials WHERE kid = $1";
// What is under a destroyed version cannot be moved any more. Asked of the versions, of which there are few.
const OUTDATED: &str = "SELECT kv.kid, k.id, k.tenant FROM key_versions kv JOIN keys k ON k.id = kv.key_id \
     WHERE kv.state NOT IN ('ACTIVE', 'DESTROYED') \
     AND EXISTS (SELECT 1 FROM user_broker_credentials v WHERE v.kid = kv.kid) ORDER BY kv.kid LIMIT $1";
const VALUES_UNDER: &str = values!("WHERE v.kid = $1 AND v.id > $2 ORDER BY v.id LIMIT $3");

/// A credential with its values, CURRENT first.
#[derive(Clone, Debug)]
pub struct FullCredential {
    /// The credential.
    pub head: StoredCredential,
    /// Its values.
    pub values: Vec<CredentialValue>,
}

/// A credential as listings show it.
#[derive(Clone, Debug)]
pub struct ListedCredential {
    /// The credential.
    pub head: StoredCredential,
    /// What is known of its values, CURRENT first.
    pub values: Vec<ListedValue>,
}

/// A value without its secret, sealed or not.
#[derive(Clone, Debug)]
pub struct ListedValue {
    /// Its id.
    pub id: CredentialValueId,
    /// What it is to its credential.
    pub label: ValueLabel,
    /// Version of the tenant's key that sealed it.
    pub kid: Kid,
    /// Its last characters, for people.
    pub last_four: String,
    /// When it came in.
    pub created_at: Timestamp,
    /// When it became CURRENT.
    pub promoted_at: Option<Timestamp>,
    /// How long a PREVIOUS value is held.
    pub hold_until: Option<Timestamp>,
}

/// Which credentials to list.
#[derive(Clone, Debug)]
pub struct CredentialFilter {
    /// Whose.
    pub of: CredentialsOf,
    /// Only of this provider.
    pub provider: Option<ProviderName>,
    /// Only for this environment.
    pub environment: Option<CredentialEnvironment>,
}

/// Whose credentials.
#[derive(Clone, Debug)]
pub enum CredentialsOf {
    /// Of one principal.
    Owner(PrincipalId),
    /// Of everybody in a tenant.
    Tenant(TenantName),
}

/// What there is for one provider in one environment.
#[derive(Clone, Debug)]
pub struct ProviderCounts {
    /// The provider.
    pub provider: ProviderName,
    /// The environment.
    pub environment: CredentialEnvironment,
    /// Credentials.
    pub configured: i64,
    /// With a value that looks right.
    pub format_ok: i64,
    /// Taken by the provider at the last probe.
    pub valid: i64,
    /// Refused by it.
    pub invalid: i64,
    /// When one of them was last probed.
    pub last_probe: Option<Timestamp>,
}

/// Values that are sealed by a version that does not seal any more.
#[derive(Clone, Debug)]
pub struct OutdatedValues {
    /// The version.
    pub kid: Kid,
    /// Its key.
    pub key: KeyId,
    /// The key's tenant.
    pub tenant: TenantName,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    tenant: String,
    owner: String,
    provider: String,
    environment: String,
    name: String,
    organisation: String,
    rotation_period: i64,
    rotation_due_at: i64,
    rotation_driver: String,
    format_ok: bool,
    probe_result: Option<String>,
    probe_detail: Option<String>,
    probed_at: Option<i64>,
    revision: i64,
    created_at: i64,
    updated_at: i64,
}

impl TryFrom<Row> for StoredCredential {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self> {
        let probe = match (row.probe_result, row.probed_at) {
            (Some(result), Some(at)) => Some(Probed {
                result: parse("probe_result", &result)?,
                detail: row.probe_detail.unwrap_or_default(),
                at: Timestamp::from_micros(at),
            }),
            _ => None,
        };
        let period = unsigned("rotation_period", row.rotation_period)?;
        Ok(Self {
            id: parse("credential id", &row.id)?,
            key: CredentialKey {
                tenant: parse("tenant", &row.tenant)?,
                owner: parse("owner", &row.owner)?,
                provider: parse("provider", &row.provider)?,
                environment: parse("environment", &row.environment)?,
                name: row.name,
            },
            organisation: row.organisation,
            rotation_period: Duration::from_micros(period),
            rotation_due_at: Timestamp::from_micros(row.rotation_due_at),
            rotation_driver: parse("rotation_driver", &row.rotation_driver)?,
            format_ok: row.format_ok,
            probe,
            revision: row.revision,
            created_at: Timestamp::from_micros(row.created_at),
            updated_at: Timestamp::from_micros(row.updated_at),
        })
    }
}

#[derive(sqlx::FromRow)]
struct ValueRow {
    id: String,
    credential_id: String,
    label: String,
    kid: String,
    ciphertext: Vec<u8>,
    last_four: String,
    created_at: i64,
    promoted_at: Option<i64>,
    hold_until: Option<i64>,
}

impl TryFrom<ValueRow> for CredentialValue {
    type Error = StoreError;

    fn try_from(row: ValueRow) -> Result<Self> {
        Ok(Self {
            id: parse("value id", &row.id)?,
            credential: parse("credential id", &row.credential_id)?,
            label: parse("label", &row.label)?,
            kid: parse("kid", &row.kid)?,
            ciphertext: row.ciphertext,
            last_four: row.last_four,
            created_at: Timestamp::from_micros(row.created_at),
            promoted_at: row.promoted_at.map(Timestamp::from_micros),
            hold_until: row.hold_until.map(Timestamp::from_micros),
        })
    }
}

#[derive(sqlx::FromRow)]
struct ListedRow {
    id: String,
    credential_id: String,
    label: String,
    kid: String,
    last_four: String,
    created_at: i64,
    promoted_at: Option<i64>,
    hold_until: Option<i64>,
}

impl TryFrom<ListedRow> for ListedValue {
    type Error = StoreError;

    fn try_from(row: ListedRow) -> Result<Self> {
        Ok(Self {
            id: parse("value id", &row.id)?,
            label: parse("label", &row.label)?,
            kid: parse("kid", &row.kid)?,
            last_four: row.last_four,
            created_at: Timestamp::from_micros(row.created_at),
            promoted_at: row.promoted_at.map(Timestamp::from_micros),
            hold_until: row.hold_until.map(Timestamp::from_micros),
        })
    }
}

type ReportRow = (String, String, i64, i64, i64, i64, Option<i64>);

impl Tx {
    /// Adds a credential without values. Errors: `Exists`, `TenantErased`.
    pub async fn insert_credential(&mut self, c: &StoredCredential) -> Result<()> {
        self.hold_tenant(&c.key.tenant).await?;
        execute!(
            self,
            INSERT,
            c.id.to_string(),
            c.key.tenant.as_str(),
            c.key.owner.to_string(),
            c.key.provider.as_str(),
            c.key.environment.as_str(),
            &c.key.name,
            &c.organisation,
            micros(c.rotation_period),
            c.rotation_due_at.micros(),
            c.rotation_driver.as_str(),
            c.format_ok,
            c.revision,
            c.created_at.micros(),
            c.updated_at.micros(),
        )
        .map(|_| ())
    }

    /// Stores what may change of a credential that was read at `c.revision`. False when somebody else changed it meanwhile.
    pub async fn update_credential(&mut self, c: &StoredCredential) -> Result<bool> {
        let probe = c.probe.as_ref();
        let rows = execute!(
            self,
            UPDATE,
            c.id.to_string(),
            c.revision,
            &c.organisation,
            micros(c.rotation_period),
            c.rotation_due_at.micros(),
            c.rotation_driver.as_str(),
            c.format_ok,
            probe.map(|p| p.result.as_str()),
            probe.map(|p| p.detail.as_str()),
            probe.map(|p| p.at.micros()),
            c.updated_at.micros(),
        )?;
        Ok(rows == 1)
    }

    /// Deletes a credential that was read at `c.revision`, with all its values. False when somebody else changed it
    /// meanwhile.
    pub async fn delete_credential(&mut self, c: &StoredCredential) -> Result<bool> {
        let id = c.id.to_string();
        // The head first: it is what every change locks first.
        execute!(self, LOCK, &id)?;
        execute!(self, DELETE_VALUES, &id)?;
        Ok(execute!(self, DELETE, &id, c.revision)? == 1)
    }

    /// Nobody changes the credential or its values before this transaction ends.
    pub async fn hold_credential(&mut self, id: CredentialId) -> Result<()> {
        execute!(self, LOCK, id.to_string()).map(|_| ())
    }

    /// The credential as it is now, with its values; nobody changes it before this transaction ends.
    pub async fn lock_credential(&mut self, id: CredentialId) -> Result<Option<FullCredential>> {
        execute!(self, LOCK, id.to_string())?;
        let Some(row) = fetch_in!(self, Row, BY_ID, id.to_string())? else {
            return Ok(None);
        };
        let rows = fetch_all_in!(self, ValueRow, VALUES_OF, id.to_string())?;
        full(row, rows).map(Some)
    }

    /// Adds a value. Errors: `Exists` when the credential has one with this label.
    pub async fn insert_credential_value(
        &mut self,
        key: &CredentialKey,
        v: &CredentialValue,
    ) -> Result<()> {
        execute!(
            self,
            INSERT_VALUE,
            v.id.to_string(),
            v.credential.to_string(),
            key.tenant.as_str(),
            key.owner.to_string(),
            key.provider.as_str(),
            key.environment.as_str(),
            v.label.as_str(),
            v.kid.as_str(),
            &v.ciphertext,
            &v.last_four,
            v.created_at.micros(),
            v.promoted_at.map(Timestamp::micros),
            v.hold_until.map(Timestamp::micros),
        )
        .map(|_| ())
    }

    /// Gives a value that had label `before` the label and times that it says now; false when it has another by now.
    pub async fn relabel_credential_value(
        &mut self,
        v: &CredentialValue,
        before: ValueLabel,
    ) -> Result<bool> {
        let rows = execute!(
            self,
            RELABEL,
            v.id.to_string(),
            before.as_str(),
            v.label.as_str(),
            v.promoted_at.map(Timestamp::micros),
            v.hold_until.map(Timestamp::micros),
        )?;
        Ok(rows == 1)
    }

    /// Moves a value that is sealed by `before` to what it says now; false when it was moved, replaced or deleted meanwhile.
    pub async fn reseal_credential_value(
        &mut self,
        v: &CredentialValue,
        before: &Kid,
    ) -> Result<bool> {
        let rows = execute!(
            self,
            RESEAL,
            v.id.to_string(),
            before.as_str(),
            v.kid.as_str(),
            &v.ciphertext,
        )?;
        Ok(rows == 1)
    }

    /// Moves the next try to begin a rotation on, before it is tried, by what `pause` says after so many tries in a row that
    /// led to nothing.
    pub async fn claim_credential(
        &mut self,
        id: CredentialId,
        now: Timestamp,
        pause: impl FnOnce(u32) -> Duration + Send,
    ) -> Result<()> {
        let tries = fetch_in!(self, (i64,), TRIES, id.to_string())?;
        let tries = tries.map_or(0, |(tries,)| u32::try_from(tries).unwrap_or(u32::MAX));
        let next = now.plus(pause(tries));
        execute!(self, CLAIM, id.to_string(), next.micros()).map(|_| ())
    }

    /// The credential has got its rotation.
    pub async fn note_rotation_begun(&mut self, id: CredentialId) -> Result<()> {
        execute!(self, BEGUN, id.to_string()).map(|_| ())
    }

    /// Deletes the value with this label; false when there is none.
    pub async fn delete_credential_value(
        &mut self,
        credential: CredentialId,
        label: ValueLabel,
    ) -> Result<bool> {
        let rows = execute!(self, DELETE_VALUE, credential.to_string(), label.as_str())?;
        Ok(rows == 1)
    }
}

impl Db {
    /// One credential with its values.
    pub async fn credential(&self, id: CredentialId) -> Result<Option<FullCredential>> {
        let Some(row) = fetch_optional!(self, Row, BY_ID, id.to_string())? else {
            return Ok(None);
        };
        self.with_values(row).await.map(Some)
    }

    /// The credential that is this one, with its values.
    pub async fn credential_by_key(&self, key: &CredentialKey) -> Result<Option<FullCredential>> {
        let row = fetch_optional!(
            self,
            Row,
            BY_KEY,
            key.tenant.as_str(),
            key.owner.to_string(),
            key.provider.as_str(),
            key.environment.as_str(),
            &key.name
        )?;
        match row {
            Some(row) => self.with_values(row).await.map(Some),
            None => Ok(None),
        }
    }

    async fn with_values(&self, row: Row) -> Result<FullCredential> {
        let rows = fetch_all!(self, ValueRow, VALUES_OF, &row.id)?;
        full(row, rows)
    }

    /// Up to `limit` credentials after `after`, oldest first.
    pub async fn credentials(
        &self,
        filter: &CredentialFilter,
        after: &str,
        limit: i64,
    ) -> Result<Vec<ListedCredential>> {
        let (heads, values, of) = match &filter.of {
            CredentialsOf::Owner(owner) => (OF_OWNER, LISTED_OF_OWNER, owner.to_string()),
            CredentialsOf::Tenant(name) => (OF_TENANT, LISTED_OF_TENANT, name.to_string()),
        };
        let provider = filter.provider.as_ref().map_or("", ProviderName::as_str);
        let environment = filter.environment.map_or("", CredentialEnvironment::as_str);
        let heads = fetch_all!(self, Row, heads, &of, after, provider, environment, limit)?;
        let Some(last) = heads.last().map(|row| row.id.as_str()) else {
            return Ok(Vec::new());
        };
        let values = fetch_all!(
            self,
            ListedRow,
            values,
            &of,
            after,
            provider,
            environment,
            last
        )?;
        listed(heads, values)
    }

    /// Up to `limit` credentials after `after` that are to be rotated by `until`.
    pub async fn due_credentials(
        &self,
        of: &CredentialsOf,
        until: Timestamp,
        after: &str,
        limit: i64,
    ) -> Result<Vec<ListedCredential>> {
        let (heads, values, of) = match of {
            CredentialsOf::Owner(owner) => (DUE_OF_OWNER, LISTED_DUE_OF_OWNER, owner.to_string()),
            CredentialsOf::Tenant(name) => (DUE_OF_TENANT, LISTED_DUE_OF_TENANT, name.to_string()),
        };
        let until = until.micros();
        let heads = fetch_all!(self, Row, heads, &of, after, until, limit)?;
        let Some(last) = heads.last().map(|row| row.id.as_str()) else {
            return Ok(Vec::new());
        };
        let values = fetch_all!(self, ListedRow, values, &of, after, until, last)?;
        listed(heads, values)
    }

    /// Up to `limit` credentials that are due at `now`, may be tried again, have one of these drivers (each a
    /// `|provider/driver/tenant|`), and no rotation that is under way or began after `since`. One of each tenant first.
    pub async fn credentials_due_for_drivers(
        &self,
        now: Timestamp,
        since: Timestamp,
        drivers: &str,
        limit: i64,
    ) -> Result<Vec<StoredCredential>> {
        let (now, since) = (now.micros(), since.micros());
        let rows = fetch_all!(self, Row, DUE_FOR_DRIVERS, now, since, drivers, limit)?;
        rows.into_iter().map(StoredCredential::try_from).collect()
    }

    /// Up to `limit` credentials that are to be rotated after `from` and by `until`, and that no alert of this kind is about.
    pub async fn credentials_untold(
        &self,
        kind: &str,
        (from, until): (Timestamp, Timestamp),
        limit: i64,
    ) -> Result<Vec<StoredCredential>> {
        let (from, until) = (from.micros(), until.micros());
        let rows = fetch_all!(self, Row, UNTOLD, kind, from, until, limit)?;
        rows.into_iter().map(StoredCredential::try_from).collect()
    }

    /// What there is for each provider: of one principal, of one tenant, or of everybody.
    pub async fn credential_report(
        &self,
        of: Option<&CredentialsOf>,
    ) -> Result<Vec<ProviderCounts>> {
        let rows = match of {
            None => fetch_all!(self, ReportRow, REPORT_OF_ALL)?,
            Some(CredentialsOf::Tenant(name)) => {
                fetch_all!(self, ReportRow, REPORT_OF_TENANT, name.as_str())?
            }
            Some(CredentialsOf::Owner(owner)) => {
                fetch_all!(self, ReportRow, REPORT_OF_OWNER, owner.to_string())?
            }
        };
        rows.into_iter()
            .map(
                |(provider, environment, configured, format_ok, valid, invalid, at)| {
                    Ok(ProviderCounts {
                        provider: parse("provider", &provider)?,
                        environment: parse("environment", &environment)?,
                        configured,
                        format_ok,
                        valid,
                        invalid,
                        last_probe: at.map(Timestamp::from_micros),
                    })
                },
            )
            .collect()
    }

    /// How many values are sealed by this version.
    pub async fn credential_values_under(&self, kid: &Kid) -> Result<i64> {
        let row = fetch_optional!(self, (i64,), UNDER, kid.as_str())?;
        Ok(row.map_or(0, |(count,)| count))
    }

    /// Up to `limit` versions that do not seal any more, and have values under them that could be moved.
    pub async fn outdated_credential_values(&self, limit: i64) -> Result<Vec<OutdatedValues>> {
        let rows = fetch_all!(self, (String, String, String), OUTDATED, limit)?;
        rows.into_iter()
            .map(|(kid, key, tenant)| {
                Ok(OutdatedValues {
                    kid: parse("kid", &kid)?,
                    key: parse("key id", &key)?,
                    tenant: parse("tenant", &tenant)?,
                })
            })
            .collect()
    }

    /// Up to `limit` values under this version after `after`, each with its credential.
    pub async fn values_under(
        &self,
        kid: &Kid,
        after: &str,
        limit: i64,
    ) -> Result<Vec<(StoredCredential, CredentialValue)>> {
        let rows = fetch_all!(self, ValueRow, VALUES_UNDER, kid.as_str(), after, limit)?;
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            // Deleted meanwhile: there is nothing to move.
            if let Some(head) = fetch_optional!(self, Row, BY_ID, &row.credential_id)? {
                found.push((head.try_into()?, row.try_into()?));
            }
        }
        Ok(found)
    }
}

impl ListedCredential {
    /// The end of the CURRENT secret behind an ellipsis, for people.
    pub fn masked(&self) -> String {
        let mut values = self.values.iter();
        let current = values.find(|value| value.label == ValueLabel::Current);
        current.map_or_else(String::new, |value| format!("…{}", value.last_four))
    }
}

impl FullCredential {
    /// The same without its secrets.
    pub fn listed(&self) -> ListedCredential {
        let values = self.values.iter().map(|value| ListedValue {
            id: value.id,
            label: value.label,
            kid: value.kid.clone(),
            last_four: value.last_four.clone(),
            created_at: value.created_at,
            promoted_at: value.promoted_at,
            hold_until: value.hold_until,
        });
        ListedCredential {
            head: self.head.clone(),
            values: values.collect(),
        }
    }

    /// The value with this label.
    pub fn value(&self, label: ValueLabel) -> Option<&CredentialValue> {
        self.values.iter().find(|value| value.label == label)
    }
}

fn listed(heads: Vec<Row>, values: Vec<ListedRow>) -> Result<Vec<ListedCredential>> {
    let mut by_credential: BTreeMap<String, Vec<ListedValue>> = BTreeMap::new();
    for row in values {
        let of = by_credential.entry(row.credential_id.clone()).or_default();
        of.push(row.try_into()?);
    }
    let with_values = heads.into_iter().map(|row| {
        let mut values = by_credential.remove(&row.id).unwrap_or_default();
        values.sort_by_key(|value| value.label);
        let head = row.try_into()?;
        Ok(ListedCredential { head, values })
    });
    with_values.collect()
}

fn full(row: Row, values: Vec<ValueRow>) -> Result<FullCredential> {
    let values = values.into_iter().map(CredentialValue::try_from);
    let mut values = values.collect::<Result<Vec<_>>>()?;
    values.sort_by_key(|value| value.label);
    Ok(FullCredential {
        head: row.try_into()?,
        values,
    })
}
