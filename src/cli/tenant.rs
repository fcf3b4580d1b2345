//! `claviger tenant`: create and list tenants; destroy all keys of one (tenant/destroy.rs), and check the proof of it
//! (tenant/proof.rs).

mod destroy;
pub mod proof;

use clap::{Args, Subcommand};

use super::{
    exit::{Exit, Result},
    options::Session,
    output,
    pages::Limit,
};
use crate::grpc::proto::{CreateTenantRequest, ListTenantsRequest, ListTenantsResponse, Tenant};

/// Manage tenants
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create a tenant
    Create(Create),
    /// List the tenants
    List(List),
    /// Destroy all keys of a tenant for ever: two people and a waiting period
    #[command(subcommand)]
    Destroy(destroy::Command),
    /// Check the proof that all keys of a tenant were destroyed
    #[command(subcommand)]
    Proof(proof::Command),
}

#[derive(Args, Debug)]
pub struct Create {
    /// Name, which is its id for ever
    name: String,
}

#[derive(Args, Debug)]
pub struct List {
    #[command(flatten)]
    limit: Limit,
}

/// Runs `claviger tenant …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    let mut client = session.principals();
    match command {
        Command::Create(Create { name }) => {
            let request = CreateTenantRequest { name };
            let answer = session
                .mutate(request, async |r| {
                    session.principals().create_tenant(r).await
                })
                .await?;
            session.show(&answer, |answer| table(answer.tenant.as_slice()))?;
        }
        Command::List(args) => {
            let mut all = ListTenantsResponse::default();
            let mut pages = args.limit.pages();
            while let Some(page_size) = pages.next() {
                let request = ListTenantsRequest {
                    page_size,
                    page_token: all.next_page_token,
                };
                let page = client.list_tenants(request).await?.into_inner();
                pages.got(page.tenants.len(), &page.next_page_token);
                all.tenants.extend(page.tenants);
                all.next_page_token = page.next_page_token;
            }
            session.show(&all, |all| table(&all.tenants))?;
        }
        Command::Destroy(command) => destroy::run(command, session).await?,
        Command::Proof(command) => return proof::run(command),
    }
    Ok(Exit::Ok)
}

fn table(tenants: &[Tenant]) -> String {
    let rows = tenants
        .iter()
        .map(|tenant| [tenant.name.clone(), output::time(&tenant.create_time)]);
    output::table(["TENANT", "CREATED"], rows)
}
