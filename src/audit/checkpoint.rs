//! Checkpoints: where the chain of every stream ended at some moment, signed, in a file outside the database.
//!
//! Whoever owns the database can rewrite a whole stream and its head; only what was written down elsewhere shows it.
//! A checkpoint is a signed note (`audit::note`): a line with the origin, one line per stream (name, seq, hash
//! in hex), a line with the time. A file holds many, one after the other, and is only ever added to.
//! The scheduler writes them (`jobs::checkpoint_audit`); `claviger audit verify --checkpoints` reads them.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{
    hex,
    note::{self, Piece, Verdict},
};
use crate::{
    model::{KeyRef, PublicKey, Timestamp},
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

/// What a checkpoint file says.
#[derive(Clone, Debug, Default)]
pub struct CheckpointFile {
    /// Checkpoints with a good signature, in the order of the file.
    pub checkpoints: Vec<Checkpoint>,
    /// Signatures that do not verify, notes that contradict one another.
    pub problems: Vec<String>,
    /// Pieces that none of the keys signed, such as the rest of a write that a crash cut off.
    pub unsigned: usize,
}

const ORIGIN: &str = "claviger audit ";

impl Checkpoint {
    /// The text of the note. None when a name in it would be mistaken for something else.
    pub fn text(&self) -> Option<String> {
        let plain = |text: &str| !text.contains(char::is_control);
        let mut text = format!("{ORIGIN}{}\n", self.issuer);
        for StreamHead { stream, head } in &self.heads {
            if stream.is_empty() || !plain(stream) {
                return None;
            }
            text.push_str(&format!("{stream} {} {}\n", head.seq, hex(&head.hash)));
        }
        text.push_str(&format!("time {}\n", self.at));
        plain(&self.issuer).then_some(text)
    }

    /// Reads what `text` wrote.
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('\n')?;
        let mut lines: Vec<&str> = text.split('\n').collect();
        let time = lines.pop()?.strip_prefix("time ")?;
        let at: jiff::Timestamp = time.parse().ok()?;
        let (origin, lines) = lines.split_first()?;
        let heads = lines.iter().map(|line| {
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
            at: Timestamp::from_micros(at.as_microsecond()),
        })
    }
}

/// Adds a note to the file and returns when it is durable. Blocks. What a crash left of an earlier note stays there.
pub fn append(file: &Path, note: &str) -> io::Result<()> {
    let mut open = OpenOptions::new().append(true).create(true).open(file)?;
    // Ends a line that was cut off, and parts the notes.
    let gap = if open.metadata()?.len() > 0 {
        "\n\n"
    } else {
        ""
    };
    open.write_all(format!("{gap}{note}").as_bytes())?;
    open.sync_all()?;
    if gap.is_empty()
        && let Some(directory) = file.parent()
    {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Reads a checkpoint file and believes what one of `keys` signed.
pub fn read(file: &str, keys: &[PublicKey]) -> CheckpointFile {
    let mut found = CheckpointFile::default();
    for piece in note::pieces(file) {
        match judge(&piece, keys) {
            Judged::Good(checkpoint) => found.checkpoints.push(checkpoint),
            Judged::Unsigned => found.unsigned += 1,
            Judged::Bad(why) => found
                .problems
                .push(format!("the note in line {} {why}", piece.line)),
        }
    }
    found.problems.extend(contradictions(&found.checkpoints));
    found
}

enum Judged {
    Good(Checkpoint),
    Unsigned,
    Bad(&'static str),
}

fn judge(piece: &Piece<'_>, keys: &[PublicKey]) -> Judged {
    let Some(checkpoint) = Checkpoint::parse(&piece.text) else {
        return Judged::Unsigned;
    };
    match piece.judge(&checkpoint.issuer, keys) {
        Verdict::Good => Judged::Good(checkpoint),
        Verdict::Unsigned => Judged::Unsigned,
        Verdict::Bad => Judged::Bad("has a signature that does not verify"),
    }
}

/// Streams only grow, and a row has one hash for ever. A file that says otherwise holds notes of two histories.
fn contradictions(checkpoints: &[Checkpoint]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut last: std::collections::BTreeMap<&str, &Head> = std::collections::BTreeMap::new();
    for checkpoint in checkpoints {
        for StreamHead { stream, head } in &checkpoint.heads {
            if let Some(before) = last.insert(stream, head)
                && (head.seq < before.seq || (head.seq == before.seq && head.hash != before.hash))
            {
                problems.push(format!(
                    "the checkpoint of {} ends stream {stream} at {}, an earlier one at {}: one of them is of another history",
                    checkpoint.at, head.seq, before.seq
                ));
            }
        }
    }
    problems
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

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
    use base64::{Engine, prelude::BASE64_STANDARD};

    use super::{
        super::note::{ED25519, key_id, signed},
        *,
    };

    fn checkpoint(seq: i64, fill: u8) -> Checkpoint {
        let head = |stream: &str, seq| StreamHead {
            stream: stream.into(),
            head: Head {
                seq,
                hash: vec![fill; 32],
            },
        };
        Checkpoint {
            issuer: "https://issuer.test".into(),
            heads: vec![head("access/one two", 7), head("admin", seq)],
            at: Timestamp::from_micros(1_800_000_000_123_456 + seq),
        }
    }

    fn pair() -> (Ed25519KeyPair, PublicKey) {
        let pair = Ed25519KeyPair::generate().expect("a pair");
        let public = pair.public_key().as_ref().try_into().expect("32 bytes");
        (pair, PublicKey::Ed25519(public))
    }

    fn note(pair: &(Ed25519KeyPair, PublicKey), checkpoint: &Checkpoint) -> String {
        let text = checkpoint.text().expect("a text");
        let signature = pair.0.sign(text.as_bytes());
        signed(&checkpoint.issuer, &text, &pair.1, signature.as_ref())
    }

    #[test]
    fn the_example_of_the_format_has_this_key_id() {
        // golang.org/x/mod/sumdb/note: PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW
        let vkey = BASE64_STANDARD.decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW");
        let vkey = vkey.expect("base64");
        let key = PublicKey::Ed25519(vkey[1..].try_into().expect("32 bytes"));
        assert_eq!(vkey[0], ED25519);
        assert_eq!(key_id("PeterNeumann", &key), [0xc7, 0x4f, 0x20, 0xa3]);
    }

    #[test]
    fn what_was_written_is_read() {
        let pair = pair();
        let all = [checkpoint(1, 1), checkpoint(2, 1), checkpoint(9, 1)];
        let file: Vec<String> = all.iter().map(|c| note(&pair, c)).collect();
        let found = read(&file.join("\n\n"), std::slice::from_ref(&pair.1));
        assert_eq!(found.checkpoints, all);
        assert_eq!((found.problems.len(), found.unsigned), (0, 0));
    }

    #[test]
    fn nothing_is_believed_that_is_not_signed() {
        let (ours, theirs) = (pair(), pair());
        let good = note(&ours, &checkpoint(1, 1));
        let keys = std::slice::from_ref(&ours.1);
        let changed = good.replace("admin 1 ", "admin 2 ");
        let found = read(&changed, keys);
        assert_eq!((found.checkpoints.len(), found.problems.len()), (0, 1));
        let foreign = read(&note(&theirs, &checkpoint(1, 1)), keys);
        assert_eq!((foreign.checkpoints.len(), foreign.unsigned), (0, 1));
        // Every cut that a crash can make: the next note is read all the same.
        for end in (1..good.len()).filter(|end| good.is_char_boundary(*end)) {
            let file = format!("{}\n\n{good}", &good[..end]);
            let found = read(&file, keys);
            let whole = found.checkpoints.len();
            assert!(
                whole == 1 || (whole == 2 && end + 1 == good.len()),
                "{end}: {found:?}"
            );
        }
    }

    #[test]
    fn two_histories_are_seen() {
        let pair = pair();
        let keys = std::slice::from_ref(&pair.1);
        for (first, second) in [((5, 1), (4, 1)), ((5, 1), (5, 2))] {
            let notes = [first, second].map(|(seq, fill)| note(&pair, &checkpoint(seq, fill)));
            let found = read(&notes.join("\n\n"), keys);
            assert!(!found.problems.is_empty(), "{first:?} {second:?}");
        }
    }

    #[test]
    fn names_cannot_break_lines() {
        let mut forged = checkpoint(1, 1);
        forged.heads[0].stream = "access/x\nadmin".into();
        assert_eq!(forged.text(), None);
    }
}
