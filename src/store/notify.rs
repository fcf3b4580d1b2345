//! A hint that the admin stream has grown, through PostgreSQL's LISTEN and NOTIFY. Notifications get lost when a
//! connection does: whoever listens polls all the same. On SQLite all writers are in this process.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::{sync::Notify, time::sleep};

use super::{Db, Result, Tx, engine::statement};

const CHANNEL: &str = "claviger_admin";
const NOTIFY: &str = "SELECT pg_notify('claviger_admin', '')";
/// Between two attempts to listen.
const PAUSE: Duration = Duration::from_secs(1);

impl Tx {
    /// Wakes those who listen, once this transaction is committed.
    pub(super) async fn notify_admin_stream(&mut self) -> Result<()> {
        if let Self::Postgres(tx, span) = self {
            let notify = sqlx::query(NOTIFY);
            statement!(span, "postgresql", NOTIFY, notify.execute(&mut **tx))?;
        }
        Ok(())
    }
}

impl Db {
    /// Wakes `listener` whenever the admin stream has grown, for as long as it is polled.
    pub async fn listen_to_admin_stream(&self, listener: &Notify) {
        loop {
            if let Err(error) = self.listen(listener).await {
                tracing::debug!(%error, "not listening for changes; polling goes on");
            }
            sleep(PAUSE).await;
        }
    }

    async fn listen(&self, listener: &Notify) -> Result<()> {
        let Self::Postgres(pool) = self else {
            return std::future::pending().await;
        };
        // A connection of its own: it must not be missing in the pool.
        let options = (*pool.connect_options()).clone();
        let one = PgPoolOptions::new().max_connections(1).max_lifetime(None);
        let one = one.idle_timeout(None).connect_lazy_with(options);
        let mut stream = PgListener::connect_with(&one).await?;
        stream.listen(CHANNEL).await?;
        loop {
            // None after a lost connection: something may have been missed.
            stream.try_recv().await?;
            listener.notify_one();
        }
    }
}
