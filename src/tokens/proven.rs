//! Signatures that were verified a moment ago.
//!
//! Whether these bytes are signed under that kid never changes, because a kid belongs to one public key for ever
//! (R-LIFE-1). So it is remembered, by the SHA-256 of the whole token, and a token that is shown again costs no second
//! verification. Everything that can change is looked at each time: the version's state, the times, revocation, what the
//! caller requires. Only signatures that did verify are remembered, so nobody fills the memory with forgeries.

use aws_lc_rs::digest;
use quick_cache::sync::Cache;

/// Tokens that are remembered; about 100 bytes each.
const REMEMBERED: usize = 20_000;

/// What was verified.
pub struct Proven(Cache<[u8; 32], ()>);

impl Proven {
    pub fn new() -> Self {
        Self(Cache::new(REMEMBERED))
    }

    /// True when `verify` says so, now or earlier, of these very bytes.
    pub fn verifies(
        &self,
        signing_input: &str,
        signature: &[u8],
        verify: impl FnOnce() -> bool,
    ) -> bool {
        let token = name(signing_input, signature);
        if self.0.get(&token).is_some() {
            return true;
        }
        let is_good = verify();
        if is_good {
            self.0.insert(token, ());
        }
        is_good
    }
}

/// The signing input names the kid and has one dot, so no two tokens share an encoding.
fn name(signing_input: &str, signature: &[u8]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(signing_input.as_bytes());
    context.update(b".");
    context.update(signature);
    let mut name = [0; 32];
    name.copy_from_slice(context.finish().as_ref());
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_did_verify_is_remembered_and_of_the_very_same_bytes() {
        let proven = Proven::new();
        assert!(!proven.verifies("a.b", b"bad", || false));
        assert!(!proven.verifies("a.b", b"bad", || false));
        assert!(proven.verifies("a.b", b"good", || true));
        assert!(proven.verifies("a.b", b"good", || false), "it is known");
        for (input, signature) in [("a.c", &b"good"[..]), ("a.b", b"goo"), ("a.b.g", b"ood")] {
            assert!(!proven.verifies(input, signature, || false), "{input}");
        }
    }
}
