//! A file of checkpoints: adding one, and reading what the keys of the installation signed.
//!
//! `claviger audit verify --checkpoints` reads all of it; a daemon that starts reads the last one, because a database that
//! does not fit it was set back (`restore`); pruning reads the one that the rest of the log is to begin behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use super::{
    checkpoint::{Checkpoint, StreamHead},
    note::{self, Piece, Verdict},
};
use crate::{
    model::{Kid, PublicKey, Timestamp},
    store::Head,
};

/// What a checkpoint file says.
#[derive(Clone, Debug, Default)]
pub struct CheckpointFile {
    /// Checkpoints with a good signature, in the order of the file.
    pub checkpoints: Vec<Checkpoint>,
    /// Signatures that do not verify.
    pub problems: Vec<String>,
    /// Pieces that none of the keys signed, such as the rest of a write that a crash cut off.
    pub unsigned: usize,
}

/// What is read of the end of a file: a few hundred notes of a large installation.
const TAIL: u64 = 4 << 20;

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
    found
}

/// The last checkpoint of the installation `issuer` in a file, by its time, if the file and one in it are there; and whether one
/// of `keys` signed it. Blocks.
///
/// One with a signature that does not verify is passed over. One whose key is not among `keys` counts: an older copy of the
/// database does not know a key that was made since.
pub fn last(
    file: &Path,
    issuer: &str,
    keys: &[PublicKey],
) -> io::Result<Option<(Checkpoint, bool)>> {
    let mut open = match File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        open => open?,
    };
    let length = open.metadata()?.len();
    let tail = part(&mut open, length.saturating_sub(TAIL), TAIL)?;
    let pieces = note::pieces(&tail);
    let ours = pieces.iter().filter_map(|piece| {
        let checkpoint = Checkpoint::parse(&piece.text).filter(|c| c.issuer == issuer)?;
        let verdict = piece.judge(issuer, keys);
        let counts = piece.is_signed() && verdict != Verdict::Bad;
        counts.then_some((checkpoint, verdict == Verdict::Good))
    });
    Ok(ours.max_by_key(|(checkpoint, _)| checkpoint.at))
}

/// Some of a file, as text. What is not UTF-8 is no note, and neither is the piece that the beginning cuts.
fn part(file: &mut File, from: u64, length: u64) -> io::Result<String> {
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The newest checkpoint of the installation `issuer` that one of `keys` signed, that is of `until` or before, and that
/// `counts`, if there is one near enough to the place where the file passes `until`. Blocks.
///
/// Notes are in the order of their times, but for those around a restore, so the place is found by halving: a file of years is
/// not read.
pub fn newest_until(
    file: &Path,
    issuer: &str,
    keys: &[PublicKey],
    until: Timestamp,
    counts: impl Fn(&Checkpoint) -> bool,
) -> io::Result<Option<Checkpoint>> {
    let mut open = match File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        open => open?,
    };
    let (mut low, mut high) = (0, open.metadata()?.len());
    while high - low > TAIL {
        let middle = low + (high - low) / 2;
        let text = part(&mut open, middle, TAIL)?;
        let first = note::pieces(&text)
            .iter()
            .find_map(|piece| Checkpoint::parse(&piece.text));
        match first.is_some_and(|checkpoint| checkpoint.at <= until) {
            true => low = middle,
            false => high = middle,
        }
    }
    // Some more on either side: the piece that halving has cut, and older ones where the newest does not count.
    let from = low.saturating_sub(TAIL);
    let text = part(&mut open, from, high - from + TAIL)?;
    let found = read(&text, keys).checkpoints.into_iter();
    let fitting = found.filter(|c| c.issuer == issuer && c.at <= until && counts(c));
    Ok(fitting.max_by_key(|checkpoint| checkpoint.at))
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

/// What checkpoints say against earlier ones. Streams only grow, a row has one hash for ever, and what was compromised stays
/// so; but for those of a history that was lost to a restore, which `is_lost` knows.
pub fn contradictions(
    checkpoints: &[Checkpoint],
    is_lost: impl Fn(&Checkpoint) -> bool,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut last: BTreeMap<&str, &Head> = BTreeMap::new();
    let mut frozen: BTreeSet<&Kid> = BTreeSet::new();
    for checkpoint in checkpoints.iter().filter(|checkpoint| !is_lost(checkpoint)) {
        let at = checkpoint.at;
        for StreamHead { stream, head } in &checkpoint.heads {
            if let Some(before) = last.insert(stream, head)
                && (head.seq < before.seq || (head.seq == before.seq && head.hash != before.hash))
            {
                found.push(format!(
                    "the checkpoint of {at} ends stream {stream} at {}, an earlier one at {}: one of them is of another history",
                    head.seq, before.seq
                ));
            }
        }
        let now: BTreeSet<&Kid> = checkpoint.frozen.iter().collect();
        for kid in frozen.difference(&now) {
            found.push(format!(
                "the checkpoint of {at} does not say any more that version {kid} was compromised"
            ));
        }
        frozen = now;
    }
    found
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
            frozen: Vec::new(),
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
            let said = contradictions(&found.checkpoints, |_| false);
            assert!(!said.is_empty(), "{first:?} {second:?}");
            // Nothing is said of what a restore took away.
            let lost = &found.checkpoints[0];
            assert!(contradictions(&found.checkpoints, |c| c == lost).is_empty());
        }
    }

    #[test]
    fn what_was_frozen_stays_so() {
        let pair = pair();
        let keys = std::slice::from_ref(&pair.1);
        let [mut first, mut second] = [checkpoint(1, 1), checkpoint(2, 1)];
        first.frozen = vec!["one".parse().expect("a kid"), "two".parse().expect("a kid")];
        second.frozen = vec![first.frozen[1].clone()];
        let all = [first, second];
        let notes = all.each_ref().map(|c| note(&pair, c));
        let found = read(&notes.join("\n\n"), keys);
        assert_eq!(found.checkpoints, all);
        let said = contradictions(&found.checkpoints, |_| false);
        let [how] = said.as_slice() else {
            panic!("{said:?}");
        };
        assert!(how.contains("version one was compromised"), "{how}");
    }

    #[test]
    fn the_last_one_is_found() {
        let (ours, theirs) = (pair(), pair());
        let path = std::env::temp_dir().join(format!("claviger-{}", uuid::Uuid::now_v7()));
        let issuer = "https://issuer.test";
        let keys = std::slice::from_ref(&ours.1);
        let last_of = |keys: &[PublicKey]| last(&path, issuer, keys).expect("readable");
        assert_eq!(last_of(keys), None);
        for seq in 1..=3 {
            append(&path, &note(&ours, &checkpoint(seq, 1))).expect("written");
        }
        assert_eq!(last_of(keys), Some((checkpoint(3, 1), true)));
        // Another installation's, a forgery, and the rest of a write that was cut off.
        let mut foreign = checkpoint(9, 9);
        foreign.issuer = "https://other.test".into();
        append(&path, &note(&ours, &foreign)).expect("written");
        let forged = note(&ours, &checkpoint(4, 1)).replace("admin 4 ", "admin 5 ");
        append(&path, &forged).expect("written");
        append(&path, &checkpoint(6, 1).text().expect("a text")).expect("written");
        assert_eq!(last_of(keys), Some((checkpoint(3, 1), true)));
        // An old note that somebody adds again changes nothing.
        append(&path, &note(&ours, &checkpoint(1, 1))).expect("written");
        assert_eq!(last_of(keys), Some((checkpoint(3, 1), true)));
        // A key that was made since.
        append(&path, &note(&theirs, &checkpoint(7, 1))).expect("written");
        assert_eq!(last_of(keys), Some((checkpoint(7, 1), false)));
        assert_eq!(last_of(&[]), Some((checkpoint(7, 1), false)));
        // Up to a time, only what is signed by a key that is known.
        let at = |seq| checkpoint(seq, 1).at;
        for (until, expected) in [
            (0, None),
            (1, Some(1)),
            (2, Some(2)),
            (4, Some(3)),
            (8, Some(3)),
        ] {
            let found = newest_until(&path, issuer, keys, at(until), |_| true);
            let found = found.expect("readable");
            assert_eq!(found, expected.map(|seq| checkpoint(seq, 1)), "{until}");
        }
        let found = newest_until(&path, issuer, keys, at(8), |c| c.at != at(3));
        assert_eq!(found.expect("readable"), Some(checkpoint(2, 1)));
        std::fs::remove_file(&path).expect("it was there");
    }

    #[test]
    fn a_file_of_years_is_not_read_to_find_one() {
        let pair = pair();
        let path = std::env::temp_dir().join(format!("claviger-{}", uuid::Uuid::now_v7()));
        // Long notes: a signature for each would take the time of the test.
        let mut file = String::new();
        let mut notes = Vec::new();
        for seq in 1..=60 {
            let mut long = checkpoint(seq, 1);
            long.heads.extend((0..3000).map(|n| StreamHead {
                stream: format!("access/pod-{n:05}"),
                head: Head {
                    seq: n,
                    hash: vec![7; 32],
                },
            }));
            file.push_str(&format!("{}\n\n", note(&pair, &long)));
            notes.push(long);
        }
        assert!(file.len() as u64 > 3 * TAIL);
        std::fs::write(&path, file).expect("written");
        let keys = std::slice::from_ref(&pair.1);
        for seq in [1, 2, 20, 30, 31, 47, 59, 60] {
            let at = notes[seq - 1].at;
            let found = newest_until(&path, "https://issuer.test", keys, at, |_| true);
            assert_eq!(
                found.expect("readable").as_ref(),
                Some(&notes[seq - 1]),
                "{seq}"
            );
        }
        let before = Timestamp::from_micros(1);
        let found = newest_until(&path, "https://issuer.test", keys, before, |_| true);
        assert_eq!(found.expect("readable"), None);
        std::fs::remove_file(&path).expect("it was there");
    }

    #[test]
    fn names_cannot_break_lines() {
        let mut forged = checkpoint(1, 1);
        forged.heads[0].stream = "access/x\nadmin".into();
        assert_eq!(forged.text(), None);
    }
}
