//! What commands read: bytes from files and stdin, and the small languages of their arguments.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{
    alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _},
};
use clap::{
    Args, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use jiff::{SignedDuration, Span, SpanRelativeTo};
use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};

use super::{
    exit::{Failure, Result},
    output,
};
use crate::{
    grpc::proto::{Algorithm, KeyPurpose, PrincipalType, RotationMode},
    model::PublicKey,
};

/// Where bytes come from and go to.
#[derive(Args, Clone, Debug)]
pub struct Streams {
    /// File to read; `-` or nothing for stdin
    #[arg(long = "in", value_name = "FILE")]
    pub input_file: Option<PathBuf>,
    /// File to write; `-` or nothing for stdout
    #[arg(long = "out", value_name = "FILE")]
    pub output_file: Option<PathBuf>,
}

impl Streams {
    /// All of the input.
    pub fn read(&self) -> Result<Vec<u8>> {
        read(self.input_file.as_deref())
    }

    /// Writes the output.
    pub fn write(&self, bytes: &[u8], secrecy: output::Secrecy) -> Result<()> {
        output::write(self.output_file.as_deref(), bytes, secrecy)
    }
}

/// The public key in a PEM file that `option` names.
pub fn public_key(option: &str, path: &Path) -> Result<PublicKey> {
    let wrong = |what: &str| Failure::usage(format!("{option} {}: {what}", path.display()));
    let pem = std::fs::read(path).map_err(|e| wrong(&e.to_string()))?;
    let der = SubjectPublicKeyInfoDer::from_pem_slice(&pem);
    let der = der.map_err(|_| wrong("no PUBLIC KEY in PEM"))?;
    let key = PublicKey::from_spki_der(&der);
    key.ok_or_else(|| wrong("neither an ECDSA key nor an Ed25519 key"))
}

/// The most that is read: what a request can carry, and one byte, so that the daemon says what is wrong.
const MAX_INPUT: u64 = (8 << 20) + 1;

/// All bytes of a file, or of stdin for none or `-`. Errors: more than any request can carry.
pub fn read(path: Option<&Path>) -> Result<Vec<u8>> {
    let (name, source) = open(path)?;
    let bytes = read_at_most(&name, source, MAX_INPUT)?;
    if bytes.len() as u64 == MAX_INPUT {
        return Err(Failure::usage(format!(
            "{name} is larger than the 8 MiB that one request can carry"
        )));
    }
    Ok(bytes)
}

/// A file, or stdin for none or `-`, with its name for people.
pub fn open(path: Option<&Path>) -> Result<(String, Box<dyn Read + Send>)> {
    let Some(path) = path.filter(|path| *path != Path::new("-")) else {
        return Ok(("stdin".to_owned(), Box::new(io::stdin())));
    };
    let name = path.display().to_string();
    match std::fs::File::open(path) {
        Ok(file) => Ok((name, Box::new(file))),
        Err(e) => Err(Failure::usage(format!("cannot read {name}: {e}"))),
    }
}

/// The first bytes of `source`.
pub fn read_at_most(name: &str, source: impl Read, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match source.take(most).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(e) => Err(Failure::usage(format!("cannot read {name}: {e}"))),
    }
}

/// A signature: the name of a file that holds it, raw or as base64url, or the base64url text itself.
pub fn signature(argument: &str) -> Result<Vec<u8>> {
    let bytes = match Path::new(argument).is_file() {
        true => read(Some(Path::new(argument)))?,
        false => argument.as_bytes().to_vec(),
    };
    let text = bytes.trim_ascii();
    match BASE64_URL_SAFE_NO_PAD.decode(text) {
        Ok(signature) => Ok(signature),
        Err(_) if Path::new(argument).is_file() => Ok(bytes),
        Err(_) => Err(Failure::usage(
            "--signature is neither a file nor base64url text",
        )),
    }
}

/// How a secret is written in its file.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Encoding {
    /// The bytes themselves, to the last one
    #[default]
    Raw,
    /// Hex digits
    Hex,
    /// Base64 of either alphabet, padded or not
    Base64,
}

/// Where a secret comes from: never an argument, which everybody on the machine can read.
#[derive(Args, Clone, Debug)]
pub struct SecretFile {
    /// File that holds the secret; `-` for stdin
    #[arg(long, value_name = "FILE")]
    pub secret_file: PathBuf,
    /// How the secret is written in it
    #[arg(long, value_enum, default_value_t)]
    pub encoding: Encoding,
}

impl SecretFile {
    /// The secret. Errors tell nothing of it.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut text = read(Some(&self.secret_file))?;
        let decoded = match self.encoding {
            Encoding::Raw if text.ends_with(b"\n") => Err(
                "the secret ends with a line feed, which would be a part of it; write the file without (printf %s), \
                 or say how it is written with --encoding",
            ),
            Encoding::Raw => return Ok(text),
            Encoding::Hex => {
                unhex(text.trim_ascii()).ok_or("the secret is not an even number of hex digits")
            }
            Encoding::Base64 => unbase64(text.trim_ascii()).ok_or("the secret is not base64"),
        };
        zeroize::Zeroize::zeroize(&mut text);
        decoded.map_err(Failure::usage)
    }
}

/// `--mac`: 64 or 128 hex digits, or base64 of either alphabet. The lengths tell them apart.
pub fn mac(argument: &str) -> std::result::Result<Vec<u8>, String> {
    let mac = match argument.len() {
        64 | 128 => unhex(argument.as_bytes()),
        _ => unbase64(argument.as_bytes()),
    };
    mac.filter(|mac| !mac.is_empty())
        .ok_or_else(|| "expected the MAC as hex or base64".to_owned())
}

/// Lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of a text of hex digits.
pub fn unhex_text(text: &str) -> Option<Vec<u8>> {
    unhex(text.as_bytes())
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, rest) = text.as_chunks::<2>();
    let byte = |&[high, low]: &[u8; 2]| u8::try_from(digit(high)? * 16 + digit(low)?).ok();
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}

fn unbase64(text: &[u8]) -> Option<Vec<u8>> {
    const ANY: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let decode = |alphabet| GeneralPurpose::new(alphabet, ANY).decode(text).ok();
    decode(&alphabet::STANDARD).or_else(|| decode(&alphabet::URL_SAFE))
}

/// `name=value` of `--aad`.
pub fn pair(argument: &str) -> std::result::Result<(String, String), String> {
    match argument.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("expected NAME=VALUE".to_owned()),
    }
}

/// The pairs of `--aad`. Errors: a name given twice.
pub fn aad(pairs: &[(String, String)]) -> Result<BTreeMap<String, String>> {
    let mut map = BTreeMap::new();
    for (name, value) in pairs {
        if map.insert(name.clone(), value.clone()).is_some() {
            return Err(Failure::usage(format!("--aad {name}=… is given twice")));
        }
    }
    Ok(map)
}

/// `90d`, `15 min`, `1h 30m`, `PT5S`. Days have 24 hours.
pub fn duration(argument: &str) -> std::result::Result<Duration, String> {
    let signed = signed_duration(argument)?;
    Duration::try_from(signed).map_err(|_| "a duration cannot be negative".to_owned())
}

fn signed_duration(argument: &str) -> std::result::Result<SignedDuration, String> {
    let span: Span = argument
        .parse()
        .map_err(|_| "expected a duration such as 90d, 15min or 1h30m".to_owned())?;
    span.to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| "a duration has no months or years".to_owned())
}

/// RFC 3339, or a duration ago.
pub fn past(argument: &str) -> std::result::Result<jiff::Timestamp, String> {
    moment(argument, |now, by| now.checked_sub(by))
}

/// RFC 3339, or a duration from now.
pub fn future(argument: &str) -> std::result::Result<jiff::Timestamp, String> {
    moment(argument, |now, by| now.checked_add(by))
}

fn moment(
    argument: &str,
    shift: impl FnOnce(
        jiff::Timestamp,
        SignedDuration,
    ) -> std::result::Result<jiff::Timestamp, jiff::Error>,
) -> std::result::Result<jiff::Timestamp, String> {
    if let Ok(time) = argument.parse() {
        return Ok(time);
    }
    let by = signed_duration(argument).map_err(|_| {
        "expected a time such as 2026-01-31T12:00:00Z, or a duration such as 2h".to_owned()
    })?;
    shift(output::now(), by).map_err(|e| e.to_string())
}

/// As a field of a message.
pub fn proto_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// As a field of a message.
pub fn proto_time(time: jiff::Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}

/// An enum value by the short name that people use; `lookup` is prost's `from_str_name`.
pub fn choice<E: Clone + Send + Sync + 'static>(
    names: &'static [&'static str],
    prefix: &'static str,
    lookup: fn(&str) -> Option<E>,
) -> impl TypedValueParser<Value = E> {
    PossibleValuesParser::new(names.iter().copied()).try_map(move |name| {
        let full = format!("{prefix}{}", name.to_uppercase().replace('-', "_"));
        lookup(&full).ok_or("not a value of the contract")
    })
}

/// `--algorithm`.
pub fn algorithm() -> impl TypedValueParser<Value = Algorithm> {
    let names = &[
        "ES256", "ES384", "ES512", "EdDSA", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512",
        "A256GCM", "HS256", "HS512",
    ];
    choice(names, "ALGORITHM_", Algorithm::from_str_name)
}

/// `--purpose`.
pub fn purpose() -> impl TypedValueParser<Value = KeyPurpose> {
    let names = &["signing", "token-signing", "encryption", "mac"];
    choice(names, "KEY_PURPOSE_", KeyPurpose::from_str_name)
}

/// `--rotation-mode`.
pub fn rotation_mode() -> impl TypedValueParser<Value = RotationMode> {
    choice(
        &["manual", "automatic"],
        "ROTATION_MODE_",
        RotationMode::from_str_name,
    )
}

/// `--type` of a principal.
pub fn principal_type() -> impl TypedValueParser<Value = PrincipalType> {
    choice(
        &["user", "service"],
        "PRINCIPAL_TYPE_",
        PrincipalType::from_str_name,
    )
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("90d"), Ok(Duration::from_hours(24 * 90)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_mins(90)));
        assert_eq!(duration("PT5S"), Ok(Duration::from_secs(5)));
        assert!(duration("-5s").is_err());
        assert!(duration("1 year").is_err());
        assert!(duration("soon").is_err());
    }

    #[test]
    fn signatures() {
        assert_eq!(signature("AQI").unwrap(), [1, 2]);
        assert!(signature("no signature!").is_err());
    }

    #[test]
    fn macs_are_told_apart_by_their_length() {
        assert_eq!(mac(&"0f".repeat(32)), Ok(vec![15; 32]));
        assert_eq!(mac(&"0F".repeat(64)), Ok(vec![15; 64]));
        // 32 bytes as base64, with padding and without, and in the other alphabet.
        let standard = format!("{}8=", "//".repeat(21));
        assert_eq!(mac(&standard), Ok(vec![255; 32]));
        assert_eq!(mac(standard.trim_end_matches('=')), Ok(vec![255; 32]));
        assert_eq!(mac(&standard.replace('/', "_")), Ok(vec![255; 32]));
        assert!(mac("").is_err());
        assert!(mac(&"0g".repeat(32)).is_err());
        assert!(mac("no mac!").is_err());
        assert_eq!(hex(&[0, 171]), "00ab");
    }

    #[test]
    fn aad_pairs() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(pair("=b").is_err());
        assert!(pair("a").is_err());
        let twice = [
            ("a".to_owned(), "1".to_owned()),
            ("a".to_owned(), "2".to_owned()),
        ];
        assert!(aad(&twice).is_err());
    }

    #[test]
    fn every_name_of_an_enum_is_one_of_the_contract() {
        let command = clap::Command::new("test");
        for purpose_name in ["signing", "token-signing", "encryption", "mac"] {
            assert!(
                purpose()
                    .parse_ref(&command, None, OsStr::new(purpose_name))
                    .is_ok()
            );
        }
        let parsed = algorithm().parse_ref(&command, None, OsStr::new("EdDSA"));
        assert_eq!(parsed.ok(), Some(Algorithm::Eddsa));
        let parsed = rotation_mode().parse_ref(&command, None, OsStr::new("automatic"));
        assert_eq!(parsed.ok(), Some(RotationMode::Automatic));
        let parsed = principal_type().parse_ref(&command, None, OsStr::new("service"));
        assert_eq!(parsed.ok(), Some(PrincipalType::Service));
    }
}
