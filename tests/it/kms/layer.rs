//! layer.py, and processes that talk to it.
//!
//! The credentials chain reads the environment, so a test of KMS runs in a process of its own that got its
//! credentials there. All share one server; each has its own region and therefore its own keys and faults.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use aws_sdk_kms::{
    config::{BehaviorVersion, Credentials as Keys, Region},
    types::{KeyMetadata, KeyUsageType},
};
use claviger::backends::{
    BackendError, VerifyAfterSign,
    aws_kms::{AwsKmsBackend, AwsKmsConfig, QuotaConfig},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::proxy::Proxy;
use crate::{
    foreign,
    softhsm::{self, soon},
};

const PORT: &str = "CLAVIGER_TEST_KMS_PORT";
const REGION: &str = "CLAVIGER_TEST_KMS_REGION";
/// The account that moto gives everybody.
pub const ACCOUNT: &str = "123456789012";
/// How the daemon shows AWS who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// Keys in the environment.
    Keys,
    /// The token of a service account in a file.
    WebIdentity,
    /// Not at all.
    None,
}

/// KMS in one region, with a proxy before it.
pub struct Kms {
    layer: SocketAddr,
    pub proxy: Proxy,
    pub region: String,
}

pub fn alone<F: AsyncFnOnce(Kms)>(test: F) {
    alone_with(Credentials::Keys, test);
}

/// Runs the calling test in a process of its own with such credentials. The closure must be written in the
/// body of the test function: its name says which test to start.
pub fn alone_with<F: AsyncFnOnce(Kms)>(credentials: Credentials, test: F) {
    if let (Ok(port), Ok(region)) = (env::var(PORT), env::var(REGION)) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        return runtime.block_on(async {
            let port = port.parse().expect("a port");
            test(Kms::connect(port, region).await).await;
        });
    }
    let port = port().to_string();
    let region = next_region();
    let sts = format!("http://127.0.0.1:{port}");
    let token = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("token-{region}"));
    fs::write(&token, "header.claims.signature").expect("a token");
    let mut variables = vec![
        (PORT, OsStr::new(&port)),
        (REGION, OsStr::new(&region)),
        // Nothing of whoever runs the tests.
        ("AWS_CONFIG_FILE", OsStr::new("/dev/null")),
        ("AWS_SHARED_CREDENTIALS_FILE", OsStr::new("/dev/null")),
        ("AWS_EC2_METADATA_DISABLED", OsStr::new("true")),
        ("AWS_ACCESS_KEY_ID", OsStr::new("")),
        ("AWS_SECRET_ACCESS_KEY", OsStr::new("")),
        ("AWS_SESSION_TOKEN", OsStr::new("")),
    ];
    match credentials {
        Credentials::Keys => variables.extend([
            ("AWS_ACCESS_KEY_ID", OsStr::new("AKIDTEST")),
            ("AWS_SECRET_ACCESS_KEY", OsStr::new("secret")),
        ]),
        Credentials::WebIdentity => variables.extend([
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_os_str()),
            (
                "AWS_ROLE_ARN",
                OsStr::new("arn:aws:iam::123456789012:role/claviger"),
            ),
            ("AWS_ENDPOINT_URL_STS", OsStr::new(&sts)),
        ]),
        Credentials::None => {}
    }
    let out = softhsm::again::<F>(&variables);
    softhsm::passed::<F>(&out);
    // What it measured, for `--nocapture`.
    print!("{}", String::from_utf8_lossy(&out.stdout));
}

/// One for each test: of a name that AWS does not have.
fn next_region() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    format!("xx-test-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The port of the one server of this process, which ends when its standard input does: with us.
fn port() -> u16 {
    static SERVER: OnceLock<(Child, u16)> = OnceLock::new();
    SERVER.get_or_init(start).1
}

fn start() -> (Child, u16) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/kms/layer.py");
    let mut server = Command::new(foreign::python())
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python starts");
    let stdout = server.stdout.take().expect("piped");
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("layer.py speaks");
    let port = line.trim().parse().expect("layer.py prints its port");
    (server, port)
}

/// Patient, and without a quota in the way. `endpoint` is AWS's own when None.
pub fn config(region: &str, endpoint: Option<String>) -> AwsKmsConfig {
    AwsKmsConfig {
        region: region.into(),
        account: None,
        endpoint,
        fips: false,
        ed25519: None,
        attempt_timeout_ms: 10_000,
        operation_timeout_ms: 60_000,
        quotas: QuotaConfig {
            asymmetric_per_second: 100_000,
            symmetric_per_second: 100_000,
            control_per_second: 100_000,
            read_per_second: 100_000,
            share_percent: 100,
        },
        stall_ms: Some(800),
        verify_after_sign: VerifyAfterSign::Always,
    }
}

impl Kms {
    /// For a test that starts daemons and uses no credentials itself.
    pub async fn here() -> Self {
        let port = tokio::task::spawn_blocking(port).await.expect("layer.py");
        Self::connect(port, next_region()).await
    }

    async fn connect(port: u16, region: String) -> Self {
        let layer = SocketAddr::from(([127, 0, 0, 1], port));
        let proxy = Proxy::start(layer).await;
        Self {
            layer,
            proxy,
            region,
        }
    }

    pub fn config(&self) -> AwsKmsConfig {
        config(&self.region, Some(format!("http://{}", self.proxy.address)))
    }

    pub async fn open(&self, config: &AwsKmsConfig) -> Result<AwsKmsBackend, BackendError> {
        AwsKmsBackend::open("test", config, soon()).await
    }

    pub async fn backend(&self) -> AwsKmsBackend {
        self.open(&self.config()).await.expect("KMS opens")
    }

    /// A KEK as an operator makes it, by the name `alias/kek`; its ARN.
    pub async fn kek(&self) -> String {
        let operator = self.operator();
        let made = operator.create_key().send().await.expect("a KEK");
        let arn = made.key_metadata.and_then(|key| key.arn).expect("an ARN");
        let named = operator.create_alias().alias_name("alias/kek");
        named.target_key_id(&arn).send().await.expect("an alias");
        arn
    }

    /// Every key pair of the region, as AWS shows it.
    pub async fn pairs(&self) -> Vec<KeyMetadata> {
        let operator = self.operator();
        let keys = operator.list_keys().limit(1000).send().await;
        let mut pairs = Vec::new();
        for key in keys.expect("a list").keys() {
            let id = key.key_id().expect("an id");
            let shown = operator.describe_key().key_id(id).send().await;
            let shown = shown.expect("shown").key_metadata.expect("metadata");
            if shown.key_usage() == Some(&KeyUsageType::SignVerify) {
                pairs.push(shown);
            }
        }
        pairs
    }

    /// What an operator does in AWS.
    pub fn operator(&self) -> aws_sdk_kms::Client {
        let config = aws_sdk_kms::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(self.region.clone()))
            .endpoint_url(format!("http://{}", self.layer))
            .credentials_provider(Keys::new("AKIDOPERATOR", "secret", None, None, "test"))
            .build();
        aws_sdk_kms::Client::from_conf(config)
    }

    /// Replaces the faults of the region and forgets what was asked.
    pub async fn faults(&self, faults: Value) {
        self.control("POST", &faults.to_string()).await;
    }

    /// Requests of this name since `faults`.
    pub async fn asked(&self, operation: &str) -> u64 {
        self.control("GET", "").await["asked"][operation]
            .as_u64()
            .unwrap_or(0)
    }

    /// Requests refused with this code since `faults`.
    pub async fn refused(&self, code: &str) -> u64 {
        self.control("GET", "").await["refused"][code]
            .as_u64()
            .unwrap_or(0)
    }

    async fn control(&self, method: &str, body: &str) -> Value {
        let mut stream = TcpStream::connect(self.layer).await.expect("layer.py");
        let request = format!(
            "{method} /faults/{} HTTP/1.1\r\nHost: layer\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            self.region,
            body.len()
        );
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        let body = answer.split("\r\n\r\n").nth(1).expect("a body");
        serde_json::from_str(body).expect("JSON")
    }
}
