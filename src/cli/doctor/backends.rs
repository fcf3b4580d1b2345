//! The devices: what they can do, how much, how fast, and whether that is enough for this configuration.

use std::time::Duration;

use super::Report;
use crate::{
    backends::{
        Capabilities,
        pkcs11::{Facts, Modules, Pkcs11Config, facts, raw_sign_rate},
    },
    cli::exit::Result,
    config::{BackendConfig, Config},
    keys::Backends,
    model::{Algorithm, KeySpec},
};

/// How long signatures are counted. Short, because the device may be at work.
const MEASURE_FOR: Duration = Duration::from_millis(250);

/// What the device says it can do.
pub(super) fn check(name: &str, can: &Capabilities, report: &Report) -> Result<()> {
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

/// R-LIFE-4, R-ENV-2: a configuration that needs what its devices lack is refused here, not at three in the morning.
pub(super) fn expect_what_the_configuration_needs(
    config: &Config,
    devices: &Backends,
    report: &mut Report,
) -> Result<()> {
    let has = |name: &str, spec: KeySpec| {
        let device = devices.get(name);
        device.is_some_and(|device| device.capabilities().specs.contains(&spec))
    };
    let kek = &config.kek.backend;
    if !has(kek, KeySpec::Kek) {
        report.fail(
            "needs",
            format!("kek.backend {kek} cannot wrap data keys: it lacks AES-256-GCM; name another backend"),
        )?;
    }
    let pairs = config.default_backend();
    let signs = devices
        .get(pairs)
        .is_some_and(|device| !device.capabilities().algorithms.is_empty());
    match signs {
        false => report.fail(
            "needs",
            format!("keys.default_backend {pairs} has no signature algorithm that the daemon knows"),
        ),
        true if !has(pairs, KeySpec::P256) => report.warn(
            "needs",
            format!(
                "keys.default_backend {pairs} lacks {}, the usual choice; CreateKey must name another algorithm",
                Algorithm::Es256
            ),
        ),
        true => report.ok("needs", "every configured backend can do what it is configured for"),
    }
}
