//! What an approver must be able to judge without trusting the daemon's message: the plan's own digest, the plan's fields
//! against the rotation, and both against the key as GetKey shows it.

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use serde::Deserialize;

use crate::{
    cli::output,
    grpc::proto::{Key, KeyVersion, KeyVersionState, Rotation},
};

/// The canonical plan, field by field. One that this program does not know would be approved unread, so it is refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// JOSE name.
    pub algorithm: String,
    /// Approvals it takes.
    pub approvals_needed: u32,
    /// Where the new version was generated.
    pub backend: String,
    /// How long the old version keeps verifying, beside the tokens it issued.
    pub grace_seconds: u64,
    /// Id of the key.
    pub key: String,
    /// Becomes ACTIVE.
    pub new_kid: String,
    /// Stops being ACTIVE.
    pub old_kid: String,
    /// Id of the rotation.
    pub rotation: String,
    /// From the announcement to the first possible deployment.
    pub soak_seconds: u64,
    /// Tenant of the key.
    pub tenant: String,
}

/// What the comparison found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Reasons not to approve: something that the daemon says contradicts something else that it says.
    pub lies: Vec<String>,
    /// Things to know: the key's policy was changed after the request.
    pub notes: Vec<String>,
}

/// SHA-256 of a plan, in hex: what an approver computes to know that they approve what they read.
pub fn plan_digest(plan: &str) -> String {
    let digest = digest::digest(&digest::SHA256, plan.as_bytes());
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Reads the plan. Errors: a sentence that says why it cannot be judged.
pub fn read(plan: &str) -> Result<Plan, String> {
    serde_json::from_str(plan)
        .map_err(|e| format!("the plan cannot be read ({e}); a newer command line may know more"))
}

/// Compares the rotation with its own plan and with the key; `id` is the rotation that was asked for.
pub fn compare(id: &str, rotation: &Rotation, key: &Key) -> Findings {
    let mut findings = Findings::default();
    if plan_digest(&rotation.plan) != rotation.plan_digest {
        let text = "the daemon's digest is not that of the plan it shows";
        findings.lies.push(text.to_owned());
    }
    match read(&rotation.plan) {
        Err(why) => findings.lies.push(why),
        Ok(plan) => {
            findings.rotation(id, rotation, &plan);
            findings.key(rotation, &plan, key);
            findings.policy(&plan, key);
        }
    }
    findings
}

impl Findings {
    fn same(&mut self, what: &str, planned: &str, found: &str, place: &str) {
        if planned != found {
            let text = format!("{what} is {planned} in the plan and {found} in {place}");
            self.lies.push(text);
        }
    }

    fn rotation(&mut self, id: &str, rotation: &Rotation, plan: &Plan) {
        let place = "the rotation";
        self.same("the rotation", &plan.rotation, id, "your command");
        self.same("the rotation", &plan.rotation, &rotation.id, place);
        self.same("the tenant", &plan.tenant, &rotation.tenant, place);
        self.same("the key", &plan.key, &rotation.key_id, place);
        self.same("the old kid", &plan.old_kid, &rotation.old_kid, place);
        self.same("the new kid", &plan.new_kid, &rotation.new_kid, place);
        let (planned, needed) = (plan.approvals_needed, rotation.approvals_needed);
        let what = "the number of approvals";
        self.same(what, &planned.to_string(), &needed.to_string(), place);
    }

    fn key(&mut self, rotation: &Rotation, plan: &Plan, key: &Key) {
        let place = "the key";
        let algorithm = output::short(key.algorithm().as_str_name(), "ALGORITHM_");
        self.same("the key", &plan.key, &key.id, place);
        self.same("the tenant", &plan.tenant, &key.tenant, place);
        self.same("the algorithm", &plan.algorithm, &algorithm, place);
        self.same("the old kid", &plan.old_kid, &key.active_kid, place);
        if rotation.key_name != key.name {
            let text = format!(
                "the key is called {} in the rotation and {} in the key",
                rotation.key_name, key.name
            );
            self.lies.push(text);
        }
        match key.versions.iter().find(|v| v.kid == plan.new_kid) {
            None => self
                .lies
                .push(format!("the key has no version {}", plan.new_kid)),
            Some(version) => self.new_version(plan, version),
        }
    }

    fn new_version(&mut self, plan: &Plan, version: &KeyVersion) {
        // Not the key's backend: that is where the next version is made, and may have changed since.
        if !version.public_jwk.is_empty() {
            let place = "the new version";
            self.same("the backend", &plan.backend, &version.backend, place);
        }
        if version.state() != KeyVersionState::PreActive {
            let state = output::short(version.state().as_str_name(), "KEY_VERSION_STATE_");
            let text = format!("the new version is {state} and not PRE_ACTIVE");
            self.lies.push(text);
        }
        // The kid of a data key is a random id; there is nothing to compute.
        if version.public_jwk.is_empty() {
            return;
        }
        if thumbprint(&version.public_jwk).as_ref() != Some(&version.kid) {
            let text = "the new kid is not the RFC 7638 thumbprint of the new public key";
            self.lies.push(text.to_owned());
        }
    }

    /// A policy that was changed after the request holds for the next one.
    fn policy(&mut self, plan: &Plan, key: &Key) {
        let Some(policy) = &key.rotation_policy else {
            return;
        };
        if policy.approvals_needed != plan.approvals_needed {
            self.notes.push(format!(
                "the key's policy asks for {} approvals by now, this rotation for {}",
                policy.approvals_needed, plan.approvals_needed
            ));
        }
        let grace = policy.grace.as_ref().map_or(0, |grace| grace.seconds);
        if i64::try_from(plan.grace_seconds) != Ok(grace) {
            self.notes.push(format!(
                "the key's policy has a grace of {grace} s by now, this rotation of {} s",
                plan.grace_seconds
            ));
        }
    }
}

/// RFC 7638 SHA-256 thumbprint of a public JWK; None when it is none.
fn thumbprint(jwk: &str) -> Option<String> {
    let members: serde_json::Value = serde_json::from_str(jwk).ok()?;
    let names: &[&str] = match members.get("kty")?.as_str()? {
        "EC" => &["crv", "kty", "x", "y"],
        "OKP" => &["crv", "kty", "x"],
        "RSA" => &["e", "kty", "n"],
        _ => return None,
    };
    let required: Option<BTreeMap<&str, &str>> = names
        .iter()
        .map(|name| Some((*name, members.get(name)?.as_str()?)))
        .collect();
    let canonical = serde_json::to_string(&required?).ok()?;
    let digest = digest::digest(&digest::SHA256, canonical.as_bytes());
    Some(BASE64_URL_SAFE_NO_PAD.encode(digest))
}

#[cfg(test)]
pub mod tests {
    use prost_types::Duration;

    use super::*;
    use crate::grpc::proto::{Algorithm, RotationPolicy, RotationState};

    /// The example of RFC 7638, section 3.1.
    const RFC_7638: &str = r#"{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}"#;
    const NEW: &str = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs";

    /// A rotation that was asked for, and its key.
    pub fn honest() -> (Rotation, Key) {
        let plan = format!(
            r#"{{"algorithm":"RS256","approvals_needed":2,"backend":"hsm","grace_seconds":3600,"key":"k","new_kid":"{NEW}","old_kid":"old","rotation":"r","soak_seconds":360,"tenant":"acme"}}"#
        );
        let rotation = Rotation {
            id: "r".into(),
            tenant: "acme".into(),
            key_id: "k".into(),
            key_name: "orders".into(),
            state: RotationState::Requested.into(),
            old_kid: "old".into(),
            new_kid: NEW.into(),
            plan_digest: plan_digest(&plan),
            plan,
            approvals_needed: 2,
            requester: "01a1fbfa-24c4-768b-9e3e-dbbce600636b".into(),
            ..Default::default()
        };
        let version = |kid: &str, state: KeyVersionState, jwk: &str| KeyVersion {
            kid: kid.into(),
            state: state.into(),
            public_jwk: jwk.into(),
            backend: "hsm".into(),
            ..Default::default()
        };
        let key = Key {
            id: "k".into(),
            tenant: "acme".into(),
            name: "orders".into(),
            algorithm: Algorithm::Rs256.into(),
            backend: "hsm".into(),
            owner: "team-orders".into(),
            active_kid: "old".into(),
            versions: vec![
                version("old", KeyVersionState::Active, ""),
                version(NEW, KeyVersionState::PreActive, RFC_7638),
            ],
            rotation_policy: Some(RotationPolicy {
                approvals_needed: 2,
                grace: Some(Duration {
                    seconds: 3600,
                    nanos: 0,
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        (rotation, key)
    }

    #[test]
    fn the_digest_is_plain_sha_256() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(plan_digest("abc"), abc);
    }

    #[test]
    fn an_honest_daemon_leaves_nothing_to_say() {
        let (rotation, key) = honest();
        let findings = compare("r", &rotation, &key);
        assert!(
            findings.lies.is_empty() && findings.notes.is_empty(),
            "{findings:?}"
        );
    }

    /// The daemon changes its plan, with a digest that fits.
    fn forged(from: &str, to: &str) -> Findings {
        let (mut rotation, key) = honest();
        rotation.plan = rotation.plan.replace(from, to);
        rotation.plan_digest = plan_digest(&rotation.plan);
        compare("r", &rotation, &key)
    }

    #[test]
    fn every_field_of_a_forged_plan_is_noticed() {
        for (from, to) in [
            ("RS256", "ES256"),
            (r#""approvals_needed":2"#, r#""approvals_needed":1"#),
            ("hsm", "elsewhere"),
            (r#""key":"k""#, r#""key":"other""#),
            (NEW, "another"),
            (r#""old_kid":"old""#, r#""old_kid":"older""#),
            (r#""rotation":"r""#, r#""rotation":"s""#),
            ("acme", "globex"),
            (r#"{"#, r#"{"then":"everything","#),
            (r#"{"#, "["),
        ] {
            let findings = forged(from, to);
            assert!(!findings.lies.is_empty(), "{from} -> {to}");
        }
        // Times are the plan's own; nothing else states them, but for the grace.
        assert_eq!(forged("3600", "0").notes.len(), 1);
    }

    #[test]
    fn a_key_that_contradicts_the_rotation_is_noticed() {
        let changes: [fn(&mut Rotation, &mut Key); 8] = [
            |_, k| k.versions[1].backend = "elsewhere".into(),
            |r, _| r.plan_digest = "0".repeat(64),
            |r, _| r.key_name = "harmless".into(),
            |_, k| k.active_kid = "newer".into(),
            |_, k| k.algorithm = Algorithm::Es256.into(),
            |_, k| k.versions.truncate(1),
            |_, k| k.versions[1].state = KeyVersionState::Compromised.into(),
            |_, k| k.versions[1].public_jwk = RFC_7638.replace("AQAB", "AQAC"),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let (mut rotation, mut key) = honest();
            change(&mut rotation, &mut key);
            assert!(
                !compare("r", &rotation, &key).lies.is_empty(),
                "change {index}"
            );
        }
        let (rotation, key) = honest();
        assert!(!compare("another", &rotation, &key).lies.is_empty());
    }

    #[test]
    fn a_key_that_moves_elsewhere_during_its_rotation_accuses_nobody() {
        let (rotation, mut key) = honest();
        key.backend = "kms".into();
        let findings = compare("r", &rotation, &key);
        assert!(findings.lies.is_empty(), "{findings:?}");
    }

    #[test]
    fn a_policy_that_was_changed_meanwhile_is_a_note() {
        let (rotation, mut key) = honest();
        key.rotation_policy.as_mut().unwrap().approvals_needed = 3;
        let findings = compare("r", &rotation, &key);
        assert!(findings.lies.is_empty());
        assert!(findings.notes[0].contains("3 approvals"), "{findings:?}");
    }
}
