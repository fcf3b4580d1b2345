//! RFC 7512 URIs: what an operator pastes to adopt a key, and how we name a key on a token.
//!
//! Strict on purpose. A URI that carries a PIN is refused before it can reach a log or a row. An attribute
//! we do not know narrows the choice in a way we cannot honour, so it is refused too, vendor attributes
//! included; only the scheme's own `token`, `manufacturer`, `serial`, `model`, `object`, `id` and `type`
//! are understood. Errors never quote a value.

use std::fmt::Write;

use thiserror::Error;

/// Which objects a URI names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyUri {
    /// Label of the token.
    pub token: Option<String>,
    /// Maker of the token.
    pub manufacturer: Option<String>,
    /// Serial number of the token.
    pub serial: Option<String>,
    /// Model of the token.
    pub model: Option<String>,
    /// CKA_LABEL.
    pub object: Option<String>,
    /// CKA_ID.
    pub id: Option<Vec<u8>>,
    /// CKA_CLASS.
    pub class: Option<Class>,
}

/// Kinds of objects we handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `type=private`.
    Private,
    /// `type=public`.
    Public,
    /// `type=secret-key`.
    Secret,
}

/// What is wrong with a URI.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UriError {
    /// Another scheme.
    #[error("the URI must begin with pkcs11:")]
    Scheme,
    /// A PIN, or where to find one.
    #[error("the URI must not carry {0}; the PIN belongs into the backend's configuration")]
    Pin(&'static str),
    /// `?…`
    #[error("query attributes are not supported in a key's URI")]
    Query,
    /// Not `name=value`.
    #[error("every attribute must be name=value")]
    Malformed,
    /// Not understood, so it cannot be honoured.
    #[error("attribute number {0} of the URI is not supported")]
    Unknown(usize),
    /// Given twice.
    #[error("attribute {0} is given twice")]
    Duplicate(&'static str),
    /// A character that must be percent-encoded, or a broken encoding.
    #[error("attribute {0} has a character that must be percent-encoded, or a broken encoding")]
    Encoding(&'static str),
    /// Not UTF-8, or control characters.
    #[error("attribute {0} must be UTF-8 text without control characters")]
    Text(&'static str),
    /// Not a class that we handle.
    #[error("type must be private, public or secret-key")]
    Type,
    /// Nothing to find an object by.
    #[error("the URI must name the key by id or object")]
    Unspecific,
}

const NAMES: [&str; 7] = [
    "token",
    "manufacturer",
    "serial",
    "model",
    "object",
    "id",
    "type",
];

impl KeyUri {
    /// Parses a URI that names a key.
    pub fn parse(uri: &str) -> Result<Self, UriError> {
        let (scheme, rest) = uri.split_once(':').ok_or(UriError::Scheme)?;
        if !scheme.eq_ignore_ascii_case("pkcs11") {
            return Err(UriError::Scheme);
        }
        for pin in ["pin-value", "pin-source"] {
            if rest.to_ascii_lowercase().contains(pin) {
                return Err(UriError::Pin(pin));
            }
        }
        if rest.contains(['?', '#']) {
            return Err(UriError::Query);
        }
        let mut parsed = Self::default();
        for (index, attribute) in rest.split(';').enumerate() {
            let (name, value) = attribute.split_once('=').ok_or(UriError::Malformed)?;
            let name = *NAMES
                .iter()
                .find(|known| **known == name)
                .ok_or(UriError::Unknown(index + 1))?;
            parsed.set(name, decode(name, value)?)?;
        }
        if parsed.id.as_ref().is_none_or(Vec::is_empty) && parsed.object.is_none() {
            return Err(UriError::Unspecific);
        }
        Ok(parsed)
    }

    fn set(&mut self, name: &'static str, value: Vec<u8>) -> Result<(), UriError> {
        let fresh = match name {
            "id" => self.id.replace(value).is_none(),
            "type" => {
                let class = Class::parse(&value).ok_or(UriError::Type)?;
                self.class.replace(class).is_none()
            }
            text_name => {
                let text = String::from_utf8(value)
                    .ok()
                    .filter(|text| !text.is_empty() && !text.chars().any(char::is_control))
                    .ok_or(UriError::Text(name))?;
                let field = match text_name {
                    "token" => &mut self.token,
                    "manufacturer" => &mut self.manufacturer,
                    "serial" => &mut self.serial,
                    "model" => &mut self.model,
                    _object => &mut self.object,
                };
                field.replace(text).is_none()
            }
        };
        fresh.then_some(()).ok_or(UriError::Duplicate(name))
    }

    /// The canonical form: fixed order, every byte of the id encoded.
    pub fn canonical(&self) -> String {
        let mut uri = String::from("pkcs11:");
        let mut put = |name: &str, value: &[u8], keep: fn(u8) -> bool| {
            if !uri.ends_with(':') {
                uri.push(';');
            }
            uri.push_str(name);
            uri.push('=');
            for byte in value {
                if keep(*byte) {
                    uri.push(char::from(*byte));
                } else {
                    let _ = write!(uri, "%{byte:02X}");
                }
            }
        };
        let texts = [
            ("token", &self.token),
            ("manufacturer", &self.manufacturer),
            ("serial", &self.serial),
            ("model", &self.model),
            ("object", &self.object),
        ];
        for (name, value) in texts {
            if let Some(value) = value {
                put(name, value.as_bytes(), is_unreserved);
            }
        }
        if let Some(id) = &self.id {
            put("id", id, |_| false);
        }
        if let Some(class) = self.class {
            put("type", class.as_str().as_bytes(), is_unreserved);
        }
        uri
    }
}

impl Class {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Public => "public",
            Self::Secret => "secret-key",
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        [Self::Private, Self::Public, Self::Secret]
            .into_iter()
            .find(|class| class.as_str().as_bytes() == text)
    }
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// pk11-pchar of RFC 7512: unreserved characters and `: [ ] @ ! $ ' ( ) * + , = &`.
const fn is_allowed(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b':' | b'['
                | b']'
                | b'@'
                | b'!'
                | b'$'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b'='
                | b'&'
        )
}

fn decode(name: &'static str, text: &str) -> Result<Vec<u8>, UriError> {
    let bad = || UriError::Encoding(name);
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
            let (Some(high), Some(low)) = (digit(), digit()) else {
                return Err(bad());
            };
            out.push((high << 4 | low) as u8);
        } else if is_allowed(byte) {
            out.push(byte);
        } else {
            return Err(bad());
        }
    }
    Ok(out)
}
