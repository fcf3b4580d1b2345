//! `claviger bench`: what a daemon does per second, client included, beside an empty call and the raw token.
//!
//! One run, one machine, one set of connections, so that the ratios mean something where the absolute numbers depend
//! on the hardware. Every call is authenticated, authorised and durably audited, as in production; the empty call is
//! the standard health check over the same listener.

mod load;
mod oauth;
mod streams;

use std::{path::PathBuf, time::Duration};

use clap::Args as ClapArgs;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{
    client::Connection,
    exit::{Exit, Failure, Result},
    options::Options,
    output,
};
use crate::{
    backends::pkcs11::{Modules, Pkcs11Config, raw_sign_rate, verify_costs},
    config::{BackendConfig, Config},
    grpc::proto::{DecryptRequest, EncryptRequest, IssueTokenRequest, SignRequest, sign_request},
    keys::SAMPLED_ONE_IN,
};
use load::{Load, Measured};

/// Measure a running daemon, as a caller with the roles crypto-user and token-issuer; with --dir the OAuth endpoints too
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// SIGNING key to use
    #[arg(long, value_name = "KEY", default_value = "orders-signing")]
    signing_key: String,
    /// TOKEN_SIGNING key to use
    #[arg(long, value_name = "KEY", default_value = "orders-tokens")]
    token_key: String,
    /// ENCRYPTION key to use
    #[arg(long, value_name = "KEY", default_value = "orders-vault")]
    encryption_key: String,
    /// Seconds for each operation
    #[arg(long, value_name = "N", default_value_t = 5)]
    seconds: u64,
    /// TLS connections
    #[arg(long, value_name = "N", default_value_t = 4)]
    connections: usize,
    /// Calls in flight on each connection
    #[arg(long, value_name = "N", default_value_t = 64)]
    in_flight: usize,
    /// Also measure the raw token of this configuration's first PKCS#11 backend, and what it costs to verify after it has
    /// signed, in this process
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// MiB through EncryptStream, and through EncryptStream and DecryptStream; 0 leaves them out
    #[arg(long, value_name = "N", default_value_t = 1024)]
    stream_mib: usize,
    /// Threads for the raw token
    #[arg(long, value_name = "N", default_value_t = 2)]
    token_threads: usize,
}

/// What a rate is compared with.
enum Beside<'a> {
    /// Signatures of the token alone.
    RawToken,
    /// A call or request that does nothing, over the same listener.
    Empty(&'static str, &'a Measured),
}

/// Bytes that are signed and encrypted.
const PAYLOAD: usize = 256;

/// Runs `claviger bench`.
pub async fn run(args: Args, options: &Options) -> Result<Exit> {
    let duration = Duration::from_secs(args.seconds.clamp(1, 60));
    let mut connections = Vec::with_capacity(args.connections);
    for _ in 0..args.connections.max(1) {
        connections.push(options.connect().await?.connection().clone());
    }
    let load = Load {
        connections,
        in_flight: args.in_flight.max(1),
        duration,
    };
    // A PKCS#11 library is loaded once per process.
    let modules = Modules::new();
    // Before the daemon is warm, and again after it: the machine may not be the same all along.
    let raw = args
        .config
        .as_deref()
        .map(|config| raw(config, &modules, &args, duration));
    let raw = raw.transpose()?;

    let echo = load.run(echo).await?;
    let payload = bytes::Bytes::from(vec![0x5a; PAYLOAD]);
    let encrypt = EncryptRequest {
        key: args.encryption_key.clone(),
        plaintext: payload.clone(),
        ..EncryptRequest::default()
    };
    let encrypted = load.connections[0]
        .crypto()
        .encrypt(encrypt.clone())
        .await?;
    let decrypt = DecryptRequest {
        key: args.encryption_key.clone(),
        ciphertext: encrypted.into_inner().ciphertext,
        ..DecryptRequest::default()
    };
    let sign = SignRequest {
        key: args.signing_key.clone(),
        payload: Some(sign_request::Payload::Message(payload)),
        ..SignRequest::default()
    };
    let issue = IssueTokenRequest {
        key: args.token_key.clone(),
        audience: vec!["bench".to_owned()],
        scope: vec!["read".to_owned()],
        ..IssueTokenRequest::default()
    };
    let encrypts = load
        .run(move |c: Connection| {
            let request = encrypt.clone();
            async move { c.crypto().encrypt(request).await.map(drop) }
        })
        .await?;
    let decrypts = load
        .run(move |c: Connection| {
            let request = decrypt.clone();
            async move { c.crypto().decrypt(request).await.map(drop) }
        })
        .await?;
    let signs = load
        .run(move |c: Connection| {
            let request = sign.clone();
            async move { c.crypto().sign(request).await.map(drop) }
        })
        .await?;
    let issues = load
        .run(move |c: Connection| {
            let request = issue.clone();
            async move { c.tokens().issue_token(request).await.map(drop) }
        })
        .await?;

    let streams = match args.stream_mib {
        0 => None,
        mib => {
            let (one, two) = (&load.connections[0], options.connect().await?);
            let two = two.connection();
            Some(streams::measure(one, two, &args.encryption_key, mib).await?)
        }
    };

    let oauth = match &options.dir {
        Some(dir) => Some(oauth::measure(dir, &load).await?),
        None => None,
    };

    let row = |name: &str, m: &Measured, beside: &Beside<'_>| {
        let ratio = match beside {
            Beside::RawToken => raw.map(|raw| format!("{:.2} of the raw token", m.rate / raw)),
            Beside::Empty(what, empty) => {
                Some(format!("{:.2} of the empty {what}", m.rate / empty.rate))
            }
        };
        let ratio = ratio.unwrap_or_else(|| "-".to_owned());
        [
            name.to_owned(),
            format!("{:.0}/s", m.rate),
            format!("{:.2} ms", m.p50.as_secs_f64() * 1e3),
            format!("{:.2} ms", m.p99.as_secs_f64() * 1e3),
            ratio,
        ]
    };
    let call = Beside::Empty("call", &echo);
    let mut rows = vec![
        row("empty call", &echo, &call),
        row("Encrypt 256 B", &encrypts, &call),
        row("Decrypt 256 B", &decrypts, &call),
        row("Sign ES256", &signs, &Beside::RawToken),
        row("IssueToken ES256", &issues, &Beside::RawToken),
    ];
    if let Some(m) = &oauth {
        let request = Beside::Empty("request", &m.empty);
        rows.extend([
            row("empty HTTP request", &m.empty, &request),
            row("/oauth/token ES256", &m.tokens, &Beside::RawToken),
            row("/oauth/token, shared", &m.shared, &request),
            row("/oauth/introspect", &m.introspection, &request),
        ]);
    }
    if let Some(raw) = raw {
        let threads = args.token_threads;
        rows.push([
            format!("raw token, {threads} threads"),
            format!("{raw:.0}/s"),
            "-".to_owned(),
            "-".to_owned(),
            "-".to_owned(),
        ]);
    }
    if let Some(m) = streams {
        rows.extend(stream_rows(&m, args.stream_mib));
    }
    output::print(&output::table(
        ["operation", "rate", "p50", "p99", "ratio"],
        rows,
    ))?;
    if let Some(config) = args.config.as_deref() {
        output::print(&verify_after_sign(config, &modules, duration)?)?;
    }
    Ok(Exit::Ok)
}

/// What `verify_after_sign` adds to a signature, by algorithm: the ratios of docs/backends.md.
fn verify_after_sign(
    path: &std::path::Path,
    modules: &Modules,
    duration: Duration,
) -> Result<String> {
    let pkcs11 = token(path)?;
    let costs = || verify_costs(&pkcs11, modules, duration);
    let costs = tokio::task::block_in_place(costs).map_err(Failure::other)?;
    let micros = |time: Duration| format!("{:.0} us", time.as_secs_f64() * 1e6);
    let rows = costs.iter().map(|cost| {
        let ratio = cost.verify.as_secs_f64() / cost.sign.as_secs_f64();
        let name = match cost.rsa_bits {
            0 => cost.algorithm.to_string(),
            bits => format!("{}, {bits} bits", cost.algorithm),
        };
        let added = |share: f64| format!("{:+.1} %", 100.0 * ratio * share);
        [
            name,
            micros(cost.sign),
            micros(cost.verify),
            added(1.0),
            added(1.0 / f64::from(SAMPLED_ONE_IN)),
        ]
    });
    Ok(output::table(
        [
            "raw token, one thread",
            "sign",
            "verify",
            "always",
            "sampled",
        ],
        rows,
    ))
}

fn stream_rows(m: &streams::Measured, mib: usize) -> [[String; 5]; 4] {
    let row = |name: &str, rate: f64, ratio: String| {
        let none = || "-".to_owned();
        let rate = format!("{rate:.0} MiB/s");
        [format!("{name} {mib} MiB"), rate, none(), none(), ratio]
    };
    let of = |rate: f64, raw: f64| format!("{:.2} of the raw cipher", rate / raw);
    let none = || "-".to_owned();
    [
        row("EncryptStream", m.sealed, of(m.sealed, m.raw_sealed)),
        row(
            "EncryptStream | DecryptStream",
            m.piped,
            of(m.piped, m.raw_piped),
        ),
        row("raw AES-256-GCM, seal,", m.raw_sealed, none()),
        row("raw AES-256-GCM, seal and open,", m.raw_piped, none()),
    ]
}

async fn echo(connection: Connection) -> Result<(), tonic::Status> {
    HealthClient::new(connection.service())
        .check(HealthCheckRequest::default())
        .await
        .map(drop)
}

fn raw(path: &std::path::Path, modules: &Modules, args: &Args, duration: Duration) -> Result<f64> {
    let pkcs11 = token(path)?;
    let threads = args.token_threads.max(1);
    tokio::task::block_in_place(|| raw_sign_rate(&pkcs11, modules, threads, duration))
        .map_err(Failure::other)
}

/// The first PKCS#11 backend of a configuration.
fn token(path: &std::path::Path) -> Result<Pkcs11Config> {
    let config = Config::load(path).map_err(Failure::usage)?;
    let mut tokens = config
        .backends
        .into_values()
        .filter_map(|backend| match backend {
            BackendConfig::Pkcs11(pkcs11) => Some(pkcs11),
            BackendConfig::AwsKms(_) => None,
        });
    let first = tokens.next();
    first.ok_or_else(|| Failure::usage("the configuration has no PKCS#11 backend"))
}
