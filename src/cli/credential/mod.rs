//! `claviger credential` and `claviger provider`: the vault. A secret comes from a file, a variable or stdin and never from
//! an argument, which everybody on the machine can read; it goes, alone, to stdout or into a file.

mod rotation;
mod view;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use bytes::Bytes;
use clap::{Args, Subcommand, builder::TypedValueParser};
use zeroize::Zeroizing;

use super::{
    exit::{Exit, Failure, Result},
    import, input,
    options::Session,
    output::{self, Secrecy},
    pages::Limit,
};
use crate::grpc::proto::{
    CredentialEnvironment, CredentialField, CredentialLabel, DeleteCredentialRequest,
    GetCredentialReportRequest, GetCredentialRequest, ListCredentialsRequest,
    ListCredentialsResponse, ListProvidersRequest, ProbeResult, PutCredentialRequest,
    RevealCredentialRequest, ValidateCredentialRequest,
};

/// Credentials of brokers and LLM providers in the vault
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Store a credential
    Put(Put),
    /// Show one, masked
    Get(Named),
    /// Print the secret of one; the reason is recorded
    Reveal(Reveal),
    /// List credentials, masked
    List(List),
    /// Delete one with all its values
    Delete(Named),
    /// Check the format of one, and ask the provider whether it takes it
    Validate(Named),
    /// What is configured for each provider, and what the last checks said
    Report(Whose),
    Import(import::Import),
    #[command(subcommand)]
    Rotation(rotation::Command),
}

/// Providers that credentials are for
#[derive(Subcommand, Debug)]
pub enum ProviderCommand {
    /// The catalogue, with the formats of keys and how they are probed
    List,
}

#[derive(Args, Debug)]
pub struct Put {
    /// Provider, by its name in `provider list`
    provider: String,
    /// Environment at the provider
    #[arg(long, value_parser = environment(), ignore_case = true)]
    environment: CredentialEnvironment,
    /// What tells several for the same provider and environment apart
    #[arg(long, default_value = "default")]
    name: String,
    /// Id of the principal that it belongs to; yourself when left out
    #[arg(long, default_value = "me")]
    owner: String,
    /// A field of the secret and where it is: NAME=- for stdin, NAME=file:PATH, NAME=env:VARIABLE; repeatable [default:
    /// api_key from stdin]
    #[arg(long = "field", value_name = "NAME=SOURCE")]
    fields: Vec<String>,
    /// Organisation or account at the provider
    #[arg(long, default_value = "", hide_default_value = true)]
    organisation: String,
    /// Put it in the place of the value that is there
    #[arg(long)]
    replace: bool,
    /// How long it is to be used, such as 30d [default: the provider's]
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    rotation_period: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct Named {
    /// Id of the credential
    id: String,
}

#[derive(Args, Debug)]
pub struct Reveal {
    /// Id of the credential
    id: String,
    /// Why, in a sentence, for the audit log
    #[arg(long)]
    reason: String,
    /// The one field to print, as it is; all of them as JSON when left out
    #[arg(long, value_name = "NAME")]
    field: Option<String>,
    /// Which value
    #[arg(long, value_parser = label(), ignore_case = true, default_value = "current")]
    label: CredentialLabel,
    /// File that it is written to, readable by you only; `-` or nothing for stdout
    #[arg(long = "out", value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Whose {
    /// Id of the owner, `me` for yourself; everybody in the tenant when left out
    #[arg(long, default_value = "", hide_default_value = true)]
    owner: String,
    /// Tenant; your own when left out
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        conflicts_with = "owner"
    )]
    tenant: String,
}

#[derive(Args, Debug)]
pub struct List {
    #[command(flatten)]
    whose: Whose,
    /// Only of this provider
    #[arg(long, default_value = "", hide_default_value = true)]
    provider: String,
    /// Only for this environment
    #[arg(long, value_parser = environment(), ignore_case = true)]
    environment: Option<CredentialEnvironment>,
    #[command(flatten)]
    limit: Limit,
}

/// Runs `claviger credential …`.
pub async fn run(command: Command, session: &Session) -> Result<Exit> {
    match command {
        Command::Put(args) => put(args, session).await?,
        Command::Get(Named { id }) => {
            let request = GetCredentialRequest { credential_id: id };
            let answer = session.credentials().get_credential(request).await?;
            session.show(&answer.into_inner(), |a| {
                view::details(a.credential.as_ref())
            })?;
        }
        Command::Reveal(args) => reveal(args, session).await?,
        Command::List(args) => list(args, session).await?,
        Command::Delete(Named { id }) => {
            let request = DeleteCredentialRequest {
                credential_id: id.clone(),
            };
            let call = async |r| session.credentials().delete_credential(r).await;
            let answer = session.mutate(request, call).await?;
            session.show(&answer, |_| format!("deleted {id}"))?;
        }
        Command::Validate(Named { id }) => return validate(id, session).await,
        Command::Report(Whose { owner, tenant }) => {
            let request = GetCredentialReportRequest {
                owner_id: owner,
                tenant,
            };
            let answer = session.credentials().get_credential_report(request).await?;
            session.show(&answer.into_inner(), |a| view::report(&a.providers))?;
        }
        Command::Import(args) => return import::run(args, session).await,
        Command::Rotation(command) => return rotation::run(command, session).await,
    }
    Ok(Exit::Ok)
}

/// Runs `claviger provider …`.
pub async fn providers(command: ProviderCommand, session: &Session) -> Result<Exit> {
    match command {
        ProviderCommand::List => {
            let request = ListProvidersRequest {};
            let answer = session.credentials().list_providers(request).await?;
            session.show(&answer.into_inner(), |a| view::providers(&a.providers))?;
        }
    }
    Ok(Exit::Ok)
}

async fn put(args: Put, session: &Session) -> Result<()> {
    let request = PutCredentialRequest {
        owner_id: args.owner,
        provider: args.provider,
        environment: args.environment.into(),
        name: args.name,
        fields: fields(&args.fields)?,
        organisation: args.organisation,
        replace: args.replace,
        rotation_period: args.rotation_period.map(input::proto_duration),
    };
    let call = async |r| session.credentials().put_credential(r).await;
    let answer = session.mutate(request, call).await?;
    for warning in &answer.warnings {
        view::warn(warning);
    }
    session.show(&answer, |a| view::details(a.credential.as_ref()))
}

async fn reveal(args: Reveal, session: &Session) -> Result<()> {
    let request = RevealCredentialRequest {
        credential_id: args.id,
        reason: args.reason,
        label: args.label.into(),
    };
    let answer = session.credentials().reveal_credential(request).await?;
    let fields = answer.into_inner().fields;
    let text = match args.field {
        Some(name) => {
            let field = fields.iter().find(|field| field.name == name);
            let field = field.ok_or_else(|| {
                let names: Vec<_> = fields.iter().map(|f| f.name.as_str()).collect();
                Failure::usage(format!(
                    "it has no field {name}; it has {}",
                    names.join(", ")
                ))
            })?;
            Zeroizing::new(field.value.to_vec())
        }
        None => all_of(&fields)?,
    };
    output::write(args.out.as_deref(), &text, Secrecy::Private)
}

fn all_of(fields: &[CredentialField]) -> Result<Zeroizing<Vec<u8>>> {
    let texts = fields.iter().map(|field| {
        let text = std::str::from_utf8(&field.value);
        text.map(|text| (field.name.as_str(), text))
    });
    let texts: BTreeMap<_, _> = texts
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| Failure::other("the daemon's answer is no text"))?;
    let mut json = serde_json::to_vec(&texts).map_err(|e| Failure::other(e.to_string()))?;
    json.push(b'\n');
    Ok(Zeroizing::new(json))
}

async fn list(args: List, session: &Session) -> Result<()> {
    let mut client = session.credentials();
    let mut all = ListCredentialsResponse::default();
    let mut pages = args.limit.pages();
    while let Some(page_size) = pages.next() {
        let request = ListCredentialsRequest {
            owner_id: args.whose.owner.clone(),
            tenant: args.whose.tenant.clone(),
            provider: args.provider.clone(),
            environment: args.environment.unwrap_or_default().into(),
            page_size,
            page_token: all.next_page_token,
        };
        let page = client.list_credentials(request).await?.into_inner();
        pages.got(page.credentials.len(), &page.next_page_token);
        all.credentials.extend(page.credentials);
        all.next_page_token = page.next_page_token;
    }
    session.show(&all, |all| view::table(&all.credentials))?;
    if args.whose.owner.is_empty() {
        session.explain_nothing(all.credentials.len(), &args.whose.tenant);
    }
    Ok(())
}

/// The answer is no when the provider refuses the value.
async fn validate(id: String, session: &Session) -> Result<Exit> {
    let request = ValidateCredentialRequest { credential_id: id };
    let call = async |r| session.credentials().validate_credential(r).await;
    let answer = session.mutate(request, call).await?;
    for warning in &answer.warnings {
        view::warn(warning);
    }
    session.show(&answer, |a| view::details(a.credential.as_ref()))?;
    let result = answer.probe.unwrap_or_default().result();
    Ok(match result {
        ProbeResult::Invalid => Exit::No,
        _ => Exit::Ok,
    })
}

/// The secret, from where the arguments say it is.
fn fields(given: &[String]) -> Result<Vec<CredentialField>> {
    let from_stdin = ["api_key=-".to_owned()];
    let given = match given {
        [] => &from_stdin[..],
        given => given,
    };
    if given.iter().filter(|field| field.ends_with("=-")).count() > 1 {
        return Err(Failure::usage("only one --field can come from stdin"));
    }
    given.iter().map(|field| self::field(field)).collect()
}

fn field(given: &str) -> Result<CredentialField> {
    let (name, source) = given.split_once('=').unwrap_or((given, ""));
    let bytes = match source {
        "-" => input::read(None)?,
        source => match (source.strip_prefix("file:"), source.strip_prefix("env:")) {
            (Some(path), _) => input::read(Some(std::path::Path::new(path)))?,
            (_, Some(variable)) => variable_of(variable)?,
            // What stands there may be the secret itself: it is not shown.
            (None, None) => {
                return Err(Failure::usage(
                    "--field wants NAME=-, NAME=file:PATH or NAME=env:VARIABLE: a secret has no place among arguments, \
                     which everybody on this machine can read",
                ));
            }
        },
    };
    let mut bytes = Zeroizing::new(bytes);
    // An editor's or echo's.
    if bytes.ends_with(b"\n") {
        bytes.pop();
    }
    if bytes.ends_with(b"\r") {
        bytes.pop();
    }
    Ok(CredentialField {
        name: name.to_owned(),
        value: Bytes::copy_from_slice(&bytes),
    })
}

fn variable_of(name: &str) -> Result<Vec<u8>> {
    let value = std::env::var(name);
    let value = value.map_err(|_| Failure::usage(format!("variable {name} is not set")))?;
    Ok(value.into_bytes())
}

fn environment() -> impl TypedValueParser<Value = CredentialEnvironment> {
    let names = &["development", "testing", "production"];
    let lookup = CredentialEnvironment::from_str_name;
    input::choice(names, "CREDENTIAL_ENVIRONMENT_", lookup)
}

fn label() -> impl TypedValueParser<Value = CredentialLabel> {
    let names = &["pending", "current", "previous"];
    input::choice(names, "CREDENTIAL_LABEL_", CredentialLabel::from_str_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_among_the_arguments_is_refused_and_not_repeated() {
        for given in ["api_key=sk-planted", "sk-planted", "api_key=env"] {
            let failure = fields(&[given.to_owned()]).expect_err(given);
            assert!(!failure.to_string().contains("planted"), "{failure}");
        }
        let twice = ["a=-".to_owned(), "b=-".to_owned()];
        assert!(fields(&twice).is_err());
    }

    #[test]
    fn a_secret_comes_from_a_file_or_a_variable() {
        let path = std::env::temp_dir().join(format!("claviger-{}", uuid::Uuid::now_v7()));
        std::fs::write(&path, "the secret\n").expect("a file");
        let given = [
            format!("api_key=file:{}", path.display()),
            "path=env:PATH".to_owned(),
        ];
        let fields = fields(&given).expect("fields");
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(&fields[0].value[..], b"the secret");
        assert_eq!(fields[1].name, "path");
        assert!(field("x=env:CLAVIGER_NO_SUCH_VARIABLE").is_err());
    }
}
