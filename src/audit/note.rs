//! Signed notes (c2sp.org/signed-note): a text, an empty line, and lines with signatures. Checkpoints of the audit log and
//! proofs of destruction are such notes, told apart by their first line; the key that signs them is the checkpoint key.

use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey},
};
use base64::{Engine, prelude::BASE64_STANDARD};

use super::hex;
use crate::model::{Algorithm, PublicKey, SignInput, public_key};

const SIGNATURE: &str = "\u{2014} ";
pub(super) const ED25519: u8 = 0x01;

/// One piece of a file: what may be a note.
#[derive(Debug)]
pub struct Piece<'a> {
    /// Number of its first line.
    pub line: usize,
    /// The text that signatures are over.
    pub text: String,
    /// Signature lines.
    signatures: Vec<&'a str>,
}

/// What the signatures of a piece are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every signature that claims to be by a known key is good, and there is one.
    Good,
    /// None claims to be by a known key.
    Unsigned,
    /// One that claims to be by a known key is not.
    Bad,
}

/// Can this algorithm sign notes? ECDSA of the note format is with SHA-256.
pub const fn signs_notes(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::Es256 | Algorithm::EdDsa)
}

/// SHA-256 of a text, in hex.
pub fn text_digest(text: &str) -> String {
    hex(digest(&SHA256, text.as_bytes()).as_ref())
}

/// The signed note. `signature` is over `text`, in its JOSE form; `issuer` says which installation signs.
pub fn signed(issuer: &str, text: &str, key: &PublicKey, signature: &[u8]) -> String {
    let name = key_name(issuer);
    let signature = match key {
        PublicKey::Ec { .. } => public_key::ecdsa_der(signature),
        PublicKey::Ed25519(_) | PublicKey::Rsa { .. } => signature.to_vec(),
    };
    let line = BASE64_STANDARD.encode([&key_id(&name, key)[..], &signature].concat());
    format!("{text}\n{SIGNATURE}{name} {line}\n")
}

/// The pieces of a file, parted by empty lines. What a crash left of a note is a piece too.
pub fn pieces(file: &str) -> Vec<Piece<'_>> {
    let mut pieces: Vec<Piece<'_>> = Vec::new();
    let mut open = false;
    for (i, line) in file.split('\n').enumerate() {
        match (line, pieces.last_mut()) {
            ("", _) => open = false,
            (line, Some(piece)) if line.starts_with(SIGNATURE) => piece.signatures.push(line),
            (line, Some(piece)) if open => piece.text.push_str(&format!("{line}\n")),
            (line, _) => {
                pieces.push(Piece {
                    line: i + 1,
                    text: format!("{line}\n"),
                    signatures: Vec::new(),
                });
                open = true;
            }
        }
    }
    pieces
}

impl Piece<'_> {
    /// Is there a line that looks like a signature?
    pub const fn is_signed(&self) -> bool {
        !self.signatures.is_empty()
    }

    /// Judges the signatures that `keys` of the installation `issuer` made.
    pub fn judge(&self, issuer: &str, keys: &[PublicKey]) -> Verdict {
        let name = key_name(issuer);
        let mut known = self.signatures.iter().filter_map(|line| {
            let (signer, encoded) = line.strip_prefix(SIGNATURE)?.split_once(' ')?;
            let bytes = BASE64_STANDARD.decode(encoded).ok()?;
            let (id, signature) = bytes.split_at_checked(4)?;
            let key = keys.iter().find(|key| key_id(&name, key) == *id)?;
            (signer == name).then(|| verifies(key, &self.text, signature))
        });
        match (known.next(), known.all(|good| good)) {
            (None, _) => Verdict::Unsigned,
            (Some(true), true) => Verdict::Good,
            (Some(_), _) => Verdict::Bad,
        }
    }
}

/// Name of the key in the signature line.
fn key_name(issuer: &str) -> String {
    let host = issuer.trim_start_matches("https://");
    format!("{}/audit", host.replace('+', "%2B"))
}

pub(super) fn key_id(name: &str, key: &PublicKey) -> [u8; 4] {
    let hashed = match key {
        PublicKey::Ed25519(bytes) => [name.as_bytes(), b"\n", &[ED25519], bytes].concat(),
        PublicKey::Ec { .. } | PublicKey::Rsa { .. } => key.spki_der(),
    };
    let mut id = [0; 4];
    id.copy_from_slice(&digest(&SHA256, &hashed).as_ref()[..4]);
    id
}

fn verifies(key: &PublicKey, text: &str, signature: &[u8]) -> bool {
    match key {
        PublicKey::Ed25519(_) => key
            .verifier(Algorithm::EdDsa)
            .is_ok_and(|v| v.verifies(SignInput::Message(text.as_bytes()), signature)),
        PublicKey::Ec { .. } => ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.spki_der())
            .is_ok_and(|parsed| parsed.verify_sig(text.as_bytes(), signature).is_ok()),
        PublicKey::Rsa { .. } => false,
    }
}
