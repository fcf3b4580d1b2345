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
    CreatePrincipalRequest, GetPrincipalRequest, GrantRoleRequest, ListPrincipalsRequest,
    ListPrincipalsResponse, Principal, PrincipalType, ResumePrincipalRequest, RevokeRoleRequest,
    SuspendPrincipalRequest, UpdatePrincipalRequest,
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
    /// Show one
    Show(Named),
    /// Change owner, scopes and identities
    Update(Update),
    /// Turn one away, with every certificate, API key, client and token of it
    Suspend(Suspend),
    /// Let a suspended one in again
    Resume(Resume),
}

#[derive(Args, Debug)]
pub struct Named {
    /// Id of the principal
    id: String,
}

#[derive(Args, Debug)]
pub struct Update {
    /// Id of the principal
    id: String,
    /// Who answers for it
    #[arg(long)]
    owner: Option<String>,
    /// Entitlement to give; repeatable
    #[arg(long = "add-scope", value_name = "SCOPE")]
    add_scopes: Vec<String>,
    /// Entitlement to take away; repeatable
    #[arg(long = "remove-scope", value_name = "SCOPE")]
    remove_scopes: Vec<String>,
    /// Identity to add; repeatable
    #[arg(long = "add-identity", value_name = "IDENTITY")]
    add_identities: Vec<String>,
    /// Identity to take away; repeatable
    #[arg(long = "remove-identity", value_name = "IDENTITY")]
    remove_identities: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Suspend {
    /// Id of the principal
    id: String,
    /// Why, in a sentence
    #[arg(long)]
    reason: String,
}

#[derive(Args, Debug)]
pub struct Resume {
    /// Id of the principal
    id: String,
    /// Why, in a sentence
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
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
        Command::Show(Named { id }) => {
            let request = GetPrincipalRequest { principal_id: id };
            let answer = client.get_principal(request).await?.into_inner();
            session.show(&answer, |answer| details(answer.principal.as_ref()))?;
        }
        Command::Update(args) => {
            let request = UpdatePrincipalRequest {
                principal_id: args.id,
                owner: args.owner,
                add_scopes: args.add_scopes,
                remove_scopes: args.remove_scopes,
                add_identities: args.add_identities,
                remove_identities: args.remove_identities,
            };
            let call = async |r| session.principals().update_principal(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |answer| details(answer.principal.as_ref()))?;
        }
        Command::Suspend(Suspend { id, reason }) => {
            let request = SuspendPrincipalRequest {
                principal_id: id,
                reason,
            };
            let call = async |r| session.principals().suspend_principal(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |answer| details(answer.principal.as_ref()))?;
        }
        Command::Resume(Resume { id, reason }) => {
            let request = ResumePrincipalRequest {
                principal_id: id,
                reason,
            };
            let call = async |r| session.principals().resume_principal(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |answer| details(answer.principal.as_ref()))?;
        }
    }
    Ok(Exit::Ok)
}

fn details(principal: Option<&Principal>) -> String {
    let principal = principal.cloned().unwrap_or_default();
    output::details([
        ("id", principal.id.clone()),
        ("name", principal.name.clone()),
        ("tenant", principal.tenant.clone()),
        ("type", kind(&principal)),
        (
            "state",
            output::short(principal.state().as_str_name(), "PRINCIPAL_STATE_"),
        ),
        ("owner", principal.owner.clone()),
        ("scopes", principal.scopes.join(" ")),
        ("identities", principal.identities.join("\n")),
        ("roles", grants(&principal)),
        ("created", output::time(&principal.create_time)),
    ])
}

fn kind(principal: &Principal) -> String {
    output::short(principal.r#type().as_str_name(), "PRINCIPAL_TYPE_").to_lowercase()
}

fn grants(principal: &Principal) -> String {
    let grants = principal.grants.iter();
    let grants: Vec<_> = grants
        .map(|grant| format!("{} in {}", grant.role, grant.tenant))
        .collect();
    grants.join("\n")
}

fn table(principals: &[Principal]) -> String {
    let rows = principals.iter().map(|principal| {
        [
            principal.name.clone(),
            principal.tenant.clone(),
            kind(principal),
            principal.id.clone(),
            principal.identities.join("\n"),
            grants(principal),
        ]
    });
    output::table(
        ["NAME", "TENANT", "TYPE", "ID", "IDENTITIES", "ROLES"],
        rows,
    )
}
