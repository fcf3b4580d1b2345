//! Fernet tokens (the Fernet specification, version 0x80): read, never made.
//!
//! A token is base64url of version, time, IV, AES-128-CBC ciphertext and an HMAC-SHA-256 over all of that. The MAC is
//! checked first and in constant time, so nothing is decrypted that its key did not write. The time is not: an old row
//! is as good as a new one.

use aws_lc_rs::{
    cipher::{AES_128, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey},
    hmac,
    iv::FixedLength,
};
use base64::{
    alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    prelude::Engine as _,
};
use zeroize::Zeroizing;

use crate::model::Secret;

const VERSION: u8 = 0x80;
const HEAD: usize = 1 + 8;
const IV: usize = 16;
const MAC: usize = 32;
const BLOCK: usize = 16;

/// Python writes the padding; others leave it out.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One key: 128 bits that sign, 128 bits that encrypt.
pub struct Key {
    signing: hmac::Key,
    encryption: Secret<[u8; 16]>,
}

/// The old keys, the likeliest first.
pub struct Keys(Vec<Key>);

impl Key {
    /// From 32 bytes in base64url. None: it is not that.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(BASE64URL.decode(text.trim()).ok()?);
        let (signing, encryption) = bytes.split_at_checked(16)?;
        Some(Self {
            signing: hmac::Key::new(hmac::HMAC_SHA256, signing),
            encryption: Secret::new(encryption.try_into().ok()?),
        })
    }

    /// The plaintext of a token's bytes. None: another key wrote it, or it was changed.
    fn open(&self, token: &[u8]) -> Option<Secret<Vec<u8>>> {
        let (signed, mac) = token.split_at_checked(token.len().checked_sub(MAC)?)?;
        hmac::verify(&self.signing, signed, mac).ok()?;
        let (head, rest) = signed.split_at_checked(HEAD)?;
        let (iv, ciphertext) = rest.split_at_checked(IV)?;
        let whole = !ciphertext.is_empty() && ciphertext.len().is_multiple_of(BLOCK);
        if head.first() != Some(&VERSION) || !whole {
            return None;
        }
        let iv: [u8; IV] = iv.try_into().ok()?;
        let key = UnboundCipherKey::new(&AES_128, self.encryption.expose_secret()).ok()?;
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(key).ok()?;
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        let context = DecryptionContext::Iv128(FixedLength::from(iv));
        let plaintext = key.decrypt(&mut buffer, context).ok()?;
        Some(Secret::new(plaintext.to_vec()))
    }
}

impl Keys {
    /// From texts with one key per line. Errors: the number of the line that is no key; 0 when there is none at all.
    pub fn parse(text: &str) -> Result<Self, usize> {
        let lines = (1..).zip(text.lines());
        let keys = lines.filter(|(_, line)| !line.trim().is_empty());
        let keys: Result<Vec<_>, usize> =
            keys.map(|(at, line)| Key::parse(line).ok_or(at)).collect();
        match keys? {
            none if none.is_empty() => Err(0),
            keys => Ok(Self(keys)),
        }
    }

    /// The plaintext of a token. None: none of the keys wrote it, or it was changed, or is no token.
    pub fn open(&self, token: &str) -> Option<Secret<Vec<u8>>> {
        let token = BASE64URL.decode(token.trim()).ok()?;
        self.0.iter().find_map(|key| key.open(&token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the specification: verify.json.
    const SECRET: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";
    const TOKEN: &str = "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==";
    const OTHER: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    fn opened(keys: &str, token: &str) -> Option<Vec<u8>> {
        let keys = Keys::parse(keys).unwrap();
        keys.open(token).map(|text| text.expose_secret().clone())
    }

    #[test]
    fn the_specifications_token_opens() {
        assert_eq!(opened(SECRET, TOKEN), Some(b"hello".to_vec()));
        let bare = TOKEN.trim_end_matches('=');
        assert_eq!(opened(SECRET, bare), Some(b"hello".to_vec()));
        let several = format!("{OTHER}\n\n{SECRET}\n");
        assert_eq!(opened(&several, TOKEN), Some(b"hello".to_vec()));
    }

    #[test]
    fn nothing_else_opens() {
        assert_eq!(opened(OTHER, TOKEN), None);
        let bytes = BASE64URL.decode(TOKEN).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let token = BASE64URL.encode(&changed);
            assert_eq!(opened(SECRET, &token), None, "byte {at}");
        }
        for length in 0..bytes.len() {
            let token = BASE64URL.encode(&bytes[..length]);
            assert_eq!(opened(SECRET, &token), None, "length {length}");
        }
        for token in ["", "gAAAA", "not base64 at all!", "\u{e9}"] {
            assert_eq!(opened(SECRET, token), None, "{token}");
        }
    }

    /// What the right key has signed and is still no token.
    #[test]
    fn a_right_mac_does_not_make_a_token() {
        let key = BASE64URL.decode(SECRET).unwrap();
        let signing = hmac::Key::new(hmac::HMAC_SHA256, &key[..16]);
        let head = |version: u8| [&[version][..], &[0; 8], &[0; 16]].concat();
        let good = BASE64URL.decode(TOKEN).unwrap();
        let signed = &good[..good.len() - MAC];
        for bytes in [
            Vec::new(),
            vec![VERSION],
            head(VERSION),
            [head(VERSION), vec![0; 15]].concat(),
            // No PKCS #7 padding comes out of it.
            [head(VERSION), vec![0; 16]].concat(),
            [&[0x81], &signed[1..]].concat(),
        ] {
            let mac = hmac::sign(&signing, &bytes);
            let token = BASE64URL.encode([&bytes, mac.as_ref()].concat());
            assert_eq!(opened(SECRET, &token), None, "{bytes:?}");
        }
    }

    #[test]
    fn what_is_no_key_is_named_by_its_line() {
        for (text, line) in [
            ("", 0),
            ("\n\n", 0),
            ("short", 1),
            (&format!("{SECRET}\nAAAA\n"), 2),
            (&format!("{SECRET}A"), 1),
            (&format!("{}=", "A".repeat(44)), 1),
        ] {
            assert_eq!(Keys::parse(text).err(), Some(line), "{text}");
        }
    }
}
