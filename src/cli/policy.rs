//! `claviger policy`: check the Cedar policies, and explain a decision.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{
    exit::{Exit, Failure, Result},
    output,
};
use crate::{
    app,
    authz::{Authz, Decision, Policies},
    model::{
        Action, Entity, Grant, Principal, PrincipalId, PrincipalKind, PrincipalState, Resource,
        RotationId, Scope, Scopes, TenantName, Timestamp,
    },
};

/// Check and explain the access policies
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Check policies against the schema
    Check(Check),
    /// May X do Y on Z, and which policy says so
    Explain(Explain),
}

#[derive(Args, Debug)]
pub struct Check {
    /// Directory of the policies; the built-in ones when left out
    #[arg(long, value_name = "DIR")]
    pub policies: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Explain {
    /// Directory of the policies; the built-in ones when left out
    #[arg(long, value_name = "DIR")]
    pub policies: Option<PathBuf>,
    /// Home tenant of the caller
    #[arg(long, value_name = "TENANT", default_value = "system")]
    pub principal_tenant: String,
    /// What the caller is: user or service
    #[arg(long, value_name = "TYPE", default_value = "user")]
    pub principal_type: String,
    /// A role of the caller, as ROLE or ROLE@TENANT (`*` for all tenants); repeatable
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<String>,
    /// What is to be done, such as Sign
    #[arg(long)]
    pub action: String,
    /// Kind of thing it is done to: key, rotation, principal or tenant
    #[arg(long, default_value = "key")]
    pub resource: String,
    /// Tenant of that thing
    #[arg(long, value_name = "TENANT")]
    pub tenant: String,
}

/// Runs `claviger policy …`.
pub async fn run(command: Command) -> Result<Exit> {
    match command {
        Command::Check(args) => {
            let policies = load(args.policies.as_deref())?;
            let count = policies.sources().len();
            output::print(&format!("{count} policies, in accordance with the schema"))?;
            Ok(Exit::Ok)
        }
        Command::Explain(args) => explain(args),
    }
}

fn explain(args: Explain) -> Result<Exit> {
    let authz = Authz::new(load(args.policies.as_deref())?);
    let action = Action::ALL.iter().find(|a| a.name() == args.action);
    let action = *action.ok_or_else(|| {
        let names: Vec<_> = Action::ALL.iter().map(|a| a.name()).collect();
        Failure::usage(format!("action must be one of {}", names.join(", ")))
    })?;
    let home: TenantName = args.principal_tenant.parse()?;
    let principal = Principal {
        id: PrincipalId::random(),
        name: "somebody".parse()?,
        kind: args.principal_type.parse::<PrincipalKind>()?,
        owner: String::new(),
        state: PrincipalState::Active,
        scopes: Scopes::default(),
        identities: Vec::new(),
        grants: args
            .roles
            .iter()
            .map(|role| grant(role, &home))
            .collect::<Result<_>>()?,
        created_at: Timestamp::default(),
        tenant: home,
    };
    let resource = resource(&args.resource, args.tenant.parse()?)?;
    let explanation = authz.explain(&principal, action, &resource);
    let verdict = match explanation.decision {
        Decision::Allow => "ALLOW",
        Decision::Deny => "DENY",
    };
    output::print(&format!(
        "{verdict}: {} on a {} of tenant {}",
        args.action, args.resource, resource.tenant
    ))?;
    if explanation.policies.is_empty() {
        output::print("no policy permits it")?;
    }
    for policy in &explanation.policies {
        let (file, line) = (&policy.file, policy.line);
        output::print(&format!("\n{file}:{line} {}\n{}", policy.id, policy.text))?;
    }
    for error in &explanation.errors {
        output::print(&format!("error: {error}"))?;
    }
    Ok(match explanation.decision {
        Decision::Allow => Exit::Ok,
        Decision::Deny => Exit::No,
    })
}

fn load(directory: Option<&Path>) -> Result<Policies> {
    app::policies(directory).map_err(Failure::usage)
}

/// `ROLE`, in the home tenant, or `ROLE@TENANT`.
fn grant(text: &str, home: &TenantName) -> Result<Grant> {
    let (role, scope) = match text.split_once('@') {
        Some((role, scope)) => (role, scope.parse::<Scope>()?),
        None => (text, Scope::Tenant(home.clone())),
    };
    let role = role.parse()?;
    Ok(Grant { role, scope })
}

fn resource(kind: &str, tenant: TenantName) -> Result<Resource> {
    let entity = match kind {
        "key" => Entity::UnknownKey("any".to_owned()),
        "rotation" => Entity::Rotation(RotationId::random()),
        "principal" => Entity::Principal(PrincipalId::random()),
        "tenant" => Entity::Tenant,
        _ => {
            return Err(Failure::usage(
                "resource must be key, rotation, principal or tenant",
            ));
        }
    };
    Ok(Resource { tenant, entity })
}
