//! How a daemon comes to be: files, certificates, token, key-encryption key, schema; all through the binary itself.

use std::{
    fmt::Write,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::{Arc, Mutex},
};

use rcgen::SanType;
use tokio::sync::Semaphore;

use super::{Addresses, Daemon};
use crate::{
    pki::{Ca, Leaf, dns, named},
    postgres,
    softhsm::SoftHsm,
};

/// Label of the daemon's token.
pub const TOKEN: &str = "claviger-e2e";

/// Two cores carry no more; a test that needs two daemons at once is counted twice.
static TURNS: Semaphore = Semaphore::const_new(3);

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

/// Name, tenant, type, and roles in that tenant; in every tenant for those of `system`.
const PRINCIPALS: [(&str, &str, &str, &[&str]); 8] = [
    ("admin", "system", "user", &["principal-admin"]),
    ("issuer", "system", "user", &["key-issuer"]),
    ("approver", "system", "user", &["key-approver"]),
    ("deployer", "system", "user", &["key-deployer"]),
    ("officer", "system", "user", &["security-officer"]),
    ("auditor", "system", "user", &["auditor"]),
    (
        "service",
        "acme",
        "service",
        &["crypto-user", "token-issuer"],
    ),
    (
        "other",
        "globex",
        "service",
        &["crypto-user", "token-issuer"],
    ),
];

/// The SPIFFE ID in the certificate of `name`.
pub fn identity(name: &str) -> String {
    format!("spiffe://claviger.test/{name}")
}

/// A daemon to be.
pub struct Setup {
    engine: Engine,
    edits: Vec<Box<dyn FnOnce(String) -> String + Send>>,
    env: Vec<(String, String)>,
    turns: u32,
    url: Option<String>,
}

impl Setup {
    pub fn new(engine: Engine) -> Self {
        Self {
            engine,
            edits: Vec::new(),
            env: Vec::new(),
            turns: 1,
            url: None,
        }
    }

    /// On this PostgreSQL database.
    #[must_use]
    pub fn on(mut self, url: String) -> Self {
        self.url = Some(url);
        self
    }

    /// Leaves room for a second daemon (`Daemon::second`).
    #[must_use]
    pub const fn for_two(mut self) -> Self {
        self.turns = 2;
        self
    }

    /// By way of another URL of the same database.
    #[must_use]
    pub fn by_way_of(self, url: &str) -> Self {
        let line = format!("url = {}", serde_json::Value::from(url));
        self.edit(move |text| text.replace(&url_line(&text), &line))
    }

    /// Replaces a piece of the configuration, which must be there.
    #[must_use]
    pub fn replace(self, from: &'static str, to: impl Into<String>) -> Self {
        let to = to.into();
        self.edit(move |text| {
            assert!(text.contains(from), "claviger.toml has no {from:?}");
            text.replace(from, &to)
        })
    }

    /// Adds sections to the configuration.
    #[must_use]
    pub fn append(self, sections: impl Into<String>) -> Self {
        let sections = sections.into();
        self.edit(move |text| format!("{text}\n{sections}\n"))
    }

    /// Changes the configuration in any way.
    #[must_use]
    pub fn edit(mut self, edit: impl FnOnce(String) -> String + Send + 'static) -> Self {
        self.edits.push(Box::new(edit));
        self
    }

    /// Sets a variable in the daemon's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Provisions, starts, and waits until it is ready.
    pub async fn start(self) -> Daemon {
        let mut daemon = self.provision().await;
        if let Err(why) = daemon.up().await {
            panic!("the daemon does not start: {why}");
        }
        daemon
    }

    /// As `start`, beside a daemon that was set up `for_two`.
    pub async fn start_beside(mut self, _other: &Daemon) -> Daemon {
        self.turns = 0;
        self.start().await
    }

    /// Provisions and does not start.
    pub async fn provision(self) -> Daemon {
        let turn = TURNS.acquire_many(self.turns).await.expect("never closed");
        let dir = std::env::temp_dir().join(format!("claviger-e2e-{}", uuid::Uuid::now_v7()));
        for name in ["certs", "secrets", "tokens"] {
            fs::create_dir_all(dir.join(name)).expect("a directory");
        }
        let url = match self.engine {
            _ if self.url.is_some() => self.url.unwrap_or_default(),
            Engine::Sqlite => format!("sqlite://{}", dir.join("claviger.db").display()),
            Engine::Postgres => postgres::database().await,
        };
        let mut secrets = pins(&dir);
        secrets.extend(password(&url));
        let (ca, leaves) = certificates(&dir, &mut secrets);
        let tokens = dir.join("tokens");
        let softhsm = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        fs::write(dir.join("softhsm2.conf"), softhsm).expect("softhsm2.conf");
        let text = toml(&dir, &url);
        let daemon = Daemon {
            dir,
            engine: self.engine,
            url,
            env: self.env,
            ca: Arc::new(ca),
            leaves: Arc::new(leaves),
            secrets,
            child: None,
            addresses: Addresses::default(),
            channels: Mutex::default(),
            tampered: false,
            finished: false,
            _turn: Some(turn),
        };
        fs::write(daemon.config_path(), &text).expect("claviger.toml");
        daemon.prepare().await;
        let text = self.edits.into_iter().fold(text, |text, edit| edit(text));
        fs::write(daemon.config_path(), text).expect("claviger.toml");
        daemon
    }
}

impl Daemon {
    /// A second daemon on the same token and database, with the same people: replica `two`. `url` is where it finds the
    /// database, when that is another way than the first one's. It is stopped before the first.
    pub async fn second(&self, url: Option<&str>) -> Self {
        self.beside("two", url).await
    }

    /// As `second`, under another name.
    pub async fn beside(&self, replica: &str, url: Option<&str>) -> Self {
        let dir = std::env::temp_dir().join(format!("claviger-e2e-{}", uuid::Uuid::now_v7()));
        fs::create_dir_all(&dir).expect("a directory");
        fs::copy(self.path("softhsm2.conf"), dir.join("softhsm2.conf")).expect("softhsm2.conf");
        let addresses = |dir: &Path| dir.join("addresses.json").display().to_string();
        let mut text = fs::read_to_string(self.config_path()).expect("claviger.toml");
        for (from, to) in [
            (addresses(&self.dir), addresses(&dir)),
            (
                r#"replica = "one""#.into(),
                format!("replica = \"{replica}\""),
            ),
            (url_line(&text), {
                let url = url.unwrap_or(&self.url);
                format!("url = {}", serde_json::Value::from(url))
            }),
        ] {
            assert!(text.contains(&from), "claviger.toml has no {from:?}");
            text = text.replace(&from, &to);
        }
        let mut second = Self {
            dir,
            engine: self.engine,
            // The test itself goes the straight way.
            url: self.url.clone(),
            env: self.env.clone(),
            ca: Arc::clone(&self.ca),
            leaves: Arc::clone(&self.leaves),
            secrets: self.secrets.clone(),
            child: None,
            addresses: Addresses::default(),
            channels: Mutex::default(),
            tampered: false,
            finished: false,
            _turn: None,
        };
        fs::write(second.config_path(), text).expect("claviger.toml");
        if let Err(why) = second.up().await {
            panic!("the second daemon does not start: {why}");
        }
        second
    }

    async fn prepare(&self) {
        let library = SoftHsm::library();
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        let (module, config) = (text(&library), text(&self.config_path()));
        let (pin, so_pin) = (
            text(&self.path("secrets/pin")),
            text(&self.path("secrets/so_pin")),
        );
        let token = async {
            let files = ["--pin-file", &pin, "--so-pin-file", &so_pin];
            let init = ["hsm", "init", "--module", &module, "--label", TOKEN];
            self.cli_ok(&[&init[..], &files[..]].concat()).await;
            self.cli_ok(&["kek", "create", "--config", &config]).await;
        };
        let migrate = ["migrate", "--config", &config];
        tokio::join!(token, self.cli_ok(&migrate));
    }
}

/// The line of the configuration that says where the database is.
fn url_line(text: &str) -> String {
    let line = text.lines().find(|line| line.starts_with("url = "));
    line.expect("a URL").to_owned()
}

/// The PINs, in files and as a list.
fn pins(dir: &Path) -> Vec<String> {
    let digits = || uuid::Uuid::now_v7().as_u128() % 10_u128.pow(16);
    let pins = [
        ("pin", format!("7{:016}", digits())),
        ("so_pin", format!("8{:016}", digits())),
    ];
    let written = pins.map(|(name, pin)| {
        fs::write(dir.join("secrets").join(name), &pin).expect("a PIN");
        pin
    });
    written.to_vec()
}

fn password(url: &str) -> Option<String> {
    let url = url::Url::parse(url).ok()?;
    url.password().map(str::to_owned)
}

fn certificates(
    dir: &Path,
    secrets: &mut Vec<String>,
) -> (Ca, std::collections::BTreeMap<&'static str, Leaf>) {
    let ca = Ca::new("Claviger end-to-end tests");
    let certs = dir.join("certs");
    fs::write(certs.join("ca.crt"), ca.pem()).expect("a certificate");
    let mut write = |name: &str, leaf: &Leaf| {
        let key = leaf.key.serialize_pem();
        // A line of the middle: base64, so no log line breaks it up.
        secrets.extend(key.lines().nth(1).map(str::to_owned));
        fs::write(certs.join(format!("{name}.crt")), &leaf.pem).expect("a certificate");
        fs::write(certs.join(format!("{name}.key")), key).expect("a key");
    };
    let loopback = SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let mut server = named("localhost", [dns("localhost"), loopback]);
    // Python insists on it from 3.13 on.
    server.use_authority_key_identifier_extension = true;
    write("server", &ca.issue(server));
    let names = PRINCIPALS.iter().map(|(name, ..)| *name);
    let leaves = names
        .chain(["stranger"])
        .map(|name| {
            let leaf = ca.client(&identity(name));
            write(name, &leaf);
            (name, leaf)
        })
        .collect();
    (ca, leaves)
}

fn toml(dir: &Path, url: &str) -> String {
    // JSON's escapes are a subset of TOML's.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let path = |name: &str| quoted(dir.join(name).to_str().expect("UTF-8"));
    let mut text = format!(
        r#"environment = "dev"
addresses_file = {addresses}

[grpc]
listen = "127.0.0.1:0"

[public]
listen = "127.0.0.1:0"

[ops]
listen = "127.0.0.1:0"

[tls]
certificate = {certificate}
key = {key}
client_ca = {ca}

[database]
url = {url}

[backends.hsm]
type = "pkcs11"
module = {module}
token = "{TOKEN}"
pin_file = {pin}

[kek]
backend = "hsm"
uri = "pkcs11:token={TOKEN};object=claviger-kek;type=secret-key"

[tokens]
issuer = "https://issuer.test"

[audit]
replica = "one"

[jwks]
max_age_seconds = 1

[rotation]
clock_skew_seconds = 0

[bootstrap]
tenants = ["acme", "globex"]
"#,
        addresses = path("addresses.json"),
        certificate = path("certs/server.crt"),
        key = path("certs/server.key"),
        ca = path("certs/ca.crt"),
        url = quoted(url),
        module = quoted(SoftHsm::library().to_str().expect("UTF-8")),
        pin = path("secrets/pin"),
    );
    for (name, tenant, kind, roles) in PRINCIPALS {
        let scope = if tenant == "system" { "*" } else { tenant };
        let roles: Vec<_> = roles
            .iter()
            .map(|role| format!(r#"{{ role = "{role}", tenant = "{scope}" }}"#))
            .collect();
        let _ = write!(
            text,
            "\n[[bootstrap.principals]]\nname = \"{name}\"\ntenant = \"{tenant}\"\ntype = \"{kind}\"\n\
             identities = [\"{}\"]\nroles = [{}]\n",
            identity(name),
            roles.join(", ")
        );
    }
    text
}
