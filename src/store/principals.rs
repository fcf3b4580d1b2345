//! Tables `principals`, `principal_identities` and `role_grants`.

use super::{
    Db, Result, Tx,
    engine::{execute, fetch_all, fetch_optional},
    parse,
};
use crate::model::{Grant, Identity, Principal, PrincipalId, Role, Scope, TenantName, Timestamp};

const INSERT: &str =
    "INSERT INTO principals (id, tenant, name, kind, created_at) VALUES ($1, $2, $3, $4, $5)";
const INSERT_IDENTITY: &str =
    "INSERT INTO principal_identities (identity, principal_id) VALUES ($1, $2)";
const INSERT_GRANT: &str =
    "INSERT INTO role_grants (principal_id, role, scope) VALUES ($1, $2, $3)";
const DELETE_GRANT: &str =
    "DELETE FROM role_grants WHERE principal_id = $1 AND role = $2 AND scope = $3";
const BY_ID: &str = "SELECT id, tenant, name, kind, created_at FROM principals WHERE id = $1";
const BY_NAME: &str =
    "SELECT id, tenant, name, kind, created_at FROM principals WHERE tenant = $1 AND name = $2";
const BY_IDENTITY: &str = "SELECT p.id, p.tenant, p.name, p.kind, p.created_at FROM principals p \
     JOIN principal_identities i ON i.principal_id = p.id WHERE i.identity = $1";
const PAGE: &str = "SELECT id, tenant, name, kind, created_at FROM principals \
     WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3";
const IDENTITIES: &str =
    "SELECT identity FROM principal_identities WHERE principal_id = $1 ORDER BY identity";
const GRANTS: &str =
    "SELECT role, scope FROM role_grants WHERE principal_id = $1 ORDER BY role, scope";

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    tenant: String,
    name: String,
    kind: String,
    created_at: i64,
}

impl Tx {
    /// Adds a principal with its identities and no roles. Errors: `Exists` for the name or an identity, `TenantErased`.
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
        )?;
        for identity in &p.identities {
            execute!(self, INSERT_IDENTITY, identity.as_str(), p.id.to_string())?;
        }
        Ok(())
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
        let identities = fetch_all!(self, (String,), IDENTITIES, &row.id)?
            .into_iter()
            .map(|(identity,)| parse("identity", &identity))
            .collect::<Result<_>>()?;
        let grants = fetch_all!(self, (String, String), GRANTS, &row.id)?
            .into_iter()
            .map(|(role, scope)| {
                Ok(Grant {
                    role: parse::<Role>("role", &role)?,
                    scope: parse::<Scope>("scope", &scope)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Some(Principal {
            id: parse("principal id", &row.id)?,
            tenant: parse("tenant", &row.tenant)?,
            name: parse("principal name", &row.name)?,
            kind: parse("principal kind", &row.kind)?,
            identities,
            grants,
            created_at: Timestamp::from_micros(row.created_at),
        }))
    }
}
