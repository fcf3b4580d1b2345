//! The options that every RPC command shares, and the session they open.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde::Deserialize;
use tonic::{Request, Response, Status};

use super::{
    client::{self, Connection, Target},
    exit::{Failure, Result},
    input, output,
    retry::{self, IdempotencyKey, Retry},
};

/// Where to connect, as whom, and how to print.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Address of the daemon's gRPC listener [default: https://localhost:8443]
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "CLAVIGER_CLIENT_ADDRESS",
        help_heading = "Connection"
    )]
    address: Option<String>,
    /// CA certificate that the server's certificate must come from, PEM
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "CLAVIGER_CLIENT_CA",
        help_heading = "Connection"
    )]
    ca: Option<PathBuf>,
    /// Client certificate, PEM
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "CLAVIGER_CLIENT_CERT",
        help_heading = "Connection"
    )]
    cert: Option<PathBuf>,
    /// Private key of the client certificate, PEM
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "CLAVIGER_CLIENT_KEY",
        help_heading = "Connection"
    )]
    cert_key: Option<PathBuf>,
    /// Name in the server's certificate, when it is not the host of the address
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "CLAVIGER_CLIENT_SERVER_NAME",
        help_heading = "Connection"
    )]
    server_name: Option<String>,
    /// Directory of `claviger dev`: address, CA and certificates are taken from there
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "CLAVIGER_CLIENT_DIR",
        help_heading = "Connection"
    )]
    pub dir: Option<PathBuf>,
    /// Identity in that directory: admin, issuer, approver, deployer, officer, deputy, auditor, service, other, partner, stranger
    #[arg(
        long = "as",
        global = true,
        value_name = "NAME",
        env = "CLAVIGER_CLIENT_AS",
        help_heading = "Connection"
    )]
    caller: Option<String>,
    /// How long to wait for the connection and for each call
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = input::duration, help_heading = "Connection")]
    timeout: Duration,
    /// For commands that change something: the daemon carries out only one call with the same key and the same request,
    /// and repeats its answer [default: a new one per command]
    #[arg(long, global = true, value_name = "KEY", value_parser = retry::idempotency_key, help_heading = "Connection")]
    idempotency_key: Option<IdempotencyKey>,
    /// How to print answers
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// Canonical proto JSON, for programs.
    Json,
}

/// The directory of `claviger dev` when none is named.
pub const DEV_DIR: &str = ".dev";

/// The addresses that the daemon listens on, as it writes them to `addresses.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Addresses {
    /// gRPC, mTLS.
    pub grpc: String,
    /// JWKS, TLS.
    pub public: String,
    /// Health and metrics, plain.
    pub ops: String,
}

impl Addresses {
    /// Reads `addresses.json` of a development directory.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("addresses.json");
        let text = std::fs::read(&path).map_err(|e| {
            let path = path.display();
            Failure::unavailable(format!(
                "cannot read {path}: {e}; is `claviger dev` running there?"
            ))
        })?;
        serde_json::from_slice(&text)
            .map_err(|e| Failure::other(format!("{}: {e}", path.display())))
    }
}

/// An open connection and the way to print what comes back.
pub struct Session {
    connection: Connection,
    retry: Retry,
    format: Format,
    again: String,
    somebody: String,
}

impl std::ops::Deref for Session {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Options {
    /// Connects.
    pub async fn connect(&self) -> Result<Session> {
        Ok(Session {
            connection: client::connect(&self.target()?).await?,
            retry: self.retry()?,
            format: self.output,
            again: self.again(),
            somebody: self.somebody(),
        })
    }

    fn retry(&self) -> Result<Retry> {
        let key = match &self.idempotency_key {
            Some(key) => key.clone(),
            None => IdempotencyKey::random()?,
        };
        Ok(Retry {
            key,
            patience: self.timeout,
            pause: retry::FIRST_PAUSE,
        })
    }

    fn target(&self) -> Result<Target> {
        let dir = match (&self.dir, &self.caller) {
            (Some(dir), _) => Some(dir.clone()),
            (None, Some(_)) => Some(PathBuf::from(DEV_DIR)),
            (None, None) => None,
        };
        let certs = dir.as_ref().map(|dir| dir.join("certs"));
        let address = match (&self.address, &dir) {
            (Some(address), _) => address.clone(),
            (None, Some(dir)) => format!("https://{}", Addresses::read(dir)?.grpc),
            (None, None) => "https://localhost:8443".to_owned(),
        };
        let ca = self
            .ca
            .clone()
            .or_else(|| Some(certs.as_ref()?.join("ca.crt")));
        let ca = ca.ok_or_else(|| {
            Failure::usage(
                "which CA is to be trusted? Give --ca FILE, or --dir DIR of `claviger dev`",
            )
        })?;
        let identity = match (&self.cert, &self.cert_key, &certs, &self.caller) {
            (Some(cert), Some(key), _, _) => Some((cert.clone(), key.clone())),
            (Some(_), None, _, _) | (None, Some(_), _, _) => {
                return Err(Failure::usage("--cert and --cert-key go together"));
            }
            (None, None, Some(certs), Some(name)) => {
                let file = |suffix| certs.join(format!("{name}.{suffix}"));
                Some((file("crt"), file("key")))
            }
            (None, None, Some(_), None) => {
                return Err(Failure::usage("--dir needs --as NAME: who calls?"));
            }
            (None, None, None, _) => None,
        };
        Ok(Target {
            address,
            ca,
            identity,
            server_name: self.server_name.clone(),
            timeout: self.timeout,
        })
    }

    /// How the command line of another person begins, who connects to the same daemon.
    fn somebody(&self) -> String {
        let placeholder = |given: bool, text: &str| given.then(|| text.to_owned());
        let other = Self {
            cert: placeholder(self.cert.is_some(), "THEIRS.crt").map(PathBuf::from),
            cert_key: placeholder(self.cert_key.is_some(), "THEIRS.key").map(PathBuf::from),
            caller: placeholder(self.caller.is_some(), "THEM"),
            ..self.clone()
        };
        other.again()
    }

    /// How a command line with the same connection begins.
    fn again(&self) -> String {
        let mut line = String::from("claviger");
        let mut add = |option: &str, value: Option<String>| {
            if let Some(value) = value {
                line = format!("{line} {option} {}", output::shell_word(&value));
            }
        };
        let path = |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string());
        add("--address", self.address.clone());
        add("--ca", path(&self.ca));
        add("--cert", path(&self.cert));
        add("--cert-key", path(&self.cert_key));
        add("--server-name", self.server_name.clone());
        add("--dir", path(&self.dir));
        add("--as", self.caller.clone());
        line
    }
}

impl Session {
    /// The connection itself.
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// How answers are printed.
    pub fn format(&self) -> Format {
        self.format
    }

    /// How a command line with the same connection begins.
    pub fn again(&self) -> &str {
        &self.again
    }

    /// How the command line of another person begins, who connects to the same daemon.
    pub fn somebody(&self) -> &str {
        &self.somebody
    }

    /// A call that changes something: under this invocation's idempotency key, and again while the daemon is
    /// UNAVAILABLE. No command makes two.
    pub async fn mutate<M: Clone, A>(
        &self,
        message: M,
        call: impl AsyncFn(Request<M>) -> std::result::Result<Response<A>, Status>,
    ) -> Result<A> {
        self.retry.call(message, call).await
    }

    /// One of many calls of the same command: each has a key of its own.
    pub async fn mutate_one_of_many<M: Clone, A>(
        &self,
        message: M,
        call: impl AsyncFn(Request<M>) -> std::result::Result<Response<A>, Status>,
    ) -> Result<A> {
        let key = IdempotencyKey::random()?;
        let retry = Retry {
            key,
            ..self.retry.clone()
        };
        retry.call(message, call).await
    }

    /// Tells a person whose listing is empty that they looked into their own tenant only, on stderr.
    pub fn explain_nothing(&self, rows: usize, tenant: &str) {
        if self.format == Format::Table && rows == 0 && tenant.is_empty() {
            // Nobody is left to tell when stderr is closed.
            let _ = writeln!(
                io::stderr(),
                "claviger: nothing in your own tenant; name another with --tenant"
            );
        }
    }

    /// Prints an answer as proto JSON or in the form for people.
    pub fn show<M>(&self, message: &M, table: impl FnOnce(&M) -> String) -> Result<()>
    where
        M: prost::Message + prost::Name,
    {
        match self.format {
            Format::Json => output::print(&output::json(message)?),
            Format::Table => output::print(&table(message)),
        }
    }
}
