//! Tables `principals`, `principal_identities`, `principal_scopes` and `role_grants`.

use super::{
    Db, Result, Tx,
    engine::{execute, fetch_all, fetch_all_in, fetch_in, fetch_optional},
    parse,
};
use crate::model::{
    Grant, Identity, Principal, PrincipalId, PrincipalState, Role, Scope, Scopes, TenantName,
    Timestamp,
};

const INSERT: &str = "INSERT INTO principals (id, tenant, name, kind, created_at, owner, state) VALUES ($1, $2, $3, $4, $5, $6, $7)";
const INSERT_IDENTITY: &str =
    "INSERT INTO principal_identities (identity, principal_id) VALUES ($1, $2)";
const INSERT_GRANT: &str =
    "INSERT INTO role_grants (principal_id, role, scope) VALUES ($1, $2, $3)";
const DELETE_GRANT: &str =
    "DELETE FROM role_grants WHERE principal_id = $1 AND role = $2 AND scope = $3";
const BY_ID: &str =
    "SELECT id, tenant, name, kind, created_at, owner, state FROM principals WHERE id = $1";
const BY_NAME: &str = "SELECT id, tenant, name, kind, created_at, owner, state FROM principals WHERE tenant = $1 AND name = $2";
const BY_IDENTITY: &str = "SELECT p.id, p.tenant, p.name, p.kind, p.created_at, p.owner, p.state FROM principals p \
     JOIN principal_identities i ON i.principal_id = p.id WHERE i.identity = $1";
const PAGE: &str = "SELECT id, tenant, name, kind, created_at, owner, state FROM principals \
     WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3";
const IDENTITIES: &str =
    "SELECT identity FROM principal_identities WHERE principal_id = $1 ORDER BY identity";
const DELETE_IDENTITY: &str =
    "DELETE FROM principal_identities WHERE identity = $1 AND principal_id = $2";
const INSERT_SCOPE: &str = "INSERT INTO principal_scopes (principal_id, scope) VALUES ($1, $2) \
     ON CONFLICT (principal_id, scope) DO NOTHING";
const DELETE_SCOPE: &str = "DELETE FROM principal_scopes WHERE principal_id = $1 AND scope = $2";
const SCOPES: &str = "SELECT scope FROM principal_scopes WHERE principal_id = $1 ORDER BY scope";
const SET_OWNER: &str = "UPDATE principals SET owner = $2 WHERE id = $1";
const SET_STATE: &str = "UPDATE principals SET state = $2 WHERE id = $1 AND state <> $2";
const LOCK: &str = "UPDATE principals SET state = state WHERE id = $1";
const HOLD_ACTIVE: &str = "UPDATE principals SET state = state WHERE id = $1 AND state = 'ACTIVE'";
const GRANTS: &str =
    "SELECT role, scope FROM role_grants WHERE principal_id = $1 ORDER BY role, scope";

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    tenant: String,
    name: String,
    kind: String,
    created_at: i64,
    owner: String,
    state: String,
}

impl Tx {
    /// Adds a principal with its identities and scopes, and no roles. Errors: `Exists` for the name or an identity, `TenantErased`.
    pub async fn insert_principal(&mut self, p: &Principal) -> Result<()> {
        self.hold_tenant(&p.tenant).await?;
        execute!(
            self,
            INSERT,
            p.id.to_string(),
            p.tenant.as_str(),
            p.name.as_str(),
            p.kind.as_str(),
            p.created_at.micros(),
            &p.owner,
            p.state.as_str(),
        )?;
        for identity in &p.identities {
            self.insert_identity(p.id, identity).await?;
        }
        self.insert_scopes(p.id, &p.scopes).await
    }

    /// Adds an identity. Errors: `Exists` when it authenticates as somebody already.
    pub async fn insert_identity(&mut self, id: PrincipalId, identity: &Identity) -> Result<()> {
        execute!(self, INSERT_IDENTITY, identity.as_str(), id.to_string()).map(|_| ())
    }

    /// Takes an identity away; false when it was not this principal's.
    pub async fn delete_identity(&mut self, id: PrincipalId, identity: &Identity) -> Result<bool> {
        let rows = execute!(self, DELETE_IDENTITY, identity.as_str(), id.to_string())?;
        Ok(rows == 1)
    }

    /// Adds scopes; those it holds already stay.
    pub async fn insert_scopes(&mut self, id: PrincipalId, scopes: &Scopes) -> Result<()> {
        for scope in scopes.iter() {
            execute!(self, INSERT_SCOPE, id.to_string(), scope)?;
        }
        Ok(())
    }

    /// Takes scopes away; those it does not hold do not matter.
    pub async fn delete_scopes(&mut self, id: PrincipalId, scopes: &Scopes) -> Result<()> {
        for scope in scopes.iter() {
            execute!(self, DELETE_SCOPE, id.to_string(), scope)?;
        }
        Ok(())
    }

    /// Says who answers for a principal.
    pub async fn set_principal_owner(&mut self, id: PrincipalId, owner: &str) -> Result<()> {
        execute!(self, SET_OWNER, id.to_string(), owner).map(|_| ())
    }

    /// Suspends or resumes; false when that was so already.
    pub async fn set_principal_state(
        &mut self,
        id: PrincipalId,
        state: PrincipalState,
    ) -> Result<bool> {
        let rows = execute!(self, SET_STATE, id.to_string(), state.as_str())?;
        Ok(rows == 1)
    }

    /// False when the principal is not ACTIVE. True: nobody suspends it before this transaction ends.
    pub async fn hold_principal(&mut self, id: PrincipalId) -> Result<bool> {
        let rows = execute!(self, HOLD_ACTIVE, id.to_string())?;
        Ok(rows == 1)
    }

    /// The principal as it is now; nobody else who locks it changes it before this transaction ends.
    pub async fn lock_principal(&mut self, id: PrincipalId) -> Result<Option<Principal>> {
        execute!(self, LOCK, id.to_string())?;
        let Some(row) = fetch_in!(self, Row, BY_ID, id.to_string())? else {
            return Ok(None);
        };
        let identities = fetch_all_in!(self, (String,), IDENTITIES, &row.id)?;
        let grants = fetch_all_in!(self, (String, String), GRANTS, &row.id)?;
        let scopes = fetch_all_in!(self, (String,), SCOPES, &row.id)?;
        row.with(identities, grants, scopes).map(Some)
    }

    /// Adds a grant. Errors: `Exists`.
    pub async fn insert_grant(&mut self, id: PrincipalId, grant: &Grant) -> Result<()> {
        execute!(
            self,
            INSERT_GRANT,
            id.to_string(),
            grant.role.as_str(),
            grant.scope.as_str(),
        )
        .map(|_| ())
    }

    /// Removes a grant; false when there was none.
    pub async fn delete_grant(&mut self, id: PrincipalId, grant: &Grant) -> Result<bool> {
        let rows = execute!(
            self,
            DELETE_GRANT,
            id.to_string(),
            grant.role.as_str(),
            grant.scope.as_str(),
        )?;
        Ok(rows == 1)
    }
}

impl Db {
    /// The principal with this id.
    pub async fn principal(&self, id: PrincipalId) -> Result<Option<Principal>> {
        let row = fetch_optional!(self, Row, BY_ID, id.to_string())?;
        self.complete(row).await
    }

    /// The principal with this name.
    pub async fn principal_by_name(
        &self,
        tenant: &TenantName,
        name: &str,
    ) -> Result<Option<Principal>> {
        let row = fetch_optional!(self, Row, BY_NAME, tenant.as_str(), name)?;
        self.complete(row).await
    }

    /// The principal that this identity authenticates as.
    pub async fn principal_by_identity(&self, identity: &Identity) -> Result<Option<Principal>> {
        let row = fetch_optional!(self, Row, BY_IDENTITY, identity.as_str())?;
        self.complete(row).await
    }

    /// Up to `limit` principals of a tenant after `after`, oldest first.
    pub async fn principals(
        &self,
        tenant: &TenantName,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Principal>> {
        let rows = fetch_all!(self, Row, PAGE, tenant.as_str(), after, limit)?;
        let mut principals = Vec::with_capacity(rows.len());
        for row in rows {
            principals.extend(self.complete(Some(row)).await?);
        }
        Ok(principals)
    }

    async fn complete(&self, row: Option<Row>) -> Result<Option<Principal>> {
        let Some(row) = row else { return Ok(None) };
        let identities = fetch_all!(self, (String,), IDENTITIES, &row.id)?;
        let grants = fetch_all!(self, (String, String), GRANTS, &row.id)?;
        let scopes = fetch_all!(self, (String,), SCOPES, &row.id)?;
        row.with(identities, grants, scopes).map(Some)
    }
}

impl Row {
    fn with(
        self,
        identities: Vec<(String,)>,
        grants: Vec<(String, String)>,
        scopes: Vec<(String,)>,
    ) -> Result<Principal> {
        let identities = identities.iter();
        let identities = identities.map(|(identity,)| parse("identity", identity));
        let grants = grants.iter().map(|(role, scope)| {
            Ok(Grant {
                role: parse::<Role>("role", role)?,
                scope: parse::<Scope>("scope", scope)?,
            })
        });
        let scopes: Vec<_> = scopes.into_iter().map(|(scope,)| scope).collect();
        Ok(Principal {
            id: parse("principal id", &self.id)?,
            tenant: parse("tenant", &self.tenant)?,
            name: parse("principal name", &self.name)?,
            kind: parse("principal kind", &self.kind)?,
            owner: self.owner,
            state: parse("principal state", &self.state)?,
            scopes: parse("scopes", &scopes.join(" "))?,
            identities: identities.collect::<Result<_>>()?,
            grants: grants.collect::<Result<_>>()?,
            created_at: Timestamp::from_micros(self.created_at),
        })
    }
}
