//! The two engines: opening, locking, migrating, transactions, and the dispatch that lets one SQL text serve both.
//!
//! SQLite: WAL, `synchronous=FULL`, foreign keys, one write connection, `BEGIN IMMEDIATE` (a deferred transaction
//! that reads before it writes fails under contention), and a lock file so that a second daemon on the same file
//! refuses to start. PostgreSQL: an ordinary pool; it does its own locking.

use std::{
    fs::{File, OpenOptions, TryLockError},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;
use sqlx::{
    PgPool, Postgres, Sqlite, SqlitePool,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tracing::Span;

use super::{Result, StoreError};
use crate::{
    model::{Secret, Timestamp, secret::SecretString},
    trace,
};

static SQLITE_MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES_MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// Advisory lock that serialises writers of the admin audit stream on PostgreSQL ("clv" and 1).
const ADMIN_STREAM_LOCK: i64 = 0x63_6c_76_01;

/// Section `[database]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `sqlite:///absolute/path/claviger.db` or `postgres://user@host/database`. May hold a password.
    #[serde(default = "no_url")]
    pub url: SecretString,
    /// File that holds the URL, instead of `url`.
    #[serde(default)]
    pub url_file: Option<PathBuf>,
    /// Connections to PostgreSQL, or readers of SQLite. Default 8.
    #[serde(default = "default_connections")]
    pub max_connections: u32,
}

fn no_url() -> SecretString {
    Secret::new(String::new())
}

const fn default_connections() -> u32 {
    8
}

impl DatabaseConfig {
    /// Defaults around this URL.
    pub const fn of(url: SecretString) -> Self {
        Self {
            url,
            url_file: None,
            max_connections: default_connections(),
        }
    }

    /// Would rows cross a network in clear, or could somebody on the way make them (`sslmode` of libpq below `require`)?
    /// False for a URL that cannot be read: opening it says why.
    pub fn is_plain(&self) -> bool {
        let Ok(url) = url(self) else { return false };
        let Ok(options) = PgConnectOptions::from_str(url.expose_secret()) else {
            return false;
        };
        let host = options.get_host();
        let is_local = options.get_socket().is_some()
            || host.starts_with('/')
            || host == "localhost"
            || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let may_be_plain = matches!(
            options.get_ssl_mode(),
            PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer
        );
        is_postgres(url.expose_secret()) && may_be_plain && !is_local
    }
}

/// The file that the URL of an SQLite database names.
pub(super) fn sqlite_path(url: &str) -> Option<&Path> {
    let path = url
        .strip_prefix("sqlite://")
        .or_else(|| url.strip_prefix("sqlite:"));
    path.map(Path::new)
}

fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

/// An open database. Cloning is cheap.
#[derive(Clone)]
pub enum Db {
    /// One file, one daemon.
    Sqlite {
        /// The one connection that writes.
        write: SqlitePool,
        /// Connections that read.
        read: SqlitePool,
        /// Held as long as the daemon lives; None for tools that only look.
        lock: Option<Arc<File>>,
    },
    /// A server, many daemons.
    Postgres(PgPool),
}

/// An open write transaction, with its step of the call. Dropped without `commit`, nothing happened.
pub enum Tx {
    /// Begun with `BEGIN IMMEDIATE`.
    Sqlite(sqlx::Transaction<'static, Sqlite>, Span),
    /// READ COMMITTED.
    Postgres(sqlx::Transaction<'static, Postgres>, Span),
}

/// Awaits a statement as a step of the call under way, which names the constant that holds its text, and no value.
macro_rules! statement {
    ($transaction:expr, $engine:expr, $sql:expr, $run:expr) => {
        ::tracing::Instrument::instrument(
            $run,
            $crate::store::engine::step($transaction, $engine, (module_path!(), stringify!($sql))),
        )
        .await
    };
}

/// Runs a statement in a transaction; the number of rows it changed.
macro_rules! execute {
    ($tx:expr, $sql:expr $(, $bind:expr)* $(,)?) => {
        match $tx {
            $crate::store::Tx::Sqlite(tx, span) => $crate::store::engine::statement!(
                span, "sqlite", $sql, sqlx::query($sql)$(.bind($bind))*.execute(&mut **tx)
            )
            .map(|done| done.rows_affected()),
            $crate::store::Tx::Postgres(tx, span) => $crate::store::engine::statement!(
                span, "postgresql", $sql, sqlx::query($sql)$(.bind($bind))*.execute(&mut **tx)
            )
            .map(|done| done.rows_affected()),
        }
        .map_err($crate::store::StoreError::from)
    };
}

/// Reads at most one row inside a transaction.
macro_rules! fetch_in {
    ($tx:expr, $row:ty, $sql:expr $(, $bind:expr)* $(,)?) => {
        match $tx {
            $crate::store::Tx::Sqlite(tx, span) => $crate::store::engine::statement!(
                span, "sqlite", $sql,
                sqlx::query_as::<_, $row>($sql)$(.bind($bind))*.fetch_optional(&mut **tx)
            ),
            $crate::store::Tx::Postgres(tx, span) => $crate::store::engine::statement!(
                span, "postgresql", $sql,
                sqlx::query_as::<_, $row>($sql)$(.bind($bind))*.fetch_optional(&mut **tx)
            ),
        }
        .map_err($crate::store::StoreError::from)
    };
}

/// Reads all rows inside a transaction.
macro_rules! fetch_all_in {
    ($tx:expr, $row:ty, $sql:expr $(, $bind:expr)* $(,)?) => {
        match $tx {
            $crate::store::Tx::Sqlite(tx, span) => $crate::store::engine::statement!(
                span, "sqlite", $sql,
                sqlx::query_as::<_, $row>($sql)$(.bind($bind))*.fetch_all(&mut **tx)
            ),
            $crate::store::Tx::Postgres(tx, span) => $crate::store::engine::statement!(
                span, "postgresql", $sql,
                sqlx::query_as::<_, $row>($sql)$(.bind($bind))*.fetch_all(&mut **tx)
            ),
        }
        .map_err($crate::store::StoreError::from)
    };
}

/// Reads at most one row outside any transaction.
macro_rules! fetch_optional {
    ($db:expr, $row:ty, $sql:expr $(, $bind:expr)* $(,)?) => {
        match $db {
            $crate::store::Db::Sqlite { read, .. } => $crate::store::engine::statement!(
                &::tracing::Span::none(), "sqlite", $sql,
                sqlx::query_as::<_, $row>($sql)$(.bind($bind))*.fetch_optional(read)
            ),
            $crate::store::Db::Postgres(pool) => $crate::store::engine::statement!(
                &::tracing::Span::none(), "postgresql", $sql,
                sqlx::query_as::<_, $row>($sql)$(.bind($bind))*.fetch_optional(pool)
            ),
        }
        .map_err($crate::store::StoreError::from)
    };
}

/// Reads all rows outside any transaction.
macro_rules! fetch_all {
    ($db:expr, $row:ty, $sql:expr $(, $bind:expr)* $(,)?) => {
        match $db {
            $crate::store::Db::Sqlite { read, .. } => $crate::store::engine::statement!(
                &::tracing::Span::none(), "sqlite", $sql,
                sqlx::query_as::<_, $row>($sql)$(.bind($bind))*.fetch_all(read)
            ),
            $crate::store::Db::Postgres(pool) => $crate::store::engine::statement!(
                &::tracing::Span::none(), "postgresql", $sql,
                sqlx::query_as::<_, $row>($sql)$(.bind($bind))*.fetch_all(pool)
            ),
        }
        .map_err($crate::store::StoreError::from)
    };
}

pub(super) use {execute, fetch_all, fetch_all_in, fetch_in, fetch_optional, statement};

/// The step of one statement, below its transaction if it is in one.
pub(super) fn step(transaction: &Span, engine: &'static str, named: (&str, &str)) -> Span {
    // The name is made only when somebody sees it.
    let name = || {
        let (module, constant) = named;
        let file = module.rsplit("::").next().unwrap_or_default();
        format!("{file}.{constant}")
    };
    if transaction.is_disabled() {
        return trace::step!(
            "statement",
            otel.name = name(),
            otel.kind = "client",
            db.system.name = engine
        );
    }
    trace::step!(
        parent: transaction,
        "statement",
        otel.name = name(),
        otel.kind = "client",
        db.system.name = engine
    )
}

impl Db {
    /// Opens the database of a daemon. On SQLite the file is created if it is missing and locked against a
    /// second daemon. Errors are `Setup` with what to do, or `Unavailable`.
    pub async fn open(config: &DatabaseConfig) -> Result<Self> {
        Self::connect(config, Lock::Exclusive).await
    }

    /// Opens the database beside a running daemon, for tools that only look (`doctor`, `audit verify`).
    pub async fn open_beside(config: &DatabaseConfig) -> Result<Self> {
        Self::connect(config, Lock::None).await
    }

    async fn connect(config: &DatabaseConfig, lock: Lock) -> Result<Self> {
        let url = url(config)?;
        let text = url.expose_secret();
        if let Some(path) = sqlite_path(text) {
            return open_sqlite(path, config.max_connections, lock).await;
        }
        if is_postgres(text) {
            let options = PgConnectOptions::from_str(text).map_err(|_| {
                // The URL may hold a password: say that it is wrong, not what it is.
                StoreError::Setup("database.url is not a valid postgres:// URL".into())
            })?;
            let pool = PgPoolOptions::new()
                .max_connections(config.max_connections)
                .acquire_timeout(Duration::from_secs(5))
                .connect_with(options.application_name("claviger"))
                .await?;
            return Ok(Self::Postgres(pool));
        }
        Err(StoreError::Setup(
            "database.url must begin with sqlite:// or postgres://".into(),
        ))
    }

    /// Begins a write transaction.
    pub async fn begin(&self) -> Result<Tx> {
        Ok(match self {
            Self::Sqlite { write, .. } => {
                let span = trace::step!("transaction", db.system.name = "sqlite");
                let begun = write.begin_with("BEGIN IMMEDIATE");
                let begun = statement!(&span, "sqlite", BEGIN, begun)?;
                Tx::Sqlite(begun, span)
            }
            Self::Postgres(pool) => {
                let span = trace::step!("transaction", db.system.name = "postgresql");
                let begun = statement!(&span, "postgresql", BEGIN, pool.begin())?;
                Tx::Postgres(begun, span)
            }
        })
    }

    /// `sqlite` or `postgres`, for people and metrics.
    pub const fn engine(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "sqlite",
            Self::Postgres(_) => "postgres",
        }
    }

    /// Brings the schema up to this binary's version. Safe to run twice and by two processes at once.
    pub async fn migrate(&self) -> Result<()> {
        self.refuse_newer_schema().await?;
        match self {
            Self::Sqlite { write, .. } => SQLITE_MIGRATIONS.run(write).await,
            Self::Postgres(pool) => POSTGRES_MIGRATIONS.run(pool).await,
        }
        .map_err(|e| StoreError::Setup(format!("migration failed: {e}")))
    }

    /// Succeeds only when the schema is exactly the one this binary was built for (R-OPS-4).
    pub async fn check_schema(&self) -> Result<()> {
        self.refuse_newer_schema().await?;
        let (applied, expected) = (self.schema_version().await?, expected_schema());
        if applied < expected {
            return Err(StoreError::Setup(format!(
                "the database schema is at version {applied}, this binary needs {expected}; \
                 run `claviger migrate`"
            )));
        }
        Ok(())
    }

    async fn refuse_newer_schema(&self) -> Result<()> {
        let (applied, expected) = (self.schema_version().await?, expected_schema());
        if applied > expected {
            return Err(StoreError::Setup(format!(
                "the database schema is at version {applied}, ahead of this binary, which knows \
                 {expected}; run the newer claviger, or restore the backup made before the upgrade"
            )));
        }
        Ok(())
    }

    /// Version of the last applied migration; 0 for an empty database.
    pub async fn schema_version(&self) -> Result<i64> {
        const SQLITE_TABLE: &str =
            "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = '_sqlx_migrations'";
        const POSTGRES_TABLE: &str = "SELECT COUNT(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename = '_sqlx_migrations'";
        const VERSION: &str =
            "SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations WHERE success";
        let table = match self {
            Self::Sqlite { .. } => SQLITE_TABLE,
            Self::Postgres(_) => POSTGRES_TABLE,
        };
        match fetch_optional!(self, (i64,), table)? {
            Some((1..,)) => Ok(fetch_optional!(self, (i64,), VERSION)?.map_or(0, |(v,)| v)),
            _ => Ok(0),
        }
    }

    /// Does the database answer?
    pub async fn ping(&self) -> Result<()> {
        fetch_optional!(self, (i64,), "SELECT CAST(1 AS BIGINT)").map(|_| ())
    }

    /// Writes a consistent copy of a SQLite database to a file that does not exist yet. Errors: `Setup` on PostgreSQL,
    /// which has its own tools for that.
    pub async fn copy_to(&self, path: &Path) -> Result<()> {
        match self {
            Self::Sqlite { read, .. } => {
                sqlx::query("VACUUM INTO $1")
                    .bind(path.display().to_string())
                    .execute(read)
                    .await?;
                Ok(())
            }
            Self::Postgres(_) => Err(StoreError::Setup(
                "copy a PostgreSQL database with pg_dump".into(),
            )),
        }
    }

    /// Closes all connections; the SQLite lock goes with the last clone.
    pub async fn close(&self) {
        match self {
            Self::Sqlite { write, read, .. } => {
                read.close().await;
                write.close().await;
            }
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

impl Tx {
    /// Makes everything in the transaction happen.
    pub async fn commit(self) -> Result<()> {
        match self {
            Self::Sqlite(tx, span) => {
                statement!(&span, "sqlite", COMMIT, tx.commit())?;
                // SQLite's thread may hold the last statement's step for a moment more. What was left ends then.
                span.in_scope(|| ());
            }
            Self::Postgres(tx, span) => statement!(&span, "postgresql", COMMIT, tx.commit())?,
        }
        Ok(())
    }

    /// Waits until no other transaction is writing the admin stream. SQLite has one writer anyway.
    pub async fn lock_admin_stream(&mut self) -> Result<()> {
        if let Self::Postgres(tx, span) = self {
            let lock = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(ADMIN_STREAM_LOCK);
            statement!(span, "postgresql", LOCK, lock.execute(&mut **tx))?;
        }
        Ok(())
    }

    /// The database's time. The one statement besides the lock that the engines spell differently.
    pub async fn now(&mut self) -> Result<Timestamp> {
        let row = match self {
            Self::Sqlite(..) => {
                const NOW: &str = "SELECT CAST(unixepoch('subsec') * 1000000 AS INTEGER)";
                fetch_in!(self, (i64,), NOW)?
            }
            Self::Postgres(..) => {
                const NOW: &str =
                    "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)";
                fetch_in!(self, (i64,), NOW)?
            }
        };
        row.map(|(micros,)| Timestamp::from_micros(micros))
            .ok_or_else(|| StoreError::Corrupt("database has no time".into()))
    }
}

/// Version of the newest migration in this binary.
pub fn expected_schema() -> i64 {
    SQLITE_MIGRATIONS
        .iter()
        .map(|m| m.version)
        .max()
        .unwrap_or(0)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lock {
    Exclusive,
    None,
}

pub(super) fn url(config: &DatabaseConfig) -> Result<SecretString> {
    let inline = config.url.expose_secret();
    match (&config.url_file, inline.is_empty()) {
        (None, false) => Ok(Secret::new(inline.clone())),
        (Some(path), true) => std::fs::read_to_string(path)
            .map(|text| Secret::new(text.trim_end().to_owned()))
            .map_err(|e| StoreError::Setup(format!("database.url_file {}: {e}", path.display()))),
        (None, true) => Err(StoreError::Setup(
            "database.url or database.url_file is required".into(),
        )),
        (Some(_), false) => Err(StoreError::Setup(
            "database.url and database.url_file exclude each other".into(),
        )),
    }
}

async fn open_sqlite(path: &Path, readers: u32, lock: Lock) -> Result<Db> {
    let lock = match lock {
        Lock::Exclusive => Some(Arc::new(lock_file(path)?)),
        Lock::None if !path.is_file() => {
            return Err(StoreError::Setup(format!(
                "database.url: {} does not exist yet; run `claviger migrate`",
                path.display()
            )));
        }
        Lock::None => None,
    };
    if lock.is_some() {
        // SQLite gives its journals the mode of the file, and would make it by the umask.
        private_file(path)?;
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(lock.is_some())
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5));
    let pool = |connections: u32| {
        SqlitePoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(Duration::from_secs(5))
    };
    let write = pool(1).connect_with(options.clone()).await?;
    let read = pool(readers.max(1)).connect_with(options).await?;
    Ok(Db::Sqlite { write, read, lock })
}

/// An advisory lock on `FILE.lock`: the operating system releases it when the process ends, however it ends.
pub(super) fn lock_file(database: &Path) -> Result<File> {
    // A link to the file is the file; one that is not there yet has no other name.
    let database = std::fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
    let mut path = database.clone().into_os_string();
    path.push(".lock");
    let path = PathBuf::from(path);
    let file = private_file(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Setup(format!(
            "another claviger is running on {}; SQLite serves one daemon, use PostgreSQL for more",
            database.display()
        ))),
        Err(TryLockError::Error(e)) => Err(unusable(&path, &e)),
    }
}

/// Opens a file, made with mode 0600 if it is not there.
pub(super) fn private_file(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| unusable(path, &e))
}

fn unusable(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Setup(format!("database.url: {}: {error}", path.display()))
}
