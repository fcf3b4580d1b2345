//! Everything below the development directory: certificates, SoftHSM's files, PINs, and `claviger.toml`.
//!
//! Running it again keeps what is there: the token, its PIN and the database hold keys that later runs use.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use aws_lc_rs::rand;
use url::Url;

use super::{certs, files};
use crate::cli::exit::{Failure, Result};

/// Label of the development token.
pub const TOKEN: &str = "claviger-dev";

/// Where SoftHSM's module is on the systems people use.
const MODULES: [&str; 8] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/libsofthsm2.so",
    "/usr/lib/pkcs11/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

/// What the user chose.
pub struct Choice {
    /// Port of the gRPC listener; 0 for a free one.
    pub grpc_port: u16,
    /// Port of the public listener; 0 for a free one.
    pub public_port: u16,
    /// Port of the ops listener; 0 for a free one.
    pub ops_port: u16,
    /// `sqlite`, or a PostgreSQL URL.
    pub database: String,
}

/// What has been provisioned.
pub struct Environment {
    /// The development directory, absolute.
    pub dir: PathBuf,
    /// Its `claviger.toml`.
    pub config: PathBuf,
    /// SoftHSM's configuration, for the environment variable of that name.
    pub softhsm_conf: PathBuf,
    /// The PKCS#11 module.
    pub module: PathBuf,
    /// Value of `iss` in tokens.
    pub issuer: String,
    /// Certificates made in this run.
    pub new_certificates: usize,
}

impl Environment {
    /// Makes what is missing below `dir`.
    pub fn provision(dir: &Path, choice: &Choice) -> Result<Self> {
        let module = module()?;
        files::directories(dir)?;
        let dir = fs::canonicalize(dir).map_err(|e| files::failed("cannot open", dir, &e))?;
        let new_certificates = certs::provision(&dir)?;
        for (name, digits) in [("pin", 12), ("so_pin", 16)] {
            let path = dir.join("secrets").join(name);
            if !path.is_file() {
                files::private(&path, random_digits(digits)?.as_bytes())?;
            }
        }
        let softhsm_conf = dir.join("softhsm/softhsm2.conf");
        let tokens = dir.join("softhsm/tokens");
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n",
            tokens.display()
        );
        files::public(&softhsm_conf, text.as_bytes())?;

        let config = dir.join("claviger.toml");
        let issuer = match choice.public_port {
            0 => "https://localhost:8444".to_owned(),
            port => format!("https://localhost:{port}"),
        };
        let environment = Self {
            dir,
            config,
            softhsm_conf,
            module,
            issuer,
            new_certificates,
        };
        // The database URL may hold a password.
        files::private(&environment.config, environment.toml(choice)?.as_bytes())?;
        Ok(environment)
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Must `hsm init` run? What an interrupted one left behind is moved aside, never deleted.
    pub fn token_missing(&self) -> Result<bool> {
        if self.token_marker().is_file() {
            return Ok(false);
        }
        let tokens = self.path("softhsm/tokens");
        let entries =
            fs::read_dir(&tokens).map_err(|e| files::failed("cannot read", &tokens, &e))?;
        if entries.count() > 0 {
            let aside = self.path(&format!("softhsm/tokens.aside-{}", random_digits(8)?));
            fs::rename(&tokens, &aside).map_err(|e| files::failed("cannot move", &tokens, &e))?;
            files::directories(&self.dir)?;
        }
        Ok(true)
    }

    /// Records that `hsm init` has run.
    pub fn token_made(&self) -> Result<()> {
        files::public(
            &self.token_marker(),
            b"the token below tokens/ is initialised\n",
        )
    }

    fn token_marker(&self) -> PathBuf {
        self.path("softhsm/initialised")
    }

    fn toml(&self, choice: &Choice) -> Result<String> {
        let path = |name: &str| quoted(&self.path(name).display().to_string());
        let database = match choice.database.as_str() {
            "sqlite" => sqlite_url(&self.path("claviger.db"))?,
            url => url.to_owned(),
        };
        let mut text = format!(
            r#"# Written by `claviger dev`, and overwritten by its next run.
environment = "dev"
addresses_file = {addresses}

[grpc]
listen = "127.0.0.1:{grpc}"
reflection = true
client_certificate = "optional"

[public]
listen = "127.0.0.1:{public}"

[ops]
listen = "127.0.0.1:{ops}"

[tls]
certificate = {certificate}
key = {key}
client_ca = {ca}

[database]
url = {database}

[backends.hsm]
type = "pkcs11"
module = {module}
token = "{TOKEN}"
pin_file = {pin}

[kek]
backend = "hsm"
uri = "pkcs11:token={TOKEN};object=claviger-kek;type=secret-key"

[tokens]
issuer = "{issuer}"

# A soak that a person can wait for. In production verifiers cache the JWKS for minutes.
[jwks]
max_age_seconds = 1

[rotation]
clock_skew_seconds = 0

[oauth]
audiences = ["https://api.acme.test", "claviger"]

# For `make timing`. In production it is 30.
[authn]
failures_per_minute = 10000

[bootstrap]
tenants = ["acme", "globex"]
"#,
            addresses = path("addresses.json"),
            grpc = choice.grpc_port,
            public = choice.public_port,
            ops = choice.ops_port,
            certificate = path("certs/server.crt"),
            key = path("certs/server.key"),
            ca = path("certs/ca.crt"),
            database = quoted(&database),
            module = quoted(&self.module.display().to_string()),
            pin = path("secrets/pin"),
            issuer = self.issuer,
        );
        PRINCIPALS
            .iter()
            .for_each(|principal| text += &principal.toml());
        Ok(text)
    }
}

/// A principal that exists from the first start.
struct Principal {
    name: &'static str,
    tenant: &'static str,
    kind: &'static str,
    roles: &'static [(&'static str, &'static str)],
}

const PRINCIPALS: [Principal; 10] = [
    Principal::of_platform("admin", &[("principal-admin", "*")]),
    Principal::of_platform("issuer", &[("key-issuer", "*")]),
    Principal::of_platform("approver", &[("key-approver", "*")]),
    Principal::of_platform("deployer", &[("key-deployer", "*")]),
    Principal::of_platform("officer", &[("security-officer", "*")]),
    Principal::of_platform("auditor", &[("auditor", "*")]),
    Principal {
        name: "service",
        tenant: "acme",
        kind: "service",
        roles: &[("crypto-user", "acme"), ("token-issuer", "acme")],
    },
    Principal {
        name: "other",
        tenant: "globex",
        kind: "service",
        roles: &[("crypto-user", "globex"), ("token-issuer", "globex")],
    },
    Principal::of_platform("deputy", &[("security-officer", "*")]),
    // Makes API keys of its own; its entitlements are given by the admin.
    Principal {
        name: "partner",
        tenant: "acme",
        kind: "user",
        roles: &[("crypto-user", "acme")],
    },
];

impl Principal {
    const fn of_platform(
        name: &'static str,
        roles: &'static [(&'static str, &'static str)],
    ) -> Self {
        Self {
            name,
            tenant: "system",
            kind: "user",
            roles,
        }
    }

    fn toml(&self) -> String {
        let Self {
            name,
            tenant,
            kind,
            roles,
        } = self;
        let roles = roles
            .iter()
            .map(|(role, tenant)| format!(r#"{{ role = "{role}", tenant = "{tenant}" }}"#));
        let roles: Vec<_> = roles.collect();
        let mut text = String::from("\n[[bootstrap.principals]]\n");
        let _ = write!(
            text,
            "name = \"{name}\"\ntenant = \"{tenant}\"\ntype = \"{kind}\"\nidentities = [\"{}\"]\nroles = [{}]\n",
            certs::identity(name),
            roles.join(", ")
        );
        text
    }
}

/// SoftHSM's module: the one in CLAVIGER_DEV_MODULE, else the first known path that exists.
fn module() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CLAVIGER_DEV_MODULE").map(PathBuf::from) {
        return match path.is_file() {
            true => Ok(path),
            false => Err(Failure::other(format!(
                "CLAVIGER_DEV_MODULE: there is no file {}",
                path.display()
            ))),
        };
    }
    let found = MODULES
        .iter()
        .map(PathBuf::from)
        .find(|path| path.is_file());
    found.ok_or_else(|| {
        Failure::other(
            "SoftHSM is not installed: `apt-get install softhsm2` (Debian, Ubuntu), `dnf install softhsm` \
             (Fedora) or `brew install softhsm` (macOS); or name its module in CLAVIGER_DEV_MODULE",
        )
    })
}

/// A decimal number of random digits, as PIN pads take them.
pub fn random_digits(count: usize) -> Result<String> {
    let mut digits = String::new();
    while digits.len() < count {
        let mut byte = [0];
        rand::fill(&mut byte)
            .map_err(|_| Failure::other("the system's random generator failed"))?;
        // 250 is a multiple of ten, so every digit is equally likely.
        if byte[0] < 250 {
            digits.push(char::from(b'0' + byte[0] % 10));
        }
    }
    Ok(digits)
}

/// `sqlite:///absolute/path`, with blanks and the like escaped.
fn sqlite_url(path: &Path) -> Result<String> {
    let url = Url::from_file_path(path)
        .map_err(|()| Failure::other(format!("{} is not an absolute path", path.display())))?;
    Ok(format!("sqlite://{}", url.path()))
}

/// A TOML basic string; JSON's escapes are a subset of TOML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use figment::{
        Figment,
        providers::{Format, Toml},
    };

    use super::*;
    use crate::cli::dev::files::tests::Scratch;

    fn choice() -> Choice {
        Choice {
            grpc_port: 1,
            public_port: 0,
            ops_port: 2,
            database: "sqlite".into(),
        }
    }

    #[test]
    fn the_configuration_is_toml_with_every_principal() {
        let scratch = Scratch::new("a directory \"with\" odd # name?");
        let environment = Environment {
            dir: scratch.path().to_owned(),
            config: PathBuf::new(),
            softhsm_conf: PathBuf::new(),
            module: "/m.so".into(),
            issuer: "https://localhost:8444".into(),
            new_certificates: 0,
        };
        let text = environment.toml(&choice()).unwrap();
        let value: serde_json::Value = Figment::from(Toml::string(&text)).extract().unwrap();
        let certificate = scratch.path().join("certs/server.crt");
        assert_eq!(
            value["tls"]["certificate"],
            certificate.display().to_string()
        );
        assert_eq!(value["grpc"]["listen"], "127.0.0.1:1");
        assert_eq!(value["bootstrap"]["tenants"][1], "globex");
        let principals = value["bootstrap"]["principals"].as_array().unwrap();
        assert_eq!(principals.len(), certs::CLIENTS.len() - 1);
        assert_eq!(principals[6]["roles"][1]["role"], "token-issuer");
        let url = value["database"]["url"].as_str().unwrap();
        assert!(
            url.starts_with("sqlite:///") && url.contains("%20") && url.contains("%3F"),
            "{url}"
        );
    }

    #[test]
    fn an_interrupted_token_is_moved_aside() {
        let scratch = Scratch::new("provision");
        files::directories(scratch.path()).unwrap();
        let environment = Environment {
            dir: scratch.path().to_owned(),
            config: PathBuf::new(),
            softhsm_conf: PathBuf::new(),
            module: PathBuf::new(),
            issuer: String::new(),
            new_certificates: 0,
        };
        fs::create_dir(scratch.path().join("softhsm/tokens/half")).unwrap();
        assert!(environment.token_missing().unwrap());
        assert_eq!(
            fs::read_dir(scratch.path().join("softhsm/tokens"))
                .unwrap()
                .count(),
            0
        );
        environment.token_made().unwrap();
        assert!(!environment.token_missing().unwrap());
    }

    #[test]
    fn digits_are_digits() {
        let digits = random_digits(12).unwrap();
        assert!(digits.len() == 12 && digits.chars().all(|c| c.is_ascii_digit()));
    }
}
