//! Starts that must fail: not with status 0, with one line on stderr that says what to do, and without a secret in it.

use std::{fs, path::Path};

use rcgen::date_time_ymd;

use crate::{
    daemon::{Daemon, Engine, Setup, TOKEN},
    pki::{dns, named},
    softhsm::SoftHsm,
};

/// A daemon that was never started, and the configuration that would start it. Only errors are logged.
struct Case {
    daemon: Daemon,
    good: String,
    pin: String,
}

impl Case {
    async fn new(engine: Engine) -> Self {
        let setup = Setup::new(engine).append("[log]\nlevel = \"error\"");
        let daemon = setup.provision().await;
        let good = fs::read_to_string(daemon.config_path()).expect("claviger.toml");
        let pin = fs::read_to_string(daemon.path("secrets/pin")).expect("a PIN");
        Self { daemon, good, pin }
    }

    fn with(&self, from: &str, to: &str) -> String {
        assert!(self.good.contains(from), "{from}");
        self.good.replace(from, to)
    }

    async fn serve(&self, config: &str, env: &[(&str, &str)]) -> std::process::Output {
        let path = self.daemon.path("wrong.toml");
        fs::write(&path, config).expect("written");
        let mut command = self.daemon.command(&["serve", "--config"]);
        command.arg(path).envs(env.iter().copied());
        let ended = tokio::time::timeout(crate::daemon::PATIENCE, command.output()).await;
        ended.expect("it does not serve").expect("claviger runs")
    }

    /// Serving this configuration fails, and says all of `says`. Returns the line.
    async fn fails(&self, config: &str, says: &[&str]) -> String {
        self.fails_with(config, &[], says).await
    }

    async fn fails_with(&self, config: &str, env: &[(&str, &str)], says: &[&str]) -> String {
        let output = self.serve(config, env).await;
        let text = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(!output.status.success(), "{text}");
        assert!(output.stdout.is_empty(), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("error: "), "{text}");
        assert!(!text.contains("panicked"), "{text}");
        assert!(!text.contains(&self.pin), "the PIN is shown");
        for word in says {
            assert!(text.contains(word), "{text} lacks {word}");
        }
        text
    }

    async fn tool(&self, args: &[&str]) {
        let output = self
            .daemon
            .foreign("pkcs11-tool")
            .arg("--module")
            .arg(SoftHsm::library())
            .args(["--token-label", TOKEN, "--login", "--pin", &self.pin])
            .args(args)
            .output()
            .await
            .expect("pkcs11-tool of OpenSC is installed");
        assert!(output.status.success(), "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_configuration_stops_the_start() {
    let case = Case::new(Engine::Sqlite).await;
    let dev = "environment = \"dev\"";
    // R-ENV-1
    let none = case.with(dev, "");
    case.fails(&none, &["environment", "dev, staging or production"])
        .await;
    case.fails(&case.with(dev, "environment = \"prod\""), &["environment"])
        .await;
    case.fails(
        &case.with(dev, "environment = \"dev\"\nenviroment = \"dev\""),
        &["enviroment"],
    )
    .await;
    case.fails(&case.with("[kek]", "[kek]\nbits = 256"), &["bits"])
        .await;
    let production = case
        .with(dev, "environment = \"production\"")
        .replace("max_age_seconds = 1", "max_age_seconds = 600")
        .replace("clock_skew_seconds = 0", "clock_skew_seconds = 60");
    let reflection = production.replace("[grpc]", "[grpc]\nreflection = true");
    case.fails(&reflection, &["grpc.reflection", "dev"]).await;
    let reflection = reflection.replace("\"production\"", "\"staging\"");
    case.fails(&reflection, &["grpc.reflection"]).await;
    let unaudited = production.replace("[audit]", "[audit]\naccess = \"off\"");
    case.fails(&unaudited, &["audit.access"]).await;
    let hasty = production.replace("[rotation]", "[rotation]\nrequest_ttl_seconds = 3599");
    case.fails(&hasty, &["rotation.request_ttl_seconds", "dev"])
        .await;
    for (setting, value) in [
        ("request_ttl_seconds", "0"),
        // No longer than the soak.
        ("request_ttl_seconds", "1"),
        ("request_ttl_seconds", "7776001"),
        ("reopen_after_seconds", "2592001"),
    ] {
        let line = format!("[rotation]\n{setting} = {value}");
        let says = format!("rotation.{setting}");
        case.fails(&case.with("[rotation]", &line), &[&says]).await;
    }
    let skewed = case.with("clock_skew_seconds = 0", "clock_skew_seconds = 3601");
    case.fails(&skewed, &["rotation.clock_skew_seconds"]).await;
    for (setting, name) in [
        ("destruction_wait_seconds = 86399", "destruction_wait"),
        ("reconcile_after_seconds = 29", "reconcile_after"),
    ] {
        let hasty = format!("{production}\n[keys]\n{setting}");
        case.fails(&hasty, &[name, "dev"]).await;
    }
    let plain = format!("{production}\n[egress]\nallow_http = true");
    case.fails(&plain, &["egress.allow_http", "dev"]).await;
    for (section, setting) in [
        ("egress", "max_seconds = 0"),
        ("egress", "allow_networks = [\"localhost\"]"),
        ("egress", "ca_file = \"/nowhere/ca.pem\""),
        ("keys", "reconcile_after_seconds = 5"),
        ("keys", "last_used_interval_seconds = 0"),
        ("idempotency", "retention_hours = 0"),
        ("idempotency", "retention_hours = 8761"),
    ] {
        let name = setting.split(' ').next().expect("a name");
        let wrong = format!("{}\n[{section}]\n{setting}", case.good);
        case.fails(&wrong, &[section, name]).await;
    }
    let open = case.with(
        "[ops]\nlisten = \"127.0.0.1:0\"",
        "[ops]\nlisten = \"0.0.0.0:0\"",
    );
    case.fails(&open, &["ops", "expose"]).await;
    case.fails("", &["environment"]).await;
    case.fails("[", &["wrong.toml", "TOML"]).await;
    let zero = format!("{}\n[limits]\nmax_payload_bytes = 0", case.good);
    case.fails(&zero, &["limits.max_payload_bytes"]).await;
    case.fails(
        &case.with("https://issuer.test", "http://issuer.test"),
        &["tokens.issuer", "https"],
    )
    .await;

    let missing = case
        .daemon
        .cli(&["serve", "--config", "/nowhere/claviger.toml"])
        .await;
    let text = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(
        !missing.status.success() && text.contains("/nowhere/claviger.toml"),
        "{text}"
    );

    // The environment overrides the file; what is for clients is not for the daemon.
    let with = case
        .fails_with(
            &none,
            &[("CLAVIGER_ENVIRONMENT", "nonsense")],
            &["nonsense"],
        )
        .await;
    assert!(!with.contains("is missing"));
    case.fails_with(
        &case.good,
        &[("CLAVIGER_GRPC__LISTEN", "nowhere")],
        &["GRPC.LISTEN"],
    )
    .await;
    case.fails_with(&case.good, &[("CLAVIGER_NOTHING", "1")], &["nothing"])
        .await;

    let policies = case.daemon.path("policies");
    fs::create_dir(&policies).expect("a directory");
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    for file in fs::read_dir(ours).expect("policies") {
        let file = file.expect("a file");
        fs::copy(file.path(), policies.join(file.file_name())).expect("copied");
    }
    fs::write(
        policies.join("wrong.cedar"),
        "permit (principal, action, resource",
    )
    .expect("written");
    let wrong = format!("{}\n[authz]\npolicies = {:?}", case.good, policies);
    case.fails(&wrong, &["wrong.cedar"]).await;
    fs::write(
        policies.join("wrong.cedar"),
        "permit (principal, action == Action::\"Fly\", resource);",
    )
    .expect("written");
    case.fails(&wrong, &["wrong.cedar"]).await;

    // Policies from before the daemon had jobs: keys would not rotate on time, and nobody would know.
    fs::remove_file(policies.join("wrong.cedar")).expect("removed");
    let keys = fs::read_to_string(policies.join("keys.cedar")).expect("keys.cedar");
    let (old, _) = keys
        .split_once("// What the daemon does by itself.")
        .expect("the jobs");
    fs::write(policies.join("keys.cedar"), old).expect("written");
    let production = case
        .with(dev, "environment = \"production\"")
        .replace("max_age_seconds = 1", "max_age_seconds = 600")
        .replace("clock_skew_seconds = 0", "clock_skew_seconds = 60");
    let old = format!("{production}\n[authz]\npolicies = {policies:?}");
    case.fails(&old, &["authz.policies", "jobs", "keys.cedar"])
        .await;
    case.daemon.stop().await;
}

/// Secrets that a person put into the configuration, and mistakes around them.
// R-ENV-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistake_beside_a_secret_does_not_show_it() {
    let case = Case::new(Engine::Sqlite).await;
    let pin_file = case
        .good
        .lines()
        .find(|line| line.starts_with("pin_file"))
        .expect("pin_file")
        .to_owned();
    for line in [
        "pin = 73571234",
        "pin = 7357.1234",
        "pin = [\"73571234\"]",
        "pin = { a = \"73571234\" }",
        "pin = \"73571234",
        "pin = 73571234x",
        "pin = '73571234'\npin = '73571234'",
    ] {
        let text = case.fails(&case.with(&pin_file, line), &[]).await;
        for secret in ["73571234", "7357.1234"] {
            assert!(!text.contains(secret), "{line}: {text}");
        }
    }
    let text = case
        .fails_with(
            &case.good,
            &[("CLAVIGER_BACKENDS__HSM__PIN", "73571234")],
            &[],
        )
        .await;
    assert!(!text.contains("73571234"), "{text}");
    let url = case
        .good
        .lines()
        .find(|line| line.starts_with("url"))
        .expect("url")
        .to_owned();
    for line in [
        "url = 73571234",
        "url = \"postgres://u:73571234@h/d",
        "url = \"mysql://u:73571234@h/d\"",
        "url = \"postgres://u:73571234@[/d\"",
    ] {
        let text = case.fails(&case.with(&url, line), &[]).await;
        assert!(!text.contains("73571234"), "{line}: {text}");
    }
    case.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_stops_the_start() {
    let case = Case::new(Engine::Sqlite).await;
    let module = SoftHsm::library();
    let module = module.to_str().expect("UTF-8");
    case.fails(
        &case.with(module, "/nowhere/libpkcs11.so"),
        &["/nowhere/libpkcs11.so"],
    )
    .await;
    let config = case.daemon.config_path();
    let text = config.to_str().expect("UTF-8");
    case.fails(&case.with(module, text), &["claviger.toml"])
        .await;
    let label = case.with(&format!("token = \"{TOKEN}\""), "token = \"nobody\"");
    case.fails(&label, &["nobody", TOKEN]).await;

    // R-ENV-2
    let kek = format!("pkcs11:token={TOKEN};object=claviger-kek;type=secret-key");
    let misconfigured = "broker credentials encryption key misconfigured";
    let other = |name: &str| {
        case.with(
            &kek,
            &format!("pkcs11:token={TOKEN};object={name};type=secret-key"),
        )
    };
    case.fails(&other("missing"), &[misconfigured, "claviger kek create"])
        .await;
    case.fails(&case.with(&kek, "nonsense"), &[misconfigured])
        .await;
    case.fails(
        &case.with(&kek, &format!("{kek}?pin-value=1234")),
        &[misconfigured],
    )
    .await;
    for (name, args) in [
        (
            "extractable",
            &["--keygen", "--key-type", "AES:32", "--extractable"][..],
        ),
        (
            "short",
            &["--keygen", "--key-type", "AES:16", "--sensitive"],
        ),
        ("readable", &["--keygen", "--key-type", "AES:32"]),
        ("pair", &["--keypairgen", "--key-type", "EC:prime256v1"]),
    ] {
        let id = format!("{:02x}", name.len());
        case.tool(&[args, &["--label", name, "--id", &id]].concat())
            .await;
        case.fails(&other(name), &[misconfigured]).await;
    }
    case.daemon.stop().await;
}

/// OpenSC's shim that writes down every call of a PKCS#11 library.
fn spy() -> &'static Path {
    const KNOWN: [&str; 6] = [
        "/usr/lib/x86_64-linux-gnu/pkcs11-spy.so",
        "/usr/lib/aarch64-linux-gnu/pkcs11-spy.so",
        "/usr/lib64/pkcs11/pkcs11-spy.so",
        "/usr/lib64/pkcs11-spy.so",
        "/opt/homebrew/lib/pkcs11-spy.so",
        "/usr/local/lib/pkcs11-spy.so",
    ];
    let found = KNOWN.iter().map(Path::new).find(|path| path.exists());
    found.expect("pkcs11-spy.so of OpenSC is installed")
}

/// Tokens lock after a few wrong PINs, so each start makes one attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_pin_is_tried_once() {
    let mut case = Case::new(Engine::Sqlite).await;
    let wrong = case.daemon.path("wrong-pin");
    fs::write(&wrong, "99990000").expect("written");
    let right = case.daemon.path("secrets/pin");
    let (wrong, right) = (
        wrong.to_str().expect("UTF-8"),
        right.to_str().expect("UTF-8"),
    );
    let library = SoftHsm::library();
    let library = library.to_str().expect("UTF-8");
    let spied = case
        .with(&format!("{right:?}"), &format!("{wrong:?}"))
        .replace(library, spy().to_str().expect("UTF-8"));
    for attempts in 1..=2 {
        let calls = case.daemon.path("calls");
        let env = [
            ("PKCS11SPY", library),
            ("PKCS11SPY_OUTPUT", calls.to_str().expect("UTF-8")),
        ];
        let text = case.fails_with(&spied, &env, &["PIN"]).await;
        assert!(!text.contains("99990000"), "{text}");
        let calls = fs::read_to_string(calls).expect("the spy's report");
        let logins = calls
            .lines()
            .filter(|line| line.ends_with(": C_Login"))
            .count();
        assert_eq!(logins, attempts, "one attempt each start");
    }
    // The token is not locked: the right PIN works.
    case.daemon.up().await.expect("the right PIN");
    case.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_certificate_stops_the_start() {
    let case = Case::new(Engine::Sqlite).await;
    let key = case.daemon.path("certs/server.key");
    let key = key.to_str().expect("UTF-8");
    let foreign = key.replace("server.key", "service.key");
    case.fails(&case.with(key, &foreign), &["tls.key", "does not belong"])
        .await;
    case.fails(
        &case.with(key, "/nowhere/key.pem"),
        &["tls.key", "/nowhere/key.pem"],
    )
    .await;
    let mut expired = named("localhost", [dns("localhost")]);
    expired.not_before = date_time_ymd(2020, 1, 1);
    expired.not_after = date_time_ymd(2021, 1, 1);
    let expired = case.daemon.ca.issue(expired);
    fs::write(case.daemon.path("certs/expired.crt"), &expired.pem).expect("written");
    fs::write(
        case.daemon.path("certs/expired.key"),
        expired.key.serialize_pem(),
    )
    .expect("written");
    let config = case
        .with("certs/server.crt", "certs/expired.crt")
        .replace("certs/server.key", "certs/expired.key");
    case.fails(&config, &["tls.certificate", "expired", "renew"])
        .await;
    // A private key where the certificate should be: the key is not shown.
    let swapped = case.with("certs/server.crt", "certs/server.key");
    let text = case.fails(&swapped, &["tls.certificate"]).await;
    assert!(!text.contains("PRIVATE KEY"), "{text}");
    case.daemon.stop().await;
}

async fn a_schema_that_does_not_fit(engine: Engine) {
    let case = Case::new(engine).await;
    let daemon = &case.daemon;
    daemon
        .execute("UPDATE _sqlx_migrations SET version = version + 1000")
        .await;
    case.fails(&case.good, &["ahead of this binary"]).await;
    let config = daemon.config_path();
    let config = config.to_str().expect("UTF-8");
    assert!(
        !daemon
            .cli(&["migrate", "--config", config])
            .await
            .status
            .success()
    );
    daemon.execute("DELETE FROM _sqlx_migrations").await;
    case.fails(&case.good, &["run `claviger migrate`"]).await;
    case.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_does_not_fit_stops_the_start_on_sqlite() {
    a_schema_that_does_not_fit(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_does_not_fit_stops_the_start_on_postgres() {
    a_schema_that_does_not_fit(Engine::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_not_there_stops_the_start() {
    let case = Case::new(Engine::Sqlite).await;
    let url = case
        .good
        .lines()
        .find(|line| line.starts_with("url"))
        .expect("url")
        .to_owned();
    let unreachable = case.with(
        &url,
        "url = \"postgres://claviger:hunter2@127.0.0.1:1/claviger\"",
    );
    let text = case.fails(&unreachable, &["database"]).await;
    assert!(!text.contains("hunter2"), "{text}");
    case.fails(
        &case.with(&url, "url = \"sqlite:///nowhere/claviger.db\""),
        &["/nowhere/claviger"],
    )
    .await;
    case.fails(&case.with(&url, ""), &["database.url"]).await;
    let file = case.daemon.path("text.db");
    fs::write(&file, "this is no database ".repeat(100)).expect("written");
    case.fails(
        &case.with(&url, &format!("url = \"sqlite://{}\"", file.display())),
        &["database"],
    )
    .await;
    case.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_daemon_on_the_same_file_stops_and_the_first_goes_on() {
    let mut case = Case::new(Engine::Sqlite).await;
    case.daemon.up().await.expect("the first");
    case.fails(&case.good, &["another claviger is running", "PostgreSQL"])
        .await;
    let config = case.daemon.config_path();
    let config = config.to_str().expect("UTF-8");
    let migrate = case.daemon.cli(&["migrate", "--config", config]).await;
    assert!(
        !migrate.status.success(),
        "nobody migrates under a running daemon"
    );
    assert_eq!(case.daemon.ops_get("/readyz").await.status, 200);
    case.daemon
        .cli_ok(&["--as", "service", "key", "list"])
        .await;
    case.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_overrides_the_file() {
    let daemon = Setup::new(Engine::Sqlite)
        .replace("environment = \"dev\"\n", "")
        .replace(
            "[grpc]\nlisten = \"127.0.0.1:0\"",
            "[grpc]\nlisten = \"127.0.0.1:1\"",
        )
        .env("CLAVIGER_ENVIRONMENT", "dev")
        .env("CLAVIGER_GRPC__LISTEN", "127.0.0.1:0")
        .env("CLAVIGER_CLIENT_NONSENSE", "ignored")
        .start()
        .await;
    assert!(!daemon.addresses().grpc.ends_with(":1"));
    daemon.cli_ok(&["--as", "service", "key", "list"]).await;
    daemon.stop().await;
}
