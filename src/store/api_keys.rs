//! Table `api_keys`.

use std::time::Duration;

use super::{
    Db, Result, StoreError, Tx,
    engine::{execute, fetch_all, fetch_in, fetch_optional},
    parse, unsigned,
};
use crate::model::{
    ApiKey, ApiKeyHash, ApiKeyId, ClientId, ClientState, Kid, PrincipalId, TenantName, Timestamp,
    time::micros,
};

const INSERT: &str = "INSERT INTO api_keys (id, tenant, owner, client_id, name, scopes, state, hash, hash_scheme, \
     pepper_kid, last_four, created_at, expires_at, term, replaces) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)";
/// Every reader gets the same columns, those of the client included.
macro_rules! select {
    ($which:literal) => {
        concat!(
            "SELECT k.id, k.tenant, k.owner, k.client_id, k.name, k.scopes, k.state, k.hash, k.hash_scheme, \
             k.pepper_kid, k.last_four, k.created_at, k.expires_at, k.term, k.last_used_at, k.ended_at, k.ended_by, \
             k.end_reason, k.replaces, k.replaced_by, c.state AS client_state \
             FROM api_keys k LEFT JOIN clients c ON c.id = k.client_id ",
            $which
        )
    };
}
const BY_ID: &str = select!("WHERE k.id = $1");
const OF_OWNER: &str = select!("WHERE k.owner = $1 AND k.id > $2 ORDER BY k.id LIMIT $3");
const OF_TENANT: &str = select!("WHERE k.tenant = $1 AND k.id > $2 ORDER BY k.id LIMIT $3");
const LOCK: &str = "UPDATE api_keys SET state = state WHERE id = $1";
const END: &str = "UPDATE api_keys SET state = $2, ended_at = $3, ended_by = $4, end_reason = $5 \
     WHERE id = $1 AND state = 'ACTIVE'";
const SUPERSEDE: &str = "UPDATE api_keys SET replaced_by = $2, expires_at = $3 \
     WHERE id = $1 AND state = 'ACTIVE' AND replaced_by IS NULL";
const REHASH: &str = "UPDATE api_keys SET hash = $3, hash_scheme = $4, pepper_kid = $5 \
     WHERE id = $1 AND pepper_kid = $2 AND state = 'ACTIVE'";
const NOTE_USE: &str = "UPDATE api_keys SET last_used_at = $2 \
     WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < $2)";
const COUNT_OF_OWNER: &str = "SELECT CAST(COUNT(*) AS BIGINT) FROM api_keys WHERE owner = $1 AND state = 'ACTIVE' AND replaced_by IS NULL";
const COUNT_UNDER: &str =
    "SELECT CAST(COUNT(*) AS BIGINT) FROM api_keys WHERE pepper_kid = $1 AND state = 'ACTIVE'";
const COUNTS: &str = "SELECT pepper_kid, CAST(COUNT(*) AS BIGINT) FROM api_keys WHERE state = 'ACTIVE' \
     GROUP BY pepper_kid ORDER BY pepper_kid";
const OVERTIME: &str = "SELECT id, tenant, owner, expires_at FROM api_keys WHERE state = 'ACTIVE' AND expires_at <= $1 \
     AND (expires_at > $2 OR (expires_at = $2 AND id > $3)) ORDER BY expires_at, id LIMIT $4";
// A short-lived key is announced in the second half of its life. One that was rotated ends on purpose.
const EXPIRING: &str = "SELECT k.id, k.tenant, k.name, k.expires_at, p.name FROM api_keys k \
     JOIN principals p ON p.id = k.owner WHERE k.state = 'ACTIVE' AND k.replaced_by IS NULL \
     AND k.expires_at > $1 AND k.expires_at <= $2 AND k.expires_at - k.term / 2 <= $1 AND NOT EXISTS \
     (SELECT 1 FROM alerts a WHERE a.window_key = 'API_KEY_EXPIRING/' || k.id) ORDER BY k.expires_at, k.id LIMIT $3";
const SECRET_CLIENT: &str =
    "SELECT owner FROM clients WHERE id = $1 AND auth_method = 'CLIENT_SECRET'";

/// An API key with what its use depends on besides.
#[derive(Clone, Debug)]
pub struct StoredApiKey {
    /// The key.
    pub key: ApiKey,
    /// State of the client whose secret it is.
    pub client: Option<ClientState>,
}

/// An ACTIVE API key whose time is over.
#[derive(Clone, Debug)]
pub struct OverdueApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// Tenant of the owner.
    pub tenant: TenantName,
    /// Its owner.
    pub owner: PrincipalId,
}

/// Overdue keys, oldest first, each or why it cannot be read; and where the next page begins.
pub type OverduePage = (Vec<Result<OverdueApiKey>>, Option<(Timestamp, String)>);

/// An ACTIVE API key whose end is near.
#[derive(Clone, Debug)]
pub struct ExpiringApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// Tenant of the owner.
    pub tenant: TenantName,
    /// What people call it.
    pub name: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Name of the owner.
    pub owner: String,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    tenant: String,
    owner: String,
    client_id: Option<String>,
    name: String,
    scopes: String,
    state: String,
    hash: Vec<u8>,
    hash_scheme: String,
    pepper_kid: String,
    last_four: String,
    created_at: i64,
    expires_at: i64,
    term: i64,
    last_used_at: Option<i64>,
    ended_at: Option<i64>,
    ended_by: Option<String>,
    end_reason: String,
    replaces: Option<String>,
    replaced_by: Option<String>,
    client_state: Option<String>,
}

impl TryFrom<Row> for StoredApiKey {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self> {
        let key = ApiKey {
            id: parse("API key id", &row.id)?,
            tenant: parse("tenant", &row.tenant)?,
            owner: parse("owner", &row.owner)?,
            client: optional("client_id", row.client_id)?,
            name: row.name,
            scopes: parse("scopes", &row.scopes)?,
            state: parse("API key state", &row.state)?,
            hash: ApiKeyHash {
                value: row.hash,
                scheme: row.hash_scheme,
                pepper: parse("pepper_kid", &row.pepper_kid)?,
            },
            last_four: row.last_four,
            created_at: Timestamp::from_micros(row.created_at),
            expires_at: Timestamp::from_micros(row.expires_at),
            term: Duration::from_micros(unsigned("term", row.term)?),
            last_used_at: row.last_used_at.map(Timestamp::from_micros),
            ended_at: row.ended_at.map(Timestamp::from_micros),
            ended_by: optional("ended_by", row.ended_by)?,
            end_reason: row.end_reason,
            replaces: optional("replaces", row.replaces)?,
            replaced_by: optional("replaced_by", row.replaced_by)?,
        };
        let client = optional("client state", row.client_state)?;
        Ok(Self { key, client })
    }
}

impl Tx {
    /// Adds a key. Errors: `Exists`, `TenantErased`.
    pub async fn insert_api_key(&mut self, k: &ApiKey) -> Result<()> {
        self.hold_tenant(&k.tenant).await?;
        execute!(
            self,
            INSERT,
            k.id.to_string(),
            k.tenant.as_str(),
            k.owner.to_string(),
            k.client.map(|client| client.to_string()),
            &k.name,
            k.scopes.to_string(),
            k.state.as_str(),
            &k.hash.value,
            &k.hash.scheme,
            k.hash.pepper.as_str(),
            &k.last_four,
            k.created_at.micros(),
            k.expires_at.micros(),
            micros(k.term),
            k.replaces.map(|id| id.to_string()),
        )
        .map(|_| ())
    }

    /// The key as it is now; nobody changes it before this transaction ends.
    pub async fn lock_api_key(&mut self, id: ApiKeyId) -> Result<Option<ApiKey>> {
        execute!(self, LOCK, id.to_string())?;
        let row = fetch_in!(self, Row, BY_ID, id.to_string())?;
        let stored = row.map(StoredApiKey::try_from).transpose()?;
        Ok(stored.map(|stored| stored.key))
    }

    /// Writes the end of a key; false when it is not ACTIVE any more.
    pub async fn end_api_key(&mut self, k: &ApiKey) -> Result<bool> {
        let rows = execute!(
            self,
            END,
            k.id.to_string(),
            k.state.as_str(),
            k.ended_at.map(Timestamp::micros),
            k.ended_by.map(|by| by.to_string()),
            &k.end_reason,
        )?;
        Ok(rows == 1)
    }

    /// Writes the successor of a key and when the key itself ends; false when it has one, or is not ACTIVE any more.
    pub async fn supersede_api_key(
        &mut self,
        id: ApiKeyId,
        by: ApiKeyId,
        expires_at: Timestamp,
    ) -> Result<bool> {
        let rows = execute!(
            self,
            SUPERSEDE,
            id.to_string(),
            by.to_string(),
            expires_at.micros()
        )?;
        Ok(rows == 1)
    }

    /// Replaces the hash of a key that is still hashed under version `from` of the pepper.
    pub async fn rehash_api_key(
        &mut self,
        id: ApiKeyId,
        from: &Kid,
        hash: &ApiKeyHash,
    ) -> Result<bool> {
        let rows = execute!(
            self,
            REHASH,
            id.to_string(),
            from.as_str(),
            &hash.value,
            &hash.scheme,
            hash.pepper.as_str(),
        )?;
        Ok(rows == 1)
    }

    /// Notes that a key was used; an earlier use than the one noted changes nothing.
    pub async fn note_api_key_use(&mut self, id: ApiKeyId, at: Timestamp) -> Result<()> {
        execute!(self, NOTE_USE, id.to_string(), at.micros()).map(|_| ())
    }

    /// How many ACTIVE keys act as this principal.
    pub async fn count_api_keys(&mut self, owner: PrincipalId) -> Result<i64> {
        let row = fetch_in!(self, (i64,), COUNT_OF_OWNER, owner.to_string())?;
        Ok(row.map_or(0, |(count,)| count))
    }

    /// How many ACTIVE keys are hashed under this version of the pepper.
    pub async fn count_api_keys_under(&mut self, pepper: &Kid) -> Result<i64> {
        let row = fetch_in!(self, (i64,), COUNT_UNDER, pepper.as_str())?;
        Ok(row.map_or(0, |(count,)| count))
    }

    /// Owner of the client, if it authenticates by secret.
    pub async fn owner_of_secret_client(&mut self, id: ClientId) -> Result<Option<PrincipalId>> {
        let row = fetch_in!(self, (String,), SECRET_CLIENT, id.to_string())?;
        row.map(|(owner,)| parse("owner", &owner)).transpose()
    }
}

impl Db {
    /// The key with this id.
    pub async fn api_key(&self, id: ApiKeyId) -> Result<Option<StoredApiKey>> {
        let row = fetch_optional!(self, Row, BY_ID, id.to_string())?;
        row.map(StoredApiKey::try_from).transpose()
    }

    /// Up to `limit` keys of a principal after `after`, oldest first.
    pub async fn api_keys_of(
        &self,
        owner: PrincipalId,
        after: &str,
        limit: i64,
    ) -> Result<Vec<ApiKey>> {
        keys(fetch_all!(
            self,
            Row,
            OF_OWNER,
            owner.to_string(),
            after,
            limit
        )?)
    }

    /// Up to `limit` keys of all principals of a tenant after `after`, oldest first.
    pub async fn api_keys_in(
        &self,
        tenant: &TenantName,
        after: &str,
        limit: i64,
    ) -> Result<Vec<ApiKey>> {
        keys(fetch_all!(
            self,
            Row,
            OF_TENANT,
            tenant.as_str(),
            after,
            limit
        )?)
    }

    /// How many ACTIVE keys are hashed under this version of the pepper.
    pub async fn api_keys_under(&self, pepper: &Kid) -> Result<i64> {
        let row = fetch_optional!(self, (i64,), COUNT_UNDER, pepper.as_str())?;
        Ok(row.map_or(0, |(count,)| count))
    }

    /// How many ACTIVE keys are hashed under each version of the pepper.
    pub async fn api_keys_by_pepper(&self) -> Result<Vec<(Kid, u64)>> {
        let rows = fetch_all!(self, (String, i64), COUNTS)?;
        rows.into_iter()
            .map(|(kid, count)| Ok((parse("pepper_kid", &kid)?, unsigned("count", count)?)))
            .collect()
    }

    /// Up to `limit` ACTIVE keys whose time is over at `now`, after the place where the page before ended.
    pub async fn overdue_api_keys(
        &self,
        now: Timestamp,
        after: &(Timestamp, String),
        limit: i64,
    ) -> Result<OverduePage> {
        let (time, id) = after;
        let rows = fetch_all!(
            self,
            (String, String, String, i64),
            OVERTIME,
            now.micros(),
            time.micros(),
            id,
            limit
        )?;
        let last = rows.last();
        let next = last.map(|(id, _, _, at)| (Timestamp::from_micros(*at), id.clone()));
        Ok((rows.into_iter().map(overdue).collect(), next))
    }

    /// Up to `limit` ACTIVE keys that end between `now` and `until`, in the second half of their lives, and that nobody was
    /// told about.
    pub async fn expiring_api_keys(
        &self,
        now: Timestamp,
        until: Timestamp,
        limit: i64,
    ) -> Result<Vec<ExpiringApiKey>> {
        let rows = fetch_all!(
            self,
            (String, String, String, i64, String),
            EXPIRING,
            now.micros(),
            until.micros(),
            limit
        )?;
        rows.into_iter()
            .map(|(id, tenant, name, expires_at, owner)| {
                Ok(ExpiringApiKey {
                    id: parse("API key id", &id)?,
                    tenant: parse("tenant", &tenant)?,
                    name,
                    expires_at: Timestamp::from_micros(expires_at),
                    owner,
                })
            })
            .collect()
    }
}

fn optional<T: std::str::FromStr>(column: &str, text: Option<String>) -> Result<Option<T>> {
    text.map(|text| parse(column, &text)).transpose()
}

fn keys(rows: Vec<Row>) -> Result<Vec<ApiKey>> {
    rows.into_iter()
        .map(|row| StoredApiKey::try_from(row).map(|stored| stored.key))
        .collect()
}

fn overdue((id, tenant, owner, _): (String, String, String, i64)) -> Result<OverdueApiKey> {
    Ok(OverdueApiKey {
        id: parse("API key id", &id)?,
        tenant: parse("tenant", &tenant)?,
        owner: parse("owner", &owner)?,
    })
}
