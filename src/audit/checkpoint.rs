//! Checkpoints: where the chain of every stream ended at some moment, signed, in a file outside the database.
//!
//! Whoever owns the database can rewrite a whole stream and its head; only what was written down elsewhere shows it.
//! A checkpoint is a signed note (`audit::note`): a line with the origin, one line per stream (name, seq, hash
//! in hex), one line per version that was declared compromised (`frozen` and its kid), a line with the time. A file holds
//! many, one after the other, and is only ever added to.
//! The scheduler writes them (`jobs::checkpoint_audit`); `checkpoint_file` reads them.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{hex, note};
use crate::{
    model::{KeyRef, Kid, Timestamp},
    store::Head,
};

/// Section `[audit.checkpoint]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Name of a SIGNING key of tenant `system`, ES256 or EdDSA, that signs checkpoints and proofs of destruction and is
    /// used for nothing else.
    pub key: String,
    /// File that the notes are added to: on another disk or machine than the database.
    pub file: PathBuf,
    /// Time between two checkpoints, in seconds. Default 60.
    #[serde(default = "interval")]
    pub interval_seconds: u64,
}

const fn interval() -> u64 {
    60
}

impl CheckpointConfig {
    /// Errors: a sentence that names the setting.
    pub fn check(&self, issuer: &str) -> Result<(), String> {
        if self.key.parse::<KeyRef>().is_err() {
            return Err("audit.checkpoint.key must be the name of a key".into());
        }
        if !self.file.is_absolute() {
            return Err("audit.checkpoint.file must be an absolute path".into());
        }
        if !(1..=86_400).contains(&self.interval_seconds) {
            return Err("audit.checkpoint.interval_seconds must be 1 to 86400".into());
        }
        if issuer.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(
                "audit.checkpoint needs a tokens.issuer without blanks: it is the origin of the notes".into(),
            );
        }
        Ok(())
    }

    /// Time between two checkpoints.
    pub const fn interval(&self) -> Duration {
        Duration::from_secs(self.interval_seconds)
    }
}

/// Where the streams ended at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which installation: the issuer of its tokens.
    pub issuer: String,
    /// The last row of each stream.
    pub heads: Vec<StreamHead>,
    /// Every version that was ever declared compromised, by kid: what must stay frozen in an older copy of the database.
    pub frozen: Vec<Kid>,
    /// When, by database time.
    pub at: Timestamp,
}

/// The last row of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamHead {
    /// Name of the stream.
    pub stream: String,
    /// Its last row.
    pub head: Head,
}

/// Begins a note.
pub(super) const ORIGIN: &str = "claviger audit ";
/// Begins the line of a frozen version. No stream is called so.
const FROZEN: &str = "frozen ";

impl Checkpoint {
    /// The text of the note. None when a name in it would be mistaken for something else.
    pub fn text(&self) -> Option<String> {
        let plain = |text: &str| !text.contains(char::is_control);
        let mut text = format!("{ORIGIN}{}\n", self.issuer);
        for StreamHead { stream, head } in &self.heads {
            if stream.is_empty() || !plain(stream) || stream.starts_with(FROZEN) {
                return None;
            }
            text.push_str(&format!("{stream} {} {}\n", head.seq, hex(&head.hash)));
        }
        for kid in &self.frozen {
            text.push_str(&format!("{FROZEN}{kid}\n"));
        }
        text.push_str(&format!("time {}\n", self.at));
        plain(&self.issuer).then_some(text)
    }

    /// SHA-256 of the text, in hex: which checkpoint is meant. That of the empty text for one that has none.
    pub fn digest(&self) -> String {
        note::text_digest(&self.text().unwrap_or_default())
    }

    /// Reads what `text` wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('\n')?;
        let mut lines: Vec<&str> = text.split('\n').collect();
        let time = lines.pop()?.strip_prefix("time ")?;
        let at: jiff::Timestamp = time.parse().ok()?;
        let (origin, lines) = lines.split_first()?;
        let kinds = lines.iter().partition(|line| line.starts_with(FROZEN));
        let (frozen, heads): (Vec<&str>, Vec<&str>) = kinds;
        let frozen = frozen.iter().map(|line| line[FROZEN.len()..].parse().ok());
        let heads = heads.iter().map(|line| {
            let (rest, hash) = line.rsplit_once(' ')?;
            let (stream, seq) = rest.rsplit_once(' ')?;
            Some(StreamHead {
                stream: stream.to_owned(),
                head: Head {
                    seq: seq.parse().ok()?,
                    hash: unhex(hash)?,
                },
            })
        });
        Some(Self {
            issuer: origin.strip_prefix(ORIGIN)?.to_owned(),
            heads: heads.collect::<Option<_>>()?,
            frozen: frozen.collect::<Option<_>>()?,
            at: Timestamp::from_micros(at.as_microsecond()),
        })
    }
}

/// 32 bytes from 64 lower-case hex digits.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks_exact(2);
    let bytes: Option<Vec<u8>> = pairs
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect();
    bytes.filter(|bytes| bytes.len() == 32 && text.len() == 64)
}
