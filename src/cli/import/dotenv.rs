//! `.env` files: `NAME=value`, one a line, as the common tools read them, without their surprises.
//!
//! What two tools would read differently is refused rather than guessed: a key that is wrong by one character is found
//! out late. So there are no `${…}`, no values over several lines, and no name twice.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use crate::model::{Secret, secret::SecretString};

/// A line that cannot be read, by its number; nothing of it is repeated.
#[derive(Debug, PartialEq, Eq)]
pub struct BadLine {
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: &'static str,
}

/// The variables of a text, and the lines that are none.
pub fn read(text: &str) -> (BTreeMap<String, SecretString>, Vec<BadLine>) {
    let (mut variables, mut bad) = (BTreeMap::new(), Vec::new());
    for (number, line) in (1..).zip(text.lines()) {
        match variable(line) {
            Ok(None) => {}
            Ok(Some((name, _))) if variables.contains_key(&name) => bad.push(BadLine {
                line: number,
                why: "the name is there already",
            }),
            Ok(Some((name, value))) => {
                variables.insert(name, value);
            }
            Err(why) => bad.push(BadLine { line: number, why }),
        }
    }
    (variables, bad)
}

fn variable(line: &str) -> Result<Option<(String, SecretString)>, &'static str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
    let (name, value) = line.split_once('=').ok_or("expected NAME=value")?;
    let name = name.trim_end();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(plain) {
        return Err("the name is not of A-Z, a-z, 0-9 and _");
    }
    let value = value.trim_start();
    let value = match value.chars().next() {
        Some('\'') => single(&value[1..])?,
        Some('"') => double(&value[1..])?,
        _ => bare(value)?,
    };
    Ok(Some((name.to_owned(), Secret::new(value))))
}

fn bare(value: &str) -> Result<String, &'static str> {
    // A hash begins a comment behind a blank only: keys may hold one.
    let end = value.find(" #").or_else(|| value.find("\t#"));
    let value = match value.starts_with('#') {
        true => "",
        false => value[..end.unwrap_or(value.len())].trim_end(),
    };
    no_substitution(value)?;
    match value.contains(['\'', '"', '\\']) {
        true => Err("quotes and backslashes need quotes around the value"),
        false => Ok(value.to_owned()),
    }
}

fn single(value: &str) -> Result<String, &'static str> {
    let (value, rest) = value.split_once('\'').ok_or("the quote is not closed")?;
    nothing_behind(rest)?;
    Ok(value.to_owned())
}

fn double(value: &str) -> Result<String, &'static str> {
    let mut text = Zeroizing::new(String::with_capacity(value.len()));
    let mut chars = value.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => {
                nothing_behind(&value[at + 1..])?;
                no_substitution(&text)?;
                return Ok(std::mem::take(&mut text));
            }
            '\\' => text.push(match chars.next() {
                Some((_, escaped @ ('"' | '\\' | '$'))) => escaped,
                Some((_, 'n')) => '\n',
                Some(_) | None => return Err("no such escape; there are \\\" \\\\ \\$ and \\n"),
            }),
            c => text.push(c),
        }
    }
    Err("the quote is not closed")
}

fn nothing_behind(rest: &str) -> Result<(), &'static str> {
    let rest = rest.trim_start();
    match rest.is_empty() || rest.starts_with('#') {
        true => Ok(()),
        false => Err("there is something behind the closing quote"),
    }
}

fn no_substitution(value: &str) -> Result<(), &'static str> {
    match value.contains("${") || value.contains("$(") {
        true => Err("${…} is not replaced here; write the value itself"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_are_meant() {
        let text = "# comment\n\nOPENAI_API_KEY=sk-1\nexport B = two \nC='a b#$\"\\' # x\nD=\"q\\\"\\\\\\$\"\n\
                    E=\nF=a#b # c\nG=#\nH=a=b=\n";
        let (variables, bad) = read(text);
        assert_eq!(bad, []);
        let expected = [
            ("OPENAI_API_KEY", "sk-1"),
            ("B", "two"),
            ("C", "a b#$\"\\"),
            ("D", "q\"\\$"),
            ("E", ""),
            ("F", "a#b"),
            ("G", ""),
            ("H", "a=b="),
        ];
        assert_eq!(variables.len(), expected.len());
        for (name, value) in expected {
            assert_eq!(variables[name].expose_secret(), value, "{name}");
        }
    }

    #[test]
    fn what_could_be_meant_otherwise_is_refused() {
        for line in [
            "NO_EQUALS",
            "=value",
            "A B=c",
            "A=${B}",
            "A=\"${B}\"",
            "A=$(cat key)",
            "A='open",
            "A=\"open",
            "A=\"a\" b",
            "A='a'b",
            "A=\"\\x\"",
            "A=a\"b",
            "A=a\\nb",
        ] {
            let (variables, bad) = read(&format!("OK=1\n{line}\n"));
            assert_eq!(variables.len(), 1, "{line}");
            assert_eq!(bad.len(), 1, "{line}");
            assert_eq!(bad[0].line, 2, "{line}");
        }
        let (variables, bad) = read("A=1\nA=2\n");
        assert_eq!(variables["A"].expose_secret(), "1");
        assert_eq!(bad.len(), 1);
    }
}
