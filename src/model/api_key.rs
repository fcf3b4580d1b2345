//! API keys: their text, and what a row knows of one. The row holds a keyed hash, never the secret (R-OAUTH-3).
//!
//! The text is `cvk_<id>_<secret>_<checksum>`: the id without hyphens (32 hex digits), 256 random bits in base62
//! (43 characters), and a CRC-32 of all before it in base62 (6 characters). The fixed form lets scanners find leaked keys,
//! and the checksum tells them, and us, a mistyped one without asking the database. The checksum is no secret and proves
//! nothing.

use std::{str::FromStr, time::Duration};

use aws_lc_rs::rand;
use zeroize::Zeroizing;

use super::{ApiKeyId, ClientId, PrincipalId, Scopes, Secret, TenantName, Timestamp};
use crate::error::{Error, Reason, Result};

/// What every key begins with.
pub const API_KEY_PREFIX: &str = "cvk_";
/// Base62 digits that hold 256 bits.
const SECRET_DIGITS: usize = 43;
/// Base62 digits that hold 32 bits.
const CHECKSUM_DIGITS: usize = 6;
const ID_DIGITS: usize = 32;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// An API key without its secret.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// Its id: the visible part of the text, and the `client_id` of a key without a client.
    pub id: ApiKeyId,
    /// Tenant of the owner.
    pub tenant: TenantName,
    /// Who it acts as.
    pub owner: PrincipalId,
    /// The client whose secret it is.
    pub client: Option<ClientId>,
    /// What people call it.
    pub name: String,
    /// What it may use, as far as the owner holds it.
    pub scopes: Scopes,
    /// Whether it authenticates; not past `expires_at`, whatever this says.
    pub state: ApiKeyState,
    /// What the secret is checked against.
    pub hash: ApiKeyHash,
    /// Last four characters of the secret.
    pub last_four: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// How long it was made to last.
    pub term: Duration,
    /// About when it was last used.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked or found expired.
    pub ended_at: Option<Timestamp>,
    /// Who revoked it.
    pub ended_by: Option<PrincipalId>,
    /// Why.
    pub end_reason: String,
    /// The key before it.
    pub replaces: Option<ApiKeyId>,
    /// The key after it.
    pub replaced_by: Option<ApiKeyId>,
}

/// A keyed hash of a secret. No equality: it is compared in constant time where the pepper is.
#[derive(Clone, Debug)]
pub struct ApiKeyHash {
    /// HMAC-SHA-256, 32 bytes.
    pub value: Vec<u8>,
    /// How it was made; `hmac-sha256-v1`.
    pub scheme: String,
    /// Version of the pepper key.
    pub pepper: super::Kid,
}

/// Whether a key authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApiKeyState {
    /// Until it expires.
    Active,
    /// Its time is over.
    Expired,
    /// Somebody ended it.
    Revoked,
}

/// The text of a key, as somebody shows it or as it is shown once.
pub struct ApiKeyText {
    id: ApiKeyId,
    text: Secret<String>,
}

impl ApiKey {
    /// May it authenticate at `now`?
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.state == ApiKeyState::Active && now < self.expires_at
    }

    /// What people see of the text: `cvk_` and the first 12 digits of the id, which are its time.
    pub fn prefix(&self) -> String {
        let id = self.id.simple();
        format!("{API_KEY_PREFIX}{}", id.get(..12).unwrap_or_default())
    }
}

impl ApiKeyText {
    /// A new key. Errors: INTERNAL when the system has no randomness.
    pub fn generate(id: ApiKeyId) -> Result<Self> {
        let mut secret = Zeroizing::new([0; 32]);
        rand::fill(&mut *secret).map_err(|_| Error::internal("no randomness"))?;
        let mut text = format!("{API_KEY_PREFIX}{}_", id.simple());
        text.reserve(SECRET_DIGITS + 1 + CHECKSUM_DIGITS);
        text.push_str(&base62(&secret));
        let checksum = checksum(&text);
        text.push('_');
        text.push_str(&checksum);
        let text = Secret::new(text);
        Ok(Self { id, text })
    }

    /// Reads the text of a key. Errors: UNKNOWN_PRINCIPAL for everything that is none; what is wrong with it is not said.
    pub fn parse(text: Secret<String>) -> Result<Self> {
        match id_of(text.expose_secret()) {
            Some(id) => Ok(Self { id, text }),
            None => Err(Error::new(
                Reason::UnknownPrincipal,
                "the API key is not valid",
            )),
        }
    }

    /// The id that it names.
    pub const fn id(&self) -> ApiKeyId {
        self.id
    }

    /// The whole text. Show it once, to whom it was made for.
    pub const fn expose_secret(&self) -> &String {
        self.text.expose_secret()
    }

    /// The part that only its owner knows: 43 characters.
    pub fn expose_secret_part(&self) -> &str {
        let text = self.text.expose_secret();
        let begin = API_KEY_PREFIX.len() + ID_DIGITS + 1;
        text.get(begin..begin + SECRET_DIGITS).unwrap_or_default()
    }

    /// The last four characters of the secret part.
    pub fn last_four(&self) -> String {
        let secret = self.expose_secret_part();
        secret
            .get(SECRET_DIGITS - 4..)
            .unwrap_or_default()
            .to_owned()
    }
}

impl ApiKeyState {
    /// The text in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Expired => "EXPIRED",
            Self::Revoked => "REVOKED",
        }
    }
}

impl FromStr for ApiKeyState {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        [Self::Active, Self::Expired, Self::Revoked]
            .into_iter()
            .find(|state| state.as_str() == s)
            .ok_or_else(|| {
                let states = "state must be ACTIVE, EXPIRED or REVOKED";
                Error::new(Reason::InvalidField, states)
            })
    }
}

/// The id of a well-formed key.
fn id_of(text: &str) -> Option<ApiKeyId> {
    let (body, given) = text.rsplit_once('_')?;
    let (id, secret) = body.strip_prefix(API_KEY_PREFIX)?.split_once('_')?;
    let is_base62 = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric());
    let well_formed = id.len() == ID_DIGITS
        && secret.len() == SECRET_DIGITS
        && is_base62(secret)
        && given == checksum(body);
    well_formed.then(|| ApiKeyId::from_simple(id))?
}

/// 256 bits, most significant digit first.
fn base62(bytes: &[u8; 32]) -> Zeroizing<String> {
    let mut number = Zeroizing::new(*bytes);
    let mut digits = Zeroizing::new([0; SECRET_DIGITS]);
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0;
        for byte in number.iter_mut() {
            let value = remainder << 8 | u32::from(*byte);
            *byte = (value / 62) as u8;
            remainder = value % 62;
        }
        *digit = DIGITS[remainder as usize];
    }
    Zeroizing::new(digits.iter().map(|digit| char::from(*digit)).collect())
}

/// CRC-32 (ISO-HDLC) in base62.
fn checksum(text: &str) -> String {
    let mut crc = crc32fast::hash(text.as_bytes());
    let mut digits = [0; CHECKSUM_DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(crc % 62) as usize];
        crc /= 62;
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<ApiKeyId> {
        ApiKeyText::parse(Secret::new(text.to_owned()))
            .ok()
            .map(|key| key.id())
    }

    // R-OAUTH-3
    #[test]
    fn a_key_has_the_form_that_scanners_look_for() {
        let id = ApiKeyId::random();
        let key = ApiKeyText::generate(id).expect("a key");
        let text = key.expose_secret();
        assert_eq!(text.len(), 4 + 32 + 1 + 43 + 1 + 6);
        assert_eq!(parsed(text), Some(id));
        assert!(text.contains(&format!("{}_", key.last_four())));
        assert_eq!(key.expose_secret_part().len(), 43);
        assert!(text.contains(&format!("_{}_", key.expose_secret_part())));
    }

    #[test]
    fn two_keys_differ_in_every_part_that_is_random() {
        let id = ApiKeyId::random();
        let one = ApiKeyText::generate(id).expect("a key");
        let other = ApiKeyText::generate(id).expect("a key");
        assert_ne!(one.expose_secret()[37..], other.expose_secret()[37..]);
    }

    #[test]
    fn any_changed_or_missing_character_is_noticed() {
        let key = ApiKeyText::generate(ApiKeyId::random()).expect("a key");
        let text = key.expose_secret();
        for i in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[i] = if changed[i] == b'x' { b'y' } else { b'x' };
            let changed = String::from_utf8(changed).expect("text");
            assert_eq!(parsed(&changed), None, "{i}");
            assert_eq!(parsed(&text[..i]), None, "{i}");
        }
        assert_eq!(parsed(&format!("{text} ")), None);
        assert_eq!(parsed(&text.to_uppercase()), None);
    }

    #[test]
    fn base62_of_the_extremes() {
        assert_eq!(*base62(&[0; 32]), "0".repeat(43));
        assert_eq!(
            *base62(&[0xff; 32]),
            "yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp1"
        );
    }
}
