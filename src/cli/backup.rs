//! `claviger backup`: a copy of the database, and a manifest that says what it must hold.
//!
//! Key pairs and KEKs are not in it: they never leave the token or KMS, which have backups of their own. What is in it is
//! wrapped by the KEK, and useless without it.

use std::{
    fs::{self, DirBuilder, File},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{Context, SHA256};
use clap::Args as ClapArgs;
use serde::{Deserialize, Serialize};

use super::{
    exit::{Exit, Failure, Result},
    output,
};
use crate::{
    audit::{self, StreamHead, checkpoint},
    config::Config,
    store::{self, DatabaseConfig, Db, Head},
};

/// Copy the database, beside running daemons, into a new directory
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Directory to make
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

const MANIFEST: &str = "manifest.json";
const FORMAT: u32 = 1;

/// What a backup is and what it must hold.
#[derive(Debug, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// RFC 3339, by database time.
    pub made_at: String,
    /// Release that made it.
    release: String,
    /// Version of the database's schema.
    schema: i64,
    /// Whose it is: the issuer of its tokens.
    issuer: String,
    /// Name of the copy beside the manifest.
    file: String,
    /// SHA-256 of the copy, in hex.
    sha256: String,
    /// Where the streams of the audit log ended, at least.
    audit: Vec<ManifestHead>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ManifestHead {
    stream: String,
    seq: i64,
    hash: String,
}

/// Runs `claviger backup`.
pub async fn run(args: Args) -> Result<Exit> {
    let config = Config::load(&args.config).map_err(Failure::usage)?;
    let db = Db::open_beside(&config.database).await;
    let db = db.map_err(Failure::unavailable)?;
    db.check_schema().await.map_err(Failure::other)?;
    let made = DirBuilder::new().mode(0o700).create(&args.to);
    made.map_err(|e| Failure::usage(format!("--to {}: {e}", args.to.display())))?;
    let manifest = write(&db, &config, &args.to).await.inspect_err(|_| {
        // Half a backup must not be taken for one.
        let _ = fs::remove_dir_all(&args.to);
    })?;
    db.close().await;
    output::print(&format!(
        "backup of {} in {}: {} (SHA-256 {})\nnot in it: the keys of the token or KMS, whose backup you make with its own tools",
        manifest.made_at,
        args.to.display(),
        manifest.file,
        manifest.sha256
    ))?;
    Ok(Exit::Ok)
}

async fn write(db: &Db, config: &Config, to: &Path) -> Result<Manifest> {
    // Before the copy, which has these rows at least.
    let heads = db.audit_heads().await.map_err(Failure::unavailable)?;
    let made_at = db.now().await.map_err(Failure::unavailable)?;
    let file = store::copy_name(&config.database).map_err(Failure::usage)?;
    let copy = to.join(file);
    store::copy(db, &config.database, &copy)
        .await
        .map_err(Failure::other)?;
    let manifest = Manifest {
        format: FORMAT,
        made_at: made_at.to_string(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        schema: db.schema_version().await.map_err(Failure::unavailable)?,
        issuer: config.tokens.issuer.clone(),
        file: file.to_owned(),
        sha256: sha256(&copy)?,
        audit: heads
            .into_iter()
            .map(|(stream, head)| ManifestHead {
                stream,
                seq: head.seq,
                hash: audit::hex(&head.hash),
            })
            .collect(),
    };
    let path = to.join(MANIFEST);
    let text = serde_json::to_string_pretty(&manifest).map_err(Failure::other)?;
    let written = fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            File::open(to)?.sync_all()
        });
    written.map_err(|e| Failure::other(format!("{}: {e}", path.display())))?;
    Ok(manifest)
}

impl Manifest {
    /// The manifest of a backup.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(MANIFEST);
        let wrong = |why: &dyn std::fmt::Display| {
            Failure::usage(format!("--from: {}: {why}", path.display()))
        };
        let text = fs::read_to_string(&path).map_err(|e| wrong(&e))?;
        let manifest: Self = serde_json::from_str(&text).map_err(|e| wrong(&e))?;
        match manifest.format {
            FORMAT => Ok(manifest),
            other => Err(wrong(&format!(
                "format {other} is not known to this release"
            ))),
        }
    }

    /// The copy, which is unchanged and fits the database that it is for.
    pub fn checked_copy(&self, directory: &Path, database: &DatabaseConfig) -> Result<PathBuf> {
        let fitting = store::copy_name(database).map_err(Failure::usage)?;
        if self.file != fitting {
            return Err(Failure::usage(format!(
                "the backup holds {}, and the database that the configuration names is filled from {fitting}",
                self.file
            )));
        }
        let copy = directory.join(fitting);
        match sha256(&copy)? == self.sha256 {
            true => Ok(copy),
            false => Err(Failure::new(
                Exit::No,
                format!(
                    "{} is not what the manifest says: it was changed",
                    copy.display()
                ),
            )),
        }
    }

    /// Where the streams of the audit log ended, at least.
    pub fn heads(&self) -> Result<Vec<StreamHead>> {
        let heads = self.audit.iter().map(|head| {
            Some(StreamHead {
                stream: head.stream.clone(),
                head: Head {
                    seq: head.seq,
                    hash: checkpoint::unhex(&head.hash)?,
                },
            })
        });
        let heads: Option<_> = heads.collect();
        heads.ok_or_else(|| Failure::usage("--from: a hash in the manifest is none"))
    }
}

fn sha256(path: &Path) -> Result<String> {
    let unreadable = |e| Failure::other(format!("{}: {e}", path.display()));
    let mut file = File::open(path).map_err(unreadable)?;
    let (mut context, mut buffer) = (Context::new(&SHA256), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).map_err(unreadable)? {
            0 => return Ok(audit::hex(context.finish().as_ref())),
            n => context.update(&buffer[..n]),
        }
    }
}
