//! `claviger principal`: users, services and their roles.

use clap::{Args, Subcommand};

use super::{
    exit::{Exit, Result},
    input,
    options::Session,
    output,
    pages::Limit,
};
use crate::grpc::proto::{
    CreatePrincipalRequest, GrantRoleRequest, ListPrincipalsRequest, ListPrincipalsResponse,
    Principal, PrincipalType, RevokeRoleRequest,
};

/// Manage principals and their roles
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create a user or service, without roles
    Create(Create),
    /// Grant a role
    Grant(Role),
    /// Take a role away
    Revoke(Role),
    /// List the principals of a tenant
    List(List),
}

#[derive(Args, Debug)]
pub struct Create {
    /// Name, unique in the tenant
    name: String,
    /// Home tenant; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Person or program
    #[arg(long = "type", value_parser = input::principal_type(), ignore_case = true)]
    kind: PrincipalType,
    /// spiffe://…, dns:NAME or cn:NAME of a certificate, or oidc:ISSUER/SUBJECT of a token; repeatable
    #[arg(long = "identity")]
    identities: Vec<String>,
    /// Who answers for it; the name when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    owner: String,
    /// Entitlement, such as can.use_users; repeatable
    #[arg(long = "scope")]
    scopes: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Role {
    /// Id of the principal
    id: String,
    /// Role, such as key-approver
    #[arg(long)]
    role: String,
    /// Tenant in which it holds, `*` for all; the principal's home tenant when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
}

#[derive(Args, Debug)]
pub struct List {
    /// Tenant; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    #[command(flatten)]
    limit: Limit,
}

/// Runs `claviger principal …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    let mut client = session.principals();
    match command {
        Command::Create(args) => {
            let request = CreatePrincipalRequest {
                tenant: args.tenant,
                name: args.name,
                r#type: args.kind.into(),
                identities: args.identities,
                owner: args.owner,
                scopes: args.scopes,
            };
            let answer = session
                .mutate(request, async |r| {
                    session.principals().create_principal(r).await
                })
                .await?;
            session.show(&answer, |answer| table(answer.principal.as_slice()))?;
        }
        Command::Grant(Role { id, role, tenant }) => {
            let request = GrantRoleRequest {
                principal_id: id,
                role,
                tenant,
            };
            let answer = session
                .mutate(request, async |r| session.principals().grant_role(r).await)
                .await?;
            session.show(&answer, |answer| table(answer.principal.as_slice()))?;
        }
        Command::Revoke(Role { id, role, tenant }) => {
            let request = RevokeRoleRequest {
                principal_id: id,
                role,
                tenant,
            };
            let answer = session
                .mutate(request, async |r| session.principals().revoke_role(r).await)
                .await?;
            session.show(&answer, |answer| table(answer.principal.as_slice()))?;
        }
        Command::List(args) => {
            let mut all = ListPrincipalsResponse::default();
            let mut pages = args.limit.pages();
            while let Some(page_size) = pages.next() {
                let request = ListPrincipalsRequest {
                    tenant: args.tenant.clone(),
                    page_size,
                    page_token: all.next_page_token,
                };
                let page = client.list_principals(request).await?.into_inner();
                pages.got(page.principals.len(), &page.next_page_token);
                all.principals.extend(page.principals);
                all.next_page_token = page.next_page_token;
            }
            session.show(&all, |all| table(&all.principals))?;
        }
    }
    Ok(Exit::Ok)
}

fn table(principals: &[Principal]) -> String {
    let rows = principals.iter().map(|principal| {
        let grants = principal.grants.iter();
        let grants: Vec<_> = grants
            .map(|grant| format!("{} in {}", grant.role, grant.tenant))
            .collect();
        [
            principal.name.clone(),
            principal.tenant.clone(),
            output::short(principal.r#type().as_str_name(), "PRINCIPAL_TYPE_").to_lowercase(),
            principal.id.clone(),
            principal.identities.join("\n"),
            grants.join("\n"),
        ]
    });
    output::table(
        ["NAME", "TENANT", "TYPE", "ID", "IDENTITIES", "ROLES"],
        rows,
    )
}
