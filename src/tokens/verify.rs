//! Verifying: every check of R-JWT-2, in an order that touches no key before the header is known to be ours.
//!
//! The algorithm comes from the key row, never from the token. The header may hold `alg`, `kid` and `typ` and nothing
//! else, so `crit`, `b64`, embedded keys and key URLs are refused without being looked at (RFC 8725).
//!
//! Decided where the standards leave a choice:
//! - `typ` is `at+jwt` exactly. RFC 9068 section 4 lets a resource server take `application/at+jwt` too; only tokens that
//!   we issued are verified here, and those say what section 2.1 recommends.
//! - ECDSA signatures are malleable: of `(r, s)` and `(r, n - s)` both verify, and tokens make either. Nothing may be
//!   keyed by a token's bytes; a revocation names `jti` or `kid`.
//! - Unknown claims are ignored (RFC 7519 section 4), but no claim may be there twice.
//! - What RevokeToken could not name, or what would outlive its revocation, is no token: `jti` is a UUID, and `exp` at
//!   most a day after `iat`.

use std::{borrow::Cow, sync::Arc};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    Claims, LONGEST_TTL, Tokens, TokensConfig, issue::OWN_GRANT, json::is_plain_object,
    proven::Proven,
};
use crate::{
    error::Result,
    gate::Permit,
    keys::KeySnapshot,
    model::{Kid, PrincipalKind, Purpose, SignInput, TenantName, VersionState},
};

/// Longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 16 * 1024;
const TYPE: &str = "at+jwt";
/// Longest `sub` and `client_id`, in characters.
const MAX_NAME: usize = 255;

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
    /// The `jti` was revoked, or the subject or client does not count any more.
    Revoked,
    /// It is bound to a certificate, and came without it.
    NotBound,
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
    /// `x5t#S256` of the certificate that it came with; empty for none.
    pub certificate: String,
}

impl Expectation {
    fn meets(&self, claims: &Claims) -> Result<(), Rejection> {
        if !claims.aud.values().contains(&self.audience) {
            return Err(Rejection::WrongAudience);
        }
        let bound = claims.cnf.as_ref();
        if bound.is_some_and(|cnf| cnf.certificate != self.certificate) {
            return Err(Rejection::NotBound);
        }
        let mut required = self.scopes.iter();
        match required.all(|scope| claims.scope.split(' ').any(|held| held == scope)) {
            true => Ok(()),
            false => Err(Rejection::InsufficientScope),
        }
    }
}

/// Values are borrowed: none of ours needs an escape, so one that has some is not ours.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<'a> {
    alg: &'a str,
    #[serde(borrow)]
    kid: Cow<'a, str>,
    typ: &'a str,
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
            Self::NotBound => "NOT_BOUND",
        }
    }
}

/// A token that is what it says, and the key that proves it.
struct Verified {
    claims: Claims,
    kid: Kid,
    key: Arc<KeySnapshot>,
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
        let meets = |claims: &Claims| expected.meets(claims);
        let judged = self.judge(&parsed, &expected.tenant, meets).await?;
        Ok(judged.map(|verified| self.released(permit, &expected.tenant, verified)))
    }

    /// As `verify`, for whoever asks what a token of `tenant` is, whatever it is for.
    pub async fn inspect(
        &self,
        permit: &Permit,
        token: &str,
        tenant: &TenantName,
    ) -> Result<Result<(Claims, Kid), Rejection>> {
        let parsed = match parse(token) {
            Ok(parsed) => parsed,
            Err(rejection) => return Ok(Err(rejection)),
        };
        let judged = self.judge(&parsed, tenant, |_| Ok(())).await?;
        Ok(judged.map(|verified| self.released(permit, tenant, verified)))
    }

    /// May a token that was issued a while ago be handed out again? Then it is kept back if that changes before the
    /// answer leaves.
    pub async fn stands(
        &self,
        permit: &Permit,
        tenant: &TenantName,
        kid: &Kid,
        jti: &str,
    ) -> Result<bool> {
        let Some(key) = self.keys.find_kid(tenant, kid).await? else {
            return Ok(false);
        };
        let state = key.version(kid).map(|version| version.state());
        if !state.is_some_and(VersionState::verifies) || self.check_revoked(tenant, jti).is_err() {
            return Ok(false);
        }
        self.keys
            .release_while(permit, &key, kid, VersionState::verifies);
        self.release_unless_revoked(permit, tenant, jti);
        Ok(true)
    }

    /// The answer that a token is valid, kept back if it is not any more when the answer is about to leave.
    fn released(&self, permit: &Permit, tenant: &TenantName, verified: Verified) -> (Claims, Kid) {
        let Verified { claims, kid, key } = verified;
        self.keys
            .release_while(permit, &key, &kid, VersionState::verifies);
        self.release_unless_revoked(permit, tenant, &claims.jti);
        (claims, kid)
    }

    /// The claims of a token that authenticates a call to this daemon, whose `aud` is `audience`, and
    /// that came with the certificate of this thumbprint. The tenant is the one that
    /// the token names: it must be that of the key that signed it. Whoever acts on the claims goes through the gate, which
    /// looks at the freshness of this replica. Errors only when nothing can be said.
    pub async fn authenticate(
        &self,
        token: &str,
        audience: &str,
        certificate: Option<String>,
    ) -> Result<Result<Claims, Rejection>> {
        let parsed = match parse(token) {
            Ok(parsed) => parsed,
            Err(rejection) => return Ok(Err(rejection)),
        };
        let Some(tenant) = named_tenant(&parsed.claims) else {
            return Ok(Err(Rejection::BadClaim));
        };
        let expected = Expectation {
            tenant,
            audience: audience.to_owned(),
            scopes: Vec::new(),
            certificate: certificate.unwrap_or_default(),
        };
        // Whoever may IssueToken chooses its subject, so such a token says nothing about who calls.
        let is_own = |claims: &Claims| claims.gty.as_deref() == Some(OWN_GRANT);
        let meets = |claims: &Claims| match is_own(claims) {
            true => expected.meets(claims),
            false => Err(Rejection::BadClaim),
        };
        let judged = self.judge(&parsed, &expected.tenant, meets).await?;
        Ok(judged.map(|verified| verified.claims))
    }

    async fn judge(
        &self,
        parsed: &Parsed<'_>,
        tenant: &TenantName,
        meets: impl FnOnce(&Claims) -> Result<(), Rejection>,
    ) -> Result<Result<Verified, Rejection>> {
        let Some(key) = self.keys.find_kid(tenant, &parsed.kid).await? else {
            return Ok(Err(Rejection::UnknownKid));
        };
        let now = self.clock.now().seconds();
        let judged = signed(&key, parsed, &self.proven)
            .and_then(|()| check_own(&parsed.claims, tenant, &self.config, now))
            .and_then(|claims| {
                meets(&claims)?;
                self.check_revoked(tenant, &claims.jti)?;
                let kid = parsed.kid.clone();
                Ok(Verified { claims, kid, key })
            });
        Ok(judged)
    }
}

/// Is it signed by a version of this key that verifies?
fn signed(key: &KeySnapshot, parsed: &Parsed<'_>, proven: &Proven) -> Result<(), Rejection> {
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
        VersionState::Retired | VersionState::Destroyed => return Err(Rejection::RetiredKid),
        VersionState::Compromised => return Err(Rejection::CompromisedKid),
    }
    let verifier = version.verifier.as_ref().ok_or(Rejection::UnknownKid)?;
    let input = SignInput::Message(parsed.signing_input.as_bytes());
    let verify = || verifier.verifies(input, &parsed.signature);
    match proven.verifies(parsed.signing_input, &parsed.signature, verify) {
        true => Ok(()),
        false => Err(Rejection::BadSignature),
    }
}

/// `tenant` of claims that nobody has verified: it chooses where the key is looked for, and the key's tenant is what the
/// verified claims are held to.
fn named_tenant(json: &[u8]) -> Option<TenantName> {
    #[derive(Deserialize)]
    struct Named {
        tenant: String,
    }
    let named: Named = serde_json::from_slice(json).ok()?;
    named.tenant.parse().ok()
}

/// What every token of ours must say; `now` in seconds since the Unix epoch.
fn check_own(
    json: &[u8],
    tenant: &TenantName,
    config: &TokensConfig,
    now: i64,
) -> Result<Claims, Rejection> {
    let claims: Claims = match is_plain_object(json) {
        true => serde_json::from_slice(json).map_err(|_| Rejection::BadClaim)?,
        false => return Err(Rejection::BadClaim),
    };
    if !is_well_formed(&claims) {
        return Err(Rejection::BadClaim);
    }
    if claims.iss != config.issuer {
        return Err(Rejection::WrongIssuer);
    }
    if claims.tenant != tenant.as_str() {
        return Err(Rejection::BadClaim);
    }
    let leeway = i64::try_from(config.leeway_seconds).unwrap_or(0);
    if now >= claims.exp.saturating_add(leeway) {
        return Err(Rejection::Expired);
    }
    let latest = now.saturating_add(leeway);
    if claims.nbf > latest || claims.iat > latest {
        return Err(Rejection::NotYetValid);
    }
    let lifetime = claims.exp.saturating_sub(claims.iat);
    if !(1..=LONGEST_TTL.cast_signed()).contains(&lifetime) {
        return Err(Rejection::BadClaim);
    }
    Ok(claims)
}

/// Does every claim have the form that `issue` gives it?
fn is_well_formed(claims: &Claims) -> bool {
    let name = |text: &str| {
        (1..=MAX_NAME).contains(&text.chars().count()) && !text.chars().any(char::is_control)
    };
    // RFC 6749 section 3.3; no scope at all is the empty text.
    let scope = |token: &str| {
        !token.is_empty()
            && token
                .bytes()
                .all(|b| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
    };
    let kinds = [PrincipalKind::User, PrincipalKind::Service];
    let jti = Uuid::try_parse(&claims.jti);
    name(&claims.sub)
        && name(&claims.client_id)
        && jti.is_ok_and(|id| id.hyphenated().to_string() == claims.jti)
        && (claims.scope.is_empty() || claims.scope.split(' ').all(scope))
        && kinds
            .map(PrincipalKind::as_str)
            .contains(&claims.principal_type.as_str())
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
    // The decoder refuses padding, foreign characters (a further dot among them) and non-zero trailing bits.
    let decode = |part: &str| {
        BASE64_URL_SAFE_NO_PAD
            .decode(part)
            .map_err(|_| Rejection::Malformed)
    };
    // All three first: what is no compact JWS at all has no header to talk about.
    let (header, claims, signature) = (decode(header)?, decode(claims)?, decode(signature)?);
    let header = parse_header(&header)?;
    if header.typ != TYPE {
        return Err(Rejection::WrongType);
    }
    let kid = match header.kid {
        Cow::Borrowed(kid) => kid.parse().map_err(|_| Rejection::UnknownKid)?,
        // A kid has no character that needs an escape.
        Cow::Owned(_) => return Err(Rejection::UnknownKid),
    };
    Ok(Parsed {
        kid,
        alg: header.alg.to_owned(),
        signing_input,
        claims,
        signature,
    })
}

fn parse_header(json: &[u8]) -> Result<Header<'_>, Rejection> {
    if !is_plain_object(json) {
        return Err(Rejection::Malformed);
    }
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

#[cfg(test)]
mod tests;
