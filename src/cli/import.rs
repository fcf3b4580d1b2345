//! `claviger credential import`: credentials from where they are now into the vault (R-CRED-3, R-CRED-5).
//!
//! Sources give rows, rows become batches of ImportCredentials. Plaintexts are in memory only: nothing here writes one
//! to a file, and the state file and the report hold ids and reasons.

mod csv;
mod dotenv;
mod fernet;
mod item;
mod managers;
mod progress;
mod report;
mod rows;
mod send;
mod state;
mod variables;

use std::{collections::BTreeSet, path::PathBuf};

use clap::{Args, Subcommand};
use zeroize::Zeroizing;

use super::{
    exit::{Exit, Failure, Result},
    input,
    options::{Format, Session},
    output::{self, Secrecy},
};
use crate::{
    grpc::proto::{CredentialEnvironment, ListProvidersRequest, Provider},
    model::Secret,
    store::read_foreign,
};

use item::{Bad, Item, Owner, Row, Stored};
use managers::Manager;
use report::Report;
use rows::{Mapping, Record, Target};
use send::Sending;
use state::{Options, State};
use variables::{Common, Variables};

/// Bring credentials in from where they are now
#[derive(Args, Debug)]
pub struct Import {
    #[command(subcommand)]
    source: Source,
}

#[derive(Subcommand, Debug)]
enum Source {
    /// Rows that were encrypted with Fernet: a CSV file, JSON lines or a table
    Fernet(Fernet),
    /// A .env file, or the environment of this command
    Env(Env),
    /// AWS Secrets Manager
    Aws(AwsArgs),
    /// Azure Key Vault
    Azure(AzureArgs),
    /// Google Secret Manager
    Google(GoogleArgs),
}

#[derive(Args, Debug)]
struct How {
    /// Tenant; your own when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Say what would happen and store nothing
    #[arg(long)]
    dry_run: bool,
    /// Replace values that differ; without it they are reported as conflicts
    #[arg(long)]
    replace: bool,
    /// File that remembers the ids of the rows that are done, to go on from there after an interruption
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// File for the report as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Rows per request
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,
}

#[derive(Args, Debug)]
struct Fernet {
    /// The rows: a .csv file with a header, or JSON lines
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "database_url_file",
        conflicts_with = "database_url_file"
    )]
    rows: Option<PathBuf>,
    /// File with the URL of the database that has the rows: sqlite:///path or postgres://…
    #[arg(long, value_name = "FILE", requires = "query")]
    database_url_file: Option<PathBuf>,
    /// Query whose rows are imported; it runs in a session that cannot write
    #[arg(long, value_name = "SQL", requires = "database_url_file")]
    query: Option<String>,
    /// File with the old Fernet keys, one a line, the newest first
    #[arg(long, value_name = "FILE")]
    keys: PathBuf,
    /// Field of the secret, and the column with its token; repeatable
    #[arg(long = "token", value_name = "FIELD=COLUMN", value_parser = input::pair, required_unless_present = "token_json")]
    tokens: Vec<(String, String)>,
    /// Column whose token holds a JSON object of fields
    #[arg(long, value_name = "COLUMN")]
    token_json: Option<String>,
    /// Column that has another name than its target: id, owner_id, owner_name, provider, environment, name, organisation;
    /// repeatable
    #[arg(long = "column", value_name = "TARGET=COLUMN", value_parser = rows::target)]
    columns: Vec<(Target, String)>,
    /// What is the same for every row, such as environment=production; repeatable
    #[arg(long = "set", value_name = "TARGET=VALUE", value_parser = rows::target)]
    constants: Vec<(Target, String)>,
    #[command(flatten)]
    how: How,
}

#[derive(Args, Debug)]
struct Whose {
    /// Id of the principal that the credentials belong to
    #[arg(
        long,
        required_unless_present = "owner_name",
        conflicts_with = "owner_name"
    )]
    owner_id: Option<String>,
    /// Its name
    #[arg(long)]
    owner_name: Option<String>,
    /// development, testing or production
    #[arg(long, value_parser = item::environment)]
    environment: CredentialEnvironment,
    /// Name of the credentials
    #[arg(long, default_value = "default")]
    name: String,
    #[command(flatten)]
    how: How,
}

#[derive(Args, Debug)]
struct Env {
    /// The .env file, `-` for stdin; the environment of this command when left out
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    whose: Whose,
}

#[derive(Args, Debug)]
struct Where {
    /// Only secrets whose name begins so
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// Secret that is a JSON object of variables such as OPENAI_API_KEY; repeatable
    #[arg(long = "bundle", value_name = "SECRET")]
    bundles: Vec<String>,
    #[command(flatten)]
    whose: Whose,
}

#[derive(Args, Debug)]
struct AwsArgs {
    /// Region [default: what the AWS tools use]
    #[arg(long)]
    region: Option<String>,
    /// Another address of the service
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    #[command(flatten)]
    from: Where,
}

#[derive(Args, Debug)]
struct AzureArgs {
    /// Address of the vault: https://NAME.vault.azure.net
    #[arg(long, value_name = "URL")]
    vault: String,
    /// File with an access token for https://vault.azure.net
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    #[command(flatten)]
    from: Where,
}

#[derive(Args, Debug)]
struct GoogleArgs {
    /// Project
    #[arg(long)]
    project: String,
    /// File with an access token
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Another address of the service
    #[arg(long, value_name = "URL", default_value = managers::GOOGLE)]
    endpoint: String,
    #[command(flatten)]
    from: Where,
}

/// Runs `claviger credential import …`.
pub async fn run(import: Import, session: &Session) -> Result<Exit> {
    match import.source {
        Source::Fernet(args) => fernet(args, session).await,
        Source::Env(args) => env(args, session).await,
        Source::Aws(args) => {
            let manager = managers::Aws::new(args.region, args.endpoint.as_deref()).await?;
            managed(&manager, args.from, session).await
        }
        Source::Azure(args) => {
            let manager = managers::Azure::new(&args.vault, &args.token_file)?;
            managed(&manager, args.from, session).await
        }
        Source::Google(args) => {
            let manager = managers::Google::new(&args.endpoint, &args.project, &args.token_file)?;
            managed(&manager, args.from, session).await
        }
    }
}

async fn fernet(args: Fernet, session: &Session) -> Result<Exit> {
    let file = args.keys.display().to_string();
    let text = Zeroizing::new(input::read(Some(&args.keys))?);
    let text = std::str::from_utf8(&text).unwrap_or_default();
    let keys = fernet::Keys::parse(text).map_err(|line| match line {
        0 => Failure::usage(format!("--keys {file}: there is no key in it")),
        line => Failure::usage(format!("--keys {file}: line {line} is no Fernet key")),
    })?;
    let (records, source) = match (&args.rows, &args.database_url_file, args.query) {
        (Some(path), _, _) => rows::file(path)?,
        (None, Some(url), Some(query)) => table(url, &query).await?,
        (None, _, _) => {
            return Err(Failure::usage(
                "give --rows, or --database-url-file and --query",
            ));
        }
    };
    let mapping = Mapping {
        columns: args.columns.into_iter().collect(),
        constants: args.constants.into_iter().collect(),
        tokens: args.tokens,
        json: args.token_json,
    };
    // A database gives its rows in any order, and their number in it names nothing.
    let is_table = args.rows.is_none();
    if is_table && args.how.state.is_some() && !records.iter().all(|r| mapping.names(r)) {
        return Err(Failure::usage(
            "--state needs rows with an id: have the query give a column `id`, or name one with --column id=COLUMN",
        ));
    }
    let found = Found {
        source,
        total: records.len(),
        options: mapping.options(),
        ignored: Vec::new(),
    };
    let rows = records.into_iter().map(|record| mapping.row(record, &keys));
    import(session, args.how, found, rows).await
}

/// The rows of a query, and what tells it from others.
async fn table(url_file: &std::path::Path, query: &str) -> Result<(Vec<Record>, String)> {
    let text = std::fs::read_to_string(url_file);
    let text = text
        .map_err(|e| Failure::usage(format!("--database-url-file {}: {e}", url_file.display())))?;
    let found = read_foreign(&Secret::new(text), query).await;
    let found = found.map_err(|e| Failure::usage(format!("cannot read the rows: {e}")))?;
    let record = |(number, columns)| Record {
        place: format!("row {number}"),
        columns: Ok(columns),
    };
    let records: Vec<_> = (1..).zip(found).map(record).collect();
    Ok((records, format!("query {query}")))
}

async fn env(args: Env, session: &Session) -> Result<Exit> {
    let providers = catalogue(session).await?;
    let known = variables::known(&providers);
    let (found, ignored) = match &args.file {
        Some(file) => from_file(file, &known)?,
        None => (from_environment(&known), Vec::new()),
    };
    imported(session, &providers, found, args.whose, ignored).await
}

/// The variables of a file, and what in it is none of the catalogue's.
fn from_file(path: &std::path::Path, known: &BTreeSet<&str>) -> Result<(Variables, Vec<String>)> {
    let text = Zeroizing::new(input::read(Some(path))?);
    let text = std::str::from_utf8(&text);
    let text = text.map_err(|_| Failure::usage(format!("{}: not UTF-8", path.display())))?;
    let (found, bad) = dotenv::read(text);
    if let Some(bad) = bad.first() {
        // Guessing what the rest means is how a wrong key gets in.
        return Err(Failure::usage(format!(
            "{}: line {}: {}",
            path.display(),
            bad.line,
            bad.why
        )));
    }
    let (found, others): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|(name, _)| known.contains(name.as_str()));
    let variables = found.into_iter().map(|(name, value)| (name, Ok(value)));
    Ok((
        variables.collect(),
        others.into_iter().map(|(name, _)| name).collect(),
    ))
}

fn from_environment(known: &BTreeSet<&str>) -> Variables {
    let value = |name: &&str| match std::env::var(name) {
        Ok(value) => Some(((*name).to_owned(), Ok(Secret::new(value)))),
        Err(std::env::VarError::NotPresent) => None,
        Err(std::env::VarError::NotUnicode(_)) => {
            let bad = Bad::new("NOT_TEXT", format!("{name} is no text"));
            Some(((*name).to_owned(), Err(bad)))
        }
    };
    known.iter().filter_map(value).collect()
}

async fn managed(manager: &impl Manager, from: Where, session: &Session) -> Result<Exit> {
    let providers = catalogue(session).await?;
    let known = variables::known(&providers);
    let found = managers::variables(manager, &from.prefix, &from.bundles, &known).await?;
    imported(session, &providers, found, from.whose, Vec::new()).await
}

async fn imported(
    session: &Session,
    providers: &[Provider],
    variables: Variables,
    whose: Whose,
    ignored: Vec<String>,
) -> Result<Exit> {
    let owner = match (whose.owner_id, whose.owner_name) {
        (Some(id), _) => Owner::Id(id),
        (None, name) => Owner::Name(name.unwrap_or_default()),
    };
    let common = Common {
        owner,
        environment: whose.environment,
        name: whose.name,
    };
    let rows = variables::rows(providers, &variables, &common);
    drop(variables);
    let Common {
        owner,
        environment,
        name,
    } = common;
    let (Owner::Id(owner) | Owner::Name(owner)) = owner;
    let options = [
        ("--owner-id or --owner-name", owner),
        ("--environment", environment.as_str_name().to_owned()),
        ("--name", name),
    ];
    let found = Found {
        source: "variables".to_owned(),
        total: rows.len(),
        options: options.map(|(name, text)| (name.to_owned(), text)).into(),
        ignored,
    };
    import(session, whose.how, found, rows.into_iter()).await
}

async fn catalogue(session: &Session) -> Result<Vec<Provider>> {
    let mut client = session.credentials();
    let answer = client.list_providers(ListProvidersRequest {}).await?;
    Ok(answer.into_inner().providers)
}

/// What was found at a source, besides its rows.
struct Found {
    /// Which source, and in which state.
    source: String,
    total: usize,
    /// The options that say what the rows are.
    options: Vec<(String, String)>,
    /// What is no row, by its name.
    ignored: Vec<String>,
}

async fn import(
    session: &Session,
    how: How,
    found: Found,
    rows: impl Iterator<Item = Row>,
) -> Result<Exit> {
    let state = match (&how.state, how.dry_run) {
        (Some(path), false) => {
            let mut options: Options = found.options.into_iter().collect();
            options.insert("--tenant".to_owned(), how.tenant.clone());
            options.insert("--replace".to_owned(), how.replace.to_string());
            State::open(path, &found.source, &options)?
        }
        (Some(_), true) | (None, _) => State::none(),
    };
    let sending = Sending {
        tenant: how.tenant,
        batch: how.batch.into(),
        replace: how.replace,
        dry_run: how.dry_run,
    };
    let mut report = send::send(session, &sending, found.total, rows, state).await?;
    found
        .ignored
        .into_iter()
        .for_each(|name| report.ignore(name));
    show(&report, session.format(), how.report.as_deref())?;
    Ok(match report.bad_rows() {
        0 => Exit::Ok,
        _ => Exit::No,
    })
}

fn show(report: &Report, format: Format, file: Option<&std::path::Path>) -> Result<()> {
    let json = serde_json::to_string_pretty(&report.json()).map_err(Failure::other)?;
    if let Some(file) = file {
        output::write(Some(file), format!("{json}\n").as_bytes(), Secrecy::Private)?;
    }
    output::print(&match format {
        Format::Json => json,
        Format::Table => report.text(),
    })
}
