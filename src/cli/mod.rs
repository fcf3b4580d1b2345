//! R7: the command line. One file per group of subcommands; this one parses and hands over.
//!
//! Three kinds of commands: the ones that run on the daemon's own machine (`serve`, `migrate`, `backup`, `restore`, `doctor`,
//! `policy`, `hsm`, `kek`), the local environment (`dev`), and one for every RPC, which is a gRPC client and
//! nothing more. exit.rs holds the exit codes that all of them share.

mod alerts;
mod api_key;
mod audit;
mod backup;
mod batch;
mod bench;
mod client;
mod credential;
mod data_key;
mod dev;
mod doctor;
mod encrypt;
mod exit;
mod hsm;
mod import;
mod incident;
mod input;
mod kek;
mod key;
mod lease;
mod limit;
mod mac;
mod migrate;
mod oauth_client;
mod options;
mod output;
mod pages;
mod people;
mod policy;
mod principal;
mod restore;
mod retry;
mod rotation;
mod serve;
mod sign;
mod stop;
mod stream;
mod tenant;
mod tls;
mod token;
mod usage;
mod webhook;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use exit::{Exit, Failure, Result};
use options::Options;

/// Keys that sign, encrypt and rotate, and never leave the token.
#[derive(Parser, Debug)]
#[command(name = "claviger", version, after_help = exit::HELP, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Dev(dev::Args),
    Serve(serve::Args),
    Migrate(migrate::Args),
    Doctor(doctor::Args),
    Backup(backup::Args),
    #[command(subcommand)]
    Restore(restore::Command),
    Bench(bench::Args),
    #[command(subcommand)]
    Policy(policy::Command),
    #[command(subcommand)]
    Hsm(hsm::Command),
    #[command(subcommand)]
    Kek(kek::Command),
    Sign(sign::SignArgs),
    Verify(sign::VerifyArgs),
    /// Encrypt stdin to stdout
    Encrypt(encrypt::StreamArgs),
    /// Decrypt stdin to stdout
    Decrypt(encrypt::StreamArgs),
    /// Move a ciphertext to the key's ACTIVE version
    Rewrap(encrypt::Args),
    #[command(subcommand)]
    DataKey(data_key::Command),
    Random(data_key::Random),
    #[command(subcommand)]
    Mac(mac::Command),
    #[command(subcommand)]
    Webhook(webhook::Command),
    #[command(subcommand)]
    Key(key::Command),
    #[command(subcommand)]
    Rotation(rotation::Command),
    #[command(subcommand)]
    Incident(incident::Command),
    #[command(subcommand)]
    Token(token::Command),
    #[command(subcommand)]
    Tenant(tenant::Command),
    #[command(subcommand)]
    Principal(principal::Command),
    #[command(subcommand)]
    Client(oauth_client::Command),
    #[command(subcommand)]
    ApiKey(api_key::Command),
    #[command(subcommand)]
    Pepper(api_key::PepperCommand),
    #[command(subcommand)]
    Audit(audit::Command),
    #[command(subcommand)]
    Credential(credential::Command),
    #[command(subcommand)]
    Lease(lease::Command),
    #[command(subcommand)]
    Provider(credential::ProviderCommand),
    #[command(subcommand)]
    Usage(usage::Command),
    #[command(subcommand)]
    Limit(limit::Command),
    #[command(subcommand)]
    Alerts(alerts::Command),
}

/// Parses the arguments, runs the command, reports its failure on stderr.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // One provider for the whole process, before anything opens a connection.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(e) => Err(Failure::other(format!("cannot start the runtime: {e}"))),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if failure.exit() != Exit::Ok {
                // Nobody is left to tell when stderr is closed too.
                let _ = std::io::Write::write_fmt(
                    &mut std::io::stderr(),
                    format_args!("error: {failure}\n"),
                );
            }
            failure.exit().into()
        }
    }
}

async fn run(Cli { options, command }: Cli) -> Result<Exit> {
    match command {
        Command::Dev(args) => dev::run(args, options.dir).await,
        Command::Serve(args) => serve::run(args).await,
        Command::Migrate(args) => migrate::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Backup(args) => backup::run(args).await,
        Command::Restore(command) => restore::run(command).await,
        Command::Bench(args) => bench::run(args, &options).await,
        Command::Policy(command) => policy::run(command).await,
        Command::Hsm(command) => hsm::run(command).await,
        Command::Kek(command) => kek::run(command, &options).await,
        Command::Sign(args) => sign::sign(args, &options.connect().await?).await,
        Command::Verify(args) => sign::verify(args, &options.connect().await?).await,
        Command::Encrypt(args) => encrypt::encrypt(args, &options.connect().await?).await,
        Command::Decrypt(args) => encrypt::decrypt(args, &options.connect().await?).await,
        Command::Rewrap(args) => encrypt::rewrap(args, &options.connect().await?).await,
        Command::DataKey(command) => data_key::run(command, &options.connect().await?).await,
        Command::Random(args) => data_key::random(args, &options.connect().await?).await,
        Command::Mac(command) => mac::run(command, &options.connect().await?).await,
        Command::Webhook(command) => webhook::run(command, &options.connect().await?).await,
        Command::Key(command) => key::run(command, &options.connect().await?).await,
        Command::Rotation(command) => rotation::run(command, &options.connect().await?).await,
        Command::Incident(command) => incident::run(command, &options.connect().await?).await,
        Command::Token(command) => token::run(command, &options.connect().await?).await,
        // Needs no daemon: whoever checks a proof may have no access to one.
        Command::Tenant(tenant::Command::Proof(command)) => tenant::proof::run(command),
        Command::Tenant(command) => tenant::run(command, &options.connect().await?).await,
        Command::Principal(command) => principal::run(command, &options.connect().await?).await,
        Command::Client(command) => oauth_client::run(command, &options.connect().await?).await,
        Command::ApiKey(command) => api_key::run(command, &options.connect().await?).await,
        Command::Pepper(command) => api_key::pepper(command, &options.connect().await?).await,
        Command::Audit(command) => audit::run(command, &options.connect().await?).await,
        Command::Credential(command) => credential::run(command, &options.connect().await?).await,
        Command::Lease(command) => lease::run(command, &options.connect().await?).await,
        Command::Provider(command) => {
            credential::providers(command, &options.connect().await?).await
        }
        Command::Usage(command) => usage::run(command, &options.connect().await?).await,
        Command::Limit(command) => limit::run(command, &options.connect().await?).await,
        Command::Alerts(command) => alerts::run(command, &options.connect().await?).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// clap would silently take one for the other.
    #[test]
    fn no_command_has_an_argument_named_like_a_global_one() {
        fn walk(command: &clap::Command, globals: &[String]) {
            for argument in command.get_arguments() {
                let id = argument.get_id().as_str();
                assert!(
                    !globals.iter().any(|global| global == id),
                    "{}: {id}",
                    command.get_name()
                );
            }
            command.get_subcommands().for_each(|sub| walk(sub, globals));
        }
        let command = Cli::command();
        let globals = command
            .get_arguments()
            .filter(|argument| argument.is_global_set());
        let globals: Vec<_> = globals
            .map(|argument| argument.get_id().to_string())
            .collect();
        assert!(globals.len() > 5);
        command
            .get_subcommands()
            .for_each(|sub| walk(sub, &globals));
    }

    #[test]
    fn connection_options_go_before_or_after_the_command() {
        for line in [
            ["claviger", "--dir", "d", "--as", "service", "token", "jwks"],
            ["claviger", "token", "jwks", "--dir", "d", "--as", "service"],
        ] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.options.dir.as_deref(), Some(std::path::Path::new("d")));
        }
    }

    fn parses(line: &str) -> std::result::Result<(), String> {
        let words = std::iter::once("claviger").chain(line.split_whitespace());
        let parsed = Cli::try_parse_from(words);
        parsed.map(drop).map_err(|e| e.to_string())
    }

    #[test]
    fn a_security_teams_commands_parse() {
        for line in [
            "rotation list --waiting-for me --state completed --key k",
            "rotation reject ID --reason r",
            "rotation cancel ID --reason r",
            "incident declare --key k --kid -_kid --reason r",
            "incident get ID",
            "incident list --state closing",
            "incident note ID --text t",
            "incident close ID --postmortem PM-1",
            "key create k --purpose signing --algorithm es256 --owner o --rotation-mode automatic --approvals 2 --standby --grace 7d",
            "key adopt k --uri u --purpose signing --algorithm es256 --owner o --approvals 2 --standby --grace 7d",
            "key update k --standby",
            "key update k --standby=false",
            "key update k --approvals 3",
            "key update k --rotation-mode manual --grace 1h",
            "key import k --algorithm hs256 --owner o --secret-file - --encoding hex --grace 7d",
            "rotation request --key k --justification j --secret-file f --encoding base64",
            "data-key generate --key k --aad a=b --length 64 --wrapped f",
            "data-key decrypt --key k --aad a=b --in f",
            "random 32 --raw",
            "mac compute --key k --raw",
            "mac verify --key k --kid -_kid --mac -_8=",
            "webhook verify --key k --scheme timestamp-body --timestamp 1700000000 --event-id e --mac -_8= --mac qqs= --tolerance 1min",
            "key list --overdue --due-within 7d --compromised --owner o",
            "key get k --kid -_kid",
            "key approve-policy k --tenant acme",
            "key approve-policy k --revision 3",
            "key revoke-version k --kid -_kid --reason r",
            "key destroy request k --kid -_kid --reason r",
            "key destroy approve ID --kid -_kid",
            "key destroy cancel ID --reason r",
            "key destroy list --state scheduled",
            "token revoke --jti J --reason r --expires 15min",
            "verify --key k --kid -_kid --signature -_sig",
            "incident close ID --postmortem PM-1 --idempotency-key pm-1",
            "client create c --owner ID --method private-key-jwt --jwks f --scope a --scope b --audience api --coalesce",
            "client create c --owner ID --method client-secret --audience api --token-ttl 5min",
            "client list --tenant acme",
            "client show ID",
            "client update ID --no-scopes --suspend",
            "client update ID --coalesce=false --resume",
            "principal show ID",
            "principal update ID --owner o --add-scope a --remove-scope b --add-identity cn:a --remove-identity cn:b",
            "principal suspend ID --reason r",
            "principal resume ID",
            "api-key create n --owner ID --scope can.use_users --expires 90d --client ID --out f",
            "api-key list --owner ID",
            "api-key list --tenant t",
            "api-key show ID",
            "api-key rotate ID --overlap 1h --expires 90d --out -",
            "api-key revoke ID --reason r",
            "pepper list",
            "credential put openai --environment production --name n --owner ID --field api_key=env:X --organisation o \
             --replace --rotation-period 30d",
            "credential put alpaca --environment testing --field api_key=- --field api_secret=file:f",
            "credential get ID",
            "credential reveal ID --reason r --field api_key --label previous --out f",
            "credential list --owner me --provider openai --environment testing",
            "credential list --tenant t",
            "credential delete ID",
            "credential validate ID",
            "credential report --tenant t",
            "provider list",
            "credential import fernet --rows f.csv --keys k --token api_key=c --column owner_name=u --set provider=p --state s",
            "credential import fernet --database-url-file f --query q --keys k --token-json c --dry-run",
            "credential import env --owner-name o --environment prod --replace",
            "credential import aws --owner-id o --environment testing --prefix p/ --bundle b",
            "credential import azure --vault u --token-file f --owner-name o --environment production",
            "lease take ID --ttl 15min --out f",
            "credential rotation stage ID --field api_key=file:f --hold 2h",
            "credential rotation promote ID --without-probe",
            "credential rotation complete ID --without-proof",
            "credential rotation roll-back ID --reason r",
            "credential rotation set ID --driver webhook --period 30d",
            "credential rotation get ID",
            "credential rotation list --credential ID",
            "credential rotation due --owner me --within 7d",
            "lease renew ID --ttl 1h",
            "lease return ID",
            "lease revoke ID --reason r",
            "lease list --credential ID",
            "lease watch ID ID",
            "credential import google --project p --token-file f --owner-name o --environment production",
            "usage report --day",
            "usage report --day 2026-01-31 --by principal --csv",
            "usage report --begin 2h --span minute --credential ID",
            "usage record --event-id e --provider openai --credential ID --tokens-in 5 --cost 0.01",
            "usage acquire --provider p --requests 5 --estimated-cost 0.1",
            "limit set --credential ID --requests-per-minute 5 --hour-soft 1 --hour-hard 2.5",
            "limit list --tenant t",
            "limit delete --whole-tenant",
            "alerts list --state firing --kind ERROR_RATE --unacknowledged",
            "alerts ack ID --note n",
            "alerts deliveries --state dead",
            "alerts retry ID",
        ] {
            assert_eq!(parses(line), Ok(()), "{line}");
        }
    }

    #[test]
    fn what_a_security_team_must_say_is_asked_for() {
        for (line, missing) in [
            ("rotation reject ID", "--reason"),
            ("rotation list --waiting-for you", "[possible values: me]"),
            ("rotation list --state done", "completed"),
            ("incident declare --key k", "--reason"),
            ("incident declare --reason r", "--key"),
            ("incident close ID", "--postmortem"),
            ("incident note ID", "--text"),
            ("key import k --algorithm hs256 --owner o", "--secret-file"),
            (
                "webhook verify --key k --scheme timestamp-body --timestamp 1 --event-id e",
                "--mac",
            ),
            ("key update k", "--grace"),
            ("key update k --standby=maybe", "true"),
            ("key revoke-version k --kid x", "--reason"),
            ("key destroy request k --reason r", "--kid"),
            ("key destroy approve ID", "--kid"),
            ("key list --due-within soon", "90d"),
            ("token revoke --jti J", "--reason"),
            ("client create c --owner ID --audience api", "--method"),
            (
                "client create c --owner ID --method client-secret",
                "--audience",
            ),
            ("api-key create n", "--expires"),
            ("principal suspend ID", "--reason"),
            ("api-key list --owner o --tenant t", "cannot be used with"),
            ("tenant create t --idempotency-key schlüssel", "ASCII"),
            ("credential put openai", "--environment"),
            ("credential reveal ID", "--reason"),
            ("credential import fernet --keys k --token a=b", "--rows"),
            ("credential import fernet --rows f --keys k", "--token"),
            (
                "credential import fernet --rows f --keys k --token a=b --set owner=o",
                "owner_id",
            ),
            ("credential import env --environment prod", "--owner"),
            (
                "credential import env --owner-name o --environment live-ish",
                "development",
            ),
            ("usage record --provider p", "--event-id"),
            ("usage report --day 2026-13-01", "2026-01-31"),
            ("limit set --requests-per-minute 5", "--credential"),
            (
                "limit set --provider p --principal q",
                "cannot be used with",
            ),
        ] {
            let said = parses(line).expect_err(line);
            assert!(said.contains(missing), "{line}: {said}");
        }
    }

    #[test]
    fn every_command_is_on_its_page() {
        fn walk(command: &clap::Command, path: &str, page: &str) {
            for sub in command
                .get_subcommands()
                .filter(|sub| sub.get_name() != "help")
            {
                let path = format!("{path} {}", sub.get_name());
                let name = path.trim_start();
                let leaf = sub.get_subcommands().next().is_none();
                assert!(!leaf || page.contains(&format!("`{name}")), "{name}");
                walk(sub, &path, page);
            }
        }
        walk(&Cli::command(), "", include_str!("../../docs/cli.md"));
    }
}
