//! Providers of credentials: brokers and LLM providers, what their secrets look like, and how to ask them whether one works.
//!
//! A format is a floor (R-CRED-4): a prefix, characters, and how many there are at least. A real key of a newer form must
//! not be refused, so a mismatch is news and only under `strict` an error.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc, time::Duration};

use serde::Deserialize;

use super::CredentialEnvironment;
use crate::error::{Error, Reason};

/// Name of a provider in the catalogue: 1 to 63 characters of `a-z`, `0-9` and `-`, beginning with a letter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProviderName(Arc<str>);

impl ProviderName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProviderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ProviderName {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let ok = s.len() <= 63
            && s.starts_with(|c: char| c.is_ascii_lowercase())
            && s.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        ok.then(|| Self(s.into())).ok_or_else(|| {
            Error::new(
                Reason::InvalidField,
                "provider must be 1 to 63 characters of a-z, 0-9 and '-', beginning with a letter",
            )
        })
    }
}

impl<'de> Deserialize<'de> for ProviderName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|e: Error| serde::de::Error::custom(e.message()))
    }
}

/// What a provider is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProviderKind {
    /// Of large language models.
    Llm,
    /// Of orders at an exchange.
    Broker,
}

impl ProviderKind {
    /// The text on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Llm => "llm",
            Self::Broker => "broker",
        }
    }
}

/// A provider, as the catalogue describes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Its name in requests.
    pub name: ProviderName,
    /// Its name for people.
    pub title: String,
    /// What it is.
    pub kind: ProviderKind,
    /// Days that a value may be CURRENT, 1 to 365. Default 30 (R-CRED-7).
    #[serde(default = "thirty")]
    pub rotation_days: u32,
    /// Fields of the secret; the first one is shown masked.
    pub fields: Vec<FieldSpec>,
    /// How to ask it whether a value works.
    #[serde(default)]
    pub probe: Option<ProbeSpec>,
}

const fn thirty() -> u32 {
    30
}

/// A field of a secret.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldSpec {
    /// Its name: 1 to 63 of `a-z`, `0-9`, `_`.
    pub name: String,
    /// May it be left out?
    #[serde(default)]
    pub optional: bool,
    /// Variable that imports from the environment take it from.
    #[serde(default)]
    pub variable: Option<String>,
    /// Forms that are known; none: every form is good.
    #[serde(default)]
    pub formats: Vec<Format>,
}

/// A form that a field may have.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Format {
    /// How it begins.
    #[serde(default)]
    pub prefix: String,
    /// Characters after the prefix.
    #[serde(default)]
    pub charset: Charset,
    /// How many there are at least.
    pub min: usize,
    /// And at most, where that is known for sure.
    #[serde(default)]
    pub max: Option<usize>,
}

/// Characters of a form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Charset {
    /// `A-Z`, `a-z`, `0-9`.
    Alphanumeric,
    /// These and `-` and `_`, as in base64url.
    #[default]
    Token,
    /// `0-9`, `a-f`, `A-F`.
    Hex,
    /// Everything that is visible and ASCII.
    Visible,
}

impl Charset {
    const fn has(self, byte: u8) -> bool {
        match self {
            Self::Alphanumeric => byte.is_ascii_alphanumeric(),
            Self::Token => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'),
            Self::Hex => byte.is_ascii_hexdigit(),
            Self::Visible => byte.is_ascii_graphic(),
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Alphanumeric => "A-Z a-z 0-9",
            Self::Token => "A-Z a-z 0-9 - _",
            Self::Hex => "0-9 a-f",
            Self::Visible => "visible ASCII",
        }
    }
}

impl Format {
    /// Does the text have this form?
    pub fn matches(&self, text: &str) -> bool {
        let Some(rest) = text.strip_prefix(self.prefix.as_str()) else {
            return false;
        };
        rest.len() >= self.min
            && self.max.is_none_or(|max| rest.len() <= max)
            && rest.bytes().all(|byte| self.charset.has(byte))
    }
}

/// For people; no secret is part of it.
impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.prefix.is_empty() {
            write!(f, "{} and ", self.prefix)?;
        }
        match self.max {
            Some(max) if max == self.min => write!(f, "{max}")?,
            Some(max) => write!(f, "{} to {max}", self.min)?,
            None => write!(f, "at least {}", self.min)?,
        }
        write!(f, " of {}", self.charset.words())
    }
}

/// How to ask a provider whether a value works: one request without effect.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeSpec {
    /// `GET`, `POST`. Default `GET`.
    #[serde(default = "get")]
    pub method: String,
    /// `https://…` without a path at its end.
    pub base_url: String,
    /// Other addresses for some environments: paper trading.
    #[serde(default)]
    pub environment_urls: BTreeMap<CredentialEnvironment, String>,
    /// Path and query; begins with `/`.
    pub path: String,
    /// Headers. `{field}` stands for a field of the secret, `{organisation}` for the organisation; a header that names one
    /// that is not there is left out.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Status that says yes. Default 200.
    #[serde(default = "ok")]
    pub expect: u16,
    /// Statuses that say no. Default 401 and 403.
    #[serde(default = "refusals")]
    pub refuse: Vec<u16>,
}

fn get() -> String {
    "GET".to_owned()
}

const fn ok() -> u16 {
    200
}

fn refusals() -> Vec<u16> {
    vec![401, 403]
}

impl ProbeSpec {
    /// Where a credential for this environment is asked about.
    pub fn url(&self, environment: CredentialEnvironment) -> String {
        let base = self.environment_urls.get(&environment);
        let base = base.unwrap_or(&self.base_url);
        format!("{}{}", base.trim_end_matches('/'), self.path)
    }
}

impl Provider {
    /// The field that is shown masked.
    pub fn primary(&self) -> Option<&FieldSpec> {
        self.fields.first()
    }

    /// The field with this name.
    pub fn field(&self, name: &str) -> Option<&FieldSpec> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// How long a value may be CURRENT.
    pub fn rotation_period(&self) -> Duration {
        Duration::from_secs(u64::from(self.rotation_days) * 24 * 60 * 60)
    }

    /// Errors: a sentence that says what is wrong with the description.
    pub fn check(&self) -> Result<(), String> {
        let name = &self.name;
        if !(1..=365).contains(&self.rotation_days) {
            return Err(format!("{name}: rotation_days must be 1 to 365"));
        }
        if self.title.is_empty() || self.title.chars().count() > 100 {
            return Err(format!("{name}: title must be 1 to 100 characters"));
        }
        if self.fields.first().is_none_or(|field| field.optional) {
            return Err(format!(
                "{name}: the first of fields must be there and not optional"
            ));
        }
        for (i, field) in self.fields.iter().enumerate() {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            let ok = (1..=63).contains(&field.name.len()) && field.name.bytes().all(plain);
            let known = self
                .fields
                .iter()
                .take(i)
                .any(|other| other.name == field.name);
            if !ok || known || field.name == "organisation" {
                return Err(format!(
                    "{name}: names of fields must be unique, of a-z, 0-9 and _, and not organisation"
                ));
            }
        }
        self.probe
            .as_ref()
            .map_or(Ok(()), |probe| self.check_probe(probe))
    }

    fn check_probe(&self, probe: &ProbeSpec) -> Result<(), String> {
        let name = &self.name;
        if !matches!(probe.method.as_str(), "GET" | "HEAD" | "POST") {
            return Err(format!("{name}: probe.method must be GET, HEAD or POST"));
        }
        if !probe.path.starts_with('/') {
            return Err(format!("{name}: probe.path must begin with /"));
        }
        let urls = probe.environment_urls.values().chain([&probe.base_url]);
        for url in urls {
            if !url.starts_with("https://") && !url.starts_with("http://") {
                return Err(format!("{name}: probe.base_url must begin with https://"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(prefix: &str, charset: Charset, min: usize, max: Option<usize>) -> Format {
        Format {
            prefix: prefix.to_owned(),
            charset,
            min,
            max,
        }
    }

    // R-CRED-4
    #[test]
    fn a_form_is_a_floor() {
        let key = format("sk-", Charset::Alphanumeric, 48, None);
        let text = |n| format!("sk-{}", "aB3".repeat(n));
        assert!(key.matches(&text(16)));
        assert!(key.matches(&text(40)), "a newer, longer key");
        assert!(!key.matches(&text(15)), "cut off");
        assert!(!key.matches(&format!("{}-", text(16))));
        assert!(!key.matches(&text(16).replace("sk-", "pk-")));
        assert!(!key.matches(""));
        assert!(!key.matches(&format!("sk-{}", "é".repeat(48))));
        let exact = format("", Charset::Hex, 2, Some(2));
        assert!(exact.matches("0f") && !exact.matches("0f0") && !exact.matches("0g"));
    }

    #[test]
    fn a_form_is_told_to_people_without_any_key() {
        let key = format("xai-", Charset::Alphanumeric, 40, None);
        assert_eq!(key.to_string(), "xai- and at least 40 of A-Z a-z 0-9");
        let exact = format("", Charset::Hex, 32, Some(32));
        assert_eq!(exact.to_string(), "32 of 0-9 a-f");
    }

    #[test]
    fn names_of_providers_are_plain() {
        for bad in ["", "OpenAI", "a b", "-a", "a_b", &"a".repeat(64)] {
            assert!(bad.parse::<ProviderName>().is_err(), "{bad:?}");
        }
        assert!("kimi-k2".parse::<ProviderName>().is_ok());
    }
}
