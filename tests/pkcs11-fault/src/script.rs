//! The script: one rule per line, `#` begins a comment.
//!
//! ```text
//! C_Sign return=CKR_DEVICE_ERROR after=3 count=5
//! C_SignInit delay_ms=2000
//! * hang
//! sessions max=16
//! sessions lost
//! sessions poisoned
//! token removed
//! token stuck
//! token reinitialised
//! token logout
//! ```

use std::time::Duration;

use cryptoki_sys::CK_RV;

use crate::codes;

/// What a script says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// What functions meet; the first that fits counts.
    pub rules: Vec<Rule>,
    /// Sessions that may be open at the same time.
    pub max_sessions: Option<u64>,
    /// Does an error leave its session inside an operation for ever?
    pub poisoned: bool,
    /// What has become of the token.
    pub token: Token,
    /// Every session that is open when the script is read ends.
    pub sessions_lost: bool,
    /// The user is logged out when the script is read.
    pub logout: bool,
}

/// What has become of the token, for as long as the script says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Token {
    /// It is where it was.
    #[default]
    There,
    /// It is out of its slot; sessions end.
    Removed,
    /// As `Removed`, and when it is back the library sees it only after C_Finalize and C_Initialize.
    Stuck,
    /// Another one with the same label: another serial number, no objects, no user PIN; sessions end.
    Reinitialised,
}

/// What a function meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Name of the function; `*` is every one.
    pub function: String,
    /// Calls that pass before it begins.
    pub after: u64,
    /// Calls that it holds for.
    pub count: u64,
    /// Time that the call takes longer.
    pub delay: Duration,
    /// The call does not go on until the script has no such rule any more.
    pub hangs: bool,
    /// What is answered instead of asking the real module.
    pub answer: Option<CK_RV>,
}

impl Rule {
    /// Is it about this function?
    pub fn names(&self, function: &str) -> bool {
        self.function == "*" || self.function == function
    }
}

impl Script {
    /// Errors: number of the line and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut script = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let Some(subject) = words.next() else {
                continue;
            };
            script
                .add(subject, &words.collect::<Vec<_>>())
                .map_err(|why| format!("line {}: {why}", number + 1))?;
        }
        Ok(script)
    }

    fn add(&mut self, subject: &str, words: &[&str]) -> Result<(), String> {
        match (subject, words) {
            ("sessions", ["lost"]) => self.sessions_lost = true,
            ("sessions", ["poisoned"]) => self.poisoned = true,
            ("sessions", [word]) => {
                let max = word
                    .strip_prefix("max=")
                    .ok_or("what about the sessions?")?;
                self.max_sessions = Some(number(max)?);
            }
            ("token", ["logout"]) => self.logout = true,
            ("token", ["removed"]) => self.token = Token::Removed,
            ("token", ["stuck"]) => self.token = Token::Stuck,
            ("token", ["reinitialised"]) => self.token = Token::Reinitialised,
            (function, words) if function == "*" || function.starts_with("C_") => {
                self.rules.push(rule(function, words)?);
            }
            _ => return Err(format!("{subject} {}: unknown", words.join(" "))),
        }
        Ok(())
    }
}

fn rule(function: &str, words: &[&str]) -> Result<Rule, String> {
    let mut rule = Rule {
        function: function.to_owned(),
        after: 0,
        count: u64::MAX,
        delay: Duration::ZERO,
        hangs: false,
        answer: None,
    };
    for word in words {
        match word.split_once('=') {
            None if *word == "hang" => rule.hangs = true,
            Some(("after", value)) => rule.after = number(value)?,
            Some(("count", value)) => rule.count = number(value)?,
            Some(("delay_ms", value)) => rule.delay = Duration::from_millis(number(value)?),
            Some(("return", value)) => {
                let code = codes::parse(value).ok_or(format!("{value} is no return code"))?;
                rule.answer = Some(code);
            }
            _ => return Err(format!("{word}: unknown")),
        }
    }
    if rule.answer.is_none() && !rule.hangs && rule.delay.is_zero() {
        return Err("a rule needs return=, delay_ms= or hang".into());
    }
    Ok(rule)
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}

#[cfg(test)]
mod tests {
    use cryptoki_sys::{CKR_DEVICE_ERROR, CKR_VENDOR_DEFINED};

    use super::{Duration, Script, Token};

    #[test]
    fn every_line_of_the_manual_is_understood() {
        let script = Script::parse(
            "# a comment\n\
             C_Sign return=CKR_DEVICE_ERROR after=3 count=5\n\
             C_SignInit delay_ms=2000 # slow\n\n\
             * hang return=0x80000000\n\
             sessions max=16\nsessions lost\nsessions poisoned\n\
             token stuck\ntoken logout\n",
        );
        let script = script.expect("it parses");
        let [error, slow, hang] = &script.rules[..] else {
            panic!("{script:?}");
        };
        assert_eq!(error.answer, Some(CKR_DEVICE_ERROR));
        assert_eq!((error.after, error.count), (3, 5));
        assert_eq!(slow.delay, Duration::from_secs(2));
        assert!(hang.hangs && hang.names("C_Decrypt") && !slow.names("C_Sign"));
        assert_eq!(hang.answer, Some(CKR_VENDOR_DEFINED));
        assert_eq!(script.max_sessions, Some(16));
        assert_eq!(script.token, Token::Stuck);
        assert!(script.sessions_lost && script.poisoned && script.logout);
        assert_eq!(Script::parse(" \n# nothing\n"), Ok(Script::default()));
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for line in [
            "C_Sign",
            "C_Sign return=CKR_NONSENSE",
            "C_Sign delay_ms=soon",
            "C_Sign retrun=CKR_OK",
            "Sign hang",
            "sessions",
            "sessions max",
            "token gone",
        ] {
            let outcome = Script::parse(&format!("\n{line}"));
            let why = outcome.expect_err(line);
            assert!(why.starts_with("line 2: "), "{why}");
        }
    }
}
