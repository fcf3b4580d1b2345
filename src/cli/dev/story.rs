//! How `claviger dev` tells what happens: numbered steps, who does what, what came of it.
//!
//! A reader who went away does not stop the story; its exit code still counts.

use std::io::Write;

use crate::cli::exit::{Exit, Failure};

/// The teller.
pub struct Story {
    number: u32,
    title: String,
}

impl Story {
    /// A story at its beginning.
    pub fn new() -> Self {
        Self {
            number: 0,
            title: String::new(),
        }
    }

    /// Something is ready before the first step.
    pub fn preparation(&self, text: &str) {
        self.line(&format!("   {text}"));
    }

    /// Begins the next step.
    pub fn step(&mut self, title: &str) {
        self.number += 1;
        title.clone_into(&mut self.title);
        self.line(&format!("\n{}. {title}", self.number));
    }

    /// `who` did something, or something is so.
    pub fn fact(&self, who: &str, text: &str) {
        self.line(&format!("   {who:<9} {text}"));
    }

    /// `who` was refused, as it should be.
    pub fn refused(&self, who: &str, what: &str, refusal: &str) {
        self.fact(who, &format!("{what}: refused, {refusal}"));
    }

    /// A line of text.
    pub fn line(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    /// How many steps there have been.
    pub fn steps(&self) -> u32 {
        self.number
    }

    /// The failure of the current step.
    pub fn failed(&self, failure: &Failure) -> Failure {
        let text = match self.number {
            0 => failure.to_string(),
            number => format!("step {number} ({}): {failure}", self.title),
        };
        Failure::new(Exit::Other, text)
    }
}

/// Says something on stderr.
pub fn complain(text: &str) {
    let _ = write!(std::io::stderr(), "{text}");
}
