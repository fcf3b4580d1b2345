//! Credentials of other systems that users keep here, and their secrets.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use serde::Deserialize;
use zeroize::Zeroize;

use super::{
    CredentialId, CredentialValueId, Kid, PrincipalId, ProviderName, Secret, TenantName, Timestamp,
};
use crate::error::{Error, Reason, Result};

/// Longest value of a field, in bytes.
const MAX_FIELD: usize = 8192;
/// Most fields of one secret.
const MAX_FIELDS: usize = 16;

/// Environment at the provider that a credential is for (R-CRED-8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialEnvironment {
    /// For development.
    Development,
    /// For tests.
    Testing,
    /// For real.
    Production,
}

impl CredentialEnvironment {
    /// Every environment.
    pub const ALL: [Self; 3] = [Self::Development, Self::Testing, Self::Production];

    /// The text in the database and over HTTP.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Testing => "testing",
            Self::Production => "production",
        }
    }
}

impl FromStr for CredentialEnvironment {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|e| e.as_str() == s);
        found.ok_or_else(|| invalid("environment must be development, testing or production"))
    }
}

/// What a value is to its credential (R-CRED-7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ValueLabel {
    /// The value in use.
    Current,
    /// The next value of a rotation under way.
    Pending,
    /// The value before, held for a while.
    Previous,
}

impl ValueLabel {
    /// The text in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "CURRENT",
            Self::Pending => "PENDING",
            Self::Previous => "PREVIOUS",
        }
    }
}

impl FromStr for ValueLabel {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        [Self::Current, Self::Pending, Self::Previous]
            .into_iter()
            .find(|label| label.as_str() == s)
            .ok_or_else(|| invalid("label must be PENDING, CURRENT or PREVIOUS"))
    }
}

/// How the next value of a credential comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RotationDriver {
    /// A person brings it.
    Manual,
    /// A configured endpoint mints it.
    Webhook,
    /// A local program mints it.
    Command,
}

impl RotationDriver {
    /// The text in the database and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Webhook => "webhook",
            Self::Command => "command",
        }
    }
}

impl FromStr for RotationDriver {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        [Self::Manual, Self::Webhook, Self::Command]
            .into_iter()
            .find(|driver| driver.as_str() == s)
            .ok_or_else(|| invalid("driver must be manual, webhook or command"))
    }
}

/// What tells a credential from every other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CredentialKey {
    /// Tenant of the owner.
    pub tenant: TenantName,
    /// Who it belongs to.
    pub owner: PrincipalId,
    /// Whose system it is for.
    pub provider: ProviderName,
    /// Environment there.
    pub environment: CredentialEnvironment,
    /// What tells several of these apart: 1 to 100 characters.
    pub name: String,
}

/// A credential that is kept here, without its values.
#[derive(Clone, Debug)]
pub struct StoredCredential {
    /// Its id.
    pub id: CredentialId,
    /// What tells it from every other.
    pub key: CredentialKey,
    /// Organisation or account at the provider; no secret.
    pub organisation: String,
    /// How long a value may be CURRENT.
    pub rotation_period: Duration,
    /// When the CURRENT value is to be replaced.
    pub rotation_due_at: Timestamp,
    /// How the next value comes.
    pub rotation_driver: RotationDriver,
    /// Did the CURRENT value look as the catalogue says, when it was last looked at?
    pub format_ok: bool,
    /// What the last probe of the CURRENT value said.
    pub probe: Option<Probed>,
    /// Raised by each change; a change names the one it has read.
    pub revision: i64,
    /// When it was first stored.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// A value of a credential, sealed.
#[derive(Clone, Debug)]
pub struct CredentialValue {
    /// Its id.
    pub id: CredentialValueId,
    /// The credential it is a value of.
    pub credential: CredentialId,
    /// What it is to it.
    pub label: ValueLabel,
    /// Version of the tenant's key that sealed it.
    pub kid: Kid,
    /// The sealed secret.
    pub ciphertext: Vec<u8>,
    /// Its last characters, for people.
    pub last_four: String,
    /// When it came in.
    pub created_at: Timestamp,
    /// When it became CURRENT.
    pub promoted_at: Option<Timestamp>,
    /// How long a PREVIOUS value is held.
    pub hold_until: Option<Timestamp>,
}

/// What came of asking a provider about a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// What it said.
    pub result: ProbeResult,
    /// HTTP status, or why there is none: `HTTP_401`, `TIMEOUT`.
    pub detail: String,
    /// When.
    pub at: Timestamp,
}

/// What a provider said to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeResult {
    /// It takes it.
    Valid,
    /// It refuses it.
    Invalid,
    /// Something that says neither.
    Unexpected,
    /// It could not be asked.
    Unreachable,
    /// Nobody knows how to ask it.
    NoProbe,
}

impl ProbeResult {
    /// The text in the database and over HTTP.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "VALID",
            Self::Invalid => "INVALID",
            Self::Unexpected => "UNEXPECTED",
            Self::Unreachable => "UNREACHABLE",
            Self::NoProbe => "NO_PROBE",
        }
    }
}

impl FromStr for ProbeResult {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        [
            Self::Valid,
            Self::Invalid,
            Self::Unexpected,
            Self::Unreachable,
            Self::NoProbe,
        ]
        .into_iter()
        .find(|result| result.as_str() == s)
        .ok_or_else(|| invalid("no such result of a probe"))
    }
}

/// A secret of named fields. It cannot be printed and is wiped when dropped.
pub struct SecretFields(BTreeMap<String, Secret<String>>);

impl SecretFields {
    /// From its fields. Errors: INVALID_FIELD, which tells the field's name and nothing of its value.
    pub fn new(given: impl IntoIterator<Item = (String, Secret<String>)>) -> Result<Self> {
        let mut fields = BTreeMap::new();
        for (name, value) in given {
            check_field(&name, value.expose_secret())?;
            if fields.insert(name, value).is_some() {
                return Err(invalid("a field of the secret is given twice"));
            }
        }
        match fields.len() {
            0 => Err(invalid("the secret is missing: give its fields")),
            1..=MAX_FIELDS => Ok(Self(fields)),
            _ => Err(invalid("the secret has too many fields; at most 16")),
        }
    }

    /// Reads what `to_json` wrote. Errors: it is not that.
    pub fn from_json(json: &[u8]) -> std::result::Result<Self, serde_json::Error> {
        serde_json::from_slice(json).map(Self)
    }

    /// The one way to write it: an object with its names in order. Errors: INTERNAL.
    pub fn to_json(&self) -> Result<Secret<Vec<u8>>> {
        let fields = self.0.iter();
        let texts: BTreeMap<_, _> = fields.map(|(n, v)| (n, v.expose_secret())).collect();
        // No byte takes more than two, as there are no control characters: nothing is moved, and so left behind.
        let room = texts.iter().map(|(n, v)| 2 * (n.len() + v.len()) + 8);
        let mut json = Vec::with_capacity(2 + room.sum::<usize>());
        match serde_json::to_writer(&mut json, &texts) {
            Ok(()) => Ok(Secret::new(json)),
            Err(error) => {
                json.zeroize();
                Err(Error::internal(error))
            }
        }
    }

    /// The fields, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Secret<String>)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// One field.
    pub fn get(&self, name: &str) -> Option<&Secret<String>> {
        self.0.get(name)
    }

    /// Are they the same? Takes as long for every secret of one length.
    pub fn is_same(&self, other: &Self) -> Result<bool> {
        let (own, others) = (self.to_json()?, other.to_json()?);
        Ok(verify_slices_are_equal(own.expose_secret(), others.expose_secret()).is_ok())
    }
}

/// The end of a secret that people may see: four characters, two of one with fewer than 16, none of one with fewer than 8.
pub fn last_four(secret: &str) -> String {
    let length = secret.chars().count();
    let shown = match length {
        16.. => 4,
        8..16 => 2,
        _ => 0,
    };
    secret.chars().skip(length - shown).collect()
}

fn check_field(name: &str, value: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if !(1..=63).contains(&name.len()) || !name.bytes().all(plain) {
        return Err(invalid(
            "names of fields are 1 to 63 characters of a-z, 0-9 and _",
        ));
    }
    let wrong = |what: &str| Err(invalid(format!("field {name} of the secret {what}")));
    match value {
        "" => wrong("is empty"),
        v if v.len() > MAX_FIELD => wrong("is longer than 8192 bytes"),
        v if v.chars().any(char::is_control) => {
            wrong("has control characters; a line feed at its end often comes from a file")
        }
        v if v.trim() != v => wrong("begins or ends with blanks"),
        _ => Ok(()),
    }
}

/// A name of a credential: 1 to 100 characters, none of them a control character.
pub fn check_name(name: &str) -> Result<()> {
    let ok = (1..=100).contains(&name.chars().count())
        && !name.chars().any(char::is_control)
        && name.trim() == name;
    ok.then_some(()).ok_or_else(|| {
        invalid("name must be 1 to 100 characters without control characters, and without blanks at its ends")
    })
}

/// Whose it is and what for, for people.
impl fmt::Display for CredentialKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (provider, environment) = (&self.provider, self.environment.as_str());
        write!(f, "{provider}/{environment}/{}", self.name)
    }
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Reason::InvalidField, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(given: &[(&str, &str)]) -> Result<SecretFields> {
        let given = given.iter();
        SecretFields::new(given.map(|(n, v)| ((*n).to_owned(), Secret::new((*v).to_owned()))))
    }

    #[test]
    fn a_secret_has_one_spelling() {
        let one = fields(&[("b", "2\"\\é"), ("a", "1")]).expect("a secret");
        let json = one.to_json().expect("JSON");
        assert_eq!(
            json.expose_secret(),
            "{\"a\":\"1\",\"b\":\"2\\\"\\\\é\"}".as_bytes()
        );
        let again = SecretFields::from_json(json.expose_secret()).expect("fields");
        assert!(one.is_same(&again).expect("compared"));
        let other = fields(&[("a", "1"), ("b", "3")]).expect("a secret");
        assert!(!one.is_same(&other).expect("compared"));
    }

    #[test]
    fn what_cannot_be_a_secret_is_refused_without_a_word_of_it() {
        let long = "x".repeat(MAX_FIELD + 1);
        let huge = "x".repeat(64 << 10);
        for bad in [
            "",
            "planted\n",
            "planted\u{0}",
            " planted",
            "planted ",
            "planted\u{7f}",
            &long,
            &huge,
        ] {
            let error = fields(&[("api_key", bad)]).err().expect("refused");
            assert!(!error.message().contains("planted") && !error.message().contains("xxx"));
            assert!(error.message().contains("api_key"), "{error}");
        }
        assert!(fields(&[]).is_err());
        assert!(fields(&[("a", "1"), ("a", "2")]).is_err());
        assert!(fields(&[("A", "1")]).is_err());
        assert!(fields(&[("api_key", &"x".repeat(MAX_FIELD))]).is_ok());
    }

    // R-CRED-2
    #[test]
    fn little_is_shown_of_a_short_secret() {
        assert_eq!(last_four("0123456789abcdef"), "cdef");
        assert_eq!(last_four("0123456789abcde"), "de");
        assert_eq!(last_four("1234567"), "");
        assert_eq!(last_four("éééééééééééééééé"), "éééé");
    }
}
