//! The daemon's database, reached behind its back.

use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection, PgConnection, Row, SqliteConnection,
    TypeInfo, ValueRef,
    postgres::PgRow,
    sqlite::{SqliteConnectOptions, SqliteRow},
};

use super::{Daemon, Engine};

impl Daemon {
    /// Runs statements of the test's own, separated by `;`, in one transaction.
    pub async fn execute(&self, sql: &str) {
        let sql = format!("BEGIN; {sql}; COMMIT");
        let done = match self.engine {
            Engine::Sqlite => {
                let mut connection = self.sqlite().await;
                let done = sqlx::raw_sql(AssertSqlSafe(sql.clone()))
                    .execute(&mut connection)
                    .await;
                connection.close().await.expect("closed");
                done.map(|_| ())
            }
            Engine::Postgres => {
                let mut connection = self.postgres().await;
                let done = sqlx::raw_sql(AssertSqlSafe(sql.clone()))
                    .execute(&mut connection)
                    .await;
                connection.close().await.expect("closed");
                done.map(|_| ())
            }
        };
        done.unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    /// Rows of a query whose columns are texts or BIGINTs.
    pub async fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        macro_rules! texts {
            ($row:ty, $connection:expr) => {{
                let mut connection = $connection;
                let rows = sqlx::query(AssertSqlSafe(sql.to_owned()))
                    .fetch_all(&mut connection)
                    .await;
                let rows = rows.unwrap_or_else(|e| panic!("{sql}: {e}"));
                connection.close().await.expect("closed");
                let text = |row: &$row, i: usize| {
                    let value = row.try_get_raw(i).expect("a column");
                    if value.is_null() {
                        return String::new();
                    }
                    match value.type_info().name() {
                        "INTEGER" | "INT8" => row.get::<i64, _>(i).to_string(),
                        "TEXT" => row.get::<String, _>(i),
                        other => panic!("{sql}: {} is {other}", row.column(i).name()),
                    }
                };
                let texts = |row: &$row| (0..row.len()).map(|i| text(row, i)).collect();
                rows.iter().map(texts).collect()
            }};
        }
        match self.engine {
            Engine::Sqlite => texts!(SqliteRow, self.sqlite().await),
            Engine::Postgres => texts!(PgRow, self.postgres().await),
        }
    }

    /// Gives the daemon, which is down, an empty database in the place of the one that it had.
    pub async fn lose_database(&mut self) {
        assert!(self.child.is_none(), "the daemon is up");
        match self.engine {
            Engine::Sqlite => {
                for end in ["", "-wal", "-shm"] {
                    let _ = std::fs::remove_file(self.path(&format!("claviger.db{end}")));
                }
            }
            Engine::Postgres => {
                let url = crate::postgres::database().await;
                self.edit_config(|text| text.replace(&self.url, &url));
                self.url = url;
            }
        }
    }

    async fn sqlite(&self) -> SqliteConnection {
        let options: SqliteConnectOptions = self.url.parse().expect("a URL");
        let options = options.busy_timeout(super::PATIENCE);
        options.connect().await.expect("the database")
    }

    async fn postgres(&self) -> PgConnection {
        let connected = PgConnection::connect(&self.url).await;
        connected.expect("the database")
    }
}
