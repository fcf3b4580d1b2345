//! The forms in which a secret could be found by somebody who looks for it.

use std::{collections::HashMap, fmt::Write};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};

/// Half of a long secret is looked for, so that one that was cut is found too.
const LONG: usize = 32;

/// Everything to look for: raw, base64 in both alphabets and all three alignments, hex, URL-encoded, and as Rust prints
/// bytes.
pub fn needles(secret: &[u8]) -> Vec<Vec<u8>> {
    let halves = secret.split_at(secret.len() / 2);
    let parts = match secret.len() >= LONG {
        true => vec![halves.0, halves.1],
        false => vec![secret],
    };
    parts.into_iter().flat_map(forms).collect()
}

/// Secrets by name, ready to be looked for in one pass: what is searched has megabytes, and this build is not optimised.
#[derive(Default)]
pub struct Canaries {
    /// By their first four bytes.
    needles: HashMap<[u8; 4], Vec<(String, Vec<u8>)>>,
}

impl Canaries {
    /// Adds all forms of a secret. Short ones would be found by chance.
    pub fn plant(&mut self, name: &str, secret: &[u8]) {
        assert!(secret.len() >= 16, "{name} is too short to look for");
        for needle in needles(secret) {
            let first = *needle.first_chunk().expect("a long form");
            let alike = self.needles.entry(first).or_default();
            alike.push((name.to_owned(), needle));
        }
    }

    /// The name of one that is in there. Neither the secret nor the place is shown: both would be in the test's output.
    pub fn find(&self, haystack: &[u8]) -> Option<&str> {
        let mut begins = vec![false; 1 << 16];
        let pair = |bytes: &[u8]| usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
        for first in self.needles.keys() {
            begins[pair(first)] = true;
        }
        for at in 0..haystack.len().saturating_sub(3) {
            let rest = &haystack[at..];
            if !begins[pair(rest)] {
                continue;
            }
            let alike = rest.first_chunk().and_then(|first| self.needles.get(first));
            let mut alike = alike.into_iter().flatten();
            if let Some((name, _)) = alike.find(|(_, needle)| rest.starts_with(needle)) {
                return Some(name);
            }
        }
        None
    }
}

/// Is the text in there?
pub fn holds(haystack: &[u8], text: &[u8]) -> bool {
    haystack.windows(text.len()).any(|window| window == text)
}

fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let lower = each(secret, |text, byte| write!(text, "{byte:02x}"));
    let upper = lower.to_uppercase();
    let percent = |escape_all: bool| {
        each(secret, |text, byte| match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' | b'.' if !escape_all => {
                write!(text, "{}", char::from(byte))
            }
            _ => write!(text, "%{byte:02X}"),
        })
    };
    let numbers = each(secret, |text, byte| write!(text, "{byte}, "));
    let escaped = secret.escape_ascii().to_string();
    let mut texts = vec![
        lower,
        upper,
        percent(false),
        percent(true),
        percent(true).to_lowercase(),
        numbers.trim_end_matches(", ").to_owned(),
        escaped,
    ];
    texts.extend(base64(secret));
    let mut forms: Vec<_> = texts.into_iter().map(String::into_bytes).collect();
    forms.push(secret.to_vec());
    forms
}

/// In a longer text a secret begins at any of three places of a group; what a neighbour touches is left out.
fn base64(secret: &[u8]) -> Vec<String> {
    let mut texts = Vec::new();
    for before in 0..3 {
        let shifted = [&[0; 2][..before], secret].concat();
        for alphabet in [BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD] {
            let text = alphabet.encode(&shifted);
            // The first characters hold bits of the zeros, the last one lacks bits of what follows.
            let begin = [0, 2, 3][before];
            let whole = shifted.len().is_multiple_of(3);
            let end = text.len() - usize::from(!whole);
            texts.push(text[begin..end].to_owned());
        }
    }
    texts
}

fn each(secret: &[u8], form: impl Fn(&mut String, u8) -> std::fmt::Result) -> String {
    let mut text = String::new();
    for byte in secret {
        form(&mut text, *byte).expect("a String takes everything");
    }
    text
}

/// A search that finds nothing anywhere would prove nothing.
#[test]
fn a_secret_is_found_in_every_form_and_place() {
    let secret = b"cvk_Zq7/+e3?>~ 0f1e2d3c4b5a69788796a5b4c3d2e1f";
    let other = b"cvk_Yq7/+e3?>~ 1f1e2d3c4b5a79788796a5b4c3d2e1g";
    let mut canaries = Canaries::default();
    canaries.plant("it", secret);
    let texts = |secret: &[u8]| {
        let mut texts = forms(secret);
        for before in ["", "a", "ab", "abc"] {
            for after in ["", "y", "yz"] {
                let text = [before.as_bytes(), secret, after.as_bytes()].concat();
                texts.push(BASE64_STANDARD_NO_PAD.encode(&text).into());
                texts.push(BASE64_URL_SAFE_NO_PAD.encode(&text).into());
            }
        }
        texts
    };
    for text in texts(secret) {
        let place = [b"\"data\":\"", &text[..], b"\",\n"].concat();
        assert_eq!(canaries.find(&place), Some("it"), "{}", text.escape_ascii());
        // What was cut off is found by its other half.
        assert_eq!(canaries.find(&place[..place.len() - 8]), Some("it"));
    }
    for text in texts(other) {
        assert_eq!(canaries.find(&text), None, "{}", text.escape_ascii());
    }
    assert!(holds(b"aaab", b"aab") && !holds(b"aaab", b"abb"));
}
