//! The key-encryption keys: the configured one, and every one that the database says data keys are under (R-ENV-2).

use super::Report;
use crate::{
    app::{self, START_PATIENCE},
    cli::exit::Result,
    config::Config,
    keys::{
        Backends, Keks,
        keks::{Kek, Seen},
    },
    model::KekState,
    store::Db,
};

/// As a start does, and without recording anything.
pub(super) async fn check(
    config: &Config,
    db: Option<&Db>,
    devices: &Backends,
    report: &mut Report,
) -> Result<()> {
    let named = match app::find_kek(devices, &config.kek).await {
        Ok(kek) => {
            report.ok(
                "key-encryption key",
                format!("{}; wraps and unwraps", kek.reference),
            )?;
            Some(kek)
        }
        Err(error) => {
            report.fail("key-encryption key", error)?;
            None
        }
    };
    let Some(db) = db else { return Ok(()) };
    let keks = Keks::unopened(db.clone(), devices.clone(), START_PATIENCE);
    if let Some(named) = named {
        compare(&keks, &named, report).await?;
    }
    match keks.look().await {
        Ok(all) => all.iter().try_for_each(|seen| tell(seen, report)),
        Err(error) => report.fail("key-encryption keys", error),
    }
}

/// The configured KEK with those of the database.
async fn compare(keks: &Keks, named: &Kek, report: &mut Report) -> Result<()> {
    match keks.judge(named).await {
        Ok(Some(KekState::Active)) => Ok(()),
        Ok(Some(state)) => report.warn(
            "kek.uri",
            format!(
                "names a KEK that is {}; let it name the ACTIVE one before this one is removed from its device",
                state.as_str()
            ),
        ),
        Ok(None) => report.note(
            "key-encryption keys",
            "none is recorded yet; the first start records this one",
        ),
        Err(error) => report.fail("kek.uri", error),
    }
}

/// A KEK that unwraps its probe unwraps the data keys under it.
fn tell(seen: &Seen, report: &mut Report) -> Result<()> {
    let (row, state) = (&seen.row, seen.row.state.as_str());
    let what = format!("KEK {}", row.reference);
    match &seen.trouble {
        None => report.ok(
            &what,
            format!("{state} in {}; unwraps its probe", row.backend),
        ),
        // Nothing is under it yet.
        Some(error) if row.state == KekState::PreActive => {
            report.warn(&what, format!("{state} in {}: {error}", row.backend))
        }
        Some(error) => report.fail(
            &what,
            format!(
                "{state} in {}, and data keys may be under it: {error}",
                row.backend
            ),
        ),
    }
}
