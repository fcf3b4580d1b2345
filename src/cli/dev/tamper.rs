//! A row of the audit log changed behind the daemon's back, and found.
//!
//! On a copy, so that the development database stays good; and without SQL, as somebody would who has got hold of the
//! file: in its bytes, a refusal becomes a success.

use std::{fs, path::Path};

use crate::{
    audit::verify,
    cli::exit::{Failure, Result},
    config::Config,
    model::Secret,
    store::{DatabaseConfig, Db},
};

const REFUSED: &[u8] = b"refused";
const SUCCESS: &[u8] = b"success";

/// Copies the database that `config` names, changes one audit row of the copy below `dir`, verifies the copy,
/// and returns what was found, in a sentence. Errors: the change was not found, or the copy cannot be made.
pub async fn tampered_copy_is_found(config: &Path, dir: &Path) -> Result<String> {
    let config = Config::load(config).map_err(Failure::other)?;
    let live = open(&config.database).await?;
    if live.engine() != "sqlite" {
        // A server's rows cannot be copied aside with a file; the end-to-end tests change them in place.
        return Ok("not shown here: this step changes a copy of a SQLite file".to_owned());
    }
    let copy = dir.join("tampered.db");
    remove(&copy)?;
    live.copy_to(&copy).await.map_err(Failure::other)?;
    live.close().await;

    let mut bytes = fs::read(&copy).map_err(|e| failed(&copy, &e))?;
    let place = bytes
        .windows(REFUSED.len())
        .position(|window| window == REFUSED)
        .ok_or_else(|| Failure::other("the copy holds no refusal to change"))?;
    bytes[place..place + SUCCESS.len()].copy_from_slice(SUCCESS);
    fs::write(&copy, bytes).map_err(|e| failed(&copy, &e))?;

    let url = Secret::new(format!("sqlite://{}", copy.display()));
    let tampered = open(&DatabaseConfig::of(url)).await?;
    let reports = verify::verify(&tampered, "").await;
    tampered.close().await;
    remove(&copy)?;
    let broken = reports
        .map_err(Failure::other)?
        .into_iter()
        .find_map(|report| report.problem.map(|(seq, why)| (report.stream, seq, why)));
    match broken {
        Some((stream, seq, why)) => Ok(format!("stream {stream}, row {seq}: {why}")),
        None => Err(Failure::other(
            "a changed audit row was not found by the verification",
        )),
    }
}

async fn open(config: &DatabaseConfig) -> Result<Db> {
    Db::open_beside(config).await.map_err(Failure::other)
}

fn remove(copy: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let file = copy.with_file_name(format!("tampered.db{suffix}"));
        if file.exists() {
            fs::remove_file(&file).map_err(|e| failed(&file, &e))?;
        }
    }
    Ok(())
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::other(format!("{}: {error}", path.display()))
}
