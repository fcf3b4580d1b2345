//! Does the time that a refusal takes tell what is wrong with an API key?
//!
//! `timing DIR [TRIES]` tries keys in random order, one at a time over one open connection, against a daemon of
//! `claviger dev` in DIR: one with an id that nobody has, one with a known id and another secret, and one that is right but
//! for the last character of its secret, checksum included. First at the token endpoint, then with Encrypt and `x-api-key`
//! over gRPC. Welch's t-test compares each two; it ends with 1 when |t| is 4.5 or more. A fourth key, whose checksum is
//! wrong, is refused unseen and is the control: a measurement that does not tell it apart sees nothing, and fails too.
//!
//! Most tries are answered by the throttle of failures, whose bound is far below what a test needs. They count: the key
//! is looked up and hashed before the throttle is asked, and an attacker sees such answers, too. Each of the three
//! keys has one id, so the throttle treats them alike. Answers are compared with answers of the same kind. The slowest
//! twentieth of all tries is interruptions; `t` is given with and without them, and both must be small.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::rand;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use claviger::{
    clock::Clock,
    grpc::proto::{
        CreateApiKeyRequest, CreateApiKeyResponse, EncryptRequest, KeyPurpose, ListKeysRequest,
        api_key_service_client::ApiKeyServiceClient, crypto_service_client::CryptoServiceClient,
        key_service_client::KeyServiceClient,
    },
    model::{ApiKeyId, ApiKeyText},
};
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};

type Fallible<T> = Result<T, Box<dyn Error>>;

const TENANT: &str = "acme";
/// Names of the keys, and their order everywhere below.
const NAMES: [&str; 4] = ["unknown id", "wrong secret", "right prefix", "control"];
/// Those that must not be told apart.
const PAIRS: [(usize, usize); 3] = [(0, 1), (0, 2), (1, 2)];
/// From which on a difference is taken for one.
const BOUND: f64 = 4.5;
/// A kind of answer that came more seldom for one of the keys is not compared.
const FEW: usize = 1000;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(7)
        }
    }
}

async fn run() -> Fallible<bool> {
    let mut arguments = env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("usage: timing DIR [TRIES]")?);
    let tries = arguments
        .next()
        .map_or(Ok(100_000), |tries| tries.parse())?;
    let site = Site::read(dir)?;
    let keys = site.keys().await?;
    let mut token = TokenEndpoint::open(&site, &keys).await?;
    let by_token = measure(tries, async |which| token.try_key(which).await).await?;
    let tokens_alike = report("POST /oauth/token", &by_token);
    let mut port = GrpcPort::open(&site, &keys).await?;
    let by_call = measure(tries, async |which| port.try_key(which).await).await?;
    Ok(report("Encrypt, x-api-key", &by_call) && tokens_alike)
}

/// Seconds by kind of answer, and by key.
type Times = BTreeMap<String, [Vec<f64>; 4]>;

async fn measure(
    tries: usize,
    mut try_key: impl AsyncFnMut(usize) -> Fallible<(String, Duration)>,
) -> Fallible<Times> {
    let mut times = Times::new();
    for _ in 0..tries / 20 {
        try_key(draw()?).await?;
    }
    let mut counts = [0; 4];
    while counts.iter().any(|count| *count < tries) {
        let which = draw()?;
        let (kind, took) = try_key(which).await?;
        times.entry(kind).or_default()[which].push(took.as_secs_f64());
        counts[which] += 1;
    }
    Ok(times)
}

/// The number of a key, each as likely.
fn draw() -> Fallible<usize> {
    let mut byte = [0];
    rand::fill(&mut byte).map_err(|_| "no randomness")?;
    Ok(usize::from(byte[0]) % NAMES.len())
}

/// Prints a table. True when no two keys can be told apart, and the control can.
fn report(what: &str, times: &Times) -> bool {
    let mut alike = true;
    for (kind, times) in times {
        println!("{what}: {kind}");
        for (name, times) in NAMES.iter().zip(times) {
            let (mean, _) = moments(times);
            println!(
                "  {name:<14} {:>7} tries  mean {:.1} us",
                times.len(),
                mean * 1e6
            );
        }
        if times.iter().any(|times| times.len() < FEW) {
            println!("  too few to compare");
            continue;
        }
        let mut all = times.concat();
        all.sort_unstable_by(f64::total_cmp);
        let limit = all[all.len() * 19 / 20];
        let calm = times.each_ref().map(|times| {
            let calm = times.iter().copied().filter(|time| *time <= limit);
            calm.collect::<Vec<_>>()
        });
        let differ = |one: usize, other: usize| {
            let whole = welch(&times[one], &times[other]);
            let calm = welch(&calm[one], &calm[other]);
            let differ = whole.abs() >= BOUND || calm.abs() >= BOUND;
            let verdict = if differ { "told apart" } else { "alike" };
            let (one, other) = (NAMES[one], NAMES[other]);
            println!(
                "  {one:<14} - {other:<14} t = {whole:>8.2}, without the slowest {calm:>8.2}  {verdict}"
            );
            differ
        };
        for (one, other) in PAIRS {
            alike &= !differ(one, other);
        }
        let sees = differ(0, 3);
        if !sees {
            println!("  the control is not told apart: more tries are needed");
        }
        alike &= sees;
    }
    alike
}

/// Welch's t of two samples.
fn welch(one: &[f64], other: &[f64]) -> f64 {
    let ((mean, variance), (other_mean, other_variance)) = (moments(one), moments(other));
    let error = variance / one.len() as f64 + other_variance / other.len() as f64;
    (mean - other_mean) / error.sqrt()
}

/// Mean and variance.
fn moments(sample: &[f64]) -> (f64, f64) {
    let count = sample.len() as f64;
    let mean = sample.iter().sum::<f64>() / count;
    let squares = sample
        .iter()
        .map(|value| (value - mean).powi(2))
        .sum::<f64>();
    (mean, squares / (count - 1.0))
}

/// A key to try.
struct Key {
    id: String,
    text: String,
}

/// A directory of `claviger dev`.
struct Site {
    dir: PathBuf,
    addresses: BTreeMap<String, String>,
}

impl Site {
    fn read(dir: PathBuf) -> Fallible<Self> {
        let addresses = fs::read(dir.join("addresses.json"))?;
        let addresses = serde_json::from_slice(&addresses)?;
        Ok(Self { dir, addresses })
    }

    fn address(&self, listener: &str) -> Fallible<&str> {
        let found = self.addresses.get(listener);
        Ok(found.ok_or("addresses.json names no such listener")?)
    }

    /// Makes two keys, uses them so that the daemon knows them, and spoils them. The others are nobody's.
    async fn keys(&self) -> Fallible<[Key; 4]> {
        let unknown = ApiKeyText::generate(ApiKeyId::random())?;
        let control = ApiKeyText::generate(ApiKeyId::random())?;
        let (one, two) = (self.make().await?, self.make().await?);
        let id = one.api_key.unwrap_or_default().id;
        let wrong = ApiKeyText::generate(id.parse()?)?;
        self.use_once(&[&one.secret, &two.secret]).await?;
        Ok([
            Key {
                id: unknown.id().to_string(),
                text: unknown.expose_secret().clone(),
            },
            Key {
                id,
                text: wrong.expose_secret().clone(),
            },
            Key {
                id: two.api_key.unwrap_or_default().id,
                text: nearly(&two.secret)?,
            },
            Key {
                id: control.id().to_string(),
                text: control.expose_secret().replace("cvk_", "cvk_0"),
            },
        ])
    }

    async fn make(&self) -> Fallible<CreateApiKeyResponse> {
        let request = CreateApiKeyRequest {
            name: "timing".to_owned(),
            expire_time: Some(prost_types::Timestamp {
                seconds: Clock::System.now().seconds() + 3600,
                nanos: 0,
            }),
            scopes: vec!["claviger:crypto-user".to_owned()],
            ..CreateApiKeyRequest::default()
        };
        let channel = self.channel(Some("partner"))?;
        let made = ApiKeyServiceClient::new(channel)
            .create_api_key(request)
            .await;
        Ok(made?.into_inner())
    }

    async fn use_once(&self, keys: &[&str]) -> Fallible<()> {
        let mut client = CryptoServiceClient::new(self.channel(None)?);
        for key in keys {
            client.encrypt(encrypt(&self.vault().await?, key)?).await?;
        }
        Ok(())
    }

    /// An ENCRYPTION key.
    async fn vault(&self) -> Fallible<String> {
        let request = ListKeysRequest {
            tenant: TENANT.to_owned(),
            ..ListKeysRequest::default()
        };
        let mut client = KeyServiceClient::new(self.channel(Some("issuer"))?);
        let listed = client.list_keys(request).await?.into_inner();
        let mut keys = listed.keys.into_iter();
        let vault = keys.find(|key| key.purpose() == KeyPurpose::Encryption);
        Ok(vault.ok_or("tenant acme has no encryption key")?.name)
    }

    fn channel(&self, name: Option<&str>) -> Fallible<Channel> {
        let config = tls(&self.dir, name, b"h2")?;
        let address = self.address("grpc")?.to_owned();
        let origin = format!("https://{address}").parse()?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.origin(origin);
        let connector = tower::service_fn(move |_: Uri| {
            let (config, address) = (Arc::clone(&config), address.clone());
            async move { connect(config, &address).await.map(TokioIo::new) }
        });
        Ok(endpoint.connect_with_connector_lazy(connector))
    }
}

fn encrypt(vault: &str, key: &str) -> Fallible<tonic::Request<EncryptRequest>> {
    let mut request = tonic::Request::new(EncryptRequest {
        tenant: TENANT.to_owned(),
        key: vault.to_owned(),
        plaintext: Bytes::from_static(b"x"),
        ..EncryptRequest::default()
    });
    request.metadata_mut().insert("x-api-key", key.parse()?);
    Ok(request)
}

/// The key with another last character of its secret, and the checksum that belongs to it.
fn nearly(text: &str) -> Fallible<String> {
    let (body, _) = text.rsplit_once('_').ok_or("no API key")?;
    let (kept, last) = body.split_at(body.len() - 1);
    let other = if last == "0" { "1" } else { "0" };
    let body = format!("{kept}{other}");
    let mut crc = crc32fast::hash(body.as_bytes());
    let mut digits = [0; 6];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(crc % 62) as usize];
        crc /= 62;
    }
    Ok(format!("{body}_{}", std::str::from_utf8(&digits)?))
}

/// POST /oauth/token over one HTTP/1.1 connection.
struct TokenEndpoint {
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
    logins: Vec<HeaderValue>,
}

impl TokenEndpoint {
    async fn open(site: &Site, keys: &[Key; 4]) -> Fallible<Self> {
        let address = site.address("public")?;
        let tls = connect(tls(&site.dir, None, b"http/1.1")?, address).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        drop(tokio::spawn(connection));
        let login = |key: &Key| {
            let login = BASE64_STANDARD.encode(format!("{}:{}", key.id, key.text));
            HeaderValue::from_str(&format!("Basic {login}"))
        };
        Ok(Self {
            sender,
            host: address.to_owned(),
            logins: keys.iter().map(login).collect::<Result<_, _>>()?,
        })
    }

    async fn try_key(&mut self, which: usize) -> Fallible<(String, Duration)> {
        let request = Request::post("/oauth/token")
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::AUTHORIZATION, &self.logins[which])
            .body(Full::new(Bytes::from_static(
                b"grant_type=client_credentials",
            )))?;
        self.sender.ready().await?;
        let began = Instant::now();
        let (parts, body) = self.sender.send_request(request).await?.into_parts();
        body.collect().await?;
        Ok((parts.status.to_string(), began.elapsed()))
    }
}

/// Encrypt over one gRPC connection without a certificate.
struct GrpcPort {
    client: CryptoServiceClient<Channel>,
    vault: String,
    keys: Vec<String>,
}

impl GrpcPort {
    async fn open(site: &Site, keys: &[Key; 4]) -> Fallible<Self> {
        Ok(Self {
            client: CryptoServiceClient::new(site.channel(None)?),
            vault: site.vault().await?,
            keys: keys.iter().map(|key| key.text.clone()).collect(),
        })
    }

    async fn try_key(&mut self, which: usize) -> Fallible<(String, Duration)> {
        let request = encrypt(&self.vault, &self.keys[which])?;
        let began = Instant::now();
        let answer = self.client.encrypt(request).await;
        let took = began.elapsed();
        match answer {
            Ok(_) => Err("a key that is none was let in".into()),
            Err(status) => Ok((format!("{:?}", status.code()), took)),
        }
    }
}

fn tls(dir: &Path, name: Option<&str>, alpn: &[u8]) -> Fallible<Arc<ClientConfig>> {
    let certs = dir.join("certs");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certs.join("ca.crt"))?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut config = match name {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let chain = CertificateDer::pem_file_iter(certs.join(format!("{name}.crt")))?;
            let key = PrivateKeyDer::from_pem_file(certs.join(format!("{name}.key")))?;
            builder.with_client_auth_cert(chain.collect::<Result<_, _>>()?, key)?
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

async fn connect(
    config: Arc<ClientConfig>,
    address: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    // Small requests must not wait for each other.
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from("localhost").map_err(std::io::Error::other)?;
    TlsConnector::from(config).connect(name, tcp).await
}
