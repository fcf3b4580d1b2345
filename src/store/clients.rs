//! Tables `clients` and `client_assertions`.

use std::time::Duration;

use super::{
    Db, Result, StoreError, Tx,
    engine::{execute, fetch_all, fetch_optional},
    parse, unsigned,
};
use crate::model::{Client, ClientId, ClientProof, TenantName, Timestamp, time::micros};

const INSERT: &str = "INSERT INTO clients (id, tenant, owner, name, auth_method, jwks, identity, scopes, audiences, ttl, \
     coalesces, state, revision, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)";
const UPDATE: &str = "UPDATE clients SET jwks = $3, identity = $4, scopes = $5, audiences = $6, ttl = $7, coalesces = $8, \
     state = $9, revision = revision + 1 WHERE id = $1 AND revision = $2";
const BY_ID: &str = "SELECT id, tenant, owner, name, auth_method, jwks, identity, scopes, audiences, ttl, coalesces, \
     state, revision, created_at FROM clients WHERE id = $1";
const PAGE: &str = "SELECT id, tenant, owner, name, auth_method, jwks, identity, scopes, audiences, ttl, coalesces, \
     state, revision, created_at FROM clients WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3";
const TAKE_ASSERTION: &str = "INSERT INTO client_assertions (client_id, jti, keep_until) VALUES ($1, $2, $3) \
     ON CONFLICT (client_id, jti) DO NOTHING";
const PRUNE_ASSERTIONS: &str = "DELETE FROM client_assertions WHERE keep_until <= $1";

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    tenant: String,
    owner: String,
    name: String,
    auth_method: String,
    jwks: String,
    identity: String,
    scopes: String,
    audiences: String,
    ttl: Option<i64>,
    coalesces: bool,
    state: String,
    revision: i64,
    created_at: i64,
}

impl Tx {
    /// Adds a client. Errors: `TenantErased`.
    pub async fn insert_client(&mut self, c: &Client) -> Result<()> {
        self.hold_tenant(&c.tenant).await?;
        execute!(
            self,
            INSERT,
            c.id.to_string(),
            c.tenant.as_str(),
            c.owner.to_string(),
            &c.name,
            c.proof.method(),
            jwks(&c.proof),
            identity(&c.proof),
            c.scopes.to_string(),
            c.audiences.join(" "),
            c.ttl.map(micros),
            c.coalesces,
            c.state.as_str(),
            c.revision,
            c.created_at.micros(),
        )
        .map(|_| ())
    }

    /// Stores what may change of a client that was read at `c.revision`. False when somebody else changed it meanwhile.
    pub async fn update_client(&mut self, c: &Client) -> Result<bool> {
        let rows = execute!(
            self,
            UPDATE,
            c.id.to_string(),
            c.revision,
            jwks(&c.proof),
            identity(&c.proof),
            c.scopes.to_string(),
            c.audiences.join(" "),
            c.ttl.map(micros),
            c.coalesces,
            c.state.as_str(),
        )?;
        Ok(rows == 1)
    }

    /// Notes that an assertion was taken. False when it was taken before, on any replica.
    pub async fn take_assertion(
        &mut self,
        client: ClientId,
        jti: &str,
        keep_until: Timestamp,
    ) -> Result<bool> {
        let rows = execute!(
            self,
            TAKE_ASSERTION,
            client.to_string(),
            jti,
            keep_until.micros()
        )?;
        Ok(rows == 1)
    }

    /// Forgets assertions that could not be taken again by `now`; how many.
    pub async fn prune_assertions(&mut self, now: Timestamp) -> Result<u64> {
        execute!(self, PRUNE_ASSERTIONS, now.micros())
    }
}

impl Db {
    /// One client.
    pub async fn client(&self, id: ClientId) -> Result<Option<Client>> {
        fetch_optional!(self, Row, BY_ID, id.to_string())?
            .map(Row::client)
            .transpose()
    }

    /// Up to `limit` clients of a tenant after `after`, oldest first.
    pub async fn clients(
        &self,
        tenant: &TenantName,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Client>> {
        fetch_all!(self, Row, PAGE, tenant.as_str(), after, limit)?
            .into_iter()
            .map(Row::client)
            .collect()
    }
}

impl Row {
    fn client(self) -> Result<Client> {
        let proof = match self.auth_method.as_str() {
            "CLIENT_SECRET" => ClientProof::Secret,
            "PRIVATE_KEY_JWT" => ClientProof::Assertion { jwks: self.jwks },
            "TLS_CLIENT_AUTH" => ClientProof::Certificate {
                identity: parse("identity", &self.identity)?,
            },
            other => return Err(StoreError::Corrupt(format!("auth_method {other:?}"))),
        };
        let ttl = self.ttl.map(|ttl| unsigned("ttl", ttl)).transpose()?;
        Ok(Client {
            id: parse("client id", &self.id)?,
            tenant: parse("tenant", &self.tenant)?,
            owner: parse("owner", &self.owner)?,
            name: self.name,
            proof,
            scopes: parse("scopes", &self.scopes)?,
            audiences: self.audiences.split(' ').map(str::to_owned).collect(),
            ttl: ttl.map(Duration::from_micros),
            coalesces: self.coalesces,
            state: parse("client state", &self.state)?,
            revision: self.revision,
            created_at: Timestamp::from_micros(self.created_at),
        })
    }
}

fn jwks(proof: &ClientProof) -> &str {
    match proof {
        ClientProof::Assertion { jwks } => jwks,
        ClientProof::Secret | ClientProof::Certificate { .. } => "",
    }
}

fn identity(proof: &ClientProof) -> &str {
    match proof {
        ClientProof::Certificate { identity } => identity.as_str(),
        ClientProof::Secret | ClientProof::Assertion { .. } => "",
    }
}
