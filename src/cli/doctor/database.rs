//! The database: schema, settings that durability rests on, its clock, and what interrupted work left.

use std::time::Duration;

use super::Report;
use crate::{
    audit,
    cli::exit::{Failure, Result},
    clock::Clock,
    config::Config,
    store::{Db, Setting, StoreError},
};

/// Replicas whose clocks are further from the database's than this do no scheduled work (jobs/leader.rs).
const CLOCK_BOUND: Duration = Duration::from_secs(60);
/// Worth a look: NTP keeps clocks within milliseconds.
const CLOCK_WARNING: Duration = Duration::from_secs(2);

/// Everything about the database. None when it does not answer or has another schema.
pub(super) async fn check(config: &Config, report: &mut Report) -> Result<Option<Db>> {
    let opened = async {
        let db = Db::open_beside(&config.database).await?;
        db.check_schema().await?;
        let version = db.schema_version().await?;
        Ok::<_, StoreError>((db, version))
    };
    let (db, version) = match opened.await {
        Ok(opened) => opened,
        Err(error) => {
            report.fail("database", error)?;
            return Ok(None);
        }
    };
    let text = format!("{}, schema {version}", db.engine());
    report.ok("database", text)?;
    match db.settings().await {
        Ok(settings) => settings.iter().try_for_each(|s| setting(s, report))?,
        Err(error) => report.fail("database settings", error)?,
    }
    clock(&db, report).await?;
    report.check("leftovers", leftovers(&db).await)?;
    Ok(Some(db))
}

fn setting(setting: &Setting, report: &mut Report) -> Result<()> {
    let what = format!("database setting {}", setting.name);
    match &setting.trouble {
        None => report.ok(&what, &setting.value),
        Some(why) => report.fail(&what, format!("{}; {why}", setting.value)),
    }
}

/// How far this machine's clock is from the database's, give or take the time of one query.
async fn clock(db: &Db, report: &mut Report) -> Result<()> {
    let before = Clock::System.now();
    let theirs = match db.now().await {
        Ok(now) => now,
        Err(error) => return report.fail("clock", error),
    };
    let ours = before.plus(Clock::System.now().since(before) / 2);
    let apart = theirs.since(ours).max(ours.since(theirs));
    let text = format!("{} ms from the database's", apart.as_millis());
    if apart > CLOCK_BOUND {
        report.fail(
            "clock",
            format!(
                "{text}; above 60 s a replica does no scheduled work: repair time synchronisation"
            ),
        )
    } else if apart > CLOCK_WARNING {
        report.warn("clock", format!("{text}; repair time synchronisation"))
    } else {
        report.ok("clock", text)
    }
}

/// What interrupted attempts left on the devices. Nothing uses or deletes it, so it is a matter for people, not a fault.
async fn leftovers(db: &Db) -> std::result::Result<String, Failure> {
    let left = db.quarantined_intents().await.map_err(Failure::usage)?;
    let lines = left.iter().map(|intent| {
        let id = audit::hex(intent.id.as_bytes());
        format!(
            "\n        backend {}, CKA_ID {id}, of {}: {}",
            intent.backend, intent.label, intent.found
        )
    });
    Ok(match left.len() {
        0 => "none".into(),
        n => format!(
            "{n} quarantined; adopt them with `claviger key adopt`, or remove them from the device:{}",
            lines.collect::<String>()
        ),
    })
}
