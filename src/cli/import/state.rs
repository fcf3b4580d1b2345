//! What an import has done already: ids of rows, in a file of their own, so that it goes on where it was cut off.
//!
//! One JSON line says which import it is, then one for every row that is stored and verified. A line that was cut off
//! counts as not written. Rows that were bad are in no line: they are tried, and reported, again.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Stored;
use crate::cli::exit::{Failure, Result};

#[derive(Serialize, Deserialize)]
struct Header {
    claviger_import: u32,
    source: String,
    options: Options,
}

/// How rows are read and stored, by the names of the options; no secret.
pub type Options = BTreeMap<String, String>;

/// Of the file. The first did not say the options.
const FORMAT: u32 = 2;

#[derive(Serialize, Deserialize)]
struct Line {
    id: String,
    result: Stored,
}

/// The rows that are done.
pub struct State {
    file: Option<(PathBuf, File)>,
    done: HashMap<String, Stored>,
}

impl State {
    /// Without a file: nothing is remembered.
    pub fn none() -> Self {
        Self {
            file: None,
            done: HashMap::new(),
        }
    }

    /// Reads the file, or begins it. Errors: it belongs to another import than `source` with these `options`, or to one that is
    /// running.
    pub fn open(path: &Path, source: &str, options: &Options) -> Result<Self> {
        let failed =
            |e: &dyn std::fmt::Display| Failure::usage(format!("--state {}: {e}", path.display()));
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| failed(&e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(failed(&"another import is using it")),
            Err(TryLockError::Error(e)) => return Err(failed(&e)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| failed(&e))?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n');
        let whole = whole.map_or(0, |end| end + 1);
        bytes.truncate(whole);
        let text = String::from_utf8(bytes).map_err(|e| failed(&e))?;
        let done = read(&text, source, options).map_err(|e| failed(&e))?;
        // Ours, so that what was cut off may go.
        let length = u64::try_from(whole).map_err(|e| failed(&e))?;
        file.set_len(length).map_err(|e| failed(&e))?;
        let mut state = Self {
            file: Some((path.to_owned(), file)),
            done: done.unwrap_or_default(),
        };
        if whole == 0 {
            state.append(&[Header {
                claviger_import: FORMAT,
                source: source.to_owned(),
                options: options.clone(),
            }])?;
        }
        Ok(state)
    }

    /// What became of a row earlier.
    pub fn get(&self, id: &str) -> Option<Stored> {
        self.done.get(id).copied()
    }

    /// Notes rows as done; they are on the disk when this returns.
    pub fn note(&mut self, rows: Vec<(String, Stored)>) -> Result<()> {
        let lines: Vec<_> = rows
            .into_iter()
            .map(|(id, result)| Line { id, result })
            .collect();
        self.append(&lines)?;
        self.done
            .extend(lines.into_iter().map(|line| (line.id, line.result)));
        Ok(())
    }

    fn append(&mut self, lines: &[impl Serialize]) -> Result<()> {
        let Some((path, file)) = &mut self.file else {
            return Ok(());
        };
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line).map_err(Failure::other)?;
            text.push(b'\n');
        }
        let written = file.write_all(&text).and_then(|()| file.sync_data());
        written.map_err(|e| Failure::other(format!("cannot write {}: {e}", path.display())))
    }
}

/// The rows in a state file. None: it is empty. Errors: what is wrong with it.
fn read(
    text: &str,
    source: &str,
    options: &Options,
) -> std::result::Result<Option<HashMap<String, Stored>>, String> {
    let mut lines = text.lines();
    let Some(first) = lines.next() else {
        return Ok(None);
    };
    let header: Header =
        serde_json::from_str(first).map_err(|_| "it is no state file of an import".to_owned())?;
    if header.claviger_import != FORMAT || header.source != source {
        return Err(
            "it belongs to another import, or what is imported has changed since; name another file"
                .to_owned(),
        );
    }
    if let Some(name) = differing(&header.options, options) {
        // Some rows would be in one way and some in the other.
        return Err(format!(
            "it belongs to another import, with {name} {:?} and not {:?}; go on with the same options, or name another file",
            header.options.get(name).map_or("", String::as_str),
            options.get(name).map_or("", String::as_str),
        ));
    }
    let line = |(at, text): (usize, &str)| match serde_json::from_str::<Line>(text) {
        Ok(line) => Ok((line.id, line.result)),
        Err(_) => Err(format!("line {at} cannot be read")),
    };
    let done: std::result::Result<_, String> = (2..).zip(lines).map(line).collect();
    done.map(Some)
}

fn differing<'a>(one: &'a Options, other: &'a Options) -> Option<&'a str> {
    let mut names = one.keys().chain(other.keys());
    let name = names.find(|name| one.get(*name) != other.get(*name))?;
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::dev::files::tests::Scratch;

    fn note(state: &mut State, id: &str) {
        state.note(vec![(id.to_owned(), Stored::Created)]).unwrap();
    }

    #[test]
    fn rows_that_are_noted_are_known_later() {
        let scratch = Scratch::new("import-state");
        let path = scratch.path().join("state");
        let mut state = State::open(&path, "a", &Options::new()).unwrap();
        assert_eq!(state.get("1"), None);
        note(&mut state, "1");
        assert_eq!(state.get("1"), Some(Stored::Created));
        drop(state);
        // Cut off in the middle of a line, and of a character.
        let mut text = std::fs::read(&path).unwrap();
        text.extend(b"{\"id\":\"2\xc3");
        let cut = text.len() - 1;
        std::fs::write(&path, &text[..cut]).unwrap();
        let mut state = State::open(&path, "a", &Options::new()).unwrap();
        assert_eq!(state.get("2"), None);
        note(&mut state, "3");
        drop(state);
        let state = State::open(&path, "a", &Options::new()).unwrap();
        assert_eq!(state.get("1"), Some(Stored::Created));
        assert_eq!(state.get("3"), Some(Stored::Created));
    }

    #[test]
    fn a_state_of_something_else_is_refused() {
        let scratch = Scratch::new("import-other");
        let path = scratch.path().join("state");
        let open = |source| {
            State::open(&path, source, &Options::new())
                .err()
                .map(|e| e.to_string())
        };
        let held = State::open(&path, "a", &Options::new()).unwrap();
        assert!(open("a").unwrap().contains("another import is using it"));
        drop(held);
        assert!(open("b").unwrap().contains("another import"));
        assert_eq!(open("a"), None);
        let options = |replace: &str| Options::from([("--replace".into(), replace.into())]);
        let scratch = Scratch::new("import-options");
        let other = scratch.path().join("state");
        drop(State::open(&other, "a", &options("no")).unwrap());
        let refused = State::open(&other, "a", &options("yes")).err().unwrap();
        assert!(refused.to_string().contains("--replace"), "{refused}");
        assert!(State::open(&other, "a", &options("no")).is_ok());
        std::fs::write(&path, "something else\n").unwrap();
        assert!(open("a").unwrap().contains("no state file"));
        let header = "{\"claviger_import\":2,\"source\":\"a\",\"options\":{}}\n";
        std::fs::write(&path, format!("{header}nonsense\n")).unwrap();
        assert!(open("a").unwrap().contains("line 2"));
        std::fs::write(&path, "{\"claviger_import\":1,\"source\":\"a\"}\n").unwrap();
        assert!(open("a").unwrap().contains("no state file"));
    }
}
