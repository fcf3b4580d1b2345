//! Verifying: every check of R-JWT-2, in an order that touches no key before the header is known to be ours.
//!
//! The algorithm comes from the key row, never from the token. The header may hold `alg`, `kid` and `typ` and nothing
//! else, so `crit`, `b64`, embedded keys and key URLs are refused without being looked at (RFC 8725).

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::{Claims, Tokens};
use crate::{
    error::Result,
    gate::Permit,
    model::{Kid, Purpose, SignInput, TenantName, VersionState},
};

/// Longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 16 * 1024;
const TYPE: &str = "at+jwt";

/// Why a token is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// Not a compact JWS of canonical base64url and JSON, or too large.
    Malformed,
    /// `typ` is not `at+jwt`.
    WrongType,
    /// `alg` is not the key's.
    WrongAlgorithm,
    /// The header holds more than `alg`, `kid` and `typ`.
    ForbiddenHeader,
    /// No key of the tenant has this kid.
    UnknownKid,
    /// The version is not deployed yet.
    InactiveKid,
    /// The version is retired or destroyed.
    RetiredKid,
    /// The version is compromised.
    CompromisedKid,
    /// The signature does not verify.
    BadSignature,
    /// A required claim is missing or of the wrong type.
    BadClaim,
    /// `iss` is another.
    WrongIssuer,
    /// `aud` does not contain the expected value.
    WrongAudience,
    /// `exp` has passed.
    Expired,
    /// `nbf` or `iat` is in the future.
    NotYetValid,
    /// A required scope is missing.
    InsufficientScope,
    /// The `jti` was revoked.
    Revoked,
}

/// What the caller requires of a token.
#[derive(Debug)]
pub struct Expectation {
    /// Tenant whose token it must be.
    pub tenant: TenantName,
    /// Value that `aud` must contain.
    pub audience: String,
    /// Scopes that must be present.
    pub scopes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    kid: String,
    typ: String,
}

impl Rejection {
    /// The text in audit rows and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "MALFORMED",
            Self::WrongType => "WRONG_TYPE",
            Self::WrongAlgorithm => "WRONG_ALGORITHM",
            Self::ForbiddenHeader => "FORBIDDEN_HEADER",
            Self::UnknownKid => "UNKNOWN_KID",
            Self::InactiveKid => "INACTIVE_KID",
            Self::RetiredKid => "RETIRED_KID",
            Self::CompromisedKid => "COMPROMISED_KID",
            Self::BadSignature => "BAD_SIGNATURE",
            Self::BadClaim => "BAD_CLAIM",
            Self::WrongIssuer => "WRONG_ISSUER",
            Self::WrongAudience => "WRONG_AUDIENCE",
            Self::Expired => "EXPIRED",
            Self::NotYetValid => "NOT_YET_VALID",
            Self::InsufficientScope => "INSUFFICIENT_SCOPE",
            Self::Revoked => "REVOKED",
        }
    }
}

impl Tokens {
    /// The claims and the kid of a valid token, or why it is rejected. Errors only when nothing can be said.
    pub async fn verify(
        &self,
        permit: &Permit,
        token: &str,
        expected: &Expectation,
    ) -> Result<Result<(Claims, Kid), Rejection>> {
        let parsed = match parse(token) {
            Ok(parsed) => parsed,
            Err(rejection) => return Ok(Err(rejection)),
        };
        let Some(key) = self.keys.find_kid(&expected.tenant, &parsed.kid).await? else {
            return Ok(Err(Rejection::UnknownKid));
        };
        let signed = || {
            if key.key.purpose != Purpose::TokenSigning {
                return Err(Rejection::UnknownKid);
            }
            let version = key.version(&parsed.kid).ok_or(Rejection::UnknownKid)?;
            if parsed.alg != key.key.algorithm.as_str() {
                return Err(Rejection::WrongAlgorithm);
            }
            match version.state() {
                VersionState::Active | VersionState::VerifyOnly => {}
                VersionState::PreActive => return Err(Rejection::InactiveKid),
                VersionState::Retired | VersionState::Destroyed => {
                    return Err(Rejection::RetiredKid);
                }
                VersionState::Compromised => return Err(Rejection::CompromisedKid),
            }
            let verifier = version.verifier.as_ref().ok_or(Rejection::UnknownKid)?;
            let input = SignInput::Message(parsed.signing_input.as_bytes());
            match verifier.verifies(input, &parsed.signature) {
                true => Ok(()),
                false => Err(Rejection::BadSignature),
            }
        };
        let verified = signed()
            .and_then(|()| self.check_claims(&parsed.claims, expected))
            .and_then(|claims| {
                self.check_revoked(&expected.tenant, &claims.jti)?;
                Ok((claims, parsed.kid.clone()))
            });
        if let Ok((claims, kid)) = &verified {
            self.keys
                .release_while(permit, &key, kid, VersionState::verifies);
            self.release_unless_revoked(permit, &expected.tenant, &claims.jti);
        }
        Ok(verified)
    }

    fn check_claims(&self, json: &[u8], expected: &Expectation) -> Result<Claims, Rejection> {
        let claims: Claims = serde_json::from_slice(json).map_err(|_| Rejection::BadClaim)?;
        let leeway = i64::try_from(self.config.leeway_seconds).unwrap_or(0);
        let now = self.clock.now().seconds();
        if claims.iss != self.config.issuer {
            return Err(Rejection::WrongIssuer);
        }
        if claims.tenant != expected.tenant.as_str() {
            return Err(Rejection::BadClaim);
        }
        if now >= claims.exp.saturating_add(leeway) {
            return Err(Rejection::Expired);
        }
        let latest = now.saturating_add(leeway);
        if claims.nbf > latest || claims.iat > latest {
            return Err(Rejection::NotYetValid);
        }
        if !claims.aud.values().contains(&expected.audience) {
            return Err(Rejection::WrongAudience);
        }
        let mut required = expected.scopes.iter();
        if !required.all(|scope| claims.scope.split(' ').any(|held| held == scope)) {
            return Err(Rejection::InsufficientScope);
        }
        Ok(claims)
    }
}

struct Parsed<'a> {
    alg: String,
    kid: Kid,
    signing_input: &'a str,
    claims: Vec<u8>,
    signature: Vec<u8>,
}

fn parse(token: &str) -> Result<Parsed<'_>, Rejection> {
    if token.len() > MAX_TOKEN {
        return Err(Rejection::Malformed);
    }
    let (signing_input, signature) = token.rsplit_once('.').ok_or(Rejection::Malformed)?;
    let (header, claims) = signing_input.split_once('.').ok_or(Rejection::Malformed)?;
    // The decoder refuses padding, foreign characters (a third dot among them) and non-zero trailing bits.
    let decode = |part: &str| {
        BASE64_URL_SAFE_NO_PAD
            .decode(part)
            .map_err(|_| Rejection::Malformed)
    };
    let header = parse_header(&decode(header)?)?;
    if header.typ != TYPE {
        return Err(Rejection::WrongType);
    }
    Ok(Parsed {
        kid: header.kid.parse().map_err(|_| Rejection::UnknownKid)?,
        alg: header.alg,
        signing_input,
        claims: decode(claims)?,
        signature: decode(signature)?,
    })
}

fn parse_header(json: &[u8]) -> Result<Header, Rejection> {
    serde_json::from_slice(json).map_err(|_| {
        // Say which of the two it is: an object with something extra, or no proper header at all.
        let members: Result<serde_json::Map<_, _>, _> = serde_json::from_slice(json);
        let extra = members.is_ok_and(|members| {
            members
                .keys()
                .any(|name| !matches!(name.as_str(), "alg" | "kid" | "typ"))
        });
        if extra {
            Rejection::ForbiddenHeader
        } else {
            Rejection::Malformed
        }
    })
}
