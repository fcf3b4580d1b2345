//! `claviger client`: OAuth clients of the token endpoint.

use std::{fs, path::PathBuf, time::Duration};

use clap::{Args, Subcommand, builder::PossibleValuesParser, builder::TypedValueParser};

use super::{
    exit::{Exit, Failure, Result},
    input,
    options::Session,
    output,
    pages::Limit,
};
use crate::grpc::proto::{
    Client, ClientAuthMethod, ClientState, CreateClientRequest, GetClientRequest,
    ListClientsRequest, ListClientsResponse, UpdateClientRequest,
};

/// Manage OAuth clients of the token endpoint
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Register a client
    Create(Create),
    /// List the clients of a tenant
    List(List),
    /// Show a client
    Show {
        /// Its id, the client_id
        id: String,
    },
    /// Change a client; what is left out stays
    Update(Update),
}

#[derive(Args, Debug)]
pub struct Create {
    /// Name, for people
    name: String,
    /// Id of the principal that it acts as
    #[arg(long)]
    owner: String,
    /// How it authenticates
    #[arg(long, value_parser = method(), ignore_case = true)]
    method: ClientAuthMethod,
    /// File with its public keys, a JWK Set, for private-key-jwt
    #[arg(long, value_name = "FILE")]
    jwks: Option<PathBuf>,
    /// spiffe://… or dns:NAME of its certificate, for tls-client-auth
    #[arg(long, default_value = "", hide_default_value = true)]
    certificate_identity: String,
    /// Scope that it may ask for; repeatable
    #[arg(long = "scope")]
    scopes: Vec<String>,
    /// Audience that it may ask for, the default first; repeatable
    #[arg(long = "audience", required = true)]
    audiences: Vec<String>,
    /// Lifetime of its tokens, such as 5min [default: what the daemon is configured with]
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    token_ttl: Option<Duration>,
    /// Give equal requests the same token for half of its lifetime
    #[arg(long)]
    coalesce: bool,
}

#[derive(Args, Debug)]
pub struct Update {
    /// Its id, the client_id
    id: String,
    /// File with its new public keys, a JWK Set
    #[arg(long, value_name = "FILE")]
    jwks: Option<PathBuf>,
    /// New identity of its certificate
    #[arg(long)]
    certificate_identity: Option<String>,
    /// Scope that it may ask for, instead of all it has; repeatable
    #[arg(long = "scope")]
    scopes: Vec<String>,
    /// Take all scopes away
    #[arg(long, conflicts_with = "scopes")]
    no_scopes: bool,
    /// Audience that it may ask for, instead of all it has; repeatable
    #[arg(long = "audience")]
    audiences: Vec<String>,
    /// New lifetime of its tokens
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    token_ttl: Option<Duration>,
    /// Whether equal requests get the same token for half of its lifetime
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    coalesce: Option<bool>,
    /// Give it no more tokens
    #[arg(long, conflicts_with = "resume")]
    suspend: bool,
    /// Give it tokens again
    #[arg(long)]
    resume: bool,
}

#[derive(Args, Debug)]
pub struct List {
    /// Tenant; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    #[command(flatten)]
    limit: Limit,
}

/// Runs `claviger client …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    match command {
        Command::Create(args) => create(args, session).await,
        Command::List(args) => list(args, session).await,
        Command::Show { id } => {
            let request = GetClientRequest { client_id: id };
            let answer = session.clients().get_client(request).await?.into_inner();
            session.show(&answer, |answer| details(answer.client.as_ref()))?;
            Ok(Exit::Ok)
        }
        Command::Update(args) => update(args, session).await,
    }
}

async fn create(args: Create, session: &Session) -> Result<Exit> {
    let request = CreateClientRequest {
        owner_id: args.owner,
        name: args.name,
        auth_method: args.method.into(),
        jwks: args.jwks.map(file).transpose()?.unwrap_or_default(),
        certificate_identity: args.certificate_identity,
        scopes: args.scopes,
        audiences: args.audiences,
        token_ttl: args.token_ttl.map(input::proto_duration),
        coalesce: args.coalesce,
    };
    let answer = session
        .mutate(request, async |r| session.clients().create_client(r).await)
        .await?;
    session.show(&answer, |answer| details(answer.client.as_ref()))?;
    Ok(Exit::Ok)
}

async fn update(args: Update, session: &Session) -> Result<Exit> {
    let state = match (args.suspend, args.resume) {
        (true, _) => ClientState::Suspended,
        (_, true) => ClientState::Active,
        _ => ClientState::Unspecified,
    };
    let request = UpdateClientRequest {
        client_id: args.id,
        jwks: args.jwks.map(file).transpose()?,
        certificate_identity: args.certificate_identity,
        replace_scopes: args.no_scopes || !args.scopes.is_empty(),
        scopes: args.scopes,
        audiences: args.audiences,
        token_ttl: args.token_ttl.map(input::proto_duration),
        coalesce: args.coalesce,
        state: state.into(),
    };
    let answer = session
        .mutate(request, async |r| session.clients().update_client(r).await)
        .await?;
    session.show(&answer, |answer| details(answer.client.as_ref()))?;
    Ok(Exit::Ok)
}

async fn list(args: List, session: &Session) -> Result<Exit> {
    let mut client = session.clients();
    let mut all = ListClientsResponse::default();
    let mut pages = args.limit.pages();
    while let Some(page_size) = pages.next() {
        let request = ListClientsRequest {
            tenant: args.tenant.clone(),
            page_size,
            page_token: all.next_page_token,
        };
        let page = client.list_clients(request).await?.into_inner();
        pages.got(page.clients.len(), &page.next_page_token);
        all.clients.extend(page.clients);
        all.next_page_token = page.next_page_token;
    }
    session.show(&all, |all| table(&all.clients))?;
    Ok(Exit::Ok)
}

fn method() -> impl TypedValueParser<Value = ClientAuthMethod> {
    let names = ["client-secret", "private-key-jwt", "tls-client-auth"];
    PossibleValuesParser::new(names).map(|name| match name.to_ascii_lowercase().as_str() {
        "client-secret" => ClientAuthMethod::ClientSecret,
        "private-key-jwt" => ClientAuthMethod::PrivateKeyJwt,
        _ => ClientAuthMethod::TlsClientAuth,
    })
}

fn file(path: PathBuf) -> Result<String> {
    fs::read_to_string(&path)
        .map_err(|e| Failure::usage(format!("cannot read {}: {e}", path.display())))
}

fn method_name(client: &Client) -> String {
    output::short(client.auth_method().as_str_name(), "CLIENT_AUTH_METHOD_")
}

fn state_name(client: &Client) -> String {
    output::short(client.state().as_str_name(), "CLIENT_STATE_")
}

fn table(clients: &[Client]) -> String {
    let rows = clients.iter().map(|client| {
        [
            client.name.clone(),
            client.tenant.clone(),
            client.id.clone(),
            client.owner_id.clone(),
            method_name(client),
            state_name(client),
            client.scopes.join(" "),
        ]
    });
    output::table(
        ["NAME", "TENANT", "ID", "OWNER", "METHOD", "STATE", "SCOPES"],
        rows,
    )
}

fn details(client: Option<&Client>) -> String {
    let Some(client) = client else {
        return String::new();
    };
    output::details([
        ("Client id", client.id.clone()),
        ("Name", client.name.clone()),
        ("Tenant", client.tenant.clone()),
        ("Owner", client.owner_id.clone()),
        ("Method", method_name(client)),
        ("Keys", client.jwks.clone()),
        ("Certificate", client.certificate_identity.clone()),
        ("Scopes", client.scopes.join(" ")),
        ("Audiences", client.audiences.join(" ")),
        ("Token lifetime", output::duration(&client.token_ttl)),
        ("Same token again", client.coalesce.to_string()),
        ("State", state_name(client)),
        ("Registered", output::time(&client.create_time)),
    ])
}
