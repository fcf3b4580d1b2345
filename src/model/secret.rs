//! Secrets are types: they cannot be printed and are wiped when dropped.

use std::fmt;

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};
use zeroize::Zeroize;

/// A secret value. It has no `Debug`, no `Display`, no `Serialize` and no `Clone`; reading it says so in
/// the name of the call.
pub struct Secret<T: Zeroize>(T);

/// A PIN or password.
pub type SecretString = Secret<String>;
/// 256 bits of key material.
pub type DataKey = Secret<[u8; 32]>;

impl<T: Zeroize> Secret<T> {
    /// Takes the value over.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself. Keep the borrow short.
    pub const fn expose_secret(&self) -> &T {
        &self.0
    }
}

impl Secret<Vec<u8>> {
    /// The same bytes for an answer: wiped as soon as the last who holds them lets go. What a connection copies is out of
    /// reach.
    pub fn into_bytes(self) -> Bytes {
        struct Owner(Secret<Vec<u8>>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                self.0.expose_secret()
            }
        }
        Bytes::from_owner(Owner(self))
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// So that a secret may stand in a configuration section; there is no way back.
impl<'de> Deserialize<'de> for SecretString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // `deserialize_string` would quote a value of another type in its error.
        deserializer.deserialize_any(Text).map(Self)
    }
}

struct Text;

/// What is no text is refused unseen: a PIN without its quotes is a number.
macro_rules! unseen {
    ($($visit:ident($value:ty),)*) => {
        $(fn $visit<E: de::Error>(self, _: $value) -> Result<String, E> {
            Err(E::custom("a secret must be a text in quotes; its value is not shown"))
        })*
    };
}

impl<'de> Visitor<'de> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text in quotes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<String, E> {
        Ok(text)
    }

    unseen! {
        visit_bool(bool),
        visit_i64(i64),
        visit_i128(i128),
        visit_u64(u64),
        visit_u128(u128),
        visit_f64(f64),
        visit_bytes(&[u8]),
    }
}
