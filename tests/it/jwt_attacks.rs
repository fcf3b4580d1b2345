//! Every way to fool a JWT verifier that RFC 8725 and its years since know, against VerifyToken on its port.
//!
//! The signatures are right wherever an attack is not about the signature: the test holds the private half of keys
//! that the daemon takes for its own. So a rejection is for the reason that it names, and not for a broken signature.

mod attacks;
pub mod forge;
mod weak_keys;

use std::collections::BTreeMap;

use base64::Engine as _;
use claviger::grpc::proto::*;
use proptest::{
    prelude::*,
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use serde_json::{Value, json};
use tonic::Request;

use self::forge::{B64, Forge, Signer};

/// One token and what is wrong with it.
pub struct Attack {
    pub name: String,
    pub token: String,
    pub why: TokenRejection,
}

impl Forge {
    /// What VerifyToken says. It always says something: a bad token is no error.
    async fn verify(&self, request_id: &str, token: &str) -> VerifyTokenResponse {
        let mut request = Request::new(VerifyTokenRequest {
            token: token.into(),
            audience: "api".into(),
            ..Default::default()
        });
        let id = request_id.parse().expect("metadata");
        request.metadata_mut().insert("x-request-id", id);
        let mut service = self.daemon.actor("service").tokens();
        let answer = service.verify_token(request).await;
        let answer = answer.unwrap_or_else(|status| panic!("{request_id}: {status}"));
        answer.into_inner()
    }

    /// The details of the audit row that each request left.
    async fn recorded(&self) -> BTreeMap<String, Vec<(String, String)>> {
        let rows = self.daemon.rows(
            "SELECT request_id, outcome, data FROM audit_events WHERE action = 'VerifyToken' ORDER BY seq",
        );
        let mut recorded: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        for row in rows.await {
            let [id, outcome, data] = <[String; 3]>::try_from(row).expect("three columns");
            recorded.entry(id).or_default().push((outcome, data));
        }
        recorded
    }
}

// R-JWT-2, R-JWT-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_attack_is_valid_and_each_is_recorded_with_its_reason() {
    let forge = Forge::new().await;
    let mut expected = Vec::new();
    let mut wrong = Vec::new();
    for signer in &forge.signers {
        for (i, (name, token)) in attacks::harmless(signer).into_iter().enumerate() {
            let id = format!("good-{}-{i}", signer.alg);
            let answer = forge.verify(&id, &token).await;
            assert!(answer.valid, "{} {name}: {answer:?}", signer.alg);
        }
        for (i, attack) in attacks::all(&forge, signer).into_iter().enumerate() {
            let id = format!("attack-{}-{i}", signer.alg);
            let answer = forge.verify(&id, &attack.token).await;
            if (answer.valid, answer.rejection()) != (false, attack.why) || answer.claims.is_some()
            {
                let found = (answer.valid, answer.rejection());
                wrong.push(format!(
                    "{} {}: {found:?}, not {:?}",
                    signer.alg, attack.name, attack.why
                ));
            }
            expected.push((id, attack.why));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(expected.len() > 600, "{}", expected.len());
    let recorded = forge.recorded().await;
    for (id, why) in expected {
        let why = why.as_str_name().replace("TOKEN_REJECTION_", "");
        let row = (
            "success".to_owned(),
            json!({ "rejection": why }).to_string(),
        );
        assert_eq!(recorded[&id], [row], "{id}");
    }
    forge.daemon.stop().await;
}

// R-ACL-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_one_tenant_is_nothing_to_another() {
    let forge = Forge::new().await;
    for signer in &forge.signers {
        let mut claims = forge::claims();
        claims["tenant"] = json!("globex");
        for token in [signer.token(&forge::claims()), signer.token(&claims)] {
            let request = VerifyTokenRequest {
                token,
                audience: "api".into(),
                ..Default::default()
            };
            let mut other = forge.daemon.actor("other").tokens();
            let answer = other.verify_token(request).await.expect("an answer");
            let answer = answer.into_inner();
            assert_eq!(answer.rejection(), TokenRejection::UnknownKid);
        }
    }
    forge.daemon.stop().await;
}

/// One random change of a token.
#[derive(Clone, Debug)]
enum Mutation {
    /// Another character at a place.
    Replace(usize, char),
    Insert(usize, char),
    Delete(usize),
    Swap(usize, usize),
    Truncate(usize),
    /// A piece twice.
    Repeat(usize, usize),
    /// Another bit in a decoded part, 0 to 2, encoded again as it must be.
    Flip(usize, usize, u8),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let place = 0..4096_usize;
    let alphabet = ['A'..='Z', 'a'..='z', '0'..='9', '-'..='-', '_'..='_'];
    let char = prop_oneof![
        8 => proptest::char::ranges(alphabet.to_vec().into()),
        1 => proptest::char::any(),
        1 => proptest::sample::select(vec!['.', '=', '+', '/', ' ', '\n', '\0']),
    ];
    prop_oneof![
        4 => (place.clone(), char.clone()).prop_map(|(at, c)| Mutation::Replace(at, c)),
        1 => (place.clone(), char).prop_map(|(at, c)| Mutation::Insert(at, c)),
        1 => place.clone().prop_map(Mutation::Delete),
        1 => (place.clone(), place.clone()).prop_map(|(a, b)| Mutation::Swap(a, b)),
        1 => place.clone().prop_map(Mutation::Truncate),
        1 => (place.clone(), place.clone()).prop_map(|(a, b)| Mutation::Repeat(a, b)),
        6 => (0..3_usize, place, 0..8_u8).prop_map(|(p, at, bit)| Mutation::Flip(p, at, bit)),
    ]
}

impl Mutation {
    fn apply(&self, token: &str) -> String {
        let mut chars: Vec<char> = token.chars().collect();
        let len = chars.len();
        match *self {
            // Earlier mutations may have left nothing to change.
            _ if len == 0 => {}
            Self::Replace(at, c) => chars[at % len] = c,
            Self::Insert(at, c) => chars.insert(at % len, c),
            Self::Delete(at) => drop(chars.remove(at % len)),
            Self::Swap(a, b) => chars.swap(a % len, b % len),
            Self::Truncate(at) => chars.truncate(at % len),
            Self::Repeat(a, b) => {
                let (from, to) = ((a % len).min(b % len), (a % len).max(b % len));
                let piece = chars[from..to].to_vec();
                chars.splice(to..to, piece);
            }
            Self::Flip(part, at, bit) => return flipped(token, part, at, bit),
        }
        chars.into_iter().collect()
    }
}

/// The token as it is where there is nothing to flip.
fn flipped(token: &str, part: usize, at: usize, bit: u8) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let bytes = parts.get(part).and_then(|part| B64.decode(part).ok());
    if let Some(mut bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        parts[part] = B64.encode(bytes);
    }
    parts.join(".")
}

/// Whatever is changed anywhere in a valid token, it is valid no longer.
// R-JWT-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_valid_token_with_anything_changed_is_not_valid() {
    const CASES: usize = 1200;
    let forge = Forge::new().await;
    let mut runner = TestRunner::deterministic();
    let some = proptest::collection::vec(mutation(), 1..4);
    for signer in &forge.signers {
        let good = signer.token(&forge::claims());
        assert!(forge.verify("good", &good).await.valid);
        let mut changed = 0;
        for i in 0..CASES {
            let mutations = some.new_tree(&mut runner).expect("a value").current();
            let token = mutations
                .iter()
                .fold(good.clone(), |token, m| m.apply(&token));
            // An empty text is no token at all and an error of the request.
            if token.is_empty() {
                continue;
            }
            let answer = forge.verify(&format!("random-{i}"), &token).await;
            assert_eq!(
                answer.valid,
                token == good,
                "{mutations:?}\n{good}\n{token}"
            );
            changed += usize::from(token != good);
        }
        assert!(changed > CASES * 9 / 10, "{changed}");
        assert!(forge.verify("good", &good).await.valid);
    }
    forge.daemon.stop().await;
}

fn object(value: &Value) -> &serde_json::Map<String, Value> {
    value.as_object().expect("an object")
}

impl Signer {
    /// A token that is right in every respect but what `claims` say.
    fn token(&self, claims: &Value) -> String {
        self.compose(self.header().to_string(), claims.to_string())
    }
}
