//! What commands print: proto JSON for programs, short tables for people. No colours.
//!
//! Everything goes through `print` or `write`, so that a reader who went away ends the command quietly.

use std::{
    fs::OpenOptions,
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::LazyLock,
};

use comfy_table::{ContentArrangement, Table, presets};
use jiff::SignedDuration;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::value::Serializer;

use super::exit::{Failure, Result};
use crate::{clock::Clock, grpc::proto::DESCRIPTOR};

static POOL: LazyLock<std::result::Result<DescriptorPool, String>> =
    LazyLock::new(|| DescriptorPool::decode(DESCRIPTOR).map_err(|e| e.to_string()));

/// What a file that holds it may be read by.
#[derive(Clone, Copy)]
pub enum Secrecy {
    /// As the umask says.
    Open,
    /// By its owner only.
    Private,
}

/// Descriptor of a message type.
pub fn descriptor<M: prost::Name>() -> Result<prost_reflect::MessageDescriptor> {
    let pool = POOL.as_ref().map_err(Failure::other)?;
    pool.get_message_by_name(&M::full_name())
        .ok_or_else(|| Failure::other(format!("no descriptor of {}", M::full_name())))
}

/// Canonical proto JSON, with fields that have their default value too: scripts want to read `"valid": false`.
pub fn json_value<M: prost::Message + prost::Name>(message: &M) -> Result<serde_json::Value> {
    let dynamic = DynamicMessage::decode(descriptor::<M>()?, message.encode_to_vec().as_slice())
        .map_err(Failure::other)?;
    let options = SerializeOptions::new().skip_default_fields(false);
    dynamic
        .serialize_with_options(Serializer, &options)
        .map_err(Failure::other)
}

/// The same as text, over several lines.
pub fn json<M: prost::Message + prost::Name>(message: &M) -> Result<String> {
    serde_json::to_string_pretty(&json_value(message)?).map_err(Failure::other)
}

/// Prints text and ends the line.
pub fn print(text: &str) -> Result<()> {
    write(
        None,
        format!("{}\n", text.trim_end_matches('\n')).as_bytes(),
        Secrecy::Open,
    )
}

/// Writes bytes to a file, or to stdout for none or `-`.
pub fn write(path: Option<&Path>, bytes: &[u8], secrecy: Secrecy) -> Result<()> {
    let Some(path) = path.filter(|path| *path != Path::new("-")) else {
        let mut out = io::stdout().lock();
        return out
            .write_all(bytes)
            .and_then(|()| out.flush())
            .map_err(|e| match e.kind() {
                io::ErrorKind::BrokenPipe => Failure::broken_pipe(),
                _ => Failure::other(format!("cannot write to stdout: {e}")),
            });
    };
    let mode = match secrecy {
        Secrecy::Open => 0o666,
        Secrecy::Private => 0o600,
    };
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(|e| Failure::other(format!("cannot write {}: {e}", path.display())))
}

/// Would binary output end up on a screen?
pub fn to_terminal(path: Option<&Path>) -> bool {
    path.is_none_or(|path| path == Path::new("-")) && io::stdout().is_terminal()
}

/// Rows under a header, as wide as the terminal at most; unwrapped when the output is not a terminal.
pub fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = plain();
    table.set_header(header);
    rows.into_iter().for_each(|row| {
        table.add_row(row.map(printable));
    });
    trimmed(&table)
}

/// One thing: a name and a value per line. Empty values are left out.
pub fn details<const N: usize>(rows: [(&str, String); N]) -> String {
    let mut table = plain();
    for (name, value) in rows {
        if !value.is_empty() {
            table.add_row([name.to_owned(), printable(value)]);
        }
    }
    trimmed(&table)
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_content_arrangement(match io::stdout().is_terminal() {
        true => ContentArrangement::Dynamic,
        false => ContentArrangement::Disabled,
    });
    table
}

fn trimmed(table: &Table) -> String {
    let lines: Vec<_> = table
        .to_string()
        .lines()
        .map(|l| l.trim_end().to_owned())
        .collect();
    // The preset leaves one blank before each line.
    let lines: Vec<_> = lines
        .iter()
        .map(|l| l.strip_prefix(' ').unwrap_or(l))
        .collect();
    lines.join("\n")
}

/// Names and ids come from others; they must not steer the terminal.
fn printable(text: String) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// `2026-11-21 01:18:03Z (in 89 d)`; empty when unset.
pub fn time(time: &Option<prost_types::Timestamp>) -> String {
    match instant(time) {
        Some(at) => format!("{} ({})", at.strftime("%Y-%m-%d %H:%M:%SZ"), relative(at)),
        None => String::new(),
    }
}

/// `in 89 d`, `3 min ago`; empty when unset.
pub fn when(time: &Option<prost_types::Timestamp>) -> String {
    instant(time).map(relative).unwrap_or_default()
}

/// `2026-11-21 01:18:03.123Z`; empty when unset.
pub fn clock_time(time: &Option<prost_types::Timestamp>) -> String {
    instant(time).map_or_else(String::new, |at| {
        at.strftime("%Y-%m-%d %H:%M:%S%.3fZ").to_string()
    })
}

/// A proto timestamp as an instant; None when unset or out of range.
pub fn instant(time: &Option<prost_types::Timestamp>) -> Option<jiff::Timestamp> {
    let time = time.as_ref()?;
    jiff::Timestamp::new(time.seconds, time.nanos).ok()
}

/// The instant it is now.
pub fn now() -> jiff::Timestamp {
    jiff::Timestamp::from_microsecond(Clock::System.now().micros()).unwrap_or_default()
}

fn relative(at: jiff::Timestamp) -> String {
    let away = at.duration_since(now());
    match away.is_negative() {
        true => format!("{} ago", rough(away.abs())),
        false => format!("in {}", rough(away)),
    }
}

/// `90 d`, `15 min`; empty when unset.
pub fn duration(duration: &Option<prost_types::Duration>) -> String {
    duration.as_ref().map_or_else(String::new, |d| {
        rough(SignedDuration::new(d.seconds, d.nanos))
    })
}

/// A duration in the largest unit that leaves at least two of it.
fn rough(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `SIGNING` of `KEY_PURPOSE_SIGNING`; a dash for UNSPECIFIED.
pub fn short(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix).unwrap_or(name) {
        "UNSPECIFIED" => "-".to_owned(),
        "EDDSA" => "EdDSA".to_owned(),
        rest => rest.to_owned(),
    }
}

/// A word as a shell reads it.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::proto;

    #[test]
    fn json_is_canonical_and_shows_defaults() {
        let answer = proto::VerifyResponse::default();
        let json = json_value(&answer).unwrap();
        assert_eq!(json, serde_json::json!({"valid": false, "kid": ""}));
        let answer = proto::SignResponse {
            signature: vec![1, 2].into(),
            kid: "k".into(),
            algorithm: proto::Algorithm::Es256.into(),
        };
        let json = json_value(&answer).unwrap();
        assert_eq!(json["signature"], "AQI=");
        assert_eq!(json["algorithm"], "ALGORITHM_ES256");
    }

    #[test]
    fn tables_are_plain_text() {
        let text = table(["NAME", "STATE"], [["a".into(), "x\u{1b}[31m".into()]]);
        assert_eq!(text, "NAME  STATE\na     x\u{fffd}[31m");
    }

    #[test]
    fn durations_are_rough() {
        assert_eq!(rough(SignedDuration::from_hours(24 * 90)), "90 d");
        assert_eq!(rough(SignedDuration::from_secs(900)), "15 min");
        assert_eq!(rough(SignedDuration::from_millis(20)), "20 ms");
    }

    #[test]
    fn shell_words_are_quoted_when_they_must() {
        assert_eq!(shell_word("/a/b-c"), "/a/b-c");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
    }
}
