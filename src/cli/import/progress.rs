//! How far an import is, on stderr: a bar on a terminal, a line for every tenth of the way elsewhere.

use std::io::{self, IsTerminal, Write};

const WIDTH: usize = 30;

/// A bar.
pub struct Progress {
    total: usize,
    done: usize,
    bad: usize,
    tenths: usize,
    terminal: bool,
}

impl Progress {
    /// Of that many rows.
    pub fn new(total: usize) -> Self {
        Self {
            total,
            done: 0,
            bad: 0,
            tenths: 0,
            terminal: io::stderr().is_terminal(),
        }
    }

    /// So many more rows are done, and so many more are bad.
    pub fn add(&mut self, done: usize, bad: usize) {
        self.done += done + bad;
        self.bad += bad;
        let tenths = 10 * self.done / self.total.max(1);
        if self.terminal {
            tell(&format!("\r{}", self.line()));
        } else if tenths > self.tenths {
            tell(&format!("claviger: {}\n", self.line()));
        }
        self.tenths = tenths;
    }

    /// Leaves the line.
    pub fn end(&self) {
        if self.terminal && self.done > 0 {
            tell("\n");
        }
    }

    fn line(&self) -> String {
        let filled = (WIDTH * self.done / self.total.max(1)).min(WIDTH);
        let bar = format!("{}{}", "#".repeat(filled), "-".repeat(WIDTH - filled));
        format!(
            "[{bar}] {} of {} rows, {} bad",
            self.done, self.total, self.bad
        )
    }
}

/// Nobody is left to tell when stderr is closed.
fn tell(text: &str) {
    let mut out = io::stderr();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fills() {
        let mut progress = Progress::new(200);
        progress.terminal = false;
        progress.add(99, 1);
        let half = format!(
            "[{}{}] 100 of 200 rows, 1 bad",
            "#".repeat(15),
            "-".repeat(15)
        );
        assert_eq!(progress.line(), half);
        progress.add(100, 0);
        assert!(progress.line().contains(&"#".repeat(WIDTH)));
        assert!(Progress::new(0).line().contains("0 of 0"));
    }
}
