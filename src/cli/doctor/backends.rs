//! The devices: what they can do, how much, how fast, and whether that is enough for this configuration.

use std::time::Duration;

use tokio::time::Instant;

use super::Report;
use crate::{
    app::START_PATIENCE,
    backends::{
        Backend,
        pkcs11::{Facts, Modules, Pkcs11Config, facts, raw_sign_rate},
    },
    cli::exit::Result,
    config::{BackendConfig, Config},
    keys::Backends,
    model::{Algorithm, KeySpec},
    store::{Db, Needed},
};

/// How long signatures are counted. Short, because the device may be at work.
const MEASURE_FOR: Duration = Duration::from_millis(250);

/// What the device says it can do, and whether it answers.
pub(super) async fn check(name: &str, device: &dyn Backend, report: &mut Report) -> Result<()> {
    let can = device.capabilities();
    if let Err(error) = device.ready(Instant::now() + START_PATIENCE).await {
        return report.fail(&format!("backend {name}"), error);
    }
    let algorithms: Vec<_> = can.algorithms.iter().map(|a| a.as_str()).collect();
    let kek = match can.specs.contains(&KeySpec::Kek) {
        true => "; wraps data keys",
        false => "; cannot wrap data keys",
    };
    let text = format!("{}; {}{kek}", can.device, algorithms.join(" "));
    report.ok(&format!("backend {name}"), text)
}

/// What a token tells beside its mechanisms. AWS KMS has no sessions, and its rate is its quota.
pub(super) fn inspect(
    name: &str,
    section: &BackendConfig,
    modules: &Modules,
    is_measured: bool,
    report: &mut Report,
) -> Result<()> {
    let BackendConfig::Pkcs11(pkcs11) = section else {
        return Ok(());
    };
    let found = tokio::task::block_in_place(|| facts(pkcs11, modules));
    match found {
        Ok(found) => tell(name, pkcs11, &found, report)?,
        Err(error) => return report.fail(&format!("token of {name}"), error),
    }
    if is_measured {
        measure(name, pkcs11, modules, report)?;
    }
    Ok(())
}

fn tell(name: &str, config: &Pkcs11Config, found: &Facts, report: &Report) -> Result<()> {
    report.ok(&format!("module of {name}"), &found.library)?;
    let sessions = format!("sessions of {name}");
    // One more keeps the login.
    let wanted = config.threads() as u64 + 1;
    match found.max_sessions {
        Some(most) if most < wanted => report.warn(
            &sessions,
            format!("the token allows {most}, {wanted} are configured: fewer threads will run"),
        )?,
        Some(most) => report.ok(&sessions, format!("{wanted} of {most}"))?,
        None => report.ok(&sessions, format!("{wanted}; the token states no limit"))?,
    }
    match &found.ec_point {
        Some(form) => report.ok(&format!("EC points of {name}"), form),
        None => report.warn(
            &format!("EC points of {name}"),
            "the token made no session key pair on P-256, or does not show its CKA_EC_POINT",
        ),
    }
}

/// Signatures per second and thread: whether more threads would help shows at once.
fn measure(
    name: &str,
    config: &Pkcs11Config,
    modules: &Modules,
    report: &mut Report,
) -> Result<()> {
    let what = format!("ES256 rate of {name}");
    let threads = config.threads();
    let mut rates = Vec::new();
    for threads in [1, threads] {
        let rate =
            tokio::task::block_in_place(|| raw_sign_rate(config, modules, threads, MEASURE_FOR));
        match rate {
            Ok(rate) => rates.push(format!("{rate:.0}/s by {threads}")),
            Err(error) => return report.warn(&what, error),
        }
    }
    rates.dedup();
    report.ok(&what, format!("{} threads", rates.join(", ")))
}

/// R-LIFE-4, R-ENV-2: what devices lack that the configuration or a key needs is said here, not at three in the morning.
pub(super) async fn expect_what_is_needed(
    config: &Config,
    db: Option<&Db>,
    devices: &Backends,
    report: &mut Report,
) -> Result<()> {
    let mut lacking = lacked_by_configuration(config, devices);
    match db {
        Some(db) => match db.needed().await {
            Ok(needed) => lacking.extend(needed.iter().filter_map(|need| lacked(need, devices))),
            Err(error) => lacking.push(error.to_string()),
        },
        None => report.note(
            "needs",
            "those of the keys are not known without the database",
        )?,
    }
    for text in &lacking {
        report.fail("needs", text)?;
    }
    let pairs = config.default_backend();
    if lacking.is_empty() && !has(devices, pairs, KeySpec::P256) {
        return report.warn(
            "needs",
            format!(
                "keys.default_backend {pairs} lacks {}, the usual choice; CreateKey must name another algorithm",
                Algorithm::Es256
            ),
        );
    }
    match lacking.is_empty() {
        true => report.ok("needs", "every backend can do what it is needed for"),
        false => Ok(()),
    }
}

fn has(devices: &Backends, name: &str, spec: KeySpec) -> bool {
    let device = devices.get(name);
    device.is_some_and(|device| device.capabilities().specs.contains(&spec))
}

fn lacked_by_configuration(config: &Config, devices: &Backends) -> Vec<String> {
    let mut lacking = Vec::new();
    let kek = &config.kek.backend;
    if !has(devices, kek, KeySpec::Kek) {
        lacking.push(format!(
            "kek.backend {kek} cannot wrap data keys: it lacks AES-256-GCM; name another backend"
        ));
    }
    let pairs = config.default_backend();
    let signs = devices
        .get(pairs)
        .is_some_and(|device| !device.capabilities().algorithms.is_empty());
    if !signs {
        lacking.push(format!(
            "keys.default_backend {pairs} has no signature algorithm that the daemon knows"
        ));
    }
    lacking
}

/// Why the next version of some key cannot be made.
fn lacked(need: &Needed, devices: &Backends) -> Option<String> {
    let Needed {
        backend, algorithm, ..
    } = need;
    let Some(device) = devices.get(backend) else {
        return Some(format!(
            "keys are to be made in backend {backend}, which is not configured; configure it, or move them with \
             `claviger key update`"
        ));
    };
    let can = device.capabilities();
    let spec = algorithm.key_spec(need.rsa_bits);
    let makes = spec.is_some_and(|spec| can.specs.contains(&spec));
    (!makes || !can.algorithms.contains(algorithm)).then(|| {
        let bits = match need.rsa_bits {
            0 => String::new(),
            bits => format!(" of {bits} bits"),
        };
        format!("{algorithm} keys{bits} are to be made in backend {backend}, which cannot; move them with `claviger key update`")
    })
}
