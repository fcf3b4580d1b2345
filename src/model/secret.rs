//! Secrets are types: they cannot be printed and are wiped when dropped.

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

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// So that a secret may stand in a configuration section; there is no way back.
impl<'de, T: Zeroize + serde::Deserialize<'de>> serde::Deserialize<'de> for Secret<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self)
    }
}
