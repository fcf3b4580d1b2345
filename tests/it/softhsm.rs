//! SoftHSM for tests.
//!
//! SoftHSM reads its configuration from the environment once, and one process can hold one PKCS#11 context.
//! So a test that needs tokens runs in a process of its own: `alone` starts this test binary again for just
//! the test that calls it, with an empty token directory. There the test may finalise the library or move
//! token files away without disturbing anybody.

use std::{
    env,
    ffi::OsStr,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use claviger::{
    backends::{
        BackendError, VerifyAfterSign,
        pkcs11::{Module, Modules, Pkcs11Backend, Pkcs11Config, provision},
    },
    model::{IntentId, Secret},
};
use tokio::time::Instant;

/// User PIN of every test token.
pub const PIN: &str = "1234-user";
/// Security officer's PIN of every test token.
pub const SO_PIN: &str = "1234-officer";

const TOKENS: &str = "CLAVIGER_TEST_TOKENS";

/// An empty SoftHSM that belongs to this process.
pub struct SoftHsm {
    dir: PathBuf,
    pub modules: Modules,
}

/// Runs the calling test in a process of its own, with a SoftHSM of its own. The closure must be written in
/// the body of the test function: its name says which test to start.
pub fn alone<F>(test: F)
where
    F: AsyncFnOnce(SoftHsm),
{
    if let Some(dir) = env::var_os(TOKENS) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let softhsm = SoftHsm {
            dir: dir.into(),
            modules: Modules::new(),
        };
        return runtime.block_on(test(softhsm));
    }
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(IntentId::random().to_string());
    fs::create_dir_all(dir.join("tokens")).expect("a directory for tokens");
    let conf = dir.join("softhsm2.conf");
    let tokens = dir.join("tokens");
    let text = format!(
        "directories.tokendir = {}\nlog.level = ERROR\n",
        tokens.display()
    );
    fs::write(&conf, text).expect("softhsm2.conf");

    let out = again::<F>(&[
        (TOKENS, dir.as_os_str()),
        ("SOFTHSM2_CONF", conf.as_os_str()),
    ]);
    let _ = fs::remove_dir_all(&dir);
    passed::<F>(&out);
}

/// The name of the test that `F` was written in.
fn test_name<F>() -> &'static str {
    let name = std::any::type_name::<F>();
    let name = name.split_once("::").map_or(name, |(_, test)| test);
    name.split("::{{").next().unwrap_or(name)
}

/// Starts this test binary for just the test that `F` was written in, with these variables.
pub fn again<F>(variables: &[(&str, &OsStr)]) -> Output {
    Command::new(env::current_exe().expect("this binary"))
        .args(["--exact", test_name::<F>(), "--nocapture"])
        .envs(variables.iter().copied())
        .output()
        .expect("the test binary starts again")
}

/// What `again` started ran one test, and it passed.
pub fn passed<F>(out: &Output) {
    let stdout = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success() && stdout.contains("1 passed"),
        "{} alone: {}\n{stdout}\n{}",
        test_name::<F>(),
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
}

impl SoftHsm {
    /// Where the library is: `SOFTHSM2_MODULE`, or where distributions put it.
    pub fn library() -> PathBuf {
        let known = [
            "/usr/lib/softhsm/libsofthsm2.so",
            "/usr/lib64/pkcs11/libsofthsm2.so",
            "/usr/local/lib/softhsm/libsofthsm2.so",
        ];
        env::var_os("SOFTHSM2_MODULE")
            .map(PathBuf::from)
            .into_iter()
            .chain(known.map(PathBuf::from))
            .find(|path| path.exists())
            .expect("SoftHSM is installed, or SOFTHSM2_MODULE says where")
    }

    pub fn module(&self) -> Arc<Module> {
        self.modules.load(&Self::library()).expect("SoftHSM loads")
    }

    /// The directory that holds the token's files.
    pub fn token_files(&self) -> PathBuf {
        self.dir.join("tokens")
    }

    /// A place for files of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn init(&self, label: &str) {
        let (so_pin, pin) = (Secret::new(SO_PIN.into()), Secret::new(PIN.into()));
        provision::init_token(&self.module(), label, &so_pin, &pin).expect("a new token");
    }

    pub fn config(&self, label: &str) -> Pkcs11Config {
        Pkcs11Config {
            module: Self::library(),
            token: label.into(),
            pin: Some(Secret::new(PIN.into())),
            pin_file: None,
            threads: Some(2),
            queue: 1024,
            stall_ms: 800,
            verify_after_sign: VerifyAfterSign::Sampled,
        }
    }

    pub fn open(&self, config: &Pkcs11Config) -> Result<Pkcs11Backend, BackendError> {
        Pkcs11Backend::open("test", config, &self.modules)
    }

    /// A fresh token, opened.
    pub fn backend(&self, label: &str) -> Pkcs11Backend {
        self.init(label);
        self.open(&self.config(label)).expect("the token opens")
    }

    /// Runs pkcs11-tool of OpenSC, a second pair of eyes, logged in to the token.
    pub fn tool(&self, label: &str, args: &[&str]) -> String {
        let out = self.run(label, args);
        let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
        let _ = write!(text, "{}", String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "pkcs11-tool {args:?}: {text}");
        text
    }

    fn run(&self, label: &str, args: &[&str]) -> Output {
        Command::new("pkcs11-tool")
            .arg("--module")
            .arg(Self::library())
            .args(["--token-label", label, "--login", "--pin", PIN])
            .args(args)
            .output()
            .expect("pkcs11-tool of OpenSC is installed")
    }
}

/// Far enough for every test that is not about deadlines.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(120)
}
