//! A daemon behind the fault-injecting module, and the hand on its script.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    daemon::{Daemon, Setup},
    softhsm::SoftHsm,
};

/// The script of one daemon's module.
pub struct Weather {
    script: PathBuf,
    log: PathBuf,
    changes: AtomicU64,
}

/// Where cargo puts the module: beside the test binary, whose dev-dependency it is.
pub fn module() -> PathBuf {
    let binary = env::current_exe().expect("this binary");
    let name = format!(
        "{}pkcs11_fault{}",
        env::consts::DLL_PREFIX,
        env::consts::DLL_SUFFIX
    );
    let module = binary.parent().expect("a directory").join(name);
    assert!(module.exists(), "cargo did not build {}", module.display());
    module
}

/// A daemon on SoftHSM behind the module; the script of its start is `script`. Its token is provisioned without.
pub async fn behind(setup: Setup, script: &str) -> (Daemon, Weather) {
    let real = SoftHsm::library();
    let (from, to) = (quoted(&real), quoted(&module()));
    let setup = setup.edit(move |text| {
        assert!(text.contains(&from), "claviger.toml has no {from}");
        text.replace(&from, &to)
    });
    let mut daemon = setup.provision().await;
    let weather = Weather {
        script: daemon.path("weather.txt"),
        log: daemon.path("weather.log"),
        changes: AtomicU64::new(0),
    };
    weather.set(script);
    for (name, path) in [
        ("PKCS11_FAULT_MODULE", &real),
        ("PKCS11_FAULT_SCRIPT", &weather.script),
        ("PKCS11_FAULT_LOG", &weather.log),
    ] {
        daemon.set_env(name, path.to_str().expect("UTF-8"));
    }
    if let Err(why) = daemon.up().await {
        panic!("the daemon does not start: {why}");
    }
    (daemon, weather)
}

impl Weather {
    /// Another script, whole at once. It counts as new even when it says the same, so that what happens once happens
    /// again.
    pub fn set(&self, script: &str) {
        let change = self.changes.fetch_add(1, Ordering::Relaxed);
        let beside = self.script.with_extension("new");
        fs::write(&beside, format!("# {change}\n{script}\n")).expect("a script");
        fs::rename(&beside, &self.script).expect("a script");
    }

    /// Answers of one function, as the module wrote them down.
    pub fn logged(&self, function: &str) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines()
            .filter_map(|line| line.strip_prefix(function)?.strip_prefix(' '))
            .map(str::to_owned)
            .collect()
    }
}

fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.to_str().expect("UTF-8")).to_string()
}
