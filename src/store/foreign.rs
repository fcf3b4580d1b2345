//! Tables of other programs: one query, read only, every value as text. For imports alone.

use std::{collections::BTreeMap, path::Path, str::FromStr};

use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection, Row, ValueRef,
    postgres::{PgConnectOptions, PgRow},
    sqlite::{SqliteConnectOptions, SqliteRow},
};

use super::{Result, StoreError};
use crate::model::secret::SecretString;

/// A row by the names of its columns. NULL is left out.
pub type ForeignRow = BTreeMap<String, String>;

/// Runs the query of the person who imports, in a session that cannot write, and reads all of its rows.
///
/// `url` is `sqlite:///absolute/path.db` or `postgres://…`. Errors: `Setup` for a URL, file or query that cannot be used.
pub async fn read_foreign(url: &SecretString, query: &str) -> Result<Vec<ForeignRow>> {
    let text = url.expose_secret().trim();
    let sqlite = text.strip_prefix("sqlite://");
    if let Some(path) = sqlite.or_else(|| text.strip_prefix("sqlite:")) {
        return from_sqlite(Path::new(path), query).await;
    }
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        return from_postgres(text, query).await;
    }
    Err(StoreError::Setup(
        "the URL must begin with sqlite:// or postgres://".into(),
    ))
}

async fn from_sqlite(path: &Path, query: &str) -> Result<Vec<ForeignRow>> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let unusable = |e| StoreError::Setup(format!("cannot open {}: {e}", path.display()));
    let mut connection = options.connect().await.map_err(unusable)?;
    let rows = sqlx::query(AssertSqlSafe(query))
        .fetch_all(&mut connection)
        .await;
    let rows = rows.map_err(refused)?;
    rows.iter().map(sqlite_row).collect()
}

fn sqlite_row(row: &SqliteRow) -> Result<ForeignRow> {
    let mut texts = ForeignRow::new();
    for column in row.columns() {
        // SQLite turns numbers into text by itself.
        if let Some(text) = row.try_get_unchecked::<Option<String>, _>(column.ordinal())? {
            texts.insert(column.name().to_owned(), text);
        }
    }
    Ok(texts)
}

async fn from_postgres(url: &str, query: &str) -> Result<Vec<ForeignRow>> {
    // The URL may hold a password: say that it is wrong, not what it is.
    let options = PgConnectOptions::from_str(url)
        .map_err(|_| StoreError::Setup("the URL is not a valid postgres:// URL".into()))?
        .options([("default_transaction_read_only", "on")])
        .application_name("claviger import");
    let mut connection = options.connect().await?;
    // The simple protocol answers in text, whatever the types of the columns.
    let rows = sqlx::raw_sql(AssertSqlSafe(query))
        .fetch_all(&mut connection)
        .await;
    let rows = rows.map_err(refused)?;
    let texts = rows.iter().map(postgres_row).collect();
    connection.close().await?;
    texts
}

fn postgres_row(row: &PgRow) -> Result<ForeignRow> {
    let mut texts = ForeignRow::new();
    for column in row.columns() {
        let value = row.try_get_raw(column.ordinal())?;
        if value.is_null() {
            continue;
        }
        let text = value.as_str().map_err(sqlx::Error::Decode)?;
        texts.insert(column.name().to_owned(), text.to_owned());
    }
    Ok(texts)
}

/// The database's own words about a query, which are for the person who wrote it.
fn refused(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::Database(said) => {
            StoreError::Setup(format!("the query was refused: {}", said.message()))
        }
        _ => StoreError::from(error),
    }
}
