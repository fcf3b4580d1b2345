//! What became of an import: counts, and every row that is not in.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;

use super::{Bad, Stored};
use crate::cli::output;

/// Bad rows that people are shown; programs get all.
const SHOWN: usize = 50;

/// The report of one run.
#[derive(Default, Serialize)]
pub struct Report {
    dry_run: bool,
    rows: usize,
    earlier: usize,
    stored: BTreeMap<Stored, usize>,
    bad: Vec<BadRow>,
    warnings: Vec<Warning>,
    ignored: Vec<String>,
}

#[derive(Serialize)]
struct BadRow {
    id: String,
    #[serde(flatten)]
    bad: Bad,
}

#[derive(Serialize)]
struct Warning {
    id: String,
    message: String,
}

impl Report {
    /// Of so many rows.
    pub fn new(rows: usize, dry_run: bool) -> Self {
        Self {
            dry_run,
            rows,
            ..Self::default()
        }
    }

    /// A row that an earlier run has stored.
    pub fn earlier(&mut self, stored: Stored) {
        self.earlier += 1;
        self.stored(stored);
    }

    /// A row that is stored.
    pub fn stored(&mut self, stored: Stored) {
        *self.stored.entry(stored).or_default() += 1;
    }

    /// A row that is not in.
    pub fn bad(&mut self, id: String, bad: Bad) {
        self.bad.push(BadRow { id, bad });
    }

    /// What is unusual about a row that is in.
    pub fn warn(&mut self, id: &str, message: String) {
        let id = id.to_owned();
        self.warnings.push(Warning { id, message });
    }

    /// What was found and is no row, by its name.
    pub fn ignore(&mut self, what: String) {
        self.ignored.push(what);
    }

    /// Rows that are not in.
    pub fn bad_rows(&self) -> usize {
        self.bad.len()
    }

    fn count(&self, stored: Stored) -> usize {
        self.stored.get(&stored).copied().unwrap_or(0)
    }

    /// For programs.
    pub fn json(&self) -> serde_json::Value {
        json!({
            "dryRun": self.dry_run,
            "rows": self.rows,
            "created": self.count(Stored::Created),
            "replaced": self.count(Stored::Replaced),
            "unchanged": self.count(Stored::Unchanged),
            "storedEarlier": self.earlier,
            "bad": self.bad,
            "warnings": self.warnings,
            "ignored": self.ignored,
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let count = |stored| self.count(stored).to_string();
        let some = |count: usize| match count {
            0 => String::new(),
            count => count.to_string(),
        };
        let title = match self.dry_run {
            true => "would be created",
            false => "created",
        };
        let mut text = output::details([
            ("rows", self.rows.to_string()),
            (title, count(Stored::Created)),
            ("replaced", some(self.count(Stored::Replaced))),
            ("unchanged", some(self.count(Stored::Unchanged))),
            ("of these by earlier runs", some(self.earlier)),
            ("bad", self.bad.len().to_string()),
            ("with warnings", some(self.warnings.len())),
            ("ignored", self.ignored.join(", ")),
        ]);
        if !self.bad.is_empty() {
            let shown = self.bad.iter().take(SHOWN);
            let rows = shown.map(|row| {
                let bad = &row.bad;
                [row.id.clone(), bad.reason.clone(), bad.message.clone()]
            });
            let table = output::table(["ROW", "REASON", "WHAT TO LOOK AT"], rows);
            text = format!("{text}\n\n{table}");
        }
        if let more @ 1.. = self.bad.len().saturating_sub(SHOWN) {
            text = format!("{text}\nand {more} more; see them all with --report FILE");
        }
        for warning in self.warnings.iter().take(SHOWN) {
            text = format!("{text}\nwarning: {}: {}", warning.id, warning.message);
        }
        text
    }
}
