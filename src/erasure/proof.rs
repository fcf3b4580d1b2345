//! The proof that every key of a tenant is destroyed: a signed note (`audit::note`) that names them, who asked, who
//! approved, and where the audit log stood. It can be checked by anybody who has the public key, without the daemon.
//!
//! The text is lines of words. After the head comes the list, one line for each key and one for each of its versions, and
//! the head has the SHA-256 of the list. A list of more than `MAX_LIST` bytes would not fit into an answer: the head says
//! that it is omitted, and the rows of the destruction in the audit log name the same versions.
//!
//! Of each version it says what the daemon knows: `destroyed`, `deletion scheduled for` a time (a device that destroys
//! later, such as AWS KMS), `was already gone` with the device's words, or that an older release did not record it.

use crate::{
    audit::{
        Head, hex,
        note::{self, Verdict},
    },
    model::{PublicKey, TenantDestruction, Timestamp},
    store::NamedVersion,
};

/// What a proof says.
pub struct Statement<'a> {
    /// Which installation.
    pub issuer: &'a str,
    /// The destruction, DESTROYED.
    pub destruction: &'a TenantDestruction,
    /// Name of who asked.
    pub requester: &'a str,
    /// Name of who approved.
    pub approver: &'a str,
    /// Every version of every key of the tenant, key by key.
    pub versions: &'a [NamedVersion],
    /// The last row of the admin stream.
    pub head: &'a Head,
}

/// The longest list in a proof, in bytes: clients take answers of 4 MiB.
pub const MAX_LIST: usize = 3 << 20;

const ORIGIN: &str = "claviger erasure ";
const LIST: &str = "list ";
const OMITTED: &str = " omitted";

impl Statement<'_> {
    /// The text of the note. None when something in it would be mistaken for something else.
    pub fn text(&self) -> Option<String> {
        let d = self.destruction;
        let list = self.list();
        let keys = list.iter().filter(|line| line.starts_with("key ")).count();
        let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
        let length: usize = list.iter().map(|line| line.len() + 1).sum();
        let omitted = if length > MAX_LIST { OMITTED } else { "" };
        let mut lines = vec![
            format!("{ORIGIN}{}", self.issuer),
            format!("tenant {}", d.tenant),
            format!("destruction {}", d.id),
            // As JSON: the requester's own words.
            format!("reason {}", serde_json::Value::from(d.reason.as_str())),
            format!(
                "requested {} by {} {}",
                d.requested_at, d.requester, self.requester
            ),
            format!(
                "approved {} by {} {}",
                time(d.approved_at)?,
                d.approver?,
                self.approver
            ),
            format!("begun {}", time(d.begun_at)?),
            format!("destroyed {}", time(d.ended_at)?),
            format!("admin {} {}", self.head.seq, hex(&self.head.hash)),
            format!("keys {keys}"),
            format!("versions {}", self.versions.len()),
            format!("{LIST}{}{omitted}", digest(&list)),
        ];
        if omitted.is_empty() {
            lines.extend(list);
        }
        let plain = |line: &String| !line.contains(char::is_control);
        lines.iter().all(plain).then(|| joined(&lines))
    }

    fn list(&self) -> Vec<String> {
        let mut lines = Vec::with_capacity(self.versions.len());
        let mut key = "";
        for v in self.versions {
            if v.key_id != key {
                key = &v.key_id;
                lines.push(format!(
                    "key {} {} {} {}",
                    v.key_id, v.key_name, v.purpose, v.algorithm
                ));
            }
            lines.push(version(v));
        }
        lines
    }
}

/// What it was made of comes last: references of a backend may hold blanks.
fn version(v: &NamedVersion) -> String {
    let at = v.destroyed_at.map(Timestamp::from_micros);
    let at = at.map(|at| at.to_string()).unwrap_or_default();
    let (fate, what) = match (&v.backend_ref, &v.kek_ref) {
        (Some(reference), _) => (
            v.fate.as_deref().filter(|fate| !fate.is_empty()),
            format!("key pair in {} {reference}", v.backend),
        ),
        // It was in the row, and the row has it no more.
        (None, kek) => (
            Some("destroyed"),
            format!("data key under {}", kek.as_deref().unwrap_or_default()),
        ),
    };
    let fate = fate.unwrap_or("gone in a way that was not recorded");
    format!("version {} {} {fate} {at} {what}", v.number, v.kid)
}

fn joined(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn digest(list: &[String]) -> String {
    note::text_digest(&joined(list))
}

/// The text of the proof in `file`, if it is one that a key of `keys` signed.
///
/// Errors: a sentence that says what is wrong with it.
pub fn verify(file: &str, keys: &[PublicKey]) -> Result<String, &'static str> {
    let mut pieces = note::pieces(file).into_iter();
    let (Some(piece), None) = (pieces.next(), pieces.next()) else {
        return Err("the file must hold one proof and nothing else");
    };
    let origin = piece.text.lines().next().unwrap_or_default();
    let issuer = origin
        .strip_prefix(ORIGIN)
        .ok_or("this is no proof of destruction")?;
    match piece.judge(issuer, keys) {
        Verdict::Good => {}
        Verdict::Unsigned => return Err("none of the given keys signed this proof"),
        Verdict::Bad => {
            return Err(
                "the signature does not verify: the proof was changed, or was never signed",
            );
        }
    }
    if !is_whole(&piece.text) {
        return Err("the signature is good, but the list is not the one that the proof describes");
    }
    Ok(piece.text)
}

/// Is the list what the head says? A daemon of ours signs nothing else.
fn is_whole(text: &str) -> bool {
    let mut lines = text.lines().map(str::to_owned);
    let mut listed = None;
    let (mut versions, mut keys) = (None, None);
    for line in lines.by_ref() {
        match line.split_once(' ') {
            Some(("keys", n)) => keys = n.parse::<usize>().ok(),
            Some(("versions", n)) => versions = n.parse::<usize>().ok(),
            Some(("list", digest)) => {
                listed = Some(digest.to_owned());
                break;
            }
            Some(_) | None => {}
        }
    }
    let list: Vec<String> = lines.collect();
    let (Some(versions), Some(keys), Some(listed)) = (versions, keys, listed) else {
        return false;
    };
    let count = |word: &str| list.iter().filter(|line| line.starts_with(word)).count();
    if let Some(digest) = listed.strip_suffix(OMITTED) {
        return list.is_empty() && !digest.is_empty();
    }
    digest(&list) == listed && count("version ") == versions && count("key ") == keys
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

    use super::*;
    use crate::{backends::Destroyed, keys::Gone, model::PrincipalId};

    fn named(number: i64) -> NamedVersion {
        NamedVersion {
            key_id: "k-1".into(),
            key_name: "orders".into(),
            purpose: "SIGNING".into(),
            algorithm: "ES256".into(),
            kid: format!("kid-{number}"),
            number,
            backend: "hsm".into(),
            backend_ref: Some("pkcs11:id=1 2".into()),
            kek_ref: None,
            state: "DESTROYED".into(),
            destroyed_at: Some(1),
            fate: Some("destroyed".into()),
        }
    }

    fn done() -> TenantDestruction {
        let (tenant, at) = ("acme".parse().unwrap(), Timestamp::from_seconds);
        let asked = TenantDestruction::request(
            tenant,
            "gone\u{2014} \"x\"".into(),
            PrincipalId::random(),
            at(1),
        );
        let asked = asked.unwrap();
        let tenant = asked.tenant.clone();
        let wait = std::time::Duration::from_secs(1);
        let approved = asked.approve(PrincipalId::random(), &tenant, wait, at(2));
        approved
            .unwrap()
            .begin(at(9))
            .unwrap()
            .complete(at(10))
            .unwrap()
    }

    fn signed(versions: &[NamedVersion]) -> (String, PublicKey) {
        let pair = Ed25519KeyPair::generate().unwrap();
        let key = PublicKey::Ed25519(pair.public_key().as_ref().try_into().unwrap());
        let (destruction, issuer) = (done(), "https://issuer.test");
        let head = Head {
            seq: 7,
            hash: vec![1; 32],
        };
        let statement = Statement {
            issuer,
            destruction: &destruction,
            requester: "asks",
            approver: "approves",
            versions,
            head: &head,
        };
        let text = statement.text().unwrap();
        let signature = pair.sign(text.as_bytes());
        (note::signed(issuer, &text, &key, signature.as_ref()), key)
    }

    #[test]
    fn a_proof_verifies_and_a_changed_one_does_not() {
        let (file, key) = signed(&[named(1), named(2)]);
        let keys = [key];
        let text = verify(&file, &keys).unwrap();
        assert!(text.contains("version 2 kid-2 destroyed"), "{text}");
        assert!(text.contains("keys 1\nversions 2\n"), "{text}");
        for (from, to) in [
            ("kid-2", "kid-3"),
            ("acme", "acne"),
            ("versions 2", "versions 1"),
        ] {
            let changed = file.replace(from, to);
            assert_ne!(changed, file);
            assert!(verify(&changed, &keys).is_err(), "{from}");
        }
        let without: String = file
            .lines()
            .filter(|l| !l.starts_with("version 2"))
            .fold(String::new(), |text, line| text + line + "\n");
        assert!(verify(&without, &keys).is_err());
        assert!(verify(&format!("{file}\n{file}"), &keys).is_err());
        assert!(verify(&file, &[]).is_err());
        assert!(verify("", &keys).is_err());
        let (_, other) = signed(&[]);
        assert!(verify(&file, &[other]).is_err());
    }

    #[test]
    fn an_empty_tenant_and_a_very_long_one_have_proofs_too() {
        let (file, key) = signed(&[]);
        assert!(verify(&file, &[key]).is_ok());
        // Many short ones fit; fewer long ones do not.
        let many: Vec<_> = (0..=10_000).map(named).collect();
        let (file, key) = signed(&many);
        assert!(verify(&file, &[key]).unwrap().contains("kid-10000"));
        let long = |number| NamedVersion {
            backend_ref: Some(format!("pkcs11:object={}", "x".repeat(4000))),
            ..named(number)
        };
        let many: Vec<_> = (0..1000).map(long).collect();
        let (file, key) = signed(&many);
        assert!(file.len() < 2000, "{}", file.len());
        let keys = [key];
        let text = verify(&file, &keys).unwrap();
        assert!(text.contains("versions 1000\n") && text.ends_with(" omitted\n"));
        assert!(verify(&file.replace(OMITTED, ""), &keys).is_err());
    }

    #[test]
    fn a_proof_says_what_became_of_each_object() {
        let fates = [
            Gone::Destroyed(Destroyed::Now),
            Gone::Destroyed(Destroyed::Scheduled(Timestamp::from_seconds(604_800))),
            Gone::Already("no single object for\nit".into()),
        ];
        let mut versions: Vec<_> = (1..=4).map(named).collect();
        for (version, gone) in versions.iter_mut().zip(&fates) {
            version.fate = Some(gone.fate());
        }
        versions[3].fate = None;
        versions.push(NamedVersion {
            backend_ref: None,
            kek_ref: Some("the-kek".into()),
            fate: None,
            ..named(5)
        });
        let (file, key) = signed(&versions);
        let text = verify(&file, &[key]).unwrap();
        let at = "1970-01-01T00:00:00.000001Z";
        let pair = "key pair in hsm pkcs11:id=1 2";
        for line in [
            format!("version 1 kid-1 destroyed {at} {pair}"),
            format!("version 2 kid-2 deletion scheduled for 1970-01-08T00:00:00Z {at} {pair}"),
            format!(r#"version 3 kid-3 was already gone "no single object forit" {at} {pair}"#),
            format!("version 4 kid-4 gone in a way that was not recorded {at} {pair}"),
            format!("version 5 kid-5 destroyed {at} data key under the-kek"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
