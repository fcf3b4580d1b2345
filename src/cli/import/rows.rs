//! Rows of a CSV file, of JSON lines or of a table, whose secrets are Fernet tokens.
//!
//! Everything is read as ciphertext first; a row is decrypted when its turn comes, and its plaintext lives no longer than
//! its batch.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;
use zeroize::Zeroizing;

use super::{Bad, Item, Owner, Row, csv, fernet::Keys, item::environment};
use crate::{
    cli::{
        exit::{Failure, Result},
        input,
    },
    model::{Secret, secret::SecretString},
};

/// Bytes of a file at most; it is read as a whole.
const MAX_FILE: u64 = 1 << 30;

/// A row as it was found: texts by column. What is not there is not there.
pub struct Record {
    /// Where it was found, for rows without an id: `line 7`.
    pub place: String,
    /// Its columns, or that it has none that can be read.
    pub columns: std::result::Result<BTreeMap<String, String>, Bad>,
}

/// What a row says about a credential besides its secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// What names the row.
    Id,
    /// The owner by id.
    OwnerId,
    /// The owner by name.
    OwnerName,
    /// The provider.
    Provider,
    /// The environment.
    Environment,
    /// The credential's name.
    Name,
    /// The organisation.
    Organisation,
}

impl Target {
    const ALL: [(&str, Self); 7] = [
        ("id", Self::Id),
        ("owner_id", Self::OwnerId),
        ("owner_name", Self::OwnerName),
        ("provider", Self::Provider),
        ("environment", Self::Environment),
        ("name", Self::Name),
        ("organisation", Self::Organisation),
    ];

    fn as_str(self) -> &'static str {
        let mut all = Self::ALL.iter();
        all.find(|(_, target)| *target == self)
            .map_or("", |(name, _)| name)
    }
}

/// `TARGET=TEXT` of an option.
pub fn target(argument: &str) -> std::result::Result<(Target, String), String> {
    let names = || Target::ALL.map(|(name, _)| name).join(", ");
    let (name, text) = argument
        .split_once('=')
        .ok_or_else(|| format!("expected TARGET=…, where TARGET is one of {}", names()))?;
    let found = Target::ALL.iter().find(|(known, _)| *known == name);
    let (_, target) = found.ok_or_else(|| format!("TARGET is one of {}", names()))?;
    Ok((*target, text.to_owned()))
}

/// Which column is what.
#[derive(Default)]
pub struct Mapping {
    /// Columns with other names than their targets.
    pub columns: BTreeMap<Target, String>,
    /// What is the same for every row.
    pub constants: BTreeMap<Target, String>,
    /// Fields of the secret, and the columns with their tokens.
    pub tokens: Vec<(String, String)>,
    /// A column whose token holds a JSON object of fields.
    pub json: Option<String>,
}

impl Mapping {
    fn get<'a>(&'a self, row: &'a BTreeMap<String, String>, target: Target) -> Option<&'a str> {
        if let Some(constant) = self.constants.get(&target) {
            return Some(constant);
        }
        let column = self.columns.get(&target).map(String::as_str);
        let text = row.get(column.unwrap_or(target.as_str()))?.trim();
        (!text.is_empty()).then_some(text)
    }

    /// Does the record say what names it?
    pub fn names(&self, record: &Record) -> bool {
        let columns = record.columns.as_ref().ok();
        columns.is_some_and(|columns| self.get(columns, Target::Id).is_some())
    }

    /// As the options of the command, for the state file.
    pub fn options(&self) -> Vec<(String, String)> {
        let of = |targets: &BTreeMap<Target, String>| {
            let pairs = targets
                .iter()
                .map(|(t, text)| format!("{}={text}", t.as_str()));
            pairs.collect::<Vec<_>>().join(" ")
        };
        let tokens = self
            .tokens
            .iter()
            .map(|(field, column)| format!("{field}={column}"));
        [
            ("--column", of(&self.columns)),
            ("--set", of(&self.constants)),
            ("--token", tokens.collect::<Vec<_>>().join(" ")),
            ("--token-json", self.json.clone().unwrap_or_default()),
        ]
        .map(|(name, text)| (name.to_owned(), text))
        .into()
    }

    /// The credential in a record, decrypted.
    pub fn row(&self, record: Record, keys: &Keys) -> Row {
        let columns = match record.columns {
            Ok(columns) => columns,
            Err(bad) => {
                return Row {
                    id: record.place,
                    item: Err(bad),
                };
            }
        };
        let id = self.get(&columns, Target::Id);
        Row {
            id: id.map_or(record.place, str::to_owned),
            item: self.item(&columns, keys),
        }
    }

    fn item(&self, row: &BTreeMap<String, String>, keys: &Keys) -> std::result::Result<Item, Bad> {
        let missing = |what: &str| Bad::new("MISSING", format!("the row has no {what}"));
        let owner = match (
            self.get(row, Target::OwnerId),
            self.get(row, Target::OwnerName),
        ) {
            (Some(id), _) => Owner::Id(id.to_owned()),
            (None, Some(name)) => Owner::Name(name.to_owned()),
            (None, None) => return Err(missing("owner_id or owner_name")),
        };
        let environment_text = self.get(row, Target::Environment);
        let environment_text = environment_text.ok_or_else(|| missing("environment"))?;
        let optional = |target| self.get(row, target).unwrap_or_default().to_owned();
        Ok(Item {
            owner,
            provider: self
                .get(row, Target::Provider)
                .ok_or_else(|| missing("provider"))?
                .to_owned(),
            environment: environment(environment_text)
                .map_err(|why| Bad::new("ENVIRONMENT", format!("environment: {why}")))?,
            name: optional(Target::Name),
            organisation: optional(Target::Organisation),
            fields: self.fields(row, keys)?,
        })
    }

    fn fields(
        &self,
        row: &BTreeMap<String, String>,
        keys: &Keys,
    ) -> std::result::Result<Vec<(String, SecretString)>, Bad> {
        let mut fields = Vec::new();
        for (field, column) in &self.tokens {
            if let Some(token) = row.get(column).filter(|token| !token.trim().is_empty()) {
                fields.push((field.clone(), text(open(token, column, keys)?, column)?));
            }
        }
        if let Some(column) = &self.json
            && let Some(token) = row.get(column)
        {
            fields.extend(object(&open(token, column, keys)?, column)?);
        }
        match fields.is_empty() {
            true => Err(Bad::new("MISSING", "the row has no token")),
            false => Ok(fields),
        }
    }
}

fn open(token: &str, column: &str, keys: &Keys) -> std::result::Result<Secret<Vec<u8>>, Bad> {
    // PostgreSQL writes bytea so.
    let token = match token.strip_prefix("\\x").map(input::unhex_text) {
        Some(bytes) => bytes.and_then(|bytes| String::from_utf8(bytes).ok()),
        None => Some(token.to_owned()),
    };
    let opened = token.and_then(|token| keys.open(&token));
    opened.ok_or_else(|| {
        let message = format!("{column}: no token of the given keys, or it was changed");
        Bad::new("TOKEN_INVALID", message)
    })
}

fn text(plaintext: Secret<Vec<u8>>, column: &str) -> std::result::Result<SecretString, Bad> {
    let text = std::str::from_utf8(plaintext.expose_secret());
    let text = text.map_err(|_| Bad::new("NOT_TEXT", format!("{column}: no text is in it")))?;
    Ok(Secret::new(text.to_owned()))
}

fn object(
    plaintext: &Secret<Vec<u8>>,
    column: &str,
) -> std::result::Result<Vec<(String, SecretString)>, Bad> {
    let fields: serde_json::Result<BTreeMap<String, SecretString>> =
        serde_json::from_slice(plaintext.expose_secret());
    // The parser's error could quote what it met.
    let fields = fields.map_err(|_| {
        let message = format!("{column}: no JSON object of texts is in it");
        Bad::new("NOT_JSON", message)
    })?;
    Ok(fields.into_iter().collect())
}

/// The records of a CSV file (`.csv`) or of JSON lines, and the file's digest.
pub fn file(path: &Path) -> Result<(Vec<Record>, String)> {
    let (name, source) = input::open(Some(path))?;
    let bytes = Zeroizing::new(input::read_at_most(&name, source, MAX_FILE)?);
    if u64::try_from(bytes.len()) == Ok(MAX_FILE) {
        return Err(Failure::usage(format!(
            "{name} is larger than 1 GiB; split it"
        )));
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    let text = std::str::from_utf8(&bytes);
    let text = text.map_err(|_| Failure::usage(format!("{name}: not UTF-8")))?;
    let is_csv = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    let records = match is_csv {
        true => csv_records(text).map_err(|why| Failure::usage(format!("{name}: {why}")))?,
        false => json_records(text),
    };
    Ok((records, input::hex(digest.as_ref())))
}

fn csv_records(text: &str) -> std::result::Result<Vec<Record>, String> {
    let records = csv::records(text);
    let records = records
        .map_err(|line| format!("line {line}: a quote is not closed, or stands where none may"))?;
    let mut records = records.into_iter();
    let header = records.next().ok_or("there is no header")?.fields;
    let record = |record: csv::Record| Record {
        place: format!("line {}", record.line),
        columns: match record.fields.len() == header.len() {
            true => Ok(header.iter().cloned().zip(record.fields).collect()),
            false => Err(Bad::new(
                "MALFORMED",
                "the row has more or fewer fields than the header",
            )),
        },
    };
    Ok(records.map(record).collect())
}

fn json_records(text: &str) -> Vec<Record> {
    let lines = (1..).zip(text.lines());
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(number, line)| Record {
            place: format!("line {number}"),
            columns: json_columns(line),
        })
        .collect()
}

fn json_columns(line: &str) -> std::result::Result<BTreeMap<String, String>, Bad> {
    let malformed = || {
        Bad::new(
            "MALFORMED",
            "the line is no JSON object of texts and numbers",
        )
    };
    let columns: BTreeMap<String, Value> = serde_json::from_str(line).map_err(|_| malformed())?;
    let mut texts = BTreeMap::new();
    for (name, value) in columns {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            Value::Array(_) | Value::Object(_) => return Err(malformed()),
        };
        texts.insert(name, text);
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";
    const TOKEN: &str = "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==";

    fn mapping() -> Mapping {
        Mapping {
            columns: [(Target::OwnerName, "user".to_owned())].into(),
            constants: [(Target::Environment, "prod".to_owned())].into(),
            tokens: vec![("api_key".to_owned(), "secret".to_owned())],
            json: None,
        }
    }

    fn rows(records: Vec<Record>) -> Vec<Row> {
        let keys = Keys::parse(SECRET).unwrap();
        let rows = records.into_iter().map(|r| mapping().row(r, &keys));
        rows.collect()
    }

    fn check(rows: &[Row]) {
        let good = rows[0]
            .item
            .as_ref()
            .unwrap_or_else(|bad| panic!("{bad:?}"));
        assert_eq!(rows[0].id, "7");
        assert!(matches!(&good.owner, Owner::Name(name) if name == "ann"));
        assert_eq!(good.provider, "alpaca");
        let (name, value) = &good.fields[0];
        assert_eq!(
            (name.as_str(), value.expose_secret().as_str()),
            ("api_key", "hello")
        );
        let reasons: Vec<_> = rows[1..]
            .iter()
            .map(|row| row.item.as_ref().err().map(|bad| bad.reason.as_str()))
            .collect();
        let expected = ["TOKEN_INVALID", "MISSING", "MISSING", "MALFORMED"].map(Some);
        assert_eq!(reasons, expected);
        assert_eq!(rows[4].id, "line 6");
    }

    #[test]
    fn rows_of_a_csv_file() {
        let text = format!(
            "id,user,provider,secret\n7,ann,alpaca,{TOKEN}\n8,ann,alpaca,x{TOKEN}\n9,,alpaca,{TOKEN}\n\
             10,ann,alpaca,\n11,ann\n"
        );
        check(&rows(csv_records(&text).unwrap()));
    }

    #[test]
    fn rows_of_json_lines() {
        let text = format!(
            "{{\"id\":7,\"user\":\"ann\",\"provider\":\"alpaca\",\"secret\":\"{TOKEN}\"}}\n\n\
             {{\"id\":8,\"user\":\"ann\",\"provider\":\"alpaca\",\"secret\":\"x\"}}\n\
             {{\"id\":9,\"user\":null,\"provider\":\"alpaca\",\"secret\":\"{TOKEN}\"}}\n\
             {{\"id\":10,\"user\":\"ann\",\"provider\":\"alpaca\"}}\n[]\n"
        );
        let mut rows = rows(json_records(&text));
        assert_eq!(rows[4].id, "line 6");
        check(&rows);
        // As PostgreSQL writes bytes.
        let hex = input::hex(TOKEN.as_bytes());
        let text = format!(
            "{{\"id\":7,\"user\":\"ann\",\"provider\":\"alpaca\",\"secret\":\"\\\\x{hex}\"}}"
        );
        rows = self::rows(json_records(&text));
        assert!(rows[0].item.is_ok());
    }

    #[test]
    fn targets_are_checked() {
        assert_eq!(
            target("owner_id=a=b"),
            Ok((Target::OwnerId, "a=b".to_owned()))
        );
        assert!(target("owner=a").is_err());
        assert!(target("owner_id").is_err());
    }
}
