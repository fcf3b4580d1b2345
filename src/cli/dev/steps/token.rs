//! Step 4: the service obtains a token. A verifier needs nothing but the JWKS, fetched over HTTPS.

use std::time::Duration;

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    jwk::{Jwk, JwkSet},
};
use tokio::time::{Instant, sleep};

use super::{Run, check};
use crate::{
    cli::{
        dev::http,
        exit::{Failure, Result},
    },
    grpc::proto::{
        AuditOutcome, IssueTokenRequest, Key, TokenRejection, VerifyTokenRequest,
        VerifyTokenResponse,
    },
};

pub const AUDIENCE: &str = "orders-api";
const SCOPE: &str = "orders.read";
/// How long a key may take to show up in the JWKS.
const PATIENCE: Duration = Duration::from_secs(10);

/// A token and the key version that signed it.
pub struct Token {
    pub text: String,
    pub kid: String,
}

pub async fn issue(run: &mut Run<'_>, key: &Key) -> Result<Token> {
    run.story
        .step("service obtains a token; a verifier checks it with the JWKS alone");
    let token = one(run, key).await?;
    run.story.fact(
        "service",
        &format!("IssueToken for {AUDIENCE}: kid {}", token.kid),
    );
    let published = jwks(run, &token.kid).await?;
    let text = format!(
        "GET https://{}/.well-known/jwks.json: {published} key(s)",
        run.addresses.public
    );
    run.story.fact("verifier", &text);
    verify_locally(run, &token).await?;
    run.story.fact(
        "verifier",
        "verified without the daemon: signature, typ, iss, aud, exp, nbf, tenant",
    );

    let verdict = verify(run, &token, AUDIENCE).await?;
    check(verdict.valid, "VerifyToken rejects the token")?;
    let verdict = verify(run, &token, "somebody-else").await?;
    let wrong_audience = verdict.rejection() == TokenRejection::WrongAudience;
    check(
        !verdict.valid && wrong_audience,
        "VerifyToken accepts a token for somebody else",
    )?;
    run.story.fact(
        "service",
        "VerifyToken: valid; for another audience: WRONG_AUDIENCE",
    );
    run.expect_key("IssueToken", AuditOutcome::Success, key);
    Ok(token)
}

pub async fn one(run: &Run<'_>, key: &Key) -> Result<Token> {
    let request = IssueTokenRequest {
        key: key.name.clone(),
        audience: vec![AUDIENCE.to_owned()],
        scope: vec![SCOPE.to_owned()],
        ..Default::default()
    };
    let answer = run
        .people
        .service
        .tokens()
        .issue_token(request)
        .await?
        .into_inner();
    Ok(Token {
        text: answer.token,
        kid: answer.kid,
    })
}

pub async fn verify(run: &Run<'_>, token: &Token, audience: &str) -> Result<VerifyTokenResponse> {
    let request = VerifyTokenRequest {
        tenant: String::new(),
        token: token.text.clone(),
        audience: audience.to_owned(),
        required_scopes: vec![SCOPE.to_owned()],
        ..Default::default()
    };
    Ok(run
        .people
        .service
        .tokens()
        .verify_token(request)
        .await?
        .into_inner())
}

/// Waits until the JWKS has `kid`, and says how many keys are in it.
pub async fn jwks(run: &Run<'_>, kid: &str) -> Result<usize> {
    let until = Instant::now() + PATIENCE;
    loop {
        let set = fetch(run).await?;
        if set.find(kid).is_some() {
            return Ok(set.keys.len());
        }
        if Instant::now() > until {
            return Err(Failure::other(format!(
                "kid {kid} is not in the JWKS after {PATIENCE:?}"
            )));
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Verifies as a service in another language would: with the JWKS and a JOSE library.
pub async fn verify_locally(run: &Run<'_>, token: &Token) -> Result<()> {
    let bad = |what: &str| {
        Failure::other(format!(
            "the token does not verify against the JWKS: {what}"
        ))
    };
    let header = decode_header(&token.text).map_err(|e| bad(&e.to_string()))?;
    check(
        header.typ.as_deref() == Some("at+jwt"),
        "the token's typ is not at+jwt",
    )?;
    check(
        header.kid.as_deref() == Some(&token.kid),
        "the token's kid is not the one it was issued with",
    )?;
    let set = fetch(run).await?;
    let jwk = set
        .find(&token.kid)
        .ok_or_else(|| bad("its kid is not published"))?;
    let key = DecodingKey::from_jwk(jwk).map_err(|e| bad(&e.to_string()))?;
    let validation = validation(run, jwk)?;
    let claims = decode::<serde_json::Value>(&token.text, &key, &validation)
        .map_err(|e| bad(&e.to_string()))?
        .claims;
    // One issuer signs for every tenant: whose token it is stands in the claim.
    check(
        claims["tenant"] == "acme",
        "the token is not one of tenant acme",
    )?;
    check(
        claims["scope"] == SCOPE,
        "the token's scope is not the one asked for",
    )?;
    let forged = forged(&token.text);
    let accepted = decode::<serde_json::Value>(&forged, &key, &validation).is_ok();
    check(!accepted, "a token with a changed signature verifies")
}

fn validation(run: &Run<'_>, jwk: &Jwk) -> Result<Validation> {
    // The key says the algorithm, never the token.
    let algorithm = jwk.common.key_algorithm.map(Algorithm::try_from);
    let algorithm = algorithm.and_then(std::result::Result::ok);
    let algorithm =
        algorithm.ok_or_else(|| Failure::other("the JWK names no signature algorithm"))?;
    let mut validation = Validation::new(algorithm);
    validation.set_audience(&[AUDIENCE]);
    validation.set_issuer(&[&run.environment.issuer]);
    validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
    validation.validate_nbf = true;
    validation.leeway = 5;
    Ok(validation)
}

async fn fetch(run: &Run<'_>) -> Result<JwkSet> {
    let ca = run.environment.path("certs/ca.crt");
    let answer = http::https(&ca, &run.addresses.public, "/.well-known/jwks.json").await?;
    check(
        answer.status.is_success(),
        &format!("the JWKS endpoint answers {}", answer.status),
    )?;
    let cacheable = [http::ETAG, http::CACHE_CONTROL]
        .iter()
        .all(|name| answer.headers.contains_key(name));
    check(cacheable, "the JWKS has no ETag or no Cache-Control")?;
    serde_json::from_slice(&answer.body)
        .map_err(|e| Failure::other(format!("the JWKS is not a JWK Set: {e}")))
}

/// The token with one bit of its signature changed, at a place where base64url has no spare bits.
fn forged(token: &str) -> String {
    let mut forged: Vec<char> = token.chars().collect();
    let place = forged.len().saturating_sub(10);
    if let Some(letter) = forged.get_mut(place) {
        *letter = if *letter == 'A' { 'B' } else { 'A' };
    }
    forged.into_iter().collect()
}
