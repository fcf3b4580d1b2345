//! Client assertions (RFC 7523 section 3): a JWT that the client signs to prove itself, once.
//!
//! Decided where the standards leave a choice: `aud` is our issuer or an endpoint of ours and nothing beside them, so that
//! an assertion that was made for somebody else is worth nothing here; `exp` is at most an hour ahead; `jti` is
//! required. The header may hold `alg`, `kid`, `typ` and, unread, thumbprints: embedded keys, key URLs and `crit` are
//! refused unseen.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Clients, Refusal, jwks::NoVerifier, registry::Registered};
use crate::{
    error::{Error, Result},
    model::{SignInput, Timestamp},
    tokens::is_plain_object,
    trace,
};

/// Longest assertion that is looked at, in bytes.
const MAX_LENGTH: usize = 8 * 1024;
/// How far ahead `exp` may be: as long as stock libraries make it. What is used is used up, whatever its `exp`.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long a `jti` is kept beyond its `exp`: the clocks of replicas and database may differ.
const KEEP: Duration = Duration::from_secs(600);
/// Characters of a `jti` at most.
const MAX_JTI: usize = 255;

/// An assertion that nothing is known about but its form.
pub(super) struct Unverified<'a> {
    header: Header,
    claims: Claims,
    signing_input: &'a str,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    typ: Option<String>,
    /// Thumbprints of a certificate, which some libraries add: never read.
    #[serde(default, rename = "x5t")]
    _x5t: Option<String>,
    #[serde(default, rename = "x5t#S256")]
    _x5t_s256: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Value,
    exp: i64,
    #[serde(default)]
    iat: Option<i64>,
    #[serde(default)]
    nbf: Option<i64>,
    jti: String,
}

impl<'a> Unverified<'a> {
    pub fn parse(assertion: &'a str) -> std::result::Result<Self, Refusal> {
        if assertion.len() > MAX_LENGTH {
            return Err(Refusal::Malformed);
        }
        let (signing_input, signature) = assertion.rsplit_once('.').ok_or(Refusal::Malformed)?;
        let (header, claims) = signing_input.split_once('.').ok_or(Refusal::Malformed)?;
        let decode = |part: &str| {
            BASE64_URL_SAFE_NO_PAD
                .decode(part)
                .map_err(|_| Refusal::Malformed)
        };
        let (header, claims, signature) = (decode(header)?, decode(claims)?, decode(signature)?);
        let header: Header = object(&header).ok_or(Refusal::ForbiddenHeader)?;
        let types = ["JWT", "jwt", "client-authentication+jwt"];
        if header
            .typ
            .as_deref()
            .is_some_and(|typ| !types.contains(&typ))
        {
            return Err(Refusal::ForbiddenHeader);
        }
        Ok(Self {
            header,
            claims: object(&claims).ok_or(Refusal::BadClaims)?,
            signing_input,
            signature,
        })
    }

    /// Who it says it is from.
    pub fn issuer(&self) -> &str {
        &self.claims.iss
    }

    /// Its id.
    pub fn jti(&self) -> &str {
        &self.claims.jti
    }
}

/// One JSON object that reads in one way only.
fn object<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    is_plain_object(json)
        .then(|| serde_json::from_slice(json).ok())
        .flatten()
}

impl Clients {
    /// Does the assertion prove this client, here and now, and for the first time? Errors: DATABASE_UNAVAILABLE: then
    /// nobody can tell whether it is the first time.
    pub(super) async fn take(
        &self,
        registered: &Arc<Registered>,
        assertion: &Unverified<'_>,
    ) -> Result<std::result::Result<(), Refusal>> {
        let now = self.clock.now();
        let proved = signed(registered, assertion).and_then(|()| {
            let client = registered.client.id.to_string();
            let (issuer, leeway) = (self.tokens.issuer(), self.tokens.leeway());
            let endpoint = |path: &str| self.tokens.endpoint(path);
            let aud = [
                issuer.to_owned(),
                endpoint("/oauth/token"),
                endpoint("/oauth/introspect"),
                endpoint("/oauth/revoke"),
            ];
            check(&assertion.claims, &client, &aud, now, leeway)
        });
        if let Err(refusal) = proved {
            return Ok(Err(refusal));
        }
        let keep_until = Timestamp::from_seconds(assertion.claims.exp).plus(KEEP);
        let (db, client) = (self.db.clone(), registered.client.id);
        let jti = assertion.claims.jti.clone();
        // In a task of its own: a caller who leaves must not leave a transaction half begun.
        let taken = tokio::spawn(trace::carry(async move {
            let mut tx = db.begin().await?;
            let is_first = tx.take_assertion(client, &jti, keep_until).await?;
            tx.commit().await?;
            Ok::<_, Error>(is_first)
        }));
        match taken.await.map_err(Error::internal)?? {
            true => Ok(Ok(())),
            false => Ok(Err(Refusal::Replayed)),
        }
    }
}

fn signed(registered: &Registered, assertion: &Unverified<'_>) -> std::result::Result<(), Refusal> {
    let header = &assertion.header;
    let verifier = registered.keys.verifier(header.kid.as_deref(), &header.alg);
    let verifier = verifier.map_err(|why| match why {
        NoVerifier::Kid => Refusal::UnknownKid,
        NoVerifier::Algorithm => Refusal::WrongAlgorithm,
    })?;
    let input = SignInput::Message(assertion.signing_input.as_bytes());
    verifier
        .verifies(input, &assertion.signature)
        .then_some(())
        .ok_or(Refusal::BadSignature)
}

/// The claims, for `client` and an audience among `audiences`, at `now`.
fn check(
    claims: &Claims,
    client: &str,
    audiences: &[String],
    now: Timestamp,
    leeway: Duration,
) -> std::result::Result<(), Refusal> {
    if claims.iss != client || claims.sub != client {
        return Err(Refusal::WrongIssuer);
    }
    let is_ours = |aud: &Value| audiences.iter().any(|own| aud == own);
    let is_meant = match &claims.aud {
        aud @ Value::String(_) => is_ours(aud),
        // Whoever else is named could have been given the same assertion.
        Value::Array(several) => !several.is_empty() && several.iter().all(is_ours),
        _ => false,
    };
    if !is_meant {
        return Err(Refusal::WrongAudience);
    }
    let at = Timestamp::from_seconds;
    if now >= at(claims.exp).plus(leeway) {
        return Err(Refusal::Expired);
    }
    if at(claims.exp) > now.plus(LONGEST).plus(leeway) {
        return Err(Refusal::TooLong);
    }
    let latest = now.plus(leeway);
    let later = |time: Option<i64>| time.is_some_and(|time| at(time) > latest);
    if later(claims.iat) || later(claims.nbf) {
        return Err(Refusal::NotYetValid);
    }
    let backwards = |time: Option<i64>| time.is_some_and(|time| time >= claims.exp);
    if backwards(claims.iat) || backwards(claims.nbf) {
        return Err(Refusal::BadClaims);
    }
    let jti = &claims.jti;
    let is_good = (1..=MAX_JTI).contains(&jti.chars().count()) && !jti.contains(char::is_control);
    is_good.then_some(()).ok_or(Refusal::BadClaims)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const CLIENT: &str = "0199f000-0000-7000-8000-000000000000";

    fn verdict(change: &[(&str, Value)]) -> Option<Refusal> {
        let mut claims = json!({
            "iss": CLIENT, "sub": CLIENT, "aud": "https://issuer.test", "exp": NOW + 60, "iat": NOW, "jti": "one",
        });
        for (name, value) in change {
            match value {
                Value::Null => drop(claims.as_object_mut().expect("claims").remove(*name)),
                value => claims[*name] = value.clone(),
            }
        }
        let Some(claims) = object::<Claims>(claims.to_string().as_bytes()) else {
            return Some(Refusal::BadClaims);
        };
        let aud = [
            "https://issuer.test".to_owned(),
            "https://issuer.test/oauth/token".to_owned(),
        ];
        let now = Timestamp::from_seconds(NOW);
        check(&claims, CLIENT, &aud, now, Duration::from_secs(5)).err()
    }

    #[test]
    fn good_claims_pass() {
        for change in [
            &[][..],
            &[("aud", json!("https://issuer.test/oauth/token"))],
            &[("aud", json!(["https://issuer.test"]))],
            &[("iat", Value::Null)],
            &[("nbf", json!(NOW))],
            &[("exp", json!(NOW + 3600))],
            &[(
                "aud",
                json!(["https://issuer.test", "https://issuer.test/oauth/token"]),
            )],
            &[("exp", json!(NOW - 4)), ("iat", json!(NOW - 60))],
        ] {
            assert_eq!(verdict(change), None, "{change:?}");
        }
    }

    #[test]
    fn claims_that_prove_nothing_are_refused() {
        for (name, value, refusal) in [
            ("iss", json!("somebody"), Refusal::WrongIssuer),
            ("sub", json!("somebody"), Refusal::WrongIssuer),
            ("aud", json!("https://issuer.test/"), Refusal::WrongAudience),
            (
                "aud",
                json!("https://issuer.test/oauth/other"),
                Refusal::WrongAudience,
            ),
            (
                "aud",
                json!(["https://issuer.test", "https://other.test"]),
                Refusal::WrongAudience,
            ),
            ("aud", json!([]), Refusal::WrongAudience),
            ("aud", json!(1), Refusal::WrongAudience),
            ("exp", json!(NOW - 5), Refusal::Expired),
            ("exp", json!(i64::MIN), Refusal::Expired),
            ("exp", json!(NOW + 3606), Refusal::TooLong),
            ("exp", json!(i64::MAX), Refusal::TooLong),
            ("exp", json!("soon"), Refusal::BadClaims),
            ("exp", json!(1.5), Refusal::BadClaims),
            ("exp", Value::Null, Refusal::BadClaims),
            ("iat", json!(NOW + 6), Refusal::NotYetValid),
            ("nbf", json!(NOW + 6), Refusal::NotYetValid),
            ("jti", Value::Null, Refusal::BadClaims),
            ("jti", json!(""), Refusal::BadClaims),
            ("jti", json!("a\u{0}b"), Refusal::BadClaims),
            ("jti", json!("x".repeat(256)), Refusal::BadClaims),
            ("aud", Value::Null, Refusal::BadClaims),
        ] {
            assert_eq!(
                verdict(&[(name, value.clone())]),
                Some(refusal),
                "{name}: {value}"
            );
        }
    }

    #[test]
    fn headers_that_bring_their_own_keys_are_refused_unseen() {
        let token = |header: Value| {
            let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
            let claims = json!({"iss": "a", "sub": "a", "aud": "b", "exp": 1, "jti": "c"});
            format!("{}.{}.AA", part(header), part(claims))
        };
        for good in [
            json!({"alg": "ES256"}),
            json!({"alg": "ES256", "kid": "1", "typ": "JWT"}),
            json!({"alg": "ES256", "typ": "client-authentication+jwt"}),
        ] {
            assert!(Unverified::parse(&token(good.clone())).is_ok(), "{good}");
        }
        for bad in [
            json!({"alg": "ES256", "jku": "https://evil.test/jwks"}),
            json!({"alg": "ES256", "jwk": {"kty": "oct", "k": "AA"}}),
            json!({"alg": "ES256", "x5u": "https://evil.test/cert"}),
            json!({"alg": "ES256", "x5c": ["AA"]}),
            json!({"alg": "ES256", "crit": ["exp"], "exp": 1}),
            json!({"alg": "ES256", "b64": false}),
            json!({"alg": "ES256", "typ": "at+jwt"}),
            json!({"kid": "1"}),
            json!(["ES256"]),
        ] {
            let refusal = Unverified::parse(&token(bad.clone())).err();
            assert_eq!(refusal, Some(Refusal::ForbiddenHeader), "{bad}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a.b",
            "a.b.c.d",
            "e30.e30.=",
            &"a".repeat(MAX_LENGTH + 1),
        ] {
            assert!(Unverified::parse(bad).is_err(), "{bad}");
        }
    }
}
