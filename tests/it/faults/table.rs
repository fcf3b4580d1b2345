//! The table: what was seen, as Markdown. Classes are compared with `docs/faults.md`; times differ from machine to
//! machine, so those on that page are the ones of the run that wrote it.

use std::{fmt::Write, fs, path::Path, time::Duration};

use super::operations::{Operation, Outcome};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/faults.md");
/// Where the page of this run lies, whatever became of it.
const RUN: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/faults.md");
/// What stands below it on the page is not compared.
const TIMES: &str = "\n## Times\n";

const HEAD: &str = "\
# Faults of a PKCS#11 token

Written by the test `every_fault_has_its_class_and_passes`, which puts a daemon on SoftHSM behind the
[fault-injecting module](rehearsals.md), lets each fault happen, calls every operation, ends the fault and waits until
every operation works again. The daemon is never restarted, but for the last row. The test fails when a class changes;
`UPDATE_DOCS=1 cargo test --test it faults::` writes the page anew.

## Classes

What a caller is told while the fault lasts. `UNAVAILABLE` has the reason `BACKEND_UNAVAILABLE` and a retry hint;
`INTERNAL` is only for a data key that its KEK calls tampered, which no retry mends. A call that makes a key may take its
whole time when the device takes it and hangs. What needs no device is Encrypt and Decrypt with a cached data key, Verify,
VerifyToken, the JWKS and `/livez`. DeclareCompromise freezes the version at once; the successor follows when the token
is back.

";

/// One fault.
pub struct Row {
    pub fault: &'static str,
    pub cells: Vec<Cell>,
    /// Does readiness say that the device is away?
    pub is_away: bool,
    /// What ends it, where that is not its own end.
    pub until: &'static str,
    /// What should have been otherwise.
    pub complaints: Vec<String>,
}

/// What one operation met.
pub struct Cell {
    pub operation: Operation,
    pub outcome: Outcome,
    /// Is it a fault in which calls do not come back?
    pub hangs: bool,
    /// How long after the end of the fault it worked; None when it never failed.
    pub again: Option<Duration>,
}

impl Cell {
    pub fn worked(&self) -> bool {
        self.outcome.class == "OK"
    }

    /// The code alone: each has one reason, which the test knows. A device that hangs while it makes a key ends the call's
    /// time, or a breaker that opened meanwhile refuses it first: which of the two is chance.
    fn code(&self) -> &str {
        let code = self.outcome.class.split(' ').next().unwrap_or_default();
        match code {
            "UNAVAILABLE" | "DEADLINE_EXCEEDED" if self.hangs && self.operation.makes_a_key() => {
                "UNAVAILABLE or DEADLINE_EXCEEDED"
            }
            other => other,
        }
    }
}

impl Row {
    /// Everything, for whoever watches the test.
    pub fn lines(&self) -> String {
        let mut lines = format!("{}:", self.fault);
        for cell in &self.cells {
            let (name, class) = (cell.operation.name(), &cell.outcome.class);
            let after = cell.outcome.after.as_millis();
            let _ = write!(lines, "\n    {name:24} {class} after {after} ms");
            if let Some(again) = cell.again {
                let _ = write!(lines, ", again after {} ms", again.as_millis());
            }
        }
        lines
    }

    fn classes(&self) -> String {
        let mut line = format!("| {} |", self.fault);
        // The same operation may have been tried twice.
        let code = |operation: &Operation| {
            let mut codes = self.cells.iter().filter(|c| c.operation == *operation);
            let first = codes.next().map_or("?", Cell::code);
            if codes.all(|cell| cell.code() == first) {
                first
            } else {
                "?"
            }
        };
        for operation in columns() {
            let _ = write!(line, " {} |", code(operation));
        }
        let mut free = Operation::ALL.iter().filter(|o| !in_column(**o));
        let goes_on = free.all(|operation| code(operation) == "OK");
        let ready = if self.is_away { "200, degraded" } else { "200" };
        let _ = writeln!(line, " {} | {ready} |", if goes_on { "OK" } else { "?" });
        line
    }

    fn times(&self) -> String {
        let slowest = self.cells.iter().map(|cell| cell.outcome.after).max();
        let again = self.cells.iter().filter_map(|cell| cell.again).max();
        let shown = |time: Option<Duration>| {
            time.map_or("-".to_owned(), |t| format!("{:.1} s", t.as_secs_f64()))
        };
        let again = if self.until.is_empty() {
            shown(again)
        } else {
            self.until.to_owned()
        };
        format!("| {} | {} | {again} |\n", self.fault, shown(slowest))
    }
}

/// Is it told apart from the others? What needs no device is one column.
fn in_column(operation: Operation) -> bool {
    !operation.needs_no_device() || operation == Operation::DeclareCompromise
}

fn columns() -> impl Iterator<Item = &'static Operation> {
    Operation::ALL.iter().filter(|o| in_column(**o))
}

/// Fails when the classes are not those of the page; writes the page when asked to.
pub fn compare(rows: &[Row]) {
    let page = render(rows);
    fs::write(RUN, &page).expect("the page of this run");
    println!("{page}\nwritten to {RUN}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(PAGE, &page).expect("docs/faults.md can be written");
        return;
    }
    let written = fs::read_to_string(Path::new(PAGE)).unwrap_or_default();
    for (seen, written) in classes(&page).lines().zip(classes(&written).lines()) {
        assert_eq!(seen, written, "docs/faults.md says another class");
    }
    assert_eq!(classes(&page), classes(&written), "docs/faults.md");
}

fn classes(page: &str) -> &str {
    page.split(TIMES).next().unwrap_or_default()
}

fn render(rows: &[Row]) -> String {
    let names: Vec<_> = columns().map(|operation| operation.name()).collect();
    let mut page = format!(
        "{HEAD}| fault | {} | needs no device | /readyz |\n",
        names.join(" | ")
    );
    page += &format!("|{}\n", "---|".repeat(names.len() + 3));
    page.extend(rows.iter().map(Row::classes));
    page += TIMES;
    page += "\nOf the run that wrote this page: the slowest answer of any operation while the fault lasted, and how long \
             after its\nend the last operation worked again.\n\n\
             | fault | slowest answer | works again after |\n|---|---|---|\n";
    page.extend(rows.iter().map(Row::times));
    page
}
