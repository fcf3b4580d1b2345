//! Streams `access/<replica>`: data-plane calls and reads, group-committed by one writer task.
//!
//! Callers queue their record and, in mode `required`, wait until the transaction that holds it is committed: many
//! calls, one fsync. The queue is bounded and every wait ends: when the database does not take the rows, the calls
//! fail with AUDIT_UNAVAILABLE and the stream goes on later without a gap.

use std::time::Duration;

use serde::Deserialize;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{Instrument, Span, field};

use super::{CheckpointConfig, Outcome, Record, RetentionConfig, chain};
use crate::{
    error::{Error, Reason, Result},
    store::{Db, Head, StoreError},
    trace::{self, Call},
};

/// Section `[audit]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessConfig {
    /// How data-plane calls are recorded.
    pub access: AccessMode,
    /// Name of this replica's stream, `access/<replica>`. Default: the host name.
    pub replica: String,
    /// Where the ends of the chains are written down; nowhere when left out.
    pub checkpoint: Option<CheckpointConfig>,
    /// How long rows are kept; for ever when left out.
    pub retention: RetentionConfig,
}

impl Default for AccessConfig {
    fn default() -> Self {
        let replica = std::fs::read_to_string("/etc/hostname")
            .ok()
            .or_else(|| std::env::var("HOSTNAME").ok())
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "local".to_owned());
        Self {
            access: AccessMode::Required,
            replica,
            checkpoint: None,
            retention: RetentionConfig::default(),
        }
    }
}

/// How data-plane calls are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessMode {
    /// The answer waits until its row is durable.
    Required,
    /// Rows are written; an answer does not wait, and a crash or a full queue may lose some.
    BestEffort,
    /// Only refusals are recorded. Not in production.
    Off,
}

/// Rows of one transaction at most; more wait for the next.
const MAX_BATCH: usize = 512;
/// Records waiting at most; more are refused.
const QUEUE: usize = 8192;
/// How long an answer waits for its row before the call fails.
const PATIENCE: Duration = Duration::from_secs(5);

type Waiter = oneshot::Sender<Result<(), ()>>;

/// A record on its way to the writer.
struct Queued {
    record: Record,
    waiter: Option<Waiter>,
    /// The step of the call that waits for it.
    step: Span,
}

/// The handle of one replica's access stream. Cloning is cheap.
#[derive(Clone)]
pub struct AccessLog {
    queue: mpsc::Sender<Queued>,
    mode: AccessMode,
}

impl AccessLog {
    /// The log and its writer. `Writer::run` must be driven; it ends when every handle is gone.
    pub fn new(db: Db, config: &AccessConfig) -> (Self, Writer) {
        let (queue, records) = mpsc::channel(QUEUE);
        let log = Self {
            queue,
            mode: config.access,
        };
        let writer = Writer {
            db,
            stream: format!("access/{}", config.replica),
            records,
            head: None,
        };
        (log, writer)
    }

    /// Are successes recorded at all? Lets a caller skip building what would be dropped.
    pub const fn records_success(&self) -> bool {
        !matches!(self.mode, AccessMode::Off)
    }

    /// Records a call. In mode `required` it returns when the row is durable.
    ///
    /// Errors: AUDIT_UNAVAILABLE when the queue is full or the row could not be written in time.
    pub async fn append(&self, record: Record) -> Result<()> {
        match self.mode {
            AccessMode::Required => {
                let (done, written) = oneshot::channel();
                let step = trace::step!("audit", claviger.audit.rows = field::Empty);
                let queued = Queued {
                    record,
                    waiter: Some(done),
                    step: step.clone(),
                };
                self.queue
                    .try_send(queued)
                    .map_err(|_| unavailable("the audit queue is full"))?;
                match timeout(PATIENCE, written).instrument(step).await {
                    Ok(Ok(Ok(()))) => Ok(()),
                    Ok(_) => Err(unavailable("the audit row was not written")),
                    Err(_) => Err(unavailable("the audit row was not written in time")),
                }
            }
            AccessMode::BestEffort => {
                self.append_unawaited(record);
                Ok(())
            }
            AccessMode::Off => {
                if record.outcome == Outcome::Refused {
                    self.append_unawaited(record);
                }
                Ok(())
            }
        }
    }

    /// Queues a record that nobody waits for; counts it when the queue is full.
    pub fn append_unawaited(&self, record: Record) {
        let queued = Queued {
            record,
            waiter: None,
            step: Span::none(),
        };
        if self.queue.try_send(queued).is_err() {
            metrics::counter!("claviger_audit_dropped_total").increment(1);
        }
    }
}

fn unavailable(why: &'static str) -> Error {
    Error::new(
        Reason::AuditUnavailable,
        "the call cannot be recorded and therefore did not happen; retry later",
    )
    .retry_after(Duration::from_secs(1))
    .because(why)
}

/// The one task that writes a stream.
pub struct Writer {
    db: Db,
    stream: String,
    records: mpsc::Receiver<Queued>,
    head: Option<Head>,
}

impl Writer {
    /// Writes batches until every `AccessLog` handle is dropped and the queue is empty.
    pub async fn run(mut self) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        loop {
            if self.records.recv_many(&mut batch, MAX_BATCH).await == 0 {
                return;
            }
            let rows = batch.len();
            metrics::histogram!("claviger_audit_batch_rows").record(rows as f64);
            // One transaction for many calls: the first that is traced has it in its trace.
            let traced = batch.iter().find(|queued| !queued.step.is_disabled());
            let step = traced.map_or_else(Span::none, |queued| queued.step.clone());
            step.record("claviger.audit.rows", rows);
            let queued = batch.drain(..);
            let (records, waiters): (Vec<_>, Vec<_>) =
                queued.map(|queued| (queued.record, queued.waiter)).unzip();
            let within = Call::new(step, Span::none());
            let written = within.run(self.write(records)).await;
            if let Err(error) = &written {
                tracing::error!(stream = self.stream, %error, rows = waiters.len(), "audit rows not written");
            }
            let answer = written.map_err(|_| ());
            for waiter in waiters.into_iter().flatten() {
                // The caller may have left; its row stands all the same.
                let _ = waiter.send(answer);
            }
        }
    }

    async fn write(&mut self, records: Vec<Record>) -> Result<(), StoreError> {
        // After a failure nobody knows whether the last batch was committed: read the head again.
        let known = self.head.take();
        let mut tx = self.db.begin().await?;
        let head = match known {
            Some(head) => head,
            None => tx
                .audit_head(&self.stream)
                .await?
                .unwrap_or_else(chain::empty_head),
        };
        let at = tx.now().await?.micros();
        let rows = chain::link(&self.stream, &head, at, records);
        if !tx.append_audit(&rows, head.seq).await? {
            return Err(StoreError::Corrupt(format!(
                "stream {} has another writer; audit.replica must be unique",
                self.stream
            )));
        }
        tx.commit().await?;
        self.head = rows.last().map(|row| Head {
            seq: row.seq,
            hash: row.hash.clone(),
        });
        Ok(())
    }
}
