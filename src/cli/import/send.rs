//! Rows on their way into the vault: in batches, each verified before it is noted as done.
//!
//! A batch is sent, then sent again as a dry run: the daemon opens what it has stored and compares, so `unchanged` says
//! that the very value is there and can be read. Cut off anywhere, the next run finds the same values stored and goes on.

use std::collections::HashSet;

use super::{Bad, Item, Report, Row, Stored, progress::Progress, state::State};
use crate::{
    cli::{
        exit::{Failure, Result},
        options::Session,
    },
    fault,
    grpc::proto::{ImportCredentialsRequest, ImportOutcome, ImportResult},
};

/// Bytes of a batch at most, to stay below what one request can carry.
const MAX_BYTES: usize = 2 << 20;

/// How to send.
pub struct Sending {
    /// The tenant; empty for the caller's own.
    pub tenant: String,
    /// Rows of a batch at most.
    pub batch: usize,
    /// Whether values that differ are replaced.
    pub replace: bool,
    /// Whether nothing is stored.
    pub dry_run: bool,
}

struct Run<'a> {
    session: &'a Session,
    how: &'a Sending,
    state: State,
    progress: Progress,
    report: Report,
}

/// Sends all rows that are not done yet.
pub async fn send(
    session: &Session,
    how: &Sending,
    total: usize,
    rows: impl Iterator<Item = Row>,
    state: State,
) -> Result<Report> {
    let mut run = Run {
        session,
        how,
        state,
        progress: Progress::new(total),
        report: Report::new(total, how.dry_run),
    };
    let sent = run.all(rows).await;
    run.progress.end();
    sent.map(|()| run.report)
}

impl Run<'_> {
    async fn all(&mut self, rows: impl Iterator<Item = Row>) -> Result<()> {
        let (mut seen, mut places) = (HashSet::new(), HashSet::new());
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for Row { id, item } in rows {
            if !seen.insert(id.clone()) {
                let twice = Bad::new(
                    "ID_TWICE",
                    "another row has this id; name a column that tells them apart",
                );
                self.bad(id, twice);
                continue;
            }
            // Before the rows that are done: the first one counts in a run that goes on, too.
            if let Ok(item) = &item
                && !places.insert(item.place())
            {
                let twice = Bad::new(
                    "CREDENTIAL_TWICE",
                    "an earlier row is for the same credential, and counts",
                );
                self.bad(id, twice);
                continue;
            }
            if let Some(stored) = self.state.get(&id) {
                self.report.earlier(stored);
                self.progress.add(1, 0);
                continue;
            }
            match item {
                Err(bad) => self.bad(id, bad),
                Ok(item) => {
                    let size = item.size();
                    if batch.len() == self.how.batch || (bytes + size > MAX_BYTES && bytes > 0) {
                        self.batch(std::mem::take(&mut batch)).await?;
                        bytes = 0;
                    }
                    bytes += size;
                    batch.push((id, item));
                }
            }
        }
        match batch.is_empty() {
            true => Ok(()),
            false => self.batch(batch).await,
        }
    }

    fn bad(&mut self, id: String, bad: Bad) {
        self.report.bad(id, bad);
        self.progress.add(0, 1);
    }

    async fn batch(&mut self, batch: Vec<(String, Item)>) -> Result<()> {
        let all: Vec<_> = batch.iter().map(|(_, item)| item).collect();
        let outcomes = self.ask(&all, self.how.dry_run).await?;
        fault::point("import.stored");
        let mut stored = Vec::new();
        for ((id, item), outcome) in batch.into_iter().zip(outcomes) {
            match self.outcome(&id, outcome) {
                Ok(result) => stored.push((id, item, result)),
                Err(bad) => self.bad(id, bad),
            }
        }
        let good = match self.how.dry_run {
            true => stored
                .into_iter()
                .map(|(id, _, result)| (id, result))
                .collect(),
            false => self.verified(stored).await?,
        };
        for (_, result) in &good {
            self.report.stored(*result);
        }
        let done = good.len();
        if !self.how.dry_run {
            self.state.note(good)?;
        }
        fault::point("import.noted");
        self.progress.add(done, 0);
        Ok(())
    }

    fn outcome(&mut self, id: &str, outcome: ImportOutcome) -> std::result::Result<Stored, Bad> {
        let result = outcome.result();
        for warning in outcome.warnings {
            self.report.warn(id, warning);
        }
        match result {
            ImportResult::Created => Ok(Stored::Created),
            ImportResult::Replaced => Ok(Stored::Replaced),
            ImportResult::Unchanged => Ok(Stored::Unchanged),
            ImportResult::Conflict => Err(Bad::new(
                "CONFLICT",
                "another value is there; --replace puts this one in its place",
            )),
            ImportResult::Rejected => Err(Bad::new(&outcome.reason, outcome.message)),
            ImportResult::Unspecified => Err(Bad::new("UNKNOWN", "the daemon did not say")),
        }
    }

    /// Those that the daemon has and can open.
    async fn verified(
        &mut self,
        stored: Vec<(String, Item, Stored)>,
    ) -> Result<Vec<(String, Stored)>> {
        if stored.is_empty() {
            return Ok(Vec::new());
        }
        let all: Vec<_> = stored.iter().map(|(_, item, _)| item).collect();
        let outcomes = self.ask(&all, true).await?;
        let mut good = Vec::new();
        for ((id, _, result), outcome) in stored.into_iter().zip(outcomes) {
            match outcome.result() {
                ImportResult::Unchanged => good.push((id, result)),
                _ => {
                    let message =
                        "the daemon has another value now: another row, or somebody else, wrote it";
                    self.bad(id, Bad::new("NOT_VERIFIED", message));
                }
            }
        }
        Ok(good)
    }

    async fn ask(&self, items: &[&Item], dry_run: bool) -> Result<Vec<ImportOutcome>> {
        let request = ImportCredentialsRequest {
            tenant: self.how.tenant.clone(),
            items: items.iter().map(|item| item.message()).collect(),
            replace: self.how.replace,
            dry_run,
        };
        let call = async |r| self.session.credentials().import_credentials(r).await;
        let outcomes = self
            .session
            .mutate_one_of_many(request, call)
            .await?
            .outcomes;
        match outcomes.len() == items.len() {
            true => Ok(outcomes),
            false => Err(Failure::other("the daemon did not answer for every row")),
        }
    }
}
