//! Tables of other programs: one query, read only, every value as text. For imports alone.

use std::{collections::BTreeMap, path::Path, str::FromStr};

use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection, Executor, Row, SqlSafeStr, Statement,
    ValueRef,
    postgres::{PgConnectOptions, PgRow},
    sqlite::{SqliteConnectOptions, SqliteRow},
};

use super::{Result, StoreError};
use crate::model::secret::SecretString;

/// A row by the names of its columns. NULL is left out.
pub type ForeignRow = BTreeMap<String, String>;

/// Runs the query of the person who imports, which must be one that only reads, and reads all of its rows.
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
    // The file is opened to be read, but SQLite would run several statements, and some write other files.
    if !is_one_select(query) {
        return Err(no_query());
    }
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
    // The server prepares one statement and no more, and says whether it has columns.
    let text = AssertSqlSafe(query).into_sql_str();
    let prepared = (&mut connection).prepare(text).await.map_err(refused)?;
    if prepared.columns().is_empty() {
        return Err(no_query());
    }
    // In a transaction like this nothing turns writing on again.
    sqlx::raw_sql("BEGIN READ ONLY")
        .execute(&mut connection)
        .await?;
    // The simple protocol answers in text, whatever the types of the columns.
    let rows = sqlx::raw_sql(AssertSqlSafe(query))
        .fetch_all(&mut connection)
        .await;
    let rows = rows.map_err(refused)?;
    let texts = rows.iter().map(postgres_row).collect();
    connection.close().await?;
    texts
}

fn no_query() -> StoreError {
    StoreError::Setup("the query was refused: it must be one SELECT".into())
}

/// Is it one statement that begins as queries do? A semicolon may stand in quotes, in comments and at the end.
fn is_one_select(query: &str) -> bool {
    let plain = without_quotes(query);
    let plain = plain
        .trim()
        .trim_end_matches(|c: char| c == ';' || c.is_whitespace());
    let first = plain.split(|c: char| !c.is_ascii_alphabetic()).next();
    let first = first.unwrap_or_default().to_ascii_uppercase();
    ["SELECT", "WITH", "VALUES"].contains(&first.as_str()) && !plain.contains(';')
}

/// The text without comments, and with nothing in its quotes.
fn without_quotes(query: &str) -> String {
    let (mut plain, mut rest) = (String::new(), query);
    while let Some(first) = rest.chars().next() {
        let (open, close) = match first {
            '\'' => ("'", "'"),
            '"' => ("\"", "\""),
            '`' => ("`", "`"),
            '[' => ("[", "]"),
            '-' if rest.starts_with("--") => ("--", "\n"),
            '/' if rest.starts_with("/*") => ("/*", "*/"),
            _ => {
                plain.push(first);
                rest = rest.get(first.len_utf8()..).unwrap_or_default();
                continue;
            }
        };
        let inner = rest.get(open.len()..).unwrap_or_default();
        // A quote that is written twice ends one and begins the next, which is as good.
        rest = match inner.split_once(close) {
            Some((_, rest)) => rest,
            None => "",
        };
        plain.push(' ');
    }
    plain
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_query_and_nothing_else() {
        for good in [
            "SELECT 1",
            "  select a, 'b;c', \"d;e\", [f;g], `h;i` from t where x = 'it''s; so' ;\n; ",
            "-- a; comment\nSELECT /* and; another */ 1",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "VALUES (1)",
        ] {
            assert!(is_one_select(good), "{good}");
        }
        for bad in [
            "",
            ";",
            "DELETE FROM t",
            "VACUUM INTO '/tmp/copy'",
            "SELECT 1; VACUUM INTO '/tmp/copy'",
            "SELECT 'a'; DELETE FROM t; SELECT 'b'",
            "/* SELECT */ DROP TABLE t",
            "-- SELECT 1",
            "SELECTED",
            "PRAGMA writable_schema = 1",
        ] {
            assert!(!is_one_select(bad), "{bad}");
        }
    }
}
