//! The public keys of a client, as it registered them: a JWK Set (RFC 7517), read strictly.
//!
//! There is no `jwks_uri`: the daemon would fetch what others choose, and whoever answers for that host would choose who
//! authenticates. New keys are registered with UpdateClient, beside the old ones.

use serde_json::{Map, Value};

use crate::{
    error::{Error, Reason, Result},
    model::{Algorithm, KeySpec, PublicKey, Verifier},
    tokens::is_plain_object,
};

/// Keys of one client at most.
const MAX_KEYS: usize = 8;
/// Bytes of a set at most.
const MAX_LENGTH: usize = 16 * 1024;
/// Characters of a `kid` at most.
const MAX_KID: usize = 255;
/// Bits of an RSA modulus at most: longer ones make every verification slow.
const MAX_RSA_BITS: u32 = 8192;
/// Everything that a key may say about itself. Private members are not among these, nor is any that names a URL.
const MEMBERS: [&str; 11] = [
    "kty", "crv", "x", "y", "n", "e", "kid", "alg", "use", "key_ops", "ext",
];
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// Algorithms that clients may sign with. The key says which of them fit.
const ALGORITHMS: [Algorithm; 10] = [
    Algorithm::Es256,
    Algorithm::Es384,
    Algorithm::Es512,
    Algorithm::EdDsa,
    Algorithm::Ps256,
    Algorithm::Ps384,
    Algorithm::Ps512,
    Algorithm::Rs256,
    Algorithm::Rs384,
    Algorithm::Rs512,
];

/// The names of the algorithms that assertions may be signed with.
pub fn assertion_algorithms() -> impl Iterator<Item = &'static str> {
    ALGORITHMS.into_iter().map(Algorithm::as_str)
}

/// The keys of one client.
#[derive(Clone, Debug, Default)]
pub struct ClientKeys(Vec<ClientKey>);

#[derive(Clone, Debug)]
struct ClientKey {
    kid: String,
    verifiers: Vec<(Algorithm, Verifier)>,
}

/// Why no key verifies an assertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoVerifier {
    /// The client has no such key.
    Kid,
    /// The key is not for this algorithm.
    Algorithm,
}

impl ClientKeys {
    /// Reads and checks a set. Errors: INVALID_FIELD; the text says what is wrong with which key.
    pub fn parse(set: &str) -> Result<Self> {
        if set.len() > MAX_LENGTH || !is_plain_object(set.as_bytes()) {
            return Err(invalid(
                "jwks must be one JWK Set of at most 16 KiB, no member twice",
            ));
        }
        let set: Value = serde_json::from_str(set).map_err(|_| invalid("jwks must be JSON"))?;
        let keys = set["keys"].as_array().map_or(&[][..], Vec::as_slice);
        if !(1..=MAX_KEYS).contains(&keys.len()) {
            return Err(invalid("jwks must have 1 to 8 keys"));
        }
        let mut parsed: Vec<ClientKey> = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            let key = client_key(key).map_err(|what| invalid(format!("jwks: key {i}: {what}")))?;
            if parsed.iter().any(|other| other.kid == key.kid) {
                return Err(invalid("jwks: two keys have the same kid"));
            }
            parsed.push(key);
        }
        Ok(Self(parsed))
    }

    /// The kids, for the audit log.
    pub fn kids(&self) -> Vec<&str> {
        self.0.iter().map(|key| key.kid.as_str()).collect()
    }

    /// The verifier for an assertion. One without `kid` means the only key, if there is only one.
    pub fn verifier(
        &self,
        kid: Option<&str>,
        alg: &str,
    ) -> std::result::Result<&Verifier, NoVerifier> {
        let key = match (kid, self.0.as_slice()) {
            (Some(kid), keys) => keys.iter().find(|key| key.kid == kid),
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        let fits = |(algorithm, _): &&(Algorithm, Verifier)| algorithm.as_str() == alg;
        let verifiers = &key.ok_or(NoVerifier::Kid)?.verifiers;
        let found = verifiers.iter().find(fits).ok_or(NoVerifier::Algorithm)?;
        Ok(&found.1)
    }
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Reason::InvalidField, message)
}

fn client_key(jwk: &Value) -> std::result::Result<ClientKey, &'static str> {
    let jwk = jwk.as_object().ok_or("a key must be a JSON object")?;
    if jwk.keys().any(|name| PRIVATE.contains(&name.as_str())) {
        return Err(
            "it has private members; send the public key only, and make a new one: this one has been sent",
        );
    }
    if !jwk.keys().all(|name| MEMBERS.contains(&name.as_str())) {
        return Err("it has members other than kty, crv, x, y, n, e, kid, alg, use, key_ops, ext");
    }
    let kid = jwk.get("kid").and_then(Value::as_str).unwrap_or_default();
    if !(1..=MAX_KID).contains(&kid.chars().count()) || kid.chars().any(char::is_control) {
        return Err("it needs a kid of 1 to 255 characters");
    }
    is_for_verifying(jwk)?;
    let public = public_key(jwk)?;
    let wanted = algorithms(jwk, &public)?;
    let mut verifiers = Vec::new();
    for algorithm in wanted {
        let verifier = public.verifier(algorithm);
        verifiers.push((
            algorithm,
            verifier.map_err(|_| "it is no valid public key")?,
        ));
    }
    Ok(ClientKey {
        kid: kid.to_owned(),
        verifiers,
    })
}

fn is_for_verifying(jwk: &Map<String, Value>) -> std::result::Result<(), &'static str> {
    let says_sig = jwk.get("use").is_none_or(|usage| usage == "sig");
    let verifies = |operations: &Value| {
        let list = operations.as_array();
        list.is_some_and(|list| !list.is_empty() && list.iter().all(|op| op == "verify"))
    };
    let says_verify = jwk.get("key_ops").is_none_or(verifies);
    (says_sig && says_verify)
        .then_some(())
        .ok_or("its use must be sig and its key_ops verify, where it has them")
}

fn public_key(jwk: &Map<String, Value>) -> std::result::Result<PublicKey, &'static str> {
    let text = |name| jwk.get(name).and_then(Value::as_str).unwrap_or_default();
    let wrong = "it must be EC on P-256, P-384 or P-521, OKP on Ed25519, or RSA, in base64url without padding";
    let expected: &[&str] = match text("kty") {
        "EC" => &["crv", "x", "y"],
        "OKP" => &["crv", "x"],
        "RSA" => &["n", "e"],
        _ => return Err(wrong),
    };
    // A member of another type of key would be read by somebody else, perhaps.
    let parts = ["crv", "x", "y", "n", "e"];
    if !parts
        .iter()
        .all(|part| jwk.contains_key(*part) == expected.contains(part))
    {
        return Err(wrong);
    }
    let json = Value::Object(jwk.clone()).to_string();
    let public = PublicKey::from_canonical_jwk(&json).map_err(|_| wrong)?;
    if let (PublicKey::Rsa { e, .. }, KeySpec::Rsa(bits)) = (&public, public.key_spec()) {
        // Small exponents have broken too many verifiers.
        let is_common = e.len() >= 3 && e.last().is_some_and(|low| low & 1 == 1);
        if !(2048..=MAX_RSA_BITS).contains(&bits) || !is_common {
            return Err("RSA needs 2048 to 8192 bits and an exponent of 65537 or more");
        }
    }
    Ok(public)
}

/// Those that fit the key, or the one that it names.
fn algorithms(
    jwk: &Map<String, Value>,
    public: &PublicKey,
) -> std::result::Result<Vec<Algorithm>, &'static str> {
    let fits = |algorithm: &Algorithm| match public.key_spec() {
        KeySpec::Rsa(_) => algorithm.is_rsa(),
        spec => !algorithm.is_rsa() && algorithm.key_spec(0) == Some(spec),
    };
    let named = jwk.get("alg");
    let is_named = |algorithm: &Algorithm| named.is_none_or(|alg| alg == algorithm.as_str());
    let found: Vec<_> = ALGORITHMS
        .into_iter()
        .filter(fits)
        .filter(is_named)
        .collect();
    match found.is_empty() {
        true => Err("its alg does not fit the key, or is not ES256, ES384, ES512, EdDSA, PS or RS"),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ec() -> Value {
        // RFC 7517 appendix A.1.
        json!({
            "kty": "EC", "crv": "P-256", "kid": "1",
            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
        })
    }

    fn okp() -> Value {
        // RFC 8037 appendix A.2.
        json!({
            "kty": "OKP", "crv": "Ed25519", "kid": "2",
            "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        })
    }

    fn rsa() -> Value {
        // RFC 7517 appendix A.1.
        json!({
            "kty": "RSA", "e": "AQAB", "kid": "3",
            "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        })
    }

    fn set(keys: &[Value]) -> Result<ClientKeys> {
        ClientKeys::parse(&json!({ "keys": keys }).to_string())
    }

    fn with(mut key: Value, name: &str, value: Value) -> Value {
        key[name] = value;
        key
    }

    #[test]
    fn a_key_verifies_by_the_algorithms_that_fit_it() {
        let keys = set(&[ec(), okp(), rsa()]).expect("keys");
        assert_eq!(keys.kids(), ["1", "2", "3"]);
        assert!(keys.verifier(Some("1"), "ES256").is_ok());
        assert!(keys.verifier(Some("2"), "EdDSA").is_ok());
        for alg in ["PS256", "PS384", "PS512", "RS256", "RS384", "RS512"] {
            assert!(keys.verifier(Some("3"), alg).is_ok(), "{alg}");
        }
        for (kid, alg) in [
            ("1", "ES384"),
            ("1", "none"),
            ("1", "HS256"),
            ("2", "ES256"),
            ("3", "ES256"),
        ] {
            let found = keys.verifier(Some(kid), alg);
            assert_eq!(found.err(), Some(NoVerifier::Algorithm), "{kid} {alg}");
        }
        assert_eq!(
            keys.verifier(Some("4"), "ES256").err(),
            Some(NoVerifier::Kid)
        );
        assert_eq!(keys.verifier(None, "ES256").err(), Some(NoVerifier::Kid));
        assert!(set(&[ec()]).expect("a key").verifier(None, "ES256").is_ok());
        let named = set(&[with(rsa(), "alg", json!("PS256"))]).expect("a key");
        assert!(named.verifier(None, "PS256").is_ok());
        assert_eq!(
            named.verifier(None, "RS256").err(),
            Some(NoVerifier::Algorithm)
        );
    }

    // R-JWT-3
    #[test]
    fn what_is_no_public_key_of_a_strong_algorithm_is_refused() {
        let weak = with(
            rsa(),
            "n",
            json!("0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86z"),
        );
        for bad in [
            with(ec(), "kid", json!("")),
            with(ec(), "kid", json!(1)),
            with(
                ec(),
                "d",
                json!("870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE"),
            ),
            with(ec(), "x5u", json!("https://evil.test/cert")),
            with(ec(), "alg", json!("ES384")),
            with(ec(), "alg", json!("HS256")),
            with(ec(), "alg", json!("none")),
            with(ec(), "use", json!("enc")),
            with(ec(), "key_ops", json!(["verify", "sign"])),
            with(
                ec(),
                "y",
                json!("MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4"),
            ),
            with(ec(), "x", json!("MKBC")),
            with(ec(), "crv", json!("secp256k1")),
            with(ec(), "n", json!("AQAB")),
            with(okp(), "x", json!("11qY")),
            with(okp(), "crv", json!("X25519")),
            with(rsa(), "e", json!("Aw")),
            with(rsa(), "e", json!("AQAA")),
            with(rsa(), "n", json!("AA")),
            weak,
            json!({"kty": "oct", "k": "c2VjcmV0", "kid": "1"}),
            json!("text"),
        ] {
            let error = set(std::slice::from_ref(&bad)).err();
            let reason = error.as_ref().map(Error::reason);
            assert_eq!(reason, Some(Reason::InvalidField), "{bad}: {error:?}");
        }
        assert!(set(&[]).is_err());
        assert!(set(&[ec(), ec()]).is_err(), "one kid twice");
        let many: Vec<_> = (0..9)
            .map(|i| with(ec(), "kid", json!(format!("k{i}"))))
            .collect();
        assert!(set(&many).is_err());
        assert!(set(&many[..8]).is_ok());
        for bad in ["", "[]", "{}", "{\"keys\":{}}", "{\"keys\":[],\"keys\":[]}"] {
            assert!(ClientKeys::parse(bad).is_err(), "{bad}");
        }
    }
}
