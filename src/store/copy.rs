//! Copies of the whole database, and their way back: SQLite's own `VACUUM INTO`, and PostgreSQL's own `pg_dump` and
//! `pg_restore`, whose copies other tools can read too. Both copy what was committed at one moment, beside running daemons.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
};

use sqlx::AssertSqlSafe;
use tokio::process::Command;

use super::{
    Db, Result, StoreError,
    engine::{self, DatabaseConfig},
};
use crate::model::{Secret, secret::SecretString};

/// A database as its own tools call it.
enum Place {
    Sqlite(PathBuf),
    /// URL without the password, and the password.
    Postgres(String, Option<SecretString>),
}

fn place(config: &DatabaseConfig) -> Result<Place> {
    let url = engine::url(config)?;
    if let Some(path) = engine::sqlite_path(url.expose_secret()) {
        return Ok(Place::Sqlite(path.to_owned()));
    }
    let wrong = || StoreError::Setup("database.url is not a valid postgres:// URL".into());
    let mut url = url::Url::parse(url.expose_secret()).map_err(|_| wrong())?;
    let password = url.password().map(|password| {
        let bytes = percent_encoding::percent_decode_str(password).collect();
        String::from_utf8(bytes).map(Secret::new)
    });
    let password = password.transpose().map_err(|_| wrong())?;
    url.set_password(None).map_err(|()| wrong())?;
    Ok(Place::Postgres(url.into(), password))
}

/// File name of a copy.
pub fn copy_name(config: &DatabaseConfig) -> Result<&'static str> {
    Ok(match place(config)? {
        Place::Sqlite(_) => "claviger.db",
        Place::Postgres(..) => "claviger.dump",
    })
}

/// Writes a copy to the new file `to`, readable by its owner only.
///
/// Errors: SETUP when PostgreSQL's tool is not there or fails, with what it said.
pub async fn copy(db: &Db, config: &DatabaseConfig, to: &Path) -> Result<()> {
    // The tools write into what is there.
    engine::private_file(to)?;
    match (place(config)?, db) {
        (Place::Sqlite(_), Db::Sqlite { read, .. }) => {
            let to = to.to_string_lossy().replace('\'', "''");
            let vacuum = AssertSqlSafe(format!("VACUUM INTO '{to}'"));
            sqlx::query(vacuum).execute(read).await?;
        }
        (Place::Postgres(url, password), _) => {
            let mut dump = tool("pg_dump", password.as_ref());
            dump.args([
                "--format=custom",
                "--no-owner",
                "--no-privileges",
                "--no-password",
            ])
            .arg(format!("--dbname={url}"))
            .arg("--file")
            .arg(to);
            run(dump).await?;
        }
        (Place::Sqlite(_), Db::Postgres(_)) => return Err(mixed()),
    }
    synced(to)
}

/// Fills an empty database with a copy.
///
/// Errors: SETUP when the database is not empty, when a daemon runs on it, when PostgreSQL's tool is not there or fails.
pub async fn load(config: &DatabaseConfig, from: &Path) -> Result<()> {
    match place(config)? {
        Place::Sqlite(path) => {
            let _lock = engine::lock_file(&path)?;
            if path.exists() {
                return Err(StoreError::Setup(format!(
                    "database.url: {} is there already; move it away, and its -wal and -shm, to load a copy in its place",
                    path.display()
                )));
            }
            let mut part = path.clone().into_os_string();
            part.push(".part");
            let part = PathBuf::from(part);
            let file = |e: std::io::Error| StoreError::Setup(format!("{}: {e}", part.display()));
            let _ = fs::remove_file(&part);
            let mut into = engine::private_file(&part)?;
            let mut source = File::open(from).map_err(file)?;
            std::io::copy(&mut source, &mut into).map_err(file)?;
            synced(&part)?;
            fs::rename(&part, &path).map_err(file)?;
            synced(path.parent().unwrap_or(Path::new("/")))
        }
        Place::Postgres(url, password) => {
            let db = Db::open_beside(config).await?;
            let is_empty = db.schema_version().await? == 0;
            db.close().await;
            if !is_empty {
                return Err(StoreError::Setup(
                    "database.url: the database is not empty; name a new one to load a copy into"
                        .into(),
                ));
            }
            let mut restore = tool("pg_restore", password.as_ref());
            restore
                .args(["--no-owner", "--no-privileges", "--no-password"])
                .args(["--single-transaction", "--exit-on-error"])
                .arg(format!("--dbname={url}"))
                .arg(from);
            run(restore).await?;
            // Whoever was at work on the original is not at work on this one.
            let db = Db::open_beside(config).await?;
            db.forget_replicas().await?;
            db.close().await;
            Ok(())
        }
    }
}

fn mixed() -> StoreError {
    StoreError::Setup("the database is not the one that database.url names".into())
}

fn tool(name: &str, password: Option<&SecretString>) -> Command {
    let mut command = Command::new(name);
    command.stdin(Stdio::null()).kill_on_drop(true);
    if let Some(password) = password {
        // Not an argument, which everybody on the machine can read.
        command.env("PGPASSWORD", password.expose_secret());
    }
    command
}

async fn run(mut command: Command) -> Result<()> {
    let name = command
        .as_std()
        .get_program()
        .to_string_lossy()
        .into_owned();
    let output = command.output().await.map_err(|e| {
        StoreError::Setup(format!(
            "{name} does not run ({e}); it comes with PostgreSQL's client, in the server's version or a newer one"
        ))
    })?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(StoreError::Setup(format!("{name}: {}", said.trim())))
        }
    }
}

fn synced(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|e| StoreError::Setup(format!("{}: {e}", path.display())))
}
